//! Volo's Thrift, with many calls at once on one connection.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use volo::net::Address;
use volo::net::incoming::DefaultIncoming;
use volo_thrift::ServerError;
use volo_thrift::transport::pool;

use super::Caller;
use generated::volo_gen::bench::{Bench, BenchClient, BenchClientBuilder, BenchServer};

/// Longer than any run.
const HOUR: Duration = Duration::from_secs(3600);

/// What `build.rs` generates from `idl/bench.thrift`.
mod generated {
    include!(concat!(env!("OUT_DIR"), "/volo_gen.rs"));
}

struct Answers;

impl Bench for Answers {
    async fn sum(&self, a: i64, b: i64) -> Result<i64, ServerError> {
        Ok(a + b)
    }

    async fn echo(&self, body: Bytes) -> Result<Bytes, ServerError> {
        Ok(body)
    }
}

pub async fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let incoming = DefaultIncoming::from(tokio::net::TcpListener::from_std(listener)?);
    // It sets TCP_NODELAY by itself.
    BenchServer::new(Answers).multiplex(true).run(incoming).await.map_err(io::Error::other)
}

/// A client with a pool of its own, which is one connection; clones share it.
#[derive(Clone)]
pub struct Volo(BenchClient);

pub async fn connect(server: SocketAddr) -> io::Result<Volo> {
    let client = BenchClientBuilder::new("peers")
        .address(Address::Ip(server))
        .multiplex(true)
        // A connection that carried nothing for 15 seconds would be closed.
        .pool_config(pool::Config::default().timeout(HOUR))
        .build();
    // It connects with the first call.
    client.sum(1, 2).await.map_err(|error| io::Error::other(error.to_string()))?;
    Ok(Volo(client))
}

impl Caller for Volo {
    async fn sum(&self, a: i64, b: i64) -> i64 {
        self.0.sum(a, b).await.expect("no call fails")
    }

    async fn echo(&self, body: &Bytes) -> usize {
        self.0.echo(body.clone()).await.expect("no call fails").len()
    }
}
