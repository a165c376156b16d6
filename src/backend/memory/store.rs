//! Which leases a registry holds, and which have run out: a table to which time is an argument.

#[cfg(test)]
mod protecting;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::Listing;
use super::clock::LeaseClock;
use super::event::{RegistrationChange, RegistrationEvent};
use super::group::{Group, GroupName, Slot};
use super::protection::{Protection, Reprieve, Threshold};
use super::quota::{Ledger, Owner, Quota, weight};
use super::ttl_counts::TtlCounts;
use crate::discovery::Resolved;
use crate::instance::{Address, Instance, InstanceId, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, RegistryError, RegistryErrorKind, Renewal,
};
use crate::sync::{Deferred, event};

/// The shortest lease granted.
const MIN_TTL: Duration = Duration::from_millis(1);
/// The longest lease granted where no default caps it.
const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a registry that remembers nothing warms up at least.
const MIN_WARMING: Duration = Duration::from_secs(15);

/// What a [`Store`] allows; [`MemoryRegistryBuilder`](super::MemoryRegistryBuilder) says what each
/// means.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) default_ttl: Option<Duration>,
    pub(super) sweep: Duration,
    pub(super) quota: Quota,
    pub(super) warming: bool,
    pub(super) protection: Threshold,
}

/// The leases of all services.
///
/// Every method that is given `now` first drops what has run out, so that no answer contains an
/// expired entry, however long ago the last sweep was; but after a late sweep what has run out
/// waits for its judgement, and may be kept.
pub(super) struct Store {
    limits: Limits,
    /// Makes lease ids; cryptographic, since who knows an id may end the lease.
    rng: StdRng,
    /// Random per start: tells the revisions of this start from those of another.
    incarnation: Arc<str>,
    /// Rises at each visible change of any group.
    revision: u64,
    /// Rises with `revision`, and when a warm-up starts or ends.
    version: u64,
    /// None of them is empty.
    groups: BTreeMap<GroupName, Group>,
    /// What the slots of all groups take, and on whose account.
    ledger: Ledger,
    /// The TTLs of all slots that can expire.
    ttls: TtlCounts,
    /// By when which slot is to be looked at: one item for each slot that can expire.
    queue: BTreeMap<(Instant, u64), (GroupName, InstanceId)>,
    next_number: u64,
    clock: LeaseClock,
    /// From when on it knows who lives: its start, or when it found out that nobody had reached it.
    blank_since: Instant,
    /// How long it does not know all: as long as the lease that ran out unheard. `None`: since its
    /// start, and as long as the longest.
    blank_for: Option<Duration>,
    /// When a lease was last granted or renewed, in the leases' time.
    heard: Instant,
    reprieve: Reprieve,
    /// When which operator's word ends: one item for each that has an end.
    override_ends: BTreeMap<(Instant, u64), (GroupName, InstanceId)>,
    longest_granted: Duration,
    /// As of the last sweep.
    was_warming: bool,
    /// Events, until the store's lock is released.
    deferred: Deferred,
}

impl Store {
    pub(super) fn new(limits: Limits, mut rng: StdRng, now: Instant) -> Self {
        Self {
            incarnation: format!("{:016x}", rng.random::<u64>()).into(),
            rng,
            revision: 0,
            version: 0,
            groups: BTreeMap::new(),
            ledger: Ledger::new(limits.quota.clone()),
            ttls: TtlCounts::default(),
            queue: BTreeMap::new(),
            next_number: 0,
            clock: LeaseClock::new(limits.sweep),
            blank_since: now,
            blank_for: None,
            heard: now,
            reprieve: Reprieve::new(limits.protection.clone(), now),
            override_ends: BTreeMap::new(),
            longest_granted: Duration::ZERO,
            was_warming: limits.warming,
            limits,
            deferred: Deferred::default(),
        }
    }

    /// Registers on nobody's account.
    pub(super) fn register(
        &mut self,
        registration: &Registration,
        now: Instant,
    ) -> Result<Lease, RegistryError> {
        self.register_by(registration, &Owner::default(), now)
    }

