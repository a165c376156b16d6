//! The door through which an instance makes itself known.

mod health_override;
mod registrar;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use self::health_override::HealthOverride;
pub(crate) use self::registrar::StatsReader;
pub use self::registrar::{Registrar, RegistrarBuilder, RegistrarStats};
use crate::error::BoxError;
use crate::instance::{Instance, InstanceId, ServiceName};

/// The lease that a registration asks for if it names none.
pub const DEFAULT_TTL: Duration = Duration::from_secs(15);

/// Where instances make themselves known: the verbs of one backend.
///
/// # Contract
/// - `register` is an idempotent upsert by (service, id, epoch): the same epoch again is a renewal,
///   a higher one replaces, a lower one fails with [`RegistryErrorKind::StaleEpoch`].
/// - Within a service an address has one holder. A registration replaces another one's at its address
///   if [`Instance::takes_address_from`] says so, and fails with [`RegistryErrorKind::Superseded`] if
///   not: an older process, or one that drains, never takes an address from the one that serves there.
/// - Once `register` returns, a `resolve` of the same backend sees the instance within the
///   granularity that the backend states.
/// - A registration that is not renewed vanishes after its TTL, never before it.
/// - `renew` answers one result for each of `held`, in order. A lease that the registry does not
///   know is [`Renewal::Lost`], a value and not an error; it does not register again.
/// - `deregister` of what is not there succeeds, and so does that of an instance that has been
///   registered with a higher epoch since: it changes nothing.
/// - One try per call: repetition, backoff and jitter live in the [`Registrar`].
///
/// # Cancellation
/// Dropping a future leaves it open whether the verb took effect. All three may be repeated.
///
/// # Errors
/// [`RegistryErrorKind::Unavailable`] is worth repeating, and so is [`RegistryErrorKind::Full`];
/// every other kind fails the same way again until something changes.
///
/// # Implementing
/// Put `#[srpc::async_trait]` on the `impl`. `&self` everywhere: an implementation is shared. A client
/// library's own keepalive is allowed if the value owns it and ends it when dropped.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Makes an instance known, or renews it.
    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError>;

    /// Keeps registrations alive, many at once, each with its full state.
    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>>;

    /// Takes registrations back.
    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError>;

    /// Sets what an operator says of an instance's health, and nothing else. The worse of this and of
    /// what the instance says is listed. The instance is told with its next renewal, as
    /// [`Renewal::Overridden`], until a state of it with a higher epoch has taken it over; its
    /// [`Registrar`] says it from then on, to whatever registry it meets. A word whose duration is over
    /// ends. False: the instance is not there.
    ///
    /// # Errors
    /// [`RegistryErrorKind::Unsupported`], the default: the registry only takes what an instance says
    /// of itself.
    async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        let _ = (service, id, word);
        let message = "this registry does not set the health of others";
        Err(RegistryError::new(RegistryErrorKind::Unsupported, message))
    }

    /// The name of the state behind it, which tells clients that two servers in front of it are one registry
    /// and not two. It changes when the state is lost. `None`, the default: it has none.
    async fn name(&self) -> Result<Option<Arc<str>>, RegistryError> {
        Ok(None)
    }
}

#[async_trait]
impl<R: Registry + ?Sized> Registry for Arc<R> {
    async fn name(&self) -> Result<Option<Arc<str>>, RegistryError> {
        (**self).name().await
    }

    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError> {
        (**self).register(registration).await
    }

    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        (**self).renew(held).await
    }

    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        (**self).deregister(held).await
    }

    async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        (**self).set_health(service, id, word).await
    }
}

/// What an instance asks of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Registration {
    /// The service that the instance offers.
    pub service: ServiceName,
    /// The instance, with its full state.
    pub instance: Instance,
    /// The lease asked for; the registry may grant less.
    pub ttl: Duration,
}

impl Registration {
    /// A registration with the default TTL of 15 s.
    pub fn new(service: ServiceName, instance: Instance) -> Self {
        Self { service, instance, ttl: DEFAULT_TTL }
    }

    /// Sets the lease asked for. Default: 15 s.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }
}

