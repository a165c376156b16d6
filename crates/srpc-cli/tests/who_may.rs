//! Who may do what at a registry, and what may it cost?
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

mod support;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
#[cfg(target_os = "linux")]
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{PATIENCE, Process, eventually, srpc};
#[cfg(target_os = "linux")]
use tokio::runtime::{Builder, Runtime};

const OPS: &str = "ops-0123456789abcdef";
const READER: &str = "reader-0123456789abcdef";
const WRITER: &str = "writer-0123456789abcdef";
const FOO: &str = "foo-0123456789abcdef";
const UNKNOWN: &str = "unknown-0123456789abcdef";

fn lines() -> String {
    format!(
        "# who may do what\nops read,write {OPS}\nreader read {READER}\nwriter write {WRITER}\n\
         foo write:Foo,write:shop.Cart {FOO}\n"
    )
}

/// A file of a test, gone with it.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("srpc-who-may-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self::only_mine(&path, 0o600);
        Self(path)
    }

    #[cfg(unix)]
    fn only_mine(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[cfg(not(unix))]
    fn only_mine(_: &Path, _: u32) {}

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A registry, and where this machine reaches it.
fn registry(args: &[&str]) -> (Process, SocketAddr, String) {
    let (process, url) =
        Process::listening(&[&["registry", "--bind", "127.0.0.1:0"], args].concat());
    let at = at(&url);
    (process, at, url)
}

fn at(url: &str) -> SocketAddr {
    let port = url.rsplit(':').next().and_then(|rest| rest.split('/').next()).unwrap();
    SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()))
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A refusal says why as problem+json, whatever was asked.
    fn is_refusal(&self, kind: &str) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        if !self.body.is_empty() {
            assert_eq!(self.json()["type"], kind, "{self:?}");
            assert_eq!(self.json()["status"], self.status, "{self:?}");
        }
    }
}

/// Sends these lines and this body; `None`: the connection was closed without an answer.
fn over(mut stream: TcpStream, head: &str, body: &str) -> Option<Answer> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = if head.to_ascii_lowercase().contains("content-length:") {
        String::new()
    } else {
        format!("content-length: {}\r\n", body.len())
    };
    let head = head.replace('\n', "\r\n");
    let request = format!("{head}\r\nhost: localhost\r\nconnection: close\r\n{length}\r\n{body}");
    // A server that refuses may close before it has read everything.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Some(Answer { status, headers, body: body.to_owned() })
}

fn raw(at: SocketAddr, head: &str, body: &str) -> Answer {
    over(TcpStream::connect(at).unwrap(), head, body).unwrap()
}

/// Asks with this token, if it is not empty.
fn ask(at: SocketAddr, token: &str, line: &str, body: &Value) -> Answer {
    raw(at, &head(token, line), &if body.is_null() { String::new() } else { body.to_string() })
}

fn head(token: &str, line: &str) -> String {
    let shown = match token {
        "" => String::new(),
        token => format!("\nauthorization: Bearer {token}"),
    };
    format!("{line} HTTP/1.1\ncontent-type: application/json{shown}")
}

fn instance(service: &str, id: &str, port: u16) -> Value {
    json!({ "service": service, "ttl_ms": 60_000,
            "instance": { "id": id, "epoch": 1, "address": format!("tcp@10.0.0.1:{port}") } })
}

/// What is registered, without the time that is left.
fn listed(at: SocketAddr, token: &str) -> Vec<Value> {
    let answer = ask(at, token, "GET /v1/instances", &Value::Null);
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut instances = answer.json()["instances"].as_array().unwrap().clone();
    instances.iter_mut().for_each(|it| drop(it.as_object_mut().unwrap().remove("expires_in_ms")));
    instances
}

