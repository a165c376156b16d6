use super::*;
use crate::discovery::{Endpoint, InFlight};
use crate::instance::Health;
use crate::selector::guarded::fixture::{assert_near, counts, cx, endpoint, set};
use crate::selector::guarded_pick;

const KEYS: u64 = 10_000;

/// The port of the endpoint that each key belongs to, while nothing is in flight.
fn owners(set: &Arc<EndpointSet>) -> Vec<u16> {
    let picker = ConsistentHash::new().prepare(set);
    let port = |index: usize| set.at(index).unwrap().instance().address.port().unwrap();
    (0..KEYS).map(|key| port(picker.pick(set, &cx(1).hash_key(Some(key))).unwrap())).collect()
}

fn share_of(owners: &[u16], port: u16) -> usize {
    owners.iter().filter(|owner| **owner == port).count()
}

fn in_flight(set: &EndpointSet) -> Vec<usize> {
    set.iter().map(|endpoint| endpoint.stats().in_flight() as usize).collect()
}

/// Picks for one key and keeps the calls in flight, checking the bound after each.
fn hold_hot(set: &Arc<EndpointSet>, bound: f64, calls: usize, slack: usize) -> Vec<InFlight> {
    let picker = ConsistentHash::new().bound(bound).prepare(set);
    let cx = cx(3).hash_key(Some(42));
    let mut held = Vec::new();
    for call in 1..=calls {
        let picked = picker.pick(set, &cx).unwrap();
        held.push(set.at(picked).unwrap().start(cx.now));
        let most = (bound * call as f64 / set.len() as f64).ceil() as usize;
        let has = set.at(picked).unwrap().stats().in_flight() as usize;
        assert!(has <= most + slack, "{has} at call {call}");
    }
    held
}

#[test]
fn a_key_stays_at_its_endpoint() {
    let forwards = set(&[1; 10]);
    // Another client, with the same instances in another order.
    let backwards = (1..=10).rev().map(|number| endpoint(number, 1)).collect();
    let owned = owners(&forwards);
    assert_eq!(owned, owners(&Arc::new(EndpointSet::new(backwards))));
    assert_eq!(owned, owners(&forwards));
    for port in 1..=10 {
        assert_near(share_of(&owned, port), 1_000, 30);
    }
}

#[test]
fn the_ring_is_the_same_in_every_build() {
    let set = set(&[1; 5]);
    assert_eq!(owners(&set)[..12], [4, 4, 4, 5, 4, 5, 3, 2, 4, 2, 5, 2]);
}

#[test]
fn when_one_of_ten_leaves_only_its_keys_move() {
    let ten = set(&[1; 10]);
    let nine = ten.iter().filter(|endpoint| endpoint.instance().address.port() != Some(4));
    let (before, after) =
        (owners(&ten), owners(&Arc::new(EndpointSet::new(nine.cloned().collect()))));
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || *before == 4);
    }
    // What it had is spread, and not given to one neighbour.
    let lost = share_of(&before, 4);
    for port in [1, 2, 3, 5, 6, 7, 8, 9, 10] {
        let gained = share_of(&after, port) - share_of(&before, port);
        assert!(gained > 0 && gained < lost / 3, "{port}: {gained} of {lost}");
    }
}

#[test]
fn an_endpoint_that_is_not_usable_lends_its_keys() {
    let set = set(&[1; 10]);
    let before = owners(&set);
    set.at(3).unwrap().stats().set_ejected(true);
    let meanwhile = owners(&set);
    assert!(before.iter().zip(&meanwhile).all(|(before, now)| before == now || *before == 4));
    assert_eq!(share_of(&meanwhile, 4), 0);
    set.at(3).unwrap().stats().set_ejected(false);
    assert_eq!(owners(&set), before);
}

#[test]
fn keys_follow_the_weights() {
    let owned = owners(&set(&[1, 0, 3, 6]));
    assert_eq!(share_of(&owned, 2), 0);
    for (port, expected) in [(1, 1_000), (3, 3_000), (4, 6_000)] {
        assert_near(share_of(&owned, port), expected, 25);
    }
}

#[test]
fn a_change_of_weight_moves_keys_only_from_or_to_its_endpoint() {
    let before = owners(&set(&[2, 2, 2, 2]));
    let after = owners(&set(&[2, 2, 1, 2]));
    assert!(before.iter().zip(&after).all(|(before, after)| before == after || *before == 3));
    assert!(share_of(&after, 3) < share_of(&before, 3));
}

#[test]
fn calls_without_a_key_go_anywhere_by_weight() {
    let set = set(&[1, 2, 7]);
    let counts = counts(&*ConsistentHash::new().prepare(&set), &set, 100_000);
    for (count, expected) in counts.into_iter().zip([10_000, 20_000, 70_000]) {
        assert_near(count, expected, 4);
    }
}

