//! The server, asked request by request and over a network in memory.

#[path = "tests/fronts.rs"]
mod fronts;

use std::future::pending;

use async_trait::async_trait;
use http::HeaderMap;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::transport::{Accept, Memory, Peer, Stream, Transport};

const AT: &str = "tcp@registry:9999";
const SEED: &str = "/srpc/registry";

async fn ask(
    server: &RegistryServer,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let (parts, body) = server.handle(request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

async fn post(server: &RegistryServer, path: &str, body: Value) -> (u16, Value) {
    let json = [("content-type", "application/json; charset=utf-8")];
    let (status, headers, body) = ask(server, "POST", path, &json, &body.to_string()).await;
    let expected = if status == 200 { api::JSON } else { api::PROBLEM_JSON };
    assert_eq!(headers[CONTENT_TYPE], expected, "{path}");
    (status, serde_json::from_str(&body).unwrap())
}

async fn get(server: &RegistryServer, target: &str) -> (u16, Value) {
    let (status, _, body) = ask(server, "GET", target, &[], "").await;
    (status, serde_json::from_str(&body).unwrap())
}

/// The seed's list, by its header; its body must say the same.
async fn seed_list(server: &RegistryServer, query: &str) -> String {
    let (status, headers, body) = ask(server, "GET", &format!("{SEED}{query}"), &[], "").await;
    assert_eq!(status, 200);
    let header = headers["srpc-servers"].to_str().unwrap().to_owned();
    assert_eq!(body.lines().collect::<Vec<_>>().join(","), header);
    header
}

/// A server in front of another registry.
fn front(backend: &MemoryRegistry) -> RegistryServerBuilder {
    let (discovery, registry) = (Arc::new(backend.clone()), Arc::new(backend.clone()));
    RegistryServer::builder().backend(discovery, registry)
}

fn instance(id: &str, address: &str, epoch: u64) -> Value {
    json!({ "id": id, "address": address, "epoch": epoch })
}

#[tokio::test(start_paused = true)]
async fn every_row_of_the_seeds_contract() {
    for server in [RegistryServer::new(), front(&MemoryRegistry::new()).build()] {
        keeps_every_row_of_the_seeds_contract(server).await;
    }
}

async fn keeps_every_row_of_the_seeds_contract(server: RegistryServer) {
    assert_eq!(seed_list(&server, "").await, "", "the header is there, though the list is empty");
    let good = ("srpc-servers", "tcp@b:2");
    for (method, headers, status) in [
        ("POST", vec![good], 200),
        ("POST", vec![good], 200),
        ("POST", vec![("Srpc-Servers", "tcp@a:1")], 200),
        ("POST", vec![("srpc-servers", "tcp@[::]:7")], 200),
        ("POST", vec![("srpc-servers", "tcp@0.0.0.0:7")], 200),
        ("POST", vec![("srpc-servers", "tcp@c:3"), ("srpc-service", "Foo")], 200),
        ("POST", vec![], 500),
        ("POST", vec![("srpc-servers", "")], 500),
        ("POST", vec![("srpc-servers", "nonsense")], 400),
        ("POST", vec![("srpc-servers", "tcp@x:0")], 400),
        ("POST", vec![("srpc-servers", "tcp@x:65536")], 400),
        ("POST", vec![("srpc-servers", "tcp@x:1,tcp@y:2")], 400),
        ("POST", vec![good, ("srpc-servers", "tcp@x:1")], 400),
        ("POST", vec![("srpc-servers", "tcp@x:1"), ("srpc-service", "a/b")], 400),
        ("POST", vec![("srpc-servers", "tcp@x:1"), ("srpc-service", "")], 400),
        ("PUT", vec![good], 405),
        ("DELETE", vec![], 405),
        ("HEAD", vec![], 405),
        ("OPTIONS", vec![], 405),
    ] {
        let (told, answered, body) = ask(&server, method, SEED, &headers, "").await;
        assert_eq!(told, status, "{method} {headers:?}: {body}");
        let allow = answered.get("allow").map(|value| value.to_str().unwrap());
        assert_eq!(allow, (status == 405).then_some("GET, POST"), "{method}");
        assert!(!answered.contains_key("srpc-servers"));
    }
    let all = "tcp@0.0.0.0:7,tcp@[::]:7,tcp@a:1,tcp@b:2,tcp@c:3";
    assert_eq!(seed_list(&server, "").await, all);
    assert_eq!(seed_list(&server, "?x=1").await, all, "a query that says nothing");
    assert_eq!(seed_list(&server, "?service=Foo").await, "tcp@c:3");
    assert_eq!(seed_list(&server, "?service=Bar").await, "");
    for bad in ["?service=a/b", "?service=", "?service=%zz", "?service=A&service=B"] {
        let (status, _, _) = ask(&server, "GET", &format!("{SEED}{bad}"), &[], "").await;
        assert_eq!(status, 400, "{bad}");
    }
    for (query, service) in [("", None), ("?x=1", None), ("?service=Foo", Some("Foo"))] {
        let (_, headers, _) = ask(&server, "GET", &format!("{SEED}{query}"), &[], "").await;
        let told = headers.get(api::SERVICE).map(|told| told.to_str().unwrap());
        assert_eq!(told, service, "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_seed_client_sees_of_other_registrations() {
    let server = RegistryServer::builder().ttl(Some(Duration::from_secs(60))).build();
    for (service, id, address, health) in [
        ("Foo", "1", "tcp@a:1", "up"),
        ("Bar", "1", "tcp@a:1", "up"),
        ("Foo", "2", "tcp@b:1", "draining"),
        ("Foo", "3", "tcp@c:1", "unready"),
    ] {
        let instance = json!({ "id": id, "address": address, "health": health });
        let body = json!({ "service": service, "ttl_ms": 10_000, "instance": instance });
        assert_eq!(post(&server, api::REGISTER, body).await.0, 200);
    }
    assert_eq!(seed_list(&server, "").await, "tcp@a:1", "once, and only who is up");

    sleep(Duration::from_secs(8)).await;
    ask(&server, "POST", SEED, &[("srpc-servers", "tcp@a:1")], "").await;
    sleep(Duration::from_secs(8)).await;
    assert_eq!(seed_list(&server, "").await, "tcp@a:1", "renewed");
    assert_eq!(server.registry().unwrap().list(None).entries.len(), 2, "nothing was added");
    sleep(Duration::from_secs(8)).await;
    assert_eq!(seed_list(&server, "").await, "");
}

/// One address in several writings has one holder, and no writing of the unspecified one is taken.
#[tokio::test(start_paused = true)]
async fn spelling_is_not_identity() {
    for server in [RegistryServer::new(), front(&MemoryRegistry::new()).build()] {
        let mut n = 0;
        for (service, addresses) in [
            ("Name", ["tcp@host:7", "tcp@Host:7", "tcp@host.:7"]),
            ("Six", ["tcp@[::1]:7", "tcp@[0:0::1]:7", "tcp@[0000:0::1]:7"]),
            ("Four", ["tcp@10.0.0.1:7", "tcp@10.0.0.1:07", "tcp@[::ffff:10.0.0.1]:7"]),
        ] {
            for address in addresses {
                n += 1;
                let instance = instance(&format!("i{n}"), address, n);
                let body = json!({ "service": service, "instance": instance });
                assert_eq!(post(&server, api::REGISTER, body).await.0, 200, "{address}");
            }
            let (_, list) = get(&server, &format!("/v1/instances?service={service}")).await;
            assert_eq!(list["instances"].as_array().unwrap().len(), 1, "{service}");
        }
        for address in
            ["tcp@0:7", "tcp@0x0:7", "tcp@000.0.0.0:7", "tcp@0.0:7", "tcp@[::ffff:0:0]:7"]
        {
            let body = json!({ "service": "Unspecified", "instance": instance("u", address, 1) });
            assert_eq!(post(&server, api::REGISTER, body).await.0, 400, "{address}");
        }
        for address in ["tcp@host.:7", "tcp@HOST:7"] {
            let headers = [("srpc-servers", address), ("srpc-service", "Posted")];
            ask(&server, "POST", SEED, &headers, "").await;
        }
        assert_eq!(seed_list(&server, "?service=Posted").await.split(',').count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_life_of_a_lease_over_v1() {
    let server = RegistryServer::builder().ttl(Some(Duration::from_secs(60))).build();
    let full = json!({
        "id": "one", "address": "tcp@a:1", "epoch": 5, "weight": 3, "zone": "z", "version": "v",
        "metadata": { "k": "v" }, "health": "up", "a field": ["of a newer client"],
    });
    let body = json!({ "service": "Foo", "ttl_ms": 600_000, "instance": full, "more": 1 });
    let (status, granted) = post(&server, api::REGISTER, body).await;
    assert_eq!((status, &granted["ttl_ms"]), (200, &json!(60_000)), "no more than the server's");
    let lease = granted["lease_id"].as_str().unwrap();

    let (_, list) = get(&server, "/v1/instances?service=Foo").await;
    assert_eq!(list["revision"], granted["revision"]);
    assert_eq!((&list["service"], &list["warming"]), (&json!("Foo"), &json!(true)));
    let listed = &list["instances"][0];
    for field in ["id", "address", "epoch", "weight", "zone", "version", "metadata", "health"] {
        assert_eq!(listed[field], full[field], "{field}");
    }
    assert_eq!(listed["service"], "Foo");
    assert_eq!(listed["expires_in_ms"], 60_000);
    assert_eq!(get(&server, api::SERVICES).await.1, json!({ "services": ["Foo"] }));

    let held = |lease: &str, epoch: u64| {
        json!({
            "lease_id": lease, "service": "Foo", "ttl_ms": 60_000,
            "instance": instance("one", "tcp@a:1", epoch),
        })
    };
    let (status, renewed) = post(&server, api::RENEW, json!({ "held": [held(lease, 5)] })).await;
    let name = server.registry().unwrap().incarnation();
    let expected = json!({ "results": [{ "status": "renewed" }], "registry": &*name });
    assert_eq!((status, renewed), (200, expected));

    let both = json!({ "held": [held("other", 5), held(lease, 6)] });
    let (status, renewed) = post(&server, api::RENEW, both).await;
    let lost = json!({ "status": "lost", "type": "urn:srpc:unknown-lease" });
    assert_eq!((status, &renewed["results"]), (200, &json!([lost, { "status": "renewed" }])));

    let (status, problem) = post(&server, api::RENEW, json!({ "held": [held("other", 6)] })).await;
    assert_eq!((status, &problem["type"]), (404, &json!("urn:srpc:unknown-lease")));
    assert_eq!(problem["results"], json!([lost]));

    let (status, problem) = post(&server, api::RENEW, json!({ "held": [held(lease, 4)] })).await;
    assert_eq!((status, &problem["held_epoch"]), (409, &json!(6)));
    assert_eq!(problem["results"][0]["held_epoch"], 6);
    let stale = json!({ "service": "Foo", "instance": instance("one", "tcp@a:1", 4) });
    let (status, problem) = post(&server, api::REGISTER, stale).await;
    assert_eq!((status, &problem["type"]), (409, &json!("urn:srpc:stale-epoch")));
    assert_eq!(post(&server, api::RENEW, json!({ "held": [] })).await.0, 200);

    let drain = json!({ "service": "Foo", "id": "one" });
    assert_eq!(post(&server, api::DRAIN, drain).await.0, 200);
    let (_, list) = get(&server, api::INSTANCES).await;
    assert_eq!(list["instances"][0]["health"], "draining");
    assert_eq!(list.get("service"), None);
    let (status, problem) =
        post(&server, api::DRAIN, json!({ "service": "Foo", "id": "two" })).await;
    assert_eq!((status, &problem["type"]), (404, &json!("urn:srpc:unknown-instance")));

    let leaving = |lease: &str, epoch: Option<u64>| {
        let mut leaving = json!({ "lease_id": lease, "service": "Foo", "id": "one" });
        if let Some(epoch) = epoch {
            leaving["epoch"] = json!(epoch);
        }
        json!({ "held": [leaving] })
    };
    for (body, left) in [
        (leaving("other", None), 1),
        (leaving(lease, Some(5)), 1),
        (leaving(lease, None), 0),
        (leaving(lease, None), 0),
    ] {
        assert_eq!(post(&server, api::DEREGISTER, body.clone()).await, (200, json!({})));
        assert_eq!(server.registry().unwrap().list(None).entries.len(), left, "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_is_held_until_something_changes() {
    let server = RegistryServer::new();
    let (_, empty) = get(&server, "/v1/instances?service=Foo").await;
    let revision = empty["revision"].as_str().unwrap().to_owned();

    let start = Instant::now();
    let same = format!("/v1/instances?service=Foo&revision={revision}&wait=20s");
    let (status, held) = get(&server, &same).await;
    assert_eq!((status, &held["revision"]), (200, &json!(revision)));
    assert_eq!(start.elapsed().as_secs(), 20);
    for at_once in [
        "/v1/instances?service=Foo&revision=unknown-1&wait=20s".to_owned(),
        "/v1/instances?service=Foo&wait=20s".to_owned(),
        format!("/v1/instances?service=Foo&revision={revision}"),
    ] {
        let start = Instant::now();
        assert_eq!(get(&server, &at_once).await.0, 200);
        assert_eq!(start.elapsed(), Duration::ZERO, "{at_once}");
    }

    let waiting = tokio::spawn({
        let server = server.clone();
        async move { (get(&server, &same).await, Instant::now()) }
    });
    sleep(Duration::from_secs(3)).await;
    let body = json!({ "service": "Foo", "instance": instance("one", "tcp@a:1", 1) });
    post(&server, api::REGISTER, body).await;
    let registered = Instant::now();
    let ((_, changed), answered) = waiting.await.unwrap();
    assert_eq!(changed["instances"][0]["id"], "one");
    assert_eq!(answered, registered);
}

fn limits() -> Limits {
    RegistryServer::builder().limits
}

async fn start(net: &Memory, server: RegistryServer) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let listener = net.bind(&AT.parse().unwrap()).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let shutdown = async move {
            let _ = stopped.await;
        };
        server.serve(listener, shutdown).await.unwrap();
    });
    (stop, serving)
}

/// Sends these bytes, and reads until the server closes.
async fn raw(net: &Memory, request: &str) -> String {
    let mut stream = net.connect(&AT.parse().unwrap()).await.unwrap();
    // A server that closes at once has not read it.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

const GET_LIST: &str = "GET /srpc/registry HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_shutdown_answers_long_polls_at_once_and_ends() {
    let net = Memory::new();
    let server = RegistryServer::new();
    let revision = server.registry().unwrap().list(Some(&"Foo".parse().unwrap())).revision;
    let (stop, serving) = start(&net, server).await;
    let idle = net.connect(&AT.parse().unwrap()).await.unwrap();
    let polling = tokio::spawn({
        let net = net.clone();
        let target = format!("/v1/instances?service=Foo&revision={revision}&wait=60s");
        async move { raw(&net, &format!("GET {target} HTTP/1.1\r\nhost: r\r\n\r\n")).await }
    });
    sleep(Duration::from_secs(2)).await;
    let start = Instant::now();
    stop.send(()).unwrap();
    let answer = polling.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serving.await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    drop(idle);
    assert!(net.connect(&AT.parse().unwrap()).await.is_err(), "the address is free");
}

#[tokio::test(start_paused = true)]
async fn silence_is_cut() {
    let net = Memory::new();
    let server = RegistryServer::new();
    let (_stop, _serving) = start(&net, server).await;
    let head = "POST /v1/register HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n";
    for (request, seconds, status) in [
        ("", 10, ""),
        ("GET /srpc/reg", 10, ""),
        (&*format!("{head}content-length: 100\r\n\r\n{{"), 30, "HTTP/1.1 408"),
        (&*format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{"), 30, "HTTP/1.1 408"),
    ] {
        let start = Instant::now();
        let answer = raw(&net, request).await;
        assert!(answer.starts_with(status), "{request:?}: {answer}");
        assert_eq!(answer.is_empty(), status.is_empty(), "{request:?}: {answer}");
        assert_eq!(start.elapsed().as_secs(), seconds, "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_silent_connection_is_evicted_and_one_in_use_is_not() {
    let net = Memory::new();
    let server = RegistryServer::builder().max_connections_per_host(2).build();
    let revision = server.registry().unwrap().list(Some(&"Foo".parse().unwrap())).revision;
    let (_stop, _serving) = start(&net, server).await;
    let mut polling = net.connect(&AT.parse().unwrap()).await.unwrap();
    let target = format!("/v1/instances?service=Foo&revision={revision}&wait=60s");
    polling
        .write_all(format!("GET {target} HTTP/1.1\r\nhost: r\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut silent = net.connect(&AT.parse().unwrap()).await.unwrap();
    let start = Instant::now();
    assert!(raw(&net, GET_LIST).await.starts_with("HTTP/1.1 200"));
    assert_eq!(start.elapsed().as_secs(), 1, "a connection may be opening for a second");
    assert_eq!(silent.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert!(raw(&net, GET_LIST).await.starts_with("HTTP/1.1 200"), "the slot is given back");
    let mut answer = [0; 12];
    let read = polling.read_exact(&mut answer);
    assert!(tokio::time::timeout(Duration::from_secs(5), read).await.is_err(), "it is held");
}

/// As a registrar does: a renewal every 5 s over a connection that is kept. How many were answered, and
/// how many were not.
async fn renewing(net: Memory, first: Duration, until: Instant) -> (usize, usize) {
    let renew = "POST /v1/renew HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n\
                 content-length: 11\r\n\r\n{\"held\":[]}";
    let (mut answered, mut failed, mut kept) = (0, 0, None);
    sleep(first).await;
    while Instant::now() < until {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => net.connect(&AT.parse().unwrap()).await.unwrap(),
        };
        let mut answer = vec![0; 4096];
        let is_sent = stream.write_all(renew.as_bytes()).await.is_ok();
        let read = if is_sent { stream.read(&mut answer).await.unwrap_or(0) } else { 0 };
        let answer = String::from_utf8_lossy(&answer[..read]).to_lowercase();
        match answer.starts_with("http/1.1 200") {
            true => answered += 1,
            false => failed += 1,
        }
        if read > 0 && !answer.contains("connection: close") {
            kept = Some(stream);
        }
        sleep(Duration::from_secs(5)).await;
    }
    (answered, failed)
}

#[tokio::test(start_paused = true)]
async fn two_thousand_behind_one_address_all_renew() {
    let net = Memory::new();
    let (_stop, _serving) = start(&net, RegistryServer::new()).await;
    let until = Instant::now() + Duration::from_secs(60);
    let members: Vec<_> = (0..2000)
        .map(|n| tokio::spawn(renewing(net.clone(), Duration::from_millis(n), until)))
        .collect();
    for member in members {
        let (answered, failed) = member.await.unwrap();
        assert!(answered >= 11 && failed == 0, "{answered} answered, {failed} not");
    }
}

#[tokio::test(start_paused = true)]
async fn two_thousand_at_one_moment_are_all_answered() {
    let net = Memory::new();
    let (_stop, _serving) = start(&net, RegistryServer::new()).await;
    let until = Instant::now() + Duration::from_secs(1);
    let members: Vec<_> =
        (0..2000).map(|_| tokio::spawn(renewing(net.clone(), Duration::ZERO, until))).collect();
    for member in members {
        assert_eq!(member.await.unwrap(), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_beyond_the_cap_is_told_why() {
    let net = Memory::new();
    let server =
        RegistryServer::builder().max_connections_per_host(1).max_polls_per_host(1).build();
    let revision = server.registry().unwrap().list(Some(&"Foo".parse().unwrap())).revision;
    let (_stop, _serving) = start(&net, server).await;
    let mut busy = net.connect(&AT.parse().unwrap()).await.unwrap();
    let target = format!("/v1/instances?service=Foo&revision={revision}&wait=60s");
    busy.write_all(format!("GET {target} HTTP/1.1\r\nhost: r\r\n\r\n").as_bytes()).await.unwrap();
    sleep(Duration::from_millis(10)).await;
    let answer = raw(&net, GET_LIST).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    assert!(answer.contains("too many connections from this host"), "{answer}");
}

/// The body follows its header in a packet of its own, and then the next request on the same connection.
#[tokio::test(start_paused = true)]
async fn a_refused_request_is_read_whole_or_its_answer_says_that_it_closes() {
    let net = Memory::new();
    let server = RegistryServer::builder().tokens(tokens()).rate_per_host(1).build();
    let (_stop, _serving) = start(&net, server).await;
    let shop = format!("authorization: Bearer {SHOP}");
    let json = "content-type: application/json";
    let mebibyte = 1 << 20;
    for (first, headers, length, sent, status, closes) in [
        ("POST /v1/register", String::new(), 20, 20, 401, false),
        ("POST /v1/register", format!("{shop}\r\ncontent-type: text/plain"), 20, 20, 415, false),
        ("POST /v1/register", format!("{shop}\r\n{json}"), 20, 20, 400, false),
        ("POST /v1/nothing", shop.clone(), 20, 20, 404, false),
        ("GET /v1/register", shop.clone(), 20, 20, 405, false),
        ("POST /v1/nothing", format!("{shop}\r\nexpect: 100-continue"), 20, 0, 404, true),
        ("PUT /v1/register", shop.clone(), mebibyte, 0, 405, true),
        ("POST /v1/register", format!("{shop}\r\n{json}"), 2 * mebibyte, 0, 413, true),
        ("POST /v1/nothing", shop.clone(), 20, 10, 404, true),
    ] {
        sleep(Duration::from_secs(10)).await;
        let mut stream = net.connect(&AT.parse().unwrap()).await.unwrap();
        let mut head = format!("{first} HTTP/1.1\r\nhost: r\r\ncontent-length: {length}\r\n");
        if !headers.is_empty() {
            head.push_str(&headers);
            head.push_str("\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        sleep(Duration::from_millis(3)).await;
        stream.write_all(&vec![b'x'; sent]).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
        assert_eq!(answer.contains("connection: close"), closes, "{head}: {answer}");
        let mut next = Vec::new();
        if !closes {
            stream.write_all(GET_LIST.as_bytes()).await.unwrap();
        }
        stream.read_to_end(&mut next).await.unwrap();
        assert_eq!(next.is_empty(), closes, "{head}: {}", String::from_utf8_lossy(&next));
    }
}

#[tokio::test(start_paused = true)]
async fn watchers_are_told_when_to_ask_again_and_ask_less_than_they_may() {
    let server = RegistryServer::builder().rate_per_host(40).build();
    let list = async |peer: &Peer| {
        let request = Request::builder().uri("/v1/instances?service=Foo").extension(peer.clone());
        let answer = server.handle(request.body(Full::<Bytes>::default()).unwrap()).await;
        assert_eq!(answer.status(), 200);
        let again = answer.headers().get(http::header::RETRY_AFTER);
        again.map(|value| value.to_str().unwrap().parse::<u64>().unwrap())
    };
    let (one, other) = (Peer::new("one"), Peer::new("other"));
    assert_eq!(list(&one).await, None, "one alone is told nothing");
    let mut told = Vec::new();
    for _ in 0..50 {
        told.push(list(&one).await.unwrap_or(0));
    }
    // A quarter of 40 a second.
    assert!(told.is_sorted(), "{told:?}");
    assert_eq!(told.last(), Some(&6), "{told:?}");
    assert_eq!(list(&other).await, None, "another host has turns of its own");
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_an_answer_is_cut() {
    let net = Memory::new();
    let listener = net.bind(&AT.parse().unwrap()).await.unwrap();
    let limits = Limits { max_connections: 2, ..limits() };
    let handle = |_: Request<Incoming>, _| async {
        respond(StatusCode::OK, "text/plain", vec![b'x'; 1024 * 1024])
    };
    let _serving = tokio::spawn(async move {
        accept::run(listener, pending(), &limits, 64, Arc::default(), budget(), handle).await;
    });
    let mut stalled = net.connect(&AT.parse().unwrap()).await.unwrap();
    stalled.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    sleep(Duration::from_secs(31)).await;
    let mut taken = Vec::new();
    let _ = stalled.read_to_end(&mut taken).await;
    assert!(taken.starts_with(b"HTTP/1.1 200") && taken.len() < 1024 * 1024, "{}", taken.len());

    // Where its slot is needed it loses it before.
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut stream = net.connect(&AT.parse().unwrap()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        stalled.push(stream);
    }
    sleep(Duration::from_secs(2)).await;
    assert!(raw(&net, GET_LIST).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(start_paused = true)]
async fn a_panic_closes_its_connection_and_no_other() {
    let net = Memory::new();
    let listener = net.bind(&AT.parse().unwrap()).await.unwrap();
    let handle = |request: Request<Incoming>, _| async move {
        assert_ne!(request.uri().path(), "/panic");
        assert_eq!(request.extensions().get::<Peer>().unwrap(), &Peer::new("memory"));
        respond(StatusCode::OK, "text/plain", "fine")
    };
    let _serving = tokio::spawn(async move {
        accept::run(listener, pending(), &limits(), 64, Arc::default(), budget(), handle).await;
    });
    assert_eq!(raw(&net, "GET /panic HTTP/1.1\r\n\r\n").await, "");
    assert!(raw(&net, GET_LIST).await.ends_with("fine"));
}

#[tokio::test(start_paused = true)]
async fn a_panic_whose_payload_panics_closes_its_connection_and_no_other() {
    struct PanicsOnDrop;
    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("dropped, on purpose");
            }
        }
    }

    let net = Memory::new();
    let listener = net.bind(&AT.parse().unwrap()).await.unwrap();
    let handle = |request: Request<Incoming>, _| async move {
        if request.uri().path() == "/panic" {
            std::panic::panic_any(PanicsOnDrop);
        }
        respond(StatusCode::OK, "text/plain", "fine")
    };
    let _serving = tokio::spawn(async move {
        accept::run(listener, pending(), &limits(), 64, Arc::default(), budget(), handle).await
    });
    assert_eq!(raw(&net, "GET /panic HTTP/1.1\r\n\r\n").await, "");
    assert!(raw(&net, GET_LIST).await.ends_with("fine"));
}

#[tokio::test(start_paused = true)]
async fn failed_accepts_end_nothing() {
    struct Flaky {
        inner: Listener,
        failures: u32,
    }

    #[async_trait]
    impl Accept for Flaky {
        async fn accept(&mut self) -> io::Result<Stream> {
            if self.failures > 0 {
                self.failures -= 1;
                return Err(io::Error::other("too many open files"));
            }
            self.inner.accept().await
        }
    }

    let net = Memory::new();
    let inner = net.bind(&AT.parse().unwrap()).await.unwrap();
    let listener = Listener::new(Flaky { inner, failures: 9 }, AT.parse().unwrap()).in_process();
    let serving = tokio::spawn(RegistryServer::new().serve(listener, pending()));
    assert!(raw(&net, GET_LIST).await.starts_with("HTTP/1.1 200"));
    assert!(!serving.is_finished());
}

const OPS: &str = "ops-0123456789abcdef";
const SHOP: &str = "shop-0123456789abcdef";

fn tokens() -> Tokens {
    format!("ops read,write {OPS}; shop read,write:Foo {SHOP}").parse().unwrap()
}

async fn post_as(server: &RegistryServer, token: &str, path: &str, body: Value) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    let (status, _, body) = ask(server, "POST", path, &headers, &body.to_string()).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test(start_paused = true)]
async fn each_lease_of_a_batch_is_judged_by_itself() {
    let server = RegistryServer::builder().tokens(tokens()).build();
    let mut leases = Vec::new();
    for (service, address) in [("Foo", "tcp@a:1"), ("Bar", "tcp@b:1")] {
        let body = json!({ "service": service, "instance": instance("one", address, 1) });
        let (status, granted) = post_as(&server, OPS, api::REGISTER, body).await;
        assert_eq!(status, 200);
        let mut lease = json!({ "service": service, "id": "one" });
        lease["lease_id"] = granted["lease_id"].clone();
        lease["instance"] = instance("one", address, 1);
        leases.push(lease);
    }
    let refused = "urn:srpc:not-allowed";
    let mut unknown = leases[1].clone();
    unknown["lease_id"] = json!("unknown");
    let both = json!({ "held": [leases[1], leases[0], unknown] });
    let (status, renewed) = post_as(&server, SHOP, api::RENEW, both.clone()).await;
    let results = &renewed["results"];
    assert_eq!((status, &results[1]["status"]), (200, &json!("renewed")));
    assert_eq!(results[0]["type"], refused);
    assert_eq!(results[0], results[2], "it is not told whether there is such a lease");

    let others = json!({ "held": [leases[1], unknown] });
    let (status, problem) = post_as(&server, SHOP, api::RENEW, others.clone()).await;
    assert_eq!((status, problem["results"].as_array().unwrap().len()), (403, 2));
    assert_eq!(post_as(&server, SHOP, api::DEREGISTER, others).await.0, 403);
    for (id, status) in [("one", 403), ("two", 403)] {
        let body = json!({ "service": "Bar", "id": id });
        assert_eq!(post_as(&server, SHOP, api::DRAIN, body).await.0, status);
    }
    assert_eq!(server.registry().unwrap().list(None).entries.len(), 2);

    let (status, left) = post_as(&server, SHOP, api::DEREGISTER, both).await;
    assert_eq!((status, &left["results"][1]["status"]), (200, &json!("deregistered")));
    assert_eq!(
        (&left["results"][0]["type"], &left["results"][2]["type"]),
        (&json!(refused), &json!(refused))
    );
    let left = server.registry().unwrap().list(None).entries;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].service.as_ref().unwrap().as_str(), "Bar");
}

#[tokio::test(start_paused = true)]
async fn tokens_are_replaced_while_it_runs() {
    let server = RegistryServer::builder().tokens(tokens()).build();
    let list = json!({ "held": [] });
    assert_eq!(post_as(&server, OPS, api::RENEW, list.clone()).await.0, 200);
    server.replace_tokens("new write new-0123456789abcdef".parse().unwrap());
    assert_eq!(post_as(&server, OPS, api::RENEW, list.clone()).await.0, 401);
    assert_eq!(post_as(&server, "new-0123456789abcdef", api::RENEW, list).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn what_others_reach_is_not_served_without_tokens() {
    let net = Memory::new();
    let exposed = async || {
        // Of a name that is no loopback, and not said to be in memory.
        struct Bare(Listener);
        #[async_trait]
        impl Accept for Bare {
            async fn accept(&mut self) -> io::Result<Stream> {
                self.0.accept().await
            }
        }
        let inner = net.bind(&AT.parse().unwrap()).await.unwrap();
        Listener::new(Bare(inner), AT.parse().unwrap())
    };
    let error = RegistryServer::new().serve(exposed().await, pending()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let inner = error.get_ref().unwrap();
    assert!(inner.is::<Unprotected>() && inner.to_string().contains("registry:9999"), "{inner}");

    for (builder, list, seed) in [
        (RegistryServer::builder().insecure(true), "HTTP/1.1 200", "HTTP/1.1 403"),
        (
            RegistryServer::builder().insecure(true).open_seed_path(true),
            "HTTP/1.1 200",
            "HTTP/1.1 200",
        ),
        (RegistryServer::builder().tokens(tokens()), "HTTP/1.1 401", "HTTP/1.1 401"),
        (
            RegistryServer::builder().tokens(tokens()).open_seed_path(true),
            "HTTP/1.1 401",
            "HTTP/1.1 200",
        ),
        (RegistryServer::builder().identified(true), "HTTP/1.1 401", "HTTP/1.1 401"),
    ] {
        let serving = tokio::spawn(builder.build().serve(exposed().await, pending()));
        let get =
            |path: &str| format!("GET {path} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n");
        let answer = raw(&net, &get("/v1/instances")).await;
        assert!(answer.starts_with(list), "{answer}");
        let answer = raw(&net, &get(SEED)).await;
        assert!(answer.starts_with(seed), "{answer}");
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
    }
}

#[tokio::test(start_paused = true)]
async fn long_polls_leave_connections_for_renewals() {
    let net = Memory::new();
    let server = RegistryServer::builder().max_connections_per_host(6).build();
    let revision = server.registry().unwrap().list(Some(&"Foo".parse().unwrap())).revision;
    let (_stop, _serving) = start(&net, server).await;
    let target = format!("/v1/instances?service=Foo&revision={revision}&wait=60s");
    let poll = format!("GET {target} HTTP/1.1\r\nhost: r\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = net.connect(&AT.parse().unwrap()).await.unwrap();
        stream.write_all(poll.as_bytes()).await.unwrap();
        held.push(stream);
    }
    sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    for _ in 0..10 {
        // Answered and closed: none of them is held.
        let answer = raw(&net, &poll).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"),
            "{answer}"
        );
    }
    assert!(start.elapsed() < Duration::from_secs(1));
    drop(held);
    sleep(Duration::from_millis(10)).await;
    let again = tokio::time::timeout(Duration::from_secs(5), raw(&net, &poll)).await;
    assert!(again.is_err(), "it is held again");
}

fn budget() -> Arc<Budget> {
    Arc::new(Budget::new(256 << 20, 64 << 20))
}

/// A server whose one list takes some 700 KiB.
async fn with_a_large_list(builder: super::RegistryServerBuilder) -> RegistryServer {
    let server = builder.build();
    let metadata: serde_json::Map<String, Value> =
        (0..60).map(|n| (format!("key{n}"), json!("v".repeat(100)))).collect();
    for n in 0..100 {
        let mut large = instance(&n.to_string(), &format!("tcp@a:{}", n + 1), 1);
        large["metadata"] = Value::Object(metadata.clone());
        let body = json!({ "service": "Foo", "ttl_ms": 300_000, "instance": large });
        assert_eq!(post(&server, api::REGISTER, body).await.0, 200);
    }
    server
}

const LIST: &str = "GET /v1/instances HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n";
const RENEW: &str = "POST /v1/renew HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\nconnection: close\r\n\
                     content-length: 11\r\n\r\n{\"held\":[]}";

/// How many of these connections the server has closed.
async fn closed(streams: &mut [Stream]) -> usize {
    let mut closed = 0;
    for stream in streams {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_millis(1), stream.read_to_end(&mut rest));
        closed += usize::from(ended.await.is_ok());
    }
    closed
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_lists_is_closed_and_keeps_nobody_on_its_host_from_them() {
    let net = Memory::new();
    let server = with_a_large_list(RegistryServer::builder().max_bytes_in_flight(4 << 20)).await;
    let (_stop, _serving) = start(&net, server.clone()).await;
    let mut unread = Vec::new();
    for _ in 0..5 {
        let mut stream = net.connect(&AT.parse().unwrap()).await.unwrap();
        stream.write_all(LIST.as_bytes()).await.unwrap();
        unread.push(stream);
        sleep(Duration::from_millis(1)).await;
    }
    // Three quarters of 4 MiB, and the answer that went beyond them.
    let begun = Instant::now();
    assert!(raw(&net, RENEW).await.starts_with("HTTP/1.1 200"));
    assert!(begun.elapsed() < Duration::from_millis(10));
    assert!(raw(&net, LIST).await.starts_with("HTTP/1.1 200"), "once the stuck ones are closed");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(closed(&mut unread).await >= 4, "down to the quarter of one host");
}

#[tokio::test(start_paused = true)]
async fn half_read_bodies_are_charged_and_give_way_to_others() {
    let net = Memory::new();
    let server = RegistryServer::builder().max_bytes_in_flight(8 << 20).build();
    let (_stop, _serving) = start(&net, server.clone()).await;
    let post = |length: String| {
        format!(
            "POST /v1/renew HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n\
             connection: close\r\n{length}\r\n\r\n"
        )
    };
    let mut half = Vec::new();
    for n in 0..9 {
        let mut stream = net.connect(&AT.parse().unwrap()).await.unwrap();
        // With its length, and without one.
        let sent = match n % 2 {
            0 => post("content-length: 1000000".into()) + &" ".repeat(900_000),
            _ => post("transfer-encoding: chunked".into()) + "dbba0\r\n" + &" ".repeat(900_000),
        };
        half.push(tokio::spawn(async move {
            // What there is no room for is not taken.
            let _ = tokio::time::timeout(Duration::from_secs(3), stream.write_all(sent.as_bytes()))
                .await;
            stream
        }));
    }
    sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    assert!(raw(&net, RENEW).await.starts_with("HTTP/1.1 200"));
    assert!(begun.elapsed() < Duration::from_millis(10));
    let large = post("content-length: 500000".into()) + "{\"held\":[]}" + &" ".repeat(499_989);
    assert!(raw(&net, &large).await.starts_with("HTTP/1.1 200"));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    sleep(Duration::from_secs(10)).await;
    let mut streams = Vec::new();
    for stream in half {
        streams.push(stream.await.unwrap());
    }
    assert!(closed(&mut streams).await >= 7, "the share of one host is 2 MiB");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_memory_in_vain_is_told_when_to_come_back() {
    // Mounted in another server there is no connection to be closed.
    let server = with_a_large_list(RegistryServer::builder().max_bytes_in_flight(1 << 19)).await;
    let list = || Request::get(api::INSTANCES).body(Full::<Bytes>::default()).unwrap();
    let unread = server.handle(list()).await;
    assert_eq!(unread.status().as_u16(), 200);
    let begun = Instant::now();
    let refused = server.handle(list()).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    assert!(begun.elapsed() >= Duration::from_secs(2));
    drop(unread);
    assert_eq!(server.handle(list()).await.status().as_u16(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_token_has_its_caps() {
    let builder = RegistryServer::builder().tokens(tokens());
    let server =
        builder.max_instances_per_token(1).rate_per_token(3).max_in_flight_per_token(2).build();
    let register = |id: &str, port: u16| json!({ "service": "Foo", "instance": instance(id, &format!("tcp@a:{port}"), 1) });
    assert_eq!(post_as(&server, SHOP, api::REGISTER, register("1", 1)).await.0, 200);
    let (status, problem) = post_as(&server, SHOP, api::REGISTER, register("2", 2)).await;
    assert_eq!((status, &problem["type"]), (429, &json!("urn:srpc:full")));
    assert_eq!(post_as(&server, SHOP, api::REGISTER, register("1", 1)).await.0, 200, "a renewal");
    assert_eq!(post_as(&server, OPS, api::REGISTER, register("2", 2)).await.0, 200);

    let mut answered = Vec::new();
    for _ in 0..5 {
        answered.push(post_as(&server, SHOP, api::REGISTER, register("1", 1)).await.0);
    }
    assert_eq!(answered, [200, 200, 200, 429, 429]);
    let renew = json!({ "held": [] });
    assert_eq!(post_as(&server, SHOP, api::RENEW, renew).await.0, 200, "renewals have their own");
    let bearer = format!("Bearer {SHOP}");
    let (_, headers, body) =
        ask(&server, "GET", api::SERVICES, &[("authorization", &bearer)], "").await;
    assert_eq!(
        (&headers["retry-after"], &headers[CONTENT_TYPE]),
        (&"1".parse().unwrap(), &api::PROBLEM_JSON.parse().unwrap())
    );
    assert!(body.contains("urn:srpc:too-many-requests"), "{body}");
    sleep(Duration::from_secs(10)).await;

    // Of two under way one may be a long poll, which is the half.
    let revision = server.registry().unwrap().revision(&"Foo".parse().unwrap());
    let target = format!("/v1/instances?service=Foo&revision={revision}&wait=30s");
    let polls: Vec<_> = (0..2)
        .map(|_| {
            let (server, target, bearer) = (server.clone(), target.clone(), bearer.clone());
            tokio::spawn(async move {
                ask(&server, "GET", &target, &[("authorization", &bearer)], "").await.0
            })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(polls.iter().filter(|poll| poll.is_finished()).count(), 1, "answered at once");
    for poll in polls {
        assert_eq!(poll.await.unwrap(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn it_shows_what_it_keeps_though_it_has_run_out() {
    let server = RegistryServer::builder().protection(4, 0.5).build();
    for n in 1..=4 {
        let body = json!({ "service": "Foo", "instance": instance(&n.to_string(), &format!("tcp@a:{n}"), 1) });
        assert_eq!(post(&server, api::REGISTER, body).await.0, 200);
    }
    let (_, list) = get(&server, "/v1/instances?service=Foo").await;
    assert_eq!((&list["protecting"], list.get("protection")), (&json!(false), None));

    // The second of two pauses in a row is not forgiven.
    sleep(Duration::from_secs(2)).await;
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(30)).await;
        sleep(Duration::from_secs(1)).await;
    }
    let (_, list) = get(&server, "/v1/instances?service=Foo").await;
    assert_eq!(list["instances"].as_array().unwrap().len(), 4);
    assert_eq!((&list["protecting"], &list["protection"]["kept"]), (&json!(true), &json!(4)));
    let ends_in = list["protection"]["ends_in_ms"].as_u64().unwrap();
    assert!((13_000..15_000).contains(&ends_in), "{ends_in}");
    let (_, other) = get(&server, "/v1/instances?service=Bar").await;
    assert_eq!(other["protecting"], json!(true), "it is the whole registry's");

    sleep(Duration::from_secs(15)).await;
    let (_, list) = get(&server, api::INSTANCES).await;
    assert_eq!((&list["protecting"], &list["instances"]), (&json!(false), &json!([])));
}
