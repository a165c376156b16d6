//! One of the clients: keeps calls in flight and writes into its ledger what became of each.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use srpc::backend::http::HttpRegistry;
use srpc::discovery::{Endpoint, Snapshot, SnapshotStatus};
use srpc::{Call, Execution, Reply, XClient};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::orders::orders;
use super::{REGISTRY_TIMEOUT, SERVICE};
use crate::clock::Clock;
use crate::ledger::{CallId, Class, Ledger};

const IN_FLIGHT: usize = 8;
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(300);
const DEADLINE: Duration = Duration::from_secs(2);
/// What a worker does after a call that failed: as long as a handler works, so that calls that
/// fail at once do not make a load of their own.
const PAUSE: Duration = Duration::from_millis(5);
/// How often the control sends a call.
const BLIND_TRIES: usize = 5;
/// Longer than any call that is abandoned is let to run.
const HOLD: Duration = Duration::from_secs(10);

/// A client to be run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) registry: String,
    pub(crate) number: usize,
    pub(crate) idempotent: bool,
    /// Whether its user sends every failed call again, whatever its class.
    pub(crate) blind_retry: bool,
    pub(crate) ledger: PathBuf,
}

/// What the workers share.
struct Work {
    client: XClient,
    number: usize,
    tries: usize,
    ledger: Ledger,
    clock: Clock,
    next: AtomicU64,
    stop: AtomicBool,
}

impl Client {
    pub(super) async fn run(self, clock: Clock) -> Result<(), Box<dyn Error>> {
        let mut orders = orders();
        let registry = HttpRegistry::builder(&self.registry).timeout(REGISTRY_TIMEOUT).build()?;
        let client = XClient::builder(SERVICE, registry)
            .attempt_timeout(ATTEMPT_TIMEOUT)
            .deadline(DEADLINE)
            .idempotent(self.idempotent)
            .build()?;
        client.resolver().ready(Duration::from_secs(5)).await?;
        println!("ready");
        let work = Arc::new(Work {
            client,
            number: self.number,
            tries: if self.blind_retry { BLIND_TRIES } else { 1 },
            ledger: Ledger::create(&self.ledger)?,
            clock,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let mut workers = JoinSet::new();
        let mut held = JoinSet::new();
        while let Some(order) = orders.recv().await {
            match order.words.as_str() {
                "start" => {
                    for _ in 0..IN_FLIGHT {
                        workers.spawn(Arc::clone(&work).run());
                    }
                    order.answer("started");
                }
                "look" => order.answer(&usable(&work.client.resolver().snapshot())),
                "abandon" => {
                    held.shutdown().await;
                    order.answer("abandoned");
                }
                "stop" => {
                    work.stop.store(true, Relaxed);
                    while let Some(ended) = workers.join_next().await {
                        ended?;
                    }
                    order.answer("stopped");
                    return Ok(());
                }
                words => {
                    let calls = words.strip_prefix("hold ").unwrap_or_default().parse::<usize>()?;
                    for _ in 0..calls {
                        held.spawn(hold(work.client.clone()));
                    }
                    order.answer("holding");
                }
            }
        }
        Ok(())
    }
}

impl Work {
    /// Makes one call after the other.
    async fn run(self: Arc<Self>) {
        while !self.stop.load(Relaxed) {
            let id = CallId { client: self.number, n: self.next.fetch_add(1, Relaxed) };
            self.ledger.line(format_args!("s {} {}", id.n, self.clock.now()));
            let (class, attempt, server) = self.call(id).await;
            let now = self.clock.now();
            let server = server.strip_prefix("tcp@").unwrap_or(&server);
            self.ledger.line(format_args!("e {} {now} {class} {attempt} {server}", id.n));
            if class.is_failure() {
                sleep(PAUSE).await;
            }
        }
    }

    /// How one call ended, at which attempt if it failed, and where.
    async fn call(&self, id: CallId) -> (Class, u32, String) {
        let mut strongest = Execution::NotSent;
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.send(id).await {
                Ok((reply, answer)) => {
                    let class = if answer == id.answer() { Class::Ok } else { Class::Wrong };
                    let server = reply.endpoint().map_or("-", |server| server.as_str());
                    return (class, 0, server.to_owned());
                }
                Err(error) => error,
            };
            strongest = strongest.max(error.execution());
            if tries >= self.tries {
                let server = error.endpoint().map_or("-", |server| server.as_str());
                return (strongest.into(), error.attempt(), server.to_owned());
            }
        }
    }

    async fn send(&self, id: CallId) -> Result<(Reply, u64), srpc::Error> {
        let reply = self.client.send(Call::new("Drill.Work").args(&id)?).await?;
        let answer = reply.decode()?;
        Ok((reply, answer))
    }
}

/// A call that ends only by being dropped.
async fn hold(client: XClient) {
    let Ok(call) = Call::new("Drill.Hold").args(&()) else { return };
    let until = Instant::now() + HOLD;
    let _ = client.send(call.deadline(until).attempt_timeout(HOLD)).await;
}

/// Whether its list is fresh, and each server that this client would call, with how many calls that
/// one has answered: `ready HOST:PORT=N ...`.
fn usable(snapshot: &Snapshot) -> String {
    let now = Instant::now();
    let status = if snapshot.status == SnapshotStatus::Ready { "ready" } else { "stale" };
    let usable = snapshot.endpoints.iter().filter(|endpoint| endpoint.is_usable(now));
    let server = |endpoint: &Endpoint| {
        format!(" {}={}", endpoint.instance().address.target(), endpoint.stats().succeeded())
    };
    usable.fold(status.to_owned(), |text, endpoint| text + &server(endpoint))
}
