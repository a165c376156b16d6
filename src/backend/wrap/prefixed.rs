//! A source or a registry under other names.

use async_trait::async_trait;

use crate::discovery::{Discovery, DiscoveryError, DiscoveryErrorKind, Resolved, UpdateStream};
use crate::instance::{InstanceId, InvalidServiceName, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, Registry, RegistryError, RegistryErrorKind, Renewal,
};

/// A source, a registry or both, in which a service has a longer name than its users say: with the prefix
/// `staging.`, `Foo` is `staging.Foo` there. So several worlds share one registry.
#[derive(Clone, Debug)]
pub struct Prefixed<T> {
    within: T,
    prefix: String,
}

impl<T> Prefixed<T> {
    /// `within`, where each service's name begins with `prefix`.
    ///
    /// # Errors
    /// If no service's name can begin so.
    pub fn new(within: T, prefix: impl Into<String>) -> Result<Self, InvalidServiceName> {
        let prefix = prefix.into();
        format!("{prefix}X").parse::<ServiceName>()?;
        Ok(Self { within, prefix })
    }

    fn name(&self, service: &ServiceName) -> Result<ServiceName, InvalidServiceName> {
        format!("{}{service}", self.prefix).parse()
    }

    fn registration(&self, registration: &Registration) -> Result<Registration, RegistryError> {
        let service = self
            .name(&registration.service)
            .map_err(|error| RegistryError::new(RegistryErrorKind::Invalid, error.to_string()))?;
        Ok(Registration { service, ..registration.clone() })
    }

    fn held(&self, held: &[Held]) -> Result<Vec<Held>, RegistryError> {
        held.iter()
            .map(|Held { registration, lease }| {
                let registration = self.registration(registration)?;
                Ok(Held { registration, lease: lease.clone() })
            })
            .collect()
    }
}

#[async_trait]
impl<D: Discovery> Discovery for Prefixed<D> {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let service = self.name(service).map_err(too_long)?;
        self.within.resolve(&service).await
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        match self.name(service) {
            Ok(service) => self.within.watch(&service),
            Err(error) => Some(UpdateStream::fed(1, |updates| async move {
                updates.send(Err(too_long(error))).await;
            })),
        }
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        let within = self.within.services().await?;
        let ours = within.iter().filter_map(|name| name.as_str().strip_prefix(&self.prefix));
        Ok(ours.filter_map(|name| name.parse().ok()).collect())
    }
}

#[async_trait]
impl<R: Registry> Registry for Prefixed<R> {
    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError> {
        self.within.register(&self.registration(registration)?).await
    }

    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        match self.held(held) {
            Ok(within) => self.within.renew(&within).await,
            // What was never registered under a name that is too long.
            Err(_) => held.iter().map(|_| Ok(Renewal::Lost)).collect(),
        }
    }

    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        self.within.deregister(&self.held(held)?).await
    }

    async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        match self.name(service) {
            Ok(service) => self.within.set_health(&service, id, word).await,
            Err(_) => Ok(false),
        }
    }

    async fn name(&self) -> Result<Option<std::sync::Arc<str>>, RegistryError> {
        self.within.name().await
    }
}

fn too_long(error: InvalidServiceName) -> DiscoveryError {
    DiscoveryError::new(DiscoveryErrorKind::Invalid, error.to_string())
}
