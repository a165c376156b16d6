//! Instants that cannot overflow.

use std::time::Duration;

use tokio::time::Instant;

/// What stands for "never" where a clock cannot tell an instant that far ahead.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The instant `wait` after `now`; far ahead if the clock cannot tell, as for `Duration::MAX`.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait.min(FAR)).unwrap_or(now)
}
