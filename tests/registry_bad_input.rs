//! What the registry server answers to bad input: a clear status, nothing changed, and everyone
//! else served meanwhile.

#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "bad_input/registry.rs"]
mod registry;

use std::time::Duration;

use registry::*;
use serde_json::json;
use srpc::Listener;
use srpc::backend::http::{RegistryServer, RegistryServerBuilder};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

struct Served {
    site: Site,
    _serving: Aborting,
}

struct Aborting(JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Served {
    /// A server on a free port, at which `good` is registered.
    async fn start(builder: RegistryServerBuilder) -> Self {
        let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
        let at = listener.address().target().to_owned();
        let server = builder.build();
        let serving = tokio::spawn(async move {
            server.serve(listener, std::future::pending()).await.unwrap();
        });
        Self { site: Site::new(&at).await, _serving: Aborting(serving) }
    }
}

#[tokio::test]
async fn bad_input_gets_a_clear_answer_and_changes_nothing() {
    let served = Served::start(RegistryServer::builder()).await;
    let failures = served.site.check_all().await;
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test]
async fn unspecified_addresses_are_told_what_to_do() {
    let served = Served::start(RegistryServer::builder()).await;
    let answer = served.site.send(&instance("address", json!("tcp@0.0.0.0:7001"))).await;
    assert!(answer.contains("--advertise"), "{answer}");
    let raw = plain("POST", "/srpc/registry", "srpc-servers: tcp@[::]:7001\r\n");
    assert_eq!(status(&served.site.send(&raw).await), Some(200), "the seed's own test sends it");
}

#[tokio::test]
async fn an_endless_body_is_cut() {
    let served = Served::start(RegistryServer::builder()).await;
    let before = served.site.state().await;
    let headers = format!("{JSON}transfer-encoding: chunked\r\n");
    let mut stream = served.site.connect().await;
    stream.write_all(&plain("POST", "/v1/register", &headers)).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut chunks = 0;
    while stream.write_all(chunk.as_bytes()).await.is_ok() {
        chunks += 1;
        assert!(chunks < 1024, "64 MiB were taken");
    }
    served.site.someone_else_is_served().await;
    let answer = read(&mut stream).await;
    assert!(answer.is_empty() || status(&answer) == Some(413), "{answer}");
    assert_eq!(served.site.state().await, before);
}

#[tokio::test]
async fn half_a_request_then_silence_is_cut() {
    // The client that behaves has no more either.
    let limit = Duration::from_secs(2);
    let builder = RegistryServer::builder().header_timeout(limit).body_timeout(limit);
    let served = Served::start(builder).await;
    let before = served.site.state().await;
    let body = plain("POST", "/v1/register", &format!("{JSON}content-length: 100\r\n"));
    let chunked = format!("{JSON}transfer-encoding: chunked\r\n");
    let chunked = plain("POST", "/v1/register", &chunked);
    let mut cut = Vec::new();
    for (name, raw, expected) in [
        ("nothing", Vec::new(), None),
        ("half a line", b"POST /v1/reg".to_vec(), None),
        ("half a header", b"GET /srpc/registry HTTP/1.1\r\nhost: r\r\nx".to_vec(), None),
        ("no body", body.clone(), Some(408)),
        ("half a body", [&body[..], b"{\"service\":"].concat(), Some(408)),
        ("half a chunk", [&chunked[..], b"ff\r\n{"].concat(), Some(408)),
        ("no last chunk", [&chunked[..], b"2\r\n{}\r\n"].concat(), Some(408)),
    ] {
        let mut stream = served.site.connect().await;
        stream.write_all(&raw).await.unwrap();
        cut.push((name, stream, expected));
    }
    served.site.someone_else_is_served().await;
    for (name, mut stream, expected) in cut {
        let answer = read(&mut stream).await;
        assert_eq!(status(&answer), expected, "{name}: {answer}");
        assert_eq!(answer.is_empty(), expected.is_none(), "{name}: {answer}");
        assert_eq!(served.site.state().await, before, "{name}");
    }
}

#[tokio::test]
async fn half_a_body_then_the_end_registers_nothing() {
    let served = Served::start(RegistryServer::builder()).await;
    let before = served.site.state().await;
    let mut body = good();
    body["instance"]["id"] = json!("another");
    let mut raw = register(&body);
    raw.pop();
    let mut stream = served.site.connect().await;
    stream.write_all(&raw).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = read(&mut stream).await;
    assert!(answer.is_empty() || status(&answer) == Some(400), "{answer}");
    assert_eq!(served.site.state().await, before);
}

#[tokio::test]
async fn a_silent_connection_is_evicted_for_another_and_one_in_use_is_not() {
    let builder = RegistryServer::builder().max_connections_per_host(3).max_polls_per_host(3);
    let served = Served::start(builder).await;
    let list = plain("GET", "/srpc/registry", "");
    // One more is the client's own, which is idle.
    let silent = [served.site.connect().await, served.site.connect().await];
    assert_eq!(status(&served.site.send(&list).await), Some(200));
    drop(silent);

    let state = served.site.send(&plain("GET", "/v1/instances?service=Foo", "")).await;
    let (_, state) = state.split_once("\r\n\r\n").unwrap();
    let state: serde_json::Value = serde_json::from_str(state).unwrap();
    let revision = state["revision"].as_str().unwrap();
    let poll = format!("/v1/instances?service=Foo&revision={revision}&wait=60s");
    let mut polls = Vec::new();
    for _ in 0..3 {
        let mut stream = served.site.connect().await;
        stream.write_all(&plain("GET", &poll, "")).await.unwrap();
        polls.push(stream);
    }
    let mut refused = served.site.connect().await;
    refused.write_all(&list).await.unwrap();
    let refused = read(&mut refused).await;
    assert_eq!(status(&refused), Some(429), "{refused}");
    assert!(refused.contains("too many connections from this host"), "{refused}");
    drop(polls);
    // The slots are given back as soon as the server has seen the closes.
    let again = async {
        while status(&served.site.send(&list).await) != Some(200) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.unwrap();
}
