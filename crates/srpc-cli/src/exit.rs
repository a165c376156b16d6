//! Which exit code and which words end a command?

use serde::Serialize;
use srpc::discovery::{DiscoveryError, DiscoveryErrorKind};
use srpc::{Error, Execution, Kind};

/// What no other code names.
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const REGISTRY: u8 = 3;
const NO_SERVICE: u8 = 4;
const NO_INSTANCE: u8 = 5;
const DEADLINE: u8 = 6;
const NOT_ALLOWED: u8 = 7;
/// The service's own status is added to it.
const STATUS: u8 = 64;
const INTERRUPTED: u8 = 130;

/// The table of codes, for the help.
pub(crate) const CODES: &str = "\
Exit codes: 0 ok, 1 failed and no other code names it, 2 usage, 3 registry unreachable,
4 no such service, 5 no healthy instance, 6 deadline exceeded, 7 not allowed,
64+N the service's own status N, 130 interrupted.";

/// How a command ends when it does not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    code: u8,
    /// Empty: nothing is left to say.
    message: String,
    /// Kind and execution of the call that failed.
    call: Option<(&'static str, &'static str)>,
    /// Data was printed before: a second JSON value would be one too many.
    has_data: bool,
}

/// A failure as data.
#[derive(Serialize)]
pub(crate) struct Failed<'a> {
    error: Problem<'a>,
}

#[derive(Serialize)]
struct Problem<'a> {
    /// What the process exits with.
    exit_code: u8,
    /// That of a failed call, such as `unavailable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    /// Whether that call was executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    execution: Option<&'static str>,
    message: &'a str,
}

impl Exit {
    /// Something failed that no other code names.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    /// The command was not understood.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// The registry did not answer.
    pub(crate) fn registry(message: impl Into<String>) -> Self {
        Self::new(REGISTRY, message)
    }

    /// Nobody offers the service.
    pub(crate) fn no_service(message: impl Into<String>) -> Self {
        Self::new(NO_SERVICE, message)
    }

    /// The service has instances, none of which takes calls.
    pub(crate) fn no_instance(message: impl Into<String>) -> Self {
        Self::new(NO_INSTANCE, message)
    }

    /// Told to stop before it was done.
    pub(crate) fn interrupted() -> Self {
        Self::new(INTERRUPTED, "interrupted")
    }

    /// Whoever read the output has seen enough, as `head` does.
    pub(crate) fn unread() -> Self {
        Self::new(0, "")
    }

    /// Some instances of a broadcast failed: the code they share, else that of a failed check.
    pub(crate) fn broadcast(failures: &[&Error], of: usize) -> Self {
        let mut codes = failures.iter().map(|error| code_of(error.kind(), error.execution()));
        let first = codes.next().unwrap_or(FAILED);
        let code = if codes.all(|code| code == first) { first } else { FAILED };
        Self::new(code, format!("{} of {of} instances failed", failures.len())).after_data()
    }

    /// The same, after data was printed.
    pub(crate) fn after_data(mut self) -> Self {
        self.has_data = true;
        self
    }

    /// What is printed in JSON in place of data; `None`: there was some.
    pub(crate) fn as_data(&self) -> Option<Failed<'_>> {
        let (kind, execution) = self.call.unzip();
        let problem = Problem { exit_code: self.code, kind, execution, message: &self.message };
        (!self.has_data).then_some(Failed { error: problem })
    }

    /// Whether it says that nobody offers the service.
    pub(crate) fn is_no_service(&self) -> bool {
        self.code == NO_SERVICE
    }

    /// What the process exits with.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// What is said on stderr; empty for nothing.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), call: None, has_data: false }
    }
}

impl From<Error> for Exit {
    fn from(error: Error) -> Self {
        let call = Some((error.kind().as_str(), error.execution().as_str()));
        Self { call, ..Self::new(code_of(error.kind(), error.execution()), error.to_string()) }
    }
}

impl From<&DiscoveryError> for Exit {
    fn from(error: &DiscoveryError) -> Self {
        let code = match error.kind() {
            DiscoveryErrorKind::NotAllowed => NOT_ALLOWED,
            // An answer that makes no sense is no registry's.
            _ => REGISTRY,
        };
        Self::new(code, error.to_string())
    }
}

/// The code of a failed call. What was not executed and may be tried elsewhere is kept apart from
/// what may have had an effect: scripts retry on the former.
fn code_of(kind: Kind, execution: Execution) -> u8 {
    match (execution, kind) {
        (Execution::Executed, kind) => STATUS + kind.code(),
        (_, Kind::DeadlineExceeded) => DEADLINE,
        (_, Kind::PermissionDenied | Kind::Unauthenticated) => NOT_ALLOWED,
        (Execution::NotSent | Execution::Rejected, Kind::Unavailable) => NO_INSTANCE,
        (Execution::NotSent, Kind::InvalidArgument) => USAGE,
        (Execution::Rejected, kind) => STATUS + kind.code(),
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_follows_execution_first() {
        use Execution::{Executed, MaybeExecuted, NotSent, Rejected};
        for (kind, execution, code) in [
            (Kind::Unknown, Executed, 66),
            (Kind::Internal, Executed, 77),
            (Kind::DeadlineExceeded, Executed, 68),
            (Kind::DeadlineExceeded, MaybeExecuted, 6),
            (Kind::DeadlineExceeded, NotSent, 6),
            (Kind::PermissionDenied, Rejected, 7),
            (Kind::Unavailable, NotSent, 5),
            (Kind::Unavailable, Rejected, 5),
            (Kind::Unavailable, MaybeExecuted, 1),
            (Kind::InvalidArgument, NotSent, 2),
            (Kind::Unimplemented, Rejected, 76),
        ] {
            assert_eq!(code_of(kind, execution), code, "{kind} {execution}");
        }
    }

    #[test]
    fn instances_that_fail_alike_share_their_code() {
        use srpc::error::Fate;
        let service = Error::new(Kind::Unknown, Fate::Failed, "no");
        let gone = Error::new(Kind::Unavailable, Fate::NoConnection, "refused");
        assert_eq!(Exit::broadcast(&[&service, &service], 3).code(), 66);
        assert_eq!(Exit::broadcast(&[&service, &gone], 3).code(), 1);
    }
}
