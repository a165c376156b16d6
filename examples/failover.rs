//! One of two servers dies while calls are in flight on it. Calls of which a second execution does
//! no harm are sent again, to the other: none fails.
//!
//! ```text
//! cargo run --release --example failover
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::{Address, Instance, Listener, Server, Service, XClient};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (dying, living) = (start().await?, start().await?);
    let list = StaticList::new([Instance::at(dying.address), Instance::at(living.address)]);
    // The list never changes: that a server is dead shows in calls to it alone.
    let client = XClient::builder("Foo", list).idempotent(true).build()?;

    let until = Instant::now() + Duration::from_secs(3);
    let workers: Vec<_> = (0..8).map(|_| tokio::spawn(work(client.clone(), until))).collect();
    sleep(Duration::from_secs(1)).await;
    // Its connections break where they are, and its port is closed.
    dying.serving.abort();
    println!("one of two servers is dead");

    let (mut ok, mut failed) = (0, 0);
    for worker in workers {
        let (succeeded, lost) = worker.await?;
        ok += succeeded;
        failed += lost;
    }
    for endpoint in client.resolver().snapshot().endpoints.iter() {
        let stats = endpoint.stats();
        println!(
            "{}: {} attempts succeeded, {} failed",
            endpoint.instance().address,
            stats.succeeded(),
            stats.failed(),
        );
    }
    println!("calls: {ok} ok, {failed} failed");
    assert!(ok > 0 && failed == 0, "no call fails while one server lives");
    Ok(())
}

async fn work(client: XClient, until: Instant) -> (u64, u64) {
    let (mut ok, mut failed) = (0, 0);
    while Instant::now() < until {
        match client.call::<i64, i64>("Foo.Double", &21).await {
            Ok(42) => ok += 1,
            wrong => {
                failed += 1;
                eprintln!("{wrong:?}");
            }
        }
    }
    (ok, failed)
}

struct Running {
    address: Address,
    serving: JoinHandle<io::Result<()>>,
}

/// A server on a free port whose answers take a moment, so that calls are in flight at any time.
async fn start() -> io::Result<Running> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let address = listener.address().clone();
    let double = |n: i64| async move {
        sleep(Duration::from_millis(5)).await;
        Ok::<_, Infallible>(2 * n)
    };
    let server = Server::new().service(Service::new("Foo").method("Double", double));
    Ok(Running { address, serving: tokio::spawn(server.serve(listener, std::future::pending())) })
}