    pub(super) fn register_by(
        &mut self,
        registration: &Registration,
        owner: &Owner,
        now: Instant,
    ) -> Result<Lease, RegistryError> {
        let now = self.settle(now);
        if registration.ttl.is_zero() {
            return Err(invalid("a lease of 0 s: ask for at least 1 ms".to_owned()));
        }
        let cap = self.limits.default_ttl.unwrap_or(MAX_TTL);
        let ttl = Some(registration.ttl.max(MIN_TTL).min(cap));
        let group = Some(registration.service.clone());
        let instance = &registration.instance;
        match self.slot(&group, &instance.id).map(|slot| slot.instance.epoch) {
            Some(held) if instance.epoch < held => return Err(stale(held)),
            // The same epoch elsewhere is another process that took the same id.
            Some(held) if instance.epoch == held && !self.is_at(&group, instance) => {
                return Err(stale(held));
            }
            Some(held) if instance.epoch == held => {}
            Some(_) => {
                self.check_address(&group, instance)?;
                if let Err(full) = self.replace(&group, instance.clone()) {
                    self.extend(&group, &instance.id, ttl, now);
                    return Err(full);
                }
            }
            None => {
                self.check_address(&group, instance)?;
                self.insert(&group, instance.clone(), owner)?;
            }
        }
        let lease = match self.slot_mut(&group, &instance.id) {
            Some(slot) => {
                slot.registered = true;
                Arc::clone(&slot.lease)
            }
            None => return Err(RegistryError::unavailable("lost while being registered")),
        };
        self.extend(&group, &instance.id, ttl, now);
        Ok(Lease::new(lease, ttl))
    }

    pub(super) fn renew(&mut self, held: &Held, now: Instant) -> Result<Renewal, RegistryError> {
        let lease_time = self.settle(now);
        let group = Some(held.registration.service.clone());
        let instance = &held.registration.instance;
        let Some(slot) = self.slot(&group, &instance.id) else {
            return Ok(Renewal::Lost);
        };
        if slot.lease != held.lease.id {
            return Ok(Renewal::Lost);
        }
        let (epoch, ttl) = (slot.instance.epoch, slot.ttl);
        if instance.epoch < epoch {
            return Err(stale(epoch));
        }
        // A full registry may lack the room for the new state; the lease holds all the same.
        let replaced = match instance.epoch > epoch {
            true => {
                self.check_address(&group, instance)?;
                self.replace(&group, instance.clone())
            }
            false => Ok(()),
        };
        self.extend(&group, &instance.id, ttl, lease_time);
        replaced?;
        let word = self.slot_mut(&group, &instance.id).and_then(|slot| slot.tell(now));
        Ok(word.map_or(Renewal::Renewed, Renewal::Overridden))
    }

    /// Whether this instance may have its address.
    fn check_address(&self, group: &GroupName, instance: &Instance) -> Result<(), RegistryError> {
        let holder = self.groups.get(group).and_then(|group| group.holder(&instance.address));
        match holder.map(|slot| &slot.instance).filter(|holder| holder.id != instance.id) {
            Some(holder) if !instance.takes_address_from(holder) => {
                Err(RegistryError::superseded(holder))
            }
            _ => Ok(()),
        }
    }

    fn is_at(&self, group: &Option<ServiceName>, instance: &Instance) -> bool {
        self.slot(group, &instance.id).is_some_and(|slot| slot.instance.address == instance.address)
    }

    /// Removes it, unless the lease is another's or a newer registration of the same id stands.
    pub(super) fn deregister(&mut self, held: &Held, now: Instant) {
        self.settle(now);
        let group = Some(held.registration.service.clone());
        let instance = &held.registration.instance;
        let ours = self.slot(&group, &instance.id).is_some_and(|slot| {
            slot.lease == held.lease.id && slot.instance.epoch <= instance.epoch
        });
        if ours {
            self.remove(&group, &instance.id, RegistrationChange::Deregistered, None);
        }
    }

    /// Registers or renews what is known by its address alone. False: it was not stored.
    pub(super) fn register_address(
        &mut self,
        service: Option<&ServiceName>,
        address: &Address,
        now: Instant,
    ) -> bool {
        self.register_address_by(service, address, &Owner::default(), now)
    }

