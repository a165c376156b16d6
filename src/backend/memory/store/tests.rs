use rand::SeedableRng;

use super::*;
use crate::instance::Health;

const TTL: Duration = Duration::from_secs(10);

/// A store, and the time that its tests tell it.
struct Table {
    store: Store,
    now: Instant,
}

impl Table {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = Limits {
            default_ttl: Some(Duration::from_secs(300)),
            sweep: Duration::from_millis(500),
            quota: Quota { instances: 10, ..Quota::default() },
            warming: false,
            protection: Threshold { min_leases: 20, share: 0.15 },
        };
        change(&mut limits);
        let now = Instant::now();
        let store = Store::new(limits, StdRng::seed_from_u64(1), now);
        Self { store, now }
    }

    /// Lets time pass without a sweep, and without counting as a pause.
    fn pass(&mut self, duration: Duration) {
        self.now += duration;
    }

    fn register(&mut self, registration: &Registration) -> Result<Held, RegistryError> {
        let lease = self.store.register(registration, self.now)?;
        Ok(Held { registration: registration.clone(), lease })
    }

    fn renew(&mut self, held: &Held) -> Result<Renewal, RegistryError> {
        self.store.renew(held, self.now)
    }

    fn post(&mut self, service: Option<&str>, address: &str) -> bool {
        let service = service.map(name);
        self.store.register_address(service.as_ref(), &address.parse().unwrap(), self.now)
    }

    fn list(&mut self, service: Option<&str>) -> Vec<String> {
        let listing = self.store.list(service.map(name).as_ref(), self.now);
        listing.entries.iter().map(|entry| entry.instance.address.to_string()).collect()
    }

    fn revision(&mut self, service: Option<&str>) -> String {
        self.store.list(service.map(name).as_ref(), self.now).revision.to_string()
    }

    fn instance(&mut self, id: &str) -> Instance {
        let listing = self.store.list(None, self.now);
        let found = listing.entries.into_iter().find(|entry| entry.instance.id.as_str() == id);
        found.unwrap().instance
    }
}

fn name(service: &str) -> ServiceName {
    service.parse().unwrap()
}

fn foo(id: &str, address: &str, epoch: u64) -> Registration {
    let instance = Instance::new(id, address.parse().unwrap()).epoch(epoch);
    Registration::new(name("Foo"), instance).ttl(TTL)
}

fn kind(error: RegistryError) -> RegistryErrorKind {
    error.kind()
}

const MILLI: Duration = Duration::from_millis(1);

#[test]
fn a_lease_holds_for_its_ttl_and_no_longer() {
    let mut table = Table::new();
    let held = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    assert_eq!(held.lease.ttl, Some(TTL));
    let before = table.revision(Some("Foo"));

    table.pass(TTL);
    assert_eq!(table.list(Some("Foo")), ["tcp@a:1"], "it holds for the whole TTL");
    table.pass(MILLI);
    assert!(table.list(Some("Foo")).is_empty(), "hidden without a sweep");
    assert_ne!(table.revision(Some("Foo")), before);
    assert_eq!(table.renew(&held).unwrap(), Renewal::Lost);
    assert!(table.store.queue.is_empty() && table.store.ledger.instances() == 0);
}

#[test]
fn renewals_move_the_end_and_nothing_else() {
    let mut table = Table::new();
    let held = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    let revisions = (table.revision(Some("Foo")), table.revision(None));
    for _ in 0..30 {
        table.pass(TTL / 3);
        assert_eq!(table.renew(&held).unwrap(), Renewal::Renewed);
        let again = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
        assert_eq!(again.lease, held.lease, "the same epoch again is a renewal");
    }
    assert_eq!((table.revision(Some("Foo")), table.revision(None)), revisions);
    assert_eq!(table.store.queue.len(), 1);

    let shorter = foo("a", "tcp@a:1", 1).ttl(Duration::from_secs(1));
    assert_eq!(table.register(&shorter).unwrap().lease.ttl, Some(Duration::from_secs(1)));
    table.pass(Duration::from_secs(1) + MILLI);
    assert!(table.list(None).is_empty(), "a shorter lease is found in time");
}

