//! A registry, three servers as processes of their own, and a client under load. Midway one server
//! is killed with SIGKILL, and no call fails.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::discovery::Endpoint;
use srpc::registry::Registrar;
use srpc::{Listener, Server, Service, XClient};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

const SERVERS: usize = 3;
const WORKERS: i64 = 16;
const LOAD: Duration = Duration::from_secs(4);

#[derive(Serialize, Deserialize)]
struct SumArgs {
    a: i64,
    b: i64,
}

async fn sum(args: SumArgs) -> Result<i64, Infallible> {
    Ok(args.a + args.b)
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    // This program starts itself again, once for each server.
    if let Some(registry) = std::env::args().nth(1) {
        serve(&registry).await?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::time::timeout(Duration::from_secs(25), demonstrate()).await?
}

/// A server process: registers once it listens, and leaves when its parent is gone.
async fn serve(registry: &str) -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let registrar = Registrar::new(Arc::new(HttpRegistry::new(registry)?));
    let parent_gone = async {
        // Standard input is a pipe from the parent, which closes when the parent ends.
        let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    };
    Server::new()
        .service(Service::new("Foo").method("Sum", sum))
        .registrar(registrar)
        .instance(|instance| instance.meta("pid", std::process::id().to_string()))
        .serve(listener, parent_gone)
        .await?;
    Ok(())
}

async fn demonstrate() -> Result<ExitCode, Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let url = format!("http://{}/srpc/registry", listener.address().target());
    println!("registry: {url}");
    tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));

    let mut servers = Servers::start(&url)?;
    let client = XClient::builder("Foo", HttpRegistry::new(&url)?).idempotent(true).build()?;
    let endpoints = all_registered(&client).await?;
    println!("{SERVERS} servers have registered; {WORKERS} workers call Foo.Sum for {LOAD:?}.");
    println!("Calls are marked idempotent: what was in flight on a killed server may have been");
    println!("executed, so it is sent again only if a second execution does no harm.\n");

    let counts = Arc::new(Counts::default());
    let until = Instant::now() + LOAD;
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| tokio::spawn(work(client.clone(), worker, until, Arc::clone(&counts))))
        .collect();
    tokio::time::sleep(LOAD / 2).await;
    let killed = servers.kill_one()?;
    for worker in workers {
        worker.await?;
    }

    println!("{:<24} {:>8} {:>16}  state", "server", "pid", "calls answered");
    for endpoint in &endpoints {
        let pid = pid(endpoint);
        let state = if pid == killed { "killed midway" } else { "up" };
        let answered = endpoint.stats().succeeded();
        println!("{:<24} {pid:>8} {answered:>16}  {state}", endpoint.instance().address.as_str());
    }
    let (ok, failed) = (counts.ok.load(Relaxed), counts.failed.load(Relaxed));
    println!("\ncalls={} ok={ok} failed={failed} killed=1", ok + failed);
    Ok(if failed == 0 && ok > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Default)]
struct Counts {
    ok: AtomicU64,
    failed: AtomicU64,
}

/// Calls one after the other until the time is over, and checks every answer.
async fn work(client: XClient, worker: i64, until: Instant, counts: Arc<Counts>) {
    let mut n = 0;
    while Instant::now() < until {
        n += 1;
        let args = SumArgs { a: worker, b: n };
        match client.call::<_, i64>("Foo.Sum", &args).await {
            Ok(sum) if sum == worker + n => {
                counts.ok.fetch_add(1, Relaxed);
            }
            wrong => {
                counts.failed.fetch_add(1, Relaxed);
                eprintln!("{worker} + {n}: {wrong:?}");
            }
        }
    }
}

/// Waits until the client knows every server.
async fn all_registered(client: &XClient) -> Result<Vec<Endpoint>, Box<dyn Error>> {
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        let snapshot = client.resolver().snapshot();
        if snapshot.endpoints.len() == SERVERS {
            return Ok(snapshot.endpoints.iter().cloned().collect());
        }
        if Instant::now() > give_up {
            return Err("not all servers registered within 10 s".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.resolver().refresh().await?;
    }
}

fn pid(endpoint: &Endpoint) -> &str {
    endpoint.instance().metadata.get("pid").map_or("?", String::as_str)
}

/// The server processes; none outlives this value.
struct Servers(Vec<Child>);

impl Servers {
    fn start(registry: &str) -> Result<Self, Box<dyn Error>> {
        let mut servers = Self(Vec::new());
        for _ in 0..SERVERS {
            let mut command = Command::new(std::env::current_exe()?);
            servers.0.push(command.arg(registry).stdin(Stdio::piped()).spawn()?);
        }
        Ok(servers)
    }

    /// Kills the first with SIGKILL, which no process can see coming, and tells its id.
    fn kill_one(&mut self) -> Result<String, Box<dyn Error>> {
        let server = self.0.first_mut().ok_or("no server was started")?;
        server.kill()?;
        Ok(server.id().to_string())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.0 {
            // One that is dead already cannot be killed, and need not be.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
