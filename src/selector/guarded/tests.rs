use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::fixture::{assert_near, cx, endpoint, set};
use super::*;
use crate::instance::Instance;

/// Answers with the same each time, and counts how often it was asked.
struct Always(Option<usize>, AtomicUsize);

impl Always {
    fn new(answer: impl Into<Option<usize>>) -> Self {
        Self(answer.into(), AtomicUsize::new(0))
    }

    fn asked(&self) -> usize {
        self.1.load(Relaxed)
    }
}

impl Picker for Always {
    fn pick(&self, _: &EndpointSet, _: &PickContext<'_>) -> Option<usize> {
        self.1.fetch_add(1, Relaxed);
        self.0
    }
}

fn with_health(number: usize, health: Health) -> Endpoint {
    let address = format!("tcp@10.0.0.1:{number}").parse().unwrap();
    Endpoint::new(Instance::at(address).health(health), tokio::time::Instant::now())
}

fn put_off(endpoint: &Endpoint, cx: &PickContext<'_>) {
    endpoint.stats().connect_failed(cx.now + Duration::from_secs(1));
}

/// What the guard answers in 100 attempts with different seeds in which the picker offers nothing.
fn chosen(set: &EndpointSet, tried: &[Endpoint]) -> Vec<usize> {
    let picks = (0..100).filter_map(|seed| {
        guarded_pick(&Always::new(None), set, &cx(seed).retry(1 + tried.len() as u32, tried))
    });
    let mut picks: Vec<usize> = picks.collect();
    picks.sort_unstable();
    picks.dedup();
    picks
}

#[test]
fn an_answer_that_stands_is_taken_at_once() {
    let picker = Always::new(2);
    assert_eq!(guarded_pick(&picker, &set(&[1, 1, 1]), &cx(1)), Some(2));
    assert_eq!(picker.asked(), 1);
}