#[test]
fn a_higher_epoch_replaces_and_a_lower_one_is_stale() {
    let mut table = Table::new();
    let old = table.register(&foo("a", "tcp@a:1", 5)).unwrap();
    let mut same = foo("a", "tcp@a:1", 5);
    same.instance = same.instance.weight(9);
    table.register(&same).unwrap();
    assert_eq!(table.instance("a").weight, 1, "the same epoch changes nothing");

    let before = table.revision(Some("Foo"));
    let mut newer = foo("a", "tcp@a:2", 6);
    newer.instance = newer.instance.weight(9);
    let newer = table.register(&newer).unwrap();
    assert_eq!(table.list(Some("Foo")), ["tcp@a:2"]);
    assert_eq!(table.instance("a").weight, 9);
    assert_ne!(table.revision(Some("Foo")), before);

    let stale = RegistryErrorKind::StaleEpoch { held: 6 };
    assert_eq!(kind(table.register(&foo("a", "tcp@a:1", 5)).unwrap_err()), stale);
    assert_eq!(kind(table.renew(&old).unwrap_err()), stale);
    assert_eq!(table.renew(&newer).unwrap(), Renewal::Renewed);

    table.store.deregister(&old, table.now);
    assert_eq!(table.list(Some("Foo")), ["tcp@a:2"], "an older registration ends no newer one");
    table.store.deregister(&newer, table.now);
    table.store.deregister(&newer, table.now);
    assert!(table.list(None).is_empty());
}

#[test]
fn a_renewal_with_a_higher_epoch_carries_the_new_state() {
    let mut table = Table::new();
    let mut held = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    held.registration.instance.epoch = 2;
    held.registration.instance.health = Health::Draining;
    assert_eq!(table.renew(&held).unwrap(), Renewal::Renewed);
    assert_eq!(table.instance("a"), held.registration.instance);
}

#[test]
fn the_same_id_and_epoch_elsewhere_is_another_process() {
    let mut table = Table::new();
    table.register(&foo("a", "tcp@a:1", 5)).unwrap();
    let error = table.register(&foo("a", "tcp@b:2", 5)).unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::StaleEpoch { held: 5 });
    assert_eq!(table.instance("a").address.as_str(), "tcp@a:1");
}

#[test]
fn the_newer_registration_takes_the_address() {
    let mut table = Table::new();
    let old = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    table.register(&foo("b", "tcp@a:1", 9)).unwrap();
    let error = table.register(&foo("a", "tcp@a:1", 2)).unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Superseded { held: 9 });
    assert_eq!(error.holder(), Some(&InstanceId::from("b")));
    assert_eq!(table.instance("b").address.as_str(), "tcp@a:1");
    assert_eq!(table.list(Some("Foo")).len(), 1);
    assert_eq!(table.renew(&old).unwrap(), Renewal::Lost);
    assert_eq!((table.store.ledger.instances(), table.store.queue.len()), (1, 1));

    // Another service's registration stands beside it.
    let mut other = foo("c", "tcp@a:1", 1);
    other.service = name("Bar");
    table.register(&other).unwrap();
    assert_eq!(table.list(None).len(), 2);
    assert_eq!(table.store.services(table.now), [name("Bar"), name("Foo")]);
}

#[test]
fn a_renewal_that_moves_takes_no_address_from_a_newer_holder() {
    let mut table = Table::new();
    let mut held = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    table.register(&foo("b", "tcp@b:1", 9)).unwrap();
    held.registration.instance.epoch = 2;
    held.registration.instance.address = "tcp@b:1".parse().unwrap();
    let error = table.renew(&held).unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Superseded { held: 9 });
    assert_eq!(table.list(Some("Foo")), ["tcp@a:1", "tcp@b:1"]);
}

