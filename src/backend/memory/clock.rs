//! How far leases have aged: the clock's time, less the time in which the process stood still.

use std::time::Duration;

use tokio::time::Instant;

/// How many sweeps late a sweep may be before the process counts as having stood still.
const TOLERATED: u32 = 2;
/// How many sweeps in a row must have come in time for a late one to be a pause.
const STEADY: u32 = 10;

/// The time by which leases age.
///
/// Why not simply the clock's? A process that was stopped took no renewals; once it runs again,
/// everything looks overdue, though all instances live. Its sweep comes late by the length of the
/// pause, which is how the pause is known, and leases do not age by it.
#[derive(Debug)]
pub(super) struct LeaseClock {
    sweep: Duration,
    /// When the sweep last ran. `None`: it does not run, or has not since a pause was noticed, so
    /// that it cannot be late.
    swept: Option<Instant>,
    /// How long the process has stood still, in all.
    paused: Duration,
    /// Sweeps that have come in time since the last late one; enough of them at the start.
    on_time: u32,
    /// When the sweep was found to be late, forgiven or not, until what is due has been judged.
    late: Option<Instant>,
    /// The last pause that was forgiven, until it is taken.
    forgiven: Option<Duration>,
}

impl LeaseClock {
    /// A clock whose owner calls [`swept`](Self::swept) at this interval.
    pub(super) fn new(sweep: Duration) -> Self {
        Self {
            sweep,
            swept: None,
            paused: Duration::ZERO,
            on_time: STEADY,
            late: None,
            forgiven: None,
        }
    }

    /// The leases' time at `now`, which never runs backwards as long as `now` does not.
    pub(super) fn read(&mut self, now: Instant) -> Instant {
        if let Some(swept) = self.swept {
            let late = now.saturating_duration_since(swept + self.sweep);
            if late > self.sweep * TOLERATED {
                // A process that is always late is slow, and not paused: were each delay forgiven,
                // what is dead would be listed for ever.
                if self.on_time >= STEADY {
                    self.paused += late;
                    self.forgiven = Some(late);
                }
                self.on_time = 0;
                self.swept = None;
                self.late = Some(now);
            }
        }
        now - self.paused
    }

    /// How long a pause was forgiven since this was called last, if one was.
    pub(super) fn take_forgiven(&mut self) -> Option<Duration> {
        self.forgiven.take()
    }

    /// Whether a late sweep has still to judge what is due, so that nobody else does.
    ///
    /// It is the first to run again, or nearly so; which requests come before it is chance, and
    /// must not decide. Only if it stays away for one more sweep does somebody else judge.
    pub(super) fn awaits_sweep(&self, now: Instant) -> bool {
        self.late.is_some_and(|late| now.saturating_duration_since(late) < self.sweep)
    }

    /// Whether what is due now is judged after a late sweep; it is so once.
    pub(super) fn judges_late(&mut self) -> bool {
        self.late.take().is_some()
    }

    /// Notes that the sweep ran.
    pub(super) fn swept(&mut self, now: Instant) {
        if self.swept.replace(now).is_some() {
            self.on_time = self.on_time.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWEEP: Duration = Duration::from_millis(500);

    #[test]
    fn a_sweep_that_comes_late_stops_the_clock_once() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut clock = LeaseClock::new(SWEEP);
        assert_eq!(clock.read(at(60_000)), at(60_000), "nobody sweeps yet");

        clock.swept(at(60_000));
        assert_eq!(clock.read(at(61_500)), at(61_500), "two sweeps late are tolerated");
        assert_eq!(clock.read(at(90_500)), at(60_500), "30 s late");
        assert_eq!(clock.read(at(95_500)), at(65_500), "not twice without a sweep between");
        clock.swept(at(95_500));
        assert_eq!(clock.read(at(96_000)), at(66_000));
    }

    #[test]
    fn what_is_due_waits_for_the_late_sweep_though_not_for_ever() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut clock = LeaseClock::new(SWEEP);
        clock.swept(at(0));
        clock.read(at(1_500));
        assert!(!clock.awaits_sweep(at(1_500)) && !clock.judges_late(), "it is in time");
        clock.read(at(30_000));
        assert!(clock.awaits_sweep(at(30_499)));
        assert!(!clock.awaits_sweep(at(30_500)), "whoever comes now judges");
        assert!(clock.judges_late() && !clock.judges_late());
        assert!(!clock.awaits_sweep(at(30_000)));
    }

    #[test]
    fn of_two_pauses_in_a_row_the_first_is_forgiven() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut clock = LeaseClock::new(SWEEP);
        clock.swept(at(0));
        assert_eq!(clock.read(at(30_500)), at(500));
        for n in 0..10 {
            clock.swept(at(30_500 + 500 * n));
        }
        // Of the ten the first has no time between, so nine were in time.
        assert_eq!(clock.read(at(65_500)), at(35_500), "30 s, and nothing of it forgiven");
        assert!(clock.judges_late(), "but what is due may be kept");
        for n in 0..11 {
            clock.swept(at(65_500 + 500 * n));
        }
        assert_eq!(clock.read(at(101_000)), at(41_000), "after ten in time it is a pause again");
    }

    #[test]
    fn a_process_that_is_always_late_ages_all_the_same() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut clock = LeaseClock::new(SWEEP);
        clock.swept(at(0));
        for n in 1..=100 {
            // Only the first delay, of 1,150 ms, may have been a pause.
            assert_eq!(clock.read(at(n * 1_650)), at(n * 1_650 - 1_150), "sweep {n}");
            clock.swept(at(n * 1_650));
        }
    }
}
