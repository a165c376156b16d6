//! The default policy: the better of two random endpoints.

use std::sync::Arc;

use tokio::time::Instant;

use super::guarded::{is_open, shares};
use super::random::Aliases;
use super::{PickContext, Picker, Selector};
use crate::discovery::{Endpoint, EndpointSet, EndpointStats};

/// The chance that the dearer of the two is taken all the same, where both cost the same; it falls
/// in proportion to how many times dearer it is, but not below the least.
const HEAR_AGAIN: f64 = 1.0 / 16.0;
const HEAR_AGAIN_LEAST: f64 = 1.0 / 1024.0;

/// How often each of the two is drawn at most, until it may be called: with half of the endpoints ejected,
/// one of sixteen is not found.
const DRAWS: usize = 4;

/// Latencies that differ by no more than this factor differ by chance.
const ALIKE: f64 = 2.0;

/// Latencies below this, in microseconds, count as equal while there is nothing to do: a pause of the
/// scheduler is a hundred times what a call takes.
const IDLE_LATENCY: f64 = 5_000.0;

/// The least latency, in microseconds: at 0 no two could be compared.
const LEAST_LATENCY: f64 = 1.0;

/// The least success and clear rate: below it, endpoints that hardly ever answer could not be compared.
const LEAST_SUCCESS: f64 = 1.0 / 16.0;

/// Power of two choices: draws two endpoints at random, the first by its weight, and takes the cheaper
/// one. The default.
///
/// Two, and not the best of all: clients with the same numbers before them would all run to the
/// same best server. A choice takes the same time whatever the number of endpoints. An endpoint that may not
/// be called (draining, ejected, tried before) or has weight 0 is drawn again, up to three times.
///
/// # What an endpoint costs
/// ```text
/// cost = (in flight + reported load + 1) x slowness / (success rate ^ 3 x clear rate ^ 3 x weight)
/// ```
/// - **in flight** is this client's own, and tells of a burst at once.
/// - **reported load** is what the server last said it had in flight from everyone. It is taken for
///   what it was as far as it is fresh: `latency / (latency + age)` of it counts, and for the rest the
///   mean of the two that were drawn. A server has changed all that it does within the time that
///   one of its answers takes; with many clients before it, each hears of it seldom, and a choice by old
///   counts is worse than one without them. The call whose answer told it is over, and is left out.
/// - **slowness** is 1 as long as the latency, the decaying peak of answers, is at most twice that
///   of the other one; above, it is half of how many times higher. Servers that are alike differ so
///   much by chance alone, and a choice by chance is none; but a server that is stuck or weak differs by
///   more. While nothing is in flight at either, latencies below 5 ms count as 5 ms.
/// - **success rate** is there because a server that fails at once is never busy and looks quick;
///   latency is that of answers alone. Divided by it once, the cost would be that of trying until
///   it works. But a failure is not free, so the third power: an endpoint that fails half of its
///   calls costs eight times as much. It is taken to be at least 1/16.
/// - **clear rate** is the share of answers that were not Unknown or DeadlineExceeded. It counts as far as
///   it is less than half of the other one's: such errors may be the callers' fault, and then all
///   endpoints have them.
/// - **weight** divides: twice the weight has twice the calls in flight at the same cost. The first of
///   the two is drawn by its weight, and taken if both have nothing to do, so that idle endpoints have
///   the shares of their weights.
///
/// # Endpoints not heard of
/// An endpoint without an answer yet is taken to cost half as much as the one drawn beside it,
/// times its own calls in flight plus one. So it is tried soon, with about two calls at a time
/// until the first of them is answered.
///
/// An endpoint that lost by old numbers, its latency, its success rate or what it reported, has to be
/// heard again to show that they are old. So the dearer of the two, unless this client has more in flight
/// there, is taken all the same with
/// a probability of 1/16, divided by how many times dearer it is: that makes no more than 1/16 of
/// the mean cost. But it is 1/1024 at least, so that even a single answer that took an hour is lived
/// down.
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
    fn prepare(&self, endpoints: &Arc<EndpointSet>) -> Box<dyn Picker> {
        match Aliases::of(&shares(endpoints)) {
            Some(aliases) => Box::new(Weighted(aliases)),
            None => Box::new(*self),
        }
    }
}

/// Draws the first of the two by its weight.
struct Weighted(Aliases);

impl Picker for Weighted {
    fn pick(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        better_of_two(endpoints, || self.0.draw(cx), cx)
    }
}

impl Picker for P2c {
    fn pick(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        better_of_two(endpoints, || Some(cx.random_below(endpoints.len())), cx)
    }
}