#[test]
fn only_its_own_lease_renews_or_ends_it() {
    let mut table = Table::new();
    let held = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    assert_eq!(held.lease.id.len(), 32);
    let forged = Held { lease: Lease::new("0".repeat(32), None), ..held };
    assert_eq!(table.renew(&forged).unwrap(), Renewal::Lost);
    table.store.deregister(&forged, table.now);
    assert_eq!(table.list(Some("Foo")), ["tcp@a:1"]);
}

#[test]
fn an_address_alone_is_registered_and_renewed() {
    let mut table = Table::new();
    assert!(table.post(None, "tcp@b:1") && table.post(None, "tcp@a:1"));
    assert!(table.post(Some("Foo"), "tcp@c:1"));
    assert_eq!(table.list(None), ["tcp@a:1", "tcp@b:1", "tcp@c:1"]);
    assert_eq!(table.list(Some("Foo")), ["tcp@c:1"]);

    let revision = table.revision(None);
    table.pass(Duration::from_secs(300));
    assert!(table.post(None, "tcp@a:1"));
    assert_eq!(table.revision(None), revision);
    table.pass(MILLI);
    assert_eq!(table.list(None), ["tcp@a:1"]);
}

#[test]
fn posting_a_held_address_only_renews_its_lease() {
    let mut table = Table::new();
    table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    let revision = table.revision(None);
    for service in [None, Some("Foo")] {
        table.pass(TTL);
        assert!(table.post(service, "tcp@a:1"));
        assert_eq!((table.list(None).len(), table.revision(None)), (1, revision.clone()));
    }
    assert!(table.post(Some("Bar"), "tcp@a:1"), "another service is another matter");
    assert_eq!(table.list(None).len(), 2);
    table.pass(TTL + MILLI);
    assert_eq!(table.list(Some("Foo")).len(), 0, "for its own TTL, not for the default");
}

#[test]
fn without_a_default_an_address_alone_never_expires() {
    let mut table = Table::with(|limits| limits.default_ttl = None);
    table.post(None, "tcp@a:1");
    let long = foo("b", "tcp@b:1", 1).ttl(Duration::MAX);
    assert_eq!(table.register(&long).unwrap().lease.ttl, Some(MAX_TTL));
    table.pass(MAX_TTL + MILLI);
    assert_eq!(table.list(None), ["tcp@a:1"]);
}

#[test]
fn what_is_asked_for_is_bounded() {
    let mut table = Table::with(|limits| limits.quota.instances = 2);
    let none = foo("a", "tcp@a:1", 1).ttl(Duration::ZERO);
    assert_eq!(kind(table.register(&none).unwrap_err()), RegistryErrorKind::Invalid);
    let long = foo("a", "tcp@a:1", 1).ttl(Duration::MAX);
    assert_eq!(table.register(&long).unwrap().lease.ttl, Some(Duration::from_secs(300)));
    let short = foo("a", "tcp@a:1", 1).ttl(Duration::from_nanos(1));
    assert_eq!(table.register(&short).unwrap().lease.ttl, Some(MILLI));

    table.register(&foo("b", "tcp@b:1", 1)).unwrap();
    let error = table.register(&foo("c", "tcp@c:1", 1)).unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Full);
    assert_eq!(error.message(), "the registry is full: it holds 2 instances");
    assert!(!table.post(None, "tcp@c:1"));
    table.register(&foo("c", "tcp@b:1", 1)).unwrap();
    assert_eq!(table.list(None).len(), 2, "who takes an address over needs no room");
}

