//! The client's view of an instance: what it registered, and what calls to it have shown.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::EndpointStats;
use super::outlier::Outliers;
use crate::call::Stamp;
use crate::instance::{Health, Instance};

/// An instance and its live statistics. The statistics survive every new snapshot for as long as
/// one id stands at one address. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoint {
    instance: Arc<Instance>,
    stats: Arc<EndpointStats>,
    /// Missing from a list that does not prove it gone: picked last, and left out of broadcasts.
    doubtful: bool,
}

impl Endpoint {
    /// A new endpoint without history, outside of any resolver: nobody ejects it.
    pub fn new(instance: impl Into<Arc<Instance>>, now: Instant) -> Self {
        Self::among(Weak::new(), instance, now)
    }

    /// A new endpoint without history, whose failures are told to `outliers`.
    pub(super) fn among(
        outliers: Weak<Outliers>,
        instance: impl Into<Arc<Instance>>,
        now: Instant,
    ) -> Self {
        Self {
            instance: instance.into(),
            stats: Arc::new(EndpointStats::new(now, outliers)),
            doubtful: false,
        }
    }

    /// The same endpoint with a newer state of its instance; the statistics are kept.
    #[must_use]
    pub fn with_instance(&self, instance: impl Into<Arc<Instance>>) -> Self {
        Self { instance: instance.into(), stats: Arc::clone(&self.stats), doubtful: false }
    }

    /// The same endpoint, doubted or not.
    #[must_use]
    pub fn doubted(&self, doubtful: bool) -> Self {
        Self { doubtful, ..self.clone() }
    }

    /// What it registered.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// What calls to it have shown.
    pub fn stats(&self) -> &EndpointStats {
        &self.stats
    }

    /// Whether it is missing from the last list, which does not prove it gone.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Whether its owner lets it take calls: up, and no drain notice came.
    pub fn is_ready(&self) -> bool {
        self.instance.health == Health::Up && !self.stats.is_draining()
    }

    /// Whether a picker's choice of it stands: ready, neither doubted nor ejected, and not waiting
    /// to reconnect.
    pub fn is_usable(&self, now: Instant) -> bool {
        self.is_ready() && !self.doubtful && !self.stats.is_ejected() && !self.stats.in_backoff(now)
    }

    /// Whether both are the same process at the same address, whatever snapshots they come from.
    pub fn is(&self, other: &Endpoint) -> bool {
        Arc::ptr_eq(&self.stats, &other.stats)
    }

    /// What tells this endpoint from every other that is alive.
    pub(crate) fn key(&self) -> usize {
        self.stats.key()
    }

    /// Counts an attempt; the guard's end tells the statistics how it went.
    pub fn start(&self, now: Instant) -> InFlight {
        InFlight::new(Arc::clone(&self.stats), now)
    }

    /// [`start`](Self::start) for one who holds the endpoint all the while.
    pub(crate) fn count(&self, now: Instant) -> InFlight<&EndpointStats> {
        InFlight::new(&*self.stats, now)
    }
}

/// One attempt in flight. Dropped without an outcome it counts as abandoned, which blames nobody,
/// unless its time was over: then it is a timeout, whoever noticed it first.
#[derive(Debug)]
pub struct InFlight<S: Deref<Target = EndpointStats> = Arc<EndpointStats>> {
    stats: S,
    started: Stamp,
    until: Option<Instant>,
    /// Connecting was a part of it: its time is no latency.
    has_dialled: bool,
    ended: bool,
}

impl<S: Deref<Target = EndpointStats>> InFlight<S> {
    fn new(stats: S, now: Instant) -> Self {
        stats.start();
        Self { stats, started: Stamp::of(now), until: None, has_dialled: false, ended: false }
    }

    /// Names the time by which it was to be answered. Default: none.
    #[must_use]
    pub fn until(mut self, until: Instant) -> Self {
        self.until = Some(until);
        self
    }

    /// Says whether connecting was a part of it, so that its time is no latency. Default: no.
    #[must_use]
    pub fn dialled(mut self, has_dialled: bool) -> Self {
        self.has_dialled = has_dialled;
        self
    }

    /// Ends the attempt with its outcome.
    pub fn end(mut self, outcome: Outcome, now: Instant) {
        self.ended = true;
        match self.has_dialled {
            true => self.stats.end_after_dial(outcome, self.started, now),
            false => self.stats.end(outcome, self.started, now),
        }
    }
}

impl<S: Deref<Target = EndpointStats>> Drop for InFlight<S> {
    fn drop(&mut self) {
        if !self.ended {
            let now = Instant::now();
            let overdue = self.until.is_some_and(|until| now >= until);
            let outcome = if overdue { Outcome::Failed } else { Outcome::Abandoned };
            self.stats.end(outcome, self.started, now);
        }
    }
}

/// How an attempt ended, as far as the endpoint is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The service answered, be it with an error of its own.
    Succeeded {
        /// What the server said it had in flight.
        load: u32,
    },
    /// It refused the attempt for lack of capacity: it lives, and others may have more.
    Overloaded,
    /// It answered with an error that may be the request's, the caller's or its own (Unknown,
    /// DeadlineExceeded): counts only against the mean of the other endpoints.
    Ambiguous,
    /// There was no connection, and nothing was sent. Reconnecting is put off, which keeps calls
    /// away as an ejection would.
    Unreachable,
    /// The endpoint is to blame: no answer, unavailable, lost data, a defect.
    Failed,
    /// The caller left.
    Abandoned,
}

/// The endpoints of one snapshot, in an order that holds for its lifetime.
#[derive(Clone, Debug, Default)]
pub struct EndpointSet {
    endpoints: Vec<Endpoint>,
}

impl EndpointSet {
    /// A set of these endpoints.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self { endpoints }
    }

    /// How many there are, usable or not.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The endpoint at an index.
    pub fn at(&self, index: usize) -> Option<&Endpoint> {
        self.endpoints.get(index)
    }

    /// All endpoints, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Endpoint> {
        self.endpoints.iter()
    }
}

impl<'a> IntoIterator for &'a EndpointSet {
    type Item = &'a Endpoint;
    type IntoIter = std::slice::Iter<'a, Endpoint>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
