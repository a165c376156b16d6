//! Why etcd gave no answer that can be used.

use std::fmt;
use std::time::Duration;

use super::api::Refusal;
use crate::backend::exchange::ExchangeError;
use crate::discovery::{DiscoveryError, DiscoveryErrorKind};
use crate::error::BoxError;
use crate::registry::{RegistryError, RegistryErrorKind};

/// gRPC's codes, which the gateway passes on.
const INVALID_ARGUMENT: u32 = 3;
const NOT_FOUND: u32 = 5;
const NOT_ALLOWED: u32 = 7;
const EXHAUSTED: u32 = 8;
const PRECONDITION: u32 = 9;
const OUT_OF_RANGE: u32 = 11;
const UNAUTHENTICATED: u32 = 16;

/// One private error, with one conversion to each door's.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer, or one that puts off.
    Unavailable { message: String, source: Option<BoxError> },
    /// An answer that is none of etcd's.
    Nonsense(String),
    /// etcd's own words, which every member would say.
    Refused { code: u32, message: String },
}

impl Failure {
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into(), source: None }
    }

    pub(super) fn late(limit: Duration) -> Self {
        Self::unavailable(format!("no answer within {limit:?}"))
    }

    /// By its code: of many, etcd says that they are unknown, and means that it is on its way down.
    pub(super) fn of(refusal: Refusal) -> Self {
        let Refusal { code, message } = refusal;
        let message: String = message.chars().filter(|c| !c.is_control()).take(256).collect();
        match code {
            INVALID_ARGUMENT | NOT_FOUND | NOT_ALLOWED | EXHAUSTED | PRECONDITION
            | OUT_OF_RANGE | UNAUTHENTICATED => Self::Refused { code, message },
            _ => Self::unavailable(message),
        }
    }

    /// A lease that is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: NOT_FOUND, .. })
    }

    /// A token that has run out, or none where one is needed.
    pub(super) fn wants_token(&self) -> bool {
        match self {
            Self::Refused { code: UNAUTHENTICATED, .. } => true,
            Self::Refused { code: INVALID_ARGUMENT, message } => {
                ["user name is empty", "revision of auth store is old"]
                    .iter()
                    .any(|text| message.contains(text))
            }
            _ => false,
        }
    }

    /// The same, said by this member.
    pub(super) fn from(self, endpoint: &str) -> Self {
        match self {
            Self::Unavailable { message, source } => {
                Self::Unavailable { message: format!("{endpoint}: {message}"), source }
            }
            Self::Nonsense(message) => Self::Nonsense(format!("{endpoint}: {message}")),
            refused => refused,
        }
    }

    /// The same failure for one more lease.
    pub(super) fn registry_error(&self) -> RegistryError {
        RegistryError::new(self.registry_kind(), self.to_string())
    }

    fn registry_kind(&self) -> RegistryErrorKind {
        match self {
            Self::Refused { code: NOT_ALLOWED | UNAUTHENTICATED, .. } => {
                RegistryErrorKind::NotAllowed
            }
            Self::Refused { code: EXHAUSTED, .. } => RegistryErrorKind::Full,
            Self::Refused { code: INVALID_ARGUMENT, message }
                if self.wants_token() || message.contains("authentication failed") =>
            {
                RegistryErrorKind::NotAllowed
            }
            Self::Refused { code: INVALID_ARGUMENT, .. } => RegistryErrorKind::Invalid,
            _ => RegistryErrorKind::Unavailable,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable { message, .. } | Self::Nonsense(message) => f.write_str(message),
            Self::Refused { code, message } => write!(f, "{message} (code {code})"),
        }
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Unavailable { message, source } => Self::Unavailable { message, source },
            ExchangeError::Nonsense(message) => Self::Nonsense(message),
        }
    }
}

impl From<Failure> for RegistryError {
    fn from(failure: Failure) -> Self {
        let error = failure.registry_error();
        match failure {
            Failure::Unavailable { source: Some(source), .. } => error.because(source),
            _ => error,
        }
    }
}

impl From<Failure> for DiscoveryError {
    fn from(failure: Failure) -> Self {
        let kind = match (&failure, failure.registry_kind()) {
            (_, RegistryErrorKind::NotAllowed) => DiscoveryErrorKind::NotAllowed,
            (Failure::Nonsense(_), _) | (_, RegistryErrorKind::Invalid) => {
                DiscoveryErrorKind::Invalid
            }
            _ => DiscoveryErrorKind::Unavailable,
        };
        let error = DiscoveryError::new(kind, failure.to_string());
        match failure {
            Failure::Unavailable { source: Some(source), .. } => error.because(source),
            _ => error,
        }
    }
}
