//! Sets of endpoints that the selectors' tests choose from.

use std::sync::Arc;

use tokio::time::Instant;

use crate::discovery::{Endpoint, EndpointSet};
use crate::instance::Instance;
use crate::selector::{PickContext, Picker};

/// The endpoint at port `number`, with this weight.
pub(crate) fn endpoint(number: usize, weight: u32) -> Endpoint {
    let address = format!("tcp@10.0.0.1:{number}").parse().unwrap();
    Endpoint::new(Instance::at(address).weight(weight), Instant::now())
}

/// One endpoint per weight, at the ports 1, 2, 3 and so on.
pub(crate) fn set(weights: &[u32]) -> Arc<EndpointSet> {
    let endpoints = weights.iter().enumerate();
    Arc::new(EndpointSet::new(endpoints.map(|(i, weight)| endpoint(i + 1, *weight)).collect()))
}

/// The context of a first attempt, now.
pub(crate) fn cx(seed: u64) -> PickContext<'static> {
    PickContext::new(Instant::now(), seed)
}

/// How often each endpoint is picked in so many first attempts.
pub(crate) fn counts(picker: &dyn Picker, set: &EndpointSet, picks: usize) -> Vec<usize> {
    let cx = cx(7);
    let mut counts = vec![0; set.len()];
    for _ in 0..picks {
        counts[picker.pick(set, &cx).unwrap()] += 1;
    }
    counts
}

/// Asserts that `count` is `expected`, give or take so many per cent of it.
#[track_caller]
pub(crate) fn assert_near(count: usize, expected: usize, percent: usize) {
    let off = count.abs_diff(expected);
    assert!(off * 100 <= expected * percent, "{count} is not {expected} +- {percent} %");
}
