//! DNS, by a server within the test: zones that change, and answers that fail.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::rdata::{CNAME, SOA, SRV};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordSet, RecordType, RrKey};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{
    AxfrPolicy, Catalog, MessageResponseBuilder, ZoneHandler, ZoneType,
};
use parking_lot::Mutex;
use srpc::backend::dns::Dns;
use srpc::discovery::{Discovery, DiscoveryErrorKind, Resolved};
use srpc::testing::{Capability, Harness, discovery_suite};
use srpc::{Instance, ServiceName};
use tokio::net::{TcpListener, UdpSocket};

/// A server of the zone `example.test`.
struct Zone {
    address: SocketAddr,
    zone: Arc<InMemoryZoneHandler>,
    failing: Arc<Mutex<Option<ResponseCode>>>,
    server: tokio::sync::Mutex<Option<Server<Switch>>>,
}

/// Answers from the zone, or that it failed.
struct Switch {
    catalog: Catalog,
    failing: Arc<Mutex<Option<ResponseCode>>>,
}

#[async_trait]
impl RequestHandler for Switch {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let failing = *self.failing.lock();
        match failing {
            None => self.catalog.handle_request::<R, T>(request, response).await,
            Some(code) => {
                let builder = MessageResponseBuilder::new(&request.queries, None);
                let message = builder.error_msg(&request.metadata, code);
                response.send_response(message).await.unwrap()
            }
        }
    }
}

impl Zone {
    async fn serving() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let this = Self {
            address: udp.local_addr().unwrap(),
            zone: empty_zone().await,
            failing: Arc::default(),
            server: tokio::sync::Mutex::new(None),
        };
        this.serve(udp, tcp).await;
        this
    }

    async fn serve(&self, udp: UdpSocket, tcp: TcpListener) {
        let mut catalog = Catalog::new();
        let handler = Arc::clone(&self.zone) as Arc<dyn ZoneHandler>;
        catalog.upsert(LowerName::new(&name("example.test.")), vec![handler]);
        let mut server = Server::new(Switch { catalog, failing: Arc::clone(&self.failing) });
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 32);
        *self.server.lock().await = Some(server);
    }

    async fn set(&self, at: &str, kind: RecordType, ttl: u32, data: Vec<RData>) {
        let key = RrKey::new(LowerName::new(&name(at)), kind);
        let mut set = RecordSet::with_ttl(name(at), kind, ttl);
        for data in data {
            set.add_rdata(data);
        }
        let mut records = self.zone.records_mut().await;
        if set.is_empty() {
            records.remove(&key);
        } else {
            records.insert(key, Arc::new(set));
        }
    }

    async fn resolve(&self, source: srpc::backend::dns::DnsBuilder) -> Resolved {
        let source = source.server(self.address).build().unwrap();
        source.resolve(&"Foo".parse().unwrap()).await.unwrap()
    }
}

async fn empty_zone() -> Arc<InMemoryZoneHandler> {
    let origin = name("example.test.");
    let zone: InMemoryZoneHandler =
        InMemoryZoneHandler::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny);
    let soa = SOA::new(origin.clone(), origin.clone(), 1, 3600, 600, 86400, 7);
    assert!(zone.upsert(Record::from_rdata(origin, 60, RData::SOA(soa)), 0).await);
    Arc::new(zone)
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, name(target)))
}

fn a(ip: &str) -> RData {
    RData::from(ip.parse::<std::net::IpAddr>().unwrap())
}

fn shares(resolved: &Resolved) -> BTreeMap<&str, u32> {
    resolved.instances.iter().map(|one| (one.address.as_str(), one.weight)).collect()
}

#[tokio::test]
async fn addresses_of_both_kinds_are_instances() {
    let zone = Zone::serving().await;
    zone.set("foo.example.test.", RecordType::A, 60, vec![a("10.0.0.1"), a("10.0.0.2")]).await;
    zone.set("foo.example.test.", RecordType::AAAA, 30, vec![a("fd00::1")]).await;
    let resolved = zone.resolve(Dns::addresses("foo.example.test.", 7001)).await;
    let expected = [("tcp@10.0.0.1:7001", 1), ("tcp@10.0.0.2:7001", 1), ("tcp@[fd00::1]:7001", 1)];
    assert_eq!(shares(&resolved), BTreeMap::from(expected));
    assert_eq!(resolved.valid_for, Some(Duration::from_secs(30)), "the least of their TTLs");
    assert!(!resolved.is_proven());

    let literal = zone.resolve(Dns::addresses("10.9.9.9", 80)).await;
    assert_eq!(shares(&literal), BTreeMap::from([("tcp@10.9.9.9:80", 1)]));
    let missing = zone.resolve(Dns::addresses("bar.example.test.", 7001)).await;
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
    let resolved = zone.resolve(Dns::srv("_{service}._tcp.example.test.")).await;
    assert_eq!(shares(&resolved), BTreeMap::from(expected));
    assert_eq!(resolved.valid_for, Some(Duration::from_secs(1)), "a TTL of 0 is a second");

    let alias = RData::CNAME(CNAME(name("_Foo._tcp.example.test.")));
    zone.set("alias.example.test.", RecordType::CNAME, 60, vec![alias]).await;
    let resolved = zone.resolve(Dns::srv("alias.example.test.")).await;
    assert_eq!(shares(&resolved), BTreeMap::from(expected));

    zone.set("none.example.test.", RecordType::SRV, 60, vec![srv(0, 0, 0, ".")]).await;
    assert!(zone.resolve(Dns::srv("none.example.test.")).await.instances.is_empty());
}

#[tokio::test]
async fn a_server_that_fails_is_no_empty_list() {
    let zone = Zone::serving().await;
    zone.set("foo.example.test.", RecordType::A, 60, vec![a("10.0.0.1")]).await;
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        *zone.failing.lock() = Some(code);
        for source in [Dns::addresses("foo.example.test.", 1), Dns::srv("foo.example.test.")] {
            let source = source.server(zone.address).build().unwrap();
            let error = source.resolve(&"Foo".parse().unwrap()).await.unwrap_err();
            assert_eq!(error.kind(), DiscoveryErrorKind::Unavailable, "{error}");
        }
    }
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
        let server = self.server.lock().await.take();
        server?.shutdown_gracefully().await.unwrap();
        Some(())
    }

    async fn restart_empty(&self) -> Option<()> {
        let origin = LowerName::new(&name("example.test."));
        self.zone.records_mut().await.retain(|key, _| key.name == origin);
        let udp = UdpSocket::bind(self.address).await.unwrap();
        let tcp = TcpListener::bind(self.address).await.unwrap();
        self.serve(udp, tcp).await;
        Some(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn is_discovered_as_promised() {
    let report = discovery_suite(&Zone::serving().await).await;
    let left_out: Vec<_> = report.left_out.iter().map(|(case, _)| *case).collect();
    let watches = ["watch_first_is_set", "watch_sees_changes", "watch_gap"];
    assert_eq!(left_out, [&["full_state_survives"][..], &watches].concat());
}
