//! What a client makes of a server that lies: an error of the right kind and class, in time, no
//! call sent twice, and everyone else served meanwhile.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "only a raw socket lies")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use srpc::backend::static_list::StaticList;
use srpc::call::{CodecId, Raw};
use srpc::client::{Connection, ConnectionSettings};
use srpc::discovery::OutlierEjection;
use srpc::protocol::decode_call;
use srpc::selector::from_fn;
use srpc::server::State;
use srpc::transport::{Peer, Stream};
use srpc::xclient::{Retry, XClientBuilder};
use srpc::{
    Address, Call, Error, Execution, Instance, Kind, Listener, Server, Service, Status, XClient,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

/// Nothing takes as long; a test that waits for it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Frame types, by their numbers on the wire.
const VOID: u8 = 0;
const CALL: u8 = 1;
const REPLY: u8 = 2;
const CANCEL: u8 = 3;
const DRAIN: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const CONNECTION_ERROR: u8 = 7;

const SKIP: u8 = 1;

/// Statuses and classes of replies, by their numbers on the wire.
const OK: u8 = 0;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;
const EXECUTED: u8 = 0;
const REJECTED: u8 = 1;
const MAYBE_EXECUTED: u8 = 2;

/// A handshake: magic, length, versions, largest body, windows, features.
fn hello(version: u8, limits: [u32; 3], newer: &[u8]) -> Vec<u8> {
    let mut bytes = b"SRPC".to_vec();
    bytes.extend_from_slice(&(18 + newer.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[version, version]);
    for limit in limits {
        bytes.extend_from_slice(&limit.to_be_bytes());
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(newer);
    bytes
}

const LIMITS: [u32; 3] = [4 << 20, 1024, 8 << 20];

fn good_hello() -> Vec<u8> {
    hello(1, LIMITS, &[])
}

/// A frame's header: length, type, flags, reserved, id.
fn header(len: u32, kind: u8, flags: u8, reserved: u16, id: u64) -> Vec<u8> {
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&reserved.to_be_bytes());
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes
}

fn frame(kind: u8, id: u64, payload: &[u8]) -> Vec<u8> {
    [header(payload.len() as u32, kind, 0, 0, id), payload.to_vec()].concat()
}

/// What a reply carries: status, class, load, metadata (with the number of entries), body.
fn reply_of(status: u8, class: u8, metadata: &[u8], body: &[u8]) -> Vec<u8> {
    [&[status, class, 0, 0, 0, 1], metadata, body].concat()
}

fn reply(id: u64, status: u8, class: u8, body: &[u8]) -> Vec<u8> {
    frame(REPLY, id, &reply_of(status, class, &[0], body))
}

/// The right answer to `Foo.Sum` of 1 and 2.
fn three(id: u64) -> Vec<u8> {
    reply(id, OK, EXECUTED, &[3])
}

fn entry(key: &[u8], value: &[u8]) -> Vec<u8> {
    let value_len = (value.len() as u16).to_be_bytes();
    [&[key.len() as u8], key, &value_len, value].concat()
}

/// One connection from the liar's side.
struct Line(Stream);

impl Line {
    /// The client need not listen.
    async fn say(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
        let _ = self.0.flush().await;
    }

    async fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).await.ok()?;
        Some(bytes)
    }

    /// Reads the client's handshake and answers it.
    async fn shake(&mut self) {
        assert_eq!(self.bytes(24).await.as_deref(), Some(&good_hello()[..]));
        self.say(&good_hello()).await;
    }

    /// The next frame's type, id and payload; `None` at the end.
    async fn frame(&mut self) -> Option<(u8, u64, Vec<u8>)> {
        let header = self.bytes(16).await?;
        let len = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
        let payload = self.bytes(len).await?;
        Some((header[4], u64::from_be_bytes(header[8..].try_into().unwrap()), payload))
    }

    /// The next call's id and body. Pings are answered.
    async fn call(&mut self) -> Option<(u64, Vec<u8>)> {
        loop {
            match self.frame().await? {
                (CALL, id, payload) => {
                    let (_, body) = decode_call(&payload).unwrap();
                    return Some((id, body.to_vec()));
                }
                (PING, _, payload) => self.say(&frame(PONG, 0, &payload)).await,
                _ => {}
            }
        }
    }

    /// Says nothing more, but reads on; what the client gave as its reason at last.
    async fn listen(&mut self) -> Option<String> {
        let mut told = None;
        while let Some((kind, _, payload)) = self.frame().await {
            if kind == CONNECTION_ERROR {
                told = Some(String::from_utf8(payload).unwrap());
            }
        }
        told
    }
}

type Script = Arc<dyn Fn(Line) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A listener on loopback that treats each connection by a script.
struct Liar {
    address: Address,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Liar {
    async fn start<F, Fut>(script: F) -> Self
    where
        F: Fn(Line) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::of(Arc::new(move |line| Box::pin(script(line)))).await
    }

    async fn of(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp@{}", listener.local_addr().unwrap()).parse().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut scripts = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                counted.fetch_add(1, SeqCst);
                while scripts.try_join_next().is_some() {}
                scripts.spawn(script(Line(Stream::new(stream, Peer::new("client")))));
            }
        });
        Self { address, connections, task }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A real server that counts.
