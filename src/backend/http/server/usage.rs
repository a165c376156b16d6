//! What a connection is used for, and whether it may be evicted for another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::request::Parts;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::sync::Mutex;
use crate::transport::Evictable;

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

/// What a connection does, and since when.
pub(super) struct Usage {
    activity: Mutex<(Activity, Instant)>,
    lingers: AtomicBool,
    /// Told once, when another connection has its slot.
    pub(super) evicted: Notify,
}

impl Usage {
    pub(super) fn new() -> Self {
        let activity = Mutex::new((Activity::Opening, Instant::now()));
        Self { activity, lingers: AtomicBool::new(false), evicted: Notify::new() }
    }

    /// Notes what the connection does from now on.
    pub(super) fn begin(&self, activity: Activity) {
        *self.activity.lock() = (activity, Instant::now());
    }

    /// That of a request's connection. `None`: another server has accepted it.
    pub(super) fn of(parts: &Parts) -> Option<&Self> {
        parts.extensions.get::<Arc<Self>>().map(|usage| &**usage)
    }

    /// All that was written has been taken by the peer's side.
    pub(super) fn flushed(&self) {
        let mut activity = self.activity.lock();
        if activity.0 == Activity::Sending {
            *activity = (Activity::Idle, Instant::now());
        }
    }

    /// Whether a header, a body or a reader has kept it waiting.
    pub(super) fn is_stuck(&self) -> bool {
        let (activity, since) = *self.activity.lock();
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
        let (activity, since) = *self.activity.lock();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_costs_its_client_least_is_evicted_first() {
        let started = |activity| {
            let usage = Usage::new();
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
        // Only another activity starts the time anew: a byte now and then does not.
        all[0].flushed();
        assert_eq!(rank(&all[0]), Some(2));
        all[3].flushed();
        assert_eq!(rank(&all[3]), Some(3));
        all[3].set_lingers();
        assert_eq!(rank(&all[3]), Some(0));
    }
}
