//! How long clients went without a success while a server was there to give one.

use crate::faults::Window;

/// The time between two successes of one client, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) length: u64,
    pub(super) middle: u64,
}

/// The gaps between successes at these times, and from the last one to the `end` of the load. Time
/// in which no server answered at all is left out: it is no gap of the client's making.
pub(super) fn of(mut successes: Vec<u64>, windows: &[Window], end: u64) -> Vec<Gap> {
    successes.sort_unstable();
    let unserved: Vec<_> = windows.iter().filter_map(|window| window.unserved).collect();
    let ends = successes.iter().skip(1).copied().chain([end]);
    let gap = |(&from, until): (&u64, u64)| {
        let overlap = |&(start, stop): &(u64, u64)| stop.min(until).saturating_sub(start.max(from));
        let away: u64 = unserved.iter().map(overlap).sum();
        Gap {
            length: until.saturating_sub(from).saturating_sub(away),
            middle: from.midpoint(until),
        }
    };
    // Most are some milliseconds; only the longest of a window counts in the end.
    successes.iter().zip(ends).map(gap).filter(|gap| gap.length > 1_000).collect()
}
