//! What a connection is used for, and whether it may be evicted for another one.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::session::{Eviction, Session};
use crate::transport::{Evictable, HoldsMemory, Stuck};

/// How long a handshake, a frame or a client that does not read may stand still before it counts as
/// stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// How long a connection must have sent no whole frame before it counts as idle.
const IDLE_AFTER: Duration = Duration::from_secs(2);

/// A connection from when it was accepted.
pub(super) struct Usage {
    accepted: Instant,
    /// Set once hands are shaken.
    session: OnceLock<Arc<Session>>,
    is_evicted: AtomicBool,
    /// Told once, when another connection has its slot.
    pub(super) evicted: Notify,
}

impl Usage {
    pub(super) fn new() -> Self {
        Self {
            accepted: Instant::now(),
            session: OnceLock::new(),
            is_evicted: AtomicBool::new(false),
            evicted: Notify::new(),
        }
    }

    /// Hands are shaken. False: it was evicted meanwhile.
    pub(super) fn begin(&self, session: &Arc<Session>) -> bool {
        // Only its own connection sets it, once.
        let _ = self.session.set(Arc::clone(session));
        !self.is_evicted.load(SeqCst)
    }

    fn tell(&self, eviction: Eviction) {
        // Before the session is looked for: `begin` sets that first, and looks at this then.
        self.is_evicted.store(true, SeqCst);
        if let Some(session) = self.session.get() {
            let mut state = session.state.lock();
            // One that closes for its memory does not wait for its calls any more.
            if state.eviction != Some(Eviction::ForMemory) {
                state.eviction = Some(eviction);
            }
            drop(state);
            session.to_keep.notify_one();
        }
        self.evicted.notify_one();
    }
}

impl HoldsMemory for Usage {
    fn stuck(&self, now: Instant) -> Option<Stuck> {
        self.session.get()?.state.lock().stuck(now)
    }

    fn close_for_memory(&self) {
        self.tell(Eviction::ForMemory);
    }
}

impl Evictable for Usage {
    fn eviction_rank(&self, now: Instant) -> Option<(u8, Instant)> {
        let (is_stuck, since) = match self.session.get() {
            Some(session) => {
                let state = session.state.lock();
                if !state.running.is_empty() {
                    return None;
                }
                (state.partial.is_some() || state.waiting() > 0, state.whole_frame_at)
            }
            None => (true, self.accepted),
        };
        let least = if is_stuck { STUCK_AFTER } else { IDLE_AFTER };
        let rank = u8::from(!is_stuck);
        (now.saturating_duration_since(since) >= least).then_some((rank, since))
    }

    fn evict(&self) {
        self.tell(Eviction::ForSlot);
    }
}