struct Honest {
    address: Address,
    runs: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Honest {
    async fn start() -> Self {
        let runs = Arc::new(AtomicUsize::new(0));
        let foo = Service::with_state("Foo", Arc::clone(&runs))
            .method("Sum", async |runs: State<AtomicUsize>, (a, b): (i64, i64)| {
                runs.fetch_add(1, SeqCst);
                Ok::<_, Status>(a + b)
            })
            .method("Echo", async |runs: State<AtomicUsize>, bytes: Raw| {
                runs.fetch_add(1, SeqCst);
                Ok::<_, Status>(bytes)
            });
        let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
        let address = listener.address().clone();
        let serving = tokio::spawn(async move {
            let server = Server::new().service(foo);
            server.serve(listener, std::future::pending()).await.unwrap();
        });
        Self { address, runs, serving }
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A client of both, which asks the liar first.
fn client_of(liar: &Liar, honest: &Honest) -> XClientBuilder {
    let first = liar.address.clone();
    let liar_first = from_fn(move |endpoints, cx| {
        endpoints
            .iter()
            .position(|endpoint| endpoint.instance().address == first && endpoint.is_usable(cx.now))
    });
    let both = [&liar.address, &honest.address].map(|address| Instance::at(address.clone()));
    XClient::builder("Foo", StaticList::new(both)).selector(liar_first).connection(impatient())
}

/// Dials again at once.
fn undeterred() -> ConnectionSettings {
    let mut settings = impatient();
    settings.reconnect_first = Duration::ZERO;
    settings
}

fn impatient() -> ConnectionSettings {
    let mut settings = ConnectionSettings::default();
    settings.connect_timeout = Duration::from_secs(5);
    settings
}

/// Half of its time is for dialling: longer than the connect timeout.
fn sum() -> Call {
    Call::new("Foo.Sum").args(&(1, 2)).unwrap().timeout(Duration::from_secs(20))
}

/// One attempt at one address.
async fn sum_at(client: &XClient, address: &Address) -> Result<i64, Error> {
    timeout(PATIENCE, client.send(sum().only(address.clone()))).await.expect("no end")?.decode()
}

/// How an attempt ends that met a lie.
struct Lie {
    name: &'static str,
    /// Said instead of a handshake, or after the first call of each connection.
    says: Says,
    then: Then,
    kind: Kind,
    execution: Execution,
    text: &'static str,
}

#[derive(Clone)]
enum Says {
    Instead(Vec<u8>),
    AfterCall(fn(u64) -> Vec<u8>),
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Closes,
    /// Says nothing more.
    Listens,
    /// Says nothing more, and is told by the client what was wrong.
    IsTold,
}

/// The client cannot make a connection of it.
fn no_handshake(
    name: &'static str,
    bytes: impl Into<Vec<u8>>,
    then: Then,
    text: &'static str,
) -> Lie {
    let (kind, execution) = (Kind::Unavailable, Execution::NotSent);
    Lie { name, says: Says::Instead(bytes.into()), then, kind, execution, text }
}

/// The client cannot go on with the connection.
fn breach(name: &'static str, says: fn(u64) -> Vec<u8>, text: &'static str) -> Lie {
    let (kind, execution) = (Kind::Unavailable, Execution::MaybeExecuted);
    Lie { name, says: Says::AfterCall(says), then: Then::IsTold, kind, execution, text }
}

/// The connection just ends.
fn lost(name: &'static str, says: fn(u64) -> Vec<u8>) -> Lie {
    let (kind, execution) = (Kind::Unavailable, Execution::MaybeExecuted);
    let text = "the connection ended: the server closed it";
    Lie { name, says: Says::AfterCall(says), then: Then::Closes, kind, execution, text }
}

/// The call is answered, for better or worse.
fn answered(
    name: &'static str,
    says: fn(u64) -> Vec<u8>,
    (kind, execution): (Kind, Execution),
    text: &'static str,
) -> Lie {
    Lie { name, says: Says::AfterCall(says), then: Then::Listens, kind, execution, text }
}

fn handshakes() -> Vec<Lie> {
    let no_magic = "cannot connect: this is no srpc handshake";
    let limits = "the handshake's limits: below what every peer takes";
    let length = "an undefined value in the handshake's length";
    let silent = "no connection within";
    let half = good_hello()[..12].to_vec();
    let with_length = |len: u16| [&b"SRPC"[..], &len.to_be_bytes(), &[0; 18]].concat();
    vec![
        no_handshake("closes at once", [], Then::Closes, "cannot connect: "),
        no_handshake("wrong magic", b"SRPX\0\x12\x01\x01", Then::Listens, no_magic),
        no_handshake("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n", Then::Listens, no_magic),
        no_handshake("an alert of TLS", b"\x15\x03\x03\0\x02\x02\x46", Then::Closes, "speaks TLS"),
        no_handshake("a frame first", three(1 << 20), Then::Listens, no_magic),
        no_handshake("zeros", [0; 100_000], Then::Listens, no_magic),
        no_handshake("version 0", hello(0, LIMITS, &[]), Then::Listens, "speaks 0 to 0"),
        no_handshake("version 2", hello(2, LIMITS, &[]), Then::Listens, "speaks 2 to 2"),
        no_handshake("length 0", with_length(0), Then::Listens, length),
        no_handshake("length 17", with_length(17), Then::Listens, length),
        no_handshake("length 1025", with_length(1025), Then::Listens, length),
        no_handshake("length 65535", with_length(u16::MAX), Then::Listens, length),
        no_handshake("no bodies", hello(1, [65_535, 64, 4 << 20], &[]), Then::Listens, limits),
        no_handshake("no calls", hello(1, [65_536, 0, 4 << 20], &[]), Then::Listens, limits),
        no_handshake("no bytes", hello(1, [65_536, 64, 0], &[]), Then::Listens, limits),
        no_handshake("half of one, then the end", half.clone(), Then::Closes, "cannot connect: "),
        no_handshake("half of one, then silence", half, Then::Listens, silent),
        no_handshake("silence", [], Then::Listens, silent),
    ]
}

fn answers() -> Vec<Lie> {
    let internal = (Kind::Internal, Execution::Executed);
    vec![
        breach(
            "length 0xFFFFFFFF",
            |id| header(u32::MAX, REPLY, 0, 0, id),
            "a frame of 4294967295 bytes",
        ),
        breach(
            "a byte more than is ever skipped",
            |id| header((64 << 20) + 1, REPLY, 0, 0, id),
            "a frame of 67108865 bytes",
        ),
        breach("a pong too long", |_| frame(PONG, 0, &[0; 4097]), "a frame of 4097 bytes"),
        breach("an unknown type", |id| frame(8, id, &[]), "an unknown frame type 8"),
        breach(
            "an unknown flag",
            |id| header(0, REPLY, 0x80, 0, id),
            "flags 0x80 on a frame of type 2",
        ),
        breach(
            "more to follow",
            |id| header(0, REPLY, 2, 0, id),
            "flags 0x02 on a frame of type 2",
        ),
        breach("a reserved field", |id| header(0, REPLY, 0, 1, id), "a reserved field is set"),
        breach("an empty reply", |id| frame(REPLY, id, &[]), "ends within its fields"),
        breach("half a reply's head", |id| frame(REPLY, id, &[0; 6]), "ends within its fields"),
        breach("a success of class 1", |id| reply(id, OK, REJECTED, &[3]), "class of a success"),
        breach(
            "a success of class 2",
            |id| reply(id, OK, MAYBE_EXECUTED, &[3]),
            "class of a success",
        ),
        breach("class 3", |id| reply(id, INTERNAL, 3, b"?"), "a reply's class"),
        breach("class 255", |id| reply(id, UNAVAILABLE, 255, b"?"), "a reply's class"),
        breach(
            "metadata that is not UTF-8",
            |id| {
                frame(
                    REPLY,
                    id,
                    &reply_of(OK, EXECUTED, &[&[1][..], &entry(b"\xff", b"")].concat(), &[3]),
                )
            },
            "text that is not UTF-8",
        ),
        breach(
            "65 entries",
            |id| {
                let entries: Vec<_> = (0..65).flat_map(|n| entry(&[b'a', n], b"")).collect();
                frame(REPLY, id, &reply_of(OK, EXECUTED, &[&[65][..], &entries].concat(), &[3]))
            },
            "more than 64 metadata entries",
        ),
        breach(
            "too much metadata",
            |id| {
                let metadata = [&[1][..], &entry(b"k", &[b'v'; 9000])].concat();
                frame(REPLY, id, &reply_of(OK, EXECUTED, &metadata, &[3]))
            },
            "more than 8192 bytes of metadata",
        ),
        breach(
            "an empty key",
            |id| frame(REPLY, id, &reply_of(OK, EXECUTED, &[1, 0, 0, 0], &[3])),
            "a metadata key is 1 to 255 bytes",
        ),
        breach(
            "more entries than there are",
            |id| frame(REPLY, id, &reply_of(OK, EXECUTED, &[20], &[])),
            "ends within its fields",
        ),
        breach(
            "a call to a client",
            |id| frame(CALL, id, b"\0\x07Foo.Sum\x01\0\0\x03\xe8\0"),
            "a frame of type 1 from the wrong side",
        ),
        breach(
            "a call too large, to a client",
            |id| header(5 << 20, CALL, 0, 0, id),
            "a frame of type 1 from the wrong side",
        ),
        breach(
            "a cancel to a client",
            |id| frame(CANCEL, id, &[]),
            "a frame of type 3 from the wrong side",
        ),
        lost("the end after the call", |_| vec![]),
        lost("half a reply, then the end", |id| three(id)[..20].to_vec()),
        lost("half a header, then the end", |id| three(id)[..7].to_vec()),
        Lie {
            text: "the peer refuses the connection: no \u{fffd} reason\\n",
            ..lost("a connection error, then the end", |_| {
                frame(CONNECTION_ERROR, 0, b"no \xff reason\n")
            })
        },
        lost("a reply to somebody else, then the end", |id| three(id + 1)),
        answered(
            "an unknown status",
            |id| reply(id, 99, EXECUTED, b"new"),
            (Kind::Unknown, Execution::Executed),
            "new",
        ),
        answered(
            "status 255, rejected",
            |id| reply(id, 255, REJECTED, b"new"),
            (Kind::Unknown, Execution::Rejected),
            "new",
        ),
        answered(
            "a text that is not UTF-8",
            |id| reply(id, INTERNAL, EXECUTED, b"a\xffb"),
            internal,
            "a\u{fffd}b",
        ),
        answered(
            "no text",
            |id| reply(id, INTERNAL, MAYBE_EXECUTED, b""),
            (Kind::Internal, Execution::MaybeExecuted),
            "",
        ),
        answered("no body", |id| reply(id, OK, EXECUTED, b""), internal, "the reply: "),
        answered("another type", |id| reply(id, OK, EXECUTED, b"\xa1x"), internal, "the reply: "),
        answered(
            "an array of 4 Gi entries",
            |id| reply(id, OK, EXECUTED, b"\xdd\xff\xff\xff\xff"),
            internal,
            "the reply: ",
        ),
        answered(
            "a reply too large",
            |id| [header(5 << 20, REPLY, 0, 0, id), vec![0; 5 << 20]].concat(),
            (Kind::ResourceExhausted, Execution::Executed),
            "larger than this client takes",
        ),
        answered(
            "a reply too large that never comes",
            |id| header(64 << 20, REPLY, 0, 0, id),
            (Kind::ResourceExhausted, Execution::Executed),
            "larger than this client takes",
        ),
        answered(
            "a drain below the call",
            |id| frame(DRAIN, id - 1, &[]),
            (Kind::Unavailable, Execution::Rejected),
            "draining",
        ),
        answered(
            "a drain below all calls",
            |_| frame(DRAIN, 0, &[]),
            (Kind::Unavailable, Execution::Rejected),
            "draining",
        ),
    ]
}

/// Tells each lie to a client of its own, whose other server serves it all the while.
async fn check_all(lies: Vec<Lie>) {
    let honest = Arc::new(Honest::start().await);
    let of = lies.len();
    let mut checks = JoinSet::new();
    for lie in lies {
        let honest = Arc::clone(&honest);
        checks.spawn(async move {
            check(&lie, &honest).await.map_err(|what| format!("{}: {what}", lie.name))
        });
    }
    let failures: Vec<_> = checks.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{} of {of}:\n{}", failures.len(), failures.join("\n"));
}

async fn check(lie: &Lie, honest: &Honest) -> Result<(), String> {
    let (says, then) = (lie.says.clone(), lie.then);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let liar = Liar::start(move |mut line| {
        let (says, tell) = (says.clone(), tell.clone());
        async move {
            match &says {
                Says::Instead(bytes) => line.say(bytes).await,
                Says::AfterCall(says) => {
                    line.shake().await;
                    let Some((id, _)) = line.call().await else { return };
                    line.say(&says(id)).await;
                }
            }
            match (then, &says) {
                (Then::Closes, _) => {}
                (_, Says::AfterCall(_)) => tell.send(line.listen().await).unwrap_or_default(),
                (_, Says::Instead(_)) => {
                    let _ = line.0.read_to_end(&mut Vec::new()).await;
                }
            }
        }
    })
    .await;
    let client = client_of(&liar, honest).build().unwrap();
    let error = match sum_at(&client, &liar.address).await {
        Err(error) => error,
        Ok(sum) => return Err(format!("the sum is {sum}")),
    };
    if (error.kind(), error.execution()) != (lie.kind, lie.execution) {
        return Err(format!("{error}"));
    }
    if !error.message().contains(lie.text) {
        return Err(format!("the text is {:?}", error.message()));
    }
    if error.endpoint() != Some(&liar.address) {
        return Err(format!("the endpoint is {:?}", error.endpoint()));
    }
    // What was drained is dialled once more: it may have been idle.
    let most = 1 + usize::from(lie.execution == Execution::Rejected);
    if !(1..=most).contains(&liar.connections.load(SeqCst)) {
        return Err(format!("{} connections", liar.connections.load(SeqCst)));
    }
    sum_at(&client, &honest.address).await.map_err(|error| format!("the other: {error}"))?;
    if then == Then::IsTold {
        match timeout(PATIENCE, told.recv()).await {
            Ok(Some(Some(told))) if told.contains(lie.text) => {}
            told => return Err(format!("the client says {told:?}")),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_handshake_is_no_connection() {
    check_all(handshakes()).await;
}

#[tokio::test]
async fn a_bad_answer_has_its_kind_and_class() {
    check_all(answers()).await;
}

/// The client says why it leaves, however many calls it has in flight.
#[tokio::test]
async fn a_liar_is_told_why() {
    let honest = Honest::start().await;
    for count in [1, 2, 10, 100] {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let liar = Liar::start(move |mut line| {
            let tell = tell.clone();
            async move {
                line.shake().await;
                for _ in 0..count {
                    line.call().await.unwrap();
                }
                line.say(&header(u32::MAX, REPLY, 0, 0, 0)).await;
                tell.send(line.listen().await).unwrap();
            }
        })
        .await;
        let client = client_of(&liar, &honest).build().unwrap();
        let calls = (0..count).map(|_| {
            let (client, address) = (client.clone(), liar.address.clone());
            tokio::spawn(async move { sum_at(&client, &address).await })
        });
        for call in calls.collect::<Vec<_>>() {
            let error = call.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            assert_eq!(error.execution(), Execution::MaybeExecuted, "{error}");
        }
        let told = timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
        assert_eq!(told.as_deref(), Some("a frame of 4294967295 bytes"), "{count} calls");
    }
}

/// What looks odd and is right.
#[tokio::test]
async fn what_is_to_be_read_over_is_read_over() {
    type Odd = fn(u64) -> Vec<u8>;
    let oddities: [(&str, Odd); 10] = [
        ("nothing", |_| vec![]),
        ("unknown types to skip", |id| [header(3, 8, SKIP, 0, id), b"abc".to_vec()].concat()),
        ("one with all flags", |_| [header(1, 255, 0xff, 0xffff, 0), vec![1]].concat()),
        ("a long one", |_| [header(6 << 20, 99, SKIP, 0, 7), vec![9; 6 << 20]].concat()),
        ("empty frames", |_| header(0, VOID, 0, 0, 0).repeat(10_000)),
        ("void frames with payloads", |id| frame(VOID, id, &[7; 9000])),
        ("a pong that nobody asked for", |_| frame(PONG, 0, &[1, 2, 3])),
        ("pings", |_| frame(PING, 0, &[5; 4096]).repeat(10)),
        ("replies to nobody", |id| {
            [three(0), three(id - 1), three(id + 1), three(id + (1 << 20)), three(u64::MAX)]
                .concat()
        }),
        ("errors to nobody", |id| reply(id + 1, UNAVAILABLE, REJECTED, b"").repeat(1000)),
    ];
    let honest = Honest::start().await;
    for (name, odd) in oddities {
        let liar = Liar::start(move |mut line| async move {
            line.shake().await;
            while let Some((id, _)) = line.call().await {
                line.say(&[odd(id), three(id)].concat()).await;
            }
        })
        .await;
        let client = client_of(&liar, &honest).build().unwrap();
        for _ in 0..3 {
            let sum = sum_at(&client, &liar.address).await;
            assert_eq!(sum.map_err(|error| error.to_string()), Ok(3), "{name}");
        }
        assert_eq!(liar.connections.load(SeqCst), 1, "{name}");
    }
    assert_eq!(honest.runs.load(SeqCst), 0);
}

#[tokio::test]
async fn a_handshake_of_a_newer_server_and_frames_behind_it_are_taken() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.bytes(24).await.unwrap();
        let newer = hello(1, [u32::MAX; 3], &[9; 1024 - 18]);
        line.say(&[newer, frame(PING, 0, b"first"), frame(PONG, 0, b"")].concat()).await;
        // The ping came with the handshake: its answer comes before any call.
        assert_eq!(line.frame().await, Some((PONG, 0, b"first".to_vec())));
        while let Some((id, _)) = line.call().await {
            line.say(&three(id)).await;
        }
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    assert_eq!(sum_at(&client, &liar.address).await.unwrap(), 3);
}

/// A server whose load and statuses lie does not upset the choice among servers.
#[tokio::test]
async fn a_load_that_lies_upsets_nobody() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        while let Some((id, _)) = line.call().await {
            let payload = [&[OK, EXECUTED, 0xff, 0xff, 0xff, 0xff, 0][..], &[3]].concat();
            line.say(&frame(REPLY, id, &payload)).await;
        }
    })
    .await;
    let both = [&liar.address, &honest.address].map(|address| Instance::at(address.clone()));
    let client = XClient::new("Foo", StaticList::new(both)).unwrap();
    for _ in 0..100 {
        assert_eq!(client.call::<_, i64>("Foo.Sum", &(1, 2)).await.unwrap(), 3);
    }
    assert!(honest.runs.load(SeqCst) > 0);
}

#[tokio::test]
async fn replies_to_nobody_are_counted() {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut line = Line(Stream::new(far, Peer::new("client")));
    let stream = Stream::new(near, Peer::new("liar"));
    let opening = Connection::open(stream, ConnectionSettings::default(), None);
    let (connection, ()) = tokio::join!(opening, line.shake());
    let connection = connection.unwrap();
    let (first, ids) = tokio::join!(exchange(&connection), async {
        let (id, _) = line.call().await.unwrap();
        // To nobody: never used, another sequence in the same slot, far beyond any slot, 0.
        for id in [id + 1, id + (1 << 20), u64::MAX, 0] {
            line.say(&three(id)).await;
        }
        // The second of these is a double.
        line.say(&[three(id), reply(id, OK, EXECUTED, &[4])].concat()).await;
        id
    });
    assert_eq!(first.unwrap(), 3);
    assert_eq!(connection.stray_replies(), 5);
    // The double of an old reply does not answer the next call, which may have its slot.
    let (second, ()) = tokio::join!(exchange(&connection), async {
        let (id, _) = line.call().await.unwrap();
        assert!(id > ids);
        line.say(&[reply(ids, OK, EXECUTED, &[5]), three(id)].concat()).await;
    });
    assert_eq!(second.unwrap(), 3);
    assert_eq!((connection.stray_replies(), connection.in_flight()), (6, 0));
    assert!(connection.is_open());
}

async fn exchange(connection: &Connection) -> Result<i64, Error> {
    let deadline = Instant::now() + Duration::from_secs(20);
    connection.exchange(&sum(), deadline).await?.decode()
}

#[tokio::test]
async fn a_result_that_cannot_be_read_names_its_server() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        while let Some((id, _)) = line.call().await {
            line.say(&reply(id, OK, EXECUTED, b"\xa1x")).await;
        }
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    let error = client.call::<_, i64>("Foo.Sum", &(1, 2)).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Internal, Execution::Executed));
    assert_eq!((error.endpoint(), error.attempt()), (Some(&liar.address), 1), "{error}");
}

