//! A registry and two servers that make themselves known by plain heartbeats; then five calls, five
//! broadcasts, and five broadcasts of a method that is too slow for three of them.
//!
//! ```text
//! cargo run --release --example seed_scenario
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use srpc::backend::http::{HttpRegistry, RegistryServer, heartbeat};
use srpc::discovery::{Discovery, DiscoveryError, Resolved};
use srpc::selector::Random;
use srpc::{Call, Listener, Server, Service, ServiceName, XClient};
use tokio::time::{Instant, sleep};

#[derive(Serialize, Deserialize)]
struct Args {
    a: u64,
    b: u64,
}

async fn sum(args: Args) -> Result<u64, Infallible> {
    Ok(args.a + args.b)
}

/// Sleeps for the first number of seconds.
async fn slow_sum(args: Args) -> Result<u64, Infallible> {
    sleep(Duration::from_secs(args.a)).await;
    sum(args).await
}

/// Every address that the registry holds: a plain heartbeat names no service.
struct EveryAddress(HttpRegistry);

#[async_trait]
impl Discovery for EveryAddress {
    async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let entries = self.0.list(None).await?.entries;
        let instances: Vec<_> = entries.into_iter().map(|entry| entry.instance).collect();
        Ok(instances.into())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let registry = format!("http://{}/srpc/registry", listener.address().target());
    tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));
    for _ in 0..2 {
        start_server(registry.clone()).await?;
    }

    let discovery = EveryAddress(HttpRegistry::new(&registry)?);
    let client = XClient::builder("Foo", discovery).selector(Random::new()).build()?;
    both_known(&client).await?;

    let mut lines = Vec::new();
    let mut calls = Vec::new();
    for i in 0..5 {
        calls.push(tokio::spawn(call(client.clone(), i)));
    }
    for call in calls {
        lines.push(call.await?);
    }
    let mut broadcasts = Vec::new();
    for i in 0..5 {
        broadcasts.push(tokio::spawn(broadcast(client.clone(), "Foo.Sum", i)));
        broadcasts.push(tokio::spawn(broadcast(client.clone(), "Foo.Sleep", i)));
    }
    for broadcast in broadcasts {
        lines.push(broadcast.await?);
    }

    for line in &lines {
        println!("{line}");
    }
    lines.sort();
    assert_eq!(lines, expected(), "five calls and seven broadcasts succeed, three are too slow");
    Ok(())
}

/// One call on a server that the selector chooses.
async fn call(client: XClient, i: u64) -> String {
    let result = client.call::<_, u64>("Foo.Sum", &Args { a: i, b: i }).await;
    line("call Foo.Sum", i, result)
}

/// One call on every server; those of `Foo.Sleep` have two seconds.
async fn broadcast(client: XClient, method: &'static str, i: u64) -> String {
    let result = async {
        let mut call = Call::new(method).args(&Args { a: i, b: i })?;
        if method == "Foo.Sleep" {
            call = call.timeout(Duration::from_secs(2));
        }
        client.broadcast_call(call).await?.decode::<u64>()
    };
    line(&format!("broadcast {method}"), i, result.await)
}

fn line(what: &str, i: u64, result: Result<u64, srpc::Error>) -> String {
    match result {
        Ok(sum) => format!("{what} success: {i} + {i} = {sum}"),
        Err(error) => format!("{what} error: {}", error.kind()),
    }
}

fn expected() -> Vec<String> {
    let mut lines = Vec::new();
    for i in 0..5 {
        lines.push(line("call Foo.Sum", i, Ok(i + i)));
        lines.push(line("broadcast Foo.Sum", i, Ok(i + i)));
        lines.push(match i {
            0 | 1 => line("broadcast Foo.Sleep", i, Ok(i + i)),
            // A reply at the deadline is too late as well.
            _ => "broadcast Foo.Sleep error: deadline exceeded".to_owned(),
        });
    }
    lines.sort();
    lines
}

/// A server on a free port, which tells the registry its address now and every four minutes.
async fn start_server(registry: String) -> std::io::Result<()> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let address = listener.address().clone();
    let foo = Service::new("Foo").method("Sum", sum).method("Sleep", slow_sum);
    tokio::spawn(Server::new().service(foo).serve(listener, std::future::pending()));
    tokio::spawn(async move { heartbeat(&registry, address.as_str(), Duration::ZERO).await });
    Ok(())
}

/// Waits until the client knows both servers.
async fn both_known(client: &XClient) -> Result<(), Box<dyn Error>> {
    let give_up = Instant::now() + Duration::from_secs(5);
    while client.resolver().snapshot().endpoints.len() < 2 {
        if Instant::now() > give_up {
            return Err("not both servers are known within 5 s".into());
        }
        sleep(Duration::from_millis(20)).await;
        client.resolver().refresh().await?;
    }
    Ok(())
}
