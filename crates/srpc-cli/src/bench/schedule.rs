//! When is the next call due, and when are there no more?

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The timer wakes at whole milliseconds, and never early.
const TIMER: Duration = Duration::from_millis(2);

/// The calls of a bench, shared by its workers.
#[derive(Debug)]
pub(super) struct Schedule {
    /// How many calls were asked for so far.
    issued: AtomicU64,
    started: Instant,
    calls: Option<u64>,
    until: Option<Instant>,
    /// Calls a second; `None`: each as soon as a worker is free.
    rate: Option<u64>,
}

impl Schedule {
    /// At most `calls`, none due later than `duration` after `started`.
    pub(super) fn new(
        started: Instant,
        calls: Option<u64>,
        duration: Option<Duration>,
        rate: Option<u64>,
    ) -> Self {
        let until = duration.map(|duration| started + duration);
        Self { issued: AtomicU64::new(0), started, calls, until, rate }
    }

    /// Waits until the next call is due and tells since when it is: its latency counts from then,
    /// so that a call which waited for a free worker shows it. `None`: there are no more.
    pub(super) async fn next(&self) -> Option<Instant> {
        let number = self.issued.fetch_add(1, Relaxed);
        if self.calls.is_some_and(|calls| number >= calls) {
            return None;
        }
        let now = Instant::now();
        let due = match self.rate {
            Some(rate) => self.started + after(number, rate),
            None => now,
        };
        if self.until.is_some_and(|until| due.max(now) >= until) {
            return None;
        }
        if due <= now {
            return Some(due);
        }
        sleep_until(due).await;
        // What the timer alone is late is no latency of the service's.
        let woke = Instant::now();
        Some(if woke - due <= TIMER { woke } else { due })
    }
}

/// How long after the start the call of this number is due.
fn after(number: u64, rate: u64) -> Duration {
    let nanoseconds = u128::from(number) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_rate_the_count_ends_it() {
        let schedule = Schedule::new(Instant::now(), Some(2), None, None);
        assert!(schedule.next().await.is_some());
        assert!(schedule.next().await.is_some());
        assert!(schedule.next().await.is_none());
    }

    #[tokio::test]
    async fn a_call_that_waited_for_a_worker_is_late() {
        let now = Instant::now();
        let started = now - Duration::from_secs(10);
        let schedule = Schedule::new(started, None, None, Some(100));
        assert_eq!(schedule.next().await, Some(started));
        assert_eq!(schedule.next().await, Some(started + Duration::from_millis(10)));
        assert_eq!(after(3, 1000), Duration::from_millis(3));
    }

    #[tokio::test]
    async fn the_duration_ends_it() {
        let started = Instant::now() - Duration::from_secs(10);
        let schedule = Schedule::new(started, None, Some(Duration::from_secs(10)), None);
        assert!(schedule.next().await.is_none());
    }
}