#[test]
fn a_table_of_who_may_do_what() {
    let file = File::new("table", &lines());
    let (_registry, at, _) = registry(&["--tokens-file", file.path()]);
    let lease = |service: &str, id: &str, port: u16| {
        let granted = ask(at, OPS, "POST /v1/register", &instance(service, id, port));
        assert_eq!(granted.status, 200, "{granted:?}");
        let mut held = instance(service, id, port);
        held["lease_id"] = granted.json()["lease_id"].clone();
        held["id"] = json!(id);
        held
    };
    let (foo, bar) = (lease("Foo", "one", 1), lease("Bar", "one", 2));
    let before = listed(at, OPS);
    let null = Value::Null;
    let held = |leases: &[&Value]| json!({ "held": leases });
    let drain = |service: &str| json!({ "service": service, "id": "one" });
    let post_seed = "POST /srpc/registry";
    let servers = "POST /srpc/registry HTTP/1.1\nSrpc-servers: tcp@10.0.0.9:9";

    // With one of the tokens, or none: `Authorization: Bearer TOKEN`.
    for (token, line, body, status) in [
        ("", "GET /v1/instances", null.clone(), 401),
        ("", "GET /v1/services", null.clone(), 401),
        ("", "POST /v1/register", instance("Foo", "new", 9), 401),
        ("", "POST /v1/renew", held(&[&foo]), 401),
        ("", "POST /v1/deregister", held(&[&foo]), 401),
        ("", "POST /v1/drain", drain("Foo"), 401),
        ("", "GET /srpc/registry", null.clone(), 401),
        ("", post_seed, null.clone(), 401),
        (UNKNOWN, "GET /v1/instances", null.clone(), 401),
        (UNKNOWN, "POST /v1/register", instance("Foo", "new", 9), 401),
        (&OPS[..OPS.len() - 1], "GET /v1/instances", null.clone(), 401),
        ("", "GET /nothing", null.clone(), 401),
        (UNKNOWN, "GET /nothing", null.clone(), 401),
        (READER, "GET /nothing", null.clone(), 404),
        (FOO, "GET /v1/instances/", null.clone(), 404),
        (READER, "GET /v1/instances", null.clone(), 200),
        (READER, "GET /v1/services", null.clone(), 200),
        (READER, "GET /srpc/registry", null.clone(), 200),
        (READER, "POST /v1/register", instance("Foo", "new", 9), 403),
        (READER, "POST /v1/register", json!("no registration"), 403),
        (READER, "POST /v1/renew", held(&[&foo]), 403),
        (READER, "POST /v1/deregister", held(&[&foo]), 403),
        (READER, "POST /v1/drain", drain("Foo"), 403),
        (READER, post_seed, null.clone(), 403),
        (WRITER, "GET /v1/instances", null.clone(), 403),
        (WRITER, "GET /v1/services", null.clone(), 403),
        (WRITER, "GET /srpc/registry", null.clone(), 403),
        (WRITER, "POST /v1/renew", held(&[&foo, &bar]), 200),
        (FOO, "GET /v1/instances?service=Foo", null.clone(), 403),
        (FOO, "POST /v1/register", instance("Bar", "one", 2), 403),
        (FOO, "POST /v1/register", instance("Foo2", "new", 9), 403),
        (FOO, "POST /v1/register", instance("foo", "new", 9), 403),
        (FOO, "POST /v1/register", instance("Foo", "one", 1), 200),
        (FOO, "POST /v1/renew", held(&[&foo]), 200),
        (FOO, "POST /v1/renew", held(&[&bar, &foo]), 200),
        (FOO, "POST /v1/renew", held(&[&bar]), 403),
        (FOO, "POST /v1/deregister", held(&[&bar]), 403),
        (FOO, "POST /v1/drain", drain("Bar"), 403),
        (FOO, "POST /v1/drain", json!({ "service": "Bar", "id": "unknown" }), 403),
        (FOO, post_seed, null.clone(), 403),
        (FOO, "HEAD /v1/instances", null.clone(), 405),
        (READER, "OPTIONS /v1/renew", null.clone(), 405),
    ] {
        let answer = ask(at, token, line, &body);
        let case = format!("{token:?} {line} {body}: {answer:?}");
        assert_eq!(answer.status, status, "{case}");
        let challenge = answer.headers.get("www-authenticate");
        match status {
            401 => {
                assert!(challenge.unwrap().starts_with("Bearer"), "{case}");
                answer.is_refusal("urn:srpc:unauthorized");
            }
            403 => answer.is_refusal("urn:srpc:not-allowed"),
            _ => {}
        }
        assert_eq!(challenge.is_some(), status == 401, "{case}");
        for secret in [OPS, READER, WRITER, FOO, UNKNOWN] {
            assert!(!answer.body.contains(secret), "{case}");
        }
        assert_eq!(listed(at, OPS), before, "{case}");
    }

    // Whatever else is said, and however the path is written: without a token it is 401.
    let ops = format!("authorization: Bearer {OPS}");
    for head in [
        "GET //v1/instances HTTP/1.1",
        "GET /v1//instances HTTP/1.1",
        "GET /v1/instances/ HTTP/1.1",
        "GET /v1/instances? HTTP/1.1",
        "GET /v1/%69nstances HTTP/1.1",
        "GET /V1/INSTANCES HTTP/1.1",
        "GET /x/../v1/instances HTTP/1.1",
        "GET /srpc/registry/../../v1/instances HTTP/1.1",
        "GET /srpc/registry/ HTTP/1.1",
        "GET //srpc/registry HTTP/1.1",
        "GET /srpc/registry;x HTTP/1.1",
        "GET /srpc/%72egistry HTTP/1.1",
        "GET http://registry/v1/instances HTTP/1.1",
        "GET / HTTP/1.1",
        "GET /v1/instances HTTP/1.0",
        "HEAD /v1/instances HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "OPTIONS /v1/instances HTTP/1.1",
        "TRACE /v1/instances HTTP/1.1",
        "PUT /v1/register HTTP/1.1",
        "PURGE /v1/instances HTTP/1.1",
        "get /v1/instances HTTP/1.1",
        "GET /v1/instances HTTP/1.1\nuser-agent: Nacos-Server",
        "GET /v1/instances HTTP/1.1\nx-forwarded-for: 127.0.0.1\nx-real-ip: 127.0.0.1",
        "GET /nothing HTTP/1.1\nx-original-url: /v1/instances\nx-rewrite-url: /v1/instances",
        "POST /v1/instances HTTP/1.1\nx-http-method-override: GET",
        &format!("GET /v1/instances?access_token={OPS}&token={OPS} HTTP/1.1"),
        &format!("GET /v1/instances HTTP/1.1\ncookie: token={OPS}"),
        &format!("GET /v1/instances HTTP/1.1\nproxy-{ops}"),
        &format!("GET /v1/instances HTTP/1.1\n{ops}\n{ops}"),
        &format!("GET /v1/instances HTTP/1.1\n{ops}\nauthorization: Bearer {UNKNOWN}"),
        &format!("GET /v1/instances HTTP/1.1\nauthorization: Bearer {UNKNOWN}\n{ops}"),
        &format!("GET /v1/instances HTTP/1.1\nauthorization: Basic {OPS}"),
        &format!("GET /v1/instances HTTP/1.1\nauthorization: {OPS}"),
        &format!("GET /v1/instances HTTP/1.1\nauthorization: Bearer {}", OPS.to_uppercase()),
        &format!("GET /v1/instances HTTP/1.1\nauthorization: Bearer {OPS}\u{1}")
            .replace('\u{1}', ","),
        "GET /v1/instances HTTP/1.1\nauthorization: Bearer",
        "GET /v1/instances HTTP/1.1\nauthorization: Bearer ",
        "GET /v1/instances HTTP/1.1\nauthorization:",
        "POST /v1/register HTTP/1.1\ncontent-type: text/plain",
        "POST /v1/register HTTP/1.1\ncontent-type: application/json\ncontent-length: 99999999",
        servers,
        &format!("{servers}\nsrpc-service: Foo"),
    ] {
        let answer = raw(at, head, "");
        assert_eq!(answer.status, 401, "{head:?}: {answer:?}");
        assert!(answer.headers["www-authenticate"].starts_with("Bearer"), "{head:?}");
        answer.is_refusal("urn:srpc:unauthorized");
        assert_eq!(listed(at, OPS), before, "{head:?}");
    }

    // What is let in, in other ways of saying it.
    for shown in ["bearer", "BEARER", "Bearer "] {
        let answer =
            raw(at, &format!("GET /v1/instances HTTP/1.1\nAUTHORIZATION: {shown} {READER}"), "");
        assert_eq!(answer.status, 200, "{shown:?}: {answer:?}");
    }

    // The path of the seed's contract: by the service that is named, or by all.
    for (token, service, status) in
        [(FOO, "Bar", 403), (FOO, "", 403), (FOO, "Foo", 200), (WRITER, "", 200)]
    {
        let service = match service {
            "" => String::new(),
            service => format!("\nsrpc-service: {service}"),
        };
        let answer = raw(at, &format!("{servers}{service}\nauthorization: Bearer {token}"), "");
        assert_eq!(answer.status, status, "{token} {service:?}: {answer:?}");
        assert_eq!(listed(at, OPS) == before, status != 200, "{token} {service:?}");
    }
}

