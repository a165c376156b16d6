//! A server of names within the process, for a zone that changes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::rdata::{SOA, SRV};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordSet, RecordType, RrKey};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{
    AxfrPolicy, Catalog, MessageResponseBuilder, ZoneHandler, ZoneType,
};
use parking_lot::Mutex;
use tokio::net::{TcpListener, UdpSocket};

/// A server of the zone `example.test`.
pub(crate) struct Zone {
    pub(crate) address: SocketAddr,
    pub(crate) zone: Arc<InMemoryZoneHandler>,
    failing: Arc<Mutex<Option<Failing>>>,
    server: tokio::sync::Mutex<Option<Server<Switch>>>,
}

/// Answers from the zone, or that it failed.
struct Switch {
    catalog: Catalog,
    failing: Arc<Mutex<Option<Failing>>>,
}

/// Which questions are answered by a code in place of the zone.
#[derive(Clone)]
struct Failing {
    code: ResponseCode,
    /// `None`: of every kind.
    kind: Option<RecordType>,
    /// `None`: of every name.
    name: Option<LowerName>,
}

impl Failing {
    fn hits(&self, request: &Request) -> bool {
        let Some(asked) = request.queries.queries().first() else { return true };
        self.kind.is_none_or(|kind| asked.query_type() == kind)
            && self.name.as_ref().is_none_or(|name| asked.name() == name)
    }
}

#[async_trait]
impl RequestHandler for Switch {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let failing = self.failing.lock().clone();
        match failing.filter(|failing| failing.hits(request)) {
            None => self.catalog.handle_request::<R, T>(request, response).await,
            Some(Failing { code, .. }) => {
                let builder = MessageResponseBuilder::new(&request.queries, None);
                let message = builder.error_msg(&request.metadata, code);
                response.send_response(message).await.unwrap()
            }
        }
    }
}

impl Zone {
    pub(crate) async fn serving() -> Self {
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

    pub(crate) async fn set(&self, at: &str, kind: RecordType, ttl: u32, data: Vec<RData>) {
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

    /// Answers with this from now on; `None`: with what is in the zone.
    pub(crate) fn fail(&self, code: Option<ResponseCode>) {
        *self.failing.lock() = code.map(|code| Failing { code, kind: None, name: None });
    }

    /// Answers with this only the questions of one kind, and of one name where one is given.
    pub(crate) fn fail_only(&self, kind: RecordType, at: Option<&str>, code: ResponseCode) {
        let name = at.map(|at| LowerName::new(&name(at)));
        *self.failing.lock() = Some(Failing { code, kind: Some(kind), name });
    }

    /// Ends it; its records stay.
    pub(crate) async fn kill(&self) {
        let server = self.server.lock().await.take();
        server.expect("it serves").shutdown_gracefully().await.unwrap();
    }

    /// Serves again where it was, without any record but the zone's own.
    pub(crate) async fn restart_empty(&self) {
        let origin = LowerName::new(&name("example.test."));
        self.zone.records_mut().await.retain(|key, _| key.name == origin);
        let udp = UdpSocket::bind(self.address).await.unwrap();
        let tcp = TcpListener::bind(self.address).await.unwrap();
        self.serve(udp, tcp).await;
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

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

pub(crate) fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, name(target)))
}

pub(crate) fn a(ip: &str) -> RData {
    RData::from(ip.parse::<std::net::IpAddr>().unwrap())
}