#[test]
fn a_full_registry_renews_what_it_holds_and_lets_nothing_grow() {
    let mut table = Table::with(|limits| limits.quota.bytes = 1200);
    let small = foo("a", "tcp@a:1", 1).ttl(TTL);
    let held = table.register(&small).unwrap();
    let other = table.register(&foo("b", "tcp@b:1", 1).ttl(TTL)).unwrap();
    let full = RegistryErrorKind::Full;
    assert_eq!(kind(table.register(&foo("c", "tcp@c:1", 1)).unwrap_err()), full);

    let mut large = foo("a", "tcp@a:1", 2).ttl(TTL);
    large.instance = large.instance.meta("k", "v".repeat(500));
    let grown = Held { registration: large.clone(), lease: held.lease.clone() };
    for round in 0..6 {
        table.pass(TTL / 2);
        assert_eq!(table.store.renew(&other, table.now).unwrap(), Renewal::Renewed);
        // Each of them extends the lease.
        match round % 3 {
            0 => assert_eq!(table.store.renew(&held, table.now).unwrap(), Renewal::Renewed),
            1 => assert_eq!(kind(table.store.renew(&grown, table.now).unwrap_err()), full),
            _ => assert_eq!(kind(table.register(&large).unwrap_err()), full),
        }
    }
    assert_eq!(table.list(None).len(), 2);
    table.store.deregister(&other, table.now);
    table.register(&large).unwrap();
}

#[test]
fn an_operators_word_lasts_until_a_newer_state_has_taken_it_over() {
    let mut table = Table::new();
    table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    let before = table.revision(Some("Foo"));
    let (service, id) = (name("Foo"), InstanceId::from("a"));
    let drained = HealthOverride::new(Health::Draining);
    assert!(table.store.set_health(&service, &id, &drained, table.now));
    assert_ne!(table.revision(Some("Foo")), before);
    table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    assert_eq!(table.instance("a").health, Health::Draining);
    assert_eq!(table.instance("a").epoch, 1);
    table.register(&foo("a", "tcp@a:1", 2)).unwrap();
    assert_eq!(table.instance("a").health, Health::Draining, "it did not know of it");
    let mut aware = foo("a", "tcp@a:1", 3);
    aware.instance.health = Health::Draining;
    let held = table.register(&aware).unwrap();
    assert_eq!(table.renew(&held).unwrap(), Renewal::Renewed);
    table.register(&foo("a", "tcp@a:1", 4)).unwrap();
    assert_eq!(table.instance("a").health, Health::Up);
    assert!(!table.store.set_health(&service, &"b".into(), &drained, table.now));
}

#[test]
fn an_operators_word_that_was_not_told_is_taken_back_at_once() {
    let mut table = Table::new();
    let held = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    let (service, id) = (name("Foo"), InstanceId::from("a"));
    for health in [Health::Draining, Health::Up] {
        assert!(table.store.set_health(&service, &id, &health.into(), table.now));
        assert_eq!(table.instance("a").health, health);
    }
    assert_eq!(table.renew(&held).unwrap(), Renewal::Renewed);
}

#[test]
fn an_operators_word_ends_with_its_time() {
    let mut table = Table::new();
    let held = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    let (service, id) = (name("Foo"), InstanceId::from("a"));
    let word = HealthOverride::new(Health::Draining).lasting(Duration::from_secs(5));
    assert!(table.store.set_health(&service, &id, &word, table.now));
    table.pass(Duration::from_secs(2));
    let left = word.clone().lasting(Duration::from_secs(3));
    assert_eq!(table.renew(&held).unwrap(), Renewal::Overridden(left));
    let before = table.revision(Some("Foo"));
    table.pass(Duration::from_secs(3));
    assert_eq!(table.instance("a").health, Health::Up);
    assert_ne!(table.revision(Some("Foo")), before);
    assert_eq!(table.renew(&held).unwrap(), Renewal::Renewed);
}

#[test]
fn an_unknown_service_is_an_empty_list_with_a_revision() {
    let mut table = Table::new();
    let listing = table.store.list(Some(&name("Foo")), table.now);
    assert!(listing.entries.is_empty() && !listing.warming);
    let (incarnation, revision) = listing.revision.split_once('-').unwrap();
    assert_eq!((incarnation.len(), revision), (16, "0"));
    assert!(table.store.resolve(&name("Foo"), table.now).is_proven());
}

