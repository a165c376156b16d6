//! One call to many: `broadcast` wants all to succeed, `gather` tells each one's own result, `fork`
//! takes the first success.
//!
//! ```text
//! cargo run --release --example broadcast
//! ```

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::{Address, Instance, Kind, Listener, Server, Service, Status, XClient};
use tokio::time::{Instant, sleep};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let filled = Arc::new(AtomicU32::new(0));
    let fast = start("fast", Duration::from_millis(5), &filled).await?;
    let slow = start("slow", Duration::from_millis(500), &filled).await?;
    let list = StaticList::new([Instance::at(fast), Instance::at(slow)]);
    let client = XClient::new("Cache", list.clone())?;

    // All of them in parallel: success means that every one succeeded.
    let key = "news".to_owned();
    let first: String = client.broadcast("Cache.Fill", &key).await?;
    println!("broadcast: all succeeded, {first} answered first");
    assert_eq!((first.as_str(), filled.load(Relaxed)), ("fast", 2));

    // The first success counts, and the others are cancelled: half a second is not waited for.
    let start_of_fork = Instant::now();
    let winner: String = client.fork("Cache.Fill", &key).await?;
    println!("fork:      {winner} won");
    assert_eq!(winner, "fast");
    assert!(start_of_fork.elapsed() < Duration::from_millis(500));

    // One that is full joins: it fails the broadcast, and gather tells who it is.
    let full = start("full", Duration::ZERO, &filled).await?;
    let mut instances: Vec<Instance> = known(&client);
    instances.push(Instance::at(full.clone()));
    list.update(instances);
    client.resolver().refresh().await?;

    let failed = client.broadcast::<_, String>("Cache.Fill", &key).await;
    let Err(error) = failed else { return Err("a broadcast with a failure succeeded".into()) };
    println!("broadcast: {error}");
    assert_eq!((error.kind(), error.endpoint()), (Kind::FailedPrecondition, Some(&full)));

    let results = client.gather::<_, String>("Cache.Fill", &key).await?;
    for (address, result) in &results {
        match result {
            Ok(name) => println!("gather:    {address} ({name}) succeeded"),
            Err(error) => println!("gather:    {address} failed: {}", error.message()),
        }
    }
    let failures = results.iter().filter(|(_, result)| result.is_err());
    let failures: Vec<&Address> = failures.map(|(address, _)| address).collect();
    assert_eq!((results.len(), failures), (3, vec![&full]));
    Ok(())
}

fn known(client: &XClient) -> Vec<Instance> {
    let snapshot = client.resolver().snapshot();
    snapshot.endpoints.iter().map(|endpoint| endpoint.instance().clone()).collect()
}

/// A cache on a free port that takes its time, and counts what was filled anywhere.
async fn start(name: &'static str, time: Duration, filled: &Arc<AtomicU32>) -> io::Result<Address> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let address = listener.address().clone();
    let filled = Arc::clone(filled);
    let fill = move |_key: String| {
        let filled = Arc::clone(&filled);
        async move {
            sleep(time).await;
            if name == "full" {
                return Err(Status::new(Kind::FailedPrecondition, "no room is left"));
            }
            filled.fetch_add(1, Relaxed);
            Ok(name)
        }
    };
    let server = Server::new().service(Service::new("Cache").method("Fill", fill));
    tokio::spawn(server.serve(listener, std::future::pending()));
    Ok(address)
}
