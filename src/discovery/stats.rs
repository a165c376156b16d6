//! What is known of an endpoint from the calls made to it; survives every new snapshot.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::Outcome;
use super::outlier::Outliers;
use crate::call::{Stamp, after};

/// The time over which an observation loses all but 1/e of its weight, in microseconds (Finagle's Peak
/// EWMA: 10 s).
const DECAY: f64 = 10_000_000.0;
/// What an observation weighs at least: ten calls in one instant must not all be forgotten.
const LEAST_WEIGHT: f64 = 0.1;
/// The same for ambiguous answers: where all endpoints give some, their rates must differ by little.
const LEAST_CLEAR_WEIGHT: f64 = 1.0 / 32.0;
/// What an endpoint that comes back takes of its calls at first (Envoy's `min_weight_percent`).
const LEAST_SHARE: f64 = 0.1;

/// Live statistics of one endpoint, readable at any time and shared by all snapshots that hold it.
#[derive(Debug)]
pub struct EndpointStats {
    in_flight: Apart,
    /// Microseconds, as the bits of an `f64`; NaN bits before the first observation.
    latency: AtomicU64,
    /// Share of attempts that succeeded lately, as the bits of an `f64`.
    success: AtomicU64,
    /// Share of answers that were not ambiguous lately, as the bits of an `f64`.
    clear: AtomicU64,
    /// The stamp of the last observation.
    observed: AtomicU64,
    /// What the server said was in flight when it last answered.
    load: AtomicU32,
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// Dials that failed since a connection was last of use.
    connect_failures: AtomicU32,
    /// The stamp until which no connection will be tried; 0: none.
    retry_at: AtomicU64,
    /// A newer registration said "up" since dials failed: the next one need not wait.
    is_renewed: AtomicBool,
    draining: AtomicBool,
    /// What a pick reads; the table of outliers decides it.
    ejected: AtomicBool,
    /// How many connections wait for the answer to a ping that is late.
    suspects: AtomicU32,
    ejections: AtomicU32,
    /// Failures since the last success.
    row: AtomicU32,
    overloaded: AtomicU64,
    /// Succeeded and failed as of the last look at shares.
    looked: [AtomicU64; 2],
    /// The stamp at which it was last taken back; 0: never.
    slow_from: AtomicU64,
    /// Until when it comes back slowly; 0: it does not.
    slow_until: AtomicU64,
    /// Who is told of failures; nobody for an endpoint outside of a resolver.
    outliers: Weak<Outliers>,
}

/// Changed by every call, and so on cache lines apart from what is only read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart(AtomicU32);

/// The answers that one read of a connection brought: counted together, they cost one observation.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// All of them; each ends an attempt.
    ended: u32,
    /// Those that are observed.
    counted: u32,
    load: u32,
    /// Microseconds.
    total: u64,
    slowest: u64,
}

impl EndpointStats {
    pub(crate) fn new(now: Instant, outliers: Weak<Outliers>) -> Self {
        Self {
            in_flight: Apart::default(),
            latency: AtomicU64::new(f64::NAN.to_bits()),
            success: AtomicU64::new(1.0_f64.to_bits()),
            clear: AtomicU64::new(1.0_f64.to_bits()),
            observed: AtomicU64::new(micros(now)),
            load: AtomicU32::new(0),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            connect_failures: AtomicU32::new(0),
            retry_at: AtomicU64::new(0),
            is_renewed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            ejected: AtomicBool::new(false),
            suspects: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            row: AtomicU32::new(0),
            overloaded: AtomicU64::new(0),
            looked: [AtomicU64::new(0), AtomicU64::new(0)],
            slow_from: AtomicU64::new(0),
            slow_until: AtomicU64::new(0),
            outliers,
        }
    }

