//! One of two endpoints is a closed port: which calls fail?

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use srpc::backend::static_list::StaticList;
use srpc::{Call, Instance, Listener, Server, Service, Status, XClient};

/// A live server and a port that nobody listens on any more; what the live one executed.
async fn scene() -> (XClient, Arc<AtomicU64>) {
    let live = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
    let closed = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
    let list = [live.address(), closed.address()].map(|address| Instance::at(address.clone()));
    drop(closed);
    let executed = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&executed);
    let foo = Service::new("Foo").method("Next", move |(): ()| {
        let counter = Arc::clone(&counter);
        async move { Ok::<_, Status>(counter.fetch_add(1, SeqCst)) }
    });
    tokio::spawn(Server::new().service(foo).serve(live, std::future::pending()));
    (XClient::new("Foo", StaticList::new(list)).unwrap(), executed)
}

async fn call_a_thousand_times(idempotent: bool) {
    let (client, executed) = scene().await;
    for _ in 0..1000 {
        let call = Call::new("Foo.Next").args(&()).unwrap().idempotent(idempotent);
        client.send(call).await.unwrap();
    }
    assert_eq!(executed.load(SeqCst), 1000);
}

#[tokio::test]
async fn no_call_fails_that_is_not_marked_idempotent() {
    call_a_thousand_times(false).await;
}

#[tokio::test]
async fn no_call_fails_that_is_marked_idempotent() {
    call_a_thousand_times(true).await;
}

#[tokio::test]
async fn at_once_they_do_not_fail_either() {
    let (client, executed) = scene().await;
    let calls: Vec<_> = (0..1000)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call::<_, u64>("Foo.Next", &()).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(executed.load(SeqCst), 1000);
}