#[tokio::test]
async fn the_text_of_an_error_is_cut() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        let (id, _) = line.call().await.unwrap();
        line.say(&reply(id, INTERNAL, EXECUTED, &[b'x'; 100_000])).await;
        line.call().await.unwrap();
        line.say(&frame(CONNECTION_ERROR, 0, &[0xff; 4096])).await;
        line.listen().await;
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    for kind in [Kind::Internal, Kind::Unavailable] {
        let error = sum_at(&client, &liar.address).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let len = error.message().len();
        assert!((4096..4300).contains(&len), "{len}");
    }
}

#[tokio::test]
async fn a_reply_too_large_costs_its_call_alone() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        let (first, _) = line.call().await.unwrap();
        let (second, _) = line.call().await.unwrap();
        let large = [header(5 << 20, REPLY, 0, 0, first), vec![0; 5 << 20]].concat();
        line.say(&[large, three(second)].concat()).await;
        while let Some((id, _)) = line.call().await {
            line.say(&three(id)).await;
        }
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    let (first, second) =
        tokio::join!(sum_at(&client, &liar.address), sum_at(&client, &liar.address));
    let error = first.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::ResourceExhausted, Execution::Executed));
    assert_eq!(second.unwrap(), 3);
    assert_eq!(sum_at(&client, &liar.address).await.unwrap(), 3);
    assert_eq!(liar.connections.load(SeqCst), 1);
}

