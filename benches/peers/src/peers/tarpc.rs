//! tarpc, with bincode or MessagePack.

use std::io;
use std::net::{SocketAddr, TcpListener};

use bytes::Bytes;
use futures::StreamExt;
use tarpc::client::Config;
use tarpc::context;
use tarpc::serde_transport::new;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_util::codec::{Framed, LengthDelimitedCodec};
use tarpc::{ClientMessage, Response, Transport};
use tokio::net::TcpStream;
use tokio_serde::formats::{Bincode, MessagePack};

use super::Caller;

/// More than any body here, with what is around it.
const MAX_FRAME: usize = 16 * 1024 * 1024;

/// More calls than are ever made at once, so that none waits for another to end.
const MAX_IN_FLIGHT: usize = 4096;

/// How calls and answers are encoded.
#[derive(Clone, Copy)]
pub enum Codec {
    Bincode,
    MessagePack,
}

#[tarpc::service]
trait Service {
    async fn sum(a: i64, b: i64) -> i64;
    async fn echo(body: Bytes) -> Bytes;
}

#[derive(Clone)]
struct Bench;

impl Service for Bench {
    async fn sum(self, _: context::Context, a: i64, b: i64) -> i64 {
        a + b
    }

    async fn echo(self, _: context::Context, body: Bytes) -> Bytes {
        body
    }
}

pub async fn serve(listener: TcpListener, codec: Codec) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        match codec {
            Codec::Bincode => tokio::spawn(answer(new(framed(stream), Bincode::default()))),
            Codec::MessagePack => tokio::spawn(answer(new(framed(stream), MessagePack::default()))),
        };
    }
}

/// Answers the calls of one connection, each in a task of its own.
async fn answer<T>(transport: T)
where
    T: Transport<Response<ServiceResponse>, ClientMessage<ServiceRequest>> + Send + 'static,
{
    let answers = BaseChannel::with_defaults(transport).execute(Bench.serve());
    answers
        .for_each(|answer| async {
            tokio::spawn(answer);
        })
        .await;
}

/// A connection, whose clones share it.
#[derive(Clone)]
pub struct Tarpc(ServiceClient);

pub async fn connect(server: SocketAddr, codec: Codec) -> io::Result<Tarpc> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let mut config = Config::default();
    config.max_in_flight_requests = MAX_IN_FLIGHT;
    config.pending_request_buffer = MAX_IN_FLIGHT;
    let client = match codec {
        Codec::Bincode => {
            ServiceClient::new(config, new(framed(stream), Bincode::default())).spawn()
        }
        Codec::MessagePack => {
            ServiceClient::new(config, new(framed(stream), MessagePack::default())).spawn()
        }
    };
    Ok(Tarpc(client))
}

impl Caller for Tarpc {
    async fn sum(&self, a: i64, b: i64) -> i64 {
        self.0.sum(context::current(), a, b).await.expect("no call fails")
    }

    async fn echo(&self, body: &Bytes) -> usize {
        self.0.echo(context::current(), body.clone()).await.expect("no call fails").len()
    }
}

fn framed(stream: TcpStream) -> Framed<TcpStream, LengthDelimitedCodec> {
    LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_framed(stream)
}