#[test]
fn an_answer_that_does_not_stand_is_refused_three_times() {
    let cx = cx(1);
    type Spoil = fn(&Endpoint, &PickContext<'_>);
    let refused: [(&str, Spoil); 3] = [
        ("ejected", |endpoint, _| endpoint.stats().set_ejected(true)),
        ("draining", |endpoint, _| endpoint.stats().set_draining(true)),
        ("in backoff", put_off),
    ];
    for (why, spoil) in refused {
        let set = set(&[1, 1]);
        spoil(set.at(0).unwrap(), &cx);
        let picker = Always::new(0);
        assert_eq!(guarded_pick(&picker, &set, &cx), Some(1), "{why}");
        assert_eq!(picker.asked(), 3, "{why}");
    }
    for first in [
        with_health(1, Health::Draining),
        with_health(1, Health::Unready),
        endpoint(1, 1).doubted(true),
    ] {
        let set = EndpointSet::new(vec![first, endpoint(2, 1)]);
        assert_eq!(guarded_pick(&Always::new(0), &set, &cx), Some(1));
    }
}

#[test]
fn an_answer_out_of_range_is_refused() {
    let picker = Always::new(2);
    assert!(guarded_pick(&picker, &set(&[1, 1]), &cx(1)).is_some());
    assert_eq!(picker.asked(), 3);
    assert_eq!(guarded_pick(&Always::new(0), &EndpointSet::default(), &cx(1)), None);
}

#[test]
fn a_picker_without_a_choice_is_asked_once() {
    let picker = Always::new(None);
    assert_eq!(guarded_pick(&picker, &set(&[1]), &cx(1)), Some(0));
    assert_eq!(picker.asked(), 1);
}

#[test]
fn a_tried_endpoint_is_refused_in_a_newer_snapshot_too() {
    let old = set(&[1, 1]);
    let newer = EndpointSet::new(
        old.iter().map(|endpoint| endpoint.with_instance(endpoint.instance().clone())).collect(),
    );
    let tried = [old.at(0).unwrap().clone()];
    let cx = cx(1).retry(2, &tried);
    assert_eq!(guarded_pick(&Always::new(0), &newer, &cx), Some(1));
}

#[test]
fn refused_calls_are_spread_by_weight() {
    let set = set(&[1, 1, 1, 2]);
    set.at(0).unwrap().stats().set_ejected(true);
    let cx = cx(3);
    let mut counts = [0; 4];
    for _ in 0..40_000 {
        counts[guarded_pick(&Always::new(0), &set, &cx).unwrap()] += 1;
    }
    assert_eq!(counts[0], 0);
    assert_near(counts[1], 10_000, 3);
    assert_near(counts[2], 10_000, 3);
    assert_near(counts[3], 20_000, 3);
}

#[test]
fn each_group_is_taken_before_the_next() {
    let at = cx(0);
    // 0 usable, 1 doubtful, 2 usable and tried, 3 ejected, 4 waiting, 5 doubtful and ejected,
    // 6 tried and ejected, 7 tried and doubtful, 8 draining, 9 unready.
    let mut endpoints: Vec<Endpoint> = (1..=8).map(|number| endpoint(number, 1)).collect();
    for doubtful in [1, 5, 7] {
        endpoints[doubtful] = endpoints[doubtful].doubted(true);
    }
    for ejected in [3, 5, 6] {
        endpoints[ejected].stats().set_ejected(true);
    }
    put_off(&endpoints[4], &at);
    endpoints.push(with_health(9, Health::Draining));
    endpoints.push(with_health(10, Health::Unready));
    let tried: Vec<Endpoint> = [2, 6, 7].map(|index: usize| endpoints[index].clone()).into();
    let set = EndpointSet::new(endpoints);

    let groups: [&[usize]; 5] = [&[0], &[1], &[2], &[3, 4, 5], &[6, 7]];
    for group in groups {
        assert_eq!(chosen(&set, &tried), group);
        for index in group {
            set.at(*index).unwrap().stats().set_draining(true);
        }
    }
    assert_eq!(chosen(&set, &tried), [] as [usize; 0]);
}

#[test]
fn weight_0_is_taken_only_when_no_other_is_usable() {
    let set = set(&[0, 1, 1]);
    let picker = Always::new(0);
    assert_ne!(guarded_pick(&picker, &set, &cx(1)), Some(0));
    assert_eq!(chosen(&set, &[]), [1, 2]);
    // What was tried is still usable, so it comes before weight 0 even then.
    let tried = [set.at(1).unwrap().clone(), set.at(2).unwrap().clone()];
    assert_eq!(chosen(&set, &tried), [1, 2]);

    set.at(1).unwrap().stats().set_ejected(true);
    set.at(2).unwrap().stats().set_ejected(true);
    let picker = Always::new(0);
    assert_eq!(guarded_pick(&picker, &set, &cx(1)), Some(0));
    assert_eq!(picker.asked(), 1);
    assert_eq!(chosen(&set, &[]), [0]);
}

#[test]
fn weight_0_everywhere_leaves_the_choice_to_the_picker() {
    let set = set(&[0, 0, 0]);
    let picker = Always::new(1);
    assert_eq!(guarded_pick(&picker, &set, &cx(1)), Some(1));
    assert_eq!(picker.asked(), 1);
    assert_eq!(chosen(&set, &[]), [0, 1, 2]);
    set.at(0).unwrap().stats().set_ejected(true);
    assert_eq!(chosen(&set, &[]), [1, 2]);
}

#[test]
fn shares_are_the_weights_of_what_is_listed_as_up() {
    assert_eq!(shares(&set(&[0, 2, 3])), [0, 2, 3]);
    assert_eq!(shares(&set(&[0, 0])), [1, 1]);
    let set = EndpointSet::new(vec![
        with_health(1, Health::Draining),
        endpoint(2, 5).doubted(true),
        endpoint(3, 0),
    ]);
    assert_eq!(shares(&set), [0, 0, 1]);
    assert_eq!(shares(&EndpointSet::default()), [] as [u32; 0]);
}
