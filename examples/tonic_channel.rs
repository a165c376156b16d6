//! tonic over a discovery, beside tonic's own balancer: without an endpoint, with a dead one among two, and
//! with a list that is emptied and filled again.
//!
//! ```text
//! cargo run --release --features tonic --example tonic_channel
//! ```

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "an example ends where anything goes wrong"
)]
#![allow(clippy::disallowed_methods, reason = "a server of its own opens its own sockets")]

#[path = "greeter/mod.rs"]
mod greeter;

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use srpc::Instance;
use srpc::adapt::tonic::{Channels, Idempotent};
use srpc::backend::static_list::StaticList;
use srpc::discovery::Resolver;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use self::greeter::{Client, Greeter, Text};

const CALLS: usize = 1000;
/// A call that is not answered by then hangs.
const HANGS: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (live, _serving) = Greeter::start().await?;
    let (other, other_serving) = Greeter::start().await?;
    // Nobody listens there any more.
    let refused = TcpListener::bind("127.0.0.1:0")?.local_addr()?;

    println!("{:<38} {:<24} ours", "case", "tonic's own balancer");

    let (stock, ours) = (stock(&[]), ours(&StaticList::new([])));
    let hangs = timeout(HANGS, hello(&mut stock.clone())).await;
    let start = Instant::now();
    let error = hello(&mut ours.clone()).await.unwrap_err();
    let took = start.elapsed();
    let told = format!(
        "{:?} within {:.1} ms: {}",
        error.code(),
        took.as_secs_f64() * 1e3,
        error.message()
    );
    println!(
        "{:<38} {:<24} {told}",
        "no endpoint",
        if hangs.is_err() { "hangs" } else { "answers" }
    );
    assert_eq!(error.code(), Code::Unavailable);
    assert!(took < Duration::from_millis(50), "{took:?}");

    let both = [live, refused];
    let stock_failed = failures(&mut self::stock(&both), CALLS).await;
    let our_failed = failures(&mut self::ours(&list(&both)), CALLS).await;
    let case = format!("one live, one refused, {CALLS} calls");
    println!("{case:<38} {:<24} {our_failed} failed", format!("{stock_failed} failed"));
    assert_eq!(our_failed, 0);

    let changing = list(&[live, other]);
    let mut client = self::ours(&changing);
    let mut answered = BTreeSet::new();
    for _ in 0..100 {
        answered.insert(hello(&mut client).await?);
    }
    changing.update(Vec::new());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let empty = hello(&mut client).await.unwrap_err();
    changing.update(vec![instance(live)]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let refilled = failures(&mut client, 100).await;
    let told = format!("{:?}, then {refilled} of 100 failed", empty.code());
    println!("{:<38} {:<24} {told}", "emptied, and filled again", "-");
    assert_eq!((answered.len(), empty.code(), refilled), (2, Code::Unavailable, 0));

    // One that may be executed twice outlives its server at any moment.
    changing.update(vec![instance(live), instance(other)]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let calling = tokio::spawn(async move {
        let mut failed = 0;
        for n in 0..CALLS {
            if n == CALLS / 2 {
                other_serving.abort();
            }
            let mut request = Request::new(Text { text: "hello".to_owned() });
            request.extensions_mut().insert(Idempotent);
            failed += usize::from(client.hello(request).await.is_err());
        }
        failed
    });
    let failed = calling.await?;
    println!("{:<38} {:<24} {failed} failed", "a server goes, idempotent calls", "-");
    assert_eq!(failed, 0);
    Ok(())
}

fn stock(addresses: &[SocketAddr]) -> Client<Channel> {
    let endpoint = |at: &SocketAddr| Endpoint::from_shared(format!("http://{at}")).expect("a URI");
    Client::new(Channel::balance_list(addresses.iter().map(endpoint)))
}

fn ours(list: &StaticList) -> Client<Channels> {
    let service = "greeter".parse().expect("a service's name");
    Client::new(Channels::new(Resolver::new(service, Arc::new(list.clone()))))
}

fn list(addresses: &[SocketAddr]) -> StaticList {
    StaticList::new(addresses.iter().copied().map(instance))
}

fn instance(at: SocketAddr) -> Instance {
    Instance::at(format!("tcp@{at}").parse().expect("an address"))
}

async fn hello<T>(client: &mut Client<T>) -> Result<String, Status>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<tonic::codegen::StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    client.hello(Request::new(Text { text: "hello".to_owned() })).await
}

/// How many of so many calls, one after another, fail.
async fn failures<T>(client: &mut Client<T>, calls: usize) -> usize
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<tonic::codegen::StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    let mut failed = 0;
    for _ in 0..calls {
        failed += usize::from(hello(client).await.is_err());
    }
    failed
}
