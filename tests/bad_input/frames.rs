//! Which bytes break the protocol, and what must a server answer to each?
#![allow(dead_code, reason = "each file of tests uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "only a raw socket lies")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No answer takes as long; a test that waits for it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The longest body that the server takes.
pub(crate) const MAX_BODY: usize = 4 * 1024 * 1024;
/// The id of the call that shows that a connection lives: above all others.
pub(crate) const LAST_ID: u64 = u64::MAX;

/// Frame types, by their numbers on the wire.
pub(crate) const VOID: u8 = 0;
pub(crate) const CALL: u8 = 1;
pub(crate) const REPLY: u8 = 2;
pub(crate) const CANCEL: u8 = 3;
pub(crate) const DRAIN: u8 = 4;
pub(crate) const PING: u8 = 5;
pub(crate) const PONG: u8 = 6;
pub(crate) const CONNECTION_ERROR: u8 = 7;

/// Flags.
pub(crate) const SKIP: u8 = 1;
pub(crate) const MORE: u8 = 2;
pub(crate) const IDEMPOTENT: u8 = 4;
pub(crate) const NOTIFY: u8 = 8;

/// Kinds, by their numbers on the wire.
pub(crate) const INVALID_ARGUMENT: u8 = 3;
pub(crate) const DEADLINE_EXCEEDED: u8 = 4;
pub(crate) const RESOURCE_EXHAUSTED: u8 = 8;
pub(crate) const UNIMPLEMENTED: u8 = 12;

/// What a reply says of its call's execution.
pub(crate) const EXECUTED: u8 = 0;
pub(crate) const REJECTED: u8 = 1;
pub(crate) const MAYBE_EXECUTED: u8 = 2;

pub(crate) const NO_HANDSHAKE: &str = "this is no srpc handshake";
pub(crate) const BAD_LENGTH: &str = "an undefined value in the handshake's length";
pub(crate) const BAD_LIMITS: &str = "the handshake's limits: below what every peer takes";
pub(crate) const SHORT: &str = "the payload ends within its fields";
pub(crate) const NOT_UTF8: &str = "text that is not UTF-8";

/// What must come back.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// The server's handshake, these answers and nothing else; the connection goes on.
    Lives(Vec<Answer>),
    /// The server's handshake, these answers, a connection error with this text, the end.
    Refused(Vec<Answer>, String),
    /// The server's handshake, these answers, the end.
    Ended(Vec<Answer>),
    /// Status 400 in HTTP, the end.
    Http,
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// A reply of this id that is a success with this body.
    Result(u64, Vec<u8>),
    /// A reply of this id with this status, this class and a text that contains this.
    Error(u64, u8, u8, &'static str),
    Pong(Vec<u8>),
}

impl Answer {
    pub(crate) fn came_from_a_handler(&self) -> bool {
        match self {
            Self::Result(..) => true,
            Self::Error(_, _, class, _) => *class == EXECUTED,
            Self::Pong(_) => false,
        }
    }
}

#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// What is sent at first.
    pub(crate) hello: Vec<u8>,
    /// What is sent then and answered so, before what the case is about. A handler may answer later
    /// than the frames behind its call do, so that those wait for its answer.
    pub(crate) before: Vec<(Vec<u8>, Answer)>,
    /// What is sent then.
    pub(crate) frames: Vec<u8>,
    pub(crate) expect: Expect,
}

impl Case {
    pub(crate) fn after(mut self, frames: Vec<u8>, answer: Answer) -> Self {
        self.before.push((frames, answer));
        self
    }
}

/// A case after a good handshake.
pub(crate) fn case(name: impl Into<String>, frames: impl Into<Vec<u8>>, expect: Expect) -> Case {
    Case { name: name.into(), hello: good_hello(), before: vec![], frames: frames.into(), expect }
}

/// A case whose handshake it is.
pub(crate) fn at_first(name: impl Into<String>, hello: impl Into<Vec<u8>>, expect: Expect) -> Case {
    Case { name: name.into(), hello: hello.into(), before: vec![], frames: vec![], expect }
}

pub(crate) fn lives(answers: impl Into<Vec<Answer>>) -> Expect {
    Expect::Lives(answers.into())
}

