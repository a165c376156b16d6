//! Whether a failed call was executed: the one table that decides it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Kind;

/// Whether a call that failed was executed, from the weakest class to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Execution {
    /// It never left: no server can have seen the whole of it.
    NotSent,
    /// The server says that it did not start it.
    Rejected,
    /// It was sent, and no answer came.
    MaybeExecuted,
    /// The service answered.
    Executed,
}

/// What happened to a call that failed, as seen by whoever saw it happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// There was no connection, or no endpoint to connect to.
    NoConnection,
    /// The connection ended before the socket had taken the frame's last byte.
    PartlyWritten,
    /// The queue before the connection's window was full.
    QueueFull,
    /// The deadline came, or the caller left, before the frame was handed to the socket.
    NeverWritten,
    /// The call could not be encoded, or is larger than the peer takes.
    NotEncodable,
    /// A layer of the client refused it, or failed, before it was sent.
    LayerRefused,
    /// The server says that it did not start: overloaded, draining, expired, unknown method, bad
    /// arguments, not allowed.
    Refused,
    /// The server's drain frame names a last id below this call's.
    AboveDrain,
    /// The connection ended after the whole frame was written.
    ConnectionLost,
    /// The deadline or an attempt timeout passed after the frame was written.
    Overdue,
    /// The server dropped the handler at its deadline.
    HandlerDropped,
    /// The service answered with an error.
    Failed,
    /// The handler panicked.
    Panicked,
    /// The reply came and could not be read.
    Undecodable,
    /// Nothing is known, as when a user's layer failed that had passed the call on.
    Unknown,
}

impl Fate {
    /// The class of each fate. No other place decides it.
    pub fn execution(self) -> Execution {
        match self {
            Self::NoConnection
            | Self::PartlyWritten
            | Self::QueueFull
            | Self::NeverWritten
            | Self::NotEncodable
            | Self::LayerRefused => Execution::NotSent,
            Self::Refused | Self::AboveDrain => Execution::Rejected,
            Self::ConnectionLost | Self::Overdue | Self::HandlerDropped | Self::Unknown => {
                Execution::MaybeExecuted
            }
            Self::Failed | Self::Panicked | Self::Undecodable => Execution::Executed,
        }
    }
}

impl Execution {
    /// Whether a call of this class may be sent again. `idempotent` is the caller's word that a
    /// second execution does no harm.
    pub fn may_be_sent_again(self, kind: Kind, idempotent: bool) -> bool {
        match self {
            // What cannot be encoded fails the same way at every attempt.
            Self::NotSent => {
                !matches!(kind, Kind::InvalidArgument | Kind::Cancelled | Kind::Internal)
            }
            Self::Rejected => matches!(kind, Kind::Unavailable | Kind::ResourceExhausted),
            Self::MaybeExecuted => idempotent,
            Self::Executed => false,
        }
    }

    /// The word for it in output: `maybe_executed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Rejected => "rejected",
            Self::MaybeExecuted => "maybe_executed",
            Self::Executed => "executed",
        }
    }
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_str().replace('_', " "))
    }
}
