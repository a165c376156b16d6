//! A discovery of one's own in ten lines: a JSON file that names each service's addresses. The
//! framework polls it, keeps the last list while the file is missing or broken, and brings the
//! conformance suite, which is run on it here.
//!
//! ```text
//! cargo run --release --example custom_discovery
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use srpc::discovery::{Discovery, DiscoveryError, Resolved};
use srpc::testing::{self, Capability, Harness};
use srpc::{Address, Instance, Listener, Server, Service, ServiceName, XClient, async_trait};

/// What the file holds: `{"Foo": ["tcp@10.0.0.1:7001"]}`.
type Addresses = BTreeMap<String, Vec<Address>>;

#[derive(Clone)]
struct JsonFile(PathBuf);

#[async_trait]
impl Discovery for JsonFile {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let text = tokio::fs::read(&self.0).await?;
        let mut services: Addresses =
            serde_json::from_slice(&text).map_err(DiscoveryError::invalid)?;
        let addresses = services.remove(service.as_str()).unwrap_or_default();
        let instances: Vec<_> = addresses.into_iter().map(Instance::at).collect();
        Ok(instances.into())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = Directory::make()?;
    let file = JsonFile(directory.0.join("services.json"));

    // A paused clock: the suite lets leases end and polls pass without waiting for them.
    let paused =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    write(&file.0, &Addresses::new())?;
    let report = paused.block_on(testing::discovery_suite(&file));
    assert!(report.ran.contains(&"empty_and_shrunken_lists"));

    tokio::runtime::Runtime::new()?.block_on(call_through(file))
}

/// Calls a server that the file names, also after the file has become unreadable.
async fn call_through(file: JsonFile) -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    write(&file.0, &Addresses::from([("Foo".to_owned(), vec![listener.address().clone()])]))?;
    let double = |n: i64| async move { Ok::<_, Infallible>(2 * n) };
    let server = Server::new().service(Service::new("Foo").method("Double", double));
    tokio::spawn(server.serve(listener, std::future::pending()));

    let client = XClient::new("Foo", file.clone())?;
    assert_eq!(client.call::<i64, i64>("Foo.Double", &21).await?, 42);
    println!("called through {}", file.0.display());

    std::fs::write(&file.0, "half a fi")?;
    let refused = client.resolver().refresh().await;
    assert!(refused.is_err(), "a broken file is an error");
    assert_eq!(client.call::<i64, i64>("Foo.Double", &4).await?, 8);
    println!("the file is broken, and the last list serves on");
    Ok(())
}

/// What the suite must know: how to change the file, and what it cannot hold.
#[async_trait]
impl Harness for JsonFile {
    fn discovery(&self) -> Arc<dyn Discovery> {
        Arc::new(self.clone())
    }

    fn granularity(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn lacks(&self, capability: Capability) -> Option<&'static str> {
        (capability == Capability::FullState).then_some("the file holds addresses and no more")
    }

    async fn put(&self, service: &ServiceName, instance: Instance) -> Option<()> {
        let mut services = read(&self.0)?;
        let addresses = services.entry(service.as_str().to_owned()).or_default();
        addresses.retain(|address| *address != instance.address);
        addresses.push(instance.address);
        write(&self.0, &services).ok()
    }

    async fn remove(&self, service: &ServiceName, instance: &Instance) -> Option<()> {
        let mut services = read(&self.0)?;
        let addresses = services.entry(service.as_str().to_owned()).or_default();
        addresses.retain(|address| *address != instance.address);
        write(&self.0, &services).ok()
    }

    async fn kill(&self) -> Option<()> {
        std::fs::remove_file(&self.0).ok()
    }

    async fn restart_empty(&self) -> Option<()> {
        write(&self.0, &Addresses::new()).ok()
    }
}

fn read(file: &Path) -> Option<Addresses> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// Replaces the file in one step, so that nobody reads half of it.
fn write(file: &Path, services: &Addresses) -> std::io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(services)?)?;
    std::fs::rename(new, file)
}

/// A directory that goes with this value.
struct Directory(PathBuf);

impl Directory {
    fn make() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("srpc-example-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is left to the system.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
