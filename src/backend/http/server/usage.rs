//! What a connection is used for, and whether it may be evicted for another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::request::Parts;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::sync::Mutex;
use crate::transport::{CHARGE_STEP, Evictable, HoldsMemory, Stuck};

/// An idle connection that was used within this time is evicted only if no other is idle; one that is
/// not idle counts as stuck after this time.
const RECENT: Duration = Duration::from_secs(1);

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Its first request has not come: a handshake of TLS, or a header.
    Opening,
    /// A request is answered, or a long poll held.
    Working,
    /// The body of that request is on its way.
    Receiving,
    /// An answer is being written.
    Sending,
    /// Between two requests.
    Idle,
}

/// What a connection does, and since when it has moved nothing worth mentioning.
pub(super) struct Usage {
    host: Arc<str>,
    progress: Mutex<Progress>,
    lingers: AtomicBool,
    /// The bytes of its requests and answers that are charged.
    held: AtomicUsize,
    /// Told once, when another connection has its slot.
    pub(super) evicted: Notify,
}

#[derive(Clone, Copy)]
struct Progress {
    activity: Activity,
    /// When it began, or a step of bytes had last moved.
    since: Instant,
    /// The bytes that have moved since.
    moved: usize,
}

impl Progress {
    fn new(activity: Activity) -> Self {
        Self { activity, since: Instant::now(), moved: 0 }
    }
}

impl Usage {
    pub(super) fn new(host: &Arc<str>) -> Self {
        Self {
            host: Arc::clone(host),
            progress: Mutex::new(Progress::new(Activity::Opening)),
            lingers: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            evicted: Notify::new(),
        }
    }

    /// Notes what the connection does from now on.
    pub(super) fn begin(&self, activity: Activity) {
        *self.progress.lock() = Progress::new(activity);
    }

    /// Bytes of a body have come, or of an answer gone. A byte now and then is no progress.
    pub(super) fn moved(&self, bytes: usize) {
        let mut progress = self.progress.lock();
        progress.moved += bytes;
        if progress.moved >= CHARGE_STEP {
            *progress = Progress::new(progress.activity);
        }
    }

    /// A request holds so many bytes instead of those.
    pub(super) fn holds(&self, before: usize, now: usize) {
        if now >= before {
            self.held.fetch_add(now - before, Relaxed);
        } else {
            self.held.fetch_sub(before - now, Relaxed);
        }
    }

    /// That of a request's connection. `None`: another server has accepted it.
    pub(super) fn of(parts: &Parts) -> Option<&Self> {
        parts.extensions.get::<Arc<Self>>().map(|usage| &**usage)
    }

    /// All that was written has been taken by the peer's side.
    pub(super) fn flushed(&self) {
        let mut progress = self.progress.lock();
        if progress.activity == Activity::Sending {
            *progress = Progress::new(Activity::Idle);
        }
    }

    /// Whether a header, a body or a reader has kept it waiting.
    pub(super) fn is_stuck(&self) -> bool {
        let Progress { activity, since, .. } = *self.progress.lock();
        let is_waiting = !matches!(activity, Activity::Idle | Activity::Working);
        is_waiting && since.elapsed() >= RECENT
    }

    /// The connection closes behind a request that was not read whole.
    pub(super) fn set_lingers(&self) {
        self.lingers.store(true, Relaxed);
    }

    /// Whether bytes that nobody wants may be on their way when it closes.
    pub(super) fn lingers(&self) -> bool {
        self.lingers.load(Relaxed)
    }
}

impl Evictable for Usage {
    fn eviction_rank(&self, now: Instant) -> Option<(u8, Instant)> {
        let Progress { activity, since, .. } = *self.progress.lock();
        let is_recent = now.saturating_duration_since(since) < RECENT;
        let rank = match activity {
            Activity::Idle if self.lingers() => 0,
            Activity::Idle if !is_recent => 1,
            Activity::Opening if !is_recent => 2,
            Activity::Idle => 3,
            // These cost their clients a request.
            Activity::Receiving | Activity::Sending if !is_recent => 4,
            _ => return None,
        };
        Some((rank, since))
    }

    fn evict(&self) {
        self.evicted.notify_one();
    }
}

impl HoldsMemory for Usage {
    fn stuck(&self, now: Instant) -> Option<Stuck> {
        let Progress { activity, since, .. } = *self.progress.lock();
        let moves = matches!(activity, Activity::Receiving | Activity::Sending);
        let held = self.held.load(Relaxed);
        moves.then(|| Stuck::new(&self.host, held, [(held, since)], now)).flatten()
    }

    fn close_for_memory(&self) {
        self.evict();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_costs_its_client_least_is_evicted_first() {
        let started = |activity| {
            let usage = Usage::new(&Arc::from("a"));
            usage.begin(activity);
            usage
        };
        let rank = |usage: &Usage| usage.eviction_rank(Instant::now()).map(|(rank, _)| rank);
        let all = [
            Activity::Opening,
            Activity::Working,
            Activity::Receiving,
            Activity::Sending,
            Activity::Idle,
        ]
        .map(started);
        assert_eq!(all.each_ref().map(rank), [None, None, None, None, Some(3)]);
        assert!(!all.iter().any(Usage::is_stuck));
        tokio::time::advance(RECENT).await;
        assert_eq!(all.each_ref().map(rank), [Some(2), None, Some(4), Some(4), Some(1)]);
        assert_eq!(all.each_ref().map(Usage::is_stuck), [true, false, true, true, false]);
        // Another activity starts the time anew, and a step of bytes; a byte now and then does not.
        all[2].moved(CHARGE_STEP - 1);
        assert!(all[2].is_stuck());
        all[2].moved(1);
        assert!(!all[2].is_stuck());
        all[0].flushed();
        assert_eq!(rank(&all[0]), Some(2));
        all[3].flushed();
        assert_eq!(rank(&all[3]), Some(3));
        all[3].set_lingers();
        assert_eq!(rank(&all[3]), Some(0));
    }
}
