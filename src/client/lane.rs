//! What each thread has of its own, so that threads do not take cache lines from one another.
//!
//! A count of references, or a counter, that two processors change in turn costs them some hundred
//! cycles each time. So what every call touches exists once for each lane, and a thread uses its own.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::available_parallelism;

/// More threads than this share lanes.
const MOST: usize = 64;

/// A value for each lane, each on cache lines of its own. There are as many lanes as processors, and
/// a power of two; threads beyond share them, so that a lane is no proof of being alone.
pub(crate) struct Lanes<T>(Box<[Apart<T>]>);

/// On cache lines of its own: processors fetch them in pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Apart<T>(pub(crate) T);

impl<T> Lanes<T> {
    /// What `make` makes, for each lane.
    pub(crate) fn new(make: impl FnMut() -> T) -> Self {
        Self::at_most(MOST, make)
    }

    /// Fewer lanes, where each is large.
    pub(crate) fn at_most(most: usize, mut make: impl FnMut() -> T) -> Self {
        let wanted = processors().min(MOST).next_power_of_two();
        let lanes = wanted.min(1 << most.max(1).ilog2());
        Self((0..lanes).map(|_| Apart(make())).collect())
    }

    /// As many lanes, of what `make` makes of each.
    pub(crate) fn map<U>(&self, mut make: impl FnMut(&T) -> U) -> Lanes<U> {
        Lanes(self.iter().map(|lane| Apart(make(lane))).collect())
    }

    /// This thread's.
    pub(crate) fn mine(&self) -> &T {
        // The power of two makes this what a division would be.
        &self.0[lane() & (self.0.len() - 1)].0
    }

    /// Everybody's.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|lane| &lane.0)
    }
}

/// How many processors there are. Asked once: on Linux each answer takes some 17 system calls.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| available_parallelism().map_or(1, usize::from))
}

/// The number of this thread.
fn lane() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    LANE.get().unwrap_or_else(|| {
        let lane = THREADS.fetch_add(1, Relaxed);
        LANE.set(Some(lane));
        lane
    })
}
