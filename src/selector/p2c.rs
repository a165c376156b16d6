//! The default policy: the better of two random endpoints.

use std::sync::Arc;

use super::guarded::is_open;
use super::{PickContext, Picker, Selector};
use crate::discovery::{Endpoint, EndpointSet};

/// The chance that the dearer of the two is taken all the same, where both cost the same; it falls
/// in proportion to how many times dearer it is, but not below the least.
const HEAR_AGAIN: f64 = 1.0 / 16.0;
const HEAR_AGAIN_LEAST: f64 = 1.0 / 1024.0;

/// The least latency, in seconds: at 0 a load would count nothing.
const LEAST_LATENCY: f64 = 1e-6;

/// The least success rate: below it, endpoints that hardly ever answer could not be compared.
const LEAST_SUCCESS: f64 = 1.0 / 16.0;

/// Power of two choices: draws two endpoints at random and takes the cheaper one. The default.
///
/// Two, and not the best of all: clients with the same numbers before them would all run to the
/// same best server. A choice takes the same time whatever the number of endpoints.
///
/// # What an endpoint costs
/// ```text
/// cost = latency x (in flight + reported load + 1) / (success rate ^ 3 x weight)
/// ```
/// - **latency**, the decaying mean, times the calls there with this one is about the wait. It is
///   taken to be at least 1 us.
/// - **in flight** is this client's own, and tells of a burst at once. **Reported load** is what
///   the server last said it had in flight from everyone. In a large fleet a client has less than
///   one call of its own at each server and would be blind without it; there it counts most. The
///   client's own calls are in both, but so they are for every endpoint.
/// - **success rate** is there because a server that fails at once is never busy and looks quick;
///   latency is that of answers alone. Divided by it once, the cost would be that of trying until
///   it works. But a failure is not free, so the third power: an endpoint that fails half of its
///   calls must be eight times as quick to be taken. It is taken to be at least 1/16.
/// - **weight** divides: twice the weight has twice the calls in flight at the same cost. While
///   there is little to do the heavier of the two is taken, since it has more room.
///
/// # Endpoints not heard of
/// An endpoint without an answer yet is taken to cost half as much as the one drawn beside it,
/// times its own calls in flight plus one. So it is tried soon, with about two calls at a time
/// until the first of them is answered.
///
/// An endpoint that lost by old numbers has to be heard again to show that they are old. So the
/// dearer of the two is taken all the same with a probability of 1/16, divided by how many times
/// dearer it is: that makes no more than 1/16 of the mean cost. But it is 1/1024 at least, so that
/// even a single answer that took an hour is lived down.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct P2c;

impl P2c {
    /// The policy; there is nothing to set.
    pub fn new() -> Self {
        Self
    }
}

impl Selector for P2c {
    fn prepare(&self, _: &Arc<EndpointSet>) -> Box<dyn Picker> {
        Box::new(*self)
    }
}

impl Picker for P2c {
    fn pick(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        let len = endpoints.len();
        if len < 2 {
            return (len == 1).then_some(0);
        }
        let first = cx.random_below(len);
        let second = cx.random_below(len - 1);
        let second = if second < first { second } else { second + 1 };
        let (one, other) = (endpoints.at(first)?, endpoints.at(second)?);
        match (is_open(one, cx), is_open(other, cx)) {
            (true, true) => {}
            (false, true) => return Some(second),
            // If neither is, the guard refuses the answer and asks for another two.
            (_, false) => return Some(first),
        }
        let (one, other) = (Seen::of(one), Seen::of(other));
        // Both costs times both merits: the same order without a division.
        let cost = one.work(&other) * other.merit;
        let other_cost = other.work(&one) * one.merit;
        let (cheap, dear, less, more) = if cost <= other_cost {
            (first, second, cost, other_cost)
        } else {
            (second, first, other_cost, cost)
        };
        let chance = (less * HEAR_AGAIN).max(more * HEAR_AGAIN_LEAST);
        Some(if fraction(cx.random()) * more < chance { dear } else { cheap })
    }
}

/// What is seen of an endpoint from here, read once so that both costs are of the same numbers.
struct Seen {
    /// In seconds; `None` before the first answer.
    latency: Option<f64>,
    in_flight: f64,
    reported: f64,
    /// What its work is divided by.
    merit: f64,
}

impl Seen {
    fn of(endpoint: &Endpoint) -> Self {
        let stats = endpoint.stats();
        let success = stats.success_rate().max(LEAST_SUCCESS);
        // Weight 0 loses against any other, and two of them can still be compared.
        let weight = f64::from(endpoint.instance().weight).max(1e-6);
        Self {
            latency: stats.latency().map(|latency| latency.as_secs_f64().max(LEAST_LATENCY)),
            in_flight: f64::from(stats.in_flight()),
            reported: f64::from(stats.reported_load()),
            merit: success * success * success * weight,
        }
    }

    fn work(&self, rival: &Self) -> f64 {
        match (self.latency, rival.latency) {
            (Some(latency), _) => latency * self.load(),
            (None, Some(latency)) => latency * rival.load() * (self.in_flight + 1.0) / 2.0,
            (None, None) => self.in_flight + 1.0,
        }
    }

    fn load(&self) -> f64 {
        self.in_flight + self.reported + 1.0
    }
}

/// A number from 0 up to, and not including, 1.
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
