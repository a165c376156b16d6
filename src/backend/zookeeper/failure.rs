//! Why ZooKeeper did not do as asked.

use std::time::Duration;

use zookeeper_client::{Error, MultiWriteError};

use crate::discovery::{DiscoveryError, DiscoveryErrorKind};
use crate::registry::{RegistryError, RegistryErrorKind};

/// One private error, with one conversion to each door's.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// No answer. What was asked may have been done, and may yet be done.
    Unavailable(String),
    NotAllowed(String),
    Full(String),
    Invalid(String),
}

impl Failure {
    pub(super) fn late(limit: Duration) -> Self {
        Self::Unavailable(format!("no answer within {limit:?}"))
    }

    /// The same failure for one more lease.
    pub(super) fn registry_error(&self) -> RegistryError {
        let (kind, message) = match self {
            Self::Unavailable(message) => (RegistryErrorKind::Unavailable, message),
            Self::NotAllowed(message) => (RegistryErrorKind::NotAllowed, message),
            Self::Full(message) => (RegistryErrorKind::Full, message),
            Self::Invalid(message) => (RegistryErrorKind::Invalid, message),
        };
        RegistryError::new(kind, message.clone())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = format!("ZooKeeper: {error}");
        match error {
            Error::NoAuth | Error::AuthFailed | Error::InvalidAcl => Self::NotAllowed(message),
            Error::QuotaExceeded => Self::Full(message),
            Error::BadArguments(_) => Self::Invalid(message),
            // Whatever its name, a broken connection is one: the client tells it in many ways.
            _ => Self::Unavailable(message),
        }
    }
}

impl From<MultiWriteError> for Failure {
    fn from(error: MultiWriteError) -> Self {
        Error::from(error).into()
    }
}

impl From<Failure> for RegistryError {
    fn from(failure: Failure) -> Self {
        failure.registry_error()
    }
}

impl From<Failure> for DiscoveryError {
    fn from(failure: Failure) -> Self {
        let (kind, message) = match failure {
            Failure::NotAllowed(message) => (DiscoveryErrorKind::NotAllowed, message),
            Failure::Invalid(message) => (DiscoveryErrorKind::Invalid, message),
            Failure::Unavailable(message) | Failure::Full(message) => {
                (DiscoveryErrorKind::Unavailable, message)
            }
        };
        DiscoveryError::new(kind, message)
    }
}
