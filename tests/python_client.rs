//! A client in another language, written from `docs/PROTOCOL.md` alone, against a server here.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use srpc::server::{Context, State};
use srpc::{Kind, Listener, Server, Service, Status};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/pipelined.py");

#[derive(serde::Deserialize)]
struct Pair {
    num1: i64,
    num2: i64,
}

#[derive(serde::Deserialize)]
struct Delay {
    ms: u64,
}

/// `Foo.Sum` and `Foo.Delay`. The state counts the sums whose metadata was as the client says.
fn foo(checked: &Arc<AtomicU64>) -> Service<AtomicU64> {
    Service::with_state("Foo", Arc::clone(checked))
        .method("Sum", async |checked: State<AtomicU64>, context: Context, pair: Pair| {
            let sum = pair.num1 + pair.num2;
            let metadata = context.metadata();
            if let Some(told) = metadata.value("sum") {
                if told != sum.to_string() || metadata.value("größe") != Some("") {
                    return Err(Status::new(Kind::DataLoss, "the metadata has changed"));
                }
                checked.0.fetch_add(1, SeqCst);
            }
            Ok(sum)
        })
        .method("Delay", async |_: State<AtomicU64>, delay: Delay| {
            sleep(Duration::from_millis(delay.ms)).await;
            Ok::<_, Status>(delay.ms)
        })
}

async fn a_thousand_calls(set: impl FnOnce(Server) -> Server) {
    let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
    let (host, port) = listener.address().target().rsplit_once(':').unwrap();
    let mut command = Command::new("python3");
    // -B: leaves no compiled files among the sources.
    command.args(["-B", SCRIPT, host, port]).kill_on_drop(true);
    let checked = Arc::new(AtomicU64::new(0));
    let server = set(Server::new().service(foo(&checked)));
    let serving = tokio::spawn(server.serve(listener, std::future::pending()));
    let output = timeout(Duration::from_secs(60), command.output())
        .await
        .unwrap_or_else(|_| panic!("{SCRIPT} has not ended within 60 s"))
        .unwrap_or_else(|error| panic!("python3 cannot be started, is it installed? {error}"));
    let said = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}{told}", output.status);
    let count = said.trim_end().strip_prefix("1000 calls, ");
    let count = count.and_then(|rest| rest.strip_suffix(" out of order"));
    let count: u64 = count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    assert!((1..1000).contains(&count), "{said}");
    assert_eq!(checked.load(SeqCst), 100);
    assert!(!serving.is_finished());
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs python3"]
async fn a_thousand_calls_in_the_default_window() {
    a_thousand_calls(|server| server).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs python3"]
async fn a_thousand_calls_in_the_smallest_window() {
    a_thousand_calls(|server| server.window_calls(64)).await;
}
