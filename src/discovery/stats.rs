//! What is known of an endpoint from the calls made to it; survives every new snapshot.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::Outcome;

/// The time over which an observation loses all but 1/e of its weight (Finagle's Peak EWMA: 10 s).
const DECAY: Duration = Duration::from_secs(10);

/// Live statistics of one endpoint, readable at any time and shared by all snapshots that hold it.
#[derive(Debug)]
pub struct EndpointStats {
    /// Durations are counted from here, so that an instant fits an atomic.
    born: Instant,
    in_flight: AtomicU32,
    /// Microseconds, as the bits of an `f64`; NaN bits before the first observation.
    latency: AtomicU64,
    /// Share of attempts that succeeded lately, as the bits of an `f64`.
    success: AtomicU64,
    /// Microseconds since `born` of the last observation.
    observed: AtomicU64,
    /// What the server said was in flight when it last answered.
    load: AtomicU32,
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// Failures to connect since the last success.
    connect_failures: AtomicU32,
    /// Microseconds since `born` until which no connection will be tried; 0: none.
    retry_at: AtomicU64,
    draining: AtomicBool,
    ejected: AtomicBool,
}

impl EndpointStats {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            born: now,
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(f64::NAN.to_bits()),
            success: AtomicU64::new(1.0_f64.to_bits()),
            observed: AtomicU64::new(0),
            load: AtomicU32::new(0),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            connect_failures: AtomicU32::new(0),
            retry_at: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            ejected: AtomicBool::new(false),
        }
    }

    /// Attempts that this process has in flight there.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Attempts that the server said it had in flight, from all its clients, when it last answered.
    pub fn reported_load(&self) -> u32 {
        self.load.load(Relaxed)
    }

    /// The decaying mean of the latency; `None` before the first answer.
    pub fn latency(&self) -> Option<Duration> {
        let micros = f64::from_bits(self.latency.load(Relaxed));
        (!micros.is_nan()).then(|| Duration::from_secs_f64(micros / 1e6))
    }

    /// The decaying share of attempts that did not blame the endpoint, from 0 to 1; 1 at first.
    pub fn success_rate(&self) -> f64 {
        f64::from_bits(self.success.load(Relaxed))
    }

    /// How many attempts succeeded.
    pub fn succeeded(&self) -> u64 {
        self.succeeded.load(Relaxed)
    }

    /// How many attempts failed through the endpoint.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Whether a reconnect is put off until later than `now`.
    pub fn in_backoff(&self, now: Instant) -> bool {
        let retry_at = self.retry_at.load(Relaxed);
        retry_at != 0 && self.micros(now) < retry_at
    }

    /// How often connecting failed since it last succeeded.
    pub fn connect_failures(&self) -> u32 {
        self.connect_failures.load(Relaxed)
    }

    /// Whether the endpoint said on a connection that it is draining.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Whether it is ejected: suspected of being dead though its lease holds.
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    /// Says whether the endpoint is draining.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Relaxed);
    }

    /// Ejects the endpoint or takes it back.
    pub fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected, Relaxed);
    }

    /// A connection stands.
    pub fn connected(&self) {
        self.connect_failures.store(0, Relaxed);
        self.retry_at.store(0, Relaxed);
    }

    /// Connecting failed, and will not be tried again before `retry_at`.
    pub fn connect_failed(&self, retry_at: Instant) {
        self.connect_failures.fetch_add(1, Relaxed);
        self.retry_at.store(self.micros(retry_at).max(1), Relaxed);
    }

    /// No call but the one that dials shall choose it before `until`.
    pub(crate) fn put_off(&self, until: Instant) {
        self.retry_at.store(self.micros(until).max(1), Relaxed);
    }

    pub(super) fn start(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Concurrent observations may overwrite each other's weight; the mean tolerates a lost one,
    /// and a loop to prevent it would cost every call.
    pub(super) fn end(&self, outcome: Outcome, started: Instant, now: Instant) {
        self.in_flight.fetch_sub(1, Relaxed);
        let ok = match outcome {
            Outcome::Abandoned => return,
            Outcome::Succeeded { load } => {
                self.load.store(load, Relaxed);
                self.succeeded.fetch_add(1, Relaxed);
                true
            }
            Outcome::Failed => {
                self.failed.fetch_add(1, Relaxed);
                false
            }
        };
        let now_micros = self.micros(now);
        let before = self.observed.swap(now_micros, Relaxed);
        let since = now_micros.saturating_sub(before) as f64;
        // At least a tenth: ten calls in one instant must not all be forgotten.
        let weight = (1.0 - (-since / DECAY.as_micros() as f64).exp()).max(0.1);
        let success = self.success_rate();
        let target = if ok { 1.0 } else { 0.0 };
        self.success.store((success + (target - success) * weight).to_bits(), Relaxed);
        if ok {
            let latency = now.saturating_duration_since(started).as_micros() as f64;
            let mean = f64::from_bits(self.latency.load(Relaxed));
            // Peak: a slower answer counts at once, a faster one little by little.
            let mean = if mean.is_nan() || latency > mean {
                latency
            } else {
                mean + (latency - mean) * weight
            };
            self.latency.store(mean.to_bits(), Relaxed);
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.born).as_micros() as u64
    }
}
