//! The registry dies, stays away, and comes back empty on its port, while calls go on: none fails,
//! no client sees fewer servers, and the registrars fill the registry again.
//!
//! ```text
//! cargo run --release --example registry_restart
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::registry::Registrar;
use srpc::{Listener, Server, Service, ServiceName, XClient};
use tokio::time::{Instant, sleep};

const SERVERS: usize = 3;
/// A registrar renews three times in this time.
const LEASE: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let address = listener.address().clone();
    let url = format!("http://{}/srpc/registry", address.target());
    let serving = tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));
    for _ in 0..SERVERS {
        start_server(&url).await?;
    }
    let registry = HttpRegistry::new(&url)?;
    complete(&registry).await?;
    let client = XClient::new("Foo", registry.clone())?;
    client.resolver().ready(Duration::from_secs(5)).await?;

    let counts = Arc::new(Counts::default());
    let load = tokio::spawn(work(client.clone(), Arc::clone(&counts)));
    sleep(Duration::from_secs(1)).await;
    serving.abort();
    let _ = serving.await;
    println!("the registry is dead");
    sleep(LEASE * 2).await;
    println!("for two leases; the client knows {} servers", known(&client));
    assert_eq!(known(&client), SERVERS, "the last list is served");

    let listener = Listener::bind(address.as_str()).await?;
    tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));
    let back = Instant::now();
    complete(&registry).await?;
    println!("the registry is back, and complete after {:.1?}", back.elapsed());
    sleep(Duration::from_secs(1)).await;

    load.abort();
    let (ok, failed) = (counts.ok.load(Relaxed), counts.failed.load(Relaxed));
    let fewest = counts.fewest.load(Relaxed);
    println!("calls: {ok} ok, {failed} failed; the client knew {fewest} servers at least");
    assert!(ok > 0 && failed == 0, "calls do not need the registry");
    assert_eq!(fewest, SERVERS as u64, "no client sees fewer");
    Ok(())
}

struct Counts {
    ok: AtomicU64,
    failed: AtomicU64,
    /// The fewest servers that the client ever knew.
    fewest: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { ok: AtomicU64::new(0), failed: AtomicU64::new(0), fewest: AtomicU64::new(u64::MAX) }
    }
}

/// Calls one after the other until it is aborted.
async fn work(client: XClient, counts: Arc<Counts>) {
    loop {
        match client.call::<i64, i64>("Foo.Double", &21).await {
            Ok(42) => counts.ok.fetch_add(1, Relaxed),
            wrong => {
                eprintln!("{wrong:?}");
                counts.failed.fetch_add(1, Relaxed)
            }
        };
        counts.fewest.fetch_min(known(&client) as u64, Relaxed);
        sleep(Duration::from_millis(1)).await;
    }
}

fn known(client: &XClient) -> usize {
    client.resolver().snapshot().endpoints.len()
}

/// Waits until the registry lists every server.
async fn complete(registry: &HttpRegistry) -> Result<(), Box<dyn Error>> {
    let service: ServiceName = "Foo".parse()?;
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        // While it is away this is an error.
        let listed = registry.list(Some(&service)).await.map_or(0, |list| list.entries.len());
        if listed == SERVERS {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(format!("the registry lists {listed} of {SERVERS} servers").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn start_server(url: &str) -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let double = |n: i64| async move { Ok::<_, Infallible>(2 * n) };
    let registrar = Registrar::builder(Arc::new(HttpRegistry::new(url)?)).ttl(LEASE).build();
    let server =
        Server::new().service(Service::new("Foo").method("Double", double)).registrar(registrar);
    tokio::spawn(server.serve(listener, std::future::pending()));
    Ok(())
}
