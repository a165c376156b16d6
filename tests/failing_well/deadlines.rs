//! One deadline over all that a call does, and over the calls that a handler makes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::call::{inherited, within};
use srpc::transport::Transport;
use srpc::{Address, Call, Execution, Instance, Kind, Server, Service, Status, XClient};
use tokio::time::{Instant, sleep};

use crate::world::{Mode, World};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A server of `Outer.Do`, which calls `Foo.Do` and notes how long that took.
async fn outer(world: &World, inner: XClient, at: &str) -> (XClient, Arc<AtomicU64>) {
    let took = Arc::new(AtomicU64::new(0));
    let note = Arc::clone(&took);
    let service = Service::new("Outer").method("Do", move |(): ()| {
        let (inner, note) = (inner.clone(), Arc::clone(&note));
        // A task of its own, which outlives the handler: it notes the end of the inner call.
        let deadline = inherited();
        async move {
            let work = async move {
                let started = Instant::now();
                let answer = inner.call::<_, usize>("Foo.Do", &()).await;
                note.store(started.elapsed().as_millis() as u64, SeqCst);
                answer.map_err(|error| Status::new(error.kind(), error.to_string()))
            };
            tokio::spawn(within(deadline.unwrap(), work)).await.unwrap()
        }
    });
    let network = world.network();
    let listener = network.bind(&Address::to_bind(at).unwrap()).await.unwrap();
    let list = StaticList::new([Instance::at(listener.address().clone())]);
    tokio::spawn(Server::new().service(service).serve(listener, std::future::pending()));
    (XClient::builder("Outer", list).transport(network).build().unwrap(), took)
}

#[tokio::test(start_paused = true)]
async fn a_call_inside_a_handler_ends_with_its_callers_deadline() {
    let world = World::of(1).await;
    world.mode(0, Mode::Hang);
    for (inherit, expected, at) in [(true, 300, "mem@one"), (false, 10_000, "mem@two")] {
        let inner = world.client().inherit_deadline(inherit).build().unwrap();
        let (client, took) = outer(&world, inner, at).await;
        let call = Call::new("Outer.Do").args(&()).unwrap().timeout(ms(300));
        let error = client.send(call).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        sleep(ms(11_000)).await;
        let took = took.load(SeqCst);
        assert!(took.abs_diff(expected) <= 20, "{inherit}: {took}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_earlier_deadline_holds() {
    let world = World::of(1).await;
    world.mode(0, Mode::Hang);
    let client = world.client().build().unwrap();
    for (outer, own, expected) in [(200, 500, 200), (500, 200, 200)] {
        let started = Instant::now();
        let call = Call::new("Foo.Do").args(&()).unwrap().timeout(ms(own));
        let nested = within(Instant::now() + ms(900), client.send(call));
        let error = within(Instant::now() + ms(outer), nested).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert!((started.elapsed().as_millis() as u64).abs_diff(expected) <= 20);
    }
    assert_eq!(inherited(), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_expired_is_neither_sent_nor_started() {
    let world = World::of(1).await;
    let client = world.client().build().unwrap();
    let call = Call::new("Foo.Do").args(&()).unwrap();
    client.send(call.clone()).await.unwrap();
    let error = within(Instant::now() - ms(1), client.send(call.clone())).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::DeadlineExceeded, Execution::NotSent));
    assert_eq!(world.started(), [1]);
    // It waits in the socket of a stopped server for longer than it has.
    world.freeze(0);
    let error = client.send(call.timeout(ms(100))).await.unwrap_err();
    assert_eq!(error.execution(), Execution::MaybeExecuted, "for all that is known");
    world.thaw(0);
    sleep(ms(100)).await;
    assert_eq!(world.at(0).behaviour.running.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn resolving_connecting_and_retries_are_within_the_deadline() {
    // The source never answers.
    struct Silent;
    #[async_trait::async_trait]
    impl srpc::discovery::Discovery for Silent {
        async fn resolve(
            &self,
            _: &srpc::ServiceName,
        ) -> Result<srpc::discovery::Resolved, srpc::discovery::DiscoveryError> {
            std::future::pending().await
        }
    }
    let limit = ms(700);
    let call = Call::new("Foo.Do").args(&()).unwrap().timeout(limit);
    let started = Instant::now();
    let unresolved = XClient::builder("Foo", Silent).build().unwrap();
    let error = unresolved.send(call.clone()).await.unwrap_err();
    assert_eq!(error.execution(), Execution::NotSent);
    assert!(started.elapsed().abs_diff(limit) <= ms(20), "{:?}", started.elapsed());

    // The server accepts, and does not shake hands.
    let world = World::of(1).await;
    world.freeze(0);
    let client = world.client().build().unwrap();
    let started = Instant::now();
    let error = client.send(call.clone()).await.unwrap_err();
    assert_eq!(error.execution(), Execution::NotSent);
    assert!(started.elapsed() <= limit + ms(20), "{:?}", started.elapsed());

    // Everything refuses: attempts and their pauses end before the deadline.
    let world = World::of(2).await;
    (0..2).for_each(|server| world.mode(server, Mode::Refuse(Kind::Unavailable)));
    let client = world.client().build().unwrap();
    let started = Instant::now();
    client.send(call).await.unwrap_err();
    assert!(started.elapsed() <= limit + ms(20), "{:?}", started.elapsed());
}
