//! What do bad frames and bad requests do to a running server and a running registry?
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]

#[path = "../../../tests/bad_input/frames.rs"]
mod frames;
#[path = "../../../tests/bad_input/registry.rs"]
mod registry;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use frames::{Answer, Case, PONG, RawClient, good_hello, ping};
use registry::{JSON, Site, instance, plain, status};
use serde_json::json;
use srpc::XClient;
use srpc::backend::static_list::StaticList;
use support::Process;
use support::proc::resident_kib;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// What bad input may leave behind in a process.
const GROWTH_KIB: u64 = 8 * 1024;

/// Somebody who behaves, and does something again and again.
struct Behaved {
    ok: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Behaved {
    fn doing<F: Future<Output = bool> + Send>(
        something: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        let (ok, failed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (done, not_done) = (Arc::clone(&ok), Arc::clone(&failed));
        let task = tokio::spawn(async move {
            loop {
                let count = if something().await { &done } else { &not_done };
                count.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(1)).await;
            }
        });
        Self { ok, failed, task }
    }

    /// How often it went well and how often not.
    fn counts(&self) -> (u64, u64) {
        (self.ok.load(Relaxed), self.failed.load(Relaxed))
    }
}

impl Drop for Behaved {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A process that gets bad input, and the memory that it had before.
struct Victim {
    process: Process,
    before: u64,
}

impl Victim {
    fn new(process: Process) -> Self {
        let before = resident_kib(process.id());
        Self { process, before }
    }

