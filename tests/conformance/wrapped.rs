//! Sources around another one, over the registry in memory; and a file.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use srpc::ServiceName;
use srpc::backend::memory::MemoryRegistry;
use srpc::backend::static_list::StaticList;
use srpc::backend::wrap::{Cached, Filtered, Merged, Prefixed, Subset};
use srpc::discovery::{Discovery, DiscoveryError, Resolved, Update};
use srpc::registry::Registry;
use srpc::testing::{discovery_suite, registry_suite};

use crate::{Pair, left_out};

const NEVER_DOWN: [&str; 3] = ["source_down", "restarted_empty", "watch_gap"];

async fn passes(registry: impl Registry, discovery: impl Discovery) {
    let harness = Pair { registry: Arc::new(registry), discovery: Arc::new(discovery) };
    assert_eq!(left_out(&registry_suite(&harness).await), ["registrar_survives_restart"]);
    assert_eq!(left_out(&discovery_suite(&harness).await), NEVER_DOWN);
}

#[tokio::test(start_paused = true)]
async fn a_filter_that_all_pass() {
    let memory = MemoryRegistry::new();
    passes(memory.clone(), Filtered::new(memory).only(|instance| !instance.id.as_str().is_empty()))
        .await;
}

#[tokio::test(start_paused = true)]
async fn another_name() {
    let memory = Prefixed::new(MemoryRegistry::new(), "staging.").unwrap();
    passes(memory.clone(), memory).await;
}

#[tokio::test(start_paused = true)]
async fn one_of_two_sources() {
    for memory_first in [true, false] {
        let memory = MemoryRegistry::new();
        let mut sources: Vec<Arc<dyn Discovery>> =
            vec![Arc::new(memory.clone()), Arc::new(StaticList::new([]))];
        if !memory_first {
            sources.reverse();
        }
        passes(memory, Merged::new(sources)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_subset_as_large_as_the_whole() {
    let memory = MemoryRegistry::new();
    passes(memory.clone(), Subset::new(memory, 1000, 3)).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_on_disk() {
    let folder = Folder::new("cached");
    let memory = MemoryRegistry::new();
    passes(memory.clone(), Cached::new(memory, &folder.0)).await;
}

/// A source that is down is told once, and the list of the others stands; that all are down is an error.
#[tokio::test(start_paused = true)]
async fn merged_sources_that_are_down_are_told() {
    struct Down;

    #[async_trait::async_trait]
    impl Discovery for Down {
        async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
            Err(DiscoveryError::unavailable("down"))
        }
    }

    let service = "Foo".parse().unwrap();
    let list = StaticList::parse("tcp@a:1").unwrap();
    let half = Merged::new([Arc::new(list) as Arc<dyn Discovery>, Arc::new(Down)]);
    let mut watch = half.watch(&service).unwrap();
    let Update::Set(first) = watch.next().await.unwrap().unwrap() else { panic!("a Set first") };
    assert_eq!((first.instances.len(), first.complete), (1, false));
    let more = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
    assert!(more.is_err(), "an old list is no news: {more:?}");
    assert_eq!(half.resolve(&service).await.unwrap().instances.len(), 1);

    let none = Merged::new([Arc::new(Down) as Arc<dyn Discovery>, Arc::new(Down)]);
    assert!(none.watch(&service).unwrap().next().await.unwrap().is_err());
    assert!(none.resolve(&service).await.is_err());
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("srpc-conformance-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(feature = "file")]
mod file {
    use std::collections::BTreeMap;

    use async_trait::async_trait;
    use parking_lot::Mutex;
    use srpc::backend::file::FileList;
    use srpc::testing::Harness;
    use srpc::{Instance, ServiceName};

    use super::*;

    /// A file that is replaced as a whole.
    struct Written {
        folder: Folder,
        list: FileList,
        services: Mutex<BTreeMap<String, Vec<Instance>>>,
    }

    impl Written {
        fn path(&self) -> PathBuf {
            self.folder.0.join("services.json")
        }

        fn change(&self, service: &ServiceName, change: impl FnOnce(&mut Vec<Instance>)) {
            let mut services = self.services.lock();
            change(services.entry(service.to_string()).or_default());
            let written = self.folder.0.join("written");
            fs::write(&written, serde_json::to_vec(&*services).unwrap()).unwrap();
            fs::rename(written, self.path()).unwrap();
        }
    }

    #[async_trait]
    impl Harness for Written {
        fn discovery(&self) -> Arc<dyn Discovery> {
            Arc::new(self.list.clone())
        }

        fn granularity(&self) -> Duration {
            Duration::from_millis(1500)
        }

        async fn put(&self, service: &ServiceName, instance: Instance) -> Option<()> {
            self.change(service, |instances| {
                instances.retain(|one| one.id != instance.id);
                instances.push(instance);
            });
            Some(())
        }

        async fn remove(&self, service: &ServiceName, instance: &Instance) -> Option<()> {
            self.change(service, |instances| instances.retain(|one| one.id != instance.id));
            Some(())
        }

        async fn kill(&self) -> Option<()> {
            fs::remove_file(self.path()).unwrap();
            Some(())
        }

        async fn restart_empty(&self) -> Option<()> {
            self.services.lock().clear();
            fs::write(self.path(), "{}").unwrap();
            Some(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file() {
        let folder = Folder::new("file");
        let list = FileList::new(folder.0.join("services.json"));
        let harness = Written { folder, list, services: Mutex::default() };
        harness.restart_empty().await;
        assert_eq!(left_out(&discovery_suite(&harness).await), [""; 0]);
    }
}
