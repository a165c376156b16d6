//! DNS, by a server within the test: zones that change, and answers that fail.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::rdata::CNAME;
use hickory_server::proto::rr::{LowerName, RData, Record, RecordType, RrKey};
use parking_lot::Mutex;
use srpc::backend::dns::{Dns, DnsBuilder};
use srpc::discovery::{Discovery, DiscoveryErrorKind, Resolved};
use srpc::testing::{Capability, Harness, Report, discovery_suite};
use srpc::{Instance, ServiceName};
use tokio::time::{Instant, sleep};

use crate::engines::program::{Program, free_port};
use crate::engines::zone::{Zone, a, name, srv};

async fn resolve(zone: &Zone, source: DnsBuilder) -> Resolved {
    let source = source.server(zone.address).build().unwrap();
    source.resolve(&"Foo".parse().unwrap()).await.unwrap()
}

fn shares(resolved: &Resolved) -> BTreeMap<&str, u32> {
    resolved.instances.iter().map(|one| (one.address.as_str(), one.weight)).collect()
}

#[tokio::test]
async fn addresses_of_both_kinds_are_instances() {
    let zone = Zone::serving().await;
    zone.set("foo.example.test.", RecordType::A, 60, vec![a("10.0.0.1"), a("10.0.0.2")]).await;
    zone.set("foo.example.test.", RecordType::AAAA, 30, vec![a("fd00::1")]).await;
    let resolved = resolve(&zone, Dns::addresses("foo.example.test.", 7001)).await;
    let expected = [("tcp@10.0.0.1:7001", 1), ("tcp@10.0.0.2:7001", 1), ("tcp@[fd00::1]:7001", 1)];
    assert_eq!(shares(&resolved), BTreeMap::from(expected));
    assert_eq!(resolved.valid_for, Some(Duration::from_secs(30)), "the least of their TTLs");
    assert!(!resolved.is_proven());

    let literal = resolve(&zone, Dns::addresses("10.9.9.9", 80)).await;
    assert_eq!(shares(&literal), BTreeMap::from([("tcp@10.9.9.9:80", 1)]));
    let missing = resolve(&zone, Dns::addresses("bar.example.test.", 7001)).await;
    assert!(missing.instances.is_empty());
    assert_eq!(missing.valid_for, Some(Duration::from_secs(7)), "what its zone says");
}

#[tokio::test]
async fn priorities_and_weights_of_srv_records_count() {
    let zone = Zone::serving().await;
    let records = vec![
        srv(10, 3, 7001, "a.example.test."),
        srv(10, 0, 7002, "b.example.test."),
        srv(20, 5, 7003, "c.example.test."),
        srv(10, 1, 7004, "gone.example.test."),
    ];
    zone.set("_Foo._tcp.example.test.", RecordType::SRV, 0, records).await;
    for (target, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")] {
        zone.set(&format!("{target}.example.test."), RecordType::A, 60, vec![a(ip)]).await;
    }
    let expected = [("tcp@10.0.0.1:7001", 3), ("tcp@10.0.0.2:7002", 1), ("tcp@10.0.0.3:7003", 0)];
    let resolved = resolve(&zone, Dns::srv("_{service}._tcp.example.test.")).await;
    assert_eq!(shares(&resolved), BTreeMap::from(expected));
    assert_eq!(resolved.valid_for, Some(Duration::from_secs(1)), "a TTL of 0 is a second");

    let alias = RData::CNAME(CNAME(name("_Foo._tcp.example.test.")));
    zone.set("alias.example.test.", RecordType::CNAME, 60, vec![alias]).await;
    let resolved = resolve(&zone, Dns::srv("alias.example.test.")).await;
    assert_eq!(shares(&resolved), BTreeMap::from(expected));

    zone.set("none.example.test.", RecordType::SRV, 60, vec![srv(0, 0, 0, ".")]).await;
    assert!(resolve(&zone, Dns::srv("none.example.test.")).await.instances.is_empty());
}

#[tokio::test]
async fn a_server_that_fails_is_no_empty_list() {
    let zone = Zone::serving().await;
    zone.set("foo.example.test.", RecordType::A, 60, vec![a("10.0.0.1")]).await;
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        zone.fail(Some(code));
        for source in [Dns::addresses("foo.example.test.", 1), Dns::srv("foo.example.test.")] {
            let source = source.server(zone.address).build().unwrap();
            let error = source.resolve(&"Foo".parse().unwrap()).await.unwrap_err();
            assert_eq!(error.kind(), DiscoveryErrorKind::Unavailable, "{error}");
        }
    }
}

