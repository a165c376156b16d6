//! When an endpoint counts as an outlier, and what becomes of it.

use std::time::Duration;

/// When an endpoint counts as an outlier, and what becomes of it.
///
/// An ejected endpoint gets no calls while another is usable. Once its time is over it is probed
/// ([`Probe`](super::Probe)), by a ping and not by a user's call; an answer takes it back, slowly.
/// Without a probe the time alone does.
///
/// What the service itself refuses for lack of capacity, what the caller gave up, what was never sent and
/// answers about the request (NotFound and the like) do not count against an endpoint. Answers of kind
/// Unknown and DeadlineExceeded count in the share of successes alone.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OutlierEjection {
    /// Failures and timeouts in a row that eject; 0: none do. Default: 5 (Envoy's
    /// `consecutive_5xx`).
    pub consecutive_failures: u32,
    /// An endpoint is ejected if its share of successes in an interval is less than this many times
    /// the mean of the others'; 0: never. If all fail alike, none stands out. Default: 0.5 (ours:
    /// Envoy and gRPC compare with the standard deviation, which needs five hosts, and three are a
    /// service here).
    pub success_ratio: f64,
    /// How many attempts of an interval make a share that counts. Default: 50 (Envoy's
    /// `failure_percentage_request_volume`).
    pub min_calls: u64,
    /// Over which time shares are taken; each without an ejection forgets one of the doublings
    /// of `base_time`. Default: 10 s (Envoy, gRPC).
    pub interval: Duration,
    /// How long a first ejection lasts, with a jitter of a fifth; doubled with each further one.
    /// Default: 3 s (Envoy has 30 s; here a ping and a slow start stand before the first call).
    pub base_time: Duration,
    /// How long an ejection lasts at most. Default: 60 s (Envoy has 300 s).
    pub max_time: Duration,
    /// How soon a probe that was not answered is followed by another. Default: 2 s.
    pub probe_interval: Duration,
    /// How long an answer to a probe may take. Default: 2 s, as for every ping.
    pub probe_timeout: Duration,
    /// Over which time an endpoint that was taken back comes to its full share of calls, from a
    /// tenth on. Default: 10 s (Envoy's `slow_start`, which has no default).
    pub slow_start: Duration,
    /// The share of the ready endpoints that may be ejected at once, rounded down to a number.
    /// Default: 0.5: one of two, one of three, none of one (Envoy and gRPC: a tenth, at least one).
    pub max_share: f64,
    /// If less than this share of the ready endpoints would stay usable, ejection is ignored and
    /// all are picked. Default: 0.5 (Envoy's panic threshold).
    pub panic_below: f64,
}

impl OutlierEjection {
    /// No endpoint is ejected for how calls to it go. One whose connection does not answer a ping
    /// still is.
    pub fn off() -> Self {
        Self { consecutive_failures: 0, success_ratio: 0.0, ..Self::default() }
    }

    /// All times that can be set.
    pub(crate) fn times(&mut self) -> [&mut Duration; 6] {
        [
            &mut self.interval,
            &mut self.base_time,
            &mut self.max_time,
            &mut self.probe_interval,
            &mut self.probe_timeout,
            &mut self.slow_start,
        ]
    }

    /// How many of so many ready endpoints may be ejected.
    pub(super) fn quota(&self, ready: usize) -> usize {
        (ready as f64 * self.max_share.clamp(0.0, 1.0)) as usize
    }

    /// How long the ejection that follows `level` earlier ones lasts, before jitter.
    pub(super) fn time(&self, level: u32) -> Duration {
        self.base_time.saturating_mul(2_u32.saturating_pow(level)).min(self.max_time)
    }
}

impl Default for OutlierEjection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            success_ratio: 0.5,
            min_calls: 50,
            interval: Duration::from_secs(10),
            base_time: Duration::from_secs(3),
            max_time: Duration::from_secs(60),
            probe_interval: Duration::from_secs(2),
            probe_timeout: Duration::from_secs(2),
            slow_start: Duration::from_secs(10),
            max_share: 0.5,
            panic_below: 0.5,
        }
    }
}
