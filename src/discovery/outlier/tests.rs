//! The table of outliers, at times of one's own.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{OutlierEjection, Outliers};
use crate::discovery::{Endpoint, EndpointSet, Outcome};
use crate::instance::{Health, Instance};

/// Endpoints, their table, and the time, which stands until it is moved.
struct Field {
    table: Arc<Outliers>,
    set: Arc<EndpointSet>,
    now: Instant,
}

impl Field {
    fn of(len: u16) -> Self {
        Self::with(len, OutlierEjection::default())
    }

    fn with(len: u16, settings: OutlierEjection) -> Self {
        let now = Instant::now();
        let table = Arc::new(Outliers::new(settings, 1, now));
        let endpoint = |port| {
            let instance = Instance::at(format!("tcp@127.0.0.1:{}", port + 1).parse().unwrap());
            Endpoint::among(Arc::downgrade(&table), instance, now)
        };
        let set = Arc::new(EndpointSet::new((0..len).map(endpoint).collect()));
        table.follow(&set, 1, now);
        Self { table, set, now }
    }

    fn at(&self, index: usize) -> &Endpoint {
        self.set.at(index).unwrap()
    }

    fn calls(&self, index: usize, times: usize, outcome: Outcome) {
        (0..times).for_each(|_| self.at(index).start(self.now).end(outcome, self.now));
    }

    fn fail(&self, index: usize, times: usize) {
        self.calls(index, times, Outcome::Failed);
    }

    fn succeed(&self, index: usize, times: usize) {
        self.calls(index, times, Outcome::Succeeded { load: 0 });
    }

    /// Which are passed by.
    fn ejected(&self) -> Vec<usize> {
        (0..self.set.len()).filter(|index| self.at(*index).stats().is_ejected()).collect()
    }

    fn pass(&mut self, time: Duration) -> usize {
        self.now += time;
        self.table.turn(self.now).len()
    }

    fn seconds(&mut self, seconds: u64) -> usize {
        self.pass(Duration::from_secs(seconds))
    }
}

#[test]
fn five_failures_in_a_row_eject() {
    let field = Field::of(3);
    field.fail(0, 4);
    field.succeed(0, 1);
    field.fail(0, 4);
    assert_eq!(field.ejected(), [0; 0]);
    field.fail(0, 1);
    assert_eq!(field.ejected(), [0]);
    assert_eq!(field.at(0).stats().ejections(), 1);
    assert_eq!(field.table.ejections(), 1);
}

#[test]
fn what_is_not_its_fault_ejects_nobody() {
    let field = Field::of(3);
    field.calls(0, 100, Outcome::Overloaded);
    field.calls(1, 100, Outcome::Unreachable);
    field.calls(2, 100, Outcome::Abandoned);
    assert_eq!(field.ejected(), [0; 0]);
    let off = Field::with(3, OutlierEjection::off());
    off.fail(0, 1000);
    assert_eq!(off.ejected(), [0; 0]);
}

#[test]
fn at_most_half_rounded_down() {
    for (len, quota) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let field = Field::of(len);
        (0..len as usize).for_each(|index| field.fail(index, 20));
        assert_eq!(field.ejected().len(), quota, "of {len}");
    }
    let field = Field::of(3);
    (0..3).for_each(|index| field.at(index).stats().suspect(field.now));
    assert_eq!(field.ejected().len(), 1, "suspects too");
}

#[test]
fn below_half_usable_ejection_is_ignored() {
    let mut field = Field::of(4);
    field.fail(0, 5);
    field.fail(1, 5);
    assert_eq!(field.ejected(), [0, 1]);
    // A third cannot be reached: one of four would be left.
    field.at(2).stats().connect_failed(field.now + Duration::from_secs(2));
    field.seconds(1);
    assert_eq!(field.ejected(), [0; 0]);
    assert!(field.table.is_panicking());
    field.seconds(1);
    assert_eq!(field.ejected(), [0, 1], "it can be tried again");
    assert!(!field.table.is_panicking());
}

#[test]
fn what_is_draining_does_not_count_among_the_ready() {
    let field = Field::of(3);
    let drained =
        field.at(2).with_instance(field.at(2).instance().clone().health(Health::Draining));
    let set = EndpointSet::new(vec![field.at(0).clone(), field.at(1).clone(), drained]);
    field.table.follow(&Arc::new(set), 2, field.now);
    field.fail(0, 5);
    assert_eq!(field.ejected(), [0], "one of two");
}

