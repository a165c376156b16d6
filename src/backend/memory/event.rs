//! Tracing events about registrations.

use std::sync::Arc;

use crate::instance::{Address, Health, Instance, InstanceId, ServiceName};
use crate::sync::event;

/// What became of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend) enum RegistrationChange {
    Registered,
    /// The same id has a newer state.
    Changed,
    /// Another instance has its address.
    Replaced,
    Expired,
    Deregistered,
}

/// A change of a registration that is not told yet: it is noted under a lock, and emitted without it.
#[derive(Debug)]
pub(in crate::backend) struct RegistrationEvent {
    change: RegistrationChange,
    service: Option<ServiceName>,
    id: InstanceId,
    address: Address,
    epoch: u64,
    health: Health,
    /// Who caused it: a token, a host, or the instance that has the address.
    by: Option<Arc<str>>,
}

impl RegistrationEvent {
    pub(in crate::backend) fn new(
        change: RegistrationChange,
        service: Option<&ServiceName>,
        instance: &Instance,
        by: Option<Arc<str>>,
    ) -> Self {
        let Instance { id, address, epoch, health, .. } = instance;
        let (id, address) = (id.clone(), address.clone());
        Self { change, service: service.cloned(), id, address, epoch: *epoch, health: *health, by }
    }

    pub(in crate::backend) fn emit(&self) {
        let service = self.service.as_ref().map(ServiceName::as_str);
        let (id, address) = (self.id.as_str(), self.address.as_str());
        let (epoch, health, by) = (self.epoch, self.health.as_str(), self.by.as_deref());
        match self.change {
            RegistrationChange::Registered => {
                event!(INFO, service, id, address, epoch, health, by, "registered");
            }
            RegistrationChange::Changed => {
                event!(INFO, service, id, address, epoch, health, by, "changed");
            }
            RegistrationChange::Replaced => {
                event!(
                    INFO,
                    service,
                    id,
                    address,
                    epoch,
                    by,
                    "replaced: another instance has its address"
                );
            }
            RegistrationChange::Expired => {
                event!(INFO, service, id, address, epoch, "lease expired");
            }
            RegistrationChange::Deregistered => {
                event!(INFO, service, id, address, epoch, "deregistered");
            }
        }
    }
}
