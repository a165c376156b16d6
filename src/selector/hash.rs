//! A policy that sends calls with one key to one endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::guarded::{is_open, shares};
use super::{PickContext, Picker, Selector};
use crate::call::hash_of;
use crate::discovery::EndpointSet;

/// Points on the ring for each unit of weight: shares are then off by a tenth or so.
const POINTS: u64 = 128;

/// The most points on the ring (3 MiB), unless 16 for each endpoint are more.
const MAX_POINTS: u64 = 262_144;
const MIN_POINTS_EACH: u64 = 16;

/// How many points one choice looks at.
const MAX_STEPS: usize = 256;

/// Of how many endpoints the load is read for one choice, on average.
const READS: usize = 16;

/// Sends calls with the same hash key to the same endpoint, within bounds: consistent hashing with
/// bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018).
///
/// Each endpoint has points on a ring, and a call belongs to the owner of the first point from its
/// key on. If that one is not usable, was tried before, or has more calls in flight than the bound
/// allows, the owner of the next point takes it. So one hot key cannot drown one server, and only
/// those keys move whose endpoint comes, goes or is full. Calls without a key go anywhere, by
/// weight.
///
/// The points come from the instances' ids alone, by a hash that does not change: clients agree,
/// whatever their builds, as far as they see the same instances and weights. An id that does not
/// survive a restart of its process moves its keys.
///
/// # The ring
/// An endpoint has 128 points for each unit of its weight. If that makes more than 262,144 points,
/// and more than 16 for each endpoint, all points are halved until it does not; each endpoint keeps
/// one at least. A choice looks at 256 points at most, and at as many from a random one; if none of
/// their owners may take the call, the framework lets any usable endpoint take it.
///
/// # The bound
/// An endpoint takes a call if it then has at most `bound` times the average of calls in flight, in
/// proportion to its weight, rounded up. The average is that of this client's own calls over the
/// usable endpoints. Of up to 16 endpoints it is read for each choice; of n endpoints for one
/// choice in n/16, at random, so that it lacks about one call for every 16 endpoints.
#[derive(Clone, Copy, Debug)]
pub struct ConsistentHash {
    bound: f64,
}

impl ConsistentHash {
    /// The policy with its defaults.
    pub fn new() -> Self {
        Self { bound: 1.25 }
    }

    /// Sets how many times the average of calls in flight an endpoint takes. A lower bound spreads
    /// calls more evenly and sends more of them away from their own endpoint; less than 1, or no
    /// number, is taken as 1, and `f64::INFINITY` is no bound. Default: 1.25.
    #[must_use]
    pub fn bound(mut self, factor: f64) -> Self {
        self.bound = factor.max(1.0);
        self
    }
}

impl Default for ConsistentHash {
    fn default() -> Self {
        Self::new()
    }
}

impl Selector for ConsistentHash {
    fn prepare(&self, endpoints: &Arc<EndpointSet>) -> Box<dyn Picker> {
        Box::new(Ring::new(endpoints, self.bound))
    }
}

struct Ring {
    bound: f64,
    /// In rising order; `owners` has the endpoint of each, apart so that a search reads less.
    points: Box<[u64]>,
    owners: Box<[u32]>,
    /// Each endpoint's weight; 0 if it is not on the ring.
    shares: Vec<u32>,
    /// Calls in flight for each unit of weight, this one included, as the bits of an `f64`; NaN
    /// bits before the first reading.
    average: AtomicU64,
}

impl Ring {
    fn new(endpoints: &EndpointSet, bound: f64) -> Self {
        let shares = shares(endpoints);
        let halvings = halvings(&shares);
        let mut ring: Vec<(u64, u32)> = Vec::new();
        for ((index, endpoint), share) in endpoints.iter().enumerate().zip(&shares) {
            let id = hash_of(endpoint.instance().id.as_str().as_bytes());
            ring.extend((0..points_of(*share, halvings)).map(|n| (point(id, n), index as u32)));
        }
        ring.sort_unstable();
        Self {
            bound,
            points: ring.iter().map(|(point, _)| *point).collect(),
            owners: ring.iter().map(|(_, owner)| *owner).collect(),
            shares,
            average: AtomicU64::new(f64::NAN.to_bits()),
        }
    }

    /// The owner of the first point from `start` on that may take a call.
    fn walk(&self, start: usize, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        // Read only if it is needed: an idle endpoint always has room.
        let mut average = None;
        let (before, after) = self.owners.split_at_checked(start)?;
        after.iter().chain(before).take(MAX_STEPS).map(|owner| *owner as usize).find(|owner| {
            let Some(endpoint) = endpoints.at(*owner) else { return false };
            if !is_open(endpoint, cx) {
                return false;
            }
            let in_flight = endpoint.stats().in_flight();
            in_flight == 0 || {
                let average = *average.get_or_insert_with(|| self.average(endpoints, cx));
                let room = self.bound * average * f64::from(self.shares[*owner]);
                f64::from(in_flight) < room.ceil()
            }
        })
    }

    fn average(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> f64 {
        let average = f64::from_bits(self.average.load(Relaxed));
        if !average.is_nan() && cx.random_below(endpoints.len()) >= READS {
            return average;
        }
        let (mut calls, mut weight) = (1, 0);
        for (endpoint, share) in endpoints.iter().zip(&self.shares) {
            if *share > 0 && endpoint.is_usable(cx.now) {
                calls += u64::from(endpoint.stats().in_flight());
                weight += u64::from(*share);
            }
        }
        let average = calls as f64 / weight as f64;
        self.average.store(average.to_bits(), Relaxed);
        average
    }
}

impl Picker for Ring {
    fn pick(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        let anywhere = || cx.random_below(self.owners.len());
        let Some(key) = cx.hash_key else { return self.walk(anywhere(), endpoints, cx) };
        // Hashed again: a key may be a small number that somebody set by hand.
        let key = hash_of(&key.to_le_bytes());
        let start = self.points.partition_point(|point| *point < key);
        // A key so hot that it has filled all that follows may not fill those beyond the bound.
        self.walk(start, endpoints, cx).or_else(|| self.walk(anywhere(), endpoints, cx))
    }
}

/// How often the points of all endpoints are halved for the ring to stay within its size.
///
/// Halved, and not scaled to fit: then the number of an endpoint's points hardly ever changes when
/// another one comes, and fewer points are always the first ones of more.
fn halvings(shares: &[u32]) -> u32 {
    let most = MAX_POINTS.max(MIN_POINTS_EACH * shares.len() as u64);
    let points = POINTS * shares.iter().map(|share| u64::from(*share)).sum::<u64>();
    (0..u64::BITS).find(|halvings| points >> halvings <= most).unwrap_or(0)
}

fn points_of(share: u32, halvings: u32) -> u64 {
    ((u64::from(share) * POINTS) >> halvings).max(u64::from(share.min(1)))
}

fn point(id: u64, number: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    hash_of(&bytes)
}

#[cfg(test)]
mod tests;
