use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// What a method's handlers do for their time.
#[derive(Clone, Copy)]
enum Work {
    /// They hold one of the pool's places, for which they wait in line.
    Pool,
    /// They wait for something that does not care how many wait.
    Sleep,
}

struct Kind {
    work: Work,
    seconds: f64,
    /// Calls a second.
    rate: f64,
    /// They end with an error.
    fails: bool,
}

fn pool(seconds: f64, rate: f64) -> Kind {
    Kind { work: Work::Pool, seconds, rate, fails: false }
}

fn sleep(seconds: f64, rate: f64) -> Kind {
    Kind { work: Work::Sleep, seconds, rate, fails: false }
}

/// A server that works on what its limit lets in, in a time of its own.
struct World {
    table: Table,
    start: Instant,
    seconds: f64,
    rng: StdRng,
    /// When each place of the pool is free.
    pool: Vec<f64>,
    /// How long a call may take.
    deadline: f64,
    /// Calls at work: when they end, when they were read, their method, and how they end.
    at_work: BinaryHeap<Reverse<(u64, u64, usize, Ended)>>,
    rejected: u64,
}

/// What came of the calls of a while.
#[derive(Debug, Default)]
struct Came {
    answered: f64,
    rejected: f64,
    /// The longest that a call took, in seconds.
    longest: f64,
    lowest_limit: usize,
}

const NANOS: f64 = 1e9;

impl World {
    fn new(settings: Adaptive, places: usize, methods: usize) -> Self {
        Self {
            table: Table::new(&settings, methods),
            start: Instant::now(),
            seconds: 0.0,
            rng: StdRng::seed_from_u64(7),
            pool: vec![0.0; places],
            deadline: f64::INFINITY,
            at_work: BinaryHeap::new(),
            rejected: 0,
        }
    }

    fn at(&self, nanos: u64) -> Instant {
        self.start + Duration::from_nanos(nanos)
    }

    /// The pool gets this many places, all of them free.
    fn resize(&mut self, places: usize) {
        self.pool = vec![self.seconds; places];
    }

    /// Ends what is over by `until`.
    fn end(&mut self, until: f64, came: &mut Came) {
        while let Some(Reverse((end, read, method, ended))) = self.at_work.peek().copied() {
            if end as f64 > until * NANOS {
                return;
            }
            let in_flight = self.at_work.len();
            self.at_work.pop();
            came.answered += f64::from(u8::from(ended == Ended::Answered));
            came.longest = came.longest.max((end - read) as f64 / NANOS);
            let (now, read, rejected) = (self.at(end), self.at(read), self.rejected);
            self.table.add(now, &Sample { method, read, ended, in_flight, rejected });
            came.lowest_limit = came.lowest_limit.min(self.table.limit());
        }
    }

    /// Offers calls for some seconds; what came of them, each second.
    fn run(&mut self, seconds: f64, kinds: &[Kind]) -> Came {
        let over = self.seconds + seconds;
        let total: f64 = kinds.iter().map(|kind| kind.rate).sum();
        let mut came = Came { lowest_limit: usize::MAX, ..Came::default() };
        let before = self.rejected;
        loop {
            let gap = -(1.0 - self.rng.random_range(0.0..1.0_f64)).ln() / total;
            if self.seconds + gap > over {
                break;
            }
            self.seconds += gap;
            self.end(self.seconds, &mut came);
            let mut ticket = self.rng.random_range(0.0..total);
            let chosen = kinds.iter().position(|kind| {
                ticket -= kind.rate;
                ticket < 0.0
            });
            let method = chosen.unwrap_or(0);
            if self.at_work.len() >= self.table.limit() {
                self.rejected += 1;
                let now = self.at((self.seconds * NANOS) as u64);
                self.table.turn_away(now, self.rejected);
                continue;
            }
            let kind = &kinds[method];
            let takes = kind.seconds * self.rng.random_range(0.5..1.5);
            let late = self.seconds + self.deadline;
            let end = match kind.work {
                Work::Sleep => self.seconds + takes,
                Work::Pool => {
                    let first = self.pool.iter_mut().min_by(|a, b| a.total_cmp(b)).unwrap();
                    let starts = first.max(self.seconds);
                    // Who is dropped before it has a place leaves the line.
                    if starts < late {
                        *first = (starts + takes).min(late);
                    }
                    starts + takes
                }
            };
            let ended = match (end > late, kind.fails) {
                (true, _) => Ended::Overdue,
                (false, true) => Ended::Failed,
                (false, false) => Ended::Answered,
            };
            let nanos = |seconds: f64| (seconds * NANOS) as u64;
            self.at_work.push(Reverse((nanos(end.min(late)), nanos(self.seconds), method, ended)));
        }
        self.seconds = over;
        self.end(over, &mut came);
        came.rejected = (self.rejected - before) as f64 / seconds;
        came.answered /= seconds;
        came
    }
}

