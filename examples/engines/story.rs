//! What the examples of etcd and of ZooKeeper tell: servers register there, a client finds them, and calls go
//! on while the engine is gone.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use srpc::discovery::Discovery;
use srpc::registry::{Registrar, Registry};
use srpc::{Listener, Server, Service, XClient};
use tokio::time::{Instant, sleep};

/// How long the engine is gone.
const OUTAGE: Duration = Duration::from_secs(3);

/// Runs it; `kill` and `restart` are the engine's.
pub(crate) async fn tell<B>(
    engine: &str,
    backend: B,
    kill: impl FnOnce(),
    restart: impl AsyncFnOnce(),
) -> Result<(), Box<dyn Error>>
where
    B: Registry + Discovery + Clone,
{
    for n in 0..2 {
        let hello = move |name: String| async move { Ok::<_, String>(format!("{name}, by {n}")) };
        let server = Server::new()
            .service(Service::new("Greeter").method("Hello", hello))
            .registrar(Registrar::new(Arc::new(backend.clone())));
        let listener = Listener::bind("tcp@127.0.0.1:0").await?;
        tokio::spawn(server.serve(listener, std::future::pending()));
    }
    let client = XClient::new("Greeter", backend.clone())?;
    while client.resolver().snapshot().endpoints.len() < 2 {
        sleep(Duration::from_millis(20)).await;
    }
    println!("{engine}: two servers are registered, and found");

    kill();
    let (start, mut made) = (Instant::now(), 0);
    while start.elapsed() < OUTAGE {
        let answer: String = client.call("Greeter.Hello", "hello").await?;
        assert!(answer.starts_with("hello, by "), "{answer}");
        made += 1;
        sleep(Duration::from_millis(2)).await;
    }
    println!("{engine}: gone for {OUTAGE:?}: {made} calls, none failed");
    restart().await;
    let start = Instant::now();
    while backend.resolve(client.resolver().service()).await?.instances.len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(20), "the servers register again");
        sleep(Duration::from_millis(20)).await;
    }
    println!("{engine}: back, and complete again after {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
