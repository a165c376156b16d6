//! Which leases outlive a registry that stood still, and for how long.

use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::{Limits, Store, Threshold};
use crate::backend::memory::Protection;
use crate::instance::{Instance, InstanceId, ServiceName};
use crate::registry::{Held, Registration, Renewal};

const TTL: Duration = Duration::from_secs(10);
const SWEEP: Duration = Duration::from_millis(500);
const MILLI: Duration = Duration::from_millis(1);

/// A registry that sweeps when its test lets it, and the leases that its instances hold.
struct House {
    store: Store,
    now: Instant,
    held: Vec<Held>,
}

impl House {
    fn of(instances: usize) -> Self {
        let limits = Limits {
            default_ttl: Some(Duration::from_secs(300)),
            sweep: SWEEP,
            quota: crate::backend::memory::quota::Quota { instances: 1_000, ..Default::default() },
            warming: false,
            protection: Threshold { min_leases: 20, share: 0.15 },
        };
        let now = Instant::now();
        let store = Store::new(limits, StdRng::seed_from_u64(1), now);
        let mut house = Self { store, now, held: Vec::new() };
        house.held = (0..instances).map(|n| house.register(n)).collect();
        house.store.sweep(house.now);
        house
    }

    fn register(&mut self, n: usize) -> Held {
        let address = format!("tcp@a:{}", n + 1).parse().unwrap();
        let instance = Instance::new(format!("i{n}"), address).epoch(1);
        let registration = Registration::new(foo(), instance).ttl(TTL);
        let lease = self.store.register(&registration, self.now).unwrap();
        Held { registration, lease }
    }

    /// Whether the lease was still there.
    fn renew(&mut self, n: usize) -> bool {
        self.store.renew(&self.held[n].clone(), self.now).unwrap() == Renewal::Renewed
    }

    fn renew_all(&mut self) {
        (0..self.held.len()).for_each(|n| assert!(self.renew(n), "{n} is lost"));
    }

    /// Lets time pass in which the sweep comes in time.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now + SWEEP <= end {
            self.now += SWEEP;
            self.store.sweep(self.now);
        }
        self.now = end;
    }

    /// Lets time pass in which the process stands still, and the sweep run at once afterwards.
    fn pause(&mut self, duration: Duration) {
        self.now += duration;
        self.store.sweep(self.now);
    }

    /// Two pauses, so close to each other that the second is not forgiven.
    fn pause_twice(&mut self) {
        self.run(TTL);
        self.renew_all();
        self.pause(TTL * 3);
        self.run(SWEEP);
        self.pause(TTL * 3);
    }

    fn listed(&mut self) -> usize {
        self.store.list(Some(&foo()), self.now).entries.len()
    }

    fn ids(&mut self) -> Vec<InstanceId> {
        let listed = self.store.list(Some(&foo()), self.now).entries;
        listed.into_iter().map(|entry| entry.instance.id).collect()
    }

    /// How many of the first `alive` instances are listed.
    fn living(&mut self, alive: usize) -> usize {
        let ids = self.ids();
        let held = self.held[..alive].iter().map(|held| &held.registration.instance.id);
        held.filter(|id| ids.contains(id)).count()
    }

    fn protection(&mut self) -> Option<Protection> {
        self.store.protection(self.now)
    }

    fn kept(&mut self) -> usize {
        self.protection().map_or(0, |protection| protection.kept)
    }
}

fn foo() -> ServiceName {
    "Foo".parse().unwrap()
}

#[test]
fn one_pause_is_forgiven_however_long() {
    for pause in [2, 30, 24 * 60 * 60] {
        let mut house = House::of(100);
        // Each has half of its time left.
        house.run(TTL / 2);
        house.pause(Duration::from_secs(pause));
        assert_eq!((house.listed(), house.protection()), (100, None), "{pause} s");
        house.run(TTL / 2 - SWEEP);
        assert_eq!(house.listed(), 100, "extended by what the pause took, {pause} s");
        house.run(SWEEP * 2);
        assert_eq!(house.listed(), 0, "and by no more, {pause} s");
    }
}

#[test]
fn a_second_pause_in_a_row_is_not_forgiven_but_who_lives_is_kept() {
    let mut house = House::of(100);
    house.pause_twice();
    assert_eq!(house.protection(), Some(Protection { kept: 100, ends_in: TTL }));
    assert_eq!(house.store.list(None, house.now).protection, house.protection());
    // Within a third of a TTL and its jitter everyone that lives renews.
    house.run(TTL / 2);
    assert_eq!(house.listed(), 100);
    house.renew_all();
    assert_eq!(house.protection(), None, "nothing is left to be protected");
    house.run(TTL);
    assert_eq!(house.listed(), 100);
    house.run(SWEEP);
    assert_eq!(house.listed(), 0, "then they age as ever");
}

