//! A deploy: three servers of version 1 are replaced, one after another, by servers of version 2,
//! under calls that may not be made twice. None fails, and none is executed twice.
//!
//! ```text
//! cargo run --release --example drain_deploy
//! ```

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::registry::Registrar;
use srpc::server::State;
use srpc::{Listener, Server, Service, XClient};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const SERVERS: usize = 3;
const WORKERS: u64 = 16;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let url = format!("http://{}/srpc/registry", listener.address().target());
    tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));
    let ledger = Arc::new(Ledger::default());
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(Running::start(&url, 1, &ledger).await?);
    }
    let client = XClient::new("Orders", HttpRegistry::new(&url)?)?;
    until(&client, 1, SERVERS).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| tokio::spawn(work(client.clone(), worker, Arc::clone(&stop))))
        .collect();
    for old in std::mem::take(&mut servers) {
        let started = Instant::now();
        // First the new one, so that there are never fewer than before.
        servers.push(Running::start(&url, 2, &ledger).await?);
        until(&client, 2, servers.len()).await?;
        // What SIGTERM does in `srpc serve`: the registry is told, clients turn away, calls in
        // flight end, and then the server goes.
        let _ = old.stop.send(());
        old.serving.await??;
        println!("one server was replaced in {:.1?}", started.elapsed());
    }
    sleep(Duration::from_millis(500)).await;
    stop.store(true, Relaxed);

    let (mut ok, mut failed) = (0, 0);
    for worker in workers {
        let (succeeded, lost) = worker.await?;
        ok += succeeded;
        failed += lost;
    }
    let twice = ledger.twice.load(Relaxed);
    let executed = ledger.executed.lock().len();
    println!("calls: {ok} ok, {failed} failed; executed: {executed}, {twice} of them twice");
    assert!(ok > 0 && failed == 0, "a deploy fails no call");
    assert!(twice == 0 && executed as u64 == ok, "and none is made twice");
    Ok(())
}

/// Places orders, each with a number of its own, until it is told to stop.
async fn work(client: XClient, worker: u64, stop: Arc<AtomicBool>) -> (u64, u64) {
    let (mut ok, mut failed) = (0, 0);
    while !stop.load(Relaxed) {
        let order = worker << 32 | ok | failed;
        match client.call::<u64, u64>("Orders.Place", &order).await {
            Ok(placed) if placed == order => ok += 1,
            wrong => {
                eprintln!("{wrong:?}");
                failed += 1;
            }
        }
    }
    (ok, failed)
}

/// Every order that any server has executed.
#[derive(Default)]
struct Ledger {
    executed: Mutex<HashSet<u64>>,
    twice: AtomicU64,
}

struct Running {
    stop: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
}

impl Running {
    async fn start(url: &str, version: u32, ledger: &Arc<Ledger>) -> Result<Self, Box<dyn Error>> {
        let place = async |ledger: State<Ledger>, order: u64| {
            if !ledger.executed.lock().insert(order) {
                ledger.twice.fetch_add(1, Relaxed);
            }
            sleep(Duration::from_millis(5)).await;
            Ok::<_, std::convert::Infallible>(order)
        };
        let orders = Service::with_state("Orders", Arc::clone(ledger)).method("Place", place);
        let server = Server::new()
            .service(orders)
            .registrar(Registrar::new(Arc::new(HttpRegistry::new(url)?)))
            .instance(move |instance| instance.version(version.to_string()))
            // Long enough for the watch of every client to tell it; the default is 2 s.
            .drain_delay(Duration::from_millis(500));
        let listener = Listener::bind("tcp@127.0.0.1:0").await?;
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.serve(listener, async {
            // Whether told or left alone, it is over.
            let _ = stopped.await;
        }));
        Ok(Self { stop, serving })
    }
}

/// Waits until the client knows so many ready servers of a version.
async fn until(client: &XClient, version: u32, count: usize) -> Result<(), Box<dyn Error>> {
    let give_up = Instant::now() + Duration::from_secs(10);
    let version = version.to_string();
    loop {
        let snapshot = client.resolver().snapshot();
        let of_it = |e: &&srpc::discovery::Endpoint| {
            e.is_ready() && e.instance().version.as_deref() == Some(&version)
        };
        if snapshot.endpoints.iter().filter(of_it).count() == count {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(format!("version {version} did not come up within 10 s").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}