/// Rejected is a promise, so the call moves on though nobody said that it is idempotent.
#[tokio::test]
async fn a_call_above_a_drain_is_sent_elsewhere() {
    let honest = Honest::start().await;
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    let liar = Liar::start(move |mut line| {
        let read = Arc::clone(&counted);
        async move {
            line.shake().await;
            while let Some((id, _)) = line.call().await {
                read.fetch_add(1, SeqCst);
                line.say(&frame(DRAIN, id - 1, &[])).await;
            }
        }
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    for n in 1..=10 {
        assert_eq!(client.send(sum()).await.unwrap().decode::<i64>().unwrap(), 3);
        assert_eq!(honest.runs.load(SeqCst), n, "each exactly once");
    }
    assert!((1..=10).contains(&read.load(SeqCst)));
}

#[tokio::test]
async fn a_drain_lets_earlier_calls_end_where_they_are() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        let Some((first, _)) = line.call().await else { return };
        let Some((second, _)) = line.call().await else { return };
        line.say(&frame(DRAIN, first, &[])).await;
        sleep(Duration::from_millis(50)).await;
        // The reply to the second breaks its word, and finds nobody.
        let replies = [reply(second, OK, EXECUTED, &[99]), reply(first, OK, EXECUTED, &[100])];
        line.say(&replies.concat()).await;
        line.listen().await;
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    let (first, second) = tokio::join!(client.send(sum()), client.send(sum()));
    assert_eq!(first.unwrap().decode::<i64>().unwrap(), 100);
    assert_eq!(second.unwrap().decode::<i64>().unwrap(), 3);
    assert_eq!(honest.runs.load(SeqCst), 1);
}

/// A drain above all ids ends nothing, but nothing new is sent there.
#[tokio::test]
async fn a_drain_above_all_calls_is_only_a_drain() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        while let Some((id, _)) = line.call().await {
            line.say(&[frame(DRAIN, u64::MAX, &[]), frame(DRAIN, 0, &[]), three(id)].concat())
                .await;
        }
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    // The second drain lowers the id, which no server may do: the call is taken at its word.
    assert_eq!(client.send(sum()).await.unwrap().decode::<i64>().unwrap(), 3);
    assert_eq!(honest.runs.load(SeqCst), 1);
}

