//! What time it is, the same in every process of a drill.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Microseconds since the drill began.
///
/// A process looks at the wall clock once, when it starts, and goes on by its monotonic clock:
/// instants of two processes cannot be compared by std, and a wall clock that is corrected during
/// the drill must not make a gap. Two processes agree as well as the wall clock did when they
/// started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// When this process started.
    offset: u64,
}

impl Clock {
    /// A clock that counts from `zero`, in microseconds of Unix time.
    pub(crate) fn since(zero: u64) -> Self {
        Self { started: Instant::now(), offset: unix_micros().saturating_sub(zero) }
    }

    pub(crate) fn now(&self) -> u64 {
        self.offset + micros(self.started.elapsed())
    }
}

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", self.now())
    }
}

pub(crate) fn unix_micros() -> u64 {
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