    /// Attempts that this process has in flight there.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.0.load(Relaxed)
    }

    /// Attempts that the server said it had in flight, from all its clients, when it last answered.
    pub fn reported_load(&self) -> u32 {
        self.load.load(Relaxed)
    }

    /// How long ago an attempt there last ended, well or not: so old are the latency and the reported
    /// load. If none has, since it is known.
    pub fn since_heard(&self, now: Instant) -> Duration {
        let observed = self.observed.load(Relaxed);
        Duration::from_micros(micros(now).saturating_sub(observed))
    }

    /// The decaying mean of the latency; `None` before the first answer.
    pub fn latency(&self) -> Option<Duration> {
        let micros = self.latency_micros();
        (!micros.is_nan()).then(|| Duration::from_secs_f64(micros / 1e6))
    }

    /// The same in microseconds; NaN before the first answer.
    pub(crate) fn latency_micros(&self) -> f64 {
        f64::from_bits(self.latency.load(Relaxed))
    }

    /// The decaying share of attempts that did not blame the endpoint, from 0 to 1; 1 at first.
    /// Ambiguous answers (Unknown, DeadlineExceeded) are counted among those that did.
    pub fn success_rate(&self) -> f64 {
        let (success, clear) = self.rates();
        success * clear
    }

    /// The decaying shares of attempts that did not fail, and of answers that were not ambiguous.
    pub(crate) fn rates(&self) -> (f64, f64) {
        let rate = |bits: &AtomicU64| f64::from_bits(bits.load(Relaxed));
        (rate(&self.success), rate(&self.clear))
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
        retry_at != 0 && micros(now) < retry_at && !self.is_renewed.load(Relaxed)
    }

    /// How many dials in a row failed. A connection that ended within 10 s without a reply or a pong
    /// counts as a failed dial.
    pub fn connect_failures(&self) -> u32 {
        self.connect_failures.load(Relaxed)
    }

    /// Whether the endpoint said on a connection that it is draining.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// How many attempts it refused for lack of capacity.
    pub fn overloaded(&self) -> u64 {
        self.overloaded.load(Relaxed)
    }

    /// How many attempts in a row have failed through the endpoint.
    pub fn consecutive_failures(&self) -> u32 {
        self.row.load(Relaxed)
    }

    /// Whether it is ejected: it gets no calls while another is usable, though its lease holds.
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    /// How often it was ejected for how calls to it went.
    pub fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }

    /// Whether a connection to it waits for the answer to a ping that is late.
    pub fn is_suspect(&self) -> bool {
        self.suspects.load(Relaxed) > 0
    }

    /// The share of its calls that an endpoint takes which comes back from an ejection, from 0.1 to
    /// 1; `None` if it takes all.
    pub fn slow_start(&self, now: Instant) -> Option<f64> {
        let until = self.slow_until.load(Relaxed);
        if until == 0 {
            return None;
        }
        let (from, now) = (self.slow_from.load(Relaxed), micros(now));
        if now >= until || until <= from {
            self.slow_until.store(0, Relaxed);
            return None;
        }
        Some((now.saturating_sub(from) as f64 / (until - from) as f64).max(LEAST_SHARE))
    }

    /// Says whether the endpoint is draining.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Relaxed);
    }

    /// A connection waits for the answer to a ping that is late. Each such word is taken back by a
    /// [`trust`](Self::trust).
    pub fn suspect(&self, now: Instant) {
        if self.add_suspect() {
            self.tell_suspicion(false, now);
        }
    }

    /// The connection that suspected it has `heard` of it, or has ended without.
    pub fn trust(&self, heard: bool, now: Instant) {
        if self.remove_suspect() {
            self.tell_suspicion(heard, now);
        }
    }

    /// Counts a suspicion. True: it is the first, and the outlier table must be
    /// [told](Self::tell_suspicion) once no lock is held.
    pub(crate) fn add_suspect(&self) -> bool {
        self.suspects.fetch_add(1, Relaxed) == 0
    }

    /// Takes a suspicion back. True: it was the last, and the outlier table must be told as well.
    pub(crate) fn remove_suspect(&self) -> bool {
        self.suspects.fetch_sub(1, Relaxed) == 1
    }

    /// Tells the outlier table, which reads the count itself: the order of two notices does not matter.
    pub(crate) fn tell_suspicion(&self, heard: bool, now: Instant) {
        if let Some(outliers) = self.outliers.upgrade() {
            outliers.suspected(self, heard, now);
        }
    }

    /// Whether picks pass it by.
    pub(crate) fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected, Relaxed);
    }

    /// What tells it from every other that is alive.
    pub(crate) fn key(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    pub(super) fn count_ejection(&self) {
        self.ejections.fetch_add(1, Relaxed);
    }

    /// Forgets the failures in a row.
    pub(super) fn forgive(&self) {
        // A store would take the line from all who read it.
        if self.row.load(Relaxed) != 0 {
            self.row.store(0, Relaxed);
        }
    }

    /// Forgets what was bad, and comes back slowly.
    pub(super) fn begin_anew(&self, now: Instant, slow_start: Duration) {
        self.forgive();
        self.since_last_look();
        self.success.store(1.0_f64.to_bits(), Relaxed);
        self.clear.store(1.0_f64.to_bits(), Relaxed);
        self.latency.store(f64::NAN.to_bits(), Relaxed);
        self.slow_from.store(micros(now), Relaxed);
        self.slow_until.store(micros(after(now, slow_start)), Relaxed);
    }

    /// Successes and failures since this was asked last.
    pub(super) fn since_last_look(&self) -> (u64, u64) {
        let (succeeded, failed) = (self.succeeded(), self.failed());
        let [seen_succeeded, seen_failed] = &self.looked;
        let before = (seen_succeeded.swap(succeeded, Relaxed), seen_failed.swap(failed, Relaxed));
        (succeeded - before.0, failed - before.1)
    }

    /// A connection is of use, for a reply or a pong came: ends the backoff and forgets the failures.
    pub fn connected(&self) {
        self.connect_failures.store(0, Relaxed);
        self.handshake_done();
    }

    /// A connection stands, and has shown nothing yet: calls may use it, earlier failures still count.
    /// Returns the stamp at which the backoff would have ended, 0 if there was none.
    pub(crate) fn handshake_done(&self) -> u64 {
        self.is_renewed.store(false, Relaxed);
        self.retry_at.swap(0, Relaxed)
    }

    /// Lets a backoff that a handshake ended go on; false if it would be over by now.
    pub(crate) fn resume_backoff(&self, retry_at: u64, now: Instant) -> bool {
        let is_ahead = micros(now) < retry_at;
        if is_ahead {
            self.retry_at.store(retry_at, Relaxed);
        }
        is_ahead
    }

    /// A newer registration says that it is up: one dial need not wait for the backoff.
    pub(crate) fn renew(&self) {
        if self.connect_failures() > 0 {
            self.is_renewed.store(true, Relaxed);
        }
    }

    /// Takes what [`renew`](Self::renew) gave, for one dial. The backoff of before holds again.
    pub(crate) fn take_renewal(&self) -> bool {
        self.is_renewed.load(Relaxed) && self.is_renewed.swap(false, Relaxed)
    }

    /// Connecting failed, and will not be tried again before `retry_at`.
    pub fn connect_failed(&self, retry_at: Instant) {
        self.connect_failures.fetch_add(1, Relaxed);
        self.retry_at.store(micros(retry_at), Relaxed);
    }

    /// No call but the one that dials shall choose it before `until`.
    pub(crate) fn put_off(&self, until: Instant) {
        self.retry_at.store(micros(until), Relaxed);
    }

    pub(crate) fn start(&self) {
        self.in_flight.0.fetch_add(1, Relaxed);
    }

    /// Concurrent observations may overwrite each other's weight; the mean tolerates a lost one,
    /// and a loop to prevent it would cost every call.
    pub(crate) fn end(&self, outcome: Outcome, started: Stamp, now: Instant) {
        self.count(outcome, started, now, true);
    }

    /// [`end`](Self::end) of an attempt that had to connect first: how long it took is no latency.
    pub(super) fn end_after_dial(&self, outcome: Outcome, started: Stamp, now: Instant) {
        self.count(outcome, started, now, false);
    }

    fn count(&self, outcome: Outcome, started: Stamp, now: Instant, is_measured: bool) {
        self.in_flight.0.fetch_sub(1, Relaxed);
        // What was sent before the endpoint was taken back tells of the time that is to be forgotten.
        if started.micros() < self.slow_from.load(Relaxed) {
            return;
        }
        let target = match outcome {
            Outcome::Abandoned => return,
            Outcome::Succeeded { load } => {
                self.load.store(load, Relaxed);
                self.succeeded.fetch_add(1, Relaxed);
                self.forgive();
                1.0
            }
            Outcome::Overloaded => {
                self.overloaded.fetch_add(1, Relaxed);
                self.forgive();
                // Half a failure: it has less room than others, and some all the same. As a whole one
                // it would drive all clients away from it together, and together back.
                0.5
            }
            // Neither a failure in a row nor the end of one, and its speed says nothing.
            Outcome::Ambiguous => {
                self.failed.fetch_add(1, Relaxed);
                let since = self.observe(Stamp::of(now));
                move_rate(&self.clear, 0.0, || weight(since, 1, LEAST_CLEAR_WEIGHT));
                return;
            }
            Outcome::Unreachable => {
                self.failed.fetch_add(1, Relaxed);
                0.0
            }
            Outcome::Failed => {
                self.failed.fetch_add(1, Relaxed);
                let row = self.row.fetch_add(1, Relaxed).saturating_add(1);
                if let Some(outliers) = self.outliers.upgrade() {
                    outliers.failed(self, row, now);
                }
                0.0
            }
        };
        let now = Stamp::of(now);
        let since = self.observe(now);
        move_rate(&self.success, target, || weight(since, 1, LEAST_WEIGHT));
        if matches!(outcome, Outcome::Succeeded { .. }) {
            move_rate(&self.clear, 1.0, || weight(since, 1, LEAST_CLEAR_WEIGHT));
            if is_measured {
                let latency = now.since(started);
                self.move_latency(latency, latency as f64, weight(since, 1, LEAST_WEIGHT));
            }
        }
    }

    /// An answer came, at `now`, to an attempt that was started at `started`. Nothing is observed
    /// before [`answered`](Self::answered).
    pub(crate) fn add(&self, answers: &mut Answers, load: u32, started: Stamp, now: Stamp) {
        answers.ended += 1;
        // What was sent before the endpoint was taken back tells of the time that is to be forgotten.
        if started.micros() >= self.slow_from.load(Relaxed) {
            let latency = now.since(started);
            answers.counted += 1;
            answers.load = load;
            answers.total += latency;
            answers.slowest = answers.slowest.max(latency);
        }
    }

    /// Ends the attempts whose answers were added, as [`end`](Self::end) would one by one.
    pub(crate) fn answered(&self, answers: &Answers, now: Stamp) {
        if answers.ended > 0 {
            self.in_flight.0.fetch_sub(answers.ended, Relaxed);
        }
        if answers.counted > 0 {
            self.load.store(answers.load, Relaxed);
            self.succeeded.fetch_add(answers.counted.into(), Relaxed);
            self.forgive();
            let (count, since) = (answers.counted, self.observe(now));
            move_rate(&self.success, 1.0, || weight(since, count, LEAST_WEIGHT));
            move_rate(&self.clear, 1.0, || weight(since, count, LEAST_CLEAR_WEIGHT));
            let mean = answers.total as f64 / f64::from(count);
            self.move_latency(answers.slowest, mean, weight(since, count, LEAST_WEIGHT));
        }
    }

    /// Takes note of an observation at `now`; how long ago the one before it was, in microseconds.
    fn observe(&self, now: Stamp) -> u64 {
        let before = self.observed.load(Relaxed);
        self.observed.store(now.micros(), Relaxed);
        now.micros().saturating_sub(before)
    }

    /// Peak: a slower answer counts at once, faster ones little by little. In microseconds.
    fn move_latency(&self, slowest: u64, mean: f64, weight: f64) {
        let slowest = slowest as f64;
        let before = f64::from_bits(self.latency.load(Relaxed));
        let after = if before.is_nan() || slowest > before {
            slowest
        } else {
            before + (mean - before) * weight
        };
        self.latency.store(after.to_bits(), Relaxed);
    }
}

fn micros(at: Instant) -> u64 {
    Stamp::of(at).micros()
}

/// Moves a decaying share, given as the bits of an `f64`, towards `target`.
fn move_rate(rate: &AtomicU64, target: f64, weight: impl FnOnce() -> f64) {
    let before = f64::from_bits(rate.load(Relaxed));
    if before != target {
        rate.store((before + (target - before) * weight()).to_bits(), Relaxed);
    }
}

/// What so many observations weigh together that come `since` microseconds after the one before them,
/// each at least `least`.
fn weight(since: u64, observations: u32, least: f64) -> f64 {
    let part = since as f64 * (1.0 / DECAY);
    // 1 - exp(-x) is less than x.
    let first = if part < least { least } else { (1.0 - (-part).exp()).max(least) };
    match observations {
        1 => first,
        n => 1.0 - (1.0 - first) * (1.0 - least).powi(n as i32 - 1),
    }
}
