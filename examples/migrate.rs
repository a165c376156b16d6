//! A move from one registry to another without a gap: clients look at both, while servers are restarted one
//! after the other to register with the new one.
//!
//! ```text
//! cargo run --release --example migrate
//! ```

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::backend::wrap::Merged;
use srpc::discovery::Discovery;
use srpc::registry::Registrar;
use srpc::{Listener, Server, Service, XClient};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const SERVERS: usize = 3;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (old, old_serving) = registry().await?;
    let (new, _new_serving) = registry().await?;
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(serve(&old).await?);
    }

    let both: [Arc<dyn Discovery>; 2] = [Arc::new(old.clone()), Arc::new(new.clone())];
    let client = XClient::new("Foo", Merged::new(both))?;
    client.resolver().ready(Duration::from_secs(5)).await?;
    let done = Arc::new(AtomicBool::new(false));
    let calling = tokio::spawn(call_until(client.clone(), Arc::clone(&done)));

    let mut moved = Vec::new();
    for (n, (stop, serving)) in servers.into_iter().enumerate() {
        let _ = stop.send(());
        serving.await??;
        // Kept until the end: a server ends with what stops it.
        moved.push(serve(&new).await?);
        println!("server {} of {SERVERS} has moved", n + 1);
        sleep(Duration::from_millis(300)).await;
    }
    // Nobody is left there: the old registry can go.
    old_serving.abort();
    sleep(Duration::from_secs(1)).await;
    done.store(true, Relaxed);
    let (made, failed) = calling.await?;
    // What has left is doubted for a while: registries that have just started prove nothing.
    let snapshot = client.resolver().snapshot();
    let known = snapshot.endpoints.iter().filter(|endpoint| !endpoint.is_doubtful()).count();
    println!("{made} calls while all moved, {failed} failed; {known} instances are known");
    assert_eq!((failed, known), (0, SERVERS));
    assert!(made > 100);
    Ok(())
}

async fn registry() -> Result<(HttpRegistry, JoinHandle<std::io::Result<()>>), Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let url = format!("http://{}", listener.address().target());
    let serving = tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));
    Ok((HttpRegistry::new(&url)?, serving))
}

type Serving = (oneshot::Sender<()>, JoinHandle<std::io::Result<()>>);

/// A server that registers there, until it is told to stop.
async fn serve(registry: &HttpRegistry) -> Result<Serving, Box<dyn Error>> {
    let echo = |text: String| async { Ok::<_, String>(text) };
    let server = Server::new()
        .service(Service::new("Foo").method("Echo", echo))
        .drain_delay(Duration::from_millis(500))
        .registrar(Registrar::new(Arc::new(registry.clone())));
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    Ok((stop, tokio::spawn(server.serve(listener, stopped))))
}

/// How many calls were made, none of which may be sent twice, and how many failed.
async fn call_until(client: XClient, done: Arc<AtomicBool>) -> (u64, u64) {
    let (mut made, mut failed) = (0, 0);
    while !done.load(Relaxed) {
        made += 1;
        let answer = client.call::<_, String>("Foo.Echo", "hello").await;
        failed += u64::from(answer.is_err());
        sleep(Duration::from_millis(2)).await;
    }
    (made, failed)
}
