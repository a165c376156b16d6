//! What a server answers to bytes that break the protocol: exactly one clear thing, no handler run,
//! and everyone else served meanwhile.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "only a raw socket lies")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use srpc::backend::static_list::StaticList;
use srpc::call::Raw;
use srpc::server::{ServerSettings, State};
use srpc::{Instance, Listener, Server, Service, Status, XClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// No answer takes as long; a test that waits for it fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest body that the server takes.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// The id of the call that shows that a connection lives: above all others.
const LAST_ID: u64 = u64::MAX;

/// Frame types, by their numbers on the wire.
const VOID: u8 = 0;
const CALL: u8 = 1;
const REPLY: u8 = 2;
const CANCEL: u8 = 3;
const DRAIN: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const CONNECTION_ERROR: u8 = 7;

/// Flags.
const SKIP: u8 = 1;
const MORE: u8 = 2;
const IDEMPOTENT: u8 = 4;
const NOTIFY: u8 = 8;

/// Kinds, by their numbers on the wire.
const INVALID_ARGUMENT: u8 = 3;
const DEADLINE_EXCEEDED: u8 = 4;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;

/// What a reply says of its call's execution.
const EXECUTED: u8 = 0;
const REJECTED: u8 = 1;
const MAYBE_EXECUTED: u8 = 2;

const NO_HANDSHAKE: &str = "this is no srpc handshake";
const BAD_LENGTH: &str = "an undefined value in the handshake's length";
const BAD_LIMITS: &str = "the handshake's limits: below what every peer takes";
const SHORT: &str = "the payload ends within its fields";
const NOT_UTF8: &str = "text that is not UTF-8";

/// What must come back.
#[derive(Clone, Debug)]
enum Expect {
    /// The server's handshake, these answers and nothing else; the connection goes on.
    Lives(Vec<Answer>),
    /// The server's handshake, these answers, a connection error with this text, the end.
    Refused(Vec<Answer>, String),
    /// Status 400 in HTTP, the end.
    Http,
}

#[derive(Clone, Debug)]
enum Answer {
    /// A reply of this id that is a success with this body.
    Result(u64, Vec<u8>),
    /// A reply of this id with this status, this class and a text that contains this.
    Error(u64, u8, u8, &'static str),
    Pong(Vec<u8>),
}

impl Answer {
    fn came_from_a_handler(&self) -> bool {
        match self {
            Self::Result(..) => true,
            Self::Error(_, _, class, _) => *class == EXECUTED,
            Self::Pong(_) => false,
        }
    }
}

struct Case {
    name: String,
    /// What is sent at first.
    hello: Vec<u8>,
    /// What is sent then and answered so, before what the case is about. A handler may answer later
    /// than the frames behind its call do, so that those wait for its answer.
    before: Vec<(Vec<u8>, Answer)>,
    /// What is sent then.
    frames: Vec<u8>,
    expect: Expect,
}

impl Case {
    fn after(mut self, frames: Vec<u8>, answer: Answer) -> Self {
        self.before.push((frames, answer));
        self
    }
}

/// A case after a good handshake.
fn case(name: impl Into<String>, frames: impl Into<Vec<u8>>, expect: Expect) -> Case {
    Case { name: name.into(), hello: good_hello(), before: vec![], frames: frames.into(), expect }
}

/// A case whose handshake it is.
fn at_first(name: impl Into<String>, hello: impl Into<Vec<u8>>, expect: Expect) -> Case {
    Case { name: name.into(), hello: hello.into(), before: vec![], frames: vec![], expect }
}

fn lives(answers: impl Into<Vec<Answer>>) -> Expect {
    Expect::Lives(answers.into())
}

fn refused(text: &str) -> Expect {
    Expect::Refused(Vec::new(), text.to_owned())
}

fn error(id: u64, status: u8, class: u8, text: &'static str) -> Expect {
    lives([Answer::Error(id, status, class, text)])
}

fn result(id: u64, body: impl Into<Vec<u8>>) -> Expect {
    lives([Answer::Result(id, body.into())])
}

/// A handshake: magic, length, versions, largest body, windows, features.
fn hello(min: u8, max: u8, limits: [u32; 3], features: u32, newer: &[u8]) -> Vec<u8> {
    let mut bytes = b"SRPC".to_vec();
    bytes.extend_from_slice(&(18 + newer.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[min, max]);
    for limit in limits {
        bytes.extend_from_slice(&limit.to_be_bytes());
    }
    bytes.extend_from_slice(&features.to_be_bytes());
    bytes.extend_from_slice(newer);
    bytes
}

const LIMITS: [u32; 3] = [8 * 1024 * 1024, 4096, 64 * 1024 * 1024];
const LEAST: [u32; 3] = [64 * 1024, 64, 64 * 64 * 1024];

fn good_hello() -> Vec<u8> {
    hello(1, 1, LIMITS, 0, &[])
}

/// A frame's header: length, type, flags, reserved, id.
fn header(len: u32, kind: u8, flags: u8, reserved: u16, id: u64) -> Vec<u8> {
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&reserved.to_be_bytes());
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes
}

fn frame(kind: u8, flags: u8, id: u64, payload: &[u8]) -> Vec<u8> {
    [header(payload.len() as u32, kind, flags, 0, id), payload.to_vec()].concat()
}

fn ping(payload: &[u8]) -> Vec<u8> {
    frame(PING, 0, 0, payload)
}

fn named(method: &str) -> Vec<u8> {
    [&[0, method.len() as u8], method.as_bytes()].concat()
}

fn define(number: u8, method: &str) -> Vec<u8> {
    [&[1, number, method.len() as u8], method.as_bytes()].concat()
}

fn number(number: u8) -> Vec<u8> {
    vec![2, number]
}

/// What a call carries: method, codec, remaining milliseconds, metadata, body.
struct Call {
    method: Vec<u8>,
    codec: u8,
    remaining_ms: u32,
    /// With the number of entries before them.
    metadata: Vec<u8>,
    body: Vec<u8>,
}

impl Call {
    /// `Foo.Sum` of 1 and 2, in MessagePack.
    fn sum() -> Self {
        let (method, body) = (named("Foo.Sum"), vec![0x92, 1, 2]);
        Self { method, codec: 1, remaining_ms: 10_000, metadata: vec![0], body }
    }

    fn of(method: Vec<u8>) -> Self {
        Self { method, ..Self::sum() }
    }

    fn echo(len: usize) -> Self {
        Self { method: named("Foo.Echo"), codec: 0, body: vec![7; len], ..Self::sum() }
    }

    /// One that is not over before its deadline.
    fn wait() -> Self {
        Self { method: named("Foo.Wait"), body: vec![0xc0], ..Self::sum() }
    }

    fn payload(&self) -> Vec<u8> {
        let remaining = self.remaining_ms.to_be_bytes();
        [&self.method[..], &[self.codec], &remaining, &self.metadata, &self.body].concat()
    }

    fn frame(&self, id: u64) -> Vec<u8> {
        frame(CALL, 0, id, &self.payload())
    }

    /// The calls one after the other, with ids from 1 on.
    fn frames(calls: &[Call]) -> Vec<u8> {
        calls.iter().zip(1..).flat_map(|(call, id)| call.frame(id)).collect()
    }
}

fn entry(key: &[u8], value: &[u8]) -> Vec<u8> {
    let value_len = (value.len() as u16).to_be_bytes();
    [&[key.len() as u8], key, &value_len, value].concat()
}

fn with_metadata(entries: &[Vec<u8>]) -> Vec<u8> {
    let metadata = [&[entries.len() as u8][..], &entries.concat()].concat();
    Call { metadata, ..Call::sum() }.frame(1)
}

/// What other programs say first, and what is almost a handshake.
fn handshakes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, bytes) in [
        ("wrong magic", &b"SRPX\0\x12\x01\x01"[..]),
        ("the magic in lower case", b"srpc\0\x12\x01\x01"),
        ("one wrong byte", b"X"),
        ("zeros", &[0; 64]),
        ("text", b"hello there\r\n"),
        ("ssh", b"SSH-2.0-OpenSSH_9.6\r\n"),
        ("redis", b"*1\r\n$4\r\nPING\r\n"),
        ("an alert of TLS", b"\x15\x03\x03\0\x02\x02\x28"),
    ] {
        cases.push(at_first(name, bytes, refused(NO_HANDSHAKE)));
    }
    cases.push(at_first("hello of TLS", tls_client_hello(), refused(NO_HANDSHAKE)));
    for (min, max) in [(0, 0), (2, 2), (2, 255), (255, 255), (1, 0)] {
        let text = format!("no common version: the peer speaks {min} to {max}");
        let bytes = hello(min, max, LIMITS, 0, &[]);
        cases.push(at_first(format!("versions {min} to {max}"), bytes, refused(&text)));
    }
    for len in [0, 1, 17, 1025, u16::MAX] {
        let mut bytes = good_hello();
        bytes[4..6].copy_from_slice(&len.to_be_bytes());
        cases.push(at_first(format!("a handshake of {len}"), bytes, refused(BAD_LENGTH)));
    }
    for at in 0..LEAST.len() {
        let mut limits = LEAST;
        limits[at] -= 1;
        let bytes = hello(1, 1, limits, 0, &[]);
        cases.push(at_first(format!("limits {limits:?}"), bytes, refused(BAD_LIMITS)));
    }
    for (name, bytes) in [
        ("versions 0 to 255", hello(0, 255, LIMITS, 0, &[])),
        ("the least limits", hello(1, 1, LEAST, 0, &[])),
        ("the largest limits", hello(1, 1, [u32::MAX; 3], 0, &[])),
        ("unknown features", hello(1, 1, LIMITS, u32::MAX, &[])),
        ("the longest handshake of a newer peer", hello(1, 1, LIMITS, 0, &[9; 1024 - 18])),
    ] {
        cases.push(at_first(name, bytes, lives([])));
    }
    cases
}