    /// Prints what came of it, and fails unless all is well.
    fn conclude(&self, name: &str, cases: usize, failures: &[String], behaved: &Behaved) {
        let after = resident_kib(self.process.id());
        let (ok, failed) = behaved.counts();
        println!(
            "figure bad_{name} cases={cases} wrong={} others_ok={ok} others_failed={failed} \
             growth_kib={}",
            failures.len(),
            after as i64 - self.before as i64
        );
        assert!(failures.is_empty(), "{} of {cases}:\n{}", failures.len(), failures.join("\n"));
        assert!(ok > 0 && failed == 0, "{failed} calls of others failed, {ok} did not");
        assert!(after <= self.before + GROWTH_KIB, "{} KiB, then {after} KiB", self.before);
    }
}

/// A server of the demo service, where it listens, and somebody who calls it all the time.
async fn serve() -> (Victim, String, Behaved) {
    let (process, address) = Process::listening_exact(&["serve", "--bind", "127.0.0.1:0"]);
    let client = XClient::new("Foo", StaticList::parse(&address).unwrap()).unwrap();
    let sum = move || {
        let client = client.clone();
        async move {
            let args = json!({"num1": 1, "num2": 2});
            client.call::<_, i64>("Foo.Sum", &args).await.is_ok_and(|sum| sum == 3)
        }
    };
    assert!(sum().await);
    let at = address.strip_prefix("tcp@").unwrap().to_owned();
    (Victim::new(process), at, Behaved::doing(sum))
}

/// A registry with one instance of `Foo`, and somebody who lists it all the time.
async fn registry() -> (Victim, Arc<Site>, Behaved) {
    let (process, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
    let at = url.trim_start_matches("http://").trim_end_matches("/srpc/registry");
    let site = Arc::new(Site::new(at).await);
    let other = Arc::clone(&site);
    let list = move || {
        let other = Arc::clone(&other);
        async move { other.serves_others().await }
    };
    assert!(list().await);
    (Victim::new(process), site, Behaved::doing(list))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_cost_a_server_nothing_and_nobody_a_call() {
    let (server, at, behaved) = serve().await;
    let cases: Vec<Case> = [
        frames::handshakes(),
        frames::http(),
        frames::headers(),
        frames::ids_and_sides(),
        frames::calls(),
        frames::values("Foo.Sum"),
        frames::deep("Foo.Sum", "Foo.Fail"),
        frames::with_the_handshake(),
    ]
    .concat();
    assert!(cases.len() >= 30, "{}", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        if let Err(what) = RawClient::connect(&at).await.run(case).await {
            failures.push(format!("{}: {what}", case.name));
        }
    }
    server.conclude("frames", cases.len(), &failures, &behaved);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_cost_a_registry_nothing_and_nobody_a_list() {
    let (registry, site, behaved) = registry().await;
    let mut failures = site.check_all().await;
    let unspecified = instance("address", json!("tcp@0.0.0.0:7001"));
    let answer = site.send(&unspecified).await;
    if !answer.contains("--advertise") {
        failures.push(format!("unspecified: {answer}"));
    }
    registry.conclude("requests", site.cases().len(), &failures, &behaved);
}

/// A frame of which a byte comes each second, half a frame, half a handshake: each is ended in its
/// time.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes 32 s"]
async fn slow_frames_are_refused_in_time() {
    const TOO_SLOW: &str = "a frame takes too long to come";
    let (server, at, behaved) = serve().await;
    let call = frames::Call::sum().frame(1);
    let refused = async |name: &str, raw: &mut RawClient, started: Instant| {
        let told = loop {
            // The peer that drips has sent what it could.
            match raw.frame_within(Duration::from_secs(35)).await? {
                (PONG, ..) => {}
                (_, _, text) => break String::from_utf8_lossy(&text).into_owned(),
            }
        };
        raw.end().await?;
        let took = started.elapsed().as_secs_f64();
        let right = told == TOO_SLOW && (29.5..31.0).contains(&took);
        if right { Ok(()) } else { Err(format!("{name}: {told:?} after {took:.1} s")) }
    };
    let half_frame = async {
        let mut raw = RawClient::shaken(&at).await;
        let started = Instant::now();
        raw.send(&call[..call.len() - 1]).await;
        refused("half a frame", &mut raw, started).await
    };
    // The length of a frame, and a byte.
    let one_byte = async {
        let mut raw = RawClient::shaken(&at).await;
        let started = Instant::now();
        raw.send(&call[..5]).await;
        refused("a length and a byte", &mut raw, started).await
    };
    let drip = async {
        let mut raw = RawClient::shaken(&at).await;
        let started = Instant::now();
        for byte in &ping(&[1; 984])[..29] {
            raw.send(&[*byte]).await;
            sleep(Duration::from_secs(1)).await;
        }
        refused("a byte a second", &mut raw, started).await
    };
    let half_handshake = async {
        let mut raw = RawClient::connect(&at).await;
        let started = Instant::now();
        raw.send(&good_hello()[..20]).await;
        raw.end().await?;
        let took = started.elapsed().as_secs_f64();
        let right = (4.5..6.0).contains(&took);
        if right { Ok(()) } else { Err(format!("half a handshake: {took:.1} s")) }
    };
    let nothing = async {
        let mut raw = RawClient::connect(&at).await;
        let started = Instant::now();
        raw.end().await?;
        let took = started.elapsed().as_secs_f64();
        let right = (4.5..6.0).contains(&took);
        if right { Ok(()) } else { Err(format!("nothing: {took:.1} s")) }
    };
    let patient = async {
        // Time between frames is no time within one.
        let mut raw = RawClient::shaken(&at).await;
        sleep(Duration::from_secs(31)).await;
        raw.send(&ping(b"?")).await;
        raw.expect_all(&[Answer::Pong(b"?".to_vec())]).await
    };
    let told = tokio::join!(half_frame, one_byte, drip, half_handshake, nothing, patient);
    let told = [told.0, told.1, told.2, told.3, told.4, told.5];
    let failures: Vec<String> = told.into_iter().filter_map(Result::err).collect();
    server.conclude("slow_frames", 6, &failures, &behaved);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes 32 s"]
async fn slow_requests_are_refused_in_time() {
    let (registry, site, behaved) = registry().await;
    let body = plain("POST", "/v1/register", &format!("{JSON}content-length: 100\r\n"));
    let chunked = format!("{JSON}transfer-encoding: chunked\r\n");
    let chunked = plain("POST", "/v1/register", &chunked);
    // What is sent, the status that comes if any, and after how many seconds.
    let cases: Vec<(&str, Vec<u8>, Option<u16>, f64)> = vec![
        ("nothing", Vec::new(), None, 10.0),
        ("half a line", b"POST /v1/reg".to_vec(), None, 10.0),
        ("half a header", b"GET /srpc/registry HTTP/1.1\r\nhost: r\r\nx".to_vec(), None, 10.0),
        ("no body", body.clone(), Some(408), 30.0),
        ("half a body", [&body[..], b"{\"service\":"].concat(), Some(408), 30.0),
        ("half a chunk", [&chunked[..], b"ff\r\n{"].concat(), Some(408), 30.0),
        ("no last chunk", [&chunked[..], b"2\r\n{}\r\n"].concat(), Some(408), 30.0),
    ];
    let count = cases.len() + 1;
    let mut slow: Vec<_> = Vec::new();
    slow.extend(cases.into_iter().map(|(name, raw, expected, seconds)| {
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            let started = Instant::now();
            let mut stream = site.connect().await;
            stream.write_all(&raw).await.unwrap();
            let answer = registry::read_within(&mut stream, Duration::from_secs(40)).await;
            let took = started.elapsed().as_secs_f64();
            let right = status(&answer) == expected
                && answer.is_empty() == expected.is_none()
                && (seconds - 1.0..seconds + 2.0).contains(&took);
            if right { Ok(()) } else { Err(format!("{name}: {answer:?} after {took:.1} s")) }
        })
    }));
    slow.push({
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            let started = Instant::now();
            let mut stream = site.connect().await;
            for byte in b"GET /srpc/registry HTTP/1.1\r\nhost: r\r\n" {
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_secs(1)).await;
            }
            let answer = registry::read_within(&mut stream, Duration::from_secs(10)).await;
            let took = started.elapsed().as_secs_f64();
            let right = answer.is_empty() && took < 14.0;
            if right { Ok(()) } else { Err(format!("a byte a second: {answer:?}, {took:.1} s")) }
        })
    });
    let mut failures = Vec::new();
    for case in slow {
        failures.extend(case.await.unwrap().err());
    }
    registry.conclude("slow_requests", count, &failures, &behaved);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_body_costs_a_registry_nothing() {
    let (registry, site, behaved) = registry().await;
    let before = site.state().await;
    let headers = format!("{JSON}transfer-encoding: chunked\r\n");
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut failures = Vec::new();
    for _ in 0..10 {
        let mut stream = site.connect().await;
        stream.write_all(&plain("POST", "/v1/register", &headers)).await.unwrap();
        let mut chunks = 0;
        while chunks < 1024 && stream.write_all(chunk.as_bytes()).await.is_ok() {
            chunks += 1;
        }
        let answer = registry::read(&mut stream).await;
        if chunks == 1024 || !(answer.is_empty() || status(&answer) == Some(413)) {
            failures.push(format!("{chunks} chunks, {answer:?}"));
        }
    }
    assert_eq!(site.state().await, before);
    registry.conclude("endless_bodies", 10, &failures, &behaved);
}