/// The classic of the retry storm: everybody is always unavailable.
#[tokio::test]
async fn servers_that_always_reject_get_three_attempts_a_call() {
    let read = Arc::new(AtomicUsize::new(0));
    let mut liars = Vec::new();
    for _ in 0..5 {
        let counted = Arc::clone(&read);
        let liar = Liar::start(move |mut line| {
            let read = Arc::clone(&counted);
            async move {
                line.shake().await;
                while let Some((id, _)) = line.call().await {
                    read.fetch_add(1, SeqCst);
                    line.say(&reply(id, UNAVAILABLE, REJECTED, b"busy")).await;
                }
            }
        });
        liars.push(liar.await);
    }
    let list = liars.iter().map(|liar| Instance::at(liar.address.clone()));
    // A budget of its own: other tests have clients of this service too.
    let retry = Retry::new(3).budget(0.2, 10);
    let client = XClient::builder("Foo", StaticList::new(list)).retry(retry).build().unwrap();
    for n in 1..=10 {
        let error = client.send(sum()).await.unwrap_err();
        assert_eq!((error.kind(), error.execution()), (Kind::Unavailable, Execution::Rejected));
        assert_eq!((error.attempt(), error.message()), (3, "busy"));
        assert_eq!(read.load(SeqCst), 3 * n);
    }
    // The budget holds them off when it goes on: a fifth of the calls, and ten a second.
    let started = Instant::now();
    for _ in 0..1000 {
        client.send(sum()).await.unwrap_err();
    }
    let allowed = 1010 + 1010 / 5 + 10 * (10 + started.elapsed().as_secs() as usize + 1);
    assert!(read.load(SeqCst) <= allowed, "{} of {allowed}", read.load(SeqCst));
}