    pub(super) fn register_address_by(
        &mut self,
        service: Option<&ServiceName>,
        address: &Address,
        owner: &Owner,
        now: Instant,
    ) -> bool {
        let now = self.settle(now);
        let leases = self.leases_at(service, address);
        if !leases.is_empty() {
            for (group, id, ttl) in leases {
                self.extend(&group, &id, ttl, now);
            }
            return true;
        }
        let group = service.cloned();
        let instance = Instance::at(address.clone());
        let id = instance.id.clone();
        // An id that is this address's text may have been registered for another address: it stays.
        let stands = match self.slot(&group, &id) {
            Some(slot) => slot.instance.address == *address,
            None => self.insert(&group, instance, owner).is_ok(),
        };
        if stands {
            self.extend(&group, &id, self.limits.default_ttl, now);
        }
        stands
    }

    /// Sets what an operator says of an instance. False: it is not there.
    pub(super) fn set_health(
        &mut self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
        now: Instant,
    ) -> bool {
        self.settle(now);
        let group = Some(service.clone());
        let Some(slot) = self.slot_mut(&group, id) else {
            return false;
        };
        let (number, former) = (slot.number, slot.override_end());
        let differs = slot.say(word, now);
        let until = slot.override_end();
        if let Some(former) = former {
            self.override_ends.remove(&(former, number));
        }
        if let Some(until) = until {
            self.override_ends.insert((until, number), (group.clone(), id.clone()));
        }
        if differs {
            self.changed(&group);
        }
        true
    }

    /// Ends the operators' words whose time is over.
    fn end_overrides(&mut self, now: Instant) {
        while let Some(first) = self.override_ends.first_entry()
            && first.key().0 <= now
        {
            let (group, id) = first.remove();
            // What was taken over meanwhile, or is gone, has no such end any more.
            let ended = self.slot_mut(&group, &id).is_some_and(|slot| slot.end_override(now));
            if ended {
                self.changed(&group);
            }
        }
    }

    /// What is registered for one service, or for all and none.
    pub(super) fn list(&mut self, service: Option<&ServiceName>, now: Instant) -> Listing {
        let now = self.settle(now);
        let warming = self.is_warming(now);
        let protection = self.reprieve.state(now);
        let Some(service) = service else {
            let entries = self.groups.iter().flat_map(|(name, group)| group.entries(name, now));
            return Listing {
                revision: self.text(self.revision),
                warming,
                deregistered: Vec::new(),
                protection,
                unread: Vec::new(),
                entries: entries.collect(),
            };
        };
        let name = Some(service.clone());
        let group = self.groups.get(&name);
        Listing {
            revision: self.text(group.map_or(0, |group| group.revision)),
            warming,
            deregistered: Vec::new(),
            protection,
            unread: Vec::new(),
            entries: group.map_or_else(Vec::new, |group| group.entries(&name, now).collect()),
        }
    }

    /// The same for a resolver.
    pub(super) fn resolve(&mut self, service: &ServiceName, now: Instant) -> Resolved {
        let now = self.settle(now);
        let group = self.groups.get(&Some(service.clone()));
        let instances = group.map_or_else(Vec::new, |group| group.instances().cloned().collect());
        Resolved::new(instances)
            .revision(self.text(group.map_or(0, |group| group.revision)))
            .authoritative(true)
            .warming(self.is_warming(now))
    }

    /// Names this start.
    pub(super) fn incarnation(&self) -> Arc<str> {
        Arc::clone(&self.incarnation)
    }

    /// What a watcher of this service compares: its revision, and whether the registry warms up.
    pub(super) fn state(&mut self, service: &ServiceName, now: Instant) -> (Arc<str>, bool) {
        let now = self.settle(now);
        let group = self.groups.get(&Some(service.clone()));
        let revision = self.text(group.map_or(0, |group| group.revision));
        (revision, self.is_warming(now))
    }