#[test]
fn leases_do_not_age_while_the_process_stands_still() {
    let mut table = Table::new();
    let fresh = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    table.store.sweep(table.now);
    table.pass(Duration::from_secs(30));
    assert_eq!(table.list(None), ["tcp@a:1"], "30 s passed, none of them for the lease");
    table.store.sweep(table.now);
    assert_eq!(table.renew(&fresh).unwrap(), Renewal::Renewed);

    let expiry = table.now + TTL;
    while table.now < expiry {
        table.pass(Duration::from_millis(500));
        table.store.sweep(table.now);
    }
    table.pass(MILLI);
    assert!(table.list(None).is_empty(), "after the pause it ages as ever");
}

#[test]
fn it_warms_up_for_the_largest_ttl_granted() {
    let mut table = Table::with(|limits| limits.warming = true);
    let warming = |table: &mut Table| table.store.list(None, table.now).warming;
    table.pass(Duration::from_secs(14));
    table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    assert!(warming(&mut table));
    table.pass(Duration::from_secs(1));
    assert!(!warming(&mut table), "at least 15 s");
    table.register(&foo("a", "tcp@a:1", 1).ttl(Duration::from_secs(60))).unwrap();
    assert!(warming(&mut table), "60 s, since such a lease was granted");
    table.pass(Duration::from_secs(45));
    let version = table.store.version();
    table.store.sweep(table.now);
    assert!(!warming(&mut table));
    assert!(table.store.version() > version, "the end of it is told to watchers");

    let mut short = Table::with(|limits| {
        limits.warming = true;
        limits.default_ttl = Some(Duration::from_secs(5));
    });
    short.pass(Duration::from_secs(5));
    assert!(!warming(&mut short));
}

#[test]
fn it_warms_up_again_if_nobody_could_reach_it() {
    let mut table = Table::with(|limits| limits.warming = true);
    let warming = |table: &mut Table| table.store.list(None, table.now).warming;
    let held = ["a", "b", "c"].map(|id| {
        table.pass(Duration::from_secs(1));
        table.register(&foo(id, &format!("tcp@{id}:1"), 1)).unwrap()
    });
    for _ in 0..5 {
        table.pass(Duration::from_secs(3));
        held.iter().for_each(|held| assert_eq!(table.renew(held).unwrap(), Renewal::Renewed));
    }
    assert!(!warming(&mut table));

    table.pass(Duration::from_secs(2));
    table.renew(&held[0]).unwrap();
    table.pass(TTL - Duration::from_secs(1));
    assert_eq!(table.list(None), ["tcp@a:1"], "two have run out");
    assert!(warming(&mut table), "nobody was heard for 9 s: who knows whether they live?");
    table.pass(Duration::from_secs(15));
    assert!(!warming(&mut table), "it warms up as after a start");
}

#[test]
fn a_fleet_of_short_leases_that_nobody_could_renew_is_not_proven_gone_either() {
    let mut table = Table::with(|limits| limits.warming = true);
    table.pass(Duration::from_secs(15));
    for id in ["a", "b", "c"] {
        let registration = foo(id, &format!("tcp@{id}:1"), 1).ttl(Duration::from_secs(2));
        table.register(&registration).unwrap();
    }
    table.pass(Duration::from_secs(3));
    let listing = table.store.list(None, table.now);
    assert_eq!((listing.entries.len(), listing.warming), (0, true));
}

