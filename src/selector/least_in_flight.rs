//! A policy that looks at every endpoint and takes the least busy.

use std::sync::Arc;

use super::guarded::is_open;
use super::{PickContext, Picker, Selector};
use crate::discovery::{Endpoint, EndpointSet};

/// Takes the endpoint with the fewest calls in flight for its weight: the lowest
/// `(in_flight + 1) / weight`; of equals the first one from a random start.
///
/// It looks at every endpoint for each attempt, and only at this client's own calls. With more than
/// some hundred endpoints, or with many clients, [`P2c`](super::P2c) chooses faster and sees more.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LeastInFlight;

impl LeastInFlight {
    /// The policy; there is nothing to set.
    pub fn new() -> Self {
        Self
    }
}

impl Selector for LeastInFlight {
    fn prepare(&self, _: &Arc<EndpointSet>) -> Box<dyn Picker> {
        Box::new(*self)
    }
}

impl Picker for LeastInFlight {
    fn pick(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        let start = cx.random_below(endpoints.len());
        let mut best: Option<(usize, Load)> = None;
        for index in (start..endpoints.len()).chain(0..start) {
            let endpoint = endpoints.at(index)?;
            if !is_open(endpoint, cx) {
                continue;
            }
            let load = Load::of(endpoint);
            if best.is_none_or(|(_, best)| load.is_below(best)) {
                best = Some((index, load));
            }
        }
        best.map(|(index, _)| index)
    }
}

/// Calls per weight, kept as a fraction: exact, and comparable without a division.
#[derive(Clone, Copy)]
struct Load {
    calls: u64,
    weight: u64,
}

impl Load {
    fn of(endpoint: &Endpoint) -> Self {
        Self {
            calls: u64::from(endpoint.stats().in_flight()) + 1,
            weight: u64::from(endpoint.instance().weight),
        }
    }

    fn is_below(self, other: Self) -> bool {
        if self.weight == 0 && other.weight == 0 {
            return self.calls < other.calls;
        }
        // A weight of 0 makes a load without end, which is below nothing.
        self.calls * other.weight < other.calls * self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::InFlight;
    use crate::selector::guarded::fixture::{assert_near, counts, cx, set};

    /// Picks and keeps the calls in flight.
    fn hold(set: &EndpointSet, calls: usize) -> Vec<InFlight> {
        let cx = cx(1);
        (0..calls)
            .map(|_| set.at(LeastInFlight.pick(set, &cx).unwrap()).unwrap().start(cx.now))
            .collect()
    }

    fn in_flight(set: &EndpointSet) -> Vec<u32> {
        set.iter().map(|endpoint| endpoint.stats().in_flight()).collect()
    }

    #[test]
    fn calls_in_flight_are_level() {
        let set = set(&[1; 5]);
        let held = hold(&set, 50);
        assert_eq!(in_flight(&set), [10; 5]);
        drop(held);
        assert_eq!(in_flight(&set), [0; 5]);
    }

    #[test]
    fn calls_in_flight_follow_the_weights() {
        let set = set(&[0, 1, 2, 7]);
        let _held = hold(&set, 100);
        assert_eq!(in_flight(&set), [0, 10, 20, 70]);
    }

    #[test]
    fn weight_0_everywhere_is_level_too() {
        let set = set(&[0, 0]);
        let _held = hold(&set, 10);
        assert_eq!(in_flight(&set), [5, 5]);
    }

    #[test]
    fn idle_endpoints_are_equals() {
        let set = set(&[1; 4]);
        for count in counts(&LeastInFlight, &set, 40_000) {
            assert_near(count, 10_000, 3);
        }
    }

    #[test]
    fn what_is_tried_or_not_usable_is_passed_over() {
        let set = set(&[1; 3]);
        set.at(0).unwrap().stats().set_ejected(true);
        let _busy = [set.at(2).unwrap().start(cx(1).now), set.at(2).unwrap().start(cx(1).now)];
        assert_eq!(LeastInFlight.pick(&set, &cx(1)), Some(1));
        let tried = [set.at(1).unwrap().clone()];
        assert_eq!(LeastInFlight.pick(&set, &cx(1).retry(2, &tried)), Some(2));
        set.at(2).unwrap().stats().set_draining(true);
        assert_eq!(LeastInFlight.pick(&set, &cx(1).retry(2, &tried)), None);
        assert_eq!(LeastInFlight.pick(&EndpointSet::default(), &cx(1)), None);
    }
}
