//! Mass-expiry detection: instances that vanish together from a backend's lists without having been
//! deregistered.
//!
//! A registry that stands still for longer than leases last loses them all, whether their holders live or
//! not. A deleted entry alone says as little as an expired one, so deregistering leaves a mark beside it.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::time::Duration;

use tokio::time::Instant;

use crate::instance::{Address, Instance, InstanceId, ServiceName};
use crate::registry::DEFAULT_TTL;
use crate::sync::{Mutex, event};

/// Losses within this time count together, and what is doubted is doubted for so long: every holder that
/// lives has renewed or registered again by then.
const LEASE: Duration = DEFAULT_TTL;

/// What each service listed last, and what has vanished since.
#[derive(Debug, Default)]
pub(super) struct MassExpiry(Mutex<HashMap<ServiceName, Table>>);

#[derive(Debug, Default)]
struct Table {
    /// The store's version of `listed`.
    version: i64,
    listed: HashMap<InstanceId, Address>,
    /// What vanished within a lease and has no mark, as far as was looked.
    vanished: HashMap<InstanceId, Vanished>,
    /// What has a mark, and when that was found out.
    deregistered: HashMap<InstanceId, Instant>,
    /// How many instances there were before the last loss that made suspects.
    known: usize,
}

#[derive(Debug)]
struct Vanished {
    address: Address,
    /// The version of the last list that had it: the mark of its deregistration is newer.
    seen: i64,
    since: Instant,
    doubt: Doubt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// Few vanished with it: it is gone.
    Believed,
    /// It is doubted unless it has a mark, which the caller looks for.
    Suspect,
    /// Too many vanished with it, and it has no mark.
    Doubted,
}

impl MassExpiry {
    /// Takes a service's list in, as of a version of the store. The result is what may have to be doubted:
    /// the caller looks for its marks and calls [`judge`](Self::judge).
    pub(super) fn listed(
        &self,
        service: &ServiceName,
        instances: &[Instance],
        version: i64,
        now: Instant,
    ) -> Vec<InstanceId> {
        let mut tables = self.0.lock();
        if instances.is_empty() && !tables.contains_key(service) {
            return Vec::new();
        }
        let table = tables.entry(service.clone()).or_default();
        table.forget_old(now);
        // Lists that were asked for at the same time may be answered in any order.
        if version >= table.version {
            table.follow(instances, version, now);
        }
        let suspects = table.vanished.iter().filter(|(_, one)| one.doubt == Doubt::Suspect);
        let suspects = suspects.map(|(id, _)| id.clone()).collect();
        if table.is_empty() {
            tables.remove(service);
        }
        suspects
    }

    /// Takes in the version of each suspect's mark; `None`: it has none.
    pub(super) fn judge(
        &self,
        service: &ServiceName,
        marks: &HashMap<InstanceId, Option<i64>>,
        now: Instant,
    ) {
        let mut tables = self.0.lock();
        let doubted = tables.get_mut(service).map_or(0, |table| table.judge(marks, now));
        drop(tables);
        if doubted > 0 {
            event!(WARN,
                %service,
                doubted,
                "instances vanished together and were not deregistered: lists prove nothing for now"
            );
        }
    }

    /// What is known to be deregistered, while lists of this service prove nothing else. `None`: they prove
    /// what they lack.
    pub(super) fn doubt(&self, service: &ServiceName, now: Instant) -> Option<Vec<InstanceId>> {
        let mut tables = self.0.lock();
        let table = tables.get_mut(service)?;
        table.forget_old(now);
        let is_doubted = table.vanished.values().any(|one| one.doubt != Doubt::Believed);
        is_doubted.then(|| table.deregistered.keys().cloned().collect())
    }

    /// Forgets a service whose store was replaced: its versions count anew.
    #[cfg(feature = "zookeeper")]
    pub(super) fn forget(&self, service: &ServiceName) {
        self.0.lock().remove(service);
    }

