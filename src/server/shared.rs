//! What all connections of a server share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::handler::Handler;
use super::limit::Limit;
use super::settings::ServerSettings;
use super::usage::Usage;
use crate::call::{Codec, watch_calls};
use crate::transport::{Budget, ConnectionSlots, Refusals};

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
    pub(super) budget: Arc<Budget>,
    pub(super) slots: ConnectionSlots<Usage>,
    /// Connections that were refused, as far as that is not logged yet.
    pub(super) refusals: Refusals,
    /// One for each refused or evicted connection that is told why.
    pub(super) farewells: Arc<Semaphore>,
}

/// A method with its full name.
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    /// The limit knows it by this.
    pub(super) number: usize,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) codecs: Arc<Vec<Codec>>,
    /// It is marked: its calls always get tasks.
    in_task: bool,
    /// How many more first polls in tasks must be short, in a row, before calls are polled in place.
    trial: AtomicU32,
    /// First polls in tasks that are under way.
    on_trial: AtomicU32,
    /// For how many of its next calls in place a slow one is the second.
    suspect: AtomicU32,
}

/// How many of a method's first calls get tasks.
const FIRST_TRIAL: u32 = 32;
/// How many calls get tasks once a poll was long.
const LATER_TRIAL: u32 = 1000;
/// Within how many calls a second slow one must follow.
const SUSPECT: u32 = 100;
/// A poll in place that takes longer is slow. After two, the method gets tasks.
pub(super) const SLOW: Duration = Duration::from_micros(200);
/// A poll in place that takes as long has held up its connection. After one, the method gets tasks.
const HOLD: Duration = Duration::from_millis(10);
/// A first poll in a task is short up to this. A longer one gains nothing by being made in place.
const SHORT: Duration = Duration::from_micros(50);

impl Entry {
    pub(super) fn new(
        name: Arc<str>,
        number: usize,
        handler: Arc<dyn Handler>,
        codecs: Arc<Vec<Codec>>,
    ) -> Self {
        Self {
            name,
            number,
            in_task: handler.runs_in_task(),
            handler,
            codecs,
            trial: AtomicU32::new(FIRST_TRIAL),
            on_trial: AtomicU32::new(0),
            suspect: AtomicU32::new(0),
        }
    }

    /// Whether the next call may be polled in place, by the connection's own task.
    pub(super) fn runs_in_place(&self) -> bool {
        if self.in_task || self.trial.load(Relaxed) > 0 {
            return false;
        }
        // Two calls at once may count as one: the number is no promise.
        let suspect = self.suspect.load(Relaxed);
        if suspect > 0 {
            self.suspect.store(suspect - 1, Relaxed);
        }
        true
    }

    /// A poll in place was slow and took this long. Of those that are only slow it takes two: a machine
    /// that gives the processor to another process looks the same.
    #[cold]
    pub(super) fn was_slow(&self, time: Duration) {
        if time >= HOLD || self.suspect.swap(SUSPECT, Relaxed) > 0 {
            self.trial.store(LATER_TRIAL, Relaxed);
        }
    }

    /// Runs the first poll of a call in its task, which its waker's data names, and learns from it
    /// whether later calls may be polled in place.
    pub(super) fn try_out<T>(&self, task: *const (), poll: impl FnOnce() -> T) -> T {
        if self.in_task {
            return poll();
        }
        self.on_trial.fetch_add(1, Relaxed);
        let begun = Instant::now();
        let (polled, has_blocked) = watch_calls(task, poll);
        let is_short = !has_blocked && begun.elapsed() <= SHORT;
        let is_alone = self.on_trial.fetch_sub(1, Relaxed) == 1;
        if is_short {
            // The last step waits for those that are under way: they may be the ones that block.
            let step = |left: u32| if left > 1 || is_alone { left.checked_sub(1) } else { None };
            let _ = self.trial.fetch_update(Relaxed, Relaxed, step);
        } else {
            self.trial.store(LATER_TRIAL, Relaxed);
        }
        polled
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Asked, HandlerFuture};

    const TASK: *const () = std::ptr::null();

    fn entry() -> Entry {
        let handler =
            |_: Asked, _: Option<Codec>| -> HandlerFuture { Box::pin(std::future::pending()) };
        Entry::new("Foo.Bar".into(), 0, Arc::new(handler), Arc::default())
    }

    fn short(entry: &Entry, times: u32) {
        (0..times).for_each(|_| entry.try_out(TASK, || ()));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_polled_in_place_only_after_a_row_of_short_polls() {
        let entry = entry();
        short(&entry, FIRST_TRIAL - 1);
        assert!(!entry.runs_in_place());
        short(&entry, 1);
        assert!(entry.runs_in_place());
        entry.was_slow(SLOW * 2);
        assert!(entry.runs_in_place(), "once may be the machine");
        entry.was_slow(SLOW * 2);
        assert!(!entry.runs_in_place());
        short(&entry, LATER_TRIAL);
        assert!(entry.runs_in_place());
        entry.was_slow(HOLD);
        short(&entry, LATER_TRIAL - 1);
        assert!(!entry.runs_in_place(), "a hold counts at once");
        short(&entry, 1);
        assert!(entry.runs_in_place());
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_under_way_keeps_the_others_out_of_the_connections_task() {
        let entry = entry();
        entry.try_out(TASK, || {
            short(&entry, FIRST_TRIAL * 2);
            assert!(!entry.runs_in_place(), "one is still under way");
        });
        assert!(entry.runs_in_place());
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_that_blocks_on_a_call_is_not_short_however_little_time_it_takes() {
        let entry = entry();
        short(&entry, FIRST_TRIAL - 1);
        let (waker, name) = (std::task::Waker::noop(), 1_u8);
        let task = std::ptr::from_ref(&name).cast::<()>();
        entry.try_out(task, || crate::call::call_begins(waker));
        short(&entry, LATER_TRIAL - 1);
        assert!(!entry.runs_in_place());
    }
}