#[tokio::test]
async fn one_family_that_fails_takes_nothing_from_the_other() {
    let zone = Zone::serving().await;
    let source = Dns::addresses("foo.example.test.", 7001).server(zone.address).build().unwrap();
    let found = async || source.resolve(&"Foo".parse().unwrap()).await.unwrap();
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        zone.fail(None);
        zone.set("foo.example.test.", RecordType::A, 60, vec![a("10.0.0.1"), a("10.0.0.2")]).await;
        zone.set("foo.example.test.", RecordType::AAAA, 60, vec![a("fd00::1")]).await;
        assert_eq!((found().await.instances.len(), found().await.complete), (3, true));

        zone.fail_only(RecordType::AAAA, None, code);
        let partial = found().await;
        assert_eq!((partial.instances.len(), partial.complete), (3, false), "kept: {code}");
        assert!(partial.valid_for <= Some(Duration::from_secs(5)));
        // What is gone in the part that answers is gone, also the last of it.
        zone.set("foo.example.test.", RecordType::A, 60, vec![a("10.0.0.2")]).await;
        assert_eq!(
            shares(&found().await).into_keys().collect::<Vec<_>>(),
            ["tcp@10.0.0.2:7001", "tcp@[fd00::1]:7001"]
        );
        zone.set("foo.example.test.", RecordType::A, 60, vec![]).await;
        assert_eq!(shares(&found().await).into_keys().collect::<Vec<_>>(), ["tcp@[fd00::1]:7001"]);

        let fresh = resolve(&zone, Dns::addresses("foo.example.test.", 7001)).await;
        assert_eq!((fresh.instances.len(), fresh.complete), (0, false), "{code}");
    }
}

#[tokio::test]
async fn one_bad_record_of_a_service_takes_nothing_from_the_others() {
    let zone = Zone::serving().await;
    let records = vec![
        srv(10, 3, 7001, "a.example.test."),
        srv(10, 1, 0, "a.example.test."),
        srv(10, 1, 7002, "bad.example.test."),
    ];
    zone.set("_Foo._tcp.example.test.", RecordType::SRV, 60, records).await;
    zone.set("a.example.test.", RecordType::A, 60, vec![a("10.0.0.1"), a("0.0.0.0")]).await;
    zone.fail_only(RecordType::A, Some("bad.example.test."), ResponseCode::ServFail);
    let found = resolve(&zone, Dns::srv("_Foo._tcp.example.test.")).await;
    assert_eq!(shares(&found), BTreeMap::from([("tcp@10.0.0.1:7001", 3)]));
    assert!(!found.complete);
}

#[async_trait]
impl Harness for Zone {
    fn discovery(&self) -> Arc<dyn Discovery> {
        // Not by SRV records: a thousand of them are more than a message of DNS holds.
        let source = Dns::addresses("{service}.example.test.", 7001).server(self.address);
        Arc::new(source.timeout(Duration::from_secs(4)).build().unwrap())
    }

    fn granularity(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn lacks(&self, capability: Capability) -> Option<&'static str> {
        (capability != Capability::Names).then_some("it keeps addresses and weights alone")
    }

    async fn put(&self, service: &ServiceName, instance: Instance) -> Option<()> {
        let at = name(&format!("{service}.example.test."));
        let host = a(instance.address.host()?);
        self.zone.upsert(Record::from_rdata(at, 1, host), 0).await;
        Some(())
    }

    async fn remove(&self, service: &ServiceName, instance: &Instance) -> Option<()> {
        let gone = a(instance.address.host()?);
        let at = format!("{service}.example.test.");
        let key = RrKey::new(LowerName::new(&name(&at)), RecordType::A);
        let left = {
            let records = self.zone.records_mut().await;
            let Some(set) = records.get(&key) else { return Some(()) };
            let data = set.records_without_rrsigs().map(|record| record.data.clone());
            data.filter(|data| *data != gone).collect()
        };
        self.set(&at, RecordType::A, 1, left).await;
        Some(())
    }

    async fn kill(&self) -> Option<()> {
        Zone::kill(self).await;
        Some(())
    }

    async fn restart_empty(&self) -> Option<()> {
        Zone::restart_empty(self).await;
        Some(())
    }
}

/// dnsmasq, whose names are in a file that it reads when it is told to.
struct Dnsmasq {
    program: Arc<Program>,
    port: u16,
    hosts: Mutex<Vec<(String, IpAddr)>>,
    changes: Arc<AtomicUsize>,
}

