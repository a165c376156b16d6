use std::time::Duration;

use super::*;
use crate::discovery::{InFlight, Outcome};
use crate::selector::guarded::fixture::{assert_near, counts, cx, set};
use crate::selector::guarded_pick;

/// An answer after so many milliseconds, with the load that the server reported.
fn answer(set: &EndpointSet, index: usize, millis: u64, load: u32) {
    answer_in(set, index, millis * 1_000, load);
}

/// The same after so many microseconds.
fn answer_in(set: &EndpointSet, index: usize, micros: u64, load: u32) {
    let now = cx(0).now;
    let attempt = set.at(index).unwrap().start(now);
    attempt.end(Outcome::Succeeded { load }, now + Duration::from_micros(micros));
}

fn fail(set: &EndpointSet, index: usize, times: usize) {
    let now = cx(0).now;
    for _ in 0..times {
        set.at(index).unwrap().start(now).end(Outcome::Failed, now);
    }
}

fn hold(set: &EndpointSet, index: usize, calls: usize) -> Vec<InFlight> {
    (0..calls).map(|_| set.at(index).unwrap().start(cx(0).now)).collect()
}

/// Picks and keeps the calls in flight; how many each endpoint has then.
fn hold_picked(set: &EndpointSet, calls: usize) -> (Vec<InFlight>, Vec<usize>) {
    let cx = cx(5);
    let held =
        (0..calls).map(|_| set.at(P2c.pick(set, &cx).unwrap()).unwrap().start(cx.now)).collect();
    let in_flight = set.iter().map(|endpoint| endpoint.stats().in_flight() as usize).collect();
    (held, in_flight)
}

#[test]
fn calls_in_flight_are_almost_level() {
    let set = set(&[1; 10]);
    (0..10).for_each(|index| answer(&set, index, 10, 0));
    let (_held, in_flight) = hold_picked(&set, 1_000);
    for calls in in_flight {
        assert_near(calls, 100, 8);
    }
}

#[test]
fn calls_in_flight_follow_the_weights() {
    for answered in [false, true] {
        let set = set(&[1, 3, 6]);
        if answered {
            (0..3).for_each(|index| answer(&set, index, 10, 0));
        }
        let (_held, in_flight) = hold_picked(&set, 1_000);
        for (calls, expected) in in_flight.into_iter().zip([100, 300, 600]) {
            assert_near(calls, expected, 10);
        }
    }
}

#[test]
fn weight_0_gets_nothing_under_the_guard() {
    let set = set(&[0, 1, 1]);
    let cx = cx(1);
    assert!((0..10_000).all(|_| guarded_pick(&P2c, &set, &cx) != Some(0)));
}

#[test]
fn the_quicker_one_is_taken() {
    let set = set(&[1, 1]);
    answer(&set, 0, 100, 0);
    answer(&set, 1, 10, 0);
    let counts = counts(&P2c, &set, 10_000);
    // A tenth as quick, which costs five times as much: 1/80 of the calls, to hear of it again.
    assert!((60..200).contains(&counts[0]), "{counts:?}");
    // Five times the calls make up for it.
    let (_held, in_flight) = hold_picked(&set, 118);
    assert_near(in_flight[1], 99, 8);
}

#[test]
fn failing_fast_is_not_rewarded() {
    let set = set(&[1, 1]);
    answer(&set, 0, 1, 0);
    answer(&set, 1, 10, 0);
    fail(&set, 0, 20);
    // Quicker by ten, idle, and the other one busy: it fails all the same.
    let _busy = hold(&set, 1, 9);
    let counts = counts(&P2c, &set, 10_000);
    assert!(counts[0] < 600, "{counts:?}");
}

#[test]
fn success_brings_a_failed_endpoint_back() {
    let set = set(&[1, 1]);
    answer(&set, 0, 10, 0);
    answer(&set, 1, 10, 0);
    fail(&set, 0, 20);
    assert!(counts(&P2c, &set, 1_000)[0] < 50);
    let later = cx(0).now + Duration::from_secs(60);
    let attempt = set.at(0).unwrap().start(later);
    attempt.end(Outcome::Succeeded { load: 0 }, later + Duration::from_millis(10));
    // Almost equals again: which one is taken hangs on a hundredth of the success rate.
    assert!(set.at(0).unwrap().stats().success_rate() > 0.99);
    let _held = hold(&set, 1, 1);
    assert!(counts(&P2c, &set, 1_000)[0] > 900);
}

#[test]
fn the_load_that_a_server_reports_counts() {
    let set = set(&[1, 1]);
    answer(&set, 0, 10, 50);
    answer(&set, 1, 10, 5);
    // This client's own calls say the opposite, but it is one of many clients.
    let _own = hold(&set, 1, 3);
    let counts = counts(&P2c, &set, 10_000);
    assert!(counts[0] < 200, "{counts:?}");
}

#[test]
fn a_burst_counts_though_no_report_tells_of_it_yet() {
    let set = set(&[1, 1]);
    answer(&set, 0, 10, 10);
    answer(&set, 1, 10, 14);
    let (_held, in_flight) = hold_picked(&set, 100);
    assert_near(in_flight[0], 52, 6);
}

#[test]
fn a_new_endpoint_is_tried_and_not_flooded() {
    let set = set(&[1, 1, 1]);
    answer(&set, 0, 10, 40);
    answer(&set, 1, 10, 40);
    let (held, in_flight) = hold_picked(&set, 60);
    assert!((1..=6).contains(&in_flight[2]), "{in_flight:?}");
    drop(held);
    // One answer, and it has its share: what makes it level with the others.
    answer(&set, 2, 10, 0);
    let (_held, in_flight) = hold_picked(&set, 30);
    assert!(in_flight[2] > 15, "{in_flight:?}");
}

