//! Whether an endpoint is to blame for how an attempt ended.

use crate::discovery::{Endpoint, Outcome};
use crate::error::{Error, Execution, Fate, Kind};

/// Whether the endpoint is to blame for an attempt that ended with `error`.
pub(super) fn outcome(error: &Error, endpoint: &Endpoint) -> Outcome {
    match (error.fate(), error.execution(), error.kind()) {
        // It leaves, which is no failure.
        (Fate::AboveDrain, ..) => Outcome::Abandoned,
        (Fate::Failed | Fate::Panicked | Fate::HandlerDropped | Fate::Refused, _, kind) => {
            answered(kind, endpoint)
        }
        // Of what was never sent only a missing connection is the endpoint's, and that is put off
        // anyway: a backoff, and no ejection.
        (_, Execution::NotSent, Kind::Unavailable) => Outcome::Unreachable,
        (_, Execution::NotSent, _) => Outcome::Abandoned,
        (_, Execution::MaybeExecuted, _) => Outcome::Failed,
        // A reply that makes no sense is a defect; one that is too large for this client is not.
        (_, Execution::Executed | Execution::Rejected, Kind::Internal) => Outcome::Failed,
        (_, Execution::Executed | Execution::Rejected, _) => succeeded(endpoint),
    }
}

/// What an error of this kind says of the endpoint that answered with it, whatever its class.
fn answered(kind: Kind, endpoint: &Endpoint) -> Outcome {
    match kind {
        Kind::Unavailable | Kind::DataLoss | Kind::Internal => Outcome::Failed,
        // A handler's plain error and a caller's short limit: its fault only if others do better.
        Kind::Unknown | Kind::DeadlineExceeded => Outcome::Ambiguous,
        Kind::ResourceExhausted => Outcome::Overloaded,
        // Answers about the request.
        Kind::Cancelled
        | Kind::InvalidArgument
        | Kind::NotFound
        | Kind::AlreadyExists
        | Kind::PermissionDenied
        | Kind::FailedPrecondition
        | Kind::Aborted
        | Kind::OutOfRange
        | Kind::Unimplemented
        | Kind::Unauthenticated => succeeded(endpoint),
    }
}

fn succeeded(endpoint: &Endpoint) -> Outcome {
    Outcome::Succeeded { load: endpoint.stats().reported_load() }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::instance::Instance;

    #[test]
    fn what_an_answer_says_of_its_endpoint_does_not_depend_on_its_class() {
        let address = "tcp@10.0.0.1:1".parse().unwrap();
        let endpoint = Endpoint::new(Instance::at(address), Instant::now());
        for kind in Kind::ALL {
            let expected = match kind {
                Kind::Unavailable | Kind::DataLoss | Kind::Internal => Outcome::Failed,
                Kind::Unknown | Kind::DeadlineExceeded => Outcome::Ambiguous,
                Kind::ResourceExhausted => Outcome::Overloaded,
                _ => Outcome::Succeeded { load: 0 },
            };
            let classes = [Execution::Rejected, Execution::MaybeExecuted, Execution::Executed];
            for class in classes {
                let error = Error::answered(kind, class, String::new());
                assert_eq!(outcome(&error, &endpoint), expected, "{kind:?}, {class:?}");
            }
        }
        let late = Error::new(Kind::DeadlineExceeded, Fate::Overdue, "no answer");
        assert_eq!(outcome(&late, &endpoint), Outcome::Failed);
    }
}