/// A ClientHello with one cipher suite and a server's name.
fn tls_client_hello() -> Vec<u8> {
    let name = b"\0\0\0\x0e\0\x0c\0\0\x09localhost";
    let mut body = b"\x03\x03".to_vec();
    body.extend_from_slice(&[0x5a; 32]);
    body.extend_from_slice(b"\0\0\x02\x13\x01\x01\0");
    body.extend_from_slice(&(name.len() as u16).to_be_bytes());
    body.extend_from_slice(name);
    let mut bytes = b"\x16\x03\x01".to_vec();
    bytes.extend_from_slice(&(body.len() as u16 + 4).to_be_bytes());
    bytes.extend_from_slice(&[1, 0, 0, body.len() as u8]);
    bytes.extend_from_slice(&body);
    bytes
}

fn http() -> Vec<Case> {
    let posted = "x".repeat(100_000);
    let mut cases = Vec::new();
    for (name, request) in [
        ("GET", "GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()),
        ("HEAD", "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()),
        ("PUT", "PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}".to_owned()),
        ("DELETE", "DELETE /x HTTP/1.0\r\n\r\n".to_owned()),
        ("OPTIONS", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()),
        ("PATCH", "PATCH /x HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("POST", "POST /v1/register HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}".to_owned()),
        ("a long POST", format!("POST / HTTP/1.1\r\ncontent-length: 100000\r\n\r\n{posted}")),
    ] {
        cases.push(at_first(name, request, Expect::Http));
    }
    cases
}

/// Lengths, types, flags and the reserved field of frames.
fn headers() -> Vec<Case> {
    let too_large = "larger than the 4194304 bytes";
    let flood = header(0, VOID, 0, 0, 0).repeat(100_000);
    let mut cases = vec![
        case(
            "length 0xFFFFFFFF",
            header(u32::MAX, CALL, 0, 0, 1),
            refused("a frame of 4294967295 bytes"),
        ),
        case(
            "length 0xFFFFFFFF, to be skipped",
            header(u32::MAX, 99, SKIP, 0, 1),
            refused("a frame of 4294967295 bytes"),
        ),
        case(
            "a byte more than is ever skipped",
            header((64 << 20) + 1, CALL, 0, 0, 1),
            refused("a frame of 67108865 bytes"),
        ),
        case(
            "a body of 5 MiB",
            Call::echo(5 << 20).frame(1),
            error(1, RESOURCE_EXHAUSTED, REJECTED, too_large),
        ),
        case(
            "a body of a byte too much",
            Call::echo(MAX_BODY + 1).frame(1),
            error(1, RESOURCE_EXHAUSTED, REJECTED, too_large),
        ),
        case("the longest body", Call::echo(MAX_BODY).frame(1), result(1, vec![7; MAX_BODY])),
        case(
            "a call too large without id",
            header(5 << 20, CALL, 0, 0, 0),
            refused("a wrong id 0x0"),
        ),
        case("a flood of empty frames", flood, lives([])),
        case("void frames with payloads", frame(VOID, 0, 7, &[9; 5000]).repeat(10), lives([])),
        case("an unknown type", frame(8, 0, 1, b"x"), refused("an unknown frame type 8")),
        case("another one", frame(255, NOTIFY, 1, b"x"), refused("an unknown frame type 255")),
        case("an unknown type to skip", frame(8, SKIP, 1, b"x"), lives([])),
        case("a long one to skip", frame(200, 0xff, 1, &vec![1; 1 << 20]), lives([])),
        case(
            "a known type to skip",
            frame(PING, SKIP, 0, b"x"),
            lives([Answer::Pong(b"x".into())]),
        ),
        case("a payload too long for its type", ping(&[0; 5000]), refused("a frame of 5000 bytes")),
        case(
            "a cancel too long",
            frame(CANCEL, 0, 1, &[0; 4097]),
            refused("a frame of 4097 bytes"),
        ),
        case("nothing but zeros", [0; 4096], lives([])),
        case("nothing but ones", [0xff; 4096], refused("a frame of 4294967295 bytes")),
    ];
    for reserved in [1, 0x100, 0xffff] {
        let bytes = header(0, PING, 0, reserved, 0);
        cases.push(case(
            format!("reserved {reserved:#x}"),
            bytes,
            refused("a reserved field is set"),
        ));
    }
    for (kind, flags) in [
        (VOID, MORE),
        (CALL, MORE),
        (CALL, 0x10),
        (CALL, 0x80 | SKIP),
        (REPLY, MORE),
        (CANCEL, NOTIFY),
        (PING, IDEMPOTENT),
        (PONG, 0x40),
        (CONNECTION_ERROR, MORE),
    ] {
        let text = format!("flags {flags:#04x} on a frame of type {kind}");
        let bytes = frame(kind, flags, 1, &Call::sum().payload());
        cases.push(case(format!("type {kind}, flags {flags:#x}"), bytes, refused(&text)));
    }
    cases
}

/// Ids, and frames that are not a client's to send.
fn ids_and_sides() -> Vec<Case> {
    let sum = |id| Call::sum().frame(id);
    let three = |id| Answer::Result(id, vec![3]);
    let mut cases = vec![
        case("id 0", sum(0), refused("a wrong id 0x0")),
        case("an id twice", sum(5), refused("a wrong id 0x5")).after(sum(5), three(5)),
        case("a live id", [Call::wait().frame(5), sum(5)].concat(), refused("a wrong id 0x5")),
        case("a falling id", sum(4), refused("a wrong id 0x4")).after(sum(5), three(5)),
        case("ids with gaps", sum(1 << 63), result(1 << 63, [3])).after(sum(1), three(1)),
        case(
            "a reply to a server",
            frame(REPLY, 0, 1, &[0; 7]),
            refused("a frame of type 2 from the wrong side"),
        ),
        case(
            "a reply too large, to a server",
            header(5 << 20, REPLY, 0, 0, 1),
            refused("a frame of type 2 from the wrong side"),
        ),
        case(
            "a drain to a server",
            frame(DRAIN, 0, 1, &[]),
            refused("a frame of type 4 from the wrong side"),
        ),
        case("a connection error to a server", frame(CONNECTION_ERROR, 0, 0, b"\xff!"), lives([])),
        case("a pong that nobody asked for", frame(PONG, 0, 0, &[1; 8]), lives([])),
        case("a cancel of an unknown id", frame(CANCEL, 0, 77, &[]), lives([])),
        case("a cancel of id 0", frame(CANCEL, 0, 0, &[]), lives([])),
        case("a cancel of a call that is over", frame(CANCEL, 0, 1, &[]), lives([]))
            .after(sum(1), three(1)),
        case("a cancel with a payload", frame(CANCEL, 0, 1, &[0; 4096]), lives([])),
        case(
            "a good call before a bad frame",
            frame(8, 0, 0, &[]),
            refused("an unknown frame type 8"),
        )
        .after(sum(1), three(1)),
        case(
            "a good call behind a bad frame",
            [frame(8, 0, 0, &[]), sum(1)].concat(),
            refused("an unknown frame type 8"),
        ),
    ];
    for len in [0, 1, 8, 4096] {
        let payload = vec![0xa5; len];
        let pong = lives([Answer::Pong(payload.clone())]);
        cases.push(case(format!("a ping of {len} bytes"), ping(&payload), pong));
    }
    cases
}

/// What a call's payload holds.
fn calls() -> Vec<Case> {
    let full = Call::sum().payload();
    let mut cases: Vec<_> = (0..full.len() - Call::sum().body.len())
        .map(|end| (end, frame(CALL, 0, 1, &full[..end])))
        .map(|(end, bytes)| case(format!("a call cut after {end} bytes"), bytes, refused(SHORT)))
        .collect();
    let nested = [vec![0x91; 100], vec![7]].concat();
    let nested = Call { body: nested, ..Call::of(named("Foo.Any")) };
    // Array, map, string, bytes and extension of 4 Gi, of which nothing follows.
    for marker in [0xdd, 0xdf, 0xdb, 0xc6, 0xc9] {
        let body = vec![marker, 0xff, 0xff, 0xff, 0xff];
        let bytes = Call { body, ..Call::of(named("Foo.Any")) }.frame(1);
        cases.push(case(
            format!("4 Gi after {marker:#x}"),
            bytes,
            error(1, INVALID_ARGUMENT, REJECTED, "the arguments"),
        ));
    }
    let entries = |count: u8| (0..count).map(|n| entry(&[b'a', n], b"")).collect::<Vec<_>>();
    let three = |id| Answer::Result(id, vec![3]);
    let unknown = |id| Answer::Error(id, UNIMPLEMENTED, REJECTED, "Foo.None");
    let expired = "the deadline passed before the call was started";
    let echo = Call { body: vec![7; 65_537], ..Call::echo(0) };
    cases.extend([
        case("64 entries", with_metadata(&entries(64)), result(1, [3])),
        case("65 entries", with_metadata(&entries(65)), refused("more than 64 metadata entries")),
        case("the most metadata", with_metadata(&[entry(b"key", &[b'v'; 8189])]), result(1, [3])),
        case(
            "65 entries of one key",
            with_metadata(&vec![entry(b"k", b"v"); 65]),
            refused("more than 64 metadata entries"),
        ),
        case(
            "an entry twice",
            with_metadata(&[entry(b"k", b"v"), entry(b"k", b"v")]),
            result(1, [3]),
        ),
        case(
            "too much metadata",
            with_metadata(&[entry(b"key", &[b'v'; 8190])]),
            refused("more than 8192 bytes of metadata"),
        ),
        case(
            "an empty key",
            with_metadata(&[entry(b"", b"v")]),
            refused("a metadata key is 1 to 255 bytes"),
        ),
        case("a key that is not UTF-8", with_metadata(&[entry(b"\xff", b"v")]), refused(NOT_UTF8)),
        case(
            "a value that is not UTF-8",
            with_metadata(&[entry(b"k", b"\xc3(")]),
            refused(NOT_UTF8),
        ),
        case(
            "more entries than there are",
            Call { metadata: vec![9], ..Call::sum() }.frame(1),
            refused(SHORT),
        ),
        case(
            "a method that is not UTF-8",
            Call::of(b"\0\x05Foo.\xff".into()).frame(1),
            refused(NOT_UTF8),
        ),
        case(
            "no such way to name a method",
            Call::of(vec![3, 1, b'x']).frame(1),
            refused("an undefined value in how a call names its method"),
        ),
        case(
            "a method without dot",
            Call::of(named("Sum")).frame(1),
            error(1, UNIMPLEMENTED, REJECTED, "\"Sum\""),
        ),
        case(
            "a method without name",
            Call::of(named("")).frame(1),
            error(1, UNIMPLEMENTED, REJECTED, "\"\""),
        ),
        case(
            "a method with control characters",
            Call::of(named("Foo.\n\u{1b}[2J")).frame(1),
            error(1, UNIMPLEMENTED, REJECTED, "\"Foo.\\n\\u{1b}[2J\""),
        ),
        case(
            "the longest name",
            Call::of(named(&"x".repeat(255))).frame(1),
            error(1, UNIMPLEMENTED, REJECTED, "xxx"),
        ),
        case("an unknown method", Call::of(named("Foo.None")).frame(1), lives([unknown(1)])),
        case(
            "an unknown service",
            Call::of(named("Bar.Sum")).frame(1),
            error(1, UNIMPLEMENTED, REJECTED, "Bar.Sum"),
        ),
        case(
            "a number that was never given",
            Call::of(number(9)).frame(1),
            refused("an undefined value in a method's number: it was never given"),
        ),
        case(
            "a number below one that was given",
            Call::of(number(8)).frame(2),
            refused("an undefined value in a method's number: it was never given"),
        )
        .after(Call::of(define(9, "Foo.Sum")).frame(1), three(1)),
        case(
            "a number of an unknown method",
            Call::frames(&[Call::of(define(7, "Foo.None")), Call::of(number(7))]),
            lives([unknown(1), unknown(2)]),
        ),
        case(
            "a number given anew",
            [Call::of(define(255, "Foo.None")).frame(2), Call::of(number(255)).frame(3)].concat(),
            lives([unknown(2), unknown(3)]),
        )
        .after(Call::of(define(255, "Foo.Sum")).frame(1), three(1)),
        case(
            "a number given by a call that was refused",
            Call::frames(&[
                Call { remaining_ms: 0, ..Call::of(define(0, "Foo.Sum")) },
                Call::of(number(0)),
            ]),
            lives([Answer::Error(1, DEADLINE_EXCEEDED, REJECTED, expired), three(2)]),
        ),
        case(
            "an unknown codec",
            Call { codec: 99, ..Call::sum() }.frame(1),
            error(1, INVALID_ARGUMENT, REJECTED, "no codec 99"),
        ),
        case(
            "an unknown codec of an unknown method",
            Call { codec: 99, ..Call::of(named("Foo.None")) }.frame(1),
            lives([unknown(1)]),
        ),
        case(
            "a raw body where a value is wanted",
            Call { codec: 0, ..Call::sum() }.frame(1),
            error(1, INVALID_ARGUMENT, REJECTED, "the arguments"),
        ),
        case(
            "JSON that is MessagePack",
            Call { codec: 2, ..Call::sum() }.frame(1),
            error(1, INVALID_ARGUMENT, REJECTED, "the arguments"),
        ),
        case(
            "no body",
            Call { body: vec![], ..Call::sum() }.frame(1),
            error(1, INVALID_ARGUMENT, REJECTED, "the arguments"),
        ),
        case("a value that is deep, but not too deep", nested.frame(1), result(1, nested.body)),
        case(
            "a byte behind the arguments",
            Call { body: vec![0x92, 1, 2, 0], ..Call::sum() }.frame(1),
            error(1, INVALID_ARGUMENT, REJECTED, "the arguments"),
        ),
        case(
            "deadline 0",
            Call { remaining_ms: 0, ..Call::sum() }.frame(1),
            error(1, DEADLINE_EXCEEDED, REJECTED, expired),
        ),
        case(
            "deadline 0 of an unknown method, in an unknown codec",
            Call { remaining_ms: 0, codec: 99, ..Call::of(named("Foo.None")) }.frame(1),
            error(1, DEADLINE_EXCEEDED, REJECTED, expired),
        ),
        case(
            "a body too large of an unknown method, with deadline 0",
            Call { method: named("Foo.None"), remaining_ms: 0, ..Call::echo(MAX_BODY + 1) }
                .frame(1),
            error(1, RESOURCE_EXHAUSTED, REJECTED, "larger than the 4194304 bytes"),
        ),
        case(
            "the largest deadline",
            Call { remaining_ms: u32::MAX, ..Call::sum() }.frame(1),
            result(1, [3]),
        ),
        case(
            "the largest deadline, of a call that takes its time",
            [Call { remaining_ms: u32::MAX, ..Call::wait() }.frame(1), ping(b"?")].concat(),
            lives([Answer::Pong(b"?".into())]),
        ),
        case(
            "a deadline that passes",
            Call { remaining_ms: 1, ..Call::wait() }.frame(1),
            error(1, DEADLINE_EXCEEDED, MAYBE_EXECUTED, "dropped at its deadline"),
        ),
        case("flags of a call", frame(CALL, SKIP | IDEMPOTENT, 1, &full), result(1, [3])),
        case("a notification", frame(CALL, NOTIFY, 1, &full), result(1, [])),
        case(
            "a notification of bad arguments",
            frame(CALL, NOTIFY, 1, &Call { body: vec![], ..Call::sum() }.payload()),
            error(1, INVALID_ARGUMENT, REJECTED, "the arguments"),
        ),
        Case {
            hello: hello(1, 1, LEAST, 0, &[]),
            ..case(
                "a result larger than the client takes",
                echo.frame(1),
                error(1, RESOURCE_EXHAUSTED, EXECUTED, "larger than the client takes"),
            )
        },
    ]);
    cases
}

/// Bodies that a decoder which recurses follows down; their `Value`, and a field that a struct does
/// not know and skips.
fn deep() -> Vec<Case> {
    let bad = |codec, method: &str, body: Vec<u8>| {
        let call = Call { codec, body, ..Call::of(named(method)) };
        let name = format!("{method}, codec {codec}, {} bytes", call.body.len());
        case(name, call.frame(1), error(1, INVALID_ARGUMENT, REJECTED, "the arguments"))
    };
    let mut cases = Vec::new();
    for depth in [1000, 500_000] {
        let arrays = |opening: &[u8]| opening.repeat(depth);
        cases.push(bad(1, "Foo.Any", arrays(b"\x91")));
        cases.push(bad(1, "Foo.Any", arrays(b"\x81\xa1k")));
        cases.push(bad(1, "Foo.Known", [b"\x81\xa1x", &*arrays(b"\x91")].concat()));
        cases.push(bad(2, "Foo.Any", arrays(b"[")));
        cases.push(bad(2, "Foo.Any", arrays(b"{\"k\":")));
        cases.push(bad(2, "Foo.Known", [b"{\"x\":", &*arrays(b"[")].concat()));
    }
    cases
}

/// Frames that come with the handshake: a client need not wait for its answer.
fn with_the_handshake() -> Vec<Case> {
    let behind = |frames: Vec<u8>| [good_hello(), frames].concat();
    vec![
        at_first(
            "a ping with the handshake",
            behind(ping(b"1")),
            lives([Answer::Pong(b"1".into())]),
        ),
        at_first("a call with the handshake", behind(Call::sum().frame(1)), result(1, [3])),
        at_first(
            "a bad frame with the handshake",
            behind(frame(8, 0, 0, &[])),
            refused("an unknown frame type 8"),
        ),
        at_first(
            "a bad frame with a bad handshake",
            [hello(2, 2, LIMITS, 0, &[]), header(u32::MAX, 8, 0, 0, 0)].concat(),
            refused("no common version: the peer speaks 2 to 2"),
        ),
        at_first(
            "much with a bad handshake",
            [hello(2, 2, LIMITS, 0, &[]), Call::echo(1 << 20).frame(1)].concat(),
            refused("no common version: the peer speaks 2 to 2"),
        ),
    ]
}

/// Arguments with names, as most are.
#[derive(Serialize, Deserialize)]
struct Known {
    #[serde(default)]
    known: i64,
}

/// A server of `Foo` on loopback, and somebody who behaves.
struct Served {
    at: String,
    client: XClient,
    /// How many handlers have started.
    runs: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Served {
    async fn start(settings: ServerSettings) -> Self {
        let runs = Arc::new(AtomicUsize::new(0));
        let foo = Service::with_state("Foo", Arc::clone(&runs))
            .method("Sum", async |runs: State<AtomicUsize>, (a, b): (i64, i64)| {
                runs.fetch_add(1, SeqCst);
                Ok::<_, Status>(a + b)
            })
            .method("Echo", async |runs: State<AtomicUsize>, bytes: Raw| {
                runs.fetch_add(1, SeqCst);
                Ok::<_, Status>(bytes)
            })
            .method("Any", async |runs: State<AtomicUsize>, any: Value| {
                runs.fetch_add(1, SeqCst);
                Ok::<_, Status>(any)
            })
            .method("Known", async |runs: State<AtomicUsize>, known: Known| {
                runs.fetch_add(1, SeqCst);
                Ok::<_, Status>(known)
            })
            // Not counted: no case tells whether it is started before its connection ends.
            .method("Wait", async |_: State<AtomicUsize>, _: Raw| {
                std::future::pending::<()>().await;
                Ok::<_, Status>(())
            });
        let server = Server::new().settings(settings).service(foo);
        let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
        let at = listener.address().target().to_owned();
        let list = StaticList::new([Instance::at(listener.address().clone())]);
        let serving = tokio::spawn(async move {
            server.serve(listener, std::future::pending()).await.unwrap();
        });
        let client = XClient::new("Foo", list).unwrap();
        let served = Self { at, client, runs, serving };
        served.everyone_else_is_served().await;
        served
    }

    async fn everyone_else_is_served(&self) {
        let sum = self.client.call::<_, i64>("Foo.Sum", &(1, 2)).await;
        assert_eq!(sum.map_err(|error| error.to_string()), Ok(3));
        assert!(!self.serving.is_finished());
    }

    async fn connect(&self) -> RawClient {
        RawClient(TcpStream::connect(&self.at).await.unwrap())
    }

    /// A connection whose handshake is done.
    async fn shaken(&self) -> RawClient {
        let mut raw = self.connect().await;
        raw.send(&good_hello()).await;
        raw.server_hello().await.unwrap();
        raw
    }

    async fn check(&self, case: &Case) -> Result<(), String> {
        let runs = self.runs.load(SeqCst);
        let mut raw = self.connect().await;
        raw.send(&case.hello).await;
        let expected = match &case.expect {
            Expect::Http => {
                raw.http_refusal().await?;
                0
            }
            Expect::Lives(answers) => {
                raw.open(case).await?;
                raw.expect_all(answers).await?;
                raw.is_served().await?;
                answers.iter().filter(|answer| answer.came_from_a_handler()).count()
                    + case.before.len()
                    + 1
            }
            Expect::Refused(answers, text) => {
                raw.open(case).await?;
                raw.expect_all(answers).await?;
                let (kind, id, payload) = raw.frame().await?;
                let told = String::from_utf8_lossy(&payload).into_owned();
                if (kind, id) != (CONNECTION_ERROR, 0) || !told.contains(&**text) {
                    return Err(format!("frame type {kind}, id {id}, {told:?}"));
                }
                raw.end().await?;
                answers.iter().filter(|answer| answer.came_from_a_handler()).count()
                    + case.before.len()
            }
        };
        match self.runs.load(SeqCst) - runs {
            runs if runs == expected => Ok(()),
            runs => Err(format!("{runs} handlers ran, not {expected}")),
        }
    }
}

/// One who sends whatever it likes.
struct RawClient(TcpStream);

impl RawClient {
    /// A server that refuses early need not have read it all.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE, self.0.write_all(bytes)).await.expect("nobody reads");
    }

    async fn bytes(&mut self, count: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; count];
        let read = timeout(PATIENCE, self.0.read_exact(&mut bytes)).await;
        let read = read.map_err(|_| format!("{count} bytes do not come"))?;
        read.map_err(|error| format!("instead of {count} bytes: {error}"))?;
        Ok(bytes)
    }

    /// Nothing more comes, and the connection was not reset either.
    async fn end(&mut self) -> Result<(), String> {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await;
        let read = read.map_err(|_| "it stays open")?;
        read.map_err(|error| format!("instead of the end: {error}"))?;
        if rest.is_empty() { Ok(()) } else { Err(format!("more bytes: {rest:02x?}")) }
    }

    async fn server_hello(&mut self) -> Result<(), String> {
        let limits = [MAX_BODY as u32, 1024, 8 * 1024 * 1024];
        let expected = hello(1, 1, limits, 0, &[]);
        let told = self.bytes(expected.len()).await.map_err(|error| format!("hello: {error}"))?;
        if told == expected { Ok(()) } else { Err(format!("hello: {told:02x?}")) }
    }

    /// Goes up to what the case is about.
    async fn open(&mut self, case: &Case) -> Result<(), String> {
        self.server_hello().await?;
        for (frames, answer) in &case.before {
            self.send(frames).await;
            self.expect_all(std::slice::from_ref(answer)).await?;
        }
        self.send(&case.frames).await;
        Ok(())
    }

    async fn frame(&mut self) -> Result<(u8, u64, Vec<u8>), String> {
        let header = self.bytes(16).await.map_err(|error| format!("header: {error}"))?;
        if header[5..8] != [0; 3] {
            return Err(format!("flags or reserved: {header:02x?}"));
        }
        let len = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
        let payload = self.bytes(len).await.map_err(|error| format!("payload: {error}"))?;
        Ok((header[4], u64::from_be_bytes(header[8..].try_into().unwrap()), payload))
    }

    async fn expect_all(&mut self, answers: &[Answer]) -> Result<(), String> {
        for answer in answers {
            let (kind, id, payload) = self
                .frame()
                .await
                .map_err(|error| format!("{error}, instead of {:.80}", format!("{answer:?}")))?;
            let right = match answer {
                Answer::Pong(expected) => (kind, id, &payload) == (PONG, 0, expected),
                Answer::Result(of, body) => {
                    kind == REPLY && id == *of && reply(&payload) == Some((0, EXECUTED, body))
                }
                Answer::Error(of, status, class, text) => {
                    kind == REPLY
                        && id == *of
                        && reply(&payload).is_some_and(|(told, told_class, body)| {
                            (told, told_class) == (*status, *class)
                                && std::str::from_utf8(body).is_ok_and(|body| body.contains(text))
                        })
                }
            };
            if !right {
                let told: String = String::from_utf8_lossy(&payload).chars().take(80).collect();
                let answer = format!("{answer:?}");
                return Err(format!("{answer:.80} is not type {kind}, id {id}, {told:?}"));
            }
        }
        Ok(())
    }

    /// Nothing came unasked, and the connection serves.
    async fn is_served(&mut self) -> Result<(), String> {
        let tag = b"still there?";
        self.send(&ping(tag)).await;
        self.expect_all(&[Answer::Pong(tag.to_vec())]).await?;
        self.send(&Call::sum().frame(LAST_ID)).await;
        self.expect_all(&[Answer::Result(LAST_ID, vec![3])]).await
    }

    async fn http_refusal(&mut self) -> Result<(), String> {
        let mut answer = String::new();
        let read = timeout(PATIENCE, self.0.read_to_string(&mut answer)).await;
        let read = read.map_err(|_| "it stays open")?;
        read.map_err(|error| format!("{error}, behind {answer:?}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(format!("{answer:?}"))?;
        let length = format!("content-length: {}", body.len());
        let right = head.starts_with("HTTP/1.1 400 ")
            && head.lines().any(|line| line == "connection: close")
            && head.lines().any(|line| line == length)
            && body.contains("srpc");
        if right { Ok(()) } else { Err(format!("no {length} in {answer:?}")) }
    }
}

/// A reply's status, class and body; `None` if it has metadata or is too short.
fn reply(payload: &[u8]) -> Option<(u8, u8, &[u8])> {
    match payload {
        [status, class, _, _, _, _, 0, body @ ..] => Some((*status, *class, body)),
        _ => None,
    }
}

fn settings(set: impl FnOnce(&mut ServerSettings)) -> ServerSettings {
    let mut settings = ServerSettings::default();
    set(&mut settings);
    settings
}

/// Checks every case, and after each that everyone else is served; tells all that went wrong.
async fn check_all(served: &Served, cases: &[Case]) {
    let mut failures = Vec::new();
    for case in cases {
        if let Err(what) = served.check(case).await {
            failures.push(format!("{}: {what}", case.name));
        }
        served.everyone_else_is_served().await;
    }
    let (failed, of) = (failures.len(), cases.len());
    assert!(failures.is_empty(), "{failed} of {of}:\n{}", failures.join("\n"));
}

#[tokio::test]
async fn what_is_no_handshake_is_told_so() {
    let served = Served::start(ServerSettings::default()).await;
    check_all(&served, &handshakes()).await;
}

#[tokio::test]
async fn http_is_answered_in_http() {
    let served = Served::start(ServerSettings::default()).await;
    check_all(&served, &http()).await;
}

#[tokio::test]
async fn bad_frames_get_a_clear_answer_and_cost_nobody_else_anything() {
    let served = Served::start(ServerSettings::default()).await;
    let mut cases = headers();
    cases.extend(ids_and_sides());
    cases.extend(calls());
    assert!(cases.len() >= 35, "{}", cases.len());
    check_all(&served, &cases).await;
}

#[tokio::test]
async fn what_comes_with_the_handshake_counts() {
    let served = Served::start(ServerSettings::default()).await;
    check_all(&served, &with_the_handshake()).await;
}

/// Each in a process of its own: a stack that overflows takes everything with it.
#[test]
fn deep_bodies_do_not_overflow_the_stack() {
    let mut failures = Vec::new();
    for (number, case) in deep().iter().enumerate() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "deep_body", "--ignored", "--nocapture"])
            .env(DEEP_CASE, number.to_string())
            .output()
            .unwrap();
        if !child.status.success() {
            let told = String::from_utf8_lossy(&child.stderr);
            failures.push(format!("{}: {}: {}", case.name, child.status, told.trim()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Which of the cases the process is for.
const DEEP_CASE: &str = "SRPC_TEST_DEEP_CASE";

#[tokio::test]
#[ignore = "run by `deep_bodies_do_not_overflow_the_stack`"]
async fn deep_body() {
    let served = Served::start(ServerSettings::default()).await;
    let number = std::env::var(DEEP_CASE).ok().and_then(|number| number.parse::<usize>().ok());
    let deep = deep();
    match number {
        Some(number) => check_all(&served, &deep[number..=number]).await,
        None => check_all(&served, &deep).await,
    }
}

#[tokio::test]
async fn bytes_split_anywhere_are_the_same_frames() {
    let served = Served::start(ServerSettings::default()).await;
    let unknown = |id| Call::of(named("Foo.None")).frame(id);
    let bytes = [good_hello(), unknown(1), ping(b"2"), unknown(3)].concat();
    let mut raw = served.connect().await;
    for byte in &bytes {
        raw.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    raw.server_hello().await.unwrap();
    let unknown = |id| Answer::Error(id, UNIMPLEMENTED, REJECTED, "Foo.None");
    raw.expect_all(&[unknown(1), Answer::Pong(b"2".to_vec()), unknown(3)]).await.unwrap();
    raw.is_served().await.unwrap();
}

#[tokio::test]
async fn a_close_within_a_frame_is_answered_with_a_close() {
    let served = Served::start(ServerSettings::default()).await;
    for end in 0..good_hello().len() {
        let mut raw = served.connect().await;
        raw.send(&good_hello()[..end]).await;
        raw.0.shutdown().await.unwrap();
        raw.end().await.unwrap_or_else(|error| panic!("{end} bytes of a handshake: {error}"));
        served.everyone_else_is_served().await;
    }
    let call = Call::sum().frame(1);
    let runs = served.runs.load(SeqCst);
    // 5: a length with one byte after it.
    for end in (0..call.len()).chain([5]) {
        let mut raw = served.shaken().await;
        raw.send(&call[..end]).await;
        raw.0.shutdown().await.unwrap();
        raw.end().await.unwrap_or_else(|error| panic!("{end} bytes of a frame: {error}"));
    }
    assert_eq!(served.runs.load(SeqCst), runs);
    served.everyone_else_is_served().await;
}

#[tokio::test]
async fn calls_beyond_the_window_are_rejected_until_there_is_room() {
    let served = Served::start(settings(|s| s.limits.window_calls = 64)).await;
    let mut raw = served.connect().await;
    raw.send(&good_hello()).await;
    raw.bytes(good_hello().len()).await.unwrap();
    for id in 1..=64 {
        raw.send(&Call::wait().frame(id)).await;
    }
    raw.send(&Call::sum().frame(65)).await;
    let full = |id| Answer::Error(id, RESOURCE_EXHAUSTED, REJECTED, "window");
    raw.expect_all(&[full(65)]).await.unwrap();
    raw.send(&Call::wait().frame(66)).await;
    raw.expect_all(&[full(66)]).await.unwrap();
    served.everyone_else_is_served().await;
    // A cancelled call is not answered, and its place is free once its handler has ended.
    raw.send(&frame(CANCEL, 0, 7, &[])).await;
    for id in 100.. {
        raw.send(&Call::sum().frame(id)).await;
        let (kind, of, payload) = raw.frame().await.unwrap();
        assert_eq!((kind, of), (REPLY, id));
        if reply(&payload) == Some((0, EXECUTED, &[3])) {
            break;
        }
        assert!(id < 10_000, "the place is not given back");
    }
    served.everyone_else_is_served().await;
}

#[tokio::test]
async fn bodies_beyond_the_window_are_rejected() {
    let served = Served::start(ServerSettings::default()).await;
    let mut raw = served.shaken().await;
    let mut large = Call::wait();
    large.body.resize(MAX_BODY, 0);
    raw.send(&large.frame(1)).await;
    raw.send(&large.frame(2)).await;
    raw.send(&Call::sum().frame(3)).await;
    raw.expect_all(&[Answer::Error(3, RESOURCE_EXHAUSTED, REJECTED, "window")]).await.unwrap();
    served.everyone_else_is_served().await;
}

#[tokio::test]
async fn others_are_served_while_empty_frames_flood_in() {
    let served = Served::start(ServerSettings::default()).await;
    let mut raw = served.shaken().await;
    let flood = header(0, VOID, 0, 0, 0).repeat(10_000);
    for _ in 0..50 {
        raw.send(&flood).await;
        served.everyone_else_is_served().await;
    }
    raw.is_served().await.unwrap();
}

#[tokio::test]
async fn half_a_handshake_then_silence_is_closed() {
    let limit = Duration::from_millis(500);
    let served = Served::start(settings(|s| s.handshake_timeout = limit)).await;
    for end in [0, 1, 4, 6, good_hello().len() - 1] {
        let mut raw = served.connect().await;
        raw.send(&good_hello()[..end]).await;
        raw.end().await.unwrap_or_else(|error| panic!("{end} bytes: {error}"));
        served.everyone_else_is_served().await;
    }
    // Neither do drops keep it open.
    let mut raw = served.connect().await;
    let started = Instant::now();
    for byte in hello(1, 1, LIMITS, 0, &[0; 1000]) {
        raw.send(&[byte]).await;
        if raw.ended_within(Duration::from_millis(50)).await {
            break;
        }
    }
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    served.everyone_else_is_served().await;
}

const TOO_SLOW: &str = "a frame takes too long to come";

#[tokio::test]
async fn half_a_frame_then_silence_is_refused() {
    let limit = Duration::from_millis(300);
    let served = Served::start(settings(|s| s.frame_timeout = limit)).await;
    let too_slow = || refused(TOO_SLOW);
    let call = Call::sum().frame(1);
    let three = Answer::Result(1, vec![3]);
    let mut cases: Vec<_> = [1, 4, 5, 15, 16, 17, call.len() - 1]
        .into_iter()
        .map(|end| case(format!("{end} bytes of a call"), &call[..end], too_slow()))
        .collect();
    let too_large = Answer::Error(1, RESOURCE_EXHAUSTED, REJECTED, "larger than the 4194304 bytes");
    let behind = |frames: &[u8]| [&good_hello(), frames].concat();
    cases.extend([
        case("a byte behind a call", [0], too_slow()).after(call.clone(), three),
        case("half of a frame to skip", frame(99, SKIP, 0, &[0; 9])[..20].to_vec(), too_slow()),
        case("half of an empty frame", frame(VOID, 0, 0, &[0; 9])[..20].to_vec(), too_slow()),
        case(
            "half of a body too large",
            Call::echo(5 << 20).frame(1)[..1 << 20].to_vec(),
            Expect::Refused(vec![too_large], TOO_SLOW.to_owned()),
        ),
        at_first("half a frame with the handshake", behind(&call[..9]), too_slow()),
    ]);
    check_all(&served, &cases).await;
}

#[tokio::test]
async fn a_byte_at_a_time_is_refused_when_the_frame_takes_too_long() {
    let limit = Duration::from_millis(500);
    let served = Served::start(settings(|s| s.frame_timeout = limit)).await;
    let mut raw = served.shaken().await;
    // Its 1,000 bytes would take 50 s.
    for byte in ping(&[1; 984]) {
        raw.send(&[byte]).await;
        if raw.readable_within(Duration::from_millis(50)).await {
            break;
        }
    }
    let (kind, id, told) = raw.frame().await.unwrap();
    assert_eq!((kind, id), (CONNECTION_ERROR, 0));
    assert_eq!(String::from_utf8(told).unwrap(), TOO_SLOW);
    raw.end().await.unwrap();
    served.everyone_else_is_served().await;
}

/// Every frame comes in time, though each read ends within one.
#[tokio::test]
async fn frames_in_time_are_never_too_slow() {
    let limit = Duration::from_secs(1);
    let served = Served::start(settings(|s| s.frame_timeout = limit)).await;
    let drip = async |name, frame: Vec<u8>, answers: Vec<Answer>| {
        let mut raw = served.shaken().await;
        let (first, second) = frame.split_at(10);
        raw.send(first).await;
        for _ in 0..30 {
            sleep(Duration::from_millis(50)).await;
            raw.send(&[second, first].concat()).await;
        }
        raw.send(second).await;
        let told = match raw.expect_all(&answers).await {
            Ok(()) => raw.is_served().await,
            Err(error) => Err(error),
        };
        told.map_err(|error| format!("{name}: {error}"))
    };
    let (pings, empty, skipped) = tokio::join!(
        drip("pings", ping(b"12345678"), vec![Answer::Pong(b"12345678".to_vec()); 31]),
        drip("empty frames", frame(VOID, 0, 0, b"12345678"), vec![]),
        drip("frames to skip", frame(99, SKIP, 0, b"12345678"), vec![]),
    );
    served.everyone_else_is_served().await;
    assert_eq!((pings, empty, skipped), (Ok(()), Ok(()), Ok(())));
}

/// A client that asks for much and reads nothing holds neither memory nor its connection for long.
#[tokio::test]
async fn a_client_that_does_not_read_is_left() {
    const TIMES: usize = 16;
    let limit = Duration::from_millis(500);
    let served = Served::start(settings(|s| s.frame_timeout = limit)).await;
    let echoes: Vec<_> = (1..=TIMES as u64).map(|id| Call::echo(MAX_BODY).frame(id)).collect();
    let pings = vec![ping(&[1; 4096]).repeat(1024); TIMES];
    for (name, frames) in [("echoes", echoes), ("pings", pings)] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let stream = socket.connect(served.at.parse().unwrap()).await.unwrap();
        let mut raw = RawClient(stream);
        raw.send(&good_hello()).await;
        raw.server_hello().await.unwrap();
        let (mut from, mut to) = raw.0.into_split();
        let sending = tokio::spawn(async move {
            for frame in frames {
                if to.write_all(&frame).await.is_err() {
                    return true;
                }
            }
            // Open until the server closes.
            sleep(PATIENCE).await;
            false
        });
        // The server cannot write, and after a while reads no more either.
        let closed = timeout(PATIENCE, sending).await;
        assert!(matches!(closed, Ok(Ok(true))), "{name}: {closed:?}");
        let mut count = 0;
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = timeout(PATIENCE, from.read(&mut buffer)).await.unwrap() {
            count += read;
        }
        assert!(count < TIMES * MAX_BODY, "{name}: {count} bytes came");
        served.everyone_else_is_served().await;
    }
}

impl RawClient {
    /// Whether something comes, or the end does.
    async fn readable_within(&mut self, limit: Duration) -> bool {
        timeout(limit, self.0.peek(&mut [0])).await.is_ok()
    }

    async fn ended_within(&mut self, limit: Duration) -> bool {
        match timeout(limit, self.0.peek(&mut [0])).await {
            Ok(Ok(count)) => {
                assert_eq!(count, 0, "nothing is said");
                true
            }
            Ok(Err(_)) => true,
            Err(_) => false,
        }
    }
}