#[test]
fn two_leases_that_are_asked_for_too_short_do_not_make_it_doubt_all_others() {
    let mut table = Table::with(|limits| limits.warming = true);
    table.pass(Duration::from_secs(15));
    let fleet = ["a", "b"].map(|id| table.register(&foo(id, &format!("tcp@{id}:1"), 1)).unwrap());
    for round in 0..10 {
        for id in ["x", "y"] {
            let short = foo(id, &format!("tcp@{id}:1"), round + 1).ttl(Duration::from_millis(1));
            table.register(&short).unwrap();
        }
        table.pass(Duration::from_secs(3));
        let listing = table.store.list(None, table.now);
        assert_eq!((listing.entries.len(), listing.warming), (2, false), "round {round}");
        fleet.iter().for_each(|held| assert_eq!(table.renew(held).unwrap(), Renewal::Renewed));
    }
}

#[test]
fn one_that_runs_out_while_others_renew_is_proven_gone() {
    let mut table = Table::with(|limits| limits.warming = true);
    // The warm-up is over then.
    table.pass(Duration::from_secs(15));
    let a = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    table.register(&foo("b", "tcp@b:1", 1)).unwrap();
    for _ in 0..4 {
        table.pass(Duration::from_secs(3));
        table.renew(&a).unwrap();
    }
    let listing = table.store.list(None, table.now);
    assert_eq!((listing.entries.len(), listing.warming), (1, false));
    // The last one alone: there was nobody else to be heard.
    table.pass(TTL + Duration::from_secs(1));
    let listing = table.store.list(None, table.now);
    assert_eq!((listing.entries.len(), listing.warming), (0, false));
}

#[test]
fn a_lease_that_ends_costs_the_same_among_many() {
    // The least of some tries: a busy machine only adds to it.
    let cost = |others: usize| {
        let mut table = Table::with(|limits| {
            limits.warming = true;
            limits.quota.instances = others + 101;
        });
        let leased = |id: &str, ttl| foo(id, &format!("tcp@{id}:1"), 1).ttl(ttl);
        for n in 0..others {
            table.register(&leased(&format!("o{n}x"), TTL * 30)).unwrap();
        }
        let mut least = Duration::MAX;
        for _ in 0..5 {
            for n in 0..100 {
                table.register(&leased(&format!("s{n}x"), TTL)).unwrap();
            }
            table.pass(TTL - MILLI);
            // Somebody is heard, so that the registry is not deaf and each end is judged.
            table.register(&leased("heard", TTL * 30)).unwrap();
            table.pass(MILLI * 2);
            let begun = Instant::now();
            table.store.state(&name("Bar"), table.now);
            least = least.min(begun.elapsed());
            assert_eq!(table.store.ledger.instances(), others + 1);
        }
        least
    };
    let (few, many) = (cost(100), cost(30_000));
    assert!(many < few * 10, "{many:?} among 30,000 and {few:?} among 100");
}

#[test]
fn ttls_are_counted_as_they_are() {
    let mut table = Table::with(|limits| limits.warming = true);
    let a = table.register(&foo("a", "tcp@a:1", 1)).unwrap();
    table.register(&foo("b", "tcp@b:1", 1).ttl(TTL * 2)).unwrap();
    table.post(Some("Bar"), "tcp@c:1");
    table.register(&foo("b", "tcp@b:1", 1).ttl(TTL * 3)).unwrap();
    table.register(&foo("x", "tcp@b:1", 2)).unwrap();
    table.store.deregister(&a, table.now);
    for _ in 0..2 {
        let slots = table.store.groups.values().flat_map(Group::slots);
        let mut ttls: Vec<Duration> = slots.filter_map(|slot| slot.ttl).collect();
        ttls.sort_unstable();
        assert_eq!(table.store.ttls.longest(), ttls.last().copied());
        let second = ttls.get(1).copied();
        let shorter = second.map(|ttl| ttl - MILLI);
        assert!(second.is_none_or(|ttl| table.store.ttls.has_two_within(ttl)));
        assert!(shorter.is_none_or(|ttl| !table.store.ttls.has_two_within(ttl)));
        table.pass(TTL + MILLI);
        table.store.sweep(table.now);
    }
}
