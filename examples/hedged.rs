//! Every fiftieth call meets a pause of its server. A second attempt elsewhere, once a call takes
//! longer than nineteen of twenty do, spares the callers most of these, for a twentieth more calls.
//!
//! ```text
//! cargo run --release --example hedged
//! ```

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::server::State;
use srpc::xclient::Hedge;
use srpc::{Instance, Listener, Server, Service, XClient};
use tokio::time::{Instant, sleep};

const SERVERS: usize = 3;
const WORKERS: usize = 8;
const CALLS_EACH: usize = 400;
const USUAL: Duration = Duration::from_millis(5);
const PAUSE: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let work = Arc::new(Work::default());
    let mut list = Vec::new();
    for _ in 0..SERVERS {
        list.push(start(&work).await?);
    }
    let list = StaticList::new(list);

    let plain = XClient::builder("Foo", list.clone()).idempotent(true).build()?;
    let without = run(&plain, &work).await?;
    let hedge = Hedge::percentile(0.95);
    let hedged = XClient::builder("Foo", list).idempotent(true).layer(hedge.clone()).build()?;
    let with = run(&hedged, &work).await?;

    println!("              p50        p99   handlers started   ended early");
    println!("without  {without}");
    println!("hedged   {with}");
    let stats = hedge.stats();
    println!(
        "{} calls were hedged after {:?}, {} of those won",
        stats.hedged,
        hedge.delay(),
        stats.won
    );
    assert!(with.p99 < without.p99 / 2, "most pauses are not seen");
    let calls = (WORKERS * CALLS_EACH) as u64;
    assert!(with.started <= calls + calls / 5 + 200, "within the retry budget");
    assert!(with.cancelled > 0, "who lost is cancelled on the wire");
    Ok(())
}

/// What came of a number of calls.
struct Outcome {
    p50: Duration,
    p99: Duration,
    started: u64,
    cancelled: u64,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p99, started, cancelled } = self;
        write!(f, "{p50:>9.1?}  {p99:>9.1?}   {started:>16}   {cancelled:>11}")
    }
}

/// Makes the calls and measures them.
async fn run(client: &XClient, work: &Arc<Work>) -> Result<Outcome, Box<dyn Error>> {
    let before = (work.started.load(Relaxed), work.cancelled.load(Relaxed));
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(CALLS_EACH);
                for _ in 0..CALLS_EACH {
                    let started = Instant::now();
                    let doubled: i64 = client.call("Foo.Double", &21_i64).await?;
                    assert_eq!(doubled, 42);
                    latencies.push(started.elapsed());
                }
                Ok::<_, srpc::Error>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for worker in workers {
        latencies.extend(worker.await??);
    }
    latencies.sort_unstable();
    // The last losers' cancels are on their way.
    sleep(Duration::from_millis(50)).await;
    Ok(Outcome {
        p50: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
        started: work.started.load(Relaxed) - before.0,
        cancelled: work.cancelled.load(Relaxed) - before.1,
    })
}

/// What the handlers of all servers have done.
#[derive(Default)]
struct Work {
    started: AtomicU64,
    cancelled: AtomicU64,
}

/// Counts a handler that was dropped before its end.
struct Started<'a> {
    work: &'a Work,
    ended: bool,
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        self.work.cancelled.fetch_add(u64::from(!self.ended), Relaxed);
    }
}

async fn start(work: &Arc<Work>) -> Result<Instance, Box<dyn Error>> {
    let double = async |work: State<Work>, n: i64| {
        let number = work.started.fetch_add(1, Relaxed);
        let mut started = Started { work: &work, ended: false };
        sleep(if number % 50 == 49 { PAUSE } else { USUAL }).await;
        started.ended = true;
        Ok::<_, std::convert::Infallible>(2 * n)
    };
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let instance = Instance::at(listener.address().clone());
    let service = Service::with_state("Foo", Arc::clone(work)).method("Double", double);
    tokio::spawn(Server::new().service(service).serve(listener, std::future::pending()));
    Ok(instance)
}
