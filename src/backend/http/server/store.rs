//! What a server serves: a registry in its own memory, or one that it stands in front of.

use std::sync::Arc;

use super::front::Front;
use super::problem::Refusal;
use crate::backend::memory::{Listing, MemoryRegistry, Owner};
use crate::instance::{Address, InstanceId, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, Registry, RegistryError, Renewal,
};

#[derive(Clone)]
pub(super) enum Store {
    Memory(MemoryRegistry),
    Front(Arc<Front>),
}

impl Store {
    /// The lease, and the service's revision where it is known.
    pub(super) async fn register(
        &self,
        registration: &Registration,
        owner: &Owner,
    ) -> Result<(Lease, Option<Arc<str>>), RegistryError> {
        match self {
            Self::Memory(memory) => {
                let lease = memory.register_by(registration, owner)?;
                Ok((lease, Some(memory.revision(&registration.service))))
            }
            Self::Front(front) => Ok((front.register(registration, owner).await?, None)),
        }
    }

    /// Registers or renews by address alone. False: there is no room for it.
    pub(super) async fn register_address(
        &self,
        service: Option<&ServiceName>,
        address: &Address,
        owner: &Owner,
    ) -> Result<bool, Refusal> {
        match self {
            Self::Memory(memory) => Ok(memory.register_address_by(service, address, owner)),
            Self::Front(front) => front.register_address(service, address, owner).await,
        }
    }

    pub(super) async fn renew(
        &self,
        held: Vec<Held>,
        owner: &Owner,
    ) -> Vec<Result<Renewal, RegistryError>> {
        match self {
            Self::Memory(memory) => memory.renew(&held).await,
            Self::Front(front) => front.renew(held, owner).await,
        }
    }

    pub(super) async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        match self {
            Self::Memory(memory) => memory.deregister(held).await,
            Self::Front(front) => front.deregister(held).await,
        }
    }

    /// The name that its answers tell; `None`: it has none, or it is not known right now.
    pub(super) async fn name(&self) -> Option<Arc<str>> {
        match self {
            Self::Memory(memory) => Some(memory.incarnation()),
            Self::Front(front) => front.name().await,
        }
    }

    /// False: the instance is not there.
    pub(super) async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        match self {
            Self::Memory(memory) => Ok(memory.set_health(service, id, word.clone())),
            Self::Front(front) => front.set_health(service, id, word).await,
        }
    }

    /// What is registered for one service, or for all and none.
    pub(super) async fn list(&self, service: Option<&ServiceName>) -> Result<Listing, Refusal> {
        match self {
            Self::Memory(memory) => Ok(memory.list(service)),
            Self::Front(front) => front.list(service).await,
        }
    }

    pub(super) async fn services(&self) -> Result<Vec<ServiceName>, Refusal> {
        match self {
            Self::Memory(memory) => Ok(memory.services()),
            Self::Front(front) => front.services().await,
        }
    }

    /// Returns once the service's revision may differ from the one given, at once if it does.
    ///
    /// # Errors
    /// The revision is not known.
    pub(super) async fn changed(
        &self,
        service: &ServiceName,
        revision: &str,
    ) -> Result<(), Refusal> {
        match self {
            Self::Memory(memory) => {
                memory.changed(service, revision).await;
                Ok(())
            }
            Self::Front(front) => front.changed(service, revision).await,
        }
    }
}