pub(crate) fn refused(text: &str) -> Expect {
    Expect::Refused(Vec::new(), text.to_owned())
}

pub(crate) fn error(id: u64, status: u8, class: u8, text: &'static str) -> Expect {
    lives([Answer::Error(id, status, class, text)])
}

pub(crate) fn result(id: u64, body: impl Into<Vec<u8>>) -> Expect {
    lives([Answer::Result(id, body.into())])
}

/// A handshake: magic, length, versions, largest body, windows, features.
pub(crate) fn hello(min: u8, max: u8, limits: [u32; 3], features: u32, newer: &[u8]) -> Vec<u8> {
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

pub(crate) const LIMITS: [u32; 3] = [8 * 1024 * 1024, 4096, 64 * 1024 * 1024];
pub(crate) const LEAST: [u32; 3] = [64 * 1024, 64, 64 * 64 * 1024];

pub(crate) fn good_hello() -> Vec<u8> {
    hello(1, 1, LIMITS, 0, &[])
}

/// A frame's header: length, type, flags, reserved, id.
pub(crate) fn header(len: u32, kind: u8, flags: u8, reserved: u16, id: u64) -> Vec<u8> {
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&reserved.to_be_bytes());
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes
}

pub(crate) fn frame(kind: u8, flags: u8, id: u64, payload: &[u8]) -> Vec<u8> {
    [header(payload.len() as u32, kind, flags, 0, id), payload.to_vec()].concat()
}

pub(crate) fn ping(payload: &[u8]) -> Vec<u8> {
    frame(PING, 0, 0, payload)
}

pub(crate) fn named(method: &str) -> Vec<u8> {
    [&[0, method.len() as u8], method.as_bytes()].concat()
}

pub(crate) fn define(number: u8, method: &str) -> Vec<u8> {
    [&[1, number, method.len() as u8], method.as_bytes()].concat()
}

pub(crate) fn number(number: u8) -> Vec<u8> {
    vec![2, number]
}

/// What a call carries: method, codec, remaining milliseconds, metadata, body.
pub(crate) struct Call {
    pub(crate) method: Vec<u8>,
    pub(crate) codec: u8,
    pub(crate) remaining_ms: u32,
    /// With the number of entries before them.
    pub(crate) metadata: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

impl Call {
    /// `Foo.Sum` of 1 and 2, in MessagePack.
    pub(crate) fn sum() -> Self {
        let (method, body) = (named("Foo.Sum"), vec![0x92, 1, 2]);
        Self { method, codec: 1, remaining_ms: 10_000, metadata: vec![0], body }
    }

    pub(crate) fn of(method: Vec<u8>) -> Self {
        Self { method, ..Self::sum() }
    }

    pub(crate) fn echo(len: usize) -> Self {
        Self { method: named("Foo.Echo"), codec: 0, body: vec![7; len], ..Self::sum() }
    }

    /// One that outlasts the test: `Foo.Sleep` of 600 s, with as much time.
    pub(crate) fn wait() -> Self {
        let (method, body) = (named("Foo.Sleep"), vec![0x91, 0xcd, 0x02, 0x58]);
        Self { method, body, remaining_ms: 600_000, ..Self::sum() }
    }

    pub(crate) fn payload(&self) -> Vec<u8> {
        let remaining = self.remaining_ms.to_be_bytes();
        [&self.method[..], &[self.codec], &remaining, &self.metadata, &self.body].concat()
    }

    pub(crate) fn frame(&self, id: u64) -> Vec<u8> {
        frame(CALL, 0, id, &self.payload())
    }

