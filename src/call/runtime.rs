//! Whether there is a tokio runtime for tasks and timers.

use tokio::runtime::Handle;

use crate::error::{Error, Fate, Kind};

/// Why something that needs a runtime fails without one.
pub(crate) const NO_RUNTIME: &str =
    "polled outside of a tokio runtime, which connections and timers need";

/// Whether the caller runs on a runtime.
pub(crate) fn has_runtime() -> bool {
    Handle::try_current().is_ok()
}

/// The error of a call without a runtime. Its kind is one that is not retried and blames no endpoint.
pub(crate) fn no_runtime(fate: Fate) -> Error {
    Error::new(Kind::Internal, fate, NO_RUNTIME)
}
