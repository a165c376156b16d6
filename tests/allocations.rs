//! How often does a typed call allocate, client and server together?
//!
//! Allocations are counted, and not timed. A method whose polls are long gets a task of its own for each call,
//! which allocates, and on a busy machine any poll may be long: so the clock stands still here. What this
//! prints is in `docs/PERFORMANCE.md`.

#![allow(clippy::unwrap_used, reason = "a test")]

use srpc::backend::static_list::StaticList;
use srpc::{Listener, Server, Service, XClient};
use tokio::runtime::{Builder, Runtime};

/// Calls that fill what is kept: buffers, tables, a connection.
const BEFORE: usize = 2_000;
const COUNTED: usize = 512;
/// What a call may allocate, both sides together.
const MOST: f64 = 0.1;

async fn sum((a, b): (i64, i64)) -> Result<i64, &'static str> {
    a.checked_add(b).ok_or("the sum is too large")
}

/// One thread for both sides, since allocations are counted by thread.
fn world() -> (Runtime, XClient) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    // A clock that stands still goes to its next timer when there is nothing to do.
    runtime.spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let client = runtime.block_on(async {
        let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
        let list = StaticList::parse(listener.address().as_str()).unwrap();
        let server = Server::new().service(Service::new("Foo").method("Sum", sum));
        tokio::spawn(server.serve(listener, std::future::pending()));
        XClient::new("Foo", list).unwrap()
    });
    (runtime, client)
}

/// Calls in `callers` tasks; allocations per call.
fn counted(callers: usize) -> f64 {
    let (runtime, client) = world();
    let call = |calls: usize| {
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let client = client.clone();
                runtime.spawn(async move {
                    for n in 0..(calls / callers) as i64 {
                        let sum: i64 = client.call("Foo.Sum", &(n, 1)).await.unwrap();
                        assert_eq!(sum, n + 1);
                    }
                })
            })
            .collect();
        runtime.block_on(async {
            for task in tasks {
                task.await.unwrap();
            }
        });
    };
    call(BEFORE);
    let allocations = allocation_counter::measure(|| call(COUNTED)).count_total;
    // The callers' own tasks are among them, and the list of them: one each, and one.
    allocations.saturating_sub(callers as u64 + 1) as f64 / COUNTED as f64
}

#[test]
fn a_call_at_a_time_allocates_next_to_nothing() {
    let allocations = counted(1);
    println!("figure allocations_per_call in_flight=1 {allocations:.3}");
    assert!(allocations <= MOST, "{allocations} a call");
}

#[test]
fn calls_at_once_allocate_next_to_nothing() {
    let allocations = counted(64);
    println!("figure allocations_per_call in_flight=64 {allocations:.3}");
    assert!(allocations <= MOST, "{allocations} a call");
}
