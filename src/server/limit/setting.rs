//! How many calls may a server be told to work on at once?

/// How many calls a server works on at once, all methods and connections together. A call beyond
/// that is turned away at once and is not started: ResourceExhausted, Rejected, so that its caller
/// may try another instance. There is no queue: what waits does so inside of the handlers that are
/// at work, and counts.
///
/// ```
/// use srpc::Server;
/// use srpc::server::{Adaptive, Concurrency};
///
/// let fixed = Server::new().concurrency(Concurrency::Fixed(200));
/// let adaptive = Server::new().concurrency(Adaptive::new().max(1000));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Concurrency {
    /// As many as the windows of all connections allow. The default: a limit that is guessed
    /// turns away calls that would have been answered.
    #[default]
    Unlimited,
    /// At most this many; 0 counts as 1.
    Fixed(usize),
    /// As many as can be worked on before they take noticeably longer than they do at low load.
    Adaptive(Adaptive),
}

impl Concurrency {
    /// An adaptive limit with its defaults.
    pub fn adaptive() -> Self {
        Self::Adaptive(Adaptive::new())
    }
}

impl From<Adaptive> for Concurrency {
    fn from(adaptive: Adaptive) -> Self {
        Self::Adaptive(adaptive)
    }
}

/// A limit that follows how long calls take, each compared with what its method takes at low load:
/// it rises while they take about as long, and falls when they take longer.
///
/// It suits handlers that slow down as more of them run: those that compute, or share a pool, a
/// disk or a database. Where a method's time says nothing about load, set a fixed limit or none.
#[derive(Clone, Debug, PartialEq)]
pub struct Adaptive {
    pub(super) min: usize,
    pub(super) max: usize,
    pub(super) initial: usize,
    pub(super) tolerance: f64,
}

impl Adaptive {
    /// The defaults.
    pub fn new() -> Self {
        Self { min: 10, max: 10_000, initial: 100, tolerance: 1.5 }
    }

    /// Sets the lowest limit; at least 1. To measure anew what calls take at low load, a server
    /// that turns calls away works on fewer for a moment. Default: 10.
    #[must_use]
    pub fn min(mut self, calls: usize) -> Self {
        self.min = calls;
        self
    }

    /// Sets the highest limit; never below the lowest. Default: 10,000.
    #[must_use]
    pub fn max(mut self, calls: usize) -> Self {
        self.max = calls;
        self
    }

    /// Sets the limit of a server that has just started. Default: 100.
    #[must_use]
    pub fn initial(mut self, calls: usize) -> Self {
        self.initial = calls;
        self
    }

    /// Sets how many times as long as at low load calls may take on average before the limit
    /// falls; at least 1.1. Default: 1.5.
    #[must_use]
    pub fn tolerance(mut self, times: f64) -> Self {
        self.tolerance = times;
        self
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Self::new()
    }
}