#[test]
fn each_lease_of_a_batch_is_answered_by_itself() {
    let file = File::new("batch", &lines());
    let (_registry, at, _) = registry(&["--tokens-file", file.path()]);
    let mut held = Vec::new();
    for (service, port) in [("Foo", 1), ("Bar", 2)] {
        let mut lease = instance(service, "one", port);
        let granted = ask(at, OPS, "POST /v1/register", &lease);
        lease["lease_id"] = granted.json()["lease_id"].clone();
        lease["id"] = json!("one");
        held.push(lease);
    }
    let mut unknown = held[1].clone();
    unknown["lease_id"] = json!("unknown");
    let renewed = ask(at, FOO, "POST /v1/renew", &json!({ "held": [held[1], held[0], unknown] }));
    let results = renewed.json()["results"].clone();
    assert_eq!((renewed.status, &results[1]["status"]), (200, &json!("renewed")), "{renewed:?}");
    assert_eq!(results[0]["type"], "urn:srpc:not-allowed");
    assert_eq!(results[0], results[2], "whether the lease exists is not told");
    let left = ask(at, FOO, "POST /v1/deregister", &json!({ "held": [held[1], held[0]] }));
    assert_eq!(left.status, 200, "{left:?}");
    assert_eq!(left.json()["results"][0]["type"], "urn:srpc:not-allowed");
    let rest = listed(at, OPS);
    assert_eq!((rest.len(), &rest[0]["service"]), (1, &json!("Bar")));
}

