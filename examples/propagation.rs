//! How long it takes from a registration to a client that watches: this crate's registry over HTTP, etcd and
//! ZooKeeper, on one machine. It runs an etcd and a ZooKeeper of its own:
//! `apt-get install etcd-server zookeeperd`.
//!
//! ```text
//! cargo run --release --features etcd,zookeeper --example propagation
//! ```

#[path = "engines/mod.rs"]
mod engines;

use std::error::Error;
use std::time::Duration;

use srpc::backend::etcd::EtcdRegistry;
use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::discovery::{Discovery, Update};
use srpc::registry::{Registration, Registry};
use srpc::{Instance, Listener, ServiceName};
use tokio::time::{Instant, sleep, timeout};

use self::engines::etcd::Etcd;
use self::engines::zookeeper::ZooKeeper;

const CHANGES: usize = 1000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let http = HttpRegistry::new(&format!("http://{}", listener.address().target()))?;
    tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));
    let etcd = Etcd::alone().await;
    let zookeeper = ZooKeeper::running().await;

    println!("from `register` called to the change seen by a watch, {CHANGES} changes");
    println!("{:<12} {:>11} {:>11} {:>11}", "registry", "median ms", "p99 ms", "worst ms");
    row("over HTTP", &http).await?;
    row("etcd", &EtcdRegistry::new(&etcd.address())?).await?;
    row("ZooKeeper", &zookeeper.client()).await
}

async fn row<B: Registry + Discovery>(name: &str, backend: &B) -> Result<(), Box<dyn Error>> {
    let service: ServiceName = "Foo".parse()?;
    let mut watch = backend.watch(&service).ok_or("it has a watch")?;
    watch.next().await.ok_or("a first list")??;
    let mut took = Vec::with_capacity(CHANGES);
    for epoch in 1..=CHANGES as u64 {
        // As rare as registrations are: a burst of them is told in few answers.
        sleep(Duration::from_millis(2)).await;
        let instance = Instance::at("tcp@10.0.0.7:7001".parse()?).epoch(epoch);
        let registration = Registration::new(service.clone(), instance);
        let start = Instant::now();
        let seen = async {
            while let Some(update) = watch.next().await {
                let instances = match update? {
                    Update::Set(resolved) => resolved.instances,
                    Update::Upsert(instances) => instances,
                    _ => continue,
                };
                if instances.iter().any(|instance| instance.epoch == epoch) {
                    return Ok::<_, Box<dyn Error>>(start.elapsed());
                }
            }
            Err("the watch ended".into())
        };
        let (registered, seen) =
            tokio::join!(backend.register(&registration), timeout(Duration::from_secs(10), seen));
        registered?;
        took.push(seen??.as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    let [median, p99, worst] = [CHANGES / 2, CHANGES * 99 / 100, CHANGES - 1].map(|at| took[at]);
    println!("{name:<12} {median:>11.2} {p99:>11.2} {worst:>11.2}");
    Ok(())
}
