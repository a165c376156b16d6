//! A client that reads any bytes: each of its calls ends, with its own reply or a true class.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use srpc::call::CodecId;
use srpc::client::{Connection, ConnectionSettings};
use srpc::protocol::{
    FrameType, Hello, Limits, Next, decode_call, decode_reply, hello_len, next_frame,
};
use srpc::transport::{Peer, Stream};
use srpc::{Call, Error, Execution, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How many calls are in flight. Their ids are `1 << 20`, `2 << 20 | 1` and `3 << 20 | 2`.
const CALLS: u8 = 3;

/// How the bytes are cut into writes, whether (bit 7) a good handshake is put before them, and the
/// server's bytes.
pub fn client(input: &[u8]) {
    let [how, bytes @ ..] = input else { return };
    let mut stream = Vec::new();
    if how & 0x80 != 0 {
        Hello::new(Limits::default()).encode(&mut stream);
    }
    stream.extend_from_slice(bytes);
    super::run(converse(stream, how & 0x7f));
}

async fn converse(bytes: Vec<u8>, how: u8) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let lying = tokio::spawn(lie(theirs, bytes.clone(), how));
    let stream = Stream::new(ours, Peer::new("memory"));
    let opened = Connection::open(stream, ConnectionSettings::default(), None).await;
    let Ok(connection) = opened else {
        lying.await.unwrap();
        return;
    };
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        let connection = connection.clone();
        calls.spawn(async move {
            let call =
                Call::new("Foo.Sum").body(CodecId::RAW, vec![number]).idempotent(number == 0);
            let deadline = Instant::now() + Duration::from_secs(1);
            (number, connection.exchange(&call, deadline).await)
        });
    }
    let answers = calls.join_all().await;
    assert_eq!(connection.in_flight(), 0, "nothing is left of them");
    drop(connection);
    let sent = lying.await.unwrap();
    let said = replies(&bytes);
    for (number, answer) in answers {
        check(number, answer, &sent, &said);
    }
}

/// Says `bytes` when the calls have come, and takes what the client sends until it leaves.
async fn lie(stream: DuplexStream, bytes: Vec<u8>, how: u8) -> Vec<u8> {
    let (mut from, mut to) = tokio::io::split(stream);
    let hello = hello_len(&bytes).ok().flatten().unwrap_or(0).min(bytes.len());
    let writing = tokio::spawn(async move {
        let (first, then) = bytes.split_at(hello);
        let _ = to.write_all(first).await;
        // On a clock that goes on when the client has nothing to do: its calls are written then.
        tokio::time::sleep(Duration::from_millis(5)).await;
        for write in super::reads(then, how) {
            if to.write_all(write).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(2000)).await;
        let _ = to.shutdown().await;
    });
    let mut sent = Vec::new();
    let _ = from.read_to_end(&mut sent).await;
    writing.await.unwrap();
    sent
}

fn check(number: u8, answer: Result<Reply, Error>, sent: &[u8], said: &BTreeMap<u64, Vec<Bytes>>) {
    let id = u64::from(number + 1) << 20 | u64::from(number);
    match answer {
        Ok(reply) => {
            let own = said.get(&id).is_some_and(|bodies| bodies.contains(&reply.body));
            assert!(own, "another call's reply, or none");
        }
        Err(error) if error.execution() == Execution::NotSent => {
            assert!(!calls(sent).contains(&number), "call {number} was sent: {error}");
        }
        Err(_) => {}
    }
}

/// The bodies of the calls that the client sent whole.
fn calls(sent: &[u8]) -> Vec<u8> {
    let mut bodies = Vec::new();
    let mut rest = &sent[hello_len(sent).unwrap().unwrap()..];
    while !rest.is_empty() {
        let whole = match next_frame(rest, u32::MAX).expect("a client sends frames") {
            Next::Frame(frame, whole) => {
                match frame.header.frame {
                    FrameType::Call => {
                        let (_, body) = decode_call(frame.payload).expect("a call can be read");
                        bodies.extend_from_slice(body);
                    }
                    FrameType::Cancel
                    | FrameType::Ping
                    | FrameType::Pong
                    | FrameType::ConnectionError => {}
                    other => panic!("a client sends no {other:?}"),
                }
                whole
            }
            Next::Skip(_, whole) => whole,
            Next::More(_) => break,
        };
        rest = rest.get(whole..).unwrap_or_default();
    }
    bodies
}

/// The bodies of the replies among these bytes, by the calls that they are for.
fn replies(bytes: &[u8]) -> BTreeMap<u64, Vec<Bytes>> {
    let mut replies: BTreeMap<u64, Vec<Bytes>> = BTreeMap::new();
    let Ok(Some(len)) = hello_len(bytes) else { return replies };
    let mut rest = bytes.get(len..).unwrap_or_default();
    loop {
        let whole = match next_frame(rest, Limits::default().max_payload()) {
            Ok(Next::Frame(frame, whole)) => {
                if frame.header.frame == FrameType::Reply
                    && let Ok((head, body)) = decode_reply(frame.payload)
                    && head.status.is_ok()
                {
                    let body = Bytes::copy_from_slice(body);
                    replies.entry(frame.header.id).or_default().push(body);
                }
                whole
            }
            Ok(Next::Skip(_, whole)) => whole,
            Ok(Next::More(_)) | Err(_) => return replies,
        };
        rest = rest.get(whole..).unwrap_or_default();
    }
}