/// The better of the first one drawn and a random other.
#[inline]
fn better_of_two(
    endpoints: &EndpointSet,
    draw_first: impl Fn() -> Option<usize>,
    cx: &PickContext<'_>,
) -> Option<usize> {
    let len = endpoints.len();
    if len < 2 {
        return (len == 1).then_some(0);
    }
    let (first, one, is_first_open) = candidate(endpoints, draw_first, cx)?;
    let draw_other = || {
        let second = cx.random_below(len - 1);
        Some(if second < first { second } else { second + 1 })
    };
    let (second, other, is_second_open) = candidate(endpoints, draw_other, cx)?;
    match (is_first_open, is_second_open) {
        (true, true) => {}
        (false, true) => return Some(second),
        // If neither is, the guard refuses the answer and asks for another two.
        (_, false) => return Some(first),
    }
    let (one, other) = (Seen::of(one), Seen::of(other));
    // The first was drawn by its weight: with nothing to do it costs no more than a heavier one.
    let head_start = (other.weight - one.weight).max(0.0);
    let is_idle = one.is_idle() && other.is_idle();
    // Both costs times both weights and merits: the same order without a division.
    let work = one.load(&other, cx.now) * other.weight;
    let other_work = other.load(&one, cx.now) * one.weight + head_start;
    let cost = work * one.slowness(&other, is_idle) * other.merit_beside(&one);
    let other_cost = other_work * other.slowness(&one, is_idle) * one.merit_beside(&other);
    if cost == other_cost {
        return Some(first);
    }
    // Of this client's own calls, this one included: they are known as they are.
    let own = (one.in_flight + 1.0) * other.weight;
    let other_own = (other.in_flight + 1.0) * one.weight + head_start;
    let (cheap, dear, less, more, is_busy) = if cost < other_cost {
        (first, second, cost, other_cost, other_own > own)
    } else {
        (second, first, other_cost, cost, own > other_own)
    };
    if is_busy {
        return Some(cheap);
    }
    let chance = (less * HEAR_AGAIN).max(more * HEAR_AGAIN_LEAST);
    Some(if fraction(cx.random()) * more < chance { dear } else { cheap })
}

/// Draws until one may be called and has a weight, and tells whether it is open: beside one that may not
/// be called the other is taken without a comparison, be it one that fails every call. The last one drawn
/// if there was none.
#[inline]
fn candidate<'a>(
    endpoints: &'a EndpointSet,
    draw: impl Fn() -> Option<usize>,
    cx: &PickContext<'_>,
) -> Option<(usize, &'a Endpoint, bool)> {
    let mut drawn = None;
    for _ in 0..DRAWS {
        let index = draw()?;
        let endpoint = endpoints.at(index)?;
        let is_open = is_open(endpoint, cx);
        drawn = Some((index, endpoint, is_open));
        if is_open && endpoint.instance().weight > 0 {
            break;
        }
    }
    drawn
}

/// What is seen of an endpoint from here, read once so that both costs are of the same numbers.
struct Seen<'a> {
    stats: &'a EndpointStats,
    /// In microseconds; `None` before the first answer.
    latency: Option<f64>,
    in_flight: f64,
    reported: f64,
    weight: f64,
    /// What its work is divided by, beside its weight.
    merit: f64,
    /// Share of answers that were not ambiguous.
    clear: f64,
}

impl<'a> Seen<'a> {
    fn of(endpoint: &'a Endpoint) -> Self {
        let stats = endpoint.stats();
        let (success, clear) = stats.rates();
        let (success, clear) = (success.max(LEAST_SUCCESS), clear.max(LEAST_SUCCESS));
        // Weight 0 loses against any other, and two of them can still be compared.
        let weight = f64::from(endpoint.instance().weight).max(1e-6);
        let latency = stats.latency_micros();
        Self {
            stats,
            latency: (!latency.is_nan()).then_some(latency.max(LEAST_LATENCY)),
            in_flight: f64::from(stats.in_flight()),
            // The call whose answer told it is over.
            reported: f64::from(stats.reported_load().saturating_sub(1)),
            weight,
            merit: success * success * success,
            clear,
        }
    }

    /// What it has to do, this call included.
    fn load(&self, rival: &Self, now: Instant) -> f64 {
        match (self.latency, rival.latency) {
            (Some(latency), Some(_)) => self.in_flight + self.believed(latency, rival, now) + 1.0,
            (Some(_), None) => self.told(),
            (None, Some(_)) => rival.told() * (self.in_flight + 1.0) / 2.0,
            (None, None) => self.in_flight + 1.0,
        }
    }

    fn told(&self) -> f64 {
        self.in_flight + self.reported + 1.0
    }

    /// What it reported as far as that is fresh, and for the rest what it would have if both did the
    /// same for their weight.
    fn believed(&self, latency: f64, rival: &Self, now: Instant) -> f64 {
        if self.reported * rival.weight == rival.reported * self.weight {
            return self.reported;
        }
        let even = (self.reported + rival.reported * self.weight / rival.weight) / 2.0;
        let age = self.stats.since_heard(now).as_secs_f64() * 1e6;
        even + (self.reported - even) * latency / (latency + age)
    }

    /// Whether nobody is known to have anything in flight there.
    fn is_idle(&self) -> bool {
        self.in_flight == 0.0 && self.reported == 0.0
    }

    /// What its work is divided by, beside its weight. Ambiguous answers count only against the rival.
    fn merit_beside(&self, rival: &Self) -> f64 {
        let expected = rival.clear / ALIKE;
        if self.clear >= expected {
            return self.merit;
        }
        let ratio = self.clear / expected;
        self.merit * ratio * ratio * ratio
    }

    fn slowness(&self, rival: &Self, is_idle: bool) -> f64 {
        match (self.latency, rival.latency) {
            (Some(latency), Some(other)) => {
                let other = if is_idle { other.max(IDLE_LATENCY) } else { other };
                if latency > ALIKE * other { latency / (ALIKE * other) } else { 1.0 }
            }
            _ => 1.0,
        }
    }
}

/// A number from 0 up to, and not including, 1.
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