#[test]
fn a_hot_key_is_bounded() {
    for bound in [1.0, 1.25, 2.0] {
        let set = set(&[1; 10]);
        let held = hold_hot(&set, bound, 200, 0);
        drop(held);
        assert_eq!(in_flight(&set), [0; 10]);
    }
}

#[test]
fn a_hot_key_is_bounded_by_weight() {
    let set = set(&[1, 2, 2]);
    let picker = ConsistentHash::new().prepare(&set);
    let mut held = Vec::new();
    for seed in 0..200 {
        let cx = cx(seed).hash_key(Some(42));
        held.push(set.at(picker.pick(&set, &cx).unwrap()).unwrap().start(cx.now));
    }
    let in_flight = in_flight(&set);
    assert!(in_flight[0] <= 50 && in_flight[1] <= 100 && in_flight[2] <= 100, "{in_flight:?}");
    assert!(in_flight[1].max(in_flight[2]) > 80, "{in_flight:?}");
}

#[test]
fn a_hot_key_among_many_endpoints_is_bounded_almost_exactly() {
    for len in [100, 2_000] {
        let set = set(&vec![1; len]);
        let _held = hold_hot(&set, 1.25, 5 * len, 1);
    }
}

#[test]
fn what_is_ejected_does_not_count_for_the_bound() {
    let set = set(&[1; 10]);
    (0..8).for_each(|index| set.at(index).unwrap().stats().set_ejected(true));
    let picker = ConsistentHash::new().prepare(&set);
    let cx = cx(1).hash_key(Some(7));
    // Two have to bear it all, and neither is full for the others' sake.
    let held: Vec<InFlight> =
        (0..100).map(|_| set.at(picker.pick(&set, &cx).unwrap()).unwrap().start(cx.now)).collect();
    let in_flight = in_flight(&set);
    assert_eq!(in_flight[8] + in_flight[9], held.len());
    assert!(in_flight[8].max(in_flight[9]) <= 63, "{in_flight:?}");
}

#[test]
fn without_a_bound_a_key_never_moves() {
    let set = set(&[1; 3]);
    let picker = ConsistentHash::new().bound(f64::INFINITY).prepare(&set);
    let cx = cx(1).hash_key(Some(9));
    let first = picker.pick(&set, &cx).unwrap();
    for _ in 0..100 {
        let picked = picker.pick(&set, &cx).unwrap();
        assert_eq!(picked, first);
        std::mem::forget(set.at(picked).unwrap().start(cx.now));
    }
}

#[test]
fn a_bound_below_1_or_no_number_is_1() {
    assert_eq!(ConsistentHash::new().bound(0.1).bound, 1.0);
    assert_eq!(ConsistentHash::new().bound(f64::NAN).bound, 1.0);
}

#[test]
fn a_retry_goes_on_along_the_ring() {
    let set = set(&[1; 5]);
    let picker = ConsistentHash::new().prepare(&set);
    let mut tried: Vec<Endpoint> = Vec::new();
    for attempt in 1..=5 {
        let cx = cx(attempt).hash_key(Some(3)).retry(attempt as u32, &tried);
        let picked = guarded_pick(&*picker, &set, &cx).unwrap();
        assert_eq!(picker.pick(&set, &cx), Some(picked));
        tried.push(set.at(picked).unwrap().clone());
    }
    let cx = cx(1).hash_key(Some(3)).retry(6, &tried);
    assert_eq!(picker.pick(&set, &cx), None);
    assert!(guarded_pick(&*picker, &set, &cx).is_some());
}

#[test]
fn the_ring_is_bounded() {
    let points = |shares: &[u32]| -> u64 {
        let halvings = halvings(shares);
        shares.iter().map(|share| points_of(*share, halvings)).sum()
    };
    assert_eq!(points(&[1; 10]), 1_280);
    assert_eq!(points(&[1, 0, 2]), 384);
    assert_eq!(points(&[1; 2_048]), 262_144);
    assert_eq!(points(&[1; 2_049]), 2_049 * 64);
    assert_eq!(points(&[1; 100_000]), 1_600_000);
    assert!(points(&[u32::MAX; 1_000]) <= 262_144);
    assert_eq!(points_of(1, halvings(&[u32::MAX, 1])), 1);
    assert_eq!(Ring::new(&set(&[u32::MAX, 1]), 1.25).points.len() as u64, points(&[u32::MAX, 1]));
}

#[test]
fn nobody_on_the_ring() {
    let set = Arc::new(EndpointSet::default());
    assert_eq!(ConsistentHash::new().prepare(&set).pick(&set, &cx(1)), None);
    let draining = endpoint(1, 1);
    let draining = draining.with_instance(draining.instance().clone().health(Health::Draining));
    let set = Arc::new(EndpointSet::new(vec![draining]));
    let picker = ConsistentHash::default().prepare(&set);
    assert_eq!(picker.pick(&set, &cx(1).hash_key(Some(1))), None);
}
