//! What a server answers to bytes that break the protocol: exactly one clear thing, no handler run,
//! and everyone else served meanwhile.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "only a raw socket lies")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "bad_input/frames.rs"]
mod frames;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use frames::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use srpc::backend::static_list::StaticList;
use srpc::call::Raw;
use srpc::server::{ServerSettings, State};
use srpc::{Instance, Listener, Server, Service, Status, XClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

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
            .method("Sleep", async |_: State<AtomicUsize>, _: Raw| {
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
        RawClient::connect(&self.at).await
    }

    /// A connection whose handshake is done.
    async fn shaken(&self) -> RawClient {
        RawClient::shaken(&self.at).await
    }

    async fn check(&self, case: &Case) -> Result<(), String> {
        let runs = self.runs.load(SeqCst);
        let expected = self.connect().await.run(case).await?;
        match self.runs.load(SeqCst) - runs {
            runs if runs == expected => Ok(()),
            runs => Err(format!("{runs} handlers ran, not {expected}")),
        }
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
    cases.extend(values("Foo.Any"));
    let nested = [vec![0x91; 100], vec![7]].concat();
    let nested = Call { body: nested, ..Call::of(named("Foo.Any")) };
    cases.push(case(
        "a value that is deep, but not too deep",
        nested.frame(1),
        result(1, nested.body),
    ));
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
    for (number, case) in deep("Foo.Any", "Foo.Known").iter().enumerate() {
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
    let deep = deep("Foo.Any", "Foo.Known");
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

/// A timeout that a client which behaves does not reach, not even on a busy machine.
const LIMIT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn half_a_handshake_then_silence_is_closed() {
    let served = Served::start(settings(|s| s.handshake_timeout = LIMIT)).await;
    let mut halves = Vec::new();
    for end in [0, 1, 4, 6, good_hello().len() - 1] {
        let mut raw = served.connect().await;
        raw.send(&good_hello()[..end]).await;
        halves.push((end, raw));
    }
    served.everyone_else_is_served().await;
    for (end, mut raw) in halves {
        raw.end().await.unwrap_or_else(|error| panic!("{end} bytes: {error}"));
    }
    // Neither do drops keep it open: the whole of it would take 50 s.
    let mut raw = served.connect().await;
    let mut has_ended = false;
    for byte in hello(1, 1, LIMITS, 0, &[0; 1000]) {
        raw.send(&[byte]).await;
        has_ended = raw.ended_within(Duration::from_millis(50)).await;
        if has_ended {
            break;
        }
    }
    assert!(has_ended, "drops keep it open");
    served.everyone_else_is_served().await;
}

const TOO_SLOW: &str = "a frame takes too long to come";

#[tokio::test]
async fn half_a_frame_then_silence_is_refused() {
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
    // Each at a server of its own, all at once: each takes as long as the limit.
    let mut checks = JoinSet::new();
    for case in cases {
        checks.spawn(async move {
            let served = Served::start(settings(|s| s.frame_timeout = LIMIT)).await;
            check_all(&served, &[case]).await;
        });
    }
    checks.join_all().await;
}

#[tokio::test]
async fn a_byte_at_a_time_is_refused_when_the_frame_takes_too_long() {
    let served = Served::start(settings(|s| s.frame_timeout = LIMIT)).await;
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
    const TIMES: usize = 70;
    let limit = Duration::from_secs(3);
    let served = Served::start(settings(|s| s.frame_timeout = limit)).await;
    let drip = async |name, frame: Vec<u8>, answers: Vec<Answer>| {
        let mut raw = served.shaken().await;
        let (first, second) = frame.split_at(10);
        raw.send(first).await;
        // Longer than the limit in all.
        for _ in 0..TIMES {
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
        drip("pings", ping(b"12345678"), vec![Answer::Pong(b"12345678".to_vec()); TIMES + 1]),
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
    let served = Served::start(settings(|s| s.frame_timeout = LIMIT)).await;
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
