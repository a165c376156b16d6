//! The HTTP registry, over its own server and over one that knows the old contract alone.

#[path = "seed.rs"]
mod seed;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use srpc::Listener;
use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::backend::memory::MemoryRegistry;
use srpc::discovery::Discovery;
use srpc::instance::Address;
use srpc::registry::Registry;
use srpc::testing::{Capability, Harness, discovery_suite, registry_suite};
use srpc::transport::{Memory, Transport};
use tokio::task::JoinHandle;

use crate::left_out;

#[tokio::test(start_paused = true)]
async fn over_its_own_server() {
    let harness = OverHttp::start(Kind::Own).await;
    assert_eq!(left_out(&registry_suite(&harness).await), [""; 0]);
    assert_eq!(left_out(&discovery_suite(&harness).await), [""; 0]);
}

/// A registry that stands in front of another one keeps what that one promises.
#[tokio::test(start_paused = true)]
async fn over_a_server_in_front_of_another_registry() {
    let harness = OverHttp::start(Kind::Front).await;
    assert_eq!(left_out(&registry_suite(&harness).await), [""; 0]);
    assert_eq!(left_out(&discovery_suite(&harness).await), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn over_a_server_of_the_old_contract() {
    let harness = OverHttp::start(Kind::Seed).await;
    assert_eq!(
        registry_suite(&harness).await.ran,
        [
            "register_and_see",
            "register_is_idempotent",
            "renew_keeps_alive",
            "expiry",
            "a_lease_ends_alone",
            "many_instances",
            "registrar_survives_restart",
        ]
    );
    assert_eq!(
        discovery_suite(&harness).await.ran,
        ["many_instances", "source_down", "restarted_empty"]
    );
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Own,
    Front,
    Seed,
}

/// A server on a network in memory, and its client.
pub(super) struct OverHttp {
    kind: Kind,
    network: Arc<dyn Transport>,
    address: Address,
    client: HttpRegistry,
    /// `None` while it is killed.
    serving: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl OverHttp {
    async fn start(kind: Kind) -> Self {
        let url = "http://127.0.0.1:9999/srpc/registry";
        Self::start_at(kind, Arc::new(Memory::new()), "tcp@127.0.0.1:9999", url).await
    }

    /// On any network, where the server listens at `address` and its client knows it by `url`.
    pub(super) async fn start_at(
        kind: Kind,
        network: Arc<dyn Transport>,
        address: &str,
        url: &str,
    ) -> Self {
        let client = HttpRegistry::builder(url).transport(Arc::clone(&network)).build().unwrap();
        let address = address.parse().unwrap();
        let serving = tokio::sync::Mutex::new(None);
        let harness = Self { kind, network, address, client, serving };
        harness.restart_empty().await;
        harness
    }

    async fn serve(kind: Kind, listener: Listener) {
        match kind {
            Kind::Own => {
                RegistryServer::new().serve(listener, std::future::pending()).await.unwrap();
            }
            Kind::Front => {
                let behind = Arc::new(MemoryRegistry::builder().warming(true).build());
                let front = RegistryServer::builder().backend(behind.clone(), behind);
                front.build().serve(listener, std::future::pending()).await.unwrap();
            }
            Kind::Seed => seed::serve(listener).await,
        }
    }
}

#[async_trait]
impl Harness for OverHttp {
    fn registry(&self) -> Option<Arc<dyn Registry>> {
        Some(Arc::new(self.client.clone()))
    }

    fn discovery(&self) -> Arc<dyn Discovery> {
        Arc::new(self.client.clone())
    }

    fn granularity(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn ttl(&self) -> Duration {
        match self.kind {
            Kind::Own | Kind::Front => Duration::from_secs(6),
            Kind::Seed => seed::TTL,
        }
    }

    fn lacks(&self, capability: Capability) -> Option<&'static str> {
        if self.kind != Kind::Seed {
            return None;
        }
        Some(match capability {
            Capability::Names => "its one list serves every name",
            Capability::Deregister => "it takes nothing back",
            Capability::LostLeases => "whatever is sent registers or renews",
            _ => "it keeps addresses and nothing else",
        })
    }

    async fn kill(&self) -> Option<()> {
        let serving = self.serving.lock().await.take()?;
        serving.abort();
        // The address is free again once the listener is dropped.
        let _ = serving.await;
        Some(())
    }

    async fn restart_empty(&self) -> Option<()> {
        let listener = self.network.bind(&self.address).await.unwrap();
        let serving = tokio::spawn(Self::serve(self.kind, listener));
        *self.serving.lock().await = Some(serving);
        Some(())
    }
}

impl Drop for OverHttp {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.get_mut() {
            serving.abort();
        }
    }
}
