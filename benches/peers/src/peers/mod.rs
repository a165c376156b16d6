//! What is compared: each peer as a server and as a caller of it.

pub mod go;
mod ping_pong;
mod raw;
mod srpc;
mod tarpc;
mod tonic;
mod volo;

use std::io;
use std::net::{SocketAddr, TcpListener};

use bytes::Bytes;
use clap::ValueEnum;

use crate::measure::{Order, Report};

/// What is compared, by its name in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Peer {
    Raw,
    RawPingpong,
    SrpcConnection,
    SrpcXclient,
    #[value(name = "srpc-xclient-3-endpoints")]
    SrpcXclient3Endpoints,
    #[value(name = "srpc-xclient-2-layers")]
    SrpcXclient2Layers,
    TarpcBincode,
    TarpcMsgpack,
    Tonic,
    VoloThrift,
    GoNetRpc,
}

/// One side of one kind of calls, as many at a time as there are clones.
pub trait Caller: Clone + Send + Sync + 'static {
    /// A call of two numbers and one.
    fn sum(&self, a: i64, b: i64) -> impl Future<Output = i64> + Send;

    /// A call that is answered with the bytes that it brings, as its peer's users would send them;
    /// the length of the answer.
    fn echo(&self, body: &Bytes) -> impl Future<Output = usize> + Send;

    /// The same with bytes that no codec touches, where the peer has that.
    fn bytes(&self, body: &Bytes) -> impl Future<Output = usize> + Send {
        self.echo(body)
    }
}

impl Peer {
    /// The server that a peer calls: several rows share one.
    pub fn server(self) -> Self {
        match self {
            Self::SrpcConnection | Self::SrpcXclient3Endpoints | Self::SrpcXclient2Layers => {
                Self::SrpcXclient
            }
            other => other,
        }
    }

    /// How many servers it calls.
    pub fn servers(self) -> usize {
        if self == Self::SrpcXclient3Endpoints { 3 } else { 1 }
    }

    /// Its name in the table.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Serves until the process is killed.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        match self.server() {
            Self::Raw => raw::serve(listener).await,
            Self::RawPingpong => ping_pong::serve(listener).await,
            Self::TarpcBincode => tarpc::serve(listener, tarpc::Codec::Bincode).await,
            Self::TarpcMsgpack => tarpc::serve(listener, tarpc::Codec::MessagePack).await,
            Self::Tonic => tonic::serve(listener).await,
            Self::VoloThrift => volo::serve(listener).await,
            // Binds a listener of its own, in this process's place.
            Self::GoNetRpc => go::serve(),
            _ => srpc::serve(listener).await,
        }
    }

    /// Makes calls as ordered.
    pub async fn drive(self, servers: &[SocketAddr], order: Order) -> io::Result<Report> {
        let first = servers[0];
        Ok(match self {
            Self::Raw => order.run(raw::connect(first).await?).await,
            Self::RawPingpong => order.run(ping_pong::connect(first).await?).await,
            Self::SrpcConnection => order.run(srpc::connection(first).await?).await,
            Self::SrpcXclient | Self::SrpcXclient3Endpoints => {
                order.run(srpc::xclient(servers, false)).await
            }
            Self::SrpcXclient2Layers => order.run(srpc::xclient(servers, true)).await,
            Self::TarpcBincode => {
                order.run(tarpc::connect(first, tarpc::Codec::Bincode).await?).await
            }
            Self::TarpcMsgpack => {
                order.run(tarpc::connect(first, tarpc::Codec::MessagePack).await?).await
            }
            Self::Tonic => order.run(tonic::connect(first).await?).await,
            Self::VoloThrift => order.run(volo::connect(first).await?).await,
            // Takes this process's place.
            Self::GoNetRpc => return Err(go::drive(first, &order)),
        })
    }

    /// Opens this many connections, makes one call on each, and keeps them while `held` runs.
    pub async fn hold(
        self,
        server: SocketAddr,
        connections: usize,
        held: impl Future<Output = ()>,
    ) -> io::Result<()> {
        match self.server() {
            Self::Raw => hold(connections, || raw::connect(server), held).await,
            Self::RawPingpong => hold(connections, || ping_pong::connect(server), held).await,
            Self::TarpcBincode => {
                hold(connections, || tarpc::connect(server, tarpc::Codec::Bincode), held).await
            }
            Self::TarpcMsgpack => {
                hold(connections, || tarpc::connect(server, tarpc::Codec::MessagePack), held).await
            }
            Self::Tonic => hold(connections, || tonic::connect(server), held).await,
            Self::VoloThrift => hold(connections, || volo::connect(server), held).await,
            Self::GoNetRpc => Err(go::hold(server, connections)),
            _ => hold(connections, || srpc::connection(server), held).await,
        }
    }
}

async fn hold<C: Caller, F: Future<Output = io::Result<C>>>(
    connections: usize,
    connect: impl Fn() -> F,
    held: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut callers = Vec::with_capacity(connections);
    for _ in 0..connections {
        let caller = connect().await?;
        assert_eq!(caller.sum(1, 2).await, 3, "a wrong answer");
        callers.push(caller);
    }
    held.await;
    Ok(())
}
