//! tonic: gRPC over HTTP/2 with protobuf bodies.

use std::io;
use std::net::{SocketAddr, TcpListener};

use bytes::Bytes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::Caller;
use bench_client::BenchClient;
use bench_server::{Bench, BenchServer};

/// So much is on its way before the other side has to allow more: what 512 callers send does not
/// wait for that.
const WINDOW: u32 = 64 * 1024 * 1024;

/// A body of 64 KiB takes one frame rather than five.
const MAX_FRAME: u32 = 1024 * 1024;

/// Calls at once on one connection; 200 by default.
const MAX_STREAMS: u32 = 4096;

// What `build.rs` generates for the messages below.
include!(concat!(env!("OUT_DIR"), "/peers.Bench.rs"));

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct SumRequest {
    #[prost(int64, tag = "1")]
    a: i64,
    #[prost(int64, tag = "2")]
    b: i64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct SumReply {
    #[prost(int64, tag = "1")]
    sum: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Body {
    #[prost(bytes = "bytes", tag = "1")]
    body: Bytes,
}

struct Answers;

#[tonic::async_trait]
impl Bench for Answers {
    async fn sum(&self, call: Request<SumRequest>) -> Result<Response<SumReply>, Status> {
        let SumRequest { a, b } = call.into_inner();
        Ok(Response::new(SumReply { sum: a + b }))
    }

    async fn echo(&self, call: Request<Body>) -> Result<Response<Body>, Status> {
        Ok(Response::new(call.into_inner()))
    }
}

pub async fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?);
    Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(BenchServer::new(Answers))
        .serve_with_incoming(incoming.with_nodelay(Some(true)))
        .await
        .map_err(io::Error::other)
}

/// A channel, which is one connection; its clones share it.
#[derive(Clone)]
pub struct Tonic(BenchClient<Channel>);

pub async fn connect(server: SocketAddr) -> io::Result<Tonic> {
    let channel = Endpoint::from_shared(format!("http://{server}"))
        .map_err(io::Error::other)?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(MAX_FRAME)
        // Calls that wait for the connection's task to take them.
        .buffer_size(MAX_STREAMS as usize)
        .connect()
        .await
        .map_err(io::Error::other)?;
    Ok(Tonic(BenchClient::new(channel)))
}

impl Caller for Tonic {
    async fn sum(&self, a: i64, b: i64) -> i64 {
        // A client is cloned for each call: calls need it for themselves.
        let call = Request::new(SumRequest { a, b });
        self.0.clone().sum(call).await.expect("no call fails").into_inner().sum
    }

    async fn echo(&self, body: &Bytes) -> usize {
        let call = Request::new(Body { body: body.clone() });
        self.0.clone().echo(call).await.expect("no call fails").into_inner().body.len()
    }
}