/// What a registry granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The registry's name for it; empty where the registry has none.
    pub id: Arc<str>,
    /// How long it holds without renewal. `None`: the registry does not say, so the TTL asked for
    /// is taken.
    pub ttl: Option<Duration>,
}

impl Lease {
    /// A lease of this name and duration.
    pub fn new(id: impl Into<Arc<str>>, ttl: Option<Duration>) -> Self {
        Self { id: id.into(), ttl }
    }
}

/// A registration with the lease that keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What was registered, with its full state as of now.
    pub registration: Registration,
    /// What was granted for it.
    pub lease: Lease,
}

/// What became of a lease that was to be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewal {
    /// It holds for a full TTL from now.
    Renewed,
    /// The same, and an operator has said how the instance is: see [`Registry::set_health`].
    Overridden(HealthOverride),
    /// The registry does not know it: expired, or the registry forgot. Register again.
    Lost,
}

impl Renewal {
    /// Whether the lease holds for a full TTL from now.
    pub fn holds(&self) -> bool {
        match self {
            Self::Renewed | Self::Overridden(_) => true,
            Self::Lost => false,
        }
    }
}

/// Why a registry could not do as asked.
#[derive(Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct RegistryError {
    kind: RegistryErrorKind,
    message: String,
    retry_after: Option<Duration>,
    holder: Option<InstanceId>,
    #[source]
    source: Option<BoxError>,
}

/// The kinds of a [`RegistryError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryErrorKind {
    /// Not reachable, or not able right now: try again.
    #[error("registry unavailable")]
    Unavailable,
    /// The same id is registered with a higher epoch.
    #[error("stale epoch")]
    StaleEpoch {
        /// The epoch that the registry holds.
        held: u64,
    },
    /// Another instance of the service holds the address, and keeps it:
    /// [`RegistryError::holder`] names it.
    #[error("superseded")]
    Superseded {
        /// The epoch of the instance that holds the address.
        held: u64,
    },
    /// The registration breaks a rule of the registry.
    #[error("invalid registration")]
    Invalid,
    /// The caller may not.
    #[error("not allowed")]
    NotAllowed,
    /// A cap of the registry is reached: there is room again when others have left.
    #[error("registry full")]
    Full,
    /// It cannot do this, whoever asks.
    #[error("not supported by the registry")]
    Unsupported,
}

impl RegistryErrorKind {
    /// Whether another process has replaced the one that asks.
    pub fn is_superseded(self) -> bool {
        matches!(self, Self::StaleEpoch { .. } | Self::Superseded { .. })
    }
}

impl RegistryError {
    /// An error of this kind, with the reason in words.
    pub fn new(kind: RegistryErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None, holder: None, source: None }
    }

    /// An error worth repeating.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(RegistryErrorKind::Unavailable, message)
    }

    /// An error worth repeating, for this reason: for `map_err(RegistryError::other)`.
    pub fn other(source: impl Into<BoxError>) -> Self {
        let source: BoxError = source.into();
        Self::unavailable(source.to_string()).because(source)
    }

    /// The refusal of a registration whose address this other instance keeps.
    pub fn superseded(holder: &Instance) -> Self {
        let Instance { id, epoch, address, health, .. } = holder;
        let message = format!("{address} is held by {id}, {health}, with epoch {epoch}");
        Self::new(RegistryErrorKind::Superseded { held: *epoch }, message).held_by(id.clone())
    }

    /// Adds the instance that holds what was asked for.
    #[must_use]
    pub fn held_by(mut self, holder: InstanceId) -> Self {
        self.holder = Some(holder);
        self
    }

    /// Adds what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds how long the registry asks to be left alone.
    #[must_use]
    pub fn retry_in(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Whether another process has replaced the one that asks.
    pub fn is_superseded(&self) -> bool {
        self.kind.is_superseded()
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> RegistryErrorKind {
        self.kind
    }

    /// The reason in words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The instance that holds what was asked for; `None`: nobody does, or the registry does not say.
    pub fn holder(&self) -> Option<&InstanceId> {
        self.holder.as_ref()
    }

    /// How long the registry asks to be left alone; `None`: it does not say.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}