    /// Forgets all services, whose store was replaced.
    #[cfg(feature = "etcd")]
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

impl Table {
    /// Takes a list in that is not older than the last one.
    fn follow(&mut self, instances: &[Instance], version: i64, now: Instant) {
        let known = self.listed.len() + self.undoubted();
        let listed = instances.iter().map(|one| (one.id.clone(), one.address.clone())).collect();
        let before = mem::replace(&mut self.listed, listed);
        let seen = mem::replace(&mut self.version, version);
        let Self { listed, vanished, deregistered, .. } = self;
        let addresses: HashSet<&Address> = listed.values().collect();
        // What has another address has not vanished, and what another holds the address of was replaced.
        vanished.retain(|id, one| !listed.contains_key(id) && !addresses.contains(&one.address));
        deregistered.retain(|id, _| !listed.contains_key(id));
        let mut has_lost = false;
        for (id, address) in before {
            if !listed.contains_key(&id) && !addresses.contains(&address) {
                has_lost = true;
                let doubt = Doubt::Believed;
                vanished.insert(id, Vanished { address, seen, since: now, doubt });
            }
        }
        let lost = self.undoubted();
        // While lists prove nothing, only its mark tells that an instance was deregistered.
        let is_doubted = lost < self.vanished.len();
        if has_lost && (lost * 2 > known || is_doubted) {
            self.known = known;
            for one in self.vanished.values_mut().filter(|one| one.doubt == Doubt::Believed) {
                one.doubt = Doubt::Suspect;
            }
        }
    }

    /// Settles which suspects are doubted from now on, and returns how many.
    fn judge(&mut self, marks: &HashMap<InstanceId, Option<i64>>, now: Instant) -> usize {
        let Self { vanished, deregistered, known, .. } = self;
        vanished.retain(|id, one| {
            let mark = marks.get(id).copied().flatten();
            // An older mark is of an earlier registration.
            let is_marked = one.doubt == Doubt::Suspect && mark.is_some_and(|mark| mark > one.seen);
            if is_marked {
                *known = known.saturating_sub(1);
                deregistered.insert(id.clone(), now);
            }
            !is_marked
        });
        let suspects = vanished.values().filter(|one| one.doubt == Doubt::Suspect).count();
        let is_doubted = suspects * 2 > *known;
        let mut doubted = 0;
        for (id, one) in vanished {
            // One that vanished since is judged by whoever looks for its mark.
            if one.doubt == Doubt::Suspect && marks.contains_key(id) {
                one.doubt = if is_doubted { Doubt::Doubted } else { Doubt::Believed };
                doubted += usize::from(is_doubted);
            }
        }
        doubted
    }

    /// How many vanished that are not doubted yet: what is doubted already is no part of a second loss.
    fn undoubted(&self) -> usize {
        self.vanished.values().filter(|one| one.doubt != Doubt::Doubted).count()
    }

    fn forget_old(&mut self, now: Instant) {
        let is_new = |since: Instant| now.saturating_duration_since(since) < LEASE;
        self.vanished.retain(|_, one| is_new(one.since));
        self.deregistered.retain(|_, since| is_new(*since));
    }

    fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.vanished.is_empty() && self.deregistered.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foo() -> ServiceName {
        "Foo".parse().unwrap()
    }

    fn instances(ports: &[u16]) -> Vec<Instance> {
        let at = |port: &u16| {
            Instance::new(format!("i{port}"), format!("tcp@a:{port}").parse().unwrap())
        };
        ports.iter().map(at).collect()
    }

    fn ids(ports: &[u16]) -> Vec<InstanceId> {
        instances(ports).into_iter().map(|one| one.id).collect()
    }

    /// A store whose lists and marks its test writes.
    struct Store {
        mass_expiry: MassExpiry,
        version: i64,
        now: Instant,
    }

    impl Store {
        fn listing(ports: &[u16]) -> Self {
            let mut store =
                Self { mass_expiry: MassExpiry::default(), version: 10, now: Instant::now() };
            assert!(!store.lists(ports, &[]), "a first list has nothing to lose");
            store
        }

        /// Whether a list is doubted while these have a mark as of now.
        fn lists(&mut self, ports: &[u16], marked: &[u16]) -> bool {
            self.version += 10;
            let (version, marked) = (self.version, ids(marked));
            let suspects = self.mass_expiry.listed(&foo(), &instances(ports), version, self.now);
            let mark = |id: InstanceId| {
                let mark = marked.contains(&id).then_some(version - 1);
                (id, mark)
            };
            let marks: HashMap<_, _> = suspects.into_iter().map(mark).collect();
            self.mass_expiry.judge(&foo(), &marks, self.now);
            self.is_doubted()
        }

        fn is_doubted(&self) -> bool {
            self.mass_expiry.doubt(&foo(), self.now).is_some()
        }