#[test]
fn where_it_starts_and_where_it_refuses_to() {
    let good = File::new("good", &lines());
    let bad = File::new("bad", &format!("ops read {OPS}\nreader {READER} read\n"));
    let short = File::new("short", "ops read,write secret-secret\n");
    let empty = File::new("empty", "# nobody yet\n");
    let environment = lines().replace('\n', ";").replace("# who may do what;", "");
    let socket = File::new("socket", "");
    std::fs::remove_file(socket.path()).unwrap();
    let unix = format!("unix@{}", socket.path());
    let both = format!("more read {UNKNOWN}");
    for (bind, environment, args, starts) in [
        ("127.0.0.1:0", None, &[][..], true),
        ("localhost:0", None, &[], true),
        (&unix, None, &[], cfg!(unix)),
        ("0.0.0.0:0", None, &[], false),
        ("0.0.0.0:0", None, &["--open-seed-path"], false),
        ("0.0.0.0:0", None, &["--insecure"], true),
        ("0.0.0.0:0", None, &["--tokens-file", good.path()], true),
        ("0.0.0.0:0", Some(&*environment), &[], true),
        ("0.0.0.0:0", Some(&*both), &["--tokens-file", good.path()], true),
        ("127.0.0.1:0", Some(&*environment), &["--tokens-file", good.path()], false),
        ("127.0.0.1:0", Some(""), &[], false),
        ("127.0.0.1:0", None, &["--tokens-file", bad.path()], false),
        ("127.0.0.1:0", None, &["--tokens-file", short.path(), "--insecure"], false),
        ("127.0.0.1:0", None, &["--tokens-file", empty.path()], false),
        ("127.0.0.1:0", None, &["--tokens-file", "/nowhere/tokens"], false),
        ("127.0.0.1:0", None, &["--tokens", OPS], false),
    ] {
        let variables: Vec<(&str, &str)> =
            environment.map(|text| ("SRPC_TOKENS", text)).into_iter().collect();
        let all = [&["registry", "--bind", bind], args].concat();
        match Process::try_listening_in(&variables, &all) {
            Ok((process, at)) => {
                assert!(starts, "{bind} {args:?} listens on {at}");
                process.signal("TERM");
                let ended = process.finish();
                assert_eq!(ended.code(), 0, "{}", ended.stderr);
                let warned = ended.stderr.contains("warning: whoever reaches");
                assert_eq!(warned, args.contains(&"--insecure"), "{}", ended.stderr);
            }
            Err(ended) => {
                assert!(!starts, "{bind} {args:?}: {}", ended.stderr);
                assert_eq!((ended.code(), &*ended.stdout), (2, ""), "{bind} {args:?}");
                for secret in [OPS, READER, "secret-secret"] {
                    let told = ended.stderr.replace(&args.join(" "), "");
                    assert!(args.contains(&secret) || !told.contains(secret), "{}", ended.stderr);
                }
            }
        }
    }
    for (file, line) in [(&bad, "line 2"), (&short, "line 1")] {
        let ended = srpc(&["registry", "--bind", "127.0.0.1:0", "--tokens-file", file.path()]);
        assert!(
            ended.stderr.contains(line) && ended.stderr.contains(file.path()),
            "{}",
            ended.stderr
        );
    }
    let ended = srpc(&["registry", "--bind", "0.0.0.0:0"]);
    for way_out in ["--tokens-file", "SRPC_TOKENS", "--insecure"] {
        assert!(ended.stderr.contains(way_out), "{}", ended.stderr);
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_others_may_read_is_warned_of() {
    for (mode, warned) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
        let file = File::new(&format!("mode-{mode:o}"), &lines());
        File::only_mine(&file.0, mode);
        let (process, _, _) = registry(&["--tokens-file", file.path()]);
        process.signal("TERM");
        let ended = process.finish();
        assert_eq!(ended.stderr.contains("others may read"), warned, "{mode:o}: {}", ended.stderr);
        assert!(!ended.stderr.contains(OPS), "{}", ended.stderr);
    }
}

#[test]
fn the_seeds_path_is_closed_unless_its_own_flag_opens_it() {
    let file = File::new("seed", &lines());
    for (bind, args, seed, v1) in [
        ("127.0.0.1:0", vec![], 200, 200),
        ("127.0.0.1:0", vec!["--tokens-file", file.path()], 401, 401),
        ("127.0.0.1:0", vec!["--tokens-file", file.path(), "--open-seed-path"], 200, 401),
        ("0.0.0.0:0", vec!["--insecure"], 403, 200),
        ("0.0.0.0:0", vec!["--insecure", "--open-seed-path"], 200, 200),
        ("0.0.0.0:0", vec!["--tokens-file", file.path()], 401, 401),
        ("0.0.0.0:0", vec!["--tokens-file", file.path(), "--open-seed-path"], 200, 401),
    ] {
        let (_registry, url) =
            Process::listening(&[&["registry", "--bind", bind], &args[..]].concat());
        let at = at(&url);
        let post = "POST /srpc/registry HTTP/1.1\nsrpc-servers: tcp@10.0.0.9:9";
        assert_eq!(raw(at, post, "").status, seed, "{bind} {args:?}");
        let list = raw(at, "GET /srpc/registry HTTP/1.1", "");
        assert_eq!(list.status, seed, "{bind} {args:?}");
        let servers = list.headers.get("srpc-servers").map(String::as_str);
        assert_eq!(servers, (seed == 200).then_some("tcp@10.0.0.9:9"), "{bind} {args:?}");
        assert_eq!(raw(at, "GET /v1/instances HTTP/1.1", "").status, v1, "{bind} {args:?}");
        for near in ["/srpc/registry/", "//srpc/registry", "/srpc/%72egistry", "/srpc/registry/x"] {
            let status =
                raw(at, &format!("POST {near} HTTP/1.1\nsrpc-servers: tcp@10.0.0.8:8"), "").status;
            assert_eq!(status, if v1 == 200 { 404 } else { 401 }, "{near} {args:?}");
        }
    }
}

#[test]
fn a_registry_on_loopback_answers_to_names_that_it_was_given() {
    let file = File::new("hosts", &lines());
    let status = |at: SocketAddr, host: &str, token: &str| {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = head(token, "GET /v1/services").replace('\n', "\r\n");
        write!(stream, "{head}\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    let (_open, at, _) = registry(&["--allow-host", "registry.test"]);
    for (host, expected) in [
        ("registry.test", 200),
        ("Registry.Test.:9999", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.test", 421),
        ("registry.test.evil", 421),
    ] {
        assert_eq!(status(at, host, ""), expected, "{host}");
    }
    let (_strict, at, _) = registry(&["--tokens-file", file.path()]);
    assert_eq!(status(at, "evil.test", READER), 200, "no page has a token");
    assert_eq!(status(at, "evil.test", ""), 401);
}

#[test]
fn the_command_shows_its_token_and_exits_7_without() {
    let tokens = File::new("tokens", &lines());
    let (_registry, _, url) = registry(&["--tokens-file", tokens.path()]);
    let file = |name: &str, token: &str| File::new(name, &format!("{token}\n"));
    let (foo, reader) = (file("foo", FOO), file("reader", READER));
    let unknown = file("unknown", UNKNOWN);
    let serve = ["serve", "--bind", "127.0.0.1:0", "--registry", &url, "--token-file", foo.path()];
    let (_server, address) = Process::listening(&serve);
    let call = ["call", "Foo", "Sum", r#"{"num1":1,"num2":2}"#];
    let bench = ["bench", "Foo", "Sum", r#"{"num1":1,"num2":2}"#, "-n", "10"];
    let list = ["list", "Foo", "-o", "name"];
    let all = [&list[..], &call, &bench];
    let reading = [("SRPC_TOKEN_FILE", reader.path()), ("SRPC_REGISTRY", &*url)];
    eventually(PATIENCE, "the server is listed", || {
        Process::start_in(&reading, &list).finish().stdout.trim() == address
    });
    for args in all {
        let run = |more: &[&str], environment: &[(&str, &str)]| {
            let ended = [args, &["--registry", &url], more].concat();
            Process::start_in(environment, &ended).finish()
        };
        let ended = run(&["--token-file", reader.path()], &[]);
        assert_eq!(ended.code(), 0, "{args:?}: {}", ended.stderr);
        let ended = run(&[], &[("SRPC_TOKEN", READER)]);
        assert_eq!(ended.code(), 0, "{args:?}: {}", ended.stderr);
        for ended in [
            run(&[], &[]),
            run(&[], &[("SRPC_TOKEN", UNKNOWN)]),
            run(&["--token-file", unknown.path()], &[("SRPC_TOKEN", READER)]),
            run(&["--token-file", foo.path()], &[]),
        ] {
            assert_eq!((ended.code(), &*ended.stdout), (7, ""), "{args:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(&url), "{args:?}: {}", ended.stderr);
            assert!(!ended.stderr.contains(UNKNOWN), "{args:?}: {}", ended.stderr);
        }
        for ended in [run(&["--token-file", "/nowhere"], &[]), run(&[], &[("SRPC_TOKEN", "short")])]
        {
            assert_eq!(ended.code(), 2, "{args:?}: {}", ended.stderr);
        }
    }

    let other = ["serve", "--service", "Bar", "--bind", "127.0.0.1:0", "--registry", &url];
    let (server, _) = Process::try_listening_in(&[("SRPC_TOKEN", FOO)], &other)
        .unwrap_or_else(|_| panic!("it starts"));
    eventually(PATIENCE, "its registration is refused", || {
        let said = server.said();
        said.contains("not allowed") && said.contains("write:Bar")
    });
}

#[cfg(unix)]
#[test]
fn a_hangup_reads_the_tokens_again() {
    let file = File::new("reload", &lines());
    let (registry, at, _) = registry(&["--tokens-file", file.path()]);
    let status = |token: &str| ask(at, token, "GET /v1/services", &Value::Null).status;
    assert_eq!((status(READER), status(UNKNOWN)), (200, 401));
    std::fs::write(&file.0, format!("new read {UNKNOWN}\n")).unwrap();
    registry.signal("HUP");
    eventually(PATIENCE, "the new token is known", || status(UNKNOWN) == 200);
    assert_eq!(status(READER), 401);
    std::fs::write(&file.0, "new read\n").unwrap();
    registry.signal("HUP");
    eventually(PATIENCE, "the bad file is reported", || registry.said().contains("line 1"));
    assert_eq!(status(UNKNOWN), 200, "a bad file changes nothing");
}

/// Connects from another address of this machine.
#[cfg(target_os = "linux")]
fn from(host: [u8; 4], to: SocketAddr) -> TcpStream {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime =
        RUNTIME.get_or_init(|| Builder::new_current_thread().enable_all().build().unwrap());
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((host, 0))).unwrap();
        socket.connect(to).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream
}

fn is_429(answer: &Answer, kind: &str) {
    assert_eq!(answer.status, 429, "{answer:?}");
    answer.is_refusal(kind);
    let seconds: u64 = answer.headers["retry-after"].parse().unwrap();
    assert!((1..=60).contains(&seconds), "{answer:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn who_asks_too_often_is_put_off_and_nobody_else() {
    const RATE: &str = "urn:srpc:too-many-requests";
    const TTL: Duration = Duration::from_secs(5);
    let file = File::new("rate", &lines());
    let tokens = ["--tokens-file", file.path()];
    let get = |token: &str| head(token, "GET /v1/services");
    let renew = |token: &str| head(token, "POST /v1/renew");

    // By address, with and without a token; a server that renews meanwhile stays listed.
    let (_registry, at, url) = registry(&[&tokens[..], &["--rate-per-host", "5"]].concat());
    let own = File::new("own", FOO);
    let ttl = format!("{}s", TTL.as_secs());
    let serve = ["serve", "--bind", "127.0.0.1:0", "--ttl", &ttl, "--registry", &url];
    let (_server, address) =
        Process::listening(&[&serve[..], &["--token-file", own.path()]].concat());
    // From a third address, whose rate this may use up.
    eventually(PATIENCE, "the server is listed", || {
        let list = head(OPS, "GET /v1/instances");
        let list = over(from([127, 0, 0, 3], at), &list, "").unwrap().json();
        list["instances"].as_array().is_some_and(|instances| instances.len() == 1)
    });
    let started = Instant::now();
    let (mut refused, mut well) = (0, 0);
    // Longer than the lease.
    while refused <= 100 || well <= 3 || started.elapsed() <= TTL + Duration::from_secs(1) {
        assert!(started.elapsed() < PATIENCE, "{refused} refused, {well} answered");
        for _ in 0..60 {
            let token = if refused % 2 == 0 { UNKNOWN } else { READER };
            let answer = over(from([127, 0, 0, 2], at), &get(token), "").unwrap();
            if answer.status == 429 {
                is_429(&answer, RATE);
                refused += 1;
            }
        }
        let listed = listed(at, OPS);
        assert_eq!(listed[0]["address"], address, "the server renews, whoever floods");
        well += 1;
        let answer = over(from([127, 0, 0, 2], at), &renew(WRITER), r#"{"held":[]}"#).unwrap();
        assert_eq!(answer.status, 200, "renewals are counted by themselves: {answer:?}");
        // The list above counts against a rate too.
        std::thread::sleep(Duration::from_millis(500));
    }

    // By token: another one is served.
    let (_registry, at, _) = registry(&[&tokens[..], &["--rate-per-token", "2"]].concat());
    let refused = (0..60).map(|_| raw(at, &get(READER), "")).find(|answer| answer.status == 429);
    is_429(&refused.unwrap(), RATE);
    assert_eq!(raw(at, &get(OPS), "").status, 200);

    // In all: strangers have a rate of their own, which takes nothing from anybody.
    let (_registry, at, _) = registry(&[&tokens[..], &["--rate", "2"]].concat());
    let strangers: Vec<_> = (0..60).map(|_| raw(at, &get(UNKNOWN), "")).collect();
    assert_eq!(strangers[0].status, 401);
    is_429(strangers.iter().find(|answer| answer.status != 401).unwrap(), RATE);
    assert_eq!(raw(at, &get(OPS), "").status, 200);
    for token in [READER, OPS] {
        let refused = (0..60).map(|_| raw(at, &get(token), "")).find(|answer| answer.status == 429);
        is_429(&refused.unwrap(), RATE);
    }
    assert_eq!(raw(at, &renew(OPS), r#"{"held":[]}"#).status, 200);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_registry_renews_what_it_holds() {
    const FULL: &str = "urn:srpc:full";
    let file = File::new("full", &lines());
    let register = |at: SocketAddr, host: u8, token: &str, n: u16| {
        let body = instance("Foo", &format!("{n}"), n).to_string();
        over(from([127, 0, 0, host], at), &head(token, "POST /v1/register"), &body).unwrap()
    };
    // The cap, and who takes the third place: another address, another token, nobody.
    for (cap, by_host, by_token) in [
        ("--max-instances", 429, 429),
        ("--max-instances-per-host", 200, 429),
        ("--max-instances-per-token", 429, 200),
    ] {
        let (_registry, at, _) = registry(&["--tokens-file", file.path(), cap, "2"]);
        let leases: Vec<Value> = (1..=2)
            .map(|n| {
                let mut held = instance("Foo", &format!("{n}"), n);
                let granted = register(at, 2, WRITER, n);
                assert_eq!(granted.status, 200, "{cap}: {granted:?}");
                held["lease_id"] = granted.json()["lease_id"].clone();
                held
            })
            .collect();
        is_429(&register(at, 2, WRITER, 3), FULL);
        let renewed = ask(at, WRITER, "POST /v1/renew", &json!({ "held": leases }));
        assert_eq!(renewed.json()["results"], json!([{"status":"renewed"},{"status":"renewed"}]));
        assert_eq!(register(at, 2, WRITER, 2).status, 200, "{cap}: the same again is a renewal");
        assert_eq!(register(at, 3, WRITER, 3).status, by_host, "{cap}");
        assert_eq!(register(at, 2, FOO, 4).status, by_token, "{cap}");
        let seed = "POST /srpc/registry HTTP/1.1\nsrpc-servers: tcp@10.0.0.1:1";
        let again = format!("{seed}\nauthorization: Bearer {OPS}");
        assert_eq!(over(from([127, 0, 0, 2], at), &again, "").unwrap().status, 200, "{cap}");
    }

    let (_registry, at, _) =
        registry(&["--tokens-file", file.path(), "--max-registered-bytes", "4KiB"]);
    let full = (1..100).map(|n| register(at, 2, WRITER, n)).find(|answer| answer.status != 200);
    is_429(&full.unwrap(), FULL);
    let held = listed(at, OPS).len();
    assert!((4..=8).contains(&held), "{held}");
    assert_eq!(register(at, 2, WRITER, 1).status, 200);
}

#[cfg(target_os = "linux")]
#[test]
fn one_address_that_takes_all_its_connections_takes_none_of_anothers() {
    let (_registry, at, _) = registry(&["--max-connections-per-host", "8"]);
    let list = raw(at, "GET /v1/instances?service=Foo HTTP/1.1", "").json();
    let revision = list["revision"].as_str().unwrap();
    let poll = format!("GET /v1/instances?service=Foo&revision={revision}&wait=60s HTTP/1.1");
    let other = [127, 0, 0, 2];
    // Half of its connections are held by long polls, and no more.
    let mut polls: Vec<TcpStream> = (0..4).map(|_| from(other, at)).collect();
    for stream in &mut polls {
        stream.write_all(format!("{poll}\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
    }
    // A poll that does not wait gets `Retry-After` once as many as may be are held.
    let probe = poll.replace("wait=60s", "wait=0s");
    eventually(PATIENCE, "its polls are held", || {
        over(from(other, at), &probe, "").unwrap().headers.contains_key("retry-after")
    });
    for _ in 0..20 {
        let asked = Instant::now();
        let answer = over(from(other, at), &poll, "").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(asked.elapsed() < Duration::from_secs(50), "it is not held");
    }
    let renew = "POST /v1/renew HTTP/1.1\ncontent-type: application/json";
    assert_eq!(over(from(other, at), renew, r#"{"held":[]}"#).unwrap().status, 200);
    // The others ask nothing: they give way, and the polls do not.
    let _silent: Vec<TcpStream> = (0..4).map(|_| from(other, at)).collect();
    for _ in 0..20 {
        let answer = over(from(other, at), "GET /v1/services HTTP/1.1", "").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for stream in &polls {
        stream.set_nonblocking(true).unwrap();
        let peeked = stream.peek(&mut [0]);
        assert!(peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it is held");
    }
    assert_eq!(raw(at, "GET /v1/services HTTP/1.1", "").status, 200);

    // All in use: one more is told why, and so is the operator; another address is served.
    let (server, at, _) =
        registry(&["--max-connections-per-host", "2", "--max-polls-per-host", "2"]);
    let list = raw(at, "GET /v1/instances?service=Foo HTTP/1.1", "").json();
    let revision = list["revision"].as_str().unwrap();
    let poll = format!("GET /v1/instances?service=Foo&revision={revision}&wait=60s HTTP/1.1");
    let mut polls: Vec<TcpStream> = (0..2).map(|_| from(other, at)).collect();
    for stream in &mut polls {
        stream.write_all(format!("{poll}\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
    }
    eventually(PATIENCE, "one more is refused", || {
        let refused = over(from(other, at), "GET /v1/services HTTP/1.1", "").unwrap();
        refused.status == 429
    });
    let refused = over(from(other, at), "GET /v1/services HTTP/1.1", "").unwrap();
    is_429(&refused, "urn:srpc:too-many-requests");
    assert_eq!(raw(at, "GET /v1/services HTTP/1.1", "").status, 200);
    server.signal("KILL");
    let said = server.finish().stderr;
    let lines = said.lines().filter(|line| line.contains("refused: a limit is reached")).count();
    assert_eq!(lines, 1, "{said}");
    assert!(said.contains("too many connections from this host") && said.contains("127.0.0.2"));
}
