//! Who is registered for one service, and who holds each address of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Entry;
use super::quota::Account;
use crate::call::after;
use crate::instance::{Address, Health, Instance, InstanceId, ServiceName};
use crate::registry::HealthOverride;

/// The service; `None` for what was registered by its address alone.
pub(super) type GroupName = Option<ServiceName>;

/// What is registered for one service: every slot holds one address, every address has one holder.
#[derive(Default)]
pub(super) struct Group {
    /// The store's revision at the last visible change of this group.
    pub(super) revision: u64,
    slots: HashMap<InstanceId, Slot>,
    holders: BTreeMap<Address, InstanceId>,
}

/// An instance and its lease.
pub(super) struct Slot {
    /// As it is listed: its health is the worse of its own and of an operator's word.
    pub(super) instance: Instance,
    /// What the instance says of itself.
    pub(super) own_health: Health,
    /// What an operator says of it, until the instance has taken it over.
    pub(super) health_override: Option<Said>,
    /// The lease's id: 128 random bits as hexadecimal.
    pub(super) lease: Arc<str>,
    pub(super) ttl: Option<Duration>,
    /// When it runs out, in the leases' time. `None`: never.
    pub(super) due: Option<Instant>,
    /// Where it stands in the queue: never later than `due`, often earlier, since a renewal only
    /// moves `due`.
    pub(super) queued: Option<Instant>,
    /// Tells slots of equal queue times apart.
    pub(super) number: u64,
    /// Whether it came through `register`, not through `register_address`.
    pub(super) registered: bool,
    /// What it takes, and on whose account.
    pub(super) account: Account,
    /// Whether it has run out once already and is kept for a while: not a second time.
    pub(super) kept: bool,
}

/// An operator's word.
pub(super) struct Said {
    /// Its duration is that from when it was said.
    pub(super) word: HealthOverride,
    pub(super) until: Option<Instant>,
    /// The instance's epoch when it was said: only a state that is newer can have taken it over.
    pub(super) epoch: u64,
    /// Whether the instance may know of it.
    pub(super) is_told: bool,
}

impl Slot {
    /// Takes over a newer state.
    fn update(&mut self, instance: Instance) {
        self.own_health = instance.health;
        self.instance = instance;
        let (epoch, health) = (self.instance.epoch, self.own_health);
        let is_taken_over =
            |said: &mut Said| epoch > said.epoch && said.word.is_taken_over_by(health);
        self.health_override.take_if(is_taken_over);
        self.settle_health();
    }

    /// Sets what an operator says of it. True: it is listed differently.
    pub(super) fn say(&mut self, word: &HealthOverride, now: Instant) -> bool {
        let before = &self.health_override;
        // What the instance has not heard of need not be taken back from it.
        let may_know = before.as_ref().is_some_and(|said| said.is_told);
        let is_needed = word.health != Health::Up || may_know || self.own_health != Health::Up;
        self.health_override = is_needed.then(|| Said {
            word: word.clone(),
            until: word.duration.map(|duration| after(now, duration)),
            epoch: self.instance.epoch,
            is_told: false,
        });
        self.settle_health()
    }

    /// The operator's word for the instance, with the time that is left of it.
    pub(super) fn tell(&mut self, now: Instant) -> Option<HealthOverride> {
        let said = self.health_override.as_mut()?;
        said.is_told = true;
        let mut word = said.word.clone();
        word.duration = said.until.map(|until| until.saturating_duration_since(now));
        Some(word)
    }

    /// When the operator's word ends by itself.
    pub(super) fn override_end(&self) -> Option<Instant> {
        self.health_override.as_ref()?.until
    }

    /// Ends a word whose time is over. True: it is listed differently.
    pub(super) fn end_override(&mut self, now: Instant) -> bool {
        self.health_override.take_if(|said| said.until.is_some_and(|until| until <= now));
        self.settle_health()
    }

    fn settle_health(&mut self) -> bool {
        let said = self.health_override.as_ref().map_or(Health::Up, |said| said.word.health);
        let listed = self.own_health.worse_of(said);
        std::mem::replace(&mut self.instance.health, listed) != listed
    }
}

impl Group {
    pub(super) fn slot(&self, id: &InstanceId) -> Option<&Slot> {
        self.slots.get(id)
    }

    pub(super) fn slot_mut(&mut self, id: &InstanceId) -> Option<&mut Slot> {
        self.slots.get_mut(id)
    }

    pub(super) fn holder(&self, address: &Address) -> Option<&Slot> {
        self.slots.get(self.holders.get(address)?)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Adds a slot whose id is new and whose address is free.
    pub(super) fn insert(&mut self, slot: Slot) {
        let id = slot.instance.id.clone();
        self.holders.insert(slot.instance.address.clone(), id.clone());
        self.slots.insert(id, slot);
    }

    /// Gives the slot of this id a newer state, whose address is free or its own.
    pub(super) fn replace(&mut self, instance: Instance) {
        if let Some(slot) = self.slots.get_mut(&instance.id) {
            self.holders.remove(&slot.instance.address);
            self.holders.insert(instance.address.clone(), instance.id.clone());
            slot.update(instance);
        }
    }

    pub(super) fn remove(&mut self, id: &InstanceId) -> Option<Slot> {
        let slot = self.slots.remove(id)?;
        self.holders.remove(&slot.instance.address);
        Some(slot)
    }

    /// Every instance, in the order of their addresses.
    pub(super) fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.in_order().map(|slot| &slot.instance)
    }

    /// The same for a listing.
    pub(super) fn entries(&self, name: &GroupName, now: Instant) -> impl Iterator<Item = Entry> {
        self.in_order().map(move |slot| Entry {
            service: name.clone(),
            instance: slot.instance.clone(),
            expires_in: slot.due.map(|due| due.saturating_duration_since(now)),
        })
    }

    /// Every slot, in no order.
    #[cfg(test)]
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    fn in_order(&self) -> impl Iterator<Item = &Slot> {
        self.holders.values().filter_map(|id| self.slots.get(id))
    }
}
