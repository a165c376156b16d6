//! Which requests are bad input to a registry, and what must it answer to each?
#![allow(dead_code, reason = "each file of tests uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use serde_json::{Value, json};
use srpc::ServiceName;
use srpc::backend::http::HttpRegistry;
use srpc::backend::memory::Listing;
use srpc::discovery::Discovery;
use srpc::instance::Instance;
use srpc::registry::{Registration, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What must come back.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// `application/problem+json` with this status and a type that ends so.
    Problem(u16, &'static str),
    /// This status, in plain text: the contract of one header.
    Text(u16),
    /// This status without a body: what was asked for has none.
    Bare(u16),
    /// The HTTP parser's own refusal: one of these, or a close.
    Parser,
    Good,
}

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) raw: Vec<u8>,
    pub(crate) expect: Expect,
}

pub(crate) fn case(name: impl Into<String>, raw: impl Into<Vec<u8>>, expect: Expect) -> Case {
    Case { name: name.into(), raw: raw.into(), expect }
}

/// A request without a body that asks the server to close.
pub(crate) fn plain(method: &str, target: &str, headers: &str) -> Vec<u8> {
    format!("{method} {target} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{headers}\r\n")
        .into()
}

pub(crate) fn with_body(path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = format!("{headers}content-length: {}\r\n", body.len());
    let mut raw = plain("POST", path, &length);
    raw.extend_from_slice(body.as_bytes());
    raw
}

pub(crate) const JSON: &str = "content-type: application/json\r\n";

pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    with_body(path, JSON, body)
}

pub(crate) fn register(body: &Value) -> Vec<u8> {
    post("/v1/register", &body.to_string())
}

/// The registration that stands, with one field of its instance replaced.
pub(crate) fn instance(field: &str, value: Value) -> Vec<u8> {
    let mut body = good();
    body["instance"][field] = value;
    register(&body)
}

/// The registration that stands before the first case, and after each.
pub(crate) fn good() -> Value {
    let instance = json!({ "id": "good", "epoch": 5, "address": "tcp@10.0.0.1:7001" });
    json!({ "service": "Foo", "ttl_ms": 300_000, "instance": instance })
}

/// `good` without a field, which a pointer names.
pub(crate) fn without(parent: &str, field: &str) -> Vec<u8> {
    let mut body = good();
    body.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field);
    register(&body)
}

pub(crate) fn seed_contract() -> Vec<Case> {
    let seed = "/srpc/registry";
    let mut cases = vec![
        case("seed: no header", plain("POST", seed, ""), Expect::Text(500)),
        case("seed: empty", plain("POST", seed, "srpc-servers:\r\n"), Expect::Text(500)),
        case("seed: blank", plain("POST", seed, "srpc-servers:   \r\n"), Expect::Text(500)),
    ];
    for address in [
        "nonsense",
        "tcp@",
        "tcp@a",
        "tcp@a:",
        "tcp@a:0",
        "tcp@a:65536",
        "tcp@a:-1",
        "tcp@:1",
        "@a:1",
        "tcp@user:secret@a:1",
        "tcp@a:1,tcp@b:2",
        "tcp@a:1,",
        "tcp@a\t:1",
        "tcp@a b:1",
        "tcp@<b>:1",
        "tcp@::1:1",
        "tcp@[::1:1",
        "unix@/a/../b",
        "unix@relative",
        &format!("tcp@{}:1", "a".repeat(600)),
    ] {
        let raw = plain("POST", seed, &format!("srpc-servers: {address}\r\n"));
        cases.push(case(format!("seed: {address:?}"), raw, Expect::Text(400)));
    }
    let twice = "srpc-servers: tcp@a:1\r\nsrpc-servers: tcp@b:2\r\n";
    cases.push(case("seed: two headers", plain("POST", seed, twice), Expect::Text(400)));
    let mut not_utf8 =
        b"POST /srpc/registry HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n".to_vec();
    not_utf8.extend_from_slice(b"srpc-servers: unix@/\xff\r\n\r\n");
    cases.push(case("seed: not UTF-8", not_utf8, Expect::Text(400)));
    for (name, value) in [("NUL", "tcp@a\0:1"), ("CR", "tcp@a\r:1"), ("fold", "tcp@a\r\n :1")] {
        let raw = plain("POST", seed, &format!("srpc-servers: {value}\r\n"));
        cases.push(case(format!("seed: {name} in a header"), raw, Expect::Parser));
    }
    for service in ["", "a/b", "..", "%2e%2e", "<b>", "9a", &"x".repeat(129), &"x".repeat(256)] {
        let headers = format!("srpc-servers: tcp@a:1\r\nsrpc-service: {service}\r\n");
        let raw = plain("POST", seed, &headers);
        cases.push(case(format!("seed: for service {service:?}"), raw, Expect::Text(400)));
    }
    for query in ["service=", "service=a/b", "service=%2e%2e", "service=%zz", "service=A&service=B"]
    {
        let raw = plain("GET", &format!("{seed}?{query}"), "");
        cases.push(case(format!("seed: list of {query}"), raw, Expect::Text(400)));
    }
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        let raw = plain(method, seed, "srpc-servers: tcp@a:1\r\n");
        cases.push(case(format!("seed: {method}"), raw, Expect::Text(405)));
    }
    cases.push(case("seed: HEAD", plain("HEAD", seed, ""), Expect::Bare(405)));
    cases
}

