//! One case's own service at the source under test, which it leaves as it found it.

mod looking;
mod registering;

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Capability, Harness, LeftOut};
use crate::discovery::Discovery;
use crate::instance::{Instance, ServiceName};
use crate::registry::{Held, Registry};

/// The lease of what a case does not mean to expire.
const HOLD: Duration = Duration::from_secs(120);
/// How long clients of a source may take to reach it again after it came back.
pub(super) const RECOVERY: Duration = Duration::from_secs(60);

/// One case at work: a service of its own, and what it has put there.
pub(super) struct Scene<'a> {
    case: &'static str,
    harness: &'a dyn Harness,
    service: ServiceName,
    discovery: Arc<dyn Discovery>,
    /// Put through the registry and not taken back.
    held: Vec<Held>,
    /// Put through the harness and not removed.
    put: Vec<Instance>,
}

/// The `n`th instance: an id, an address and an epoch, and nothing that a source might not keep.
pub(super) fn instance(n: usize) -> Instance {
    let address = format!("tcp@10.7.{}.{}:7001", n / 250, n % 250 + 1);
    match address.parse() {
        Ok(address) => Instance::new(format!("instance-{n}"), address).epoch(1),
        Err(error) => panic!("{error}"),
    }
}

impl<'a> Scene<'a> {
    pub(super) fn new(case: &'static str, harness: &'a dyn Harness) -> Self {
        Self::of(case, harness, &format!("conformance.{case}"))
    }

    /// The same case at another service.
    pub(super) fn elsewhere(&self) -> Self {
        Self::of(self.case, self.harness, &format!("{}.elsewhere", self.service))
    }

    fn of(case: &'static str, harness: &'a dyn Harness, service: &str) -> Self {
        let service = match service.parse() {
            Ok(service) => service,
            Err(error) => panic!("{error}"),
        };
        let discovery = harness.discovery();
        Self { case, harness, service, discovery, held: Vec::new(), put: Vec::new() }
    }

    pub(super) fn service(&self) -> &ServiceName {
        &self.service
    }

    pub(super) fn discovery(&self) -> Arc<dyn Discovery> {
        Arc::clone(&self.discovery)
    }

    /// What was put through the registry and not taken back.
    pub(super) fn held(&self) -> &[Held] {
        &self.held
    }

    pub(super) fn granularity(&self) -> Duration {
        self.harness.granularity()
    }

    pub(super) fn ttl(&self) -> Duration {
        self.harness.ttl()
    }

    pub(super) fn has(&self, capability: Capability) -> bool {
        self.harness.lacks(capability).is_none()
    }

    pub(super) fn needs(&self, capability: Capability) -> Result<(), LeftOut> {
        self.harness.lacks(capability).map_or(Ok(()), |reason| Err(LeftOut::new(reason)))
    }

    pub(super) fn registry(&self) -> Result<Arc<dyn Registry>, LeftOut> {
        self.harness.registry().ok_or_else(|| LeftOut::new("a source that is only read"))
    }

    /// Ends the case: a promise is broken.
    #[track_caller]
    pub(super) fn fails(&self, promise: impl std::fmt::Display) -> ! {
        panic!("{}: {promise}", self.case);
    }

    /// Clears up and gives the reason for leaving the case out.
    pub(super) async fn leave_out(&mut self, reason: &'static str) -> LeftOut {
        self.clear().await;
        LeftOut::new(reason)
    }

    pub(super) async fn advance(&self, by: Duration) {
        self.harness.advance(by).await;
    }

    pub(super) async fn kill(&mut self) -> Result<(), LeftOut> {
        match self.harness.kill().await {
            Some(()) => Ok(()),
            None => Err(self.leave_out("the harness does not say how to kill the source").await),
        }
    }

    /// Returns once the source answers again.
    pub(super) async fn restart_empty(&mut self) {
        if self.harness.restart_empty().await.is_none() {
            self.fails("a harness that kills the source has to bring it back");
        }
        let start = Instant::now();
        while let Err(error) = self.discovery.resolve(&self.service).await {
            if start.elapsed() > RECOVERY {
                self.fails(format_args!("a source that came back answers again; it says: {error}"));
            }
            self.advance(Duration::from_millis(50)).await;
        }
    }

    /// Makes an instance visible: through the registry, or through the harness without one.
    pub(super) async fn put(&mut self, instance: &Instance) -> Result<(), LeftOut> {
        if self.harness.registry().is_some() {
            return self.register(instance, HOLD).await.map(|_| ());
        }
        if self.harness.put(&self.service, instance.clone()).await.is_none() {
            return Err(self.leave_out("the harness does not say how to put an instance").await);
        }
        self.put.retain(|put| put.id != instance.id);
        self.put.push(instance.clone());
        Ok(())
    }

    pub(super) async fn remove(&mut self, instance: &Instance) -> Result<(), LeftOut> {
        let id = &instance.id;
        if let Some(at) = self.held.iter().position(|h| &h.registration.instance.id == id) {
            if let Err(left_out) = self.needs(Capability::Deregister) {
                return Err(self.leave_out(left_out.reason()).await);
            }
            let held = self.held.remove(at);
            self.deregister(slice::from_ref(&held)).await?;
            return Ok(());
        }
        if self.harness.remove(&self.service, instance).await.is_none() {
            return Err(self.leave_out("the harness does not say how to remove an instance").await);
        }
        self.put.retain(|put| &put.id != id);
        Ok(())
    }

    /// Removes all that the case has put, so that the next one starts with nothing even where one
    /// list serves every name.
    pub(super) async fn clear(&mut self) {
        let held = std::mem::take(&mut self.held);
        let put = std::mem::take(&mut self.put);
        if held.is_empty() && put.is_empty() {
            return;
        }
        if !held.is_empty() && self.has(Capability::Deregister) {
            // A registry is there: something is held.
            let _ = self.deregister(&held).await;
        }
        for instance in &put {
            if self.harness.remove(&self.service, instance).await.is_none() {
                return;
            }
        }
        self.empties().await;
    }
}