/// Each connection ends when a whole call has been read: nobody knows whether it was executed, so
/// none is ever sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_is_sent_twice_to_a_server_that_hangs_up() {
    const CALLS: u64 = 1000;
    const AT_ONCE: u64 = 10;
    let seen = Arc::new(Mutex::new(HashMap::<u64, usize>::new()));
    let record = Arc::clone(&seen);
    let liar = Liar::start(move |mut line| {
        let record = Arc::clone(&record);
        async move {
            line.shake().await;
            if let Some((_, body)) = line.call().await {
                let number = u64::from_be_bytes(body.try_into().unwrap());
                *record.lock().unwrap().entry(number).or_default() += 1;
            }
        }
    })
    .await;
    let list = StaticList::new([Instance::at(liar.address.clone())]);
    let client = XClient::builder("Foo", list).connection(undeterred()).build().unwrap();
    let send = |number: u64| {
        let call = Call::new("Foo.Echo").body(CodecId::RAW, number.to_be_bytes().to_vec());
        let client = client.clone();
        async move { (number, client.send(call).await.unwrap_err()) }
    };
    let mut errors = Vec::new();
    for number in 0..CALLS / 2 {
        errors.push(send(number).await);
        assert_eq!(errors[number as usize].1.execution(), Execution::MaybeExecuted);
    }
    assert_eq!(seen.lock().unwrap().len() as u64, CALLS / 2, "one at a time, all are read");
    let mut calls = JoinSet::new();
    for number in CALLS / 2..CALLS {
        if calls.len() as u64 == AT_ONCE {
            errors.push(calls.join_next().await.unwrap().unwrap());
        }
        calls.spawn(send(number));
    }
    errors.extend(calls.join_all().await);
    assert_eq!(errors.len() as u64, CALLS);
    let seen = seen.lock().unwrap();
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    for (number, error) in &errors {
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        match error.execution() {
            Execution::NotSent => assert!(!seen.contains_key(number), "{number}: {error}"),
            execution => assert_eq!(execution, Execution::MaybeExecuted, "{error}"),
        }
    }
}

#[tokio::test]
async fn idempotent_calls_survive_a_server_that_hangs_up() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        line.call().await;
    })
    .await;
    let client = client_of(&liar, &honest).outlier_ejection(OutlierEjection::off());
    let client = client.connection(undeterred()).build().unwrap();
    for n in 1..=20 {
        let reply = client.send(sum().idempotent(true)).await.unwrap();
        assert_eq!(reply.decode::<i64>().unwrap(), 3);
        assert_eq!(honest.runs.load(SeqCst), n);
    }
    let error = client.send(sum()).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Unavailable, Execution::MaybeExecuted));
    assert_eq!(honest.runs.load(SeqCst), 20);
}