    /// Every service of which there is an instance, sorted.
    pub(super) fn services(&mut self, now: Instant) -> Vec<ServiceName> {
        self.settle(now);
        self.groups.keys().flatten().cloned().collect()
    }

    /// The leases that are kept though they have run out.
    pub(super) fn protection(&mut self, now: Instant) -> Option<Protection> {
        let now = self.settle(now);
        self.reprieve.state(now)
    }

    /// Drops what has run out, and notes that the sweep lives.
    pub(super) fn sweep(&mut self, now: Instant) {
        let lease_time = self.lease_time(now);
        self.end_overrides(now);
        self.expire(lease_time);
        self.clock.swept(now);
        let warming = self.is_warming(lease_time);
        if self.was_warming != warming {
            self.was_warming = warming;
            self.version += 1;
        }
    }

    /// Differs from what it was before whenever a watcher could see a difference.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// What is to be done once the store's lock is released.
    pub(super) fn take_deferred(&mut self) -> Deferred {
        std::mem::take(&mut self.deferred)
    }

    /// The leases' time.
    fn lease_time(&mut self, now: Instant) -> Instant {
        let lease_time = self.clock.read(now);
        if let Some(late) = self.clock.take_forgiven() {
            let late_ms = millis(late);
            self.deferred.push(move || {
                event!(WARN, late_ms, "the sweep came late: every lease is extended by as much");
            });
        }
        lease_time
    }

    /// Drops what has run out, unless a late sweep has still to judge it, and tells the leases'
    /// time.
    fn settle(&mut self, now: Instant) -> Instant {
        let lease_time = self.lease_time(now);
        self.end_overrides(now);
        if !self.clock.awaits_sweep(now) {
            self.expire(lease_time);
        }
        lease_time
    }

    /// Drops what has run out, or keeps it for a while if a late sweep finds too much of it.
    fn expire(&mut self, now: Instant) {
        let leases = self.queue.len();
        let mut due = self.take_due(now);
        if self.clock.judges_late() {
            let fresh = due.iter().filter(|due| !due.kept).count();
            if self.reprieve.is_due_to(fresh, leases) {
                self.keep(&due, fresh, leases, now);
                due.retain(|due| due.kept);
            }
        }
        for Due { group, id, .. } in due {
            let ttl = self.slot(&group, &id).and_then(|slot| slot.ttl).unwrap_or_default();
            if self.is_deaf(ttl, now) {
                self.deferred.push(|| {
                    event!(WARN, "nobody renews: what runs out now is not proven gone");
                });
                self.blank_since = now;
                self.blank_for = Some(ttl);
            }
            self.remove(&group, &id, RegistrationChange::Expired, None);
        }
    }

