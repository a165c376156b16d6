//! A process that is started anew where dials had failed.

use std::sync::Arc;
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::transport::{Memory, Transport};
use srpc::{Address, Instance, Server, Service, Status, XClient};
use tokio::time::{Instant, sleep};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[tokio::test(start_paused = true)]
async fn a_newer_registration_earns_one_dial_at_once() {
    let network = Memory::new();
    let address = Address::to_bind("mem@again").unwrap();
    let instance = |epoch| Instance::new("a", address.clone()).epoch(epoch);
    let list = StaticList::new([instance(1)]);
    let client = XClient::builder("Foo", list.clone()).transport(Arc::new(network.clone()));
    let client = client.build().unwrap();
    client.resolver().ready(ms(5_000)).await.unwrap();
    let snapshot = client.resolver().snapshot();
    let stats = snapshot.endpoints.at(0).unwrap().stats();
    let hour = Instant::now() + ms(3_600_000);
    stats.connect_failed(hour);
    let call = || client.call::<_, u64>("Foo.Do", &());

    // Nobody is there: one dial, and the backoff goes on where it stood.
    list.update(vec![instance(2).weight(7)]);
    sleep(ms(10)).await;
    assert!(!stats.in_backoff(Instant::now()));
    call().await.unwrap_err();
    assert!(stats.in_backoff(hour - ms(1)));
    assert_eq!(stats.connect_failures(), 1);

    let listener = network.bind(&address).await.unwrap();
    let service = Service::new("Foo").method("Do", async |(): ()| Ok::<_, Status>(1_u64));
    tokio::spawn(Server::new().service(service).serve(listener, std::future::pending()));
    call().await.unwrap_err();
    list.update(vec![instance(3)]);
    sleep(ms(10)).await;
    assert_eq!(call().await.unwrap(), 1);
    assert!(!stats.in_backoff(Instant::now()));
    assert_eq!(stats.connect_failures(), 0);
}