/// Host names, which a page in a browser of this machine chooses.
fn hosts() -> Vec<Case> {
    let get =
        |hosts: &str| format!("GET /v1/instances HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
    let misdirected = Expect::Problem(421, "misdirected");
    let mut cases: Vec<Case> = [
        ("no host", "", Expect::Problem(400, "invalid-request")),
        (
            "two hosts",
            "host: localhost\r\nhost: localhost\r\n",
            Expect::Problem(400, "invalid-request"),
        ),
        ("a page's host", "host: evil.example:9999\r\n", misdirected.clone()),
        ("an empty host", "host:\r\n", misdirected.clone()),
        ("localhost", "host: LOCALHOST.:9999\r\n", Expect::Good),
    ]
    .into_iter()
    .map(|(name, hosts, expect)| case(name, get(hosts), expect))
    .collect();
    let seed = "POST /srpc/registry HTTP/1.1\r\nhost: evil.example\r\nsrpc-servers: tcp@a:1\r\n\
                connection: close\r\n\r\n";
    cases.push(case("a page's registration", seed, misdirected.clone()));
    let absolute = plain("GET", "http://evil.example/v1/instances", "");
    cases.push(case("a page's absolute URL", absolute, misdirected));
    cases
}

pub(crate) fn paths_and_methods() -> Vec<Case> {
    let mut cases = hosts();
    for path in [
        "/",
        "*",
        "/srpc",
        "/srpc/registry/",
        "/srpc/registry/../registry",
        "/srpc//registry",
        "/SRPC/REGISTRY",
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v1/register/",
        "/v1/%72egister",
        "//v1/register",
        "/v1/../v1/register",
        "/v2/register",
    ] {
        for method in ["GET", "POST"] {
            let expect = Expect::Problem(404, "not-found");
            cases.push(case(format!("{method} {path}"), plain(method, path, ""), expect));
        }
    }
    let other = Expect::Problem(405, "method-not-allowed");
    for (method, path) in [
        ("GET", "/v1/register"),
        ("PUT", "/v1/register"),
        ("GET", "/v1/renew"),
        ("DELETE", "/v1/deregister"),
        ("GET", "/v1/drain"),
        ("POST", "/v1/instances"),
        ("DELETE", "/v1/services"),
    ] {
        let raw = plain(method, path, "");
        cases.push(case(format!("{method} {path}"), raw, other.clone()));
    }
    cases.push(case("HEAD", plain("HEAD", "/v1/instances", ""), Expect::Bare(405)));
    for query in [
        "service=a/b",
        "service=",
        "service=%2e%2e%2f",
        "service=A&service=B",
        "service=Foo&revision=a&revision=b",
        "service=Foo&wait=soon",
        "service=Foo&wait=-1",
        "service=Foo&wait=NaN",
        "service=Foo&wait=",
        "wait=1s",
        "service=%",
    ] {
        let raw = plain("GET", &format!("/v1/instances?{query}"), "");
        let expect = Expect::Problem(400, "invalid-request");
        cases.push(case(format!("list of {query}"), raw, expect));
    }
    cases
}

pub(crate) fn bodies() -> Vec<Case> {
    let path = "/v1/register";
    let good = good().to_string();
    let mut cases = Vec::new();
    for headers in [
        "",
        "content-type: text/plain\r\n",
        "content-type: application/jsonp\r\n",
        "content-type: application/x-www-form-urlencoded\r\n",
        "content-type: \u{e4}\r\n",
    ] {
        let raw = with_body(path, headers, &good);
        let expect = Expect::Problem(415, "unsupported-media-type");
        cases.push(case(format!("{headers:?}"), raw, expect));
    }
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let invalid = Expect::Problem(400, "invalid-request");
    let not_json = Expect::Problem(400, "not-json");
    for (body, expect) in [
        ("", &not_json),
        ("hello", &not_json),
        ("{", &not_json),
        ("{\"service\":\"Foo\",}", &not_json),
        ("{\"service\":\"Foo\\u12\"}", &not_json),
        ("<html></html>", &not_json),
        (&*format!("{good}{good}"), &not_json),
        (&*good.replace("300000", "NaN"), &not_json),
        ("[]", &invalid),
        ("null", &invalid),
        ("{}", &invalid),
        ("\"Foo\"", &invalid),
        (&*deep, &invalid),
        (&*format!("{{\"service\":\"Foo\",\"instance\":{deep}}}"), &invalid),
        (&*good.replace("300000", "1e400"), &not_json),
    ] {
        let name = format!("body {:?}", body.chars().take(40).collect::<String>());
        cases.push(case(name, post(path, body), expect.clone()));
    }
    for path in ["/v1/renew", "/v1/deregister", "/v1/drain"] {
        for body in ["{}", "[]", "{\"held\":{}}", "{\"held\":[{}]}"] {
            cases.push(case(format!("{path} {body}"), post(path, body), invalid.clone()));
        }
    }
    cases.push(case("no length", plain("POST", path, JSON), not_json.clone()));
    let chunked = format!("{JSON}transfer-encoding: chunked\r\n");
    let mut bad_chunk = plain("POST", path, &chunked);
    bad_chunk.extend_from_slice(b"zz\r\n{}\r\n0\r\n\r\n");
    cases.push(case("a bad chunk", bad_chunk, Expect::Problem(400, "unreadable-body")));
    let mut both = plain("POST", path, &format!("{chunked}content-length: 5\r\n"));
    both.extend_from_slice(b"0\r\n\r\n");
    cases.push(case("both lengths", both, not_json));
    let too_large = Expect::Problem(413, "too-large");
    let over = plain("POST", path, &format!("{JSON}content-length: 1048577\r\n"));
    cases.push(case("over 1 MiB by its length", over, too_large.clone()));
    let expecting = format!("{JSON}content-length: 9999999999\r\nexpect: 100-continue\r\n");
    cases.push(case("over 1 MiB, asking first", plain("POST", path, &expecting), too_large));
    for length in ["-1", "abc", "1, 2", "99999999999999999999999", "1\r\ncontent-length: 2"] {
        let raw = plain("POST", path, &format!("{JSON}content-length: {length}\r\n"));
        cases.push(case(format!("length {length:?}"), raw, Expect::Parser));
    }
    let gzip = plain("POST", path, &format!("{JSON}transfer-encoding: gzip\r\n"));
    cases.push(case("gzip without chunks", gzip, Expect::Parser));
    cases
}

pub(crate) fn registrations(lease: &str) -> Vec<Case> {
    let invalid = Expect::Problem(400, "invalid-request");
    let refused = Expect::Problem(400, "invalid-registration");
    let mut cases = vec![
        case("no service", without("", "service"), invalid.clone()),
        case("no instance", without("", "instance"), invalid.clone()),
        case("no id", without("/instance", "id"), invalid.clone()),
        case("no address", without("/instance", "address"), invalid.clone()),
    ];
    let long = |length: usize| json!("x".repeat(length));
    for service in [
        json!(""),
        json!("a/b"),
        json!(".."),
        json!("%2e%2e"),
        json!("<script>"),
        json!("a b"),
        json!("a\u{0}"),
        json!(5),
        json!(null),
        long(129),
        long(256),
    ] {
        let mut body = good();
        body["service"] = service.clone();
        cases.push(case(format!("service {service}"), register(&body), invalid.clone()));
    }
    for address in [
        "",
        "tcp@a",
        "tcp@a:0",
        "tcp@a:65536",
        "tcp@a\r:1",
        "tcp@a\n:1",
        "tcp@a\u{0}:1",
        "tcp@a:1,tcp@b:1",
        "tcp@user@a:1",
        "tcp@\u{e4}:1",
        "unix@/a/../b",
        "unix@a",
    ] {
        let raw = instance("address", json!(address));
        cases.push(case(format!("address {address:?}"), raw, invalid.clone()));
    }
    for address in ["tcp@0.0.0.0:1", "tcp@[::]:1"] {
        let raw = instance("address", json!(address));
        cases.push(case(format!("address {address}"), raw, refused.clone()));
    }
    for id in ["", ".", "..", "a/b", "a\\b", "../x", "%2e%2e", "<b>", "a b", "a\n", "\u{e4}"] {
        cases.push(case(format!("id {id:?}"), instance("id", json!(id)), refused.clone()));
    }
    for length in [129, 256] {
        cases.push(case(format!("id of {length}"), instance("id", long(length)), refused.clone()));
    }
    for ttl in [json!(-1), json!("15000"), json!(1.5), json!(null), json!([])] {
        let mut body = good();
        body["ttl_ms"] = ttl.clone();
        cases.push(case(format!("ttl {ttl}"), register(&body), invalid.clone()));
    }
    let mut zero = good();
    zero["ttl_ms"] = json!(0);
    cases.push(case("ttl 0", register(&zero), refused.clone()));
    let entries: serde_json::Map<String, Value> =
        (0..65).map(|number| (number.to_string(), json!(""))).collect();
    for (field, value, expect) in [
        ("zone", long(129), &refused),
        ("zone", json!("a\nb"), &refused),
        ("zone", json!(1), &invalid),
        ("version", long(129), &refused),
        ("version", json!("\u{7f}"), &refused),
        ("metadata", Value::Object(entries), &refused),
        ("metadata", json!({ "k": "x".repeat(8192) }), &refused),
        ("metadata", json!({ "": "x" }), &refused),
        ("metadata", json!({ "k": 1 }), &invalid),
        ("metadata", json!([]), &invalid),
        ("weight", json!(-1), &invalid),
        ("weight", json!(4_294_967_296_u64), &invalid),
        ("epoch", json!(-1), &invalid),
        ("epoch", json!(1.8e19), &invalid),
        ("health", json!("dancing"), &invalid),
        ("id", json!(7), &invalid),
        ("address", json!({}), &invalid),
    ] {
        let name = format!("{field} {}", value.to_string().chars().take(30).collect::<String>());
        cases.push(case(name, instance(field, value), expect.clone()));
    }

    let older = json!({ "id": "good", "epoch": 4, "address": "tcp@10.0.0.9:1" });
    let mut stale = good();
    stale["instance"] = older;
    let conflict = Expect::Problem(409, "stale-epoch");
    cases.push(case("an older epoch", register(&stale), conflict.clone()));
    let mut with_lease = stale.clone();
    with_lease["lease_id"] = json!(lease);
    let renew = |held: &Value| post("/v1/renew", &json!({ "held": [held] }).to_string());
    cases.push(case("renewing an older epoch", renew(&with_lease), conflict));
    let unknown = Expect::Problem(404, "unknown-lease");
    let mut lost = good();
    for unknown_lease in [json!("unknown"), json!(""), long(10_000)] {
        lost["lease_id"] = unknown_lease;
        cases.push(case("renewing an unknown lease", renew(&lost), unknown.clone()));
    }
    lost["lease_id"] = json!(lease);
    lost["service"] = json!("Bar");
    cases.push(case("renewing in another service", renew(&lost), unknown));
    lost["instance"]["address"] = json!("tcp@0.0.0.0:1");
    cases.push(case("renewing at no address", renew(&lost), refused));

    let drain = |body: Value| post("/v1/drain", &body.to_string());
    let nobody = drain(json!({ "service": "Foo", "id": "nobody" }));
    cases.push(case("draining nobody", nobody, Expect::Problem(404, "unknown-instance")));
    let dancing = drain(json!({ "service": "Foo", "id": "good", "health": "dancing" }));
    cases.push(case("draining to nonsense", dancing, invalid));
    cases
}

pub(crate) fn not_http() -> Vec<Case> {
    let long = "x".repeat(40_000);
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let list = "/srpc/registry";
    [
        ("garbage", "hello there\r\n\r\n".to_owned()),
        ("HTTP/0.9", "GET /srpc/registry\r\n\r\n".to_owned()),
        ("HTTP/3", "GET /srpc/registry HTTP/3.0\r\n\r\n".to_owned()),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("TLS", "\u{16}\u{3}\u{1}\u{0}\u{5}\u{1}\u{0}\u{0}\u{1}\u{0}\r\n\r\n".to_owned()),
        ("our own frames", "srpc\u{0}\u{1}\u{0}\u{0}\u{0}\u{0}\r\n\r\n".to_owned()),
        ("a header without a colon", format!("GET {list} HTTP/1.1\r\nnonsense\r\n\r\n")),
        ("a space in a header's name", format!("GET {list} HTTP/1.1\r\na b: c\r\n\r\n")),
        ("a control character in a path", "GET /\u{1} HTTP/1.1\r\n\r\n".to_owned()),
        ("many headers", format!("GET {list} HTTP/1.1\r\n{many}\r\n")),
        ("a long header", format!("GET {list} HTTP/1.1\r\nx: {long}\r\n\r\n")),
        ("a long path", format!("GET /{long} HTTP/1.1\r\n\r\n")),
    ]
    .into_iter()
    .map(|(name, raw)| case(name, raw, Expect::Parser))
    .collect()
}

/// What looks odd and is right: nothing but a lease's end changes.
pub(crate) fn not_bad_at_all(lease: &str) -> Vec<Case> {
    let mut newer = good();
    newer["a field"] = json!({ "of": ["a", "newer", "client"] });
    newer["instance"]["mood"] = json!("good");
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep = good().to_string().replacen('{', &format!("{{\"unknown\":{deep},"), 1);
    let mut held = good();
    held["lease_id"] = json!(lease);
    let leaving = json!({ "lease_id": "unknown", "service": "Foo", "id": "good" });
    let parameter = "content-type: Application/JSON; charset=utf-8\r\n";
    let seed = plain("POST", "/srpc/registry", "SRPC-SERVERS:tcp@10.0.0.1:7001\r\n");
    vec![
        case("the same again", register(&good()), Expect::Good),
        case("and again", register(&good()), Expect::Good),
        case("unknown fields", register(&newer), Expect::Good),
        case("a deep unknown field", post("/v1/register", &deep), Expect::Good),
        case("parameters", with_body("/v1/register", parameter, &good().to_string()), Expect::Good),
        case(
            "a renewal, twice in one request",
            post("/v1/renew", &json!({ "held": [held, held] }).to_string()),
            Expect::Good,
        ),
        case("nothing to renew", post("/v1/renew", "{\"held\":[]}"), Expect::Good),
        case(
            "leaving with another's lease",
            post("/v1/deregister", &json!({ "held": [leaving] }).to_string()),
            Expect::Good,
        ),
        case("a heartbeat of what /v1 holds", seed, Expect::Good),
        case("an unknown parameter", plain("GET", "/srpc/registry?x=%31", ""), Expect::Good),
        case("an absolute URL", plain("GET", "http://localhost/v1/instances", ""), Expect::Good),
    ]
}

/// A registry at which `good` is registered, and somebody who behaves.
pub(crate) struct Site {
    pub(crate) at: String,
    client: HttpRegistry,
    /// The lease of `good`.
    pub(crate) lease: String,
}

impl Site {
    /// Registers `good` with the registry that listens there.
    pub(crate) async fn new(at: &str) -> Self {
        let client = HttpRegistry::new(&format!("http://{at}/srpc/registry")).unwrap();
        let instance = Instance::new("good", "tcp@10.0.0.1:7001".parse().unwrap()).epoch(5);
        let registration = Registration::new(foo(), instance).ttl(Duration::from_secs(300));
        let lease = client.register(&registration).await.unwrap().id.to_string();
        Self { at: at.to_owned(), client, lease }
    }

    /// All cases of the tables.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let mut cases = seed_contract();
        cases.extend(paths_and_methods());
        cases.extend(bodies());
        cases.extend(registrations(&self.lease));
        cases.extend(not_http());
        cases.extend(not_bad_at_all(&self.lease));
        assert!(cases.len() >= 60, "{}", cases.len());
        cases
    }

    /// What is registered, without the time that is left.
    pub(crate) async fn state(&self) -> Listing {
        let mut listing = self.client.list(None).await.unwrap();
        for entry in &mut listing.entries {
            entry.expires_in = None;
        }
        // It ends by itself while the test runs.
        listing.warming = false;
        listing
    }

    /// Sends these bytes; while the connection is open someone else is served; then reads until
    /// the server closes.
    pub(crate) async fn send(&self, raw: &[u8]) -> String {
        let mut stream = self.connect().await;
        // A server that refuses early need not have read it all.
        let _ = stream.write_all(raw).await;
        self.someone_else_is_served().await;
        read(&mut stream).await
    }

    #[allow(clippy::disallowed_methods, reason = "only a raw socket sends what is not HTTP")]
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.at).await.unwrap()
    }

    pub(crate) async fn someone_else_is_served(&self) {
        assert!(self.serves_others().await);
    }

    /// Whether somebody who asks for the list gets it.
    pub(crate) async fn serves_others(&self) -> bool {
        let found = self.client.resolve(&foo()).await;
        found.is_ok_and(|found| found.instances.len() == 1)
    }

    /// Sends every case; tells all that went wrong.
    pub(crate) async fn check_all(&self) -> Vec<String> {
        let before = self.state().await;
        assert_eq!(before.entries.len(), 1);
        let mut failures = Vec::new();
        for Case { name, raw, expect } in &self.cases() {
            let answer = self.send(raw).await;
            if let Err(what) = check(&answer, expect) {
                failures.push(format!("{name}: {what}: expected {expect:?}, got {answer:?}"));
            }
            let after = self.state().await;
            if after != before {
                failures.push(format!("{name}: the list changed: {after:?}"));
                break;
            }
        }
        failures
    }
}

