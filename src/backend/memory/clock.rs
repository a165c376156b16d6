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
}

impl LeaseClock {
    /// A clock whose owner calls [`swept`](Self::swept) at this interval.
    pub(super) fn new(sweep: Duration) -> Self {
        Self { sweep, swept: None, paused: Duration::ZERO, on_time: STEADY }
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
                    tracing::warn!(
                        late_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX),
                        "the sweep came late: every lease is extended by as much"
                    );
                }
                self.on_time = 0;
                self.swept = None;
            }
        }
        now - self.paused
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
