//! An axum server that leaves under load, while its clients learn of it 200 ms late: stopped at once, and
//! stopped by `Registered`, which drains first.
//!
//! ```text
//! cargo run --release --features reqwest --example axum_register
//! ```

#![allow(clippy::expect_used, reason = "an example ends where anything goes wrong")]
#![allow(clippy::disallowed_methods, reason = "a server of its own opens its own sockets")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::routing::get;
use srpc::adapt::Registered;
use srpc::backend::memory::MemoryRegistry;
use srpc::discovery::{Discovery, DiscoveryError, Resolved, Resolver, UpdateStream};
use srpc::registry::Registrar;
use srpc::selector::PickContext;
use srpc::{Instance, ServiceName};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How late clients see what the registry knows.
const LATE: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let at_once = leave(false).await?;
    let drained = leave(true).await?;
    println!(
        "{:<40} {:<22} drained by Registered",
        "one of two leaves, seen 200 ms late", "stopped at once"
    );
    let failed = format!("{} of {} failed", at_once.1, at_once.0);
    println!(
        "{:<40} {failed:<22} {} of {} failed",
        "requests that cannot be sent again", drained.1, drained.0
    );
    assert_eq!(drained.1, 0);
    assert!(drained.0 > 500);
    Ok(())
}

/// How many requests were made while one of two servers left, and how many of them failed.
async fn leave(in_order: bool) -> Result<(usize, usize), Box<dyn Error>> {
    let registry = MemoryRegistry::new();
    let (stays, _stop) = start(&registry, true).await?;
    let (leaves, stop) = start(&registry, in_order).await?;
    let resolver = Resolver::new("web".parse()?, Arc::new(Late(registry.clone())));
    while resolver.snapshot().endpoints.len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let calling = tokio::spawn(call_for(Duration::from_secs(3), resolver));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _ = stop.send(());
    leaves.await?;
    let made = calling.await?;
    stays.abort();
    Ok(made)
}

/// A server that is registered, and what stops it: in order, or at once.
async fn start(
    registry: &MemoryRegistry,
    in_order: bool,
) -> Result<(JoinHandle<()>, oneshot::Sender<()>), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let instance = Instance::at(format!("tcp@{}", listener.local_addr()?).parse()?);
    let app = Router::new().route("/", get(async || "hello"));
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    let registrar = Registrar::new(Arc::new(registry.clone()));
    let service: ServiceName = "web".parse()?;
    let serving = tokio::spawn(async move {
        if in_order {
            let registered = Registered::new(registrar, service, instance);
            let served = registered.drain_delay(Duration::from_secs(1)).serve(stopped, |stopped| {
                axum::serve(listener, app).with_graceful_shutdown(stopped).into_future()
            });
            served.await.expect("within the grace").expect("it serves");
        } else {
            registrar.register(service, instance).await.expect("it registers");
            tokio::select! {
                served = axum::serve(listener, app).into_future() => served.expect("it serves"),
                () = stopped => {}
            }
            registrar.close().await;
        }
    });
    Ok((serving, stop))
}

/// Requests one after another, each over a connection of its own and to one of the listed.
async fn call_for(time: Duration, resolver: Resolver) -> (usize, usize) {
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build();
    let http = http.expect("a client");
    let start = Instant::now();
    let (mut made, mut failed) = (0, 0);
    while start.elapsed() < time {
        let now = Instant::now();
        let Some(endpoint) = resolver.pick(&PickContext::new(now, made as u64)) else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let at: SocketAddr = endpoint.instance().address.target().parse().expect("an address");
        made += 1;
        let answered = http.post(format!("http://{at}/")).send().await;
        failed += usize::from(answered.is_err());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (made, failed)
}

/// A source whose answers are as late as they may be in practice.
struct Late(MemoryRegistry);

#[async_trait]
impl Discovery for Late {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let resolved = self.0.resolve(service).await;
        tokio::time::sleep(LATE).await;
        resolved
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let mut watch = self.0.watch(service)?;
        Some(UpdateStream::fed(16, |updates| async move {
            while let Some(update) = watch.next().await {
                tokio::time::sleep(LATE).await;
                if !updates.send(update).await {
                    return;
                }
            }
        }))
    }
}