#[tokio::test]
async fn a_silent_server_is_left_at_the_deadline() {
    let honest = Honest::start().await;
    let cancelled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cancelled);
    let liar = Liar::start(move |mut line| {
        let cancelled = Arc::clone(&counted);
        async move {
            line.shake().await;
            while let Some((kind, _, _)) = line.frame().await {
                cancelled.fetch_add(usize::from(kind == CANCEL), SeqCst);
            }
        }
    })
    .await;
    let mut settings = impatient();
    // An unanswered ping would make it suspect.
    settings.ping_busy = PATIENCE;
    let client = client_of(&liar, &honest).connection(settings).build().unwrap();
    let limit = Duration::from_secs(2);
    let started = Instant::now();
    let error = client.send(sum().timeout(limit)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(error.execution(), Execution::MaybeExecuted);
    assert!(started.elapsed() >= limit && started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    let told = async {
        while cancelled.load(SeqCst) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("no cancel");
    // An attempt's timeout is left the same way; idempotent calls have time for another server.
    let call = sum().attempt_timeout(limit);
    let error = client.send(call.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!((error.execution(), honest.runs.load(SeqCst)), (Execution::MaybeExecuted, 0));
    assert_eq!(client.send(call.idempotent(true)).await.unwrap().decode::<i64>().unwrap(), 3);
}

/// A server that does not even answer a ping is suspect: idempotent calls do not wait for it.
#[tokio::test]
async fn a_server_that_answers_no_ping_keeps_no_idempotent_call() {
    let honest = Honest::start().await;
    // Only its first connection shakes hands: a probe that dials anew hears nothing either.
    let connections = AtomicUsize::new(0);
    let liar = Liar::start(move |mut line: Line| {
        let is_first = connections.fetch_add(1, SeqCst) == 0;
        async move {
            if is_first {
                line.shake().await;
            }
            line.listen().await;
        }
    })
    .await;
    let mut settings = impatient();
    settings.ping_busy = Duration::from_millis(50);
    settings.ping_timeout = Duration::from_secs(1);
    let client = client_of(&liar, &honest).connection(settings).build().unwrap();
    let limit = Duration::from_secs(6);
    let (kept, moved) = tokio::join!(
        client.send(sum().timeout(limit)),
        client.send(sum().timeout(limit).idempotent(true)),
    );
    assert_eq!(moved.unwrap().decode::<i64>().unwrap(), 3);
    let error = kept.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(error.execution(), Execution::MaybeExecuted);
    assert_eq!(error.endpoint(), Some(&liar.address));
    // It is ejected: nobody else is sent there.
    assert_eq!(client.send(sum()).await.unwrap().decode::<i64>().unwrap(), 3);
    assert_eq!(honest.runs.load(SeqCst), 2);
}

#[tokio::test]
async fn a_late_reply_finds_nobody() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        let (first, _) = line.call().await.unwrap();
        line.say(&three(first)).await;
        let (late, _) = line.call().await.unwrap();
        let (next, _) = line.call().await.unwrap();
        line.say(&[reply(late, OK, EXECUTED, &[99]), three(next)].concat()).await;
        line.listen().await;
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    // So that the connection stands, and a second is enough to send.
    assert_eq!(sum_at(&client, &liar.address).await.unwrap(), 3);
    let late = sum().timeout(Duration::from_secs(1)).only(liar.address.clone());
    let error = client.send(late).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(error.execution(), Execution::MaybeExecuted);
    // The late reply comes while the next call waits, and does not answer it.
    assert_eq!(sum_at(&client, &liar.address).await.unwrap(), 3);
    assert_eq!(liar.connections.load(SeqCst), 1);
}

/// Bytes that never become a reply: drops, and a flood.
#[tokio::test]
async fn the_deadline_holds_whatever_comes_instead_of_a_reply() {
    let honest = Honest::start().await;
    for flood in [false, true] {
        let liar = Liar::start(move |mut line| async move {
            line.shake().await;
            let Some((id, _)) = line.call().await else { return };
            let drops = reply(id, OK, EXECUTED, &[0; 1000]);
            let empty = header(0, VOID, 0, 0, 0).repeat(1000);
            for byte in drops {
                match flood {
                    false => {
                        line.say(&[byte]).await;
                        sleep(Duration::from_millis(20)).await;
                    }
                    // Until the client closes, which the runtime's end does at last.
                    true => while line.0.write_all(&empty).await.is_ok() {},
                }
            }
        })
        .await;
        let client = client_of(&liar, &honest).build().unwrap();
        let call = sum().timeout(Duration::from_secs(3)).only(liar.address.clone());
        let error = timeout(PATIENCE, client.send(call)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{flood}: {error}");
        assert_eq!(error.execution(), Execution::MaybeExecuted, "{flood}: {error}");
        assert_eq!(sum_at(&client, &honest.address).await.unwrap(), 3);
        client.close().await;
    }
}

/// A handshake that comes in drops is over at the connect timeout.
#[tokio::test]
async fn a_handshake_in_drops_is_no_connection() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        for byte in hello(1, LIMITS, &[0; 1000]) {
            line.say(&[byte]).await;
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    let error = sum_at(&client, &liar.address).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Unavailable, Execution::NotSent));
    assert!(error.message().contains("no connection within"), "{error}");
    // Without an address the call goes to the other server, though nobody said it is idempotent.
    assert_eq!(client.send(sum()).await.unwrap().decode::<i64>().unwrap(), 3);
    assert_eq!(honest.runs.load(SeqCst), 1);
}

/// What our own server does with a client that it refuses: a good handshake, a reason, the end.
#[tokio::test]
async fn a_refusal_with_the_handshake_is_no_success() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.bytes(24).await.unwrap();
        line.say(&[good_hello(), frame(CONNECTION_ERROR, 0, b"not you")].concat()).await;
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    let error = sum_at(&client, &liar.address).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.execution() <= Execution::MaybeExecuted, "{error}");
}

