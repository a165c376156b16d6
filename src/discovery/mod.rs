//! The door through which clients learn which instances live.

mod endpoint;
mod guard;
mod outlier;
mod resolver;
mod stats;
mod updates;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use self::endpoint::{Endpoint, EndpointSet, InFlight, Outcome};
pub use self::outlier::{OutlierEjection, Probe};
pub use self::resolver::{Resolver, ResolverBuilder, ResolverStats, Snapshot, SnapshotStatus};
pub(crate) use self::stats::Answers;
pub use self::stats::EndpointStats;
pub use self::updates::{Update, UpdateSender, UpdateStream};
use crate::error::BoxError;
use crate::instance::{Instance, InstanceId, InvalidAddress, ServiceName};

/// How many reasons in `Resolved::unread` are kept.
pub(crate) const MAX_UNREAD: usize = 16;

/// A source of live instances. One method is required: a discovery of one's own is ten lines.
///
/// # Contract
/// - `resolve` answers with every live instance of the service. A service that nobody offers is an
///   empty answer, not an error.
/// - One try per call, bounded in time: repetition, backoff, jitter and the cache live in the
///   [`Resolver`], which also serves the last good list while this fails.
/// - `watch`, where there is one, pushes changes: its first item is [`Update::Set`]; after a gap its
///   author sends `Set` again. `Err` with [`DiscoveryErrorKind::Unsupported`] means: poll, and ask
///   again at the next resync. Any other end is watched again with backoff.
///
/// # Cancellation
/// Dropping the future or the stream ends its work and leaves nothing behind.
///
/// # Errors
/// Any error keeps the last good list; it is counted and shown.
///
/// # Implementing
/// Put `#[srpc::async_trait]` on the `impl`. Return instances as they are: no filtering by health, no
/// sorting, no caching. Errors of others become yours by `?` (I/O, addresses) or by
/// `map_err(DiscoveryError::other)` and `map_err(DiscoveryError::invalid)`.
#[async_trait]
pub trait Discovery: Send + Sync + 'static {
    /// The live instances of `service`, now.
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError>;

    /// The live instances of `service`, as they change. `None`, the default: the framework polls.
    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let _ = service;
        None
    }

    /// Every service of which there is an instance, sorted, for those who show or pass on all that is
    /// registered; calls do not need it.
    ///
    /// # Errors
    /// [`DiscoveryErrorKind::Unsupported`], the default: the source answers for a name and knows no
    /// others.
    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        let message = "this source does not know which services there are";
        Err(DiscoveryError::new(DiscoveryErrorKind::Unsupported, message))
    }
}

#[async_trait]
impl<D: Discovery + ?Sized> Discovery for Arc<D> {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        (**self).resolve(service).await
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        (**self).watch(service)
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        (**self).services().await
    }
}

/// A source's answer: the instances, and how far it can be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// Every live instance.
    pub instances: Vec<Instance>,
    /// The source's own name for this state, such as an ETag; `None` where it has none. It proves nothing.
    pub revision: Option<Arc<str>>,
    /// Whether the source vouches that what it does not list is gone. Default: false.
    pub authoritative: bool,
    /// Whether the source says that this is all. Default: true.
    pub complete: bool,
    /// Whether the source started so recently that instances may not have come back to it yet, or lost so
    /// many at once that it may have been cut off from them.
    pub warming: bool,
    /// What the source knows to have been deregistered: it is gone at once, whatever else is doubted. Only
    /// answers that prove nothing need it.
    pub deregistered: Vec<InstanceId>,
    /// How long the answer holds, where the source says so (DNS).
    pub valid_for: Option<Duration>,
    /// What the source holds and could not read, in words: of this service or of others. At most 16.
    pub unread: Vec<Arc<str>>,
}

impl Resolved {
    /// An answer that the source holds to be complete, and that proves nothing.
    pub fn new(instances: Vec<Instance>) -> Self {
        Self {
            instances,
            revision: None,
            authoritative: false,
            complete: true,
            warming: false,
            deregistered: Vec::new(),
            valid_for: None,
            unread: Vec::new(),
        }
    }

    /// Sets the revision. It changes nothing about how far the answer is believed: for that see
    /// [`authoritative`](Self::authoritative). Default: none.
    #[must_use]
    pub fn revision(mut self, revision: impl Into<Arc<str>>) -> Self {
        self.revision = Some(revision.into());
        self
    }

