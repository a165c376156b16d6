//! Registry servers in front of etcd and ZooKeeper, two of them: what is registered at the one is found at
//! the other.

use std::sync::Arc;
use std::time::Duration;

use srpc::Instance;
use srpc::Listener;
use srpc::backend::OpenOptions;
use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::discovery::Discovery;
use srpc::instance::{Health, ServiceName};
use srpc::registry::{Held, Registration, Registry, Renewal};
use srpc::testing::{discovery_suite, registry_suite};
use tokio::task::JoinHandle;

use crate::engines::etcd::Etcd;
use crate::engines::zookeeper::ZooKeeper;
use crate::{Engine, Subject};

/// A server on a real socket, in front of what a URL names.
struct Front {
    url: String,
    serving: JoinHandle<()>,
}

impl Front {
    async fn of(url: &str) -> Self {
        let opened = OpenOptions::new().lease_each(true).open(url).unwrap();
        let server = RegistryServer::builder()
            .backend(opened.discovery, opened.registry.unwrap())
            .rate(1_000_000)
            .rate_per_host(1_000_000)
            .build();
        let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.address().target());
        let serving = tokio::spawn(async move {
            server.serve(listener, std::future::pending()).await.unwrap();
        });
        Self { url, serving }
    }

    fn client(&self) -> HttpRegistry {
        HttpRegistry::new(&self.url).unwrap()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Registers at the one, and looks at the other.
fn across<E>(engine: E, [one, two]: &[Front; 2], granularity: Duration) -> Subject<E> {
    Subject {
        engine,
        registry: Some(Arc::new(one.client())),
        discovery: Arc::new(two.client()),
        granularity,
        ttl: Duration::from_secs(6),
    }
}

async fn keep_what_is_promised<E: Engine>(engine: E, url: &str, granularity: Duration) {
    let fronts = [Front::of(url).await, Front::of(url).await];
    let subject = across(engine, &fronts, granularity);
    assert_eq!(registry_suite(&subject).await.left_out, []);
    assert_eq!(discovery_suite(&subject).await.left_out, []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn two_over_etcd_register_and_list_as_promised() {
    let etcd = Etcd::alone().await;
    let url = format!("etcd://{}", etcd.address());
    keep_what_is_promised(etcd, &url, Duration::from_millis(2500)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs zookeeperd"]
async fn two_over_zookeeper_register_and_list_as_promised() {
    let zookeeper = ZooKeeper::running().await;
    let url = format!("zookeeper://{}", zookeeper.address());
    keep_what_is_promised(zookeeper, &url, Duration::from_secs(3)).await;
}

/// What the one granted the other renews, and takes back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn one_of_two_over_etcd_is_killed_and_the_other_goes_on_as_promised() {
    let etcd = Etcd::alone().await;
    let url = format!("etcd://{}", etcd.address());
    let (one, two) = (Front::of(&url).await, Front::of(&url).await);
    let client = HttpRegistry::new(&format!("{},{}", one.url, two.url)).unwrap();
    let service: ServiceName = "Foo".parse().unwrap();
    let instance = Instance::new("a", "tcp@10.0.0.7:7001".parse().unwrap());
    let registration = Registration::new(service.clone(), instance.clone());
    let lease = client.register(&registration).await.unwrap();
    let held = [Held { registration, lease }];
    assert!(client.set_health(&service, &instance.id, &Health::Draining.into()).await.unwrap());
    drop(one);
    for _ in 0..3 {
        let told = Renewal::Overridden(Health::Draining.into());
        assert_eq!(client.renew(&held).await[0].as_ref().unwrap(), &told);
    }
    let listed = client.resolve(&service).await.unwrap().instances;
    assert_eq!(listed, [instance.health(Health::Draining)]);
    assert_eq!(client.services().await.unwrap(), std::slice::from_ref(&service));
    client.deregister(&held).await.unwrap();
    assert!(client.resolve(&service).await.unwrap().instances.is_empty());
    assert_eq!(client.services().await.unwrap(), []);
}
