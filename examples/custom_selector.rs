//! A policy of one's own in a closure: a client prefers the servers of its own zone, and crosses to
//! another one only when none of its own is usable.
//!
//! ```text
//! cargo run --release --example custom_selector
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::io;

use srpc::backend::static_list::StaticList;
use srpc::discovery::{Endpoint, EndpointSet};
use srpc::selector::{self, PickContext};
use srpc::{Instance, Listener, Server, Service, XClient};
use tokio::task::JoinHandle;

/// One of the usable endpoints of the client's zone by chance, or else of any zone.
///
/// It need not care about endpoints that were tried before: the framework refuses those, and asks
/// again.
fn nearby(endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
    let near = |endpoint: &Endpoint| endpoint.instance().zone.as_deref() == cx.zone;
    one_of(endpoints, cx, near).or_else(|| one_of(endpoints, cx, |_| true))
}

/// Two passes instead of a list: a pick allocates nothing.
fn one_of(
    endpoints: &EndpointSet,
    cx: &PickContext<'_>,
    suits: impl Fn(&Endpoint) -> bool,
) -> Option<usize> {
    let suits = |endpoint: &Endpoint| endpoint.is_usable(cx.now) && suits(endpoint);
    let count = endpoints.iter().filter(|endpoint| suits(endpoint)).count();
    let chosen = cx.random_below(count);
    let mut suitable = endpoints.iter().enumerate().filter(|(_, endpoint)| suits(endpoint));
    suitable.nth(chosen).map(|(index, _)| index)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (here_1, at_here_1) = start("here-1", "here").await?;
    let (here_2, at_here_2) = start("here-2", "here").await?;
    let (_there, at_there) = start("there-1", "there").await?;

    let list = StaticList::new([at_here_1, at_here_2, at_there]);
    let client = XClient::builder("Foo", list)
        .selector(selector::from_fn(nearby))
        .zone("here")
        .idempotent(true)
        .build()?;

    let answers = ask(&client, 100).await?;
    println!("all run:          {answers:?}");
    assert!(!answers.contains_key("there-1"), "the own zone is preferred");
    assert_eq!(answers.len(), 2, "and its servers share the calls");

    for server in [here_1, here_2] {
        server.abort();
        // The end of its connections is the proof that it is gone.
        let _ = server.await;
    }
    let answers = ask(&client, 100).await?;
    println!("own zone is down: {answers:?}");
    assert_eq!(answers, BTreeMap::from([("there-1".to_owned(), 100)]));
    Ok(())
}

/// Calls that often, and counts who answered.
async fn ask(client: &XClient, calls: u32) -> Result<BTreeMap<String, u32>, srpc::Error> {
    let mut answers = BTreeMap::new();
    for _ in 0..calls {
        let name: String = client.call("Foo.Who", &()).await?;
        *answers.entry(name).or_default() += 1;
    }
    Ok(answers)
}

/// A server on a free port that answers with its name, and the instance that names its zone.
async fn start(
    name: &'static str,
    zone: &str,
) -> io::Result<(JoinHandle<io::Result<()>>, Instance)> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let instance = Instance::at(listener.address().clone()).zone(zone);
    let who = move |(): ()| async move { Ok::<_, Infallible>(name) };
    let server = Server::new().service(Service::new("Foo").method("Who", who));
    let serving = tokio::spawn(server.serve(listener, std::future::pending()));
    Ok((serving, instance))
}
