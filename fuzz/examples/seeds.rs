//! Writes the seeds of every corpus, from the real encoder: `corpus/TARGET/seed-WHAT`.

use std::error::Error;
use std::fs;
use std::path::Path;

use srpc::call::{Codec, CodecId, Metadata};
use srpc::error::{Execution, Kind};
use srpc::protocol::{
    CallHead, Flags, FrameType, Hello, Limits, MethodRef, ReplyHead, WireError, encode_call,
    encode_connection_error, encode_frame, encode_reply,
};

type Seeds = Vec<(&'static str, Vec<u8>)>;

fn main() -> Result<(), Box<dyn Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let targets: [(&str, Seeds); 8] = [
        ("address", addresses()),
        ("call", calls()),
        ("client", clients()),
        ("frame", frames()),
        ("handshake", handshakes()),
        ("registry", registries()),
        ("reply", replies()),
        ("server", servers()),
    ];
    for (target, seeds) in targets {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        for (name, bytes) in seeds {
            fs::write(folder.join(format!("seed-{name}")), bytes)?;
        }
    }
    Ok(())
}

fn texts(texts: &[(&'static str, &str)]) -> Seeds {
    texts.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect()
}

fn addresses() -> Seeds {
    let mut seeds = texts(&[
        ("tcp", "tcp@127.0.0.1:7001"),
        ("name", "tcp@example.org:65535"),
        ("v6", "tcp@[::1]:7001"),
        ("port-0", "tcp@127.0.0.1:0"),
        ("port-65536", "tcp@127.0.0.1:65536"),
        ("no-port", "tcp@127.0.0.1"),
        ("no-brackets", "tcp@::1:7001"),
        ("open-bracket", "tcp@[::1:7001"),
        ("unspecified", "tcp@0.0.0.0:1"),
        ("unspecified-v6", "tcp@[::]:1"),
        ("unspecified-v6-long", "tcp@[0:0::0]:1"),
        ("unspecified-mapped", "tcp@[::ffff:0.0.0.0]:1"),
        ("zone", "tcp@[fe80::1%eth0]:1"),
        ("user", "tcp@user:secret@host:1"),
        ("two", "tcp@a:1,tcp@b:2"),
        ("line-feed", "tcp@a:1\nX: y"),
        ("nul", "tcp@a\0:1"),
        ("unix", "unix@/run/foo.sock"),
        ("unix-up", "unix@/run/../etc/passwd"),
        ("unix-relative", "unix@foo.sock"),
        ("mem", "mem@server"),
        ("other", "quic+tls.1-2@host:1"),
        ("service", "shop.Cart"),
        ("method", "shop.Cart.Add"),
        ("path", "../../etc/passwd"),
        ("encoded", "shop%2fCart"),
        ("markup", "<b>Foo</b>"),
        ("metadata", "trace-id\n4bf92f3577b34da6a3ce929d0e0e4736"),
        ("direction", "tcp@\u{202e}host:1"),
    ]);
    seeds.push(("long", format!("tcp@{}:1", "x".repeat(600)).into_bytes()));
    seeds.push(("long-wide", format!("tcp@{}:1", "\u{1f980}".repeat(200)).into_bytes()));
    seeds.push(("metadata-large", format!("k\n{}", "v".repeat(8192)).into_bytes()));
    seeds
}

fn metadata(entries: &[(&str, &str)]) -> Metadata {
    let mut metadata = Metadata::default();
    for (key, value) in entries {
        metadata.insert(*key, *value).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    metadata
}

fn body<T: serde::Serialize>(codec: &Codec, value: &T) -> Vec<u8> {
    let mut body = Vec::new();
    codec.encode(value, &mut body).unwrap_or_else(|error| panic!("{error}"));
    body
}

fn payload(method: MethodRef<'_>, codec: CodecId, metadata: Metadata, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_call(&mut out, &CallHead { method, codec, remaining_ms: 10_000, metadata }, body);
    out
}

fn calls() -> Seeds {
    let sum = MethodRef::Name("Foo.Sum");
    let (pack, json) = (Codec::MessagePack, Codec::Json);
    let plain = payload(sum, pack.id(), Metadata::default(), &body(&pack, &(1, 2)));
    let traced = metadata(&[("trace-id", "4bf9"), ("user", "\u{e4}\u{1f980}"), ("empty", "")]);
    let mut many = vec![0, 1, b'F', 1, 0, 0, 0, 1, 64];
    for n in 0..64_u8 {
        many.extend_from_slice(&[2, b'k', b'0' + n, 0, 1, b'v']);
    }
    let mut too_many = many.clone();
    too_many[8] = 65;
    let twice = [&[0, 1, b'F', 1, 0, 0, 0, 1, 2][..], b"\x01k\0\x01a\x01k\0\x01b"].concat();
    let deep = [vec![0x91; 300], vec![0xc0]].concat();
    let deep_json = [vec![b'['; 300], vec![b']'; 300]].concat();
    let claims = [0xdd, 0xff, 0xff, 0xff, 0xff];
    let after = [body(&pack, &(1, 2)), vec![0xc0]].concat();
    vec![
        ("half", plain[..plain.len() / 2].to_vec()),
        ("plain", plain),
        ("define", payload(MethodRef::Define(7, "Foo.Sum"), json.id(), traced.clone(), b"[1,2]")),
        ("number", payload(MethodRef::Number(7), CodecId::RAW, Metadata::default(), b"\0\xff")),
        ("codec-9", payload(sum, CodecId(9), Metadata::default(), b"?")),
        ("text", payload(sum, pack.id(), traced, &body(&pack, &"\u{1f980}"))),
        ("numbers", payload(sum, pack.id(), Metadata::default(), &body(&pack, &[1_u64, 1 << 40]))),
        ("floats", payload(sum, pack.id(), Metadata::default(), &body(&pack, &[1.5, f64::NAN]))),
        ("option", payload(sum, json.id(), Metadata::default(), br#"[true,"\ud83e\udd80"]"#)),
        ("map", payload(sum, json.id(), Metadata::default(), br#"{"a":[1],"b":[]}"#)),
        ("deep", payload(sum, pack.id(), Metadata::default(), &deep)),
        ("deep-json", payload(sum, json.id(), Metadata::default(), &deep_json)),
        ("claims-4-gib", payload(sum, pack.id(), Metadata::default(), &claims)),
        ("behind-it", payload(sum, pack.id(), Metadata::default(), &after)),
        ("many-entries", many),
        ("too-many-entries", too_many),
        ("key-twice", twice),
        ("key-empty", vec![0, 1, b'F', 1, 0, 0, 0, 1, 1, 0, 0, 0]),
        ("not-utf8", vec![0, 2, 0xc3, 0x28, 1, 0, 0, 0, 1, 0]),
        ("naming-3", vec![3, 0, 0, 0]),
    ]
}

fn replied(status: Result<(), (Kind, Execution)>, metadata: Metadata, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_reply(&mut out, &ReplyHead { status, load: 3, metadata }, body);
    out
}

fn replies() -> Seeds {
    let none = Metadata::default;
    let failed = |kind, execution| replied(Err((kind, execution)), none(), b"it failed");
    let ok = replied(Ok(()), none(), &[5]);
    vec![
        ("half", ok[..5].to_vec()),
        ("ok", ok),
        ("json", replied(Ok(()), metadata(&[("cache", "hit")]), b"[5,null,1e400]")),
        ("raw", replied(Ok(()), none(), b"\0\xff\xfe")),
        ("empty", replied(Ok(()), none(), b"")),
        ("executed", failed(Kind::Internal, Execution::Executed)),
        ("rejected", failed(Kind::ResourceExhausted, Execution::Rejected)),
        ("maybe", failed(Kind::Unavailable, Execution::MaybeExecuted)),
        ("text-cut", replied(Err((Kind::Unknown, Execution::Executed)), none(), b"caf\xc3")),
        ("kind-17", vec![17, 0, 0, 0, 0, 0, 0]),
        ("class-3", vec![2, 3, 0, 0, 0, 0, 0]),
        ("ok-with-class", vec![0, 1, 0, 0, 0, 0, 0]),
        ("too-many-entries", vec![0, 0, 0, 0, 0, 0, 65]),
        ("deep", replied(Ok(()), none(), &[vec![0x91; 300], vec![1]].concat())),
        ("claims-4-gib", replied(Ok(()), none(), &[0xc6, 0xff, 0xff, 0xff, 0xff])),
    ]
}

fn hello(max_body: u32, window_calls: u32, window_bytes: u32) -> Vec<u8> {
    let mut hello = Hello::new(Limits::default());
    hello.limits.max_body = max_body;
    hello.limits.window_calls = window_calls;
    hello.limits.window_bytes = window_bytes;
    let mut out = Vec::new();
    hello.encode(&mut out);
    out
}

fn handshakes() -> Seeds {
    let good = hello(4 << 20, 1024, 8 << 20);
    let with = |at: usize, bytes: &[u8]| {
        let mut hello = good.clone();
        hello[at..at + bytes.len()].copy_from_slice(bytes);
        hello
    };
    let mut newer = with(4, &[0, 20, 1, 7]);
    newer.extend_from_slice(&[1, 2]);
    let mut longest = with(4, &[4, 0]);
    longest.resize(6 + 1024, 9);
    vec![
        ("newer", newer),
        ("longest", longest),
        ("least", hello(65_536, 64, 4 << 20)),
        ("most", hello(u32::MAX, u32::MAX, u32::MAX)),
        ("body-below", hello(65_535, 64, 4 << 20)),
        ("calls-below", hello(65_536, 63, 4 << 20)),
        ("bytes-below", hello(65_536, 64, (4 << 20) - 1)),
        ("version-2", with(6, &[2, 3])),
        ("version-upside-down", with(6, &[2, 0])),
        ("features", with(20, &[255; 4])),
        ("short-length", with(4, &[0, 17])),
        ("long-length", with(4, &[4, 1])),
        ("half", good[..11].to_vec()),
        ("frame-behind", [&good[..], &[0; 16]].concat()),
        ("http", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("tls", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        ("good", good),
    ]
}

fn a_frame(frame: FrameType, flags: u8, id: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_frame(&mut out, frame, flags, id, |out| out.extend_from_slice(payload));
    out
}

fn header(len: u32, code: u8, flags: u8, id: u64) -> Vec<u8> {
    let mut out = len.to_be_bytes().to_vec();
    out.extend_from_slice(&[code, flags, 0, 0]);
    out.extend_from_slice(&id.to_be_bytes());
    out
}

/// One read and payloads of 1 KiB, then the frames.
fn stream(how: u8, limit: u8, frames: &[Vec<u8>]) -> Vec<u8> {
    [&[how, limit][..], &frames.concat()].concat()
}

fn frames() -> Seeds {
    let call = a_frame(FrameType::Call, Flags::IDEMPOTENT, 1 << 20, b"payload");
    let reply = a_frame(FrameType::Reply, 0, 1 << 20, &[7; 100]);
    let void = a_frame(FrameType::Void, 0, 9, &[1; 40]);
    let ping = a_frame(FrameType::Ping, Flags::SKIP, 0, &[0; 8]);
    let all = [call.clone(), void.clone(), reply.clone(), ping.clone()];
    let mut reserved = call.clone();
    reserved[6] = 1;
    vec![
        ("at-once", stream(0, 16, &all)),
        ("byte-by-byte", stream(1, 16, &all)),
        ("by-17", stream(17, 16, &all)),
        ("varied", stream(200, 16, &all)),
        ("oversized", stream(5, 1, &[reply.clone(), call.clone()])),
        ("oversized-half", stream(5, 0, &[header(1 << 20, 2, 0, 5), vec![0; 50]])),
        ("length-ffffffff", stream(0, 16, &[header(u32::MAX, 1, 0, 1)])),
        ("length-64-mib", stream(0, 16, &[header(64 << 20, 1, 0, 1), vec![1]])),
        ("length-above-64-mib", stream(0, 16, &[header((64 << 20) + 1, 0, 0, 1)])),
        ("ping-long", stream(0, 255, &[header(4097, 5, 0, 0)])),
        ("drain-and-cancel", stream(3, 16, &[header(0, 4, 0, 7), header(0, 3, 0, 7)])),
        ("unknown", stream(0, 16, &[header(3, 8, 0, 0), vec![1; 3], call.clone()])),
        ("unknown-skipped", stream(2, 16, &[header(3, 8, 1, 0), vec![1; 3], call.clone()])),
        ("more", stream(0, 16, &[header(0, 1, 2, 1)])),
        ("flags-on-void", stream(0, 16, &[header(0, 0, 4, 1)])),
        ("reserved", stream(0, 16, &[reserved])),
        ("empty-frames", stream(33, 16, &vec![header(0, 1, 0, 1); 20])),
        ("connection-error", {
            let mut out = Vec::new();
            encode_connection_error(&mut out, &WireError::Reserved);
            stream(4, 16, &[out])
        }),
        ("half", stream(3, 16, &[call, vec![0, 0]])),
    ]
}

fn called(id: u64, flags: u8, method: MethodRef<'_>, codec: CodecId, body: &[u8]) -> Vec<u8> {
    a_frame(FrameType::Call, flags, id, &payload(method, codec, Metadata::default(), body))
}

/// A good handshake, then the frames.
fn behind_hello(how: u8, frames: &[Vec<u8>]) -> Vec<u8> {
    [&[0x80 | how][..], &frames.concat()].concat()
}

fn servers() -> Seeds {
    let pack = CodecId::MESSAGE_PACK;
    let (sum, echo) = (MethodRef::Name("Foo.Sum"), MethodRef::Name("Bar.Echo"));
    let nap = MethodRef::Name("Bar.Nap");
    let call = called(1, 0, sum, pack, &[0x92, 1, 2]);
    let napping = called(2, 0, nap, pack, &[0xcd, 1, 0]);
    let mut expired = call.clone();
    expired[16 + 10..16 + 14].copy_from_slice(&[0; 4]);
    let mut seeds: Seeds = vec![
        ("call", behind_hello(0, &[call.clone()])),
        ("byte-by-byte", behind_hello(1, &[call.clone(), called(2, 0, echo, CodecId::RAW, b"x")])),
        (
            "define",
            behind_hello(
                9,
                &[
                    called(1, 0, MethodRef::Define(255, "Foo.Sum"), pack, &[0x92, 1, 2]),
                    called(2, 0, MethodRef::Number(255), pack, &[0x92, 3, 4]),
                ],
            ),
        ),
        ("number-not-given", behind_hello(0, &[called(1, 0, MethodRef::Number(3), pack, b"")])),
        ("no-such-method", behind_hello(0, &[called(1, 0, MethodRef::Name("F.\n"), pack, b"")])),
        ("no-such-codec", behind_hello(0, &[called(1, 0, echo, CodecId(200), b"")])),
        ("bad-arguments", behind_hello(0, &[called(1, 0, sum, pack, &[0x92, 1])])),
        (
            "overflow",
            behind_hello(0, &[called(1, 0, sum, CodecId::JSON, b"[9223372036854775807,1]")]),
        ),
        ("nap", behind_hello(0, &[napping.clone()])),
        ("nap-cancelled", behind_hello(0, &[napping.clone(), header(0, 3, 0, 2)])),
        ("nap-notified", behind_hello(0, &[called(3, Flags::NOTIFY, nap, pack, &[5])])),
        ("expired", behind_hello(0, &[expired])),
        ("id-twice", behind_hello(0, &[call.clone(), call.clone()])),
        ("id-0", behind_hello(0, &[called(0, 0, sum, pack, b"")])),
        ("ping", behind_hello(3, &[a_frame(FrameType::Ping, 0, 0, b"12345678"), call.clone()])),
        ("oversized", behind_hello(100, &[header((4 << 20) + 40_000, 1, 0, 4), vec![0; 100]])),
        ("reply", behind_hello(0, &[header(0, 2, 0, 4)])),
        ("oversized-reply", behind_hello(0, &[header(8 << 20, 2, 0, 4)])),
        ("drain", behind_hello(0, &[header(0, 4, 0, 4)])),
        ("connection-error", behind_hello(0, &[header(2, 7, 0, 0), b"no".to_vec()])),
        ("half", behind_hello(0, &[call[..30].to_vec()])),
    ];
    for (name, bytes) in handshakes() {
        if matches!(name, "http" | "tls" | "version-2" | "body-below" | "half" | "newer") {
            seeds.push((name, [&[2], &bytes[..], &call].concat()));
        }
    }
    seeds
}

fn clients() -> Seeds {
    let ids = [1 << 20, 2 << 20 | 1, 3 << 20 | 2];
    let reply = |at: usize, body: &[u8]| {
        a_frame(FrameType::Reply, 0, ids[at], &replied(Ok(()), Metadata::default(), body))
    };
    let failed = |at: usize, execution| {
        let payload = replied(Err((Kind::Unavailable, execution)), Metadata::default(), b"no");
        a_frame(FrameType::Reply, 0, ids[at], &payload)
    };
    let all = [reply(2, b"c"), reply(0, b"a"), reply(1, b"b")];
    let mut seeds: Seeds = vec![
        ("replies", behind_hello(0, &all)),
        ("byte-by-byte", behind_hello(1, &all)),
        ("twice", behind_hello(0, &[reply(0, b"a"), reply(0, b"A"), reply(1, b"b")])),
        ("to-nobody", behind_hello(0, &[a_frame(FrameType::Reply, 0, 77, &[0; 7])])),
        ("slot-of-another", behind_hello(0, &[a_frame(FrameType::Reply, 0, 9 << 20, &[0; 7])])),
        (
            "failed",
            behind_hello(
                20,
                &[
                    failed(0, Execution::Rejected),
                    failed(1, Execution::MaybeExecuted),
                    failed(2, Execution::Executed),
                ],
            ),
        ),
        ("drain", behind_hello(0, &[header(0, 4, 0, ids[0]), reply(0, b"a")])),
        ("drain-all", behind_hello(0, &[header(0, 4, 0, 0)])),
        ("silent", behind_hello(0, &[])),
        ("ping", behind_hello(0, &[a_frame(FrameType::Ping, 0, 0, b"12345678"), reply(1, b"b")])),
        ("pong", behind_hello(0, &[header(0, 6, 0, 0)])),
        ("call", behind_hello(0, &[header(0, 1, 0, 1)])),
        ("oversized-call", behind_hello(0, &[header(8 << 20, 1, 0, 1)])),
        ("cancel", behind_hello(0, &[header(0, 3, 0, ids[1])])),
        ("oversized", behind_hello(0, &[header(8 << 20, 2, 0, ids[1]), vec![0; 9]])),
        ("short", behind_hello(0, &[a_frame(FrameType::Reply, 0, ids[0], &[0, 0])])),
        (
            "bad-class",
            behind_hello(0, &[a_frame(FrameType::Reply, 0, ids[0], &[2, 9, 0, 0, 0, 0, 0])]),
        ),
        (
            "connection-error",
            behind_hello(
                0,
                &[a_frame(FrameType::ConnectionError, 0, 0, b"\x1b[31mred\x1b[0m\xff")],
            ),
        ),
        ("half", behind_hello(0, &[reply(0, b"a")[..20].to_vec()])),
    ];
    for (name, bytes) in handshakes() {
        if matches!(name, "http" | "tls" | "version-2" | "body-below" | "half" | "newer" | "least")
        {
            seeds.push((name, [&[2], &bytes[..], &all.concat()].concat()));
        }
    }
    seeds
}

/// Requests, each ended by a byte that is in no JSON.
fn requests(requests: &[&str]) -> Vec<u8> {
    requests.iter().flat_map(|request| [request.as_bytes(), &[0xff]].concat()).collect()
}

fn registries() -> Seeds {
    let register = r#"r{"service":"Foo","ttl_ms":15000,"instance":{"id":"a","epoch":5,"address":"tcp@h:1","weight":2,"zone":"z1","version":"1.0","metadata":{"k":"v"},"health":"up"}}"#;
    let renew = r#"n{"held":[{"lease_id":"$LEASE","service":"Foo","ttl_ms":15000,"instance":{"id":"a","epoch":5,"address":"tcp@h:1"}}]}"#;
    let leave = r#"x{"held":[{"lease_id":"$LEASE","service":"Foo","id":"a","epoch":5}]}"#;
    let drain = r#"d{"service":"Foo","id":"a","health":"draining"}"#;
    let instance = |text: &str| format!(r#"r{{"service":"Foo","instance":{text}}}"#);
    let mut seeds = vec![
        ("lease", requests(&[register, renew, "iservice=Foo", drain, "lservice=Foo", leave, "i"])),
        (
            "epochs",
            requests(&[
                register,
                &register.replace(":5", ":4"),
                &register.replace(":5", ":6"),
                renew,
            ]),
        ),
        ("renew-unknown", requests(&[renew, r#"n{"held":[]}"#])),
        ("poll", requests(&[register, "iservice=Foo&revision=x-1&wait=30s"])),
        (
            "poll-wrong",
            requests(&[
                "iwait=1s",
                "iservice=Foo&wait=-1",
                "iservice=%2e%2e",
                "iservice=A&service=B",
            ]),
        ),
        (
            "header",
            requests(&[
                "stcp@a:1",
                "stcp@a:1\nFoo",
                "s",
                "stcp@a:1,tcp@b:2",
                "stcp@0.0.0.0:7\nFoo",
                "l",
            ]),
        ),
        (
            "paths",
            requests(&["p/v1/register", "p/v1/register/", "p/v2", "p/../v1", "p/v1/services"]),
        ),
        ("no-body", requests(&["r", "n", "x", "d"])),
        ("not-json", requests(&["r{", "r[1]", "rnull", "r\"\"", "n{\"held\":null}"])),
        (
            "ttl",
            requests(&[
                &register.replace("15000", "0"),
                &register.replace("15000", "-1"),
                &register.replace("15000", "1e3"),
                &register.replace("15000", "\"1\""),
                &register.replace("15000", "18446744073709551615"),
            ]),
        ),
        (
            "names",
            requests(&[
                &register.replace("Foo", "a/b"),
                &register.replace("Foo", ".."),
                &register.replace("Foo", "%2e%2e"),
                &register.replace("Foo", "<b>"),
            ]),
        ),
        (
            "ids",
            requests(&[
                &register.replace("\"a\"", "\"a/b\""),
                &register.replace("\"a\"", "\"..\""),
                &register.replace("\"a\"", "\"\""),
                &register.replace("\"a\"", "\"\\u0000\""),
                &register.replace("\"a\"", "\"tcp@h:1\""),
            ]),
        ),
        (
            "addresses",
            requests(&[
                &register.replace("tcp@h:1", "tcp@h"),
                &register.replace("tcp@h:1", "tcp@h:0"),
                &register.replace("tcp@h:1", "tcp@0.0.0.0:1"),
                &register.replace("tcp@h:1", "tcp@[::]:1"),
                &register.replace("tcp@h:1", "tcp@[0:0::0]:1"),
                &register.replace("tcp@h:1", "unix@/a/../b"),
                &register.replace("tcp@h:1", "tcp@u@h:1"),
                &register.replace("tcp@h:1", "tcp@h:1\\r\\nX: y"),
            ]),
        ),
        (
            "unknown-fields",
            requests(&[&instance(
                r#"{"id":"a","address":"tcp@h:1","new":{"deep":[1,[2]]},"health":"unready"}"#,
            )]),
        ),
        (
            "unknown-health",
            requests(&[&instance(r#"{"id":"a","address":"tcp@h:1","health":"odd"}"#)]),
        ),
        (
            "control",
            requests(&[&instance(r#"{"id":"a","address":"tcp@h:1","zone":"\u001b[31m"}"#)]),
        ),
        ("field-twice", requests(&[&instance(r#"{"id":"a","id":"b","address":"tcp@h:1"}"#)])),
    ];
    let deep = format!("r{}{}", "[".repeat(300), "]".repeat(300));
    seeds.push(("deep", requests(&[&deep])));
    let full: Vec<String> = (0..16)
        .map(|n| {
            register.replace("\"a\"", &format!("\"i{n}\"")).replace("h:1", &format!("h:{}", n + 1))
        })
        .collect();
    let full: Vec<&str> = full.iter().map(String::as_str).collect();
    seeds.push(("full", requests(&full)));
    seeds
}
