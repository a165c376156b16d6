//! DNS as the source: a client follows the SRV records of a name, their weights and priorities, and goes on
//! with what it knows while the server of names is gone. It runs a server of names of its own.
//!
//! ```text
//! cargo run --release --features dns --example dns_srv
//! ```

#[path = "engines/mod.rs"]
mod engines;

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use hickory_server::proto::rr::RecordType;
use srpc::backend;
use srpc::discovery::Resolver;
use srpc::selector::RoundRobin;
use srpc::{Listener, Server, Service, XClient};
use tokio::time::sleep;

use self::engines::zone::{Zone, a, srv};

const NAME: &str = "_greeter._tcp.example.test.";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let zone = Zone::serving().await;
    let ports = [serve("light").await?, serve("heavy").await?, serve("spare").await?];
    zone.set("host.example.test.", RecordType::A, 1, vec![a("127.0.0.1")]).await;
    // Priority, weight, port: the spare one takes calls only while none of the others can.
    let records = |light: u16| {
        let of = |(at, priority, weight)| srv(priority, weight, ports[at], "host.example.test.");
        [(0, 10, light), (1, 10, 3), (2, 20, 1)].map(of).to_vec()
    };
    zone.set(NAME, RecordType::SRV, 1, records(1)).await;

    let source = backend::open(&format!("dns+srv://{NAME}?server={}", zone.address))?.discovery;
    let resolver = Resolver::builder("Greeter".parse()?, source).selector(RoundRobin::default());
    let client = XClient::with_resolver(resolver.build()).build()?;
    client.resolver().ready(Duration::from_secs(5)).await?;
    let shares = ask(&client).await?;
    println!("weights 1 and 3:          {shares:?}");
    assert_eq!(shares, BTreeMap::from([("light".to_owned(), 100), ("heavy".to_owned(), 300)]));

    zone.set(NAME, RecordType::SRV, 1, records(3)).await;
    sleep(Duration::from_secs(2)).await;
    let shares = ask(&client).await?;
    println!("weights 3 and 3:          {shares:?}");
    assert_eq!(shares, BTreeMap::from([("light".to_owned(), 200), ("heavy".to_owned(), 200)]));

    zone.kill().await;
    sleep(Duration::from_secs(2)).await;
    let shares = ask(&client).await?;
    println!("the server of names gone: {shares:?}");
    assert_eq!(shares.values().sum::<u32>(), 400);
    Ok(())
}

/// Serves on a port of its own.
async fn serve(name: &'static str) -> Result<u16, Box<dyn Error>> {
    let hello = move |(): ()| async move { Ok::<_, String>(name) };
    let server = Server::new().service(Service::new("Greeter").method("Hello", hello));
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let port = listener.address().port().ok_or("a port")?;
    tokio::spawn(server.serve(listener, std::future::pending()));
    Ok(port)
}

/// How many of 400 calls each server answers.
async fn ask(client: &XClient) -> Result<BTreeMap<String, u32>, Box<dyn Error>> {
    let mut shares = BTreeMap::new();
    for _ in 0..400 {
        *shares.entry(client.call("Greeter.Hello", &()).await?).or_default() += 1;
    }
    Ok(shares)
}
