//! reqwest over a discovery, beside reqwest with a resolver of names of its own: two servers share the
//! requests, and one that drains gets none.
//!
//! ```text
//! cargo run --release --features reqwest --example reqwest_client
//! ```

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "an example ends where anything goes wrong"
)]
#![allow(clippy::disallowed_methods, reason = "a server of its own opens its own sockets")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use parking_lot::Mutex;
use reqwest::Request;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use srpc::Instance;
use srpc::adapt::reqwest::Client;
use srpc::backend::static_list::StaticList;
use srpc::discovery::Resolver;
use srpc::instance::Health;
use tokio::net::TcpListener;

const REQUESTS: usize = 200;
const URL: &str = "http://web.example/";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let servers = [Web::start().await?, Web::start().await?];
    let at = servers.each_ref().map(|server| server.address);

    // What reqwest offers: a resolver of names, here one that turns its list with every question.
    let turning = Arc::new(Turning { list: Mutex::new(at.to_vec()), asked: AtomicUsize::new(0) });
    let stock = reqwest::Client::builder().no_proxy().dns_resolver(Arc::clone(&turning)).build()?;
    for _ in 0..REQUESTS {
        stock.get(URL).send().await?.error_for_status()?;
    }
    let stock_shares = taken(&servers);
    let busy = usize::from(stock_shares[1] > stock_shares[0]);
    turning.list.lock().remove(busy);
    for _ in 0..REQUESTS {
        stock.get(URL).send().await?.error_for_status()?;
    }
    let stock_drained = taken(&servers)[busy];

    let list = StaticList::new(at.map(instance));
    let resolver = Resolver::new("web".parse()?, Arc::new(list.clone()));
    let ours = Client::new(resolver, "web.example");
    for _ in 0..REQUESTS {
        let answer = ours.execute(Request::new(reqwest::Method::GET, URL.parse()?)).await?;
        assert_eq!(answer.text().await?, "web.example", "the header Host is as ever");
    }
    let our_shares = taken(&servers);
    list.update(vec![instance(at[0]), instance(at[1]).health(Health::Draining)]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..REQUESTS {
        ours.execute(Request::new(reqwest::Method::GET, URL.parse()?)).await?;
    }
    let our_drained = taken(&servers)[1];

    list.update(Vec::new());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let nobody = ours.execute(Request::new(reqwest::Method::GET, URL.parse()?)).await.unwrap_err();

    println!("{:<36} {:<18} ours", "case", "reqwest's resolver");
    let shares = |[one, other]: [usize; 2]| format!("{one} / {other}");
    let case = format!("two live, {REQUESTS} requests");
    println!("{case:<36} {:<18} {}", shares(stock_shares), shares(our_shares));
    let case = format!("one drained, {REQUESTS} more: to it");
    println!("{case:<36} {stock_drained:<18} {our_drained}");
    println!("{:<36} {:<18} {nobody}", "none left", "-");
    let fair = REQUESTS * 35 / 100..=REQUESTS * 65 / 100;
    assert!(our_shares.iter().all(|share| fair.contains(share)), "{our_shares:?}");
    assert_eq!(our_drained, 0);
    assert!(nobody.to_string().contains("no instance of web"), "{nobody}");
    Ok(())
}

fn instance(at: SocketAddr) -> Instance {
    Instance::at(format!("tcp@{at}").parse().expect("an address"))
}

/// A server that counts its requests, and answers with their header `Host`.
struct Web {
    address: SocketAddr,
    taken: Arc<AtomicUsize>,
}

impl Web {
    async fn start() -> std::io::Result<Self> {
        let taken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&taken);
        let hello = move |headers: axum::http::HeaderMap| async move {
            counted.fetch_add(1, Relaxed);
            headers["host"].to_str().unwrap_or_default().to_owned()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let app = Router::new().route("/", get(hello));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, taken })
    }
}

/// How many requests each has taken since this was asked last.
fn taken(servers: &[Web; 2]) -> [usize; 2] {
    servers.each_ref().map(|server| server.taken.swap(0, Relaxed))
}

/// A resolver of names whose answers begin with another address each time.
struct Turning {
    list: Mutex<Vec<SocketAddr>>,
    asked: AtomicUsize,
}

impl Resolve for Turning {
    fn resolve(&self, _: Name) -> Resolving {
        let mut addresses = self.list.lock().clone();
        let len = addresses.len().max(1);
        addresses.rotate_left(self.asked.fetch_add(1, Relaxed) % len);
        Box::pin(async move { Ok(Box::new(addresses.into_iter()) as Addrs) })
    }
}
