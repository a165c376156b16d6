//! etcd, one member and three.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use srpc::backend::etcd::EtcdRegistry;
use srpc::discovery::{Discovery, DiscoveryErrorKind, Update};
use srpc::registry::{Held, Registrar, Registration, Registry, RegistryErrorKind, Renewal};
use srpc::testing::{discovery_suite, registry_suite};
use srpc::transport::{Net, Stream, Transport};
use srpc::{Address, Instance, Listener, Server, Service, ServiceName, XClient};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::engines::etcd::Etcd;
use crate::{Engine, Subject, hangs, keeps_what_vanishes_together};

/// How late etcd's leases end: half a second, on top of the second that they are longer.
const GRANULARITY: Duration = Duration::from_millis(2500);

#[async_trait]
impl Engine for Etcd {
    async fn kill(&self) {
        Self::kill(self);
    }

    async fn start(&self, empty: bool) {
        self.run(empty);
        self.answers().await;
    }
}

fn subject(engine: Etcd, client: EtcdRegistry) -> Subject<Etcd> {
    Subject {
        engine,
        registry: Some(Arc::new(client.clone())),
        discovery: Arc::new(client),
        granularity: GRANULARITY,
        ttl: Duration::from_secs(6),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn registers_as_promised() {
    let etcd = Etcd::alone().await;
    let client = EtcdRegistry::new(&etcd.address()).unwrap();
    let report = registry_suite(&subject(etcd, client)).await;
    assert_eq!(report.left_out, []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn is_discovered_as_promised() {
    let etcd = Etcd::alone().await;
    let client = EtcdRegistry::new(&etcd.address()).unwrap();
    let report = discovery_suite(&subject(etcd, client)).await;
    assert_eq!(report.left_out, []);
}

/// As a registry server in front of it does.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn with_a_lease_for_each_it_registers_as_promised() {
    let etcd = Etcd::alone().await;
    let builder = EtcdRegistry::builder(&etcd.address()).lease_each(true).prefix("/other");
    let report = registry_suite(&subject(etcd, builder.build().unwrap())).await;
    assert_eq!(report.left_out, []);
}

/// So many servers of `Foo` on real sockets, registered there.
async fn servers(count: usize, client: &EtcdRegistry) -> Vec<tokio::task::JoinHandle<()>> {
    let mut servers = Vec::new();
    for _ in 0..count {
        let registrar = Registrar::new(Arc::new(client.clone()));
        let service =
            Service::new("Foo").method("Echo", |text: String| async { Ok::<_, &str>(text) });
        let server = Server::new().service(service).registrar(registrar);
        let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
        servers.push(tokio::spawn(async move {
            server.serve(listener, std::future::pending()).await.unwrap();
        }));
    }
    servers
}

/// Calls until it is stopped; how many were made, and how the failed ones failed.
fn load(client: &XClient) -> (Arc<AtomicBool>, tokio::task::JoinHandle<(u64, Vec<String>)>) {
    let (stop, client) = (Arc::new(AtomicBool::new(false)), client.clone());
    let stopped = Arc::clone(&stop);
    let calling = tokio::spawn(async move {
        let (mut made, mut failed) = (0, Vec::new());
        while !stopped.load(Relaxed) {
            made += 1;
            match client.call::<_, String>("Foo.Echo", "x").await {
                Ok(text) => assert_eq!(text, "x"),
                Err(error) => failed.push(error.to_string()),
            }
            sleep(Duration::from_millis(2)).await;
        }
        (made, failed)
    });
    (stop, calling)
}

/// Waits until this many are listed; how long that took.
async fn complete(discovery: &EtcdRegistry, count: usize, within: Duration) -> Duration {
    let start = Instant::now();
    loop {
        let listed = discovery.resolve(&"Foo".parse().unwrap()).await;
        if listed.is_ok_and(|listed| listed.instances.len() == count) {
            return start.elapsed();
        }
        assert!(start.elapsed() < within, "not all {count} are registered within {within:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn calls_outlive_it_by_half_a_minute() {
    let etcd = Etcd::alone().await;
    let registry = EtcdRegistry::new(&etcd.address()).unwrap();
    let _servers = servers(3, &registry).await;
    complete(&registry, 3, Duration::from_secs(5)).await;
    // A client of its own: it shares nothing with the servers but what etcd says.
    let client = XClient::new("Foo", EtcdRegistry::new(&etcd.address()).unwrap()).unwrap();
    client.resolver().ready(Duration::from_secs(5)).await.unwrap();
    let (stop, calling) = load(&client);
    for empty in [false, true] {
        Etcd::kill(&etcd);
        sleep(Duration::from_secs(30)).await;
        etcd.start(empty).await;
        // One heartbeat of a lease of 15 s, and two seconds.
        let back = complete(&registry, 3, Duration::from_secs(7)).await;
        println!("figure: empty={empty}: registrations complete {back:?} after etcd answers again");
    }
    stop.store(true, Relaxed);
    let (made, failed) = calling.await.unwrap();
    println!("figure: {made} calls, {} failed", failed.len());
    assert!(made > 10_000 && failed.is_empty(), "{made} calls; {:?}", failed.first());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server and etcd-client"]
async fn the_leader_of_three_may_die() {
    let members: [Etcd; 3] = Etcd::cluster().await;
    let addresses: Vec<String> = members.iter().map(Etcd::address).collect();
    let addresses = addresses.join(",");
    let registry = EtcdRegistry::new(&addresses).unwrap();
    let _servers = servers(3, &registry).await;
    complete(&registry, 3, Duration::from_secs(5)).await;
    let client = XClient::new("Foo", EtcdRegistry::new(&addresses).unwrap()).unwrap();
    client.resolver().ready(Duration::from_secs(5)).await.unwrap();
    let (stop, calling) = load(&client);
    let leader = leader(&members).await;
    members[leader].kill();
    let killed = Instant::now();
    // A registration that is made meanwhile, and every renewal for a whole lease.
    let _more = servers(1, &registry).await;
    let back = complete(&registry, 4, Duration::from_secs(15)).await;
    println!("figure: a registration is complete {back:?} after the leader of three was killed");
    sleep(Duration::from_secs(20).saturating_sub(killed.elapsed())).await;
    complete(&registry, 4, Duration::from_secs(2)).await;
    assert_eq!(client.resolver().snapshot().endpoints.len(), 4);
    stop.store(true, Relaxed);
    let (made, failed) = calling.await.unwrap();
    println!("figure: {made} calls, {} failed", failed.len());
    assert!(made > 1000 && failed.is_empty(), "{made} calls; {:?}", failed.first());
}

/// Which member leads, as its own command tells.
async fn leader(members: &[Etcd]) -> usize {
    for (n, member) in members.iter().enumerate() {
        let told = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &member.address(), "endpoint", "status", "-w", "json"])
            .output()
            .expect("apt-get install etcd-client");
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
        let status = &told[0]["Status"];
        if status["leader"] == status["header"]["member_id"] {
            return n;
        }
    }
    panic!("nobody leads");
}

/// What others put there with etcd's own command is an instance, and is followed, also over a
/// compaction of all that was before.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server and etcd-client"]
async fn others_register_with_its_own_command() {
    let etcd = Etcd::alone().await;
    let etcdctl = |args: &[&str]| etcdctl(&etcd, args);
    let discovery = EtcdRegistry::new(&etcd.address()).unwrap();
    let mut watch = discovery.watch(&"Foo".parse().unwrap()).unwrap();
    let first = watch.next().await.unwrap().unwrap();
    assert!(matches!(&first, Update::Set(list) if list.instances.is_empty()), "{first:?}");

    // "lease 694d... granted with TTL(5s)"
    let granted = etcdctl(&["lease", "grant", "5"]);
    let lease = format!("--lease={}", granted.split(' ').nth(1).unwrap());
    etcdctl(&["put", "/srpc/Foo/worker-1", "tcp@10.0.0.7:7001", &lease]);
    etcdctl(&["put", "/srpc/Foo/worker-2", r#"{"address":"tcp@10.0.0.8:7001","weight":3}"#]);
    for (id, weight) in [("worker-1", 1), ("worker-2", 3)] {
        let Update::Upsert(joined) = watch.next().await.unwrap().unwrap() else { panic!() };
        assert_eq!((joined[0].id.as_str(), joined[0].weight), (id, weight));
    }
    let get: serde_json::Value =
        serde_json::from_str(&etcdctl(&["get", "/srpc/Foo/worker-2", "-w", "json"])).unwrap();
    etcdctl(&["compact", &get["header"]["revision"].to_string()]);
    etcdctl(&["put", "/srpc/Foo/worker-3", "nonsense"]);
    etcdctl(&["del", "/srpc/Foo/worker-2"]);
    let Update::Remove(gone) = watch.next().await.unwrap().unwrap() else { panic!() };
    assert_eq!(gone[0].as_str(), "worker-2");
    // Its lease was never renewed, and nobody is left: that proves nothing.
    let expired = tokio::time::timeout(Duration::from_secs(8), watch.next()).await;
    let Update::Set(left) = expired.unwrap().unwrap().unwrap() else { panic!() };
    assert!(left.instances.is_empty() && left.warming);
    let listed = discovery.resolve(&"Foo".parse().unwrap()).await.unwrap();
    assert!(listed.instances.is_empty() && !listed.complete, "the nonsense is left out, and told");
    assert!(listed.unread[0].starts_with("/srpc/Foo/worker-3: address: "), "{:?}", listed.unread);
}

fn etcdctl(etcd: &Etcd, args: &[&str]) -> String {
    let command = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &etcd.address()])
        .args(args)
        .output()
        .expect("apt-get install etcd-client");
    assert!(command.status.success(), "{}", String::from_utf8_lossy(&command.stderr));
    String::from_utf8(command.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server and etcd-client"]
async fn keys_that_vanish_together_do_not_empty_a_client() {
    let etcd = Etcd::alone().await;
    let client = || EtcdRegistry::new(&etcd.address()).unwrap();
    keeps_what_vanishes_together(client, |_| {
        etcdctl(&etcd, &["del", "--prefix", "/srpc/Foo/"]);
    })
    .await;
}

/// A store that came back empty does not have the lease of marks any more.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server and etcd-client"]
async fn marks_are_left_also_after_their_lease_has_gone() {
    let etcd = Etcd::alone().await;
    let registry = EtcdRegistry::new(&etcd.address()).unwrap();
    let foo: ServiceName = "Foo".parse().unwrap();
    let instance = Instance::new("a", "tcp@10.0.0.7:7001".parse().unwrap());
    let registration = Registration::new(foo.clone(), instance);
    for empty in [true, false] {
        let lease = registry.register(&registration).await.unwrap();
        registry.deregister(&[Held { registration: registration.clone(), lease }]).await.unwrap();
        let marks = etcdctl(&etcd, &["get", "--prefix", "--keys-only", "/srpc/@deregistered/"]);
        assert_eq!(marks.trim(), "/srpc/@deregistered/Foo/a");
        if empty {
            Etcd::kill(&etcd);
            etcd.run(true);
            etcd.answers().await;
            // Its connections are broken.
            while registry.resolve(&foo).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn one_that_hangs_is_not_waited_for() {
    let etcd = Etcd::alone().await;
    hangs(&EtcdRegistry::new(&etcd.address()).unwrap(), |name| etcd.signal(name)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server and etcd-client"]
async fn where_it_asks_who_calls_only_the_right_password_is_let_in() {
    let etcd = Etcd::alone().await;
    etcdctl(&etcd, &["user", "add", "root:right"]);
    etcdctl(&etcd, &["user", "grant-role", "root", "root"]);
    etcdctl(&etcd, &["auth", "enable"]);
    let service: ServiceName = "Foo".parse().unwrap();
    let instance = Instance::at("tcp@10.0.0.7:7001".parse().unwrap());
    let registration = Registration::new(service.clone(), instance);
    let builder = || EtcdRegistry::builder(&etcd.address());
    for refused in [builder(), builder().user("root", "wrong"), builder().user("nobody", "right")] {
        let refused = refused.build().unwrap();
        let error = refused.register(&registration).await.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::NotAllowed, "{error}");
        let error = refused.resolve(&service).await.unwrap_err();
        assert_eq!(error.kind(), DiscoveryErrorKind::NotAllowed, "{error}");
        let first = refused.watch(&service).unwrap().next().await.unwrap();
        assert_eq!(first.unwrap_err().kind(), DiscoveryErrorKind::NotAllowed);
    }
    let allowed = builder().user("root", "right").build().unwrap();
    let mut watch = allowed.watch(&service).unwrap();
    watch.next().await.unwrap().unwrap();
    allowed.register(&registration).await.unwrap();
    assert!(matches!(watch.next().await.unwrap().unwrap(), Update::Upsert(_)));
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn over_tls_it_registers_with_whom_it_trusts() {
    use crate::pki::{Authority, Folder};
    use srpc::transport::{ClientTls, Tls};

    let (authority, folder) = (Authority::new("an authority"), Folder::new());
    let [chain, key] = ["etcd.pem", "etcd.key"].map(|name| folder.file(name));
    authority.issue(&["127.0.0.1"]).write(&chain, &key);
    let etcd = Etcd::secured(chain, key);
    let client = |authority: &Authority| {
        let tls = Tls::client(ClientTls::new(authority.pem())).build().unwrap();
        EtcdRegistry::builder(&etcd.address()).tls(Arc::new(tls)).build().unwrap()
    };
    let trusting = client(&authority);
    let service: ServiceName = "Foo".parse().unwrap();
    let start = Instant::now();
    while trusting.resolve(&service).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "it answers");
        sleep(Duration::from_millis(50)).await;
    }
    let mut watch = trusting.watch(&service).unwrap();
    watch.next().await.unwrap().unwrap();
    let instance = Instance::at("tcp@10.0.0.7:7001".parse().unwrap());
    let registration = Registration::new(service.clone(), instance.clone());
    trusting.register(&registration).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), Update::Upsert(vec![instance]));

    let stranger = client(&Authority::new("another"));
    let error = stranger.resolve(&service).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

/// Whoever names another's lease neither ends it nor keeps it, and nothing is left of what was taken back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server and etcd-client"]
async fn a_lease_is_its_own_registrations_alone() {
    let etcd = Etcd::alone().await;
    let registry = EtcdRegistry::builder(&etcd.address()).lease_each(true).build().unwrap();
    let [foo, bar]: [ServiceName; 2] = ["Foo", "Bar"].map(|name| name.parse().unwrap());
    let instance = Instance::new("a", "tcp@10.0.0.7:7001".parse().unwrap());
    let registration = |service: &ServiceName| Registration::new(service.clone(), instance.clone());
    let ours = registry.register(&registration(&foo)).await.unwrap();
    let theirs = registry.register(&registration(&bar)).await.unwrap();

    let stranger = [Held { registration: registration(&foo), lease: theirs.clone() }];
    assert!(matches!(registry.renew(&stranger).await[..], [Ok(Renewal::Lost)]));
    registry.deregister(&stranger).await.unwrap();
    for service in [&foo, &bar] {
        let listed = registry.resolve(service).await.unwrap().instances;
        assert_eq!(listed, std::slice::from_ref(&instance));
    }

    // Registered again and taken back, by one who does not know the address.
    let again = registry.register(&registration(&foo)).await.unwrap();
    assert_ne!(again, ours);
    let unknown = Instance::new("a", "tcp@10.0.0.8:1".parse().unwrap());
    let registration = Registration::new(foo.clone(), unknown);
    registry.deregister(&[Held { registration, lease: again }]).await.unwrap();
    assert_eq!(etcdctl(&etcd, &["get", "--prefix", "--keys-only", "/srpc/Foo/"]), "");
    assert_eq!(etcdctl(&etcd, &["get", "--prefix", "--keys-only", "/srpc/@addresses/Foo/"]), "");
    let left = etcdctl(&etcd, &["lease", "list"]);
    assert!(left.contains("found 2 leases"), "theirs, and that of the mark: {left}");
    assert_eq!(
        etcdctl(&etcd, &["get", "--prefix", "--keys-only", "/srpc/@deregistered/"]).trim(),
        "/srpc/@deregistered/Foo/a"
    );
    assert_eq!(registry.services().await.unwrap(), std::slice::from_ref(&bar));
    let held = [Held { registration: Registration::new(bar.clone(), instance), lease: theirs }];
    assert!(matches!(registry.renew(&held).await[..], [Ok(Renewal::Renewed)]));
}

/// Real sockets, of which each connection but the first waits until it may be made.
struct Gate {
    below: Net,
    places: Semaphore,
}

#[async_trait]
impl Transport for Gate {
    fn speaks(&self, protocol: &str) -> bool {
        self.below.speaks(protocol)
    }

    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        self.places.acquire().await.unwrap().forget();
        self.below.connect(address).await
    }

    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        self.below.bind(address).await
    }
}

/// What happened below a compaction cannot be had any more: the watch says so, and the next one begins with
/// the list.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server and etcd-client"]
async fn a_watch_below_a_compaction_is_begun_anew() {
    let etcd = Etcd::alone().await;
    let gate = Arc::new(Gate { below: Net::default(), places: Semaphore::new(1) });
    let builder = EtcdRegistry::builder(&etcd.address()).transport(gate.clone());
    let registry = builder.timeout(Duration::from_secs(20)).build().unwrap();
    let service: ServiceName = "Foo".parse().unwrap();
    let mut watch = registry.watch(&service).unwrap();
    let told = tokio::spawn(async move {
        let listed = watch.next().await;
        (listed, watch.next().await, watch.next().await)
    });
    // It has the list, and waits for a connection to watch what comes after.
    while gate.places.available_permits() > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    sleep(Duration::from_millis(200)).await;
    for n in 1..=5 {
        etcdctl(&etcd, &["put", "/srpc/Foo/a", &format!("tcp@10.0.0.{n}:1")]);
    }
    let fields = etcdctl(&etcd, &["get", "/srpc/Foo/a", "-w", "fields"]);
    let revision = fields.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
    etcdctl(&etcd, &["compact", revision]);
    gate.places.add_permits(100);
    let told = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap().unwrap();
    let (Some(Ok(Update::Set(_))), Some(Err(error)), None) = told else { panic!("{told:?}") };
    assert!(error.to_string().contains("compacted"), "{error}");
    let first = registry.watch(&service).unwrap().next().await.unwrap().unwrap();
    let Update::Set(resolved) = first else { panic!("{first:?}") };
    assert_eq!(resolved.instances[0].address.as_str(), "tcp@10.0.0.5:1");
}
