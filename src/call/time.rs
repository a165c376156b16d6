//! Instants that cannot overflow, and instants in 64 bits.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

/// What stands for "never" where a clock cannot tell an instant that far ahead.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The instant `wait` after `now`; far ahead if the clock cannot tell, as for `Duration::MAX`.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait.min(FAR)).unwrap_or(now)
}

/// Waits until a moment; for ever if there is none.
///
/// Why not tokio's timer alone? It ends on whole milliseconds: one that is due already lasts until the
/// next.
pub(crate) async fn until(at: Option<Instant>) {
    match at {
        // A loop of what is due at once lets others run.
        Some(at) if at <= Instant::now() => tokio::task::coop::consume_budget().await,
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// An instant in 64 bits, in microseconds: a call compares and subtracts several, and each would take
/// an `Instant` some forty instructions and twice the room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(u64);

/// How far before the first stamp the count starts: a clock that tests have paused may be somewhat
/// behind.
const BEFORE: Duration = Duration::from_secs(3600);

impl Stamp {
    /// An instant's stamp, which may be up to a microsecond before it.
    #[allow(
        clippy::disallowed_types,
        reason = "one start for every runtime's clock, paused or not"
    )]
    pub(crate) fn of(at: Instant) -> Self {
        static START: OnceLock<std::time::Instant> = OnceLock::new();
        let start = START.get_or_init(|| {
            let now = std::time::Instant::now();
            now.checked_sub(BEFORE).unwrap_or(now)
        });
        let since = at.into_std().saturating_duration_since(*start);
        // In 64 bits: `as_micros` counts in 128.
        let micros = since.as_secs().saturating_mul(1_000_000);
        Self(micros.saturating_add(u64::from(since.subsec_micros()) + 1))
    }

    /// This moment's.
    pub(crate) fn now() -> Self {
        Self::of(Instant::now())
    }

    /// The stamp `wait` later, in whole microseconds, rounded up; far ahead as [`after`] says.
    pub(crate) fn after(self, wait: Duration) -> Self {
        let wait = wait.min(FAR);
        let micros = wait.as_secs() * 1_000_000 + u64::from(wait.subsec_nanos().div_ceil(1000));
        Self(self.0.saturating_add(micros))
    }

    /// How many microseconds it is after another stamp; 0 if it is before that.
    pub(crate) fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// It as a number, for an atomic; no instant has 0.
    pub(crate) fn micros(self) -> u64 {
        self.0
    }
}

/// One reading of the clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    pub(crate) stamp: Stamp,
}

impl Moment {
    pub(crate) fn of(at: Instant) -> Self {
        Self { at, stamp: Stamp::of(at) }
    }

    pub(crate) fn now() -> Self {
        Self::of(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stamps_are_instants_in_microseconds() {
        let now = Instant::now();
        let stamp = Stamp::of(now);
        assert!(stamp.micros() > 0);
        for wait in [0, 1, 999, 1_000_000, 3_600_000_000, 30_000_000_000_000] {
            let later = Stamp::of(now + Duration::from_micros(wait));
            assert_eq!(later.since(stamp), wait);
            assert_eq!(stamp.since(later), 0);
            assert_eq!(later, stamp.after(Duration::from_micros(wait)));
        }
        let wait = Duration::from_nanos(1);
        assert_eq!(stamp.after(wait).since(stamp), 1, "a wait is never taken for none");
        assert!(stamp.after(Duration::MAX) > stamp.after(Duration::from_secs(1 << 29)));
        assert!(Stamp::of(now + Duration::from_secs(1 << 60)) > stamp.after(Duration::MAX));
    }
}
