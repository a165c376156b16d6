//! A second attempt while the first is under way.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use srpc::selector::from_fn;
use srpc::xclient::{Hedge, Retry, XClientBuilder};
use srpc::{Call, Execution, Kind};
use tokio::time::{Instant, sleep};

use crate::world::{Mode, World};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn call() -> Call {
    Call::new("Foo.Do").args(&()).unwrap().idempotent(true)
}

/// First attempts go to the first server.
fn first_to_the_first(client: XClientBuilder) -> XClientBuilder {
    client.selector(from_fn(|_, cx| Some(if cx.attempt == 1 { 0 } else { 1 })))
}

#[tokio::test(start_paused = true)]
async fn the_second_answer_wins_and_the_loser_is_cancelled_on_the_wire() {
    let world = World::of(2).await;
    world.mode(0, Mode::Hang);
    let hedge = Hedge::after(ms(50));
    let client = first_to_the_first(world.client()).layer(hedge.clone()).build().unwrap();
    let started = Instant::now();
    let reply = client.send(call()).await.unwrap();
    assert_eq!(reply.decode::<usize>().unwrap(), 1);
    assert_eq!(reply.endpoint(), Some(&world.at(1).address));
    assert!(started.elapsed() < ms(60), "{:?}", started.elapsed());
    sleep(ms(20)).await;
    let first = &world.at(0).behaviour;
    assert_eq!((first.started.load(SeqCst), first.dropped.load(SeqCst)), (1, 1));
    assert_eq!((hedge.stats().hedged, hedge.stats().won), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_quick_answer_is_not_hedged() {
    let world = World::of(2).await;
    let hedge = Hedge::after(ms(50));
    let client = world.client().layer(hedge.clone()).build().unwrap();
    for _ in 0..100 {
        client.send(call()).await.unwrap();
    }
    assert_eq!(world.started().iter().sum::<u64>(), 100);
    assert_eq!(hedge.stats().hedged, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_idempotent_is_not_hedged() {
    let world = World::of(2).await;
    world.mode(0, Mode::Answer(ms(200)));
    world.mode(1, Mode::Answer(ms(200)));
    let client = world.client().layer(Hedge::after(ms(50))).build().unwrap();
    client.send(call().idempotent(false)).await.unwrap();
    let pinned = call().only(world.at(0).address.clone());
    client.send(pinned).await.unwrap();
    assert_eq!(world.started().iter().sum::<u64>(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_second_attempt_needs_budget_and_another_instance() {
    let world = World::of(2).await;
    world.mode(0, Mode::Answer(ms(200)));
    let broke = Retry::new(3).budget(0.0, 0);
    let client = first_to_the_first(world.client()).retry(broke).layer(Hedge::after(ms(50)));
    let client = client.build().unwrap();
    let started = Instant::now();
    assert_eq!(client.send(call()).await.unwrap().decode::<usize>().unwrap(), 0);
    assert!(started.elapsed() >= ms(200));
    assert_eq!(world.started(), [1, 0]);

    let alone = World::of(1).await;
    alone.mode(0, Mode::Answer(ms(200)));
    let client = alone.client().layer(Hedge::after(ms(50))).build().unwrap();
    client.send(call()).await.unwrap();
    assert_eq!(alone.started(), [1]);
}

#[tokio::test(start_paused = true)]
async fn retries_and_hedges_share_one_cap() {
    let world = World::of(6).await;
    (0..6).for_each(|server| world.mode(server, Mode::Hang));
    let client = world
        .client()
        .attempt_timeout(ms(100))
        .retry(Retry::new(3).budget(10.0, 1_000))
        .layer(Hedge::after(ms(20)))
        .build()
        .unwrap();
    let error = client.send(call()).await.unwrap_err();
    assert_eq!(error.execution(), Execution::MaybeExecuted);
    let started = world.started();
    assert!(started.iter().sum::<u64>() <= 3, "{started:?}");
    assert!(started.iter().all(|calls| *calls <= 1), "each instance once: {started:?}");
}

#[tokio::test(start_paused = true)]
async fn when_both_fail_the_stronger_class_is_told() {
    let world = World::of(2).await;
    world.mode(0, Mode::Hang);
    world.mode(1, Mode::Refuse(Kind::ResourceExhausted));
    let client = first_to_the_first(world.client())
        .attempts(2)
        .attempt_timeout(ms(100))
        .layer(Hedge::after(ms(20)))
        .build()
        .unwrap();
    let error = client.send(call()).await.unwrap_err();
    assert_eq!(error.execution(), Execution::MaybeExecuted, "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_services_own_error_is_an_answer() {
    let world = World::of(2).await;
    world.mode(0, Mode::Hang);
    world.mode(1, Mode::Fail(Kind::NotFound));
    let client = first_to_the_first(world.client()).layer(Hedge::after(ms(20))).build().unwrap();
    let started = Instant::now();
    let error = client.send(call()).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::NotFound, Execution::Executed));
    assert!(started.elapsed() < ms(40));
}

#[tokio::test(start_paused = true)]
async fn the_observed_percentile_hedges_a_twentieth() {
    let world = World::of(3).await;
    let hedge = Hedge::percentile(0.95);
    let client = world.client().layer(hedge.clone()).build().unwrap();
    assert_eq!(hedge.delay(), None);
    for number in 0..2_000_u64 {
        // One of them in twenty is ten times as slow.
        let slow = number % 20 == 0;
        (0..3).for_each(|s| world.mode(s, Mode::Answer(ms(if slow { 100 } else { 10 }))));
        client.send(call()).await.unwrap();
    }
    let delay = hedge.delay().unwrap();
    assert!((ms(10)..ms(20)).contains(&delay), "{delay:?}");
    let hedged = hedge.stats().hedged;
    assert!((30..=150).contains(&hedged), "{hedged}");
}