impl Dnsmasq {
    async fn running() -> Self {
        let (program, port) = (Arc::new(Program::new("dnsmasq")), free_port());
        let dnsmasq = Self { program, port, hosts: Mutex::default(), changes: Arc::default() };
        dnsmasq.start().await;
        dnsmasq
    }

    async fn start(&self) {
        self.write();
        let mut command = Command::new("dnsmasq");
        command
            .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--no-daemon", "--user="])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local=/example.test/"])
            .arg(format!("--port={}", self.port))
            .arg(format!("--addn-hosts={}", self.program.folder.join("hosts").display()))
            .args(["--host-record=seven.example.test,10.0.0.7"])
            .args(["--srv-host=_Foo._tcp.example.test,seven.example.test,7001,10,3"]);
        self.program.run(&mut command, "dnsmasq-base");
        let start = Instant::now();
        let source = self.source(Dns::addresses("seven.example.test.", 1));
        while source.resolve(&"Foo".parse().unwrap()).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(10), "dnsmasq: {}", self.program.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn source(&self, builder: DnsBuilder) -> Dns {
        let server = SocketAddr::from(([127, 0, 0, 1], self.port));
        builder.server(server).timeout(Duration::from_secs(4)).build().unwrap()
    }

    fn write(&self) {
        let hosts = self.hosts.lock();
        let lines: String = hosts.iter().map(|(name, ip)| format!("{ip} {name}\n")).collect();
        fs::write(self.program.folder.join("hosts"), lines).unwrap();
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(String, IpAddr)>)) {
        change(&mut self.hosts.lock());
        self.write();
        // It takes its time to read a thousand of them, and does so once for each signal.
        let (program, changes) = (Arc::clone(&self.program), Arc::clone(&self.changes));
        let this = changes.fetch_add(1, Relaxed) + 1;
        tokio::spawn(async move {
            sleep(Duration::from_millis(50)).await;
            if changes.load(Relaxed) == this {
                program.signal("-HUP");
            }
        });
    }
}

#[async_trait]
impl Harness for Dnsmasq {
    fn discovery(&self) -> Arc<dyn Discovery> {
        Arc::new(self.source(Dns::addresses("{service}.example.test.", 7001)))
    }

    fn granularity(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn lacks(&self, capability: Capability) -> Option<&'static str> {
        (capability != Capability::Names).then_some("it keeps addresses alone")
    }

    async fn put(&self, service: &ServiceName, instance: Instance) -> Option<()> {
        let ip = instance.address.host()?.parse().unwrap();
        self.change(|hosts| hosts.push((format!("{service}.example.test"), ip)));
        Some(())
    }

    async fn remove(&self, service: &ServiceName, instance: &Instance) -> Option<()> {
        let ip: IpAddr = instance.address.host()?.parse().unwrap();
        let gone = (format!("{service}.example.test"), ip);
        self.change(|hosts| hosts.retain(|host| *host != gone));
        Some(())
    }

    async fn kill(&self) -> Option<()> {
        self.changes.fetch_add(1, Relaxed);
        self.program.kill();
        Some(())
    }

    async fn restart_empty(&self) -> Option<()> {
        self.hosts.lock().clear();
        self.start().await;
        Some(())
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs dnsmasq-base"]
async fn dnsmasq_is_read_as_promised() {
    let dnsmasq = Dnsmasq::running().await;
    let found = dnsmasq.source(Dns::srv("_{service}._tcp.example.test."));
    let found = found.resolve(&"Foo".parse().unwrap()).await.unwrap();
    assert_eq!(shares(&found), BTreeMap::from([("tcp@10.0.0.7:7001", 3)]));
    let missing = dnsmasq.source(Dns::addresses("nobody.example.test.", 7001));
    assert!(missing.resolve(&"Foo".parse().unwrap()).await.unwrap().instances.is_empty());
    let report = discovery_suite(&dnsmasq).await;
    assert_eq!(left_out(&report), LACKED);
}

#[tokio::test(flavor = "multi_thread")]
async fn is_discovered_as_promised() {
    let report = discovery_suite(&Zone::serving().await).await;
    assert_eq!(left_out(&report), LACKED);
}

/// There is no watch, and the rest is not in the names.
const LACKED: [&str; 5] = [
    "services_are_listed",
    "full_state_survives",
    "watch_first_is_set",
    "watch_sees_changes",
    "watch_gap",
];

fn left_out(report: &Report) -> Vec<&'static str> {
    report.left_out.iter().map(|(case, _)| *case).collect()
}
