//! What do calls cost a server whose callers have left?
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

mod support;

use std::time::{Duration, Instant};

use srpc::backend::static_list::StaticList;
use srpc::call::Codec;
use srpc::{Call, XClient};
use support::proc::{cpu_time, resident_kib};
use support::{PATIENCE, Process, eventually};

const CALLS: usize = 10_000;
const CONNECTIONS: usize = 10;

/// The calls that the server has in flight beside the one that asks.
async fn in_flight(client: &XClient) -> u32 {
    let call = Call::new("Foo.Echo").args_in(&Codec::Json, &1).unwrap().timeout(PATIENCE);
    client.send(call).await.unwrap().load.saturating_sub(1)
}

async fn until(client: &XClient, what: impl Fn(u32) -> bool) -> Duration {
    let started = Instant::now();
    loop {
        let now = in_flight(client).await;
        if what(now) {
            return started.elapsed();
        }
        assert!(started.elapsed() < PATIENCE, "{now} calls in flight after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes 10,000 calls that would outlast the test, and drops them. How long it takes the server to have
/// none in flight, and its processor time for that.
async fn call_and_drop(client: &XClient, server: u32) -> (Duration, Duration) {
    let long = Duration::from_secs(600);
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let call = Call::new("Foo.Sleep")
                    .args_in(&Codec::Json, &serde_json::json!({"num1": long.as_secs()}))?
                    .timeout(long);
                client.send(call).await
            })
        })
        .collect();
    until(client, |now| now as usize == CALLS).await;
    let used = cpu_time(server);
    for call in &calls {
        call.abort();
    }
    for call in calls {
        assert!(call.await.unwrap_err().is_cancelled());
    }
    let took = until(client, |now| now == 0).await;
    (took, cpu_time(server).saturating_sub(used))
}

#[test]
fn ten_thousand_calls_dropped_leave_nothing_behind() {
    let (server, address) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let list = StaticList::parse(&address).unwrap();
        let client =
            XClient::builder("Foo", list).connections_per_endpoint(CONNECTIONS).build().unwrap();
        // The first round fills what an allocator keeps for the next; the second must fit in.
        let (first, used_first) = call_and_drop(&client, server.id()).await;
        let before = resident_kib(server.id());
        let (second, used_second) = call_and_drop(&client, server.id()).await;
        let after = || resident_kib(server.id());
        // The last of it may still be held.
        eventually(PATIENCE, "memory is given back", || after() <= before + 8 * 1024);
        let used = used_first.max(used_second);
        println!(
            "figure dropped_calls_by_callers none_in_flight_ms={} cpu_ms={} growth_kib={}",
            first.max(second).as_millis(),
            used.as_millis(),
            after() as i64 - before as i64
        );
        // On a busy machine it takes as long as others let it.
        assert!(used <= Duration::from_secs(1), "{used:?} of a processor");
    });
}