    /// Says whether the source keeps the state itself and would know if it had lost any. Then an answer that
    /// is empty, or has lost more than half at once, is believed at once; else it is doubted for a lease.
    /// Not for a file, a cache, a proxy, or because a response has an ETag. Default: false.
    #[must_use]
    pub fn authoritative(mut self, authoritative: bool) -> Self {
        self.authoritative = authoritative;
        self
    }

    /// Says whether the source just started, or lost too many at once. Default: false.
    #[must_use]
    pub fn warming(mut self, warming: bool) -> Self {
        self.warming = warming;
        self
    }

    /// Says whether this is all. Default: true.
    #[must_use]
    pub fn complete(mut self, complete: bool) -> Self {
        self.complete = complete;
        self
    }

    /// Adds what the source holds and could not read, in words; the first 16 are kept. Default: none.
    #[must_use]
    pub fn unread(mut self, reasons: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        let room = MAX_UNREAD.saturating_sub(self.unread.len());
        self.unread.extend(reasons.into_iter().take(room).map(Into::into));
        self
    }

    /// Names what was deregistered. Default: nothing.
    #[must_use]
    pub fn deregistered(mut self, ids: Vec<InstanceId>) -> Self {
        self.deregistered = ids;
        self
    }

    /// Whether the answer alone proves that what it lacks is gone: it is authoritative and complete, and the
    /// source is not warming up.
    pub fn is_proven(&self) -> bool {
        self.authoritative && self.complete && !self.warming
    }
}

impl From<Vec<Instance>> for Resolved {
    fn from(instances: Vec<Instance>) -> Self {
        Self::new(instances)
    }
}

/// Why a source gave no list.
#[derive(Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct DiscoveryError {
    kind: DiscoveryErrorKind,
    message: String,
    #[source]
    source: Option<BoxError>,
}

/// The kinds of a [`DiscoveryError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryErrorKind {
    /// Not reachable, or not able right now.
    #[error("source unavailable")]
    Unavailable,
    /// It answered with something that is no list.
    #[error("source answers nonsense")]
    Invalid,
    /// It cannot do this; a watch that ends so is polled instead.
    #[error("not supported by the source")]
    Unsupported,
    /// The caller may not.
    #[error("not allowed")]
    NotAllowed,
}

impl DiscoveryError {
    /// An error of this kind, with the reason in words.
    pub fn new(kind: DiscoveryErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The source could not be reached, or was not able to answer.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(DiscoveryErrorKind::Unavailable, message)
    }

    /// The source could not answer, for this reason: for `map_err(DiscoveryError::other)`.
    pub fn other(source: impl Into<BoxError>) -> Self {
        let source: BoxError = source.into();
        Self::unavailable(source.to_string()).because(source)
    }

    /// The source answered with something that is no list, for this reason: for
    /// `map_err(DiscoveryError::invalid)`.
    pub fn invalid(source: impl Into<BoxError>) -> Self {
        let source: BoxError = source.into();
        Self::new(DiscoveryErrorKind::Invalid, source.to_string()).because(source)
    }

    /// Adds what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> DiscoveryErrorKind {
        self.kind
    }

    /// The reason in words.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<std::io::Error> for DiscoveryError {
    fn from(error: std::io::Error) -> Self {
        Self::unavailable(error.to_string()).because(error)
    }
}

impl From<InvalidAddress> for DiscoveryError {
    fn from(error: InvalidAddress) -> Self {
        Self::invalid(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Address;

    #[test]
    fn errors_of_others_become_the_sources_own() {
        let parse = |text: &str| -> Result<Address, DiscoveryError> { Ok(text.parse()?) };
        let error = parse("nowhere").unwrap_err();
        assert_eq!(error.kind(), DiscoveryErrorKind::Invalid);
        assert!(error.to_string().contains("nowhere"), "{error}");
        let late: Result<(), _> = Err("too late");
        let error = late.map_err(DiscoveryError::other).unwrap_err();
        assert_eq!((error.kind(), error.message()), (DiscoveryErrorKind::Unavailable, "too late"));
        assert!(std::error::Error::source(&error).is_some());
    }
}
