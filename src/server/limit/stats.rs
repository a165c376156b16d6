//! What can be read of a server's load?

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::instance::ServiceName;
use crate::registry::{HealthOverride, StatsReader};

/// A server's load, readable while it serves. Cheap to clone; clones read the same server.
#[derive(Clone, Debug, Default)]
pub struct ServerStats(pub(in crate::server) Arc<Load>);

impl ServerStats {
    /// Calls at work, over all connections: started, and not ended.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Relaxed)
    }

    /// How many calls may be at work; `None` if there is no limit, or the server does not serve
    /// yet.
    pub fn limit(&self) -> Option<usize> {
        Some(self.0.limit.load(Relaxed)).filter(|limit| *limit != usize::MAX)
    }

    /// What operators say of this server's instances, by service: the server goes on serving, and its
    /// clients are told by the registry. Empty without a registrar, and before it serves.
    pub fn overrides(&self) -> Vec<(ServiceName, HealthOverride)> {
        self.0.registrations.get().map(|reader| reader.stats().overrides).unwrap_or_default()
    }

    /// Calls turned away because of the limit, since the server started.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Relaxed)
    }
}

/// The numbers behind [`ServerStats`], which every call reads or writes.
#[derive(Debug)]
pub(in crate::server) struct Load {
    pub(in crate::server) in_flight: AtomicUsize,
    /// `usize::MAX`: none.
    pub(in crate::server) limit: AtomicUsize,
    pub(in crate::server) rejected: AtomicU64,
    pub(in crate::server) registrations: OnceLock<StatsReader>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
            rejected: AtomicU64::new(0),
            registrations: OnceLock::new(),
        }
    }
}