    /// Takes what has run out from the queue, what ran out first in front.
    fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut found = Vec::new();
        while let Some(first) = self.queue.first_entry()
            && first.key().0 < now
        {
            let (group, id) = first.remove();
            let Some(slot) = self.slot_mut(&group, &id) else {
                continue;
            };
            slot.queued = None;
            match slot.due {
                Some(due) if due < now => {
                    let (kept, number) = (slot.kept, slot.number);
                    found.push(Due { due, number, kept, group, id });
                }
                Some(due) => self.enqueue(&group, &id, due),
                None => {}
            }
        }
        found.sort_unstable_by_key(|found| (found.due, found.number));
        found
    }

    /// Postpones the end of what has run out for the first time.
    fn keep(&mut self, due: &[Due], fresh: usize, leases: usize, now: Instant) {
        let mut last = now;
        for (rank, Due { group, id, .. }) in due.iter().filter(|due| !due.kept).enumerate() {
            let Some(slot) = self.slot_mut(group, id) else {
                continue;
            };
            let end = Reprieve::end(now, slot.ttl.unwrap_or_default(), rank, fresh);
            slot.kept = true;
            slot.due = Some(end);
            last = last.max(end);
            self.enqueue(group, id, end);
        }
        self.reprieve.keep(fresh, last);
        let ends_in = self.reprieve.state(now).map_or(Duration::ZERO, |kept| kept.ends_in);
        let ends_in_ms = millis(ends_in);
        self.deferred.push(move || {
            event!(
                WARN,
                kept = fresh,
                leases,
                ends_in_ms,
                "too many leases ran out in a sweep that came late: they are kept for now"
            );
        });
    }

    /// Notes that a lease that was kept is no longer.
    fn release(&mut self) {
        if self.reprieve.release() {
            self.deferred.push(|| event!(INFO, "no lease is kept any longer that has run out"));
        }
    }

    /// Whether nobody can reach this registry, as a lease of this length runs out: nobody was heard
    /// for half of its time, in which another one that is no longer should have been renewed. It
    /// cannot tell then who is gone and who is not heard.
    fn is_deaf(&self, ttl: Duration, now: Instant) -> bool {
        if !self.limits.warming || self.blank_since == now {
            return false;
        }
        // A lease that is short among long ones says nothing of the others.
        let longest = self.ttls.longest().unwrap_or_default();
        let ttl = ttl.max(longest.min(self.least_warming()));
        let silence = now.saturating_duration_since(self.heard);
        // The one that runs out is the first of them, in whatever order.
        silence >= ttl / 2 && self.ttls.has_two_within(ttl)
    }

    /// The leases made by `register` that stand at this address.
    fn leases_at(
        &self,
        service: Option<&ServiceName>,
        address: &Address,
    ) -> Vec<(GroupName, InstanceId, Option<Duration>)> {
        let found = |(name, group): (&GroupName, &Group)| {
            let slot = group.holder(address).filter(|slot| slot.registered)?;
            Some((name.clone(), slot.instance.id.clone(), slot.ttl))
        };
        match service {
            None => self.groups.iter().filter_map(found).collect(),
            Some(service) => {
                let group = self.groups.get_key_value(&Some(service.clone()));
                group.and_then(found).into_iter().collect()
            }
        }
    }

    /// Adds a slot without a date, at an address from which it drives the holder away.
    fn insert(
        &mut self,
        name: &GroupName,
        instance: Instance,
        owner: &Owner,
    ) -> Result<(), RegistryError> {
        let holder = self.groups.get(name).and_then(|group| group.holder(&instance.address));
        let freed = holder.map(|holder| &holder.account);
        let account = self.ledger.open(owner, weight(name, &instance), freed)?;
        self.free(name, &instance);
        self.tell(RegistrationChange::Registered, name, &instance, owner.text());
        let slot = Slot {
            lease: format!("{:032x}", self.rng.random::<u128>()).into(),
            ttl: None,
            due: None,
            queued: None,
            number: self.next_number,
            registered: false,
            account,
            kept: false,
            own_health: instance.health,
            health_override: None,
            instance,
        };
        self.next_number += 1;
        self.groups.entry(name.clone()).or_default().insert(slot);
        self.changed(name);
        Ok(())
    }

    /// Gives the slot of this id a newer state. The lease stays: who renews it with an older epoch
    /// learns that it is stale.
    fn replace(&mut self, name: &GroupName, instance: Instance) -> Result<(), RegistryError> {
        let group = self.groups.get_mut(name);
        if let Some(slot) = group.and_then(|group| group.slot_mut(&instance.id)) {
            self.ledger.resize(&mut slot.account, weight(name, &instance))?;
        }
        self.free(name, &instance);
        self.tell(RegistrationChange::Changed, name, &instance, None);
        if let Some(group) = self.groups.get_mut(name) {
            group.replace(instance);
        }
        self.changed(name);
        Ok(())
    }

    /// Drives another holder away from the address that this instance takes.
    fn free(&mut self, name: &GroupName, instance: &Instance) {
        let holder = self.holder(name, &instance.address).cloned();
        if let Some(holder) = holder.filter(|holder| *holder != instance.id) {
            let by = instance.id.as_str().into();
            self.remove(name, &holder, RegistrationChange::Replaced, Some(by));
        }
    }

    fn remove(
        &mut self,
        name: &GroupName,
        id: &InstanceId,
        change: RegistrationChange,
        by: Option<Arc<str>>,
    ) {
        let Some(group) = self.groups.get_mut(name) else {
            return;
        };
        let Some(slot) = group.remove(id) else {
            return;
        };
        if group.is_empty() {
            self.groups.remove(name);
        }
        if let Some(queued) = slot.queued {
            self.queue.remove(&(queued, slot.number));
        }
        if let Some(end) = slot.override_end() {
            self.override_ends.remove(&(end, slot.number));
        }
        self.ledger.close(&slot.account);
        self.ttls.moved(slot.ttl, None);
        if slot.kept {
            self.release();
        }
        self.tell(change, name, &slot.instance, by);
        self.changed(name);
    }

    /// Notes what becomes of a registration, to be told once the store's lock is released.
    fn tell(
        &mut self,
        change: RegistrationChange,
        name: &GroupName,
        instance: &Instance,
        by: Option<Arc<str>>,
    ) {
        let event = RegistrationEvent::new(change, name.as_ref(), instance, by);
        self.deferred.push(move || event.emit());
    }

    /// Lets a slot's lease run for `ttl` from now.
    fn extend(&mut self, name: &GroupName, id: &InstanceId, ttl: Option<Duration>, now: Instant) {
        self.longest_granted = self.longest_granted.max(ttl.unwrap_or_default());
        self.heard = now;
        let due = ttl.map(|ttl| now + ttl);
        let Some(slot) = self.slot_mut(name, id) else {
            return;
        };
        let former = std::mem::replace(&mut slot.ttl, ttl);
        slot.due = due;
        let kept = std::mem::take(&mut slot.kept);
        // The queue finds a later date out by itself, once it gets there: a renewal costs nothing.
        let (queued, number) = (slot.queued, slot.number);
        self.ttls.moved(former, ttl);
        match (queued, due) {
            (None, Some(due)) => self.enqueue(name, id, due),
            (Some(queued), Some(due)) if due < queued => {
                self.queue.remove(&(queued, number));
                self.enqueue(name, id, due);
            }
            _ => {}
        }
        if kept {
            self.release();
        }
    }

    fn enqueue(&mut self, name: &GroupName, id: &InstanceId, due: Instant) {
        if let Some(slot) = self.slot_mut(name, id) {
            slot.queued = Some(due);
            let number = slot.number;
            self.queue.insert((due, number), (name.clone(), id.clone()));
        }
    }

    /// Notes that what a group's listing shows has changed. A group that is gone has no revision of
    /// its own: it shows the same as one that never was.
    fn changed(&mut self, name: &GroupName) {
        self.revision += 1;
        self.version += 1;
        if let Some(group) = self.groups.get_mut(name) {
            group.revision = self.revision;
        }
    }

    fn is_warming(&self, now: Instant) -> bool {
        let long = self.blank_for.unwrap_or(self.longest_granted).max(self.least_warming());
        self.limits.warming && now < self.blank_since + long
    }

    fn least_warming(&self) -> Duration {
        self.limits.default_ttl.map_or(MIN_WARMING, |ttl| ttl.min(MIN_WARMING))
    }

    fn text(&self, revision: u64) -> Arc<str> {
        format!("{}-{revision}", self.incarnation).into()
    }

    fn holder(&self, name: &GroupName, address: &Address) -> Option<&InstanceId> {
        self.groups.get(name)?.holder(address).map(|slot| &slot.instance.id)
    }

    fn slot(&self, name: &GroupName, id: &InstanceId) -> Option<&Slot> {
        self.groups.get(name)?.slot(id)
    }

    fn slot_mut(&mut self, name: &GroupName, id: &InstanceId) -> Option<&mut Slot> {
        self.groups.get_mut(name)?.slot_mut(id)
    }
}

/// A lease that has run out.
struct Due {
    due: Instant,
    number: u64,
    kept: bool,
    group: GroupName,
    id: InstanceId,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn invalid(message: String) -> RegistryError {
    RegistryError::new(RegistryErrorKind::Invalid, message)
}

fn stale(held: u64) -> RegistryError {
    let message = format!("the id is registered with epoch {held}, which is newer");
    RegistryError::new(RegistryErrorKind::StaleEpoch { held }, message)
}