/// Twenty places, 10 ms each: 2,000 calls a second, and three times as many come.
fn overload(settings: Adaptive) -> World {
    let mut world = World::new(settings, 20, 1);
    world.run(20.0, &[pool(0.010, 6000.0)]);
    world
}

fn assert_found(world: &mut World) {
    let came = world.run(20.0, &[pool(0.010, 6000.0)]);
    let limit = world.table.limit();
    assert!(came.answered > 1900.0, "{came:?}");
    assert!(came.longest < 0.060, "{came:?}");
    assert!((20..=60).contains(&limit), "{limit}");
}

#[test]
fn the_limit_is_found_from_above() {
    assert_found(&mut overload(Adaptive::new().initial(1000)));
}

#[test]
fn the_limit_is_found_from_below() {
    assert_found(&mut overload(Adaptive::new().min(1).initial(1)));
}

#[test]
fn the_limit_is_found_though_most_calls_run_into_their_deadlines() {
    let mut world = World::new(Adaptive::new().initial(1000), 20, 1);
    world.deadline = 0.2;
    world.run(20.0, &[pool(0.010, 6000.0)]);
    assert_found(&mut world);
}

#[test]
fn the_limit_is_found_with_the_defaults_and_kept() {
    let mut world = overload(Adaptive::new());
    for _ in 0..3 {
        assert_found(&mut world);
    }
}

#[test]
fn a_server_that_waits_for_others_turns_away_nothing_once_it_has_grown() {
    let kinds = [sleep(0.200, 3000.0), sleep(0.000_005, 5000.0)];
    let mut world = World::new(Adaptive::new(), 1, 2);
    world.run(10.0, &kinds);
    let came = world.run(30.0, &kinds);
    assert_eq!(came.rejected, 0.0, "{came:?}, limit {}", world.table.limit());
}

#[test]
fn slow_methods_beside_fast_ones_do_not_bring_the_limit_down() {
    let fast = || sleep(0.010, 3000.0);
    let mut world = World::new(Adaptive::new(), 1, 3);
    world.run(10.0, &[fast(), sleep(3.0, 0.1), sleep(60.0, 0.01)]);
    // A batch of calls that take seconds, and some that take a minute.
    let came = world.run(60.0, &[fast(), sleep(3.0, 20.0), sleep(60.0, 1.0)]);
    assert!(came.lowest_limit >= 60, "{came:?}");
    assert!(came.rejected < 30.0, "{came:?}");
}

#[test]
fn an_overload_is_seen_beside_many_calls_that_it_does_not_touch() {
    let kinds = [pool(0.010, 6000.0), sleep(0.000_005, 10_000.0), sleep(0.050, 50.0)];
    let mut world = World::new(Adaptive::new(), 20, 3);
    world.run(20.0, &kinds);
    let came = world.run(20.0, &kinds);
    let limit = world.table.limit();
    assert!((20..=80).contains(&limit), "{limit}");
    assert!(came.longest < 0.15, "{came:?}");
}

#[test]
fn calls_that_hold_their_places_for_minutes_do_not_stop_a_measurement_from_ending() {
    let kinds = [pool(0.010, 6000.0), sleep(60.0, 1.0)];
    let mut world = World::new(Adaptive::new(), 20, 2);
    world.run(60.0, &kinds);
    for _ in 0..6 {
        let came = world.run(10.0, &kinds);
        assert!(came.answered > 1700.0, "{came:?}");
    }
}

