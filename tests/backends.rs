//! Backends whose servers are programs of others, against those programs: the conformance suite, and
//! what becomes of calls while they are killed and restarted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]
#![allow(clippy::disallowed_types, reason = "other programs run on the machine's clock")]
#![allow(clippy::disallowed_methods, reason = "a server of names has sockets of its own")]

#[path = "backends/dns.rs"]
mod dns;
#[path = "../examples/engines/mod.rs"]
mod engines;
#[path = "backends/etcd.rs"]
mod etcd;
#[path = "backends/fronts.rs"]
mod fronts;
#[cfg(feature = "tls")]
#[path = "support/pki.rs"]
mod pki;
#[path = "backends/zookeeper.rs"]
mod zookeeper;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use srpc::discovery::{Discovery, Endpoint, Resolver, Snapshot};
use srpc::registry::{Held, Registration, Registry};
use srpc::testing::{Capability, Harness};
use srpc::{Instance, ServiceName};
use tokio::time::{Instant, sleep, timeout};

/// A program that is started, killed and started again where it was.
#[async_trait]
trait Engine: Send + Sync {
    /// Returns once no request is answered any more.
    async fn kill(&self);

    /// Starts it again, with what it had or without. Returns once it answers.
    async fn start(&self, empty: bool);
}

/// A backend under the conformance suite, with the program that it is a client of.
struct Subject<E> {
    engine: E,
    registry: Option<Arc<dyn Registry>>,
    discovery: Arc<dyn Discovery>,
    granularity: Duration,
    ttl: Duration,
}

#[async_trait]
impl<E: Engine> Harness for Subject<E> {
    fn discovery(&self) -> Arc<dyn Discovery> {
        Arc::clone(&self.discovery)
    }

    fn registry(&self) -> Option<Arc<dyn Registry>> {
        self.registry.clone()
    }

    fn granularity(&self) -> Duration {
        self.granularity
    }

    fn ttl(&self) -> Duration {
        self.ttl
    }

    fn lacks(&self, _: Capability) -> Option<&'static str> {
        None
    }

    async fn kill(&self) -> Option<()> {
        self.engine.kill().await;
        Some(())
    }

    async fn restart_empty(&self) -> Option<()> {
        self.engine.start(true).await;
        Some(())
    }
}

/// A server that hangs is an error within the limit of a request, ends a watch, and is back when it goes on.
async fn hangs(backend: &(impl Discovery + Registry), signal: impl Fn(&str)) {
    let service: ServiceName = "Foo".parse().unwrap();
    let registration =
        Registration::new(service.clone(), Instance::at("tcp@10.0.0.7:1".parse().unwrap()));
    backend.register(&registration).await.unwrap();
    let mut watch = backend.watch(&service).unwrap();
    watch.next().await.unwrap().unwrap();
    signal("-STOP");
    let start = Instant::now();
    let limit = Duration::from_millis(5500);
    // A process with many threads does not stop at once.
    while timeout(limit, backend.resolve(&service)).await.expect("within 5 s").is_ok() {
        assert!(start.elapsed() < Duration::from_secs(5), "it stops");
    }
    assert!(timeout(limit, backend.register(&registration)).await.expect("within 5 s").is_err());
    let ended = async { while let Some(Ok(_)) = watch.next().await {} };
    timeout(Duration::from_secs(12), ended).await.expect("a silent watch ends");
    println!("figure: a watch of a server that hangs has ended after {:?}", start.elapsed());
    signal("-CONT");
    while backend.resolve(&service).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "it answers again");
    }
}

/// As after a pause of the server that is longer than leases: all instances vanish, and none was deregistered.
/// They are kept, doubtful; what is deregistered is gone at once.
async fn keeps_what_vanishes_together<B>(client: impl Fn() -> B, vanish: impl FnOnce(B))
where
    B: Discovery + Registry,
{
    let foo: ServiceName = "Foo".parse().unwrap();
    let registration = |n: usize| {
        let address = format!("tcp@10.0.0.{n}:7001").parse().unwrap();
        Registration::new(foo.clone(), Instance::new(format!("i{n}"), address).epoch(1))
    };
    let servers = client();
    for n in 1..=3 {
        servers.register(&registration(n)).await.unwrap();
    }
    let resolver = Resolver::new(foo.clone(), Arc::new(client()));
    until(&resolver, |snapshot| snapshot.endpoints.len() == 3).await;
    vanish(servers);
    until(&resolver, |snapshot| snapshot.endpoints.iter().all(Endpoint::is_doubtful)).await;
    assert_eq!(resolver.snapshot().endpoints.len(), 3, "they are picked last");

    let servers = client();
    let mut held = Vec::new();
    for n in 1..=3 {
        let lease = servers.register(&registration(n)).await.unwrap();
        held.push(Held { registration: registration(n), lease });
    }
    until(&resolver, |snapshot| !snapshot.endpoints.iter().any(Endpoint::is_doubtful)).await;
    servers.deregister(&held).await.unwrap();
    let left = Instant::now();
    until(&resolver, |snapshot| snapshot.endpoints.is_empty()).await;
    assert!(left.elapsed() < Duration::from_secs(4), "{:?}", left.elapsed());
}

/// Waits until a resolver's list is so.
async fn until(resolver: &Resolver, holds: impl Fn(&Snapshot) -> bool) {
    let start = Instant::now();
    while !holds(&resolver.snapshot()) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", resolver.snapshot());
        sleep(Duration::from_millis(20)).await;
    }
}
