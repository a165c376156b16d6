//! What does a client still get that has closed its sending side?

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::future::pending;
use std::time::Duration;

use srpc::call::{CodecId, Metadata, Raw};
use srpc::protocol::{CallHead, FrameType, Hello, Limits, MethodRef, encode_call, encode_frame};
use srpc::transport::{Memory, Stream, Transport};
use srpc::{Server, Service, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Of the handshake, of a frame's header, and of a reply's fields before its body.
const HELLO_LEN: usize = 24;
const HEADER_LEN: usize = 16;
const HEAD_LEN: usize = 7;
/// More than the pipe between the two holds.
const BODY_LEN: usize = 1 << 20;

fn call(method: &str, id: u64, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_frame(&mut frame, FrameType::Call, 0, id, |out| {
        let head = CallHead {
            method: MethodRef::Name(method),
            codec: CodecId::RAW,
            remaining_ms: 600_000,
            metadata: Metadata::default(),
        };
        encode_call(out, &head, body);
    });
    frame
}

/// A client's stream to a server, which tells when a handler of `Foo.Hang` was dropped.
async fn connected(network: &Memory) -> (Stream, mpsc::UnboundedReceiver<()>) {
    let (dropped, told) = mpsc::unbounded_channel();
    let foo = Service::new("Foo").method("Echo", async |body: Raw| Ok::<_, Status>(body)).method(
        "Hang",
        move |body: Raw| {
            let dropped = OnDrop(dropped.clone());
            async move {
                let _dropped = dropped;
                pending::<()>().await;
                Ok::<_, Status>(body)
            }
        },
    );
    let address = "tcp@server:1".parse().unwrap();
    let listener = network.bind(&address).await.unwrap();
    tokio::spawn(Server::new().service(foo).serve(listener, pending::<()>()));
    let mut stream = network.connect(&address).await.unwrap();
    let mut hello = Vec::new();
    Hello::new(Limits::default()).encode(&mut hello);
    stream.write_all(&hello).await.unwrap();
    (stream, told)
}

struct OnDrop(mpsc::UnboundedSender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test(start_paused = true)]
async fn a_finished_reply_is_delivered_after_a_half_close() {
    let network = Memory::new();
    let (mut stream, mut dropped) = connected(&network).await;
    let calls = [call("Foo.Hang", 1, &[]), call("Foo.Echo", 2, &vec![7; BODY_LEN])].concat();
    stream.write_all(&calls).await.unwrap();
    // With the first byte of the reply the handler has ended.
    stream.read_exact(&mut [0; HELLO_LEN + 1]).await.unwrap();
    stream.shutdown().await.unwrap();
    // What is at work is dropped, before the reply was read.
    timeout(Duration::from_secs(5), dropped.recv()).await.unwrap().unwrap();
    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    read.unwrap().unwrap();
    assert_eq!(1 + rest.len(), HEADER_LEN + HEAD_LEN + BODY_LEN);
    assert!(rest.ends_with(&[7; 64]));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_after_a_half_close_is_let_go() {
    let network = Memory::new();
    let (mut stream, _) = connected(&network).await;
    stream.write_all(&call("Foo.Echo", 1, &vec![7; BODY_LEN])).await.unwrap();
    stream.read_exact(&mut [0; HELLO_LEN + 1]).await.unwrap();
    stream.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(read.unwrap().is_err() || rest.len() < BODY_LEN, "{}", rest.len());
}