        /// What is known to be deregistered while lists are doubted.
        fn deregistered(&self) -> Vec<InstanceId> {
            let mut ids = self.mass_expiry.doubt(&foo(), self.now).unwrap();
            ids.sort();
            ids
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn more_than_half_without_a_mark_are_doubted_for_a_lease() {
        let mut store = Store::listing(&[1, 2, 3]);
        assert!(store.lists(&[], &[]));
        store.pass(14);
        assert!(store.lists(&[], &[]));
        store.pass(1);
        assert!(!store.lists(&[], &[]), "an answer a lease later still lacks them");

        let mut store = Store::listing(&[1, 2, 3, 4]);
        assert!(!store.lists(&[1, 2], &[]), "half may go");
        let mut store = Store::listing(&[1]);
        assert!(store.lists(&[], &[]), "the only one is more than half");
    }

    #[test]
    fn losses_one_by_one_count_together() {
        let mut store = Store::listing(&[1, 2, 3]);
        assert!(!store.lists(&[2, 3], &[]));
        store.pass(5);
        assert!(store.lists(&[3], &[]));
        assert!(store.lists(&[], &[]));

        let mut store = Store::listing(&[1, 2, 3]);
        assert!(!store.lists(&[2, 3], &[]));
        store.pass(15);
        assert!(!store.lists(&[3], &[]), "one of two, a lease later");
    }

    #[test]
    fn what_was_deregistered_is_believed_the_last_one_too() {
        let mut store = Store::listing(&[1, 2, 3]);
        assert!(!store.lists(&[], &[1, 2, 3]));
        let mut store = Store::listing(&[1, 2, 3]);
        assert!(!store.lists(&[2, 3], &[1]));
        assert!(!store.lists(&[3], &[1, 2]), "the mark of the first is looked for as well");
        assert!(!store.lists(&[], &[1, 2, 3]));
        // The third is all that was left of them.
        let mut store = Store::listing(&[1, 2, 3]);
        assert!(store.lists(&[], &[1, 2]));
        assert_eq!(store.deregistered(), ids(&[1, 2]));
    }

    #[test]
    fn what_is_deregistered_while_others_are_doubted_is_known() {
        let mut store = Store::listing(&[1, 2, 3, 4, 5, 6, 7]);
        assert!(store.lists(&[5, 6, 7], &[]));
        assert!(store.lists(&[6, 7], &[5]));
        assert_eq!(store.deregistered(), ids(&[5]));
        store.pass(14);
        assert!(store.lists(&[7], &[]), "one of two, while the first four are doubted");
        store.pass(1);
        assert!(!store.lists(&[7], &[]));
    }

    #[test]
    fn an_older_mark_says_nothing() {
        let store = Store::listing(&[1]);
        let suspects = store.mass_expiry.listed(&foo(), &[], 30, store.now);
        assert_eq!(suspects, ids(&[1]));
        let marks = suspects.into_iter().map(|id| (id, Some(5))).collect();
        store.mass_expiry.judge(&foo(), &marks, store.now);
        assert!(store.is_doubted());
    }

    #[test]
    fn until_its_mark_was_looked_for_it_is_doubted() {
        let store = Store::listing(&[1]);
        assert_eq!(store.mass_expiry.listed(&foo(), &[], 30, store.now), ids(&[1]));
        assert!(store.is_doubted());
        assert_eq!(store.mass_expiry.listed(&foo(), &[], 30, store.now), ids(&[1]));
        let marks = HashMap::from([(ids(&[1]).remove(0), Some(29))]);
        store.mass_expiry.judge(&foo(), &marks, store.now);
        assert!(!store.is_doubted());
    }

    #[test]
    fn who_returns_or_is_replaced_is_not_missing() {
        let mut store = Store::listing(&[1, 2]);
        assert!(store.lists(&[], &[]));
        assert!(store.lists(&[1], &[]), "the other is still doubted");
        assert!(!store.lists(&[1, 2], &[]));
        let mut replaced = instances(&[1, 2]);
        replaced.iter_mut().for_each(|one| one.id = format!("{}b", one.id.as_str()).into());
        let suspects = store.mass_expiry.listed(&foo(), &replaced, 1000, store.now);
        assert!(suspects.is_empty() && !store.is_doubted());
    }

    #[test]
    fn an_older_list_changes_nothing_and_nothing_is_left_of_a_service_that_is_gone() {
        let mut store = Store::listing(&[1, 2]);
        let late = store.mass_expiry.listed(&foo(), &[], 1, store.now);
        assert!(late.is_empty() && !store.is_doubted());
        assert!(!store.lists(&[], &[1, 2]));
        store.pass(15);
        assert!(!store.lists(&[], &[]));
        assert!(store.mass_expiry.0.lock().is_empty());
    }
}