#[test]
fn a_new_endpoint_that_only_fails_is_left() {
    let set = set(&[1, 1]);
    answer(&set, 1, 10, 0);
    fail(&set, 0, 10);
    let counts = counts(&P2c, &set, 10_000);
    assert!(counts[0] < 500, "{counts:?}");
}

#[test]
fn the_dearest_is_heard_again() {
    let set = set(&[1, 1]);
    for load in [0, 50] {
        answer(&set, 0, 3_600_000, load);
        answer(&set, 1, 1, 0);
        let counts = counts(&P2c, &set, 102_400);
        assert_near(counts[0], 100, 30);
    }
}

#[test]
fn answers_in_no_time_leave_the_load_to_decide() {
    let set = set(&[1, 1]);
    answer(&set, 0, 0, 0);
    answer(&set, 1, 0, 0);
    let _held = hold(&set, 0, 9);
    let counts = counts(&P2c, &set, 10_000);
    assert!(counts[0] < 150, "{counts:?}");
}

#[test]
fn of_two_the_open_one_is_taken() {
    let set = set(&[1, 1]);
    answer(&set, 0, 1, 0);
    answer(&set, 1, 100, 90);
    set.at(0).unwrap().stats().set_ejected(true);
    assert_eq!(counts(&P2c, &set, 100), [0, 100]);
    set.at(0).unwrap().stats().set_ejected(false);
    let tried = [set.at(0).unwrap().clone()];
    let retry = cx(1).retry(2, &tried);
    assert!((0..100).all(|_| P2c.pick(&set, &retry) == Some(1)));
}

#[test]
fn one_that_fails_gains_nothing_by_others_that_may_not_be_called() {
    let weightless = set(&[1, 1, 1, 1, 0]);
    let draining = set(&[1; 5]);
    draining.at(4).unwrap().stats().set_draining(true);
    let ejected = set(&[1, 2, 1, 1, 3]);
    ejected.at(3).unwrap().stats().set_ejected(true);
    for set in [weightless, draining, ejected] {
        (0..5).for_each(|index| answer_in(&set, index, 100, 0));
        fail(&set, 0, 20);
        let picker = P2c.prepare(&set);
        let counts = counts(&*picker, &set, 100_000);
        assert!(counts[0] < 1_000, "{counts:?}");
    }
}

#[test]
fn one_or_none() {
    assert_eq!(P2c.pick(&set(&[1]), &cx(1)), Some(0));
    assert_eq!(P2c.pick(&EndpointSet::default(), &cx(1)), None);
}

#[test]
fn latencies_that_are_alike_leave_the_load_to_decide() {
    let set = set(&[1, 1]);
    answer(&set, 0, 19, 0);
    answer(&set, 1, 10, 0);
    let _held = hold(&set, 1, 1);
    assert_eq!(counts(&P2c, &set, 1_000), [1_000, 0]);
    // What was reported is no news, and may be over.
    let reported = self::set(&[1, 1]);
    answer(&reported, 0, 10, 9);
    answer(&reported, 1, 10, 0);
    assert!((20..150).contains(&counts(&P2c, &reported, 10_000)[0]));
}

#[test]
fn idle_endpoints_have_the_shares_of_their_weights() {
    let set = set(&[2, 1, 3]);
    // A cold first call, and replies that count themselves.
    for (index, micros) in [(0, 60), (1, 1_900), (2, 70)] {
        answer_in(&set, index, micros, 1);
    }
    let counts = counts(&*P2c.prepare(&set), &set, 60_000);
    for (count, expected) in counts.into_iter().zip([20_000, 10_000, 30_000]) {
        assert_near(count, expected, 5);
    }
}

#[test]
fn a_pause_of_the_scheduler_moves_no_share_while_there_is_nothing_to_do() {
    let set = set(&[1, 1]);
    answer_in(&set, 0, 9_000, 1);
    answer_in(&set, 1, 60, 1);
    for count in counts(&P2c, &set, 10_000) {
        assert_near(count, 5_000, 5);
    }
    // With something to do it counts.
    let _held = [hold(&set, 0, 1), hold(&set, 1, 1)];
    assert!(counts(&P2c, &set, 10_000)[0] < 1_000);
}

#[test]
fn ambiguous_answers_count_beside_others_without_them() {
    let unknown = |set: &EndpointSet, index: usize| {
        let now = cx(0).now;
        (0..100).for_each(|_| set.at(index).unwrap().start(now).end(Outcome::Ambiguous, now));
    };
    let set = set(&[1, 1]);
    (0..2).for_each(|index| answer(&set, index, 1, 0));
    unknown(&set, 0);
    assert!(counts(&P2c, &set, 10_000)[0] < 100);
    unknown(&set, 1);
    for count in counts(&P2c, &set, 10_000) {
        assert_near(count, 5_000, 5);
    }
}

#[test]
fn an_old_report_counts_as_far_as_it_is_fresh() {
    let set = set(&[1, 1]);
    answer(&set, 0, 10, 50);
    answer(&set, 1, 10, 40);
    let _own = hold(&set, 1, 3);
    let taken = |age: u64| {
        let cx = PickContext::new(cx(0).now + Duration::from_millis(10 + age), 1);
        P2c.pick(&set, &cx).unwrap()
    };
    assert_eq!(taken(0), 1, "ten fewer are more than three of one's own");
    assert_eq!(taken(1_000), 0, "a hundredth of ten is less");
}
