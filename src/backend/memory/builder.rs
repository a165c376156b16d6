//! What can be set about a registry in memory.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::Instant;

use super::protection::Threshold;
use super::quota::Quota;
use super::store::{Limits, Store};
use super::{MemoryRegistry, Shared};
use crate::sync::Mutex;

/// Sets up a [`MemoryRegistry`].
#[derive(Clone, Debug)]
pub struct MemoryRegistryBuilder {
    limits: Limits,
}

impl MemoryRegistryBuilder {
    pub(super) fn new() -> Self {
        Self {
            limits: Limits {
                default_ttl: Some(Duration::from_secs(5 * 60)),
                sweep: Duration::from_millis(500),
                quota: Quota::default(),
                warming: false,
                protection: Threshold { min_leases: 20, share: 0.15 },
            },
        }
    }

    /// The lease of an entry that asks for none, and the most that any lease is granted. `None` or
    /// zero: an entry that asks for none never expires, and leases are capped by 24 h alone.
    /// Default: 5 min.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.limits.default_ttl = ttl;
        self
    }

    /// How long after its end an expired lease is noticed at the latest. Default: 500 ms.
    #[must_use]
    pub fn sweep(mut self, sweep: Duration) -> Self {
        self.limits.sweep = sweep;
        self
    }

    /// How many instances it takes, of all services and none; one more is refused as
    /// [`Full`](crate::registry::RegistryErrorKind::Full). Default: 100,000.
    #[must_use]
    pub fn max_instances(mut self, max: usize) -> Self {
        self.limits.quota.instances = max;
        self
    }

    /// How many instances may be registered from one address, behind a
    /// registry server. Default: 10,000.
    #[must_use]
    pub fn max_instances_per_host(mut self, max: usize) -> Self {
        self.limits.quota.per_host = max;
        self
    }

    /// How many instances may be registered with tokens of one name, behind a
    /// registry server. Default: 10,000.
    #[must_use]
    pub fn max_instances_per_token(mut self, max: usize) -> Self {
        self.limits.quota.per_token = max;
        self
    }

    /// How much all that is registered may take, in bytes, by an estimate: the texts, 512 for each
    /// instance and 64 for each entry of metadata. What is registered may be renewed all the same,
    /// and may shrink. Default: 256 MiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.limits.quota.bytes = bytes;
        self
    }

    /// Whether its answers are `warming` at first, because instances that registered with an
    /// earlier process may not have come back yet: for the largest TTL granted since the start, at
    /// least for 15 s, or the default TTL if that is less. It warms up again if a lease runs out and
    /// nobody was heard for half of its time, though another should have been. Default: false,
    /// since a registry within a process has no earlier one, and is reached by all.
    #[must_use]
    pub fn warming(mut self, warming: bool) -> Self {
        self.limits.warming = warming;
        self
    }

    /// From how many leases on, and from which share of them on (0 to 1), those that a sweep that
    /// came late finds run out are kept for up to one more TTL, as
    /// [`MemoryRegistry`] says under "Mass expiry". A share of 1 or more: never. Default: 20
    /// leases, more than 0.15 (Eureka evicts at most 15 % at once).
    #[must_use]
    pub fn protection(mut self, min_leases: usize, share: f64) -> Self {
        self.limits.protection = Threshold { min_leases, share };
        self
    }

    /// What it takes at most.
    #[cfg(feature = "http")]
    pub(in crate::backend) fn quota(&self) -> Quota {
        self.limits.quota.clone()
    }

    /// Makes the registry, with a new incarnation.
    pub fn build(self) -> MemoryRegistry {
        let millisecond = Duration::from_millis(1);
        // Bounded, so that no sum of a time and a duration overflows.
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let mut limits = self.limits;
        limits.sweep = limits.sweep.clamp(millisecond, year);
        limits.default_ttl =
            limits.default_ttl.filter(|ttl| !ttl.is_zero()).map(|ttl| ttl.clamp(millisecond, year));
        let sweep = limits.sweep;
        let rng = StdRng::from_rng(&mut rand::rng());
        MemoryRegistry {
            shared: Arc::new(Shared {
                store: Mutex::new(Store::new(limits, rng, Instant::now())),
                version: watch::Sender::new(0),
                sweep,
                is_sweeping: AtomicBool::new(false),
                sweeper: Mutex::new(None),
            }),
        }
    }
}
