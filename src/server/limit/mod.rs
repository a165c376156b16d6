//! Which calls does a server turn away because it works on enough of them?

mod setting;
mod stats;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

pub use self::setting::{Adaptive, Concurrency};
use self::stats::Load;
pub use self::stats::ServerStats;
pub(super) use self::table::Ended;
use self::table::{Sample, Table};
use crate::sync::{Mutex, event};

/// How long no call must have been turned away until that counts as over.
const CALM: Duration = Duration::from_secs(5);

/// The limit of a server's calls at work, and their count.
pub(super) struct Limit {
    load: Arc<Load>,
    /// Finds the limit, where it is adaptive.
    table: Option<Mutex<Table>>,
    /// Calls are being turned away. Read by every call, so that `shed` is locked by few.
    shedding: AtomicBool,
    shed: Mutex<Shed>,
}

/// What is told of calls that are turned away.
#[derive(Default)]
struct Shed {
    last: Option<Instant>,
    /// How many had been turned away before this time.
    before: u64,
}

impl Limit {
    /// A limit for a server with this many methods, told through `stats`.
    pub(super) fn new(concurrency: &Concurrency, methods: usize, stats: &ServerStats) -> Self {
        let (limit, table) = match concurrency {
            Concurrency::Unlimited => (usize::MAX, None),
            Concurrency::Fixed(calls) => ((*calls).max(1), None),
            Concurrency::Adaptive(settings) => {
                let table = Table::new(settings, methods);
                (table.limit(), Some(Mutex::new(table)))
            }
        };
        stats.0.limit.store(limit, Relaxed);
        Self {
            load: Arc::clone(&stats.0),
            table,
            shedding: AtomicBool::new(false),
            shed: Mutex::default(),
        }
    }

    /// Counts a call in; false: it is turned away, and not counted.
    pub(super) fn enter(&self, now: Instant) -> bool {
        let limit = self.load.limit.load(Relaxed);
        // Looked at first: what is turned away should not push the count over the limit, even for
        // a moment, in which another call would be turned away for nothing.
        if self.load.in_flight.load(Relaxed) >= limit {
            self.turn_away(now);
            return false;
        }
        if self.load.in_flight.fetch_add(1, Relaxed) >= limit {
            self.load.in_flight.fetch_sub(1, Relaxed);
            self.turn_away(now);
            return false;
        }
        if self.shedding.load(Relaxed) {
            self.calm_down(now, limit);
        }
        true
    }

    /// Counts a call out that was read at `read`.
    pub(super) fn leave(&self, method: usize, read: Instant, ended: Ended) {
        let in_flight = self.load.in_flight.fetch_sub(1, Relaxed);
        let Some(table) = &self.table else { return };
        // One sample less is better than a call that waits.
        let Some(mut table) = table.try_lock() else { return };
        let rejected = self.load.rejected.load(Relaxed);
        table.add(Instant::now(), &Sample { method, read, ended, in_flight, rejected });
        self.load.limit.store(table.limit(), Relaxed);
    }

    /// Calls at work.
    pub(super) fn in_flight(&self) -> usize {
        self.load.in_flight.load(Relaxed)
    }

    #[cold]
    fn turn_away(&self, now: Instant) {
        let before = self.load.rejected.fetch_add(1, Relaxed);
        if let Some(mut table) = self.table.as_ref().and_then(Mutex::try_lock) {
            table.turn_away(now, before + 1);
            self.load.limit.store(table.limit(), Relaxed);
        }
        let mut shed = self.shed.lock();
        shed.last = Some(now);
        let is_first = !self.shedding.swap(true, Relaxed);
        if is_first {
            shed.before = before;
        }
        drop(shed);
        if is_first {
            let limit = self.load.limit.load(Relaxed);
            event!(WARN, limit, "calls are turned away: the limit of calls at work is reached");
        }
    }

    #[cold]
    fn calm_down(&self, now: Instant, limit: usize) {
        let shed = self.shed.lock();
        let calm = shed.last.is_none_or(|last| now.saturating_duration_since(last) >= CALM);
        if !calm || !self.shedding.swap(false, Relaxed) {
            return;
        }
        let rejected = self.load.rejected.load(Relaxed) - shed.before;
        drop(shed);
        event!(INFO, limit, rejected, "no more calls are turned away");
    }
}
