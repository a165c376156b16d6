//! The HTTP registry: two servers register themselves, a client finds them, one drains and leaves
//! while calls go on.
//!
//! ```text
//! cargo run --release --example http_registry
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::registry::Registrar;
use srpc::{Listener, Server, Service, ServiceName, XClient};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let url = format!("http://{}/srpc/registry", listener.address().target());
    tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));

    let staying = start(&url).await?;
    let leaving = start(&url).await?;
    let registry = HttpRegistry::new(&url)?;
    listed(&registry, 2).await?;

    let client = XClient::new("Foo", registry.clone())?;
    let load = tokio::spawn(load(client));
    // From here on it drains: it marks itself, lets its clients see that, ends what it has begun,
    // and takes its registration back.
    let _ = leaving.stop.send(());
    leaving.serving.await??;
    println!("one server has left");
    listed(&registry, 1).await?;

    let (calls, failed) = load.await?;
    println!("{calls} calls, {failed} failed");
    assert!(calls > 0 && failed == 0, "a server that drains fails no call");
    drop(staying);
    Ok(())
}

/// Prints what the registry holds once it is as much as expected.
async fn listed(registry: &HttpRegistry, expected: usize) -> Result<(), Box<dyn Error>> {
    let service: ServiceName = "Foo".parse()?;
    let give_up = Instant::now() + Duration::from_secs(5);
    loop {
        let entries = registry.list(Some(&service)).await?.entries;
        if entries.len() == expected {
            for entry in entries {
                println!("Foo: {} is {}", entry.instance.address, entry.instance.health);
            }
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(format!("{} are registered, not {expected}", entries.len()).into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Calls one after the other for four seconds.
async fn load(client: XClient) -> (u64, u64) {
    let (mut calls, mut failed) = (0, 0);
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        calls += 1;
        if let Err(error) = client.call::<i64, i64>("Foo.Double", &calls).await {
            failed += 1;
            eprintln!("{error}");
        }
        sleep(Duration::from_millis(1)).await;
    }
    (calls.unsigned_abs(), failed)
}

struct Running {
    stop: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
}

/// A server that registers once it listens.
async fn start(url: &str) -> Result<Running, Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let double = |n: i64| async move { Ok::<_, Infallible>(2 * n) };
    let server = Server::new()
        .service(Service::new("Foo").method("Double", double))
        .registrar(Registrar::new(Arc::new(HttpRegistry::new(url)?)))
        .instance(|instance| instance.version("1.0").zone("here"));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(listener, async {
        let _ = stopped.await;
    }));
    Ok(Running { stop, serving })
}
