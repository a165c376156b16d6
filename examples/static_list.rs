//! A client over a list of addresses that is set by hand, and changed while it runs.
//!
//! ```text
//! cargo run --release --example static_list
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;

use srpc::backend::static_list::StaticList;
use srpc::selector::RoundRobin;
use srpc::{Address, Instance, Listener, Server, Service, XClient};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (first, second) = (start("first").await?, start("second").await?);
    // From a text it is `StaticList::parse("tcp@10.0.0.1:7001,tcp@10.0.0.2:7001")`.
    let list = StaticList::new([Instance::at(first), Instance::at(second.clone())]);
    let client = XClient::builder("Foo", list.clone()).selector(RoundRobin::new()).build()?;

    let answers = ask(&client, 10).await?;
    println!("two addresses:  {answers:?}");
    assert_eq!(answers.len(), 2, "round robin asks both");

    // Clones share the list: every client that holds one learns of the change.
    list.update(vec![Instance::at(second)]);
    client.resolver().refresh().await?;
    let answers = ask(&client, 10).await?;
    println!("one is removed: {answers:?}");
    assert_eq!(answers, BTreeMap::from([("second".to_owned(), 10)]), "only one is left");
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

/// A server on a free port that answers with its name.
async fn start(name: &'static str) -> Result<Address, Box<dyn Error>> {
    let listener = Listener::bind("tcp@127.0.0.1:0").await?;
    let address = listener.address().clone();
    let who = move |(): ()| async move { Ok::<_, Infallible>(name) };
    let server = Server::new().service(Service::new("Foo").method("Who", who));
    tokio::spawn(server.serve(listener, std::future::pending()));
    Ok(address)
}
