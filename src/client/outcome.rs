//! Whether an endpoint is to blame for how an attempt ended.

use crate::discovery::{Endpoint, Outcome};
use crate::error::{Error, Execution, Fate, Kind};

/// Whether the endpoint is to blame for an attempt that ended with `error`.
pub(super) fn outcome(error: &Error, endpoint: &Endpoint) -> Outcome {
    // It leaves, which is no failure.
    if error.fate() == Fate::AboveDrain {
        return Outcome::Abandoned;
    }
    let answered = Outcome::Succeeded { load: endpoint.stats().reported_load() };
    match (error.execution(), error.kind()) {
        // The service's own errors are answers; a defect is not.
        (Execution::Executed, Kind::Internal) => Outcome::Failed,
        (Execution::Executed, _) => answered,
        (Execution::Rejected, Kind::ResourceExhausted) => Outcome::Overloaded,
        (Execution::Rejected, Kind::Unavailable) => Outcome::Failed,
        (Execution::Rejected, _) => answered,
        // Of what was never sent only a missing connection is the endpoint's, and that is put off
        // anyway: a backoff, and no ejection.
        (Execution::NotSent, Kind::Unavailable) => Outcome::Unreachable,
        (Execution::NotSent, _) => Outcome::Abandoned,
        (Execution::MaybeExecuted, _) => Outcome::Failed,
    }
}