#[tokio::test]
async fn a_reply_to_a_call_that_is_still_being_sent_is_taken() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        // The header is enough to know the id; the rest of the call cannot have left yet.
        let header = line.bytes(16).await.unwrap();
        let id = u64::from_be_bytes(header[8..].try_into().unwrap());
        line.say(&three(id)).await;
        sleep(Duration::from_millis(100)).await;
        let len = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
        line.bytes(len).await.unwrap();
        while let Some((id, _)) = line.call().await {
            line.say(&three(id)).await;
        }
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    let call = Call::new("Foo.Sum").body(CodecId::MESSAGE_PACK, vec![0; 4 << 20]);
    let early = client.send(call.only(liar.address.clone())).await.unwrap();
    assert_eq!(early.decode::<i64>().unwrap(), 3);
    assert_eq!(sum_at(&client, &liar.address).await.unwrap(), 3);
    assert_eq!(liar.connections.load(SeqCst), 1);
}

/// A server that pings and never reads gets no memory for its pongs.
#[tokio::test]
async fn pongs_that_nobody_reads_do_not_pile_up() {
    const PINGS: usize = 8 * 1024;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut line = Line(Stream::new(far, Peer::new("client")));
    let stream = Stream::new(near, Peer::new("liar"));
    let opening = Connection::open(stream, ConnectionSettings::default(), None);
    let (connection, ()) = tokio::join!(opening, line.shake());
    let connection = connection.unwrap();
    // 32 MiB; the client may also stop reading.
    let flood = async {
        for _ in 0..PINGS {
            line.say(&frame(PING, 0, &[1; 4096])).await;
        }
    };
    let _ = timeout(Duration::from_secs(2), flood).await;
    let mut pongs = 0;
    while let Ok(Some(_)) = timeout(Duration::from_millis(500), line.frame()).await {
        pongs += 1;
    }
    assert!(pongs < PINGS / 8, "{pongs} pongs were kept");
    assert!(connection.is_open());
}

/// Calls that were given up must not pile up for a server that does not read, and those that were
/// said not to be sent must not be read later.
#[tokio::test(start_paused = true)]
async fn calls_given_up_do_not_pile_up_for_a_server_that_does_not_read() {
    const CALLS: u32 = 600;
    const BODY: usize = 256 * 1024;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut line = Line(Stream::new(far, Peer::new("client")));
    let stream = Stream::new(near, Peer::new("liar"));
    let mut settings = ConnectionSettings::default();
    // The pings of a long silence are not what this is about.
    (settings.ping_busy, settings.ping_idle) = (PATIENCE * 100, PATIENCE * 100);
    let opening = Connection::open(stream, settings, None);
    let (connection, ()) = tokio::join!(opening, line.shake());
    let connection = connection.unwrap();
    let mut not_sent = HashSet::new();
    for number in 0..CALLS {
        let mut body = vec![0; BODY];
        body[..4].copy_from_slice(&number.to_be_bytes());
        let call = Call::new("Foo.Echo").body(CodecId::RAW, body);
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = connection.exchange(&call, deadline).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        match error.execution() {
            Execution::NotSent => {
                not_sent.insert(number);
            }
            execution => assert_eq!(execution, Execution::MaybeExecuted),
        }
    }
    assert!(not_sent.len() > CALLS as usize / 2);
    let mut bytes = 0;
    while let Ok(Some((kind, _, payload))) = timeout(Duration::from_secs(1), line.frame()).await {
        bytes += 16 + payload.len();
        if kind == CALL {
            let (_, body) = decode_call(&payload).unwrap();
            let number = u32::from_be_bytes(body[..4].try_into().unwrap());
            assert!(!not_sent.contains(&number), "{number} was said not to be sent");
        }
    }
    assert!(bytes < 4 * LIMITS[2] as usize, "{bytes} bytes were kept");
    // Whoever comes now is served, without waiting for a deadline.
    let (sum, ()) = tokio::join!(exchange(&connection), async {
        let (id, _) = line.call().await.unwrap();
        line.say(&three(id)).await;
    });
    assert_eq!(sum.unwrap(), 3);
}

/// A call that waits while too much is unread goes out as soon as the server reads again.
#[tokio::test(start_paused = true)]
async fn a_server_that_reads_again_gets_what_waits() {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut line = Line(Stream::new(far, Peer::new("client")));
    let stream = Stream::new(near, Peer::new("liar"));
    let mut settings = ConnectionSettings::default();
    (settings.ping_busy, settings.ping_idle) = (PATIENCE * 100, PATIENCE * 100);
    let opening = Connection::open(stream, settings, None);
    let (connection, ()) = tokio::join!(opening, line.shake());
    let connection = connection.unwrap();
    for _ in 0..100 {
        let call = Call::new("Foo.Echo").body(CodecId::RAW, vec![0; 256 * 1024]);
        let deadline = Instant::now() + Duration::from_millis(50);
        connection.exchange(&call, deadline).await.unwrap_err();
    }
    let started = Instant::now();
    let (sum, ()) = tokio::join!(exchange(&connection), async {
        sleep(Duration::from_millis(100)).await;
        while let Some((kind, id, payload)) = line.frame().await {
            if kind == CALL && payload.len() < 1000 {
                line.say(&three(id)).await;
                break;
            }
        }
    });
    assert_eq!(sum.map_err(|error| error.to_string()), Ok(3));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

/// In a process of its own: a stack that overflows takes everything with it.
#[test]
fn a_deep_reply_does_not_overflow_the_stack() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "deep_reply", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{}: {told}", child.status);
}

#[tokio::test]
#[ignore = "run by `a_deep_reply_does_not_overflow_the_stack`"]
async fn deep_reply() {
    let honest = Honest::start().await;
    let liar = Liar::start(async |mut line: Line| {
        line.shake().await;
        while let Some((id, _)) = line.call().await {
            line.say(&reply(id, OK, EXECUTED, &[0x91; 100_000])).await;
        }
    })
    .await;
    let client = client_of(&liar, &honest).build().unwrap();
    let reply = client.send(sum().only(liar.address.clone())).await.unwrap();
    let error = reply.decode::<Value>().unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Internal, Execution::Executed));
}
