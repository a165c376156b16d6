use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::*;
use crate::backend::static_list::StaticList;
use crate::instance::Instance;
use crate::transport::Memory;
use crate::{Server, Service, XClient};

/// A server, until its sender is dropped.
async fn serve(network: &Memory, address: &Address) -> oneshot::Sender<()> {
    let listener = network.bind(address).await.unwrap();
    let (stop, stopped) = oneshot::channel();
    let foo = Service::new("Foo").method("Echo", |n: u64| async move { Ok::<_, &str>(n) });
    tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        Server::new().service(foo).grace(Duration::ZERO).serve(listener, stopped).await
    });
    stop
}

/// What is known of the way to each endpoint: its place in memory, and whether a connection stands.
fn known(client: &XClient) -> BTreeMap<Address, (usize, bool)> {
    let core = &client.inner.core;
    let routes = core.channels.routes(&core.resolver);
    let ways = routes.routes.mine().iter().filter_map(OnceLock::get);
    ways.map(|way| (way.address.clone(), (Arc::as_ptr(way) as usize, way.next().is_ok()))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_replaced_costs_its_own_route_alone() {
    let network = Memory::new();
    let addresses = ["mem@a", "mem@b"].map(|address| address.parse::<Address>().unwrap());
    let [a, b] = &addresses;
    let first = serve(&network, a).await;
    let _other = serve(&network, b).await;
    let list = StaticList::new(addresses.clone().map(Instance::at));
    let client = XClient::builder("Foo", list).transport(Arc::new(network.clone()));
    let client = client.build().unwrap();
    let call = async |n: u64| {
        for address in &addresses {
            let call = crate::Call::new("Foo.Echo").args(&n).unwrap().only(address.clone());
            assert_eq!(client.send(call).await.unwrap().decode::<u64>().unwrap(), n);
        }
    };
    // The first calls dial, and the second find what stands.
    call(1).await;
    call(2).await;
    let before = known(&client);
    assert_eq!(before.len(), 2);
    assert!(before.values().all(|(_, stands)| *stands));

    drop(first);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(known(&client)[a], (before[a].0, false), "it is gone, and no other has its place");
    let _again = serve(&network, a).await;
    call(3).await;
    call(4).await;
    let after = known(&client);
    assert!(after.values().all(|(_, stands)| *stands), "{after:?}");
    assert_eq!(after[b], before[b], "the other way is what it was");

    client.close().await;
    assert!(known(&client).is_empty(), "what is closed knows no connection any more");
}