pub(crate) async fn read(stream: &mut TcpStream) -> String {
    read_within(stream, Duration::from_secs(60)).await
}

pub(crate) async fn read_within(stream: &mut TcpStream, limit: Duration) -> String {
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    // A reset after the answer is as good as a close.
    let _ = tokio::time::timeout(limit, reading).await.expect("no close");
    String::from_utf8(answer).unwrap()
}

pub(crate) fn foo() -> ServiceName {
    "Foo".parse().unwrap()
}

pub(crate) fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

pub(crate) fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let (head, _) = answer.split_once("\r\n\r\n")?;
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

pub(crate) fn check(answer: &str, expect: &Expect) -> Result<(), String> {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let told = status(answer);
    let is = |right: bool, what: &str| if right { Ok(()) } else { Err(what.to_owned()) };
    match expect {
        Expect::Good => is(told == Some(200), "status"),
        Expect::Parser => is(answer.is_empty() || matches!(told, Some(400 | 431)), "status"),
        Expect::Bare(status) => {
            is(told == Some(*status), "status")?;
            is(body.is_empty(), "a body")?;
            is(header(answer, "allow").is_some(), "no Allow")
        }
        Expect::Text(status) => {
            is(told == Some(*status), "status")?;
            is(header(answer, "content-type") == Some("text/plain; charset=utf-8"), "type")?;
            is(*status != 405 || header(answer, "allow") == Some("GET, POST"), "Allow")?;
            is(!body.is_empty(), "no reason")
        }
        Expect::Problem(status, kind) => {
            is(told == Some(*status), "status")?;
            is(header(answer, "content-type") == Some("application/problem+json"), "type")?;
            is(*status != 405 || header(answer, "allow").is_some(), "no Allow")?;
            let problem: Value = serde_json::from_str(body).map_err(|error| error.to_string())?;
            is(problem["type"] == format!("urn:srpc:{kind}"), "problem type")?;
            is(problem["status"] == *status, "problem status")?;
            is(problem["detail"].as_str().is_some_and(|text| !text.is_empty()), "no detail")?;
            is(problem["title"].as_str().is_some_and(|text| !text.is_empty()), "no title")
        }
    }
}
