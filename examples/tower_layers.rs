//! Tower layers around calls and around attempts.
//!
//! A call goes through `deadline > user's layers > retry > select > attempt layers > exchange`. So
//! a user's layer sees a call once, whatever it takes to make it, and an attempt layer sees each
//! try with the endpoint that it goes to. Layers run in the order in which they are added, the
//! first one outermost:
//!
//! - `TimeoutLayer` first, so that its time includes the wait in the queue.
//! - `BufferLayer` is that queue: without it, the wait for the limit would be a wait for readiness,
//!   which tower's timeout does not measure (srpc's deadline does).
//! - `ConcurrencyLimitLayer` last, so that it lets so many calls through at a time.
//!
//! ```text
//! cargo run --release --example tower_layers
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::selector::RoundRobin;
use srpc::xclient::Attempt;
use srpc::{Address, Call, Instance, Kind, Listener, Server, Service, XClient};
use tokio::time::sleep;
use tower::buffer::BufferLayer;
use tower::layer::layer_fn;
use tower::limit::ConcurrencyLimitLayer;
use tower::timeout::TimeoutLayer;

/// How many calls may be under way at a time.
const LIMIT: usize = 2;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let seen = Arc::new(Seen::default());
    let living = start(Arc::clone(&seen)).await?;
    // Nobody listens there any more: what is tried there is tried again on the other.
    let dead = Listener::bind("tcp@127.0.0.1:0").await?.address().clone();

    let attempts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&attempts);
    let client = XClient::builder("Foo", StaticList::new([living, dead].map(Instance::at)))
        .selector(RoundRobin::new())
        .layer(TimeoutLayer::new(Duration::from_millis(500)))
        .layer(BufferLayer::<Call>::new(64))
        .layer(ConcurrencyLimitLayer::new(LIMIT))
        .attempt_layer(layer_fn(move |inner| CountAttempts { inner, count: Arc::clone(&counted) }))
        .build()?;

    let calls: Vec<_> = (0..8_u64)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call::<u64, u64>("Foo.Sleep", &20).await })
        })
        .collect();
    let count = calls.len() as u32;
    for call in calls {
        call.await??;
    }
    let (attempts, most) = (attempts.load(Relaxed), seen.most.load(Relaxed));
    println!("{count} calls took {attempts} attempts, at most {most} at a time");
    assert!(attempts > count, "retries are inside of the user's layers");
    assert!(most <= LIMIT as u32, "the limit holds");

    let slow = client.call::<u64, u64>("Foo.Sleep", &2_000).await;
    let Err(error) = slow else { return Err("a call outlasted the layer's timeout".into()) };
    println!("2 s under a timeout of 500 ms: {error}");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    Ok(())
}

/// A layer of one's own: counts attempts, and passes them on.
#[derive(Clone)]
struct CountAttempts<S> {
    inner: S,
    count: Arc<AtomicU32>,
}

impl<S: tower::Service<Attempt>> tower::Service<Attempt> for CountAttempts<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, attempt: Attempt) -> S::Future {
        self.count.fetch_add(1, Relaxed);
        self.inner.call(attempt)
    }
}

#[derive(Default)]
struct Seen {
    running: AtomicU32,
    most: AtomicU32,
}

/// A server whose method sleeps for that many milliseconds and notes how many do.
async fn start(seen: Arc<Seen>) -> io::Result<Address> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let address = listener.address().clone();
    let sleep_for = move |millis: u64| {
        let seen = Arc::clone(&seen);
        async move {
            let running = seen.running.fetch_add(1, Relaxed) + 1;
            seen.most.fetch_max(running, Relaxed);
            sleep(Duration::from_millis(millis)).await;
            seen.running.fetch_sub(1, Relaxed);
            Ok::<_, Infallible>(millis)
        }
    };
    let server = Server::new().service(Service::new("Foo").method("Sleep", sleep_for));
    tokio::spawn(server.serve(listener, std::future::pending()));
    Ok(address)
}
