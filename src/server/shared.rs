//! What all connections of a server share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::handler::Handler;
use super::limit::Limit;
use super::settings::ServerSettings;
use crate::call::Codec;
use crate::sync::Mutex;

/// How far a server has come; connections follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// Nothing new is started.
    Draining,
    /// The grace has passed.
    Cut,
}

/// What all connections of a server share.
pub(super) struct Shared {
    pub(super) methods: HashMap<Arc<str>, Arc<Entry>>,
    pub(super) settings: ServerSettings,
    /// Calls at work over all connections: the load that every reply tells.
    pub(super) limit: Limit,
    pub(super) bytes_in_flight: AtomicUsize,
    /// Connections by the host they come from.
    pub(super) hosts: Mutex<HashMap<Arc<str>, usize>>,
}

/// A method with its full name.
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    /// The limit knows it by this.
    pub(super) number: usize,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) codecs: Arc<Vec<Codec>>,
    /// How many of its next calls get a task of their own at once.
    pub(super) away: AtomicU32,
    /// For how many of its next calls a slow one is the second.
    pub(super) suspect: AtomicU32,
}

/// For how many calls a method that computes for long is kept away from its connections' tasks.
const AWAY: u32 = 1000;
/// Within how many calls a second slow one must follow.
const SUSPECT: u32 = 100;

impl Entry {
    /// Whether the next call may be polled in place, by the connection's own task.
    pub(super) fn runs_in_place(&self) -> bool {
        // Two calls at once may count as one: the numbers are no promise.
        let count_down = |of: &AtomicU32| {
            let left = of.load(Relaxed);
            if left > 0 {
                of.store(left - 1, Relaxed);
            }
            left > 0
        };
        count_down(&self.suspect);
        !count_down(&self.away)
    }

    /// It took long, which held up its connection. If that happens twice, the next calls are kept
    /// away from it. Twice, since a machine that gave the processor to somebody else looks the same;
    /// and not for good, since it may do so twice.
    pub(super) fn was_slow(&self) {
        if self.suspect.swap(SUSPECT, Relaxed) > 0 {
            self.away.store(AWAY, Relaxed);
        }
    }
}

impl Shared {
    pub(super) fn load(&self) -> u32 {
        self.limit.in_flight() as u32
    }
}

/// The instant a number of milliseconds ahead; far ahead if the clock cannot tell.
pub(super) fn deadline_in(now: Instant, ms: u32) -> Instant {
    now + Duration::from_millis(ms.into())
}