#[test]
fn who_is_dead_goes_one_after_the_other_and_it_ends_by_itself() {
    let mut house = House::of(100);
    house.pause_twice();
    (60..100).for_each(|n| assert!(house.renew(n)));
    assert_eq!(house.kept(), 60);
    let mut before = 100;
    for sweep in 1..=20 {
        house.run(SWEEP);
        if sweep == 10 {
            (60..100).for_each(|n| assert!(house.renew(n)));
        }
        let listed = house.listed();
        assert!(before - listed <= 15, "{before} and then {listed}");
        assert_eq!(house.kept(), listed - 40);
        before = listed;
    }
    house.now += MILLI;
    assert_eq!((house.listed(), house.protection()), (40, None), "after one TTL");
}

#[test]
fn what_was_kept_once_is_not_kept_again() {
    let mut house = House::of(100);
    house.pause_twice();
    house.run(SWEEP);
    house.pause(TTL * 2);
    assert_eq!((house.listed(), house.protection()), (0, None));
}

#[test]
fn deaths_while_sweeps_come_in_time_are_believed_in_time() {
    let mut house = House::of(100);
    let died = house.now;
    for _ in 0..9 {
        house.run(TTL / 10);
        (30..100).for_each(|n| assert!(house.renew(n)));
    }
    assert_eq!(house.listed(), 100);
    while house.listed() > 70 {
        house.run(SWEEP);
        assert_eq!(house.protection(), None);
        assert!(house.now <= died + TTL + SWEEP, "30 of 100 are as dead as one");
    }
    assert!(house.now > died + TTL);
}

#[test]
fn a_few_leases_or_a_few_of_many_tell_nothing_of_the_registry() {
    let mut house = House::of(19);
    house.pause_twice();
    assert_eq!((house.listed(), house.protection()), (0, None), "fewer than 20");

    let mut house = House::of(100);
    house.run(TTL);
    house.renew_all();
    house.pause(TTL);
    house.run(SWEEP);
    house.now += TTL - SWEEP * 4;
    // The others' renewals were in the socket, and come before the sweep.
    (15..100).for_each(|n| assert!(house.renew(n)));
    house.now += SWEEP;
    house.store.sweep(house.now);
    house.run(SWEEP * 3);
    assert_eq!((house.listed(), house.protection()), (85, None), "no more than 15 %");
}

#[test]
fn what_is_taken_back_or_driven_away_is_not_kept() {
    let mut house = House::of(20);
    house.pause_twice();
    let held = house.held[0].clone();
    house.store.deregister(&held, house.now);
    assert_eq!(house.kept(), 19);
    let instance = Instance::new("new", "tcp@a:2".parse().unwrap()).epoch(1);
    let taking = Registration::new(foo(), instance).ttl(TTL);
    house.store.register(&taking, house.now).unwrap();
    assert_eq!((house.kept(), house.listed()), (18, 19));
    house.register(2);
    assert_eq!(house.kept(), 17, "the same epoch again is a renewal");
    house.store.register_address(None, &"tcp@a:4".parse().unwrap(), house.now);
    assert_eq!(house.kept(), 16, "so is an address alone");
}

#[test]
fn a_registry_that_is_always_late_forgets_the_dead_all_the_same() {
    let mut house = House::of(100);
    // 30 % have died; the others renew at a third of the TTL, as they do.
    for round in 1..=40 {
        house.now += Duration::from_millis(1_650);
        house.store.sweep(house.now);
        if round % 2 == 0 {
            (30..100).for_each(|n| assert!(house.renew(n), "{n} is lost in round {round}"));
        }
        if house.now > house.store.blank_since + TTL * 2 + Duration::from_millis(1_650 * 3) {
            assert_eq!((house.listed(), house.protection()), (70, None), "round {round}");
        }
    }
}

#[test]
fn no_sweep_at_all_keeps_nothing_for_ever() {
    let mut house = House::of(100);
    house.pause_twice();
    house.now += TTL * 10;
    assert_eq!(house.listed(), 100, "this may be another pause");
    house.now += SWEEP;
    assert_eq!(house.listed(), 0, "what was kept ends without a sweep, too");

    let mut house = House::of(100);
    house.run(TTL);
    house.renew_all();
    house.pause(TTL);
    // The second pause, from which no sweep returns.
    house.now += TTL * 2;
    assert_eq!((house.listed(), house.kept()), (100, 0), "it waits for the sweep");
    house.now += SWEEP;
    assert_eq!((house.listed(), house.kept()), (100, 100), "then it judges without");
    house.now += TTL + MILLI;
    assert_eq!((house.listed(), house.kept()), (0, 0));
}

