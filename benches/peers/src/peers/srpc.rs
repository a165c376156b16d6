//! srpc, at two heights: a bare connection with bytes, and the whole client.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use srpc::backend::static_list::StaticList;
use srpc::call::{Codec, CodecId, Raw};
use srpc::client::{Connection, ConnectionSettings};
use srpc::transport::{Net, Transport};
use srpc::{Address, Call, Listener, Server, Service, XClient};
use tokio::time::Instant;
use tower::limit::ConcurrencyLimitLayer;
use tower::timeout::TimeoutLayer;

use super::Caller;

/// A limit that no call reaches, for connections without a client around them.
const TIMEOUT: Duration = Duration::from_secs(10);

async fn sum((a, b): (i64, i64)) -> Result<i64, &'static str> {
    a.checked_add(b).ok_or("the sum is too large")
}

async fn echo(body: Bytes) -> Result<Bytes, String> {
    Ok(body)
}

async fn bytes(body: Raw) -> Result<Raw, String> {
    Ok(body)
}

pub async fn serve(listener: TcpListener) -> io::Result<()> {
    // It binds for itself, as its users have it do.
    let address = listener.local_addr()?;
    drop(listener);
    let listener = Listener::bind(&format!("tcp@{address}")).await?;
    let service =
        Service::new("Bench").method("Sum", sum).method("Echo", echo).method("Bytes", bytes);
    Server::new()
        .service(service)
        // So many come from one host only here.
        .max_connections_per_host(10_000)
        .serve(listener, std::future::pending())
        .await
}

/// A connection: no discovery, selection or retry; bodies encoded by hand.
#[derive(Clone)]
pub struct Bare(Connection);

pub async fn connection(server: SocketAddr) -> io::Result<Bare> {
    let address: Address = format!("tcp@{server}").parse().map_err(io::Error::other)?;
    let stream = Net::default().connect(&address).await?;
    let connection = Connection::open(stream, ConnectionSettings::default(), None).await?;
    Ok(Bare(connection))
}

impl Bare {
    async fn call(&self, call: &Call) -> srpc::Reply {
        self.0.exchange(call, Instant::now() + TIMEOUT).await.expect("no call fails")
    }
}

impl Caller for Bare {
    async fn sum(&self, a: i64, b: i64) -> i64 {
        let call = Call::new("Bench.Sum").args(&(a, b)).expect("numbers can be encoded");
        self.call(&call).await.decode().expect("a number")
    }

    async fn echo(&self, body: &Bytes) -> usize {
        let call = Call::new("Bench.Echo").args(body).expect("bytes can be encoded");
        self.call(&call).await.decode::<Bytes>().expect("bytes").len()
    }

    async fn bytes(&self, body: &Bytes) -> usize {
        let call = Call::new("Bench.Bytes").body(CodecId::RAW, body.clone());
        self.call(&call).await.body.len()
    }
}

/// The whole client with its default layers, over a static list.
#[derive(Clone)]
pub struct Whole(XClient);

/// A client of these servers; with two layers of tower's, if so wished.
pub fn xclient(servers: &[SocketAddr], layers: bool) -> Whole {
    let addresses: Vec<_> = servers.iter().map(|server| format!("tcp@{server}")).collect();
    let list = StaticList::parse(&addresses.join(",")).expect("addresses");
    let mut builder = XClient::builder("Bench", list).codec(Codec::MessagePack);
    if layers {
        builder =
            builder.layer(TimeoutLayer::new(TIMEOUT)).layer(ConcurrencyLimitLayer::new(10_000));
    }
    Whole(builder.build().expect("a valid name"))
}

impl Caller for Whole {
    async fn sum(&self, a: i64, b: i64) -> i64 {
        self.0.call("Bench.Sum", &(a, b)).await.expect("no call fails")
    }

    async fn echo(&self, body: &Bytes) -> usize {
        self.0.call::<_, Bytes>("Bench.Echo", body).await.expect("no call fails").len()
    }

    async fn bytes(&self, body: &Bytes) -> usize {
        let call = Call::new("Bench.Bytes").body(CodecId::RAW, body.clone());
        self.0.send(call).await.expect("no call fails").body.len()
    }
}
