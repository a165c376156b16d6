//! A server that reads any bytes: it answers in frames that a client may get, and serves on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use srpc::call::Raw;
use srpc::client::{Connection, ConnectionSettings};
use srpc::protocol::{
    FrameType, HEADER_LEN, Hello, Limits, Next, WireError, decode_hello, decode_reply, hello_len,
    next_frame,
};
use srpc::server::State;
use srpc::transport::{Memory, Transport};
use srpc::{Address, Call, Server, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How the bytes are cut into writes, whether (bit 7) a good handshake is put before them, and the
/// client's bytes.
pub fn server(input: &[u8]) {
    let [how, bytes @ ..] = input else { return };
    let mut stream = Vec::new();
    if how & 0x80 != 0 {
        Hello::new(Limits::default()).encode(&mut stream);
    }
    stream.extend_from_slice(bytes);
    super::run(serve(stream, how & 0x7f));
}

async fn sum((a, b): (i64, i64)) -> Result<i64, &'static str> {
    a.checked_add(b).ok_or("the sum is too large")
}

async fn echo(State(ran): State<Arc<AtomicUsize>>, body: Raw) -> Result<Raw, &'static str> {
    ran.fetch_add(1, Relaxed);
    Ok(body)
}

async fn nap(State(ran): State<Arc<AtomicUsize>>, ms: u16) -> Result<u16, &'static str> {
    ran.fetch_add(1, Relaxed);
    tokio::time::sleep(Duration::from_millis(ms.into())).await;
    Ok(ms)
}

async fn serve(bytes: Vec<u8>, how: u8) {
    let network = Memory::new();
    let address: Address = "mem@server".parse().unwrap();
    let listener = network.bind(&address).await.unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let bar = Service::with_state("Bar", Arc::new(Arc::clone(&ran)));
    let server = Server::new()
        .service(Service::new("Foo").method("Sum", sum))
        .service(bar.method("Echo", echo).method("Nap", nap));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(listener, async {
        let _ = stopped.await;
    }));

    let (mut from, mut to) = tokio::io::split(network.connect(&address).await.unwrap());
    let written = bytes.clone();
    let writing = tokio::spawn(async move {
        for write in super::reads(&written, how) {
            // A server that has refused the bytes may be gone.
            if to.write_all(write).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = to.shutdown().await;
    });
    let mut answer = Vec::new();
    let _ = from.read_to_end(&mut answer).await;
    writing.await.unwrap();
    check(&bytes, &answer, ran.load(Relaxed));

    let stream = network.connect(&address).await.unwrap();
    let other = Connection::open(stream, ConnectionSettings::default(), None).await.unwrap();
    let call = Call::new("Foo.Sum").args(&(2, 3)).unwrap();
    let reply = other.exchange(&call, Instant::now() + Duration::from_secs(10)).await.unwrap();
    assert_eq!(reply.decode::<i64>().unwrap(), 5, "others are served");
    drop(other);
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}

/// What a server may say to these bytes.
fn check(bytes: &[u8], answer: &[u8], ran: usize) {
    if answer.starts_with(b"HTTP/1.1 400 ") {
        assert_eq!(hello_len(bytes), Err(WireError::Magic));
        assert_eq!(ran, 0);
        return;
    }
    if answer.is_empty() {
        assert_eq!(ran, 0, "a call before the handshake");
        return;
    }
    let hello = decode_hello(answer).expect("an answer starts with a handshake");
    assert!(hello.check_version().is_ok());
    let mut calls = calls(bytes);
    assert!(ran <= calls.len(), "a handler ran for no call");
    let mut rest = &answer[hello_len(answer).unwrap().unwrap()..];
    while !rest.is_empty() {
        let Ok(Next::Frame(frame, whole)) = next_frame(rest, u32::MAX) else {
            panic!("half a frame: {rest:?}")
        };
        match frame.header.frame {
            FrameType::Reply => {
                assert!(calls.remove(&frame.header.id), "a reply to no call, or a second one");
                decode_reply(frame.payload).expect("a reply can be read");
            }
            FrameType::Pong | FrameType::Drain => {}
            FrameType::ConnectionError => {
                assert!(std::str::from_utf8(frame.payload).is_ok());
                assert_eq!(rest.len(), whole, "it is the last frame");
            }
            other => panic!("a server sends no {other:?}"),
        }
        rest = &rest[whole..];
    }
}

/// The ids of what may be calls among these bytes, as long as nothing is wrong with them.
fn calls(bytes: &[u8]) -> BTreeSet<u64> {
    let mut ids = BTreeSet::new();
    let Ok(Some(len)) = hello_len(bytes) else { return ids };
    let mut rest = bytes.get(len..).unwrap_or_default();
    while rest.len() >= HEADER_LEN {
        let whole = match next_frame(rest, Limits::default().max_payload()) {
            Ok(Next::Frame(frame, whole)) => {
                if frame.header.frame == FrameType::Call {
                    ids.insert(frame.header.id);
                }
                whole
            }
            Ok(Next::Skip(header, whole)) => {
                ids.extend(header.map(|header| header.id));
                whole
            }
            Ok(Next::More(_)) | Err(_) => break,
        };
        rest = rest.get(whole..).unwrap_or_default();
    }
    ids
}