/// What a request does between a pause and the sweep after it.
#[derive(Clone, Debug)]
enum Request {
    List,
    Renew(usize),
    Register(usize),
    State,
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::List),
        (0..100_usize).prop_map(Request::Renew),
        (0..100_usize).prop_map(Request::Register),
        Just(Request::State),
    ]
}

proptest! {
    /// Whatever was asked after a pause, when and in what order: what the sweep then leaves is the
    /// same.
    #[test]
    fn who_comes_first_after_a_pause_decides_nothing(
        requests in prop::collection::vec(request(), 1..40).prop_shuffle(),
        stalled in 2_100..15_000_u64,
    ) {
        let outcome = |requests: &mut dyn Iterator<Item = &Request>, pace: Duration| {
            let mut house = House::of(0);
            for n in 0..100 {
                house.now += TTL / 300;
                let held = house.register(n);
                house.held.push(held);
            }
            house.store.sweep(house.now);
            house.pause(TTL / 4);
            house.run(SWEEP);
            let sweep = house.now + Duration::from_millis(stalled);
            house.now = sweep - SWEEP;
            for request in requests {
                house.now += pace;
                match request {
                    Request::List => drop(house.listed()),
                    Request::Renew(n) => drop(house.renew(*n)),
                    Request::Register(n) => drop(house.register(*n)),
                    Request::State => drop(house.store.state(&foo(), house.now)),
                }
            }
            house.now = sweep;
            house.store.sweep(house.now);
            (house.ids(), house.kept())
        };
        let asked = outcome(&mut requests.iter(), Duration::ZERO);
        prop_assert_eq!(&asked, &outcome(&mut requests.iter().rev(), Duration::ZERO));
        prop_assert_eq!(&asked, &outcome(&mut requests.iter(), Duration::from_millis(10)));
        prop_assert_eq!(&asked, &outcome(&mut requests.iter().rev(), Duration::from_millis(5)));
    }

    /// A late sweep takes at most 15 % of the leases, and none of the living if the pause is
    /// forgiven; the dead are gone within two TTLs of life.
    #[test]
    fn pauses_cost_the_living_little_and_keep_the_dead_for_little(
        alive in 20..60_usize,
        dead in 0..30_usize,
        pauses in prop::collection::vec((500..12_000_u64, 1_600..40_000_u64), 1..6),
    ) {
        let step = Duration::from_millis(100);
        let all = alive + dead;
        let mut house = House::of(all);
        // When each renews next: a third of the TTL after the last time.
        let spread = |n: usize| TTL / 3 * n as u32 / all as u32;
        let mut next: Vec<Instant> = (0..alive).map(|n| house.now + spread(n)).collect();
        let mut forgiven = true;
        let quiet = (TTL.as_millis() * 2 + SWEEP.as_millis() * 2) as u64;
        for (run, pause) in pauses.into_iter().chain([(quiet, 0)]) {
            let (mut lost, mut sweeps) = (0, 0);
            for tick in 1..=run / 100 {
                house.now += step;
                for (n, next) in next.iter_mut().enumerate() {
                    if *next <= house.now {
                        *next = house.now + TTL / 3;
                        if !house.renew(n) {
                            lost += 1;
                            house.held[n] = house.register(n);
                        }
                    }
                }
                if tick % 5 == 0 {
                    house.store.sweep(house.now);
                    sweeps += 1;
                }
            }
            prop_assert!(!forgiven || lost == 0, "{} lost by a pause that is forgiven", lost);
            if pause > 0 {
                house.now += Duration::from_millis(pause);
                let before = house.living(alive);
                let (leases, kept) = (house.listed(), house.kept());
                house.store.sweep(house.now);
                let (gone, died) = (leases - house.listed(), before - house.living(alive));
                // The first sweep after a pause has none before it to be in time after.
                forgiven = forgiven && sweeps >= 10 || sweeps > 10;
                prop_assert!(!forgiven || died == 0, "{} of {} lost at once", died, before);
                let fresh = gone.saturating_sub(kept);
                let few = leases < 20 || fresh * 100 <= leases * 15;
                prop_assert!(few, "{} of {} at once", fresh, leases);
                // Who could not renew tries again soon.
                for (n, next) in next.iter_mut().enumerate() {
                    if *next <= house.now {
                        *next = house.now + spread(n);
                    }
                }
            }
        }
        prop_assert_eq!((house.listed(), house.protection()), (alive, None));
    }
}
