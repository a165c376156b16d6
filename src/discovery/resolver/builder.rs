//! The settings of a resolver.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::shared::{Shared, Speaks};
use super::worker::Timing;
use super::{Handle, Resolver};
use crate::discovery::outlier::{Outliers, Probes};
use crate::discovery::{Discovery, OutlierEjection, Probe};
use crate::instance::ServiceName;
use crate::selector::{P2c, Selector};
use crate::sync::Mutex;

/// No interval is shorter: a mistaken zero must not become a hot loop.
const SHORTEST: Duration = Duration::from_millis(1);

/// No interval is longer, so that sums with instants never overflow.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes a [`Resolver`].
pub struct ResolverBuilder {
    service: ServiceName,
    discovery: Arc<dyn Discovery>,
    selector: Box<dyn Selector>,
    speaks: Speaks,
    zone: Option<String>,
    timing: Timing,
    lease: Duration,
    ejection: OutlierEjection,
    probe: Option<Arc<dyn Probe>>,
    seed: Option<u64>,
}

impl ResolverBuilder {
    pub(super) fn new(service: ServiceName, discovery: Arc<dyn Discovery>) -> Self {
        Self {
            service,
            discovery,
            selector: Box::new(P2c::new()),
            speaks: Box::new(|_| true),
            zone: None,
            timing: Timing {
                poll: Duration::from_secs(10),
                resync: Duration::from_secs(60),
                timeout: Duration::from_secs(10),
            },
            lease: Duration::from_secs(15),
            ejection: OutlierEjection::default(),
            probe: None,
            seed: None,
        }
    }

    /// Sets the policy. Default: [`P2c`].
    #[must_use]
    pub fn selector(mut self, selector: impl Selector) -> Self {
        self.selector = Box::new(selector);
        self
    }

    /// Sets how often a source that cannot be watched is asked, from 1 ms to a day; also the
    /// longest pause after an error. Default: 10 s.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.timing.poll = interval.clamp(SHORTEST, LONGEST);
        self
    }

    /// Sets how often a watched source is asked for its whole list, and one whose watch is
    /// unsupported for a watch; from 1 ms to a day. Default: 60 s.
    #[must_use]
    pub fn resync_interval(mut self, interval: Duration) -> Self {
        self.timing.resync = interval.clamp(SHORTEST, LONGEST);
        self
    }

    /// Sets how long one request to the source may take. Default: 10 s.
    #[must_use]
    pub fn resolve_timeout(mut self, timeout: Duration) -> Self {
        self.timing.timeout = timeout;
        self
    }

    /// Sets how long an endpoint must be missing without proof until it is believed to be gone: the
    /// time to live of its registration. Default: 15 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets the zone that this client runs in. Default: none.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets when endpoints are ejected for how calls to them go, and how they come back. Its times
    /// are taken to be 1 ms at least and a day at most. Default: [`OutlierEjection::default`].
    #[must_use]
    pub fn outlier_ejection(mut self, mut ejection: OutlierEjection) -> Self {
        for time in ejection.times() {
            *time = (*time).clamp(SHORTEST, LONGEST);
        }
        self.ejection = ejection;
        self
    }

    /// Sets how an ejected endpoint is asked whether it answers. Default: by a ping of a client
    /// that uses this resolver; without one, it is taken back once its time is over.
    #[must_use]
    pub fn probe(mut self, probe: impl Probe) -> Self {
        self.probe = Some(Arc::new(probe));
        self
    }

    /// Sets the seed of the jitter in intervals and pauses. Default: random.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets which protocols (`tcp`, `unix`, ...) the client can dial; instances of others are
    /// skipped and counted. Default: all.
    #[must_use]
    pub fn speaks(mut self, speaks: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.speaks = Box::new(speaks);
        self
    }

    /// Makes the resolver and starts its task, which asks the source at once. Outside of a tokio runtime
    /// its first caller within one starts the task.
    pub fn build(self) -> Resolver {
        let seed = self.seed.unwrap_or_else(rand::random);
        let shared = Arc::new(Shared::new(
            self.service,
            self.selector,
            self.speaks,
            self.zone,
            self.lease,
            Outliers::new(self.ejection, seed, Instant::now()),
            Probes::new(self.probe),
        ));
        let handle = Handle {
            shared,
            discovery: self.discovery,
            timing: self.timing,
            seed,
            task: Mutex::new(None),
        };
        if !handle.keep_running() {
            handle.shared.orphan();
        }
        Resolver { handle: Arc::new(handle) }
    }
}

impl fmt::Debug for ResolverBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolverBuilder")
            .field("service", &self.service)
            .field("zone", &self.zone)
            .field("timing", &self.timing)
            .field("lease", &self.lease)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}
