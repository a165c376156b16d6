//! What the suite must know of the thing under test.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::discovery::Discovery;
use crate::instance::{Instance, ServiceName};
use crate::registry::Registry;

/// The thing under test: how to reach it, how exact it is, and what it lacks.
///
/// # Implementing
/// Put `#[srpc::async_trait]` on the `impl`. Two methods are required. Each of the others has a default that
/// says "cannot"; the cases that need it are then left out, and printed. At the start the source holds no
/// instance of a service whose name begins with `conformance.`, or, if one list serves every name, none at
/// all.
#[async_trait]
pub trait Harness: Send + Sync {
    /// The discovery under test. Called more than once: all answers look at the same source.
    fn discovery(&self) -> Arc<dyn Discovery>;

    /// How late a lease may end, and how late a change may be seen. More than what one request takes
    /// on the clock in use, and never zero.
    fn granularity(&self) -> Duration;

    /// The registry under test, which writes to the source that `discovery` reads. Default: none,
    /// a source that is only read.
    fn registry(&self) -> Option<Arc<dyn Registry>> {
        None
    }

    /// The lease that cases about leases ask for. A registry that grants no such short one, or has
    /// only one to grant, names another here. Default: 6 s.
    fn ttl(&self) -> Duration {
        Duration::from_secs(6)
    }

    /// Why the thing under test lacks a capability; `None` where it has it. Default: lacks none.
    fn lacks(&self, capability: Capability) -> Option<&'static str> {
        let _ = capability;
        None
    }

    /// Puts an instance into a source that has no registry, replacing the one of the same id.
    /// Default: `None`, there is no way.
    async fn put(&self, service: &ServiceName, instance: Instance) -> Option<()> {
        let _ = (service, instance);
        None
    }

    /// Removes what `put` put. Default: `None`, there is no way.
    async fn remove(&self, service: &ServiceName, instance: &Instance) -> Option<()> {
        let _ = (service, instance);
        None
    }

    /// Makes the source fail: once this returns, it answers no request. A harness that can do this
    /// must also be able to restart. Default: `None`, there is no way.
    async fn kill(&self) -> Option<()> {
        None
    }

    /// Brings a killed source back where it was, without anything that it held. Default: `None`,
    /// there is no way.
    async fn restart_empty(&self) -> Option<()> {
        None
    }

    /// Lets time pass. Default: `tokio::time::sleep`, which takes no time under a paused clock.
    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }
}

/// What a case may need and a source may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// Keeps services apart: a list holds only what was registered under its name.
    Names,
    /// Takes a registration back at once.
    Deregister,
    /// Keeps ids, and orders the registrations of one id by epoch.
    Epochs,
    /// Tells the renewal of a lease that it does not know from any other.
    LostLeases,
    /// Keeps weight, zone, version, metadata and health.
    FullState,
    /// Keeps what an operator says of an instance's health, and tells the instance.
    HealthOverrides,
    /// Does not prove instances gone whose leases ended together: it, or those who renew, may have been cut
    /// off. A registry within its clients' process may lack it.
    MassExpiry,
}