#[test]
fn an_answered_probe_takes_it_back_slowly() {
    let mut field = Field::of(2);
    field.fail(0, 5);
    assert_eq!(field.seconds(2), 0, "at least four fifths of 3 s");
    assert_eq!(field.seconds(2), 1);
    assert_eq!(field.seconds(9), 0, "one probe at a time");
    field.table.probed(field.at(0), false, field.now);
    assert_eq!(field.ejected(), [0]);
    assert_eq!(field.seconds(1), 0);
    assert_eq!(field.seconds(2), 1, "2 s after a probe without answer");
    field.table.probed(field.at(0), true, field.now);
    assert_eq!(field.ejected(), [0; 0]);
    assert_eq!(field.table.readmissions(), 1);
    let stats = field.at(0).stats();
    assert_eq!((stats.consecutive_failures(), stats.success_rate()), (0, 1.0));
    for (after, share) in [(0, Some(0.1)), (3, Some(0.3)), (9, Some(0.9)), (10, None), (11, None)] {
        let now = field.now + Duration::from_secs(after);
        let found = stats.slow_start(now);
        assert!((found.unwrap_or(2.0) - share.unwrap_or(2.0)).abs() < 0.01, "{after}: {found:?}");
    }
}

#[test]
fn what_was_probed_by_a_task_that_has_ended_is_probed_again() {
    let mut field = Field::of(2);
    field.fail(0, 5);
    assert_eq!(field.seconds(4), 1);
    assert_eq!(field.seconds(4), 0, "one probe at a time");
    field.table.forget_probes();
    assert_eq!(field.seconds(0), 1);
}

#[test]
fn each_ejection_is_longer_until_it_behaves() {
    // No look at shares comes between that would forget anything.
    let settings =
        OutlierEjection { interval: Duration::from_secs(1000), ..OutlierEjection::default() };
    let mut field = Field::with(2, settings);
    let mut times = Vec::new();
    for _ in 0..7 {
        field.fail(0, 5);
        let ejected = field.now;
        while field.pass(Duration::from_millis(100)) == 0 {}
        times.push((field.now - ejected).as_secs_f64());
        field.table.probed(field.at(0), true, field.now);
    }
    for (time, base) in times.iter().zip([3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0]) {
        assert!((base * 0.79..base * 1.21 + 0.1).contains(time), "{base}: {times:?}");
    }
    // The doublings are forgotten, one in each quiet interval.
    (0..8).for_each(|_| _ = field.seconds(1000));
    field.fail(0, 5);
    assert_eq!(field.seconds(4), 1, "like a first one");
}

#[test]
fn a_share_far_below_the_others_ejects() {
    let mut field = Field::of(3);
    for round in 0..60 {
        field.succeed(0, 1);
        field.succeed(1, 1);
        // Never five in a row.
        if round % 3 == 0 { field.succeed(2, 1) } else { field.fail(2, 1) }
    }
    assert_eq!(field.ejected(), [0; 0]);
    field.seconds(10);
    assert_eq!(field.ejected(), [2], "a third, and the others all");

    let mut alike = Field::of(3);
    for round in 0..60 {
        for index in 0..3 {
            if round % 3 == 0 { alike.succeed(index, 1) } else { alike.fail(index, 1) }
        }
    }
    alike.seconds(10);
    assert_eq!(alike.ejected(), [0; 0], "what fails everywhere is nobody's fault");

    let mut few = Field::of(2);
    (0..49).for_each(|_| few.succeed(0, 1));
    (0..12).for_each(|_| (few.fail(1, 3), few.succeed(1, 1)).0);
    few.seconds(10);
    assert_eq!(few.ejected(), [0; 0], "fewer than 50 calls say nothing");
}

#[test]
fn ambiguous_answers_are_no_failures_in_a_row_and_count_against_the_others_alone() {
    let mut field = Field::of(3);
    field.calls(0, 100, Outcome::Ambiguous);
    assert_eq!(field.ejected(), [0; 0]);
    (1..3).for_each(|index| field.succeed(index, 100));
    field.seconds(10);
    assert_eq!(field.ejected(), [0]);
    let mut alike = Field::of(3);
    (0..3).for_each(|index| alike.calls(index, 100, Outcome::Ambiguous));
    alike.seconds(10);
    assert_eq!(alike.ejected(), [0; 0]);
}