    /// The calls one after the other, with ids from 1 on.
    pub(crate) fn frames(calls: &[Call]) -> Vec<u8> {
        calls.iter().zip(1..).flat_map(|(call, id)| call.frame(id)).collect()
    }
}

pub(crate) fn entry(key: &[u8], value: &[u8]) -> Vec<u8> {
    let value_len = (value.len() as u16).to_be_bytes();
    [&[key.len() as u8], key, &value_len, value].concat()
}

pub(crate) fn with_metadata(entries: &[Vec<u8>]) -> Vec<u8> {
    let metadata = [&[entries.len() as u8][..], &entries.concat()].concat();
    Call { metadata, ..Call::sum() }.frame(1)
}

/// What other programs say first, and what is almost a handshake.
pub(crate) fn handshakes() -> Vec<Case> {
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
pub(crate) fn tls_client_hello() -> Vec<u8> {
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

pub(crate) fn http() -> Vec<Case> {
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
pub(crate) fn headers() -> Vec<Case> {
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
pub(crate) fn ids_and_sides() -> Vec<Case> {
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
        case(
            "a connection error to a server",
            [frame(CONNECTION_ERROR, 0, 0, b"\xff!"), sum(2)].concat(),
            Expect::Ended(vec![]),
        )
        .after(sum(1), three(1)),
        case(
            "the longest connection error to a server, beside a call at work",
            [Call::wait().frame(1), frame(CONNECTION_ERROR, 0, 0, &[0xff; 4096])].concat(),
            Expect::Ended(vec![]),
        ),
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
pub(crate) fn calls() -> Vec<Case> {
    let full = Call::sum().payload();
    let mut cases: Vec<_> = (0..full.len() - Call::sum().body.len())
        .map(|end| (end, frame(CALL, 0, 1, &full[..end])))
        .map(|(end, bytes)| case(format!("a call cut after {end} bytes"), bytes, refused(SHORT)))
        .collect();
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
            Call { remaining_ms: 50, ..Call::wait() }.frame(1),
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

/// Values of which the most is announced and nothing follows, for a method that takes any or one.
pub(crate) fn values(method: &str) -> Vec<Case> {
    // Array, map, string, bytes and extension of 4 Gi.
    [0xdd, 0xdf, 0xdb, 0xc6, 0xc9]
        .into_iter()
        .map(|marker| {
            let body = vec![marker, 0xff, 0xff, 0xff, 0xff];
            let bytes = Call { body, ..Call::of(named(method)) }.frame(1);
            let expect = error(1, INVALID_ARGUMENT, REJECTED, "the arguments");
            case(format!("4 Gi after {marker:#x}"), bytes, expect)
        })
        .collect()
}

/// Bodies that a decoder which recurses follows down: a method's whole argument, and a field that
/// the struct of another does not know and skips.
pub(crate) fn deep(whole: &str, skips: &str) -> Vec<Case> {
    let bad = |codec, method: &str, body: Vec<u8>| {
        let call = Call { codec, body, ..Call::of(named(method)) };
        let name = format!("{method}, codec {codec}, {} bytes", call.body.len());
        case(name, call.frame(1), error(1, INVALID_ARGUMENT, REJECTED, "the arguments"))
    };
    let mut cases = Vec::new();
    for depth in [1000, 500_000] {
        let arrays = |opening: &[u8]| opening.repeat(depth);
        cases.push(bad(1, whole, arrays(b"\x91")));
        cases.push(bad(1, whole, arrays(b"\x81\xa1k")));
        cases.push(bad(1, skips, [b"\x81\xa1x", &*arrays(b"\x91")].concat()));
        cases.push(bad(2, whole, arrays(b"[")));
        cases.push(bad(2, whole, arrays(b"{\"k\":")));
        cases.push(bad(2, skips, [b"{\"x\":", &*arrays(b"[")].concat()));
    }
    cases
}

/// Frames that come with the handshake: a client need not wait for its answer.
pub(crate) fn with_the_handshake() -> Vec<Case> {
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

/// One who sends whatever it likes.
pub(crate) struct RawClient(pub(crate) TcpStream);

impl RawClient {
    pub(crate) async fn connect(at: &str) -> Self {
        Self(TcpStream::connect(at).await.unwrap())
    }

    /// A connection whose handshake is done.
    pub(crate) async fn shaken(at: &str) -> Self {
        let mut raw = Self::connect(at).await;
        raw.send(&good_hello()).await;
        raw.server_hello().await.unwrap();
        raw
    }

    /// Goes through a case; the handlers that must have run for it.
    pub(crate) async fn run(&mut self, case: &Case) -> Result<usize, String> {
        self.send(&case.hello).await;
        let ran = |answers: &[Answer]| {
            answers.iter().filter(|answer| answer.came_from_a_handler()).count() + case.before.len()
        };
        match &case.expect {
            Expect::Http => {
                self.http_refusal().await?;
                Ok(0)
            }
            Expect::Lives(answers) => {
                self.open(case).await?;
                self.expect_all(answers).await?;
                self.is_served().await?;
                Ok(ran(answers) + 1)
            }
            Expect::Refused(answers, text) => {
                self.open(case).await?;
                self.expect_all(answers).await?;
                let (kind, id, payload) = self.frame().await?;
                let told = String::from_utf8_lossy(&payload).into_owned();
                if (kind, id) != (CONNECTION_ERROR, 0) || !told.contains(&**text) {
                    return Err(format!("frame type {kind}, id {id}, {told:?}"));
                }
                self.end().await?;
                Ok(ran(answers))
            }
            Expect::Ended(answers) => {
                self.open(case).await?;
                self.expect_all(answers).await?;
                self.end().await?;
                Ok(ran(answers))
            }
        }
    }

    /// A server that refuses early need not have read it all.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE, self.0.write_all(bytes)).await.expect("nobody reads");
    }

    /// The next frame, which may take longer than usual to begin.
    pub(crate) async fn frame_within(
        &mut self,
        limit: Duration,
    ) -> Result<(u8, u64, Vec<u8>), String> {
        let begun = timeout(limit, self.0.peek(&mut [0])).await;
        let begun = begun.map_err(|_| format!("no frame within {limit:?}"))?;
        begun.map_err(|error| format!("instead of a frame: {error}"))?;
        self.frame().await
    }

    pub(crate) async fn bytes(&mut self, count: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; count];
        let read = timeout(PATIENCE, self.0.read_exact(&mut bytes)).await;
        let read = read.map_err(|_| format!("{count} bytes do not come"))?;
        read.map_err(|error| format!("instead of {count} bytes: {error}"))?;
        Ok(bytes)
    }

    /// Nothing more comes, and the connection was not reset either.
    pub(crate) async fn end(&mut self) -> Result<(), String> {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await;
        let read = read.map_err(|_| "it stays open")?;
        read.map_err(|error| format!("instead of the end: {error}"))?;
        if rest.is_empty() { Ok(()) } else { Err(format!("more bytes: {rest:02x?}")) }
    }

    pub(crate) async fn server_hello(&mut self) -> Result<(), String> {
        let limits = [MAX_BODY as u32, 1024, 8 * 1024 * 1024];
        let expected = hello(1, 1, limits, 0, &[]);
        let told = self.bytes(expected.len()).await.map_err(|error| format!("hello: {error}"))?;
        if told == expected { Ok(()) } else { Err(format!("hello: {told:02x?}")) }
    }

    /// Goes up to what the case is about.
    pub(crate) async fn open(&mut self, case: &Case) -> Result<(), String> {
        self.server_hello().await?;
        for (frames, answer) in &case.before {
            self.send(frames).await;
            self.expect_all(std::slice::from_ref(answer)).await?;
        }
        self.send(&case.frames).await;
        Ok(())
    }

    pub(crate) async fn frame(&mut self) -> Result<(u8, u64, Vec<u8>), String> {
        let header = self.bytes(16).await.map_err(|error| format!("header: {error}"))?;
        if header[5..8] != [0; 3] {
            return Err(format!("flags or reserved: {header:02x?}"));
        }
        let len = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
        let payload = self.bytes(len).await.map_err(|error| format!("payload: {error}"))?;
        Ok((header[4], u64::from_be_bytes(header[8..].try_into().unwrap()), payload))
    }

    pub(crate) async fn expect_all(&mut self, answers: &[Answer]) -> Result<(), String> {
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
    pub(crate) async fn is_served(&mut self) -> Result<(), String> {
        let tag = b"still there?";
        self.send(&ping(tag)).await;
        self.expect_all(&[Answer::Pong(tag.to_vec())]).await?;
        self.send(&Call::sum().frame(LAST_ID)).await;
        self.expect_all(&[Answer::Result(LAST_ID, vec![3])]).await
    }

    pub(crate) async fn http_refusal(&mut self) -> Result<(), String> {
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
pub(crate) fn reply(payload: &[u8]) -> Option<(u8, u8, &[u8])> {
    match payload {
        [status, class, _, _, _, _, 0, body @ ..] => Some((*status, *class, body)),
        _ => None,
    }
}
