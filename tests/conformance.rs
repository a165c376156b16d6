//! Every registry and discovery of the crate against the conformance suite, on a paused clock.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[cfg(feature = "http")]
#[path = "conformance/http.rs"]
mod http;
#[cfg(all(feature = "http", feature = "tls"))]
#[path = "conformance/https.rs"]
mod https;
#[path = "conformance/wrapped.rs"]
mod wrapped;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use srpc::backend::memory::MemoryRegistry;
use srpc::backend::static_list::StaticList;
use srpc::discovery::{Discovery, DiscoveryError, Resolved};
use srpc::registry::Registry;
use srpc::testing::{Capability, Harness, Report, discovery_suite, registry_suite};
use srpc::{Instance, ServiceName};

/// What is left out where nothing can be killed or cut off.
const ONE_PROCESS: [&str; 2] = ["registrar_survives_restart", "expired_together"];

#[tokio::test(start_paused = true)]
async fn the_registry_in_memory() {
    let memory = MemoryRegistry::new();
    let harness = Pair { registry: Arc::new(memory.clone()), discovery: Arc::new(memory) };
    assert_eq!(left_out(&registry_suite(&harness).await), ONE_PROCESS);
    assert_eq!(
        left_out(&discovery_suite(&harness).await),
        ["source_down", "restarted_empty", "watch_gap"]
    );
}

/// What passes calls on must pass on every method: a forgotten `watch` would poll for ever.
#[tokio::test(start_paused = true)]
async fn the_registry_in_memory_behind_trait_objects() {
    let memory = MemoryRegistry::new();
    let registry: Arc<dyn Registry> = Arc::new(memory.clone());
    let discovery: Arc<dyn Discovery> = Arc::new(memory);
    let harness = Pair { registry: Arc::new(registry), discovery: Arc::new(discovery) };
    assert_eq!(left_out(&registry_suite(&harness).await), ONE_PROCESS);
    assert_eq!(
        left_out(&discovery_suite(&harness).await),
        ["source_down", "restarted_empty", "watch_gap"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_static_list() {
    let harness = ByHand { list: StaticList::new([]), instances: Mutex::default() };
    assert_eq!(
        left_out(&discovery_suite(&harness).await),
        [
            "unknown_service_is_empty",
            "services_are_separate",
            "services_are_listed",
            "source_down",
            "restarted_empty",
            "watch_gap",
        ]
    );
    assert_eq!(registry_suite(&harness).await.ran, ["many_instances", "full_state_survives"]);
}

#[tokio::test(start_paused = true)]
async fn a_discovery_of_ones_own() {
    let harness = Shelf(Arc::new(Books(Mutex::new(Some(Vec::new())))));
    assert_eq!(
        left_out(&discovery_suite(&harness).await),
        [
            "unknown_service_is_empty",
            "services_are_separate",
            "services_are_listed",
            "watch_first_is_set",
            "watch_sees_changes",
            "watch_gap",
        ]
    );
}

fn left_out(report: &Report) -> Vec<&'static str> {
    report.left_out.iter().map(|(case, _)| *case).collect()
}

/// A registry that lives in this process, and so cannot be killed.
struct Pair {
    registry: Arc<dyn Registry>,
    discovery: Arc<dyn Discovery>,
}

impl Harness for Pair {
    fn registry(&self) -> Option<Arc<dyn Registry>> {
        Some(Arc::clone(&self.registry))
    }

    fn discovery(&self) -> Arc<dyn Discovery> {
        Arc::clone(&self.discovery)
    }

    fn granularity(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn lacks(&self, capability: Capability) -> Option<&'static str> {
        let reason = "nobody is cut off within one process";
        (capability == Capability::MassExpiry).then_some(reason)
    }
}

/// A list that is set by hand, as a whole.
struct ByHand {
    list: StaticList,
    instances: Mutex<Vec<Instance>>,
}

impl ByHand {
    fn change(&self, change: impl FnOnce(&mut Vec<Instance>)) {
        let mut instances = self.instances.lock();
        change(&mut instances);
        self.list.update(instances.clone());
    }
}

#[async_trait]
impl Harness for ByHand {
    fn discovery(&self) -> Arc<dyn Discovery> {
        Arc::new(self.list.clone())
    }

    fn granularity(&self) -> Duration {
        Duration::from_millis(10)
    }

    fn lacks(&self, capability: Capability) -> Option<&'static str> {
        (capability == Capability::Names).then_some("one list serves every name")
    }

    async fn put(&self, _: &ServiceName, instance: Instance) -> Option<()> {
        self.change(|instances| {
            instances.retain(|one| one.id != instance.id);
            instances.push(instance);
        });
        Some(())
    }

    async fn remove(&self, _: &ServiceName, instance: &Instance) -> Option<()> {
        self.change(|instances| instances.retain(|one| one.id != instance.id));
        Some(())
    }
}

/// A discovery as a user writes it: nothing but the required method. `None`: it is down.
struct Books(Mutex<Option<Vec<Instance>>>);

#[async_trait]
impl Discovery for Books {
    async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let instances = self.0.lock().clone();
        let down = || DiscoveryError::unavailable("the shelf is gone");
        Ok(instances.ok_or_else(down)?.into())
    }
}

struct Shelf(Arc<Books>);

#[async_trait]
impl Harness for Shelf {
    fn discovery(&self) -> Arc<dyn Discovery> {
        Arc::clone(&self.0) as Arc<dyn Discovery>
    }

    fn granularity(&self) -> Duration {
        Duration::from_millis(10)
    }

    fn lacks(&self, capability: Capability) -> Option<&'static str> {
        (capability == Capability::Names).then_some("one list serves every name")
    }

    async fn put(&self, _: &ServiceName, instance: Instance) -> Option<()> {
        let mut instances = self.0.0.lock();
        let instances = instances.get_or_insert_default();
        instances.retain(|one| one.id != instance.id);
        instances.push(instance);
        Some(())
    }

    async fn remove(&self, _: &ServiceName, instance: &Instance) -> Option<()> {
        self.0.0.lock().get_or_insert_default().retain(|one| one.id != instance.id);
        Some(())
    }

    async fn kill(&self) -> Option<()> {
        *self.0.0.lock() = None;
        Some(())
    }

    async fn restart_empty(&self) -> Option<()> {
        *self.0.0.lock() = Some(Vec::new());
        Some(())
    }
}