#[test]
fn a_suspicion_lasts_until_the_last_connection_has_heard() {
    let field = Field::of(2);
    let stats = field.at(0).stats();
    stats.suspect(field.now);
    stats.suspect(field.now);
    assert_eq!(field.ejected(), [0]);
    stats.trust(true, field.now);
    assert_eq!(field.ejected(), [0]);
    stats.trust(true, field.now);
    assert_eq!(field.ejected(), [0; 0]);
    assert!(stats.slow_start(field.now).is_some());
    assert_eq!((field.table.ejections(), field.table.readmissions()), (1, 1));
}

#[test]
fn a_suspect_is_probed_and_a_pong_does_not_end_an_ejection_for_failures() {
    let mut field = Field::of(2);
    field.at(0).stats().suspect(field.now);
    assert_eq!(field.seconds(0), 1, "probed at once");
    let mut field = Field::of(2);
    field.fail(0, 5);
    field.at(0).stats().suspect(field.now);
    field.at(0).stats().trust(true, field.now);
    assert_eq!(field.ejected(), [0], "it answered pings all along");
    assert_eq!(field.seconds(4), 1);
}

#[test]
fn a_suspicion_that_nobody_lifted_ends_by_a_probe_and_not_by_a_call() {
    let mut field = Field::of(2);
    let stats = field.at(0).stats();
    stats.suspect(field.now);
    stats.trust(false, field.now);
    assert_eq!(field.ejected(), [0], "its connection has ended, and nobody has heard of it");
    assert_eq!(field.seconds(0), 1, "it is probed at once");
    field.table.probed(field.at(0), true, field.now);
    assert_eq!(field.ejected(), [0; 0]);
}

#[test]
fn a_probe_that_is_answered_does_not_speak_for_a_connection_that_has_not_heard() {
    let mut field = Field::of(2);
    field.at(0).stats().suspect(field.now);
    assert_eq!(field.seconds(3), 1);
    field.table.probed(field.at(0), true, field.now);
    assert_eq!(field.ejected(), [0]);
    assert_eq!(field.seconds(3), 1, "asked again, until that connection is replaced");
}

#[test]
fn what_failed_before_it_was_taken_back_is_not_counted_after() {
    let mut field = Field::of(2);
    (0..100).for_each(|_| field.succeed(1, 1));
    field.fail(0, 100);
    field.seconds(4);
    field.table.probed(field.at(0), true, field.now);
    field.seconds(7);
    assert_eq!(field.ejected(), [0; 0], "the look at shares");
}

#[test]
fn a_newer_registration_of_an_ejected_endpoint_earns_one_probe_at_once() {
    let mut field = Field::of(2);
    field.fail(0, 5);
    let renewed = |field: &Field, epoch, health| {
        let instance = field.at(0).instance().clone().epoch(epoch).health(health);
        let endpoints = vec![field.at(0).with_instance(instance), field.at(1).clone()];
        field.table.follow(&Arc::new(EndpointSet::new(endpoints)), 2, field.now);
    };
    renewed(&field, 1, Health::Unready);
    assert_eq!(field.seconds(0), 0, "it does not say up");
    renewed(&field, 2, Health::Up);
    assert_eq!(field.table.due(field.now), Some(field.now));
    assert_eq!(field.seconds(0), 1, "at once");
    field.table.probed(field.at(0), false, field.now);
    assert_eq!((field.ejected(), field.seconds(2)), (vec![0], 0), "it goes on where it stood");
    assert_eq!(field.seconds(2), 1);
    field.table.probed(field.at(0), false, field.now);
    renewed(&field, 3, Health::Up);
    assert_eq!(field.seconds(0), 1);
    field.table.probed(field.at(0), true, field.now);
    assert_eq!(field.ejected(), [0; 0]);
}

#[test]
fn what_is_no_longer_listed_is_forgotten() {
    let mut field = Field::of(3);
    field.fail(0, 5);
    let left = EndpointSet::new(vec![field.at(1).clone(), field.at(2).clone()]);
    field.table.follow(&Arc::new(left), 2, field.now);
    assert_eq!(field.seconds(30), 0);
    field.fail(1, 5);
    assert!(field.at(1).stats().is_ejected(), "its place is free");
}
