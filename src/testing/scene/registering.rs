//! A case's words to the registry: each promise that every case relies on is checked here.

use std::slice;
use std::time::Duration;

use tokio::time::Instant;

use super::{RECOVERY, Scene};
use crate::instance::Instance;
use crate::registry::{Held, Lease, Registration, RegistryError, RegistryErrorKind, Renewal};
use crate::testing::LeftOut;

impl Scene<'_> {
    /// Registers, and takes it back when the case is over.
    pub(in crate::testing) async fn register(
        &mut self,
        instance: &Instance,
        ttl: Duration,
    ) -> Result<Held, LeftOut> {
        let registration = Registration::new(self.service.clone(), instance.clone()).ttl(ttl);
        let lease = match self.try_register(&registration).await? {
            Ok(lease) => lease,
            Err(error) => self.fails(format_args!("register takes {instance:?}: {error}")),
        };
        if lease.ttl.is_some_and(|ttl| ttl.is_zero()) {
            self.fails("a lease that is granted lasts for some time");
        }
        let held = Held { registration, lease };
        self.held.retain(|other| other.registration.instance.id != instance.id);
        self.held.push(held.clone());
        Ok(held)
    }

    /// Registers once; repeated while the registry is unavailable, as its contract allows.
    pub(in crate::testing) async fn try_register(
        &self,
        registration: &Registration,
    ) -> Result<Result<Lease, RegistryError>, LeftOut> {
        let registry = self.registry()?;
        let start = Instant::now();
        loop {
            let answer = registry.register(registration).await;
            let unavailable =
                |error: &RegistryError| error.kind() == RegistryErrorKind::Unavailable;
            if !answer.as_ref().is_err_and(unavailable) || start.elapsed() > RECOVERY {
                return Ok(answer);
            }
            self.advance(Duration::from_millis(50)).await;
        }
    }

    /// One renewal for each of `held`.
    pub(in crate::testing) async fn renew(
        &self,
        held: &[Held],
    ) -> Result<Vec<Result<Renewal, RegistryError>>, LeftOut> {
        let renewals = self.registry()?.renew(held).await;
        if renewals.len() != held.len() {
            self.fails(format_args!(
                "renew answers one result for each of {} leases, not {}",
                held.len(),
                renewals.len(),
            ));
        }
        Ok(renewals)
    }

    /// Renews one lease, which has to hold.
    pub(in crate::testing) async fn keep(&self, held: &Held) -> Result<(), LeftOut> {
        match self.renew(slice::from_ref(held)).await?.pop() {
            Some(Ok(Renewal::Renewed)) => Ok(()),
            other => self.fails(format_args!("a lease that has not ended is renewed: {other:?}")),
        }
    }

    pub(in crate::testing) async fn deregister(&self, held: &[Held]) -> Result<(), LeftOut> {
        match self.registry()?.deregister(held).await {
            Ok(()) => Ok(()),
            Err(error) => self.fails(format_args!("deregister succeeds: {error}")),
        }
    }
}
