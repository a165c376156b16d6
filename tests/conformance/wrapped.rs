//! Sources around another one, over the registry in memory; and a file.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use srpc::backend::memory::MemoryRegistry;
use srpc::backend::static_list::StaticList;
use srpc::backend::wrap::{Cached, Filtered, Merged, Prefixed, Subset};
use srpc::discovery::{Discovery, DiscoveryError, Resolved, Update, UpdateStream};
use srpc::instance::InstanceId;
use srpc::registry::{Held, Registration, Registry};
use srpc::testing::{discovery_suite, registry_suite};
use srpc::{Instance, ServiceName};

use crate::{ONE_PROCESS, Pair, left_out};

const NEVER_DOWN: [&str; 3] = ["source_down", "restarted_empty", "watch_gap"];

async fn passes(registry: impl Registry, discovery: impl Discovery) {
    let harness = Pair { registry: Arc::new(registry), discovery: Arc::new(discovery) };
    assert_eq!(left_out(&registry_suite(&harness).await), ONE_PROCESS);
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
            vec![Arc::new(memory.clone()), Arc::new(MemoryRegistry::new())];
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

/// What a watch of a part tells makes the list that `resolve` gives, and less than the whole of it.
async fn tells_a_part(memory: MemoryRegistry, part: impl Discovery, expected: usize) {
    let service: ServiceName = "Foo".parse().unwrap();
    let instance = |n: usize, epoch: u64, zone: &str| {
        let address = format!("tcp@10.0.0.{}:1", n + 1).parse().unwrap();
        Instance::new(format!("i{n}"), address).epoch(epoch).zone(zone)
    };
    let register = async |instance: Instance| {
        let registration = Registration::new(service.clone(), instance);
        let lease = memory.register(&registration).await.unwrap();
        Held { registration, lease }
    };
    for n in 0..10 {
        register(instance(n, 1, if n % 2 == 0 { "a" } else { "b" })).await;
    }
    let mut watch = part.watch(&service).unwrap();
    let mut seen = BTreeMap::new();
    // One moves to the other zone, one comes, one goes.
    let steps =
        [instance(0, 2, "b"), instance(1, 2, "a"), instance(10, 1, "a"), instance(2, 1, "a")];
    for (at, step) in [None].into_iter().chain(steps.map(Some)).enumerate() {
        if let Some(step) = step {
            let held = register(step).await;
            if at == 4 {
                memory.deregister(&[held]).await.unwrap();
            }
        }
        while let Ok(Some(update)) =
            tokio::time::timeout(Duration::from_secs(1), watch.next()).await
        {
            match update.unwrap() {
                Update::Set(list) => {
                    seen = list.instances.into_iter().map(|one| (one.id.clone(), one)).collect();
                }
                Update::Upsert(list) => {
                    seen.extend(list.into_iter().map(|one| (one.id.clone(), one)));
                }
                Update::Remove(ids) => seen.retain(|id, _| !ids.contains(id)),
                other => panic!("{other:?}"),
            }
        }
        let resolved = part.resolve(&service).await.unwrap();
        let resolved: BTreeMap<_, _> =
            resolved.instances.into_iter().map(|one| (one.id.clone(), one)).collect();
        assert_eq!(seen, resolved, "after step {at}");
        if at == 0 {
            assert_eq!(seen.len(), expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_filter_and_a_subset_follow_their_part() {
    let memory = MemoryRegistry::new();
    tells_a_part(memory.clone(), Filtered::new(memory).zone("a"), 5).await;
    let memory = MemoryRegistry::new();
    tells_a_part(memory.clone(), Subset::new(memory, 3, 5), 3).await;
}

#[tokio::test(start_paused = true)]
async fn another_name_is_the_one_that_is_kept() {
    let memory = MemoryRegistry::new();
    let prefixed = Prefixed::new(memory.clone(), "staging.").unwrap();
    let instance = Instance::at("tcp@a:1".parse().unwrap());
    let registration = Registration::new("Foo".parse().unwrap(), instance);
    prefixed.register(&registration).await.unwrap();
    let kept = |name: &str| memory.list(Some(&name.parse().unwrap())).entries.len();
    assert_eq!((kept("staging.Foo"), kept("Foo")), (1, 0));
    assert!(Prefixed::new(memory.clone(), "1.").is_err());
}

/// A source is down when a client starts: its watch begins with the list from disk.
#[tokio::test(start_paused = true)]
async fn a_watch_begins_with_the_list_on_disk() {
    struct Broken;

    #[async_trait::async_trait]
    impl Discovery for Broken {
        async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
            Err(DiscoveryError::unavailable("down"))
        }

        fn watch(&self, _: &ServiceName) -> Option<UpdateStream> {
            Some(UpdateStream::fed(1, |updates| async move {
                updates.send(Err(DiscoveryError::unavailable("down"))).await;
            }))
        }
    }

    let folder = Folder::new("watched");
    let service: ServiceName = "Foo".parse().unwrap();
    let list = StaticList::parse("tcp@a:1").unwrap();
    Cached::new(list, &folder.0).resolve(&service).await.unwrap();
    let mut watch = Cached::new(Broken, &folder.0).watch(&service).unwrap();
    let first = watch.next().await.unwrap().unwrap();
    assert!(matches!(&first, Update::Set(list) if list.instances.len() == 1 && !list.complete));
    assert!(watch.next().await.unwrap().is_err());
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

/// What one source knows to be deregistered is told, unless another one has it.
#[tokio::test(start_paused = true)]
async fn merged_sources_tell_what_was_deregistered() {
    struct Unsure;

    #[async_trait::async_trait]
    impl Discovery for Unsure {
        async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
            let ids = ["a", "b"].map(InstanceId::from).to_vec();
            Ok(Resolved::new(Vec::new()).revision("1").warming(true).deregistered(ids))
        }
    }

    let list = StaticList::new([Instance::new("a", "tcp@a:1".parse().unwrap())]);
    let merged = Merged::new([Arc::new(list) as Arc<dyn Discovery>, Arc::new(Unsure)]);
    let resolved = merged.resolve(&"Foo".parse().unwrap()).await.unwrap();
    assert!(resolved.warming);
    assert_eq!(resolved.deregistered, [InstanceId::from("b")]);
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