#[test]
fn it_recovers_when_what_it_waits_for_was_slow_for_a_while() {
    let mut world = overload(Adaptive::new());
    world.resize(2);
    let came = world.run(30.0, &[pool(0.010, 6000.0)]);
    assert!(came.answered > 150.0, "{came:?}");
    world.resize(20);
    world.run(10.0, &[pool(0.010, 6000.0)]);
    assert_found(&mut world);
}

#[test]
fn a_spike_leaves_no_trace() {
    let usual = || [pool(0.010, 1000.0)];
    let mut world = World::new(Adaptive::new(), 20, 1);
    let before = world.run(10.0, &usual());
    world.run(3.0, &[pool(0.010, 10_000.0)]);
    world.run(1.0, &usual());
    let after = world.run(10.0, &usual());
    assert_eq!((before.rejected, after.rejected), (0.0, 0.0), "{before:?} {after:?}");
}

#[test]
fn a_method_that_got_slower_for_good_is_learnt_anew() {
    // What it waits for takes five times as long from now on, however many wait.
    let mut world = World::new(Adaptive::new(), 1, 1);
    world.run(30.0, &[sleep(0.010, 9000.0)]);
    world.run(30.0, &[sleep(0.050, 9000.0)]);
    let came = world.run(30.0, &[sleep(0.050, 9000.0)]);
    assert!(came.answered > 8500.0, "{came:?}, limit {}", world.table.limit());
}

#[test]
fn calls_that_fail_fast_do_not_make_the_others_look_slow() {
    let mut world = World::new(Adaptive::new(), 20, 1);
    let fails = Kind { work: Work::Sleep, seconds: 0.000_1, rate: 3000.0, fails: true };
    world.run(5.0, &[pool(0.010, 1000.0)]);
    world.run(5.0, &[fails]);
    let came = world.run(10.0, &[pool(0.010, 1500.0)]);
    assert_eq!(came.rejected, 0.0, "{came:?}");
}

#[test]
fn an_idle_server_keeps_its_limit() {
    let mut world = overload(Adaptive::new());
    let busy = world.table.limit;
    world.seconds += 3600.0;
    world.resize(20);
    // The window that was open when the load went may end in one more step.
    let came = world.run(60.0, &[pool(0.010, 2.0)]);
    let idle = world.table.limit;
    assert_eq!(came.rejected, 0.0);
    assert!((0.7 * busy..1.3 * busy).contains(&idle), "{busy} {idle}");
    world.run(600.0, &[pool(0.010, 2.0)]);
    assert_eq!(world.table.limit, idle);
}

#[test]
fn the_limit_stays_within_its_bounds() {
    let settings = Adaptive::new().min(5).max(50).initial(1000);
    let mut world = World::new(settings, 1, 2);
    assert_eq!(world.table.limit(), 50);
    for _ in 0..5 {
        let came = world.run(5.0, &[pool(0.010, 1000.0), sleep(0.001, 1000.0)]);
        // A quarter of it is what a measurement allows.
        assert!(came.lowest_limit >= 1, "{came:?}");
        assert!((5.0..=50.0).contains(&world.table.limit), "{}", world.table.limit);
        world.run(5.0, &[sleep(0.010, 1000.0), sleep(0.001, 5000.0)]);
        assert!((5.0..=50.0).contains(&world.table.limit), "{}", world.table.limit);
    }
    let odd = Table::new(&Adaptive::new().min(0).max(0).initial(0).tolerance(f64::NAN), 1);
    assert_eq!((odd.limit(), odd.settings.tolerance), (1, 1.1));
}

#[test]
fn calls_cut_short_count_only_if_they_were_late() {
    let mut method = Method { usual: Some(0.010), ..Method::default() };
    let read = Instant::now();
    let cut = |ms| {
        let sample = Sample { method: 0, read, ended: Ended::Failed, in_flight: 1, rejected: 0 };
        (read + Duration::from_millis(ms), sample)
    };
    let (now, sample) = cut(5);
    assert_eq!(method.took(now, &sample), None);
    let (now, sample) = cut(200);
    assert_eq!(method.took(now, &sample), Some(0.2));
    assert_eq!(method.calls, 0);
}
