//! The door through which a policy chooses an endpoint for each call.

mod from_fn;
mod guarded;
mod hash;
mod least_in_flight;
mod p2c;
mod random;
mod round_robin;
mod zone_first;

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

pub use self::from_fn::{FromFn, from_fn};
pub use self::guarded::guarded_pick;
pub use self::hash::ConsistentHash;
pub use self::least_in_flight::LeastInFlight;
pub use self::p2c::P2c;
pub use self::random::Random;
pub use self::round_robin::RoundRobin;
pub use self::zone_first::ZoneFirst;
use crate::discovery::{Endpoint, EndpointSet};

/// A policy: how to choose among endpoints.
///
/// # Contract
/// `prepare` runs once per change of membership, weight or health, off the call path: it may build
/// tables. It must not call services or block.
///
/// # Implementing
/// A closure is a selector through [`from_fn`].
pub trait Selector: Send + Sync + 'static {
    /// The policy, prepared for one snapshot.
    fn prepare(&self, endpoints: &Arc<EndpointSet>) -> Box<dyn Picker>;
}

impl<S: Selector + ?Sized> Selector for Arc<S> {
    fn prepare(&self, endpoints: &Arc<EndpointSet>) -> Box<dyn Picker> {
        (**self).prepare(endpoints)
    }
}

/// A policy prepared for one snapshot; chooses for each attempt.
///
/// # Contract
/// `pick` is synchronous, takes no lock and allocates nothing. It answers with an index into
/// `endpoints`, which is the set it was prepared for, or `None` if it has no choice to offer.
///
/// # What it need not do
/// The framework refuses an endpoint that was tried before, or is ejected, doubted, draining,
/// unready, waiting to reconnect, of weight 0, or out of range: it asks again, three times at most,
/// and then chooses a usable one itself, at random by weight. A picker may ignore all of that.
pub trait Picker: Send + Sync {
    /// Chooses an endpoint.
    fn pick(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize>;
}

/// What a picker may want to know of the attempt that it chooses for.
#[derive(Debug)]
pub struct PickContext<'a> {
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The endpoints tried for this call before.
    pub tried: &'a [Endpoint],
    /// What consistent hashing hashes; `None` if the call named nothing.
    pub hash_key: Option<u64>,
    /// The client's own zone, if it was told one.
    pub zone: Option<&'a str>,
    /// The time of this attempt.
    pub now: Instant,
    random: Cell<u64>,
}

impl<'a> PickContext<'a> {
    /// A context for a first attempt at `now`; `seed` decides what [`random`](Self::random) yields.
    pub fn new(now: Instant, seed: u64) -> Self {
        Self { attempt: 1, tried: &[], hash_key: None, zone: None, now, random: Cell::new(seed) }
    }

    /// Sets the attempt's number and the endpoints tried before.
    #[must_use]
    pub fn retry(mut self, attempt: u32, tried: &'a [Endpoint]) -> Self {
        self.attempt = attempt;
        self.tried = tried;
        self
    }

    /// Sets the hash key.
    #[must_use]
    pub fn hash_key(mut self, key: Option<u64>) -> Self {
        self.hash_key = key;
        self
    }

    /// Sets the client's zone.
    #[must_use]
    pub fn zone(mut self, zone: Option<&'a str>) -> Self {
        self.zone = zone;
        self
    }

    /// The next 64 random bits (SplitMix64): not for secrets, and free of locks.
    pub fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A random number below `bound`, which must not be 0 (0 is answered then).
    pub fn random_below(&self, bound: usize) -> usize {
        // The high half of a product (Lemire): the bias is below bound / 2^64.
        ((u128::from(self.random()) * bound as u128) >> 64) as usize
    }
}

impl fmt::Debug for dyn Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Selector")
    }
}

impl fmt::Debug for dyn Picker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Picker")
    }
}
