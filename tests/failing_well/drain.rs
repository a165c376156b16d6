//! A server that leaves: what its callers see.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use srpc::backend::memory::MemoryRegistry;
use srpc::registry::Registrar;
use srpc::transport::{Memory, Transport};
use srpc::{Address, Call, Execution, Kind, Server, Service, Status, XClient};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::world::{Mode, World};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn call() -> Call {
    Call::new("Foo.Do").args(&()).unwrap().timeout(ms(60_000))
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_within_the_grace_is_cut_and_may_have_run() {
    let mut world = World::of(1).await;
    world.mode(0, Mode::Hang);
    let client = world.client().build().unwrap();
    let started = Instant::now();
    let (stuck, notified) = (client.clone(), client.clone());
    let stuck = tokio::spawn(async move { stuck.send(call()).await });
    notified.send(call().notify(true)).await.unwrap();
    while world.at(0).behaviour.running.load(SeqCst) < 2 {
        sleep(ms(1)).await;
    }
    world.drain(0);
    let error = stuck.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Unavailable, Execution::MaybeExecuted));
    assert_eq!(error.endpoint(), Some(&world.at(0).address));
    // Without a registrar there is no delay: the grace alone.
    let took = started.elapsed();
    assert!(took >= ms(10_000) && took < ms(10_500), "{took:?}");
    timeout(ms(1_500), &mut world.servers[0].serving).await.unwrap().unwrap().unwrap();
    assert_eq!(world.at(0).behaviour.running.load(SeqCst), 0, "handlers are gone");
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_and_is_idempotent_is_made_elsewhere() {
    let mut world = World::of(2).await;
    world.mode(0, Mode::Hang);
    world.mode(1, Mode::Hang);
    let client = world.client().build().unwrap();
    // Of two in a row each server gets one: so both get some of either kind.
    let is_idempotent = |number: usize| number % 4 < 2;
    let calls: Vec<_> = (0..12)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.send(call().idempotent(is_idempotent(number))).await })
        })
        .collect();
    while world.started().iter().sum::<u64>() < 12 {
        sleep(ms(1)).await;
    }
    let on_first = world.started()[0];
    assert!(on_first > 0 && on_first < 12);
    world.mode(1, Mode::Answer(ms(1)));
    world.drain(0);
    sleep(ms(11_000)).await;
    let mut failed = 0;
    for (number, call) in calls.into_iter().enumerate() {
        if call.is_finished() {
            match call.await.unwrap() {
                Ok(reply) => {
                    assert_eq!((is_idempotent(number), reply.decode().unwrap()), (true, 1_usize));
                }
                Err(error) => {
                    let seen = (is_idempotent(number), error.execution());
                    assert_eq!(seen, (false, Execution::MaybeExecuted));
                    failed += 1;
                }
            }
        } else {
            call.abort();
        }
    }
    assert!(failed > 0 && failed < on_first, "{failed} of {on_first}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_server_ends_at_once() {
    let mut world = World::of(1).await;
    let client = world.client().build().unwrap();
    client.send(call()).await.unwrap();
    let started = Instant::now();
    world.drain(0);
    (&mut world.servers[0].serving).await.unwrap().unwrap();
    assert!(started.elapsed() < ms(100), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_drain_under_load_fails_no_call() {
    let mut world = World::of(3).await;
    (0..3).for_each(|server| world.mode(server, Mode::Answer(ms(20))));
    let client = world.client().build().unwrap();
    let workers: Vec<_> = (0..32)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let until = Instant::now() + ms(5_000);
                let mut failed = Vec::new();
                while Instant::now() < until {
                    failed.extend(client.send(call()).await.err());
                }
                failed
            })
        })
        .collect();
    for server in [0, 1, 2, 0, 1, 2] {
        sleep(ms(500)).await;
        world.drain(server);
        (&mut world.servers[server].serving).await.unwrap().unwrap();
        world.restart(server).await;
        world.mode(server, Mode::Answer(ms(20)));
        // Long enough to be dialled again: a static list tells nobody of it.
        sleep(ms(200)).await;
    }
    for worker in workers {
        let failed = worker.await.unwrap();
        assert!(failed.is_empty(), "{failed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_names_its_instance_survives_the_drain_of_an_idle_connection() {
    let mut world = World::of(0).await;
    world.add(|server| server.idle_timeout(ms(1_000))).await;
    let client = world.client().build().unwrap();
    let pinned = call().only(world.at(0).address.clone());
    for pause in (990..1_010).chain([2_000, 5_000]) {
        client.send(pinned.clone()).await.unwrap();
        sleep(ms(pause)).await;
    }
}

/// A handler that computes and never yields cannot be dropped, but holds nobody up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_never_yields_does_not_hold_up_the_exit() {
    let network = Memory::new();
    let listener = network.bind(&Address::to_bind("mem@busy").unwrap()).await.unwrap();
    let address = listener.address().clone();
    let (let_go, hold) = std::sync::mpsc::channel::<()>();
    let hold = Arc::new(std::sync::Mutex::new(hold));
    let (started, has_started) = oneshot::channel();
    let started = Arc::new(std::sync::Mutex::new(Some(started)));
    let busy = Service::new("Foo").method("Do", move |(): ()| {
        let (hold, started) = (Arc::clone(&hold), Arc::clone(&started));
        async move {
            tokio::task::yield_now().await;
            if let Some(started) = started.lock().unwrap().take() {
                started.send(()).unwrap();
            }
            let _ = hold.lock().unwrap().recv();
            Ok::<_, Status>(0_usize)
        }
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::new().service(busy).grace(ms(200));
    let serving = tokio::spawn(server.serve(listener, async {
        let _ = stopped.await;
    }));
    let list = srpc::backend::static_list::StaticList::new([srpc::Instance::at(address)]);
    let client = XClient::builder("Foo", list).transport(Arc::new(network)).build().unwrap();
    let calling = tokio::spawn(async move { client.send(call()).await });
    has_started.await.unwrap();
    let drained = Instant::now();
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    let error = calling.await.unwrap().unwrap_err();
    assert_eq!(error.execution(), Execution::MaybeExecuted, "{error}");
    assert!(drained.elapsed() < ms(60_000), "{:?}", drained.elapsed());
    drop(let_go);
}

/// The whole order: the registry says draining, clients turn away, the delay passes, the server
/// goes, and none of it is seen by a caller.
#[tokio::test(start_paused = true)]
async fn a_registered_server_is_left_before_it_leaves() {
    let (network, registry) = (Memory::new(), MemoryRegistry::new());
    let start = async |number: usize| {
        let address = Address::to_bind(&format!("mem@r{number}")).unwrap();
        let listener = network.bind(&address).await.unwrap();
        let registrar = Registrar::new(Arc::new(registry.clone()));
        let work = move |(): ()| async move {
            sleep(ms(5)).await;
            Ok::<_, Status>(number)
        };
        let server =
            Server::new().service(Service::new("Foo").method("Do", work)).registrar(registrar);
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.serve(listener, async {
            let _ = stopped.await;
        }));
        (stop, serving)
    };
    let mut servers = Vec::new();
    for number in 0..3 {
        servers.push(start(number).await);
    }
    let client = XClient::builder("Foo", registry.clone()).transport(Arc::new(network.clone()));
    let client = client.build().unwrap();
    client.resolver().ready(ms(5_000)).await.unwrap();
    let workers: Vec<_> = (0..16)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let until = Instant::now() + ms(30_000);
                let mut calls = 0;
                while Instant::now() < until {
                    client.send(call()).await.unwrap();
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    for round in 0..9 {
        let (stop, serving) = servers.remove(0);
        stop.send(()).unwrap();
        serving.await.unwrap().unwrap();
        servers.push(start(3 + round).await);
        sleep(ms(500)).await;
    }
    let mut calls = 0;
    for worker in workers {
        calls += worker.await.unwrap();
    }
    assert!(calls > 16 * 4_000, "{calls}");
}
