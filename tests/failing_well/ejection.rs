//! An instance that fails while its lease holds: it gets no calls, is probed, and comes back slowly.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use srpc::{Call, Execution, Kind, XClient};
use tokio::time::{Instant, sleep};

use crate::world::{Mode, World};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Calls from eight workers until a moment: how many succeeded on each server, and the failures.
async fn load(client: &XClient, servers: usize, time: Duration) -> (Vec<u64>, Vec<srpc::Error>) {
    let until = Instant::now() + time;
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let (mut ok, mut failed) = (vec![0; servers], Vec::new());
                while Instant::now() < until {
                    match client.call::<_, usize>("Foo.Do", &()).await {
                        Ok(server) => ok[server] += 1,
                        Err(error) => failed.push(error),
                    }
                }
                (ok, failed)
            })
        })
        .collect();
    let (mut ok, mut failed) = (vec![0; servers], Vec::new());
    for worker in workers {
        let (each, errors) = worker.await.unwrap();
        ok.iter_mut().zip(each).for_each(|(all, one)| *all += one);
        failed.extend(errors);
    }
    (ok, failed)
}

#[tokio::test(start_paused = true)]
async fn a_stopped_server_costs_what_was_in_flight_and_comes_back_by_a_probe() {
    let world = World::of(2).await;
    (0..2).for_each(|server| world.mode(server, Mode::Answer(ms(5))));
    let client = world.client().attempt_timeout(ms(300)).build().unwrap();
    let (ok, failed) = load(&client, 2, ms(1_000)).await;
    assert!(failed.is_empty() && ok.iter().all(|calls| *calls > 100), "{ok:?} {failed:?}");

    world.freeze(0);
    let (ok, failed) = load(&client, 2, ms(15_000)).await;
    assert!(failed.len() <= 8, "only what was in flight: {failed:?}");
    assert!(failed.iter().all(|error| error.execution() == Execution::MaybeExecuted), "{failed:?}");
    // Eight workers, a call of 5 ms or a little more each, and a third of a second to find out.
    assert!(ok[1] > 8 * 14_000 / 7, "{ok:?}");
    let stats = client.resolver().stats();
    assert!(stats.ejections >= 1 && stats.readmissions == 0, "{stats:?}");

    world.thaw(0);
    let thawed = Instant::now();
    while client.resolver().stats().readmissions == 0 {
        assert!(thawed.elapsed() < ms(10_000));
        sleep(ms(10)).await;
    }
    // What was sent to it before it stopped was answered now; no user's call was a probe.
    let before = world.started()[0];
    let (ok, failed) = load(&client, 2, ms(1_000)).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(ok[0] > 0 && ok[0] < ok[1] / 2, "slowly at first: {ok:?}");
    assert_eq!(world.started()[0] - before, ok[0]);
    load(&client, 2, ms(10_000)).await;
    let (ok, _) = load(&client, 2, ms(2_000)).await;
    assert!(ok[0] > ok[1] / 2, "and then fully: {ok:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_pings_and_no_calls_is_ejected_for_longer_each_time() {
    let world = World::of(3).await;
    let client = world.client().attempt_timeout(ms(300)).build().unwrap();
    (1..3).for_each(|server| world.mode(server, Mode::Answer(ms(10))));
    load(&client, 3, ms(500)).await;
    world.mode(0, Mode::Hang);
    let before = world.started()[0];
    let (_, failed) = load(&client, 3, ms(60_000)).await;
    // Ejected for 3, 6, 12, 24 s and so on, with five calls or so lost each time it comes back.
    let ejections = client.resolver().stats().ejections;
    assert!((4..=6).contains(&ejections), "{ejections}");
    assert!(failed.len() <= ejections as usize * 12, "{}", failed.len());
    assert_eq!(world.started()[0] - before, failed.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn what_refuses_for_lack_of_capacity_is_not_ejected() {
    let world = World::of(2).await;
    let client = world.client().build().unwrap();
    world.mode(0, Mode::Refuse(Kind::ResourceExhausted));
    let (ok, failed) = load(&client, 2, ms(5_000)).await;
    assert!(failed.is_empty() && ok[1] > 0, "{ok:?} {failed:?}");
    assert_eq!(client.resolver().stats().ejections, 0);
    let snapshot = client.resolver().snapshot();
    assert!(snapshot.endpoints.iter().any(|endpoint| endpoint.stats().overloaded() > 0));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_unavailable_is_ejected() {
    let world = World::of(2).await;
    let client = world.client().build().unwrap();
    world.mode(0, Mode::Refuse(Kind::Unavailable));
    let (ok, failed) = load(&client, 2, ms(5_000)).await;
    assert!(failed.is_empty() && ok[1] > 0, "{ok:?} {failed:?}");
    assert!(client.resolver().stats().ejections >= 1);
}

#[tokio::test(start_paused = true)]
async fn the_only_server_is_never_ejected() {
    let world = World::of(1).await;
    let client = world.client().attempt_timeout(ms(100)).build().unwrap();
    world.mode(0, Mode::Hang);
    let (_, failed) = load(&client, 1, ms(2_000)).await;
    assert!(failed.len() > 100);
    assert_eq!(client.resolver().stats().ejections, 0);
    world.mode(0, Mode::Answer(ms(1)));
    let (ok, failed) = load(&client, 1, ms(1_000)).await;
    assert!(failed.is_empty() && ok[0] > 1_000, "at once: {ok:?} {failed:?}");
}

#[tokio::test(start_paused = true)]
async fn the_services_own_errors_eject_nobody() {
    let world = World::of(2).await;
    let client = world.client().build().unwrap();
    world.mode(0, Mode::Fail(Kind::NotFound));
    let (ok, failed) = load(&client, 2, ms(2_000)).await;
    assert!(failed.iter().all(|error| error.kind() == Kind::NotFound) && !failed.is_empty());
    assert!(ok[1] > 0);
    assert_eq!(client.resolver().stats().ejections, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_it_is_broken_gets_hardly_any_calls() {
    let kinds =
        [Kind::Unavailable, Kind::DataLoss, Kind::Internal, Kind::Unknown, Kind::DeadlineExceeded];
    for kind in kinds {
        let world = World::of(3).await;
        let client = world.client().build().unwrap();
        world.mode(0, Mode::Fail(kind));
        let (ok, failed) = load(&client, 3, ms(2_000)).await;
        let failed = failed.len() as u64;
        let all = failed + ok.iter().sum::<u64>();
        assert!(all > 5_000 && failed * 50 <= all, "{kind:?}: {failed} of {all}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_all_answer_alike_no_share_moves() {
    for kind in [Kind::Unknown, Kind::NotFound] {
        let world = World::of(3).await;
        let client = world.client().build().unwrap();
        (0..3).for_each(|server| world.mode(server, Mode::Fail(kind)));
        // Past one look at the shares of successes.
        load(&client, 3, ms(10_500)).await;
        assert_eq!(client.resolver().stats().ejections, 0, "{kind:?}");
        let started = world.started();
        let all: u64 = started.iter().sum();
        assert!(started.iter().all(|calls| calls * 4 > all && calls * 5 < all * 2), "{started:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_finds_a_stopped_server_by_a_ping_and_takes_it_back() {
    let world = World::of(2).await;
    let client = world.client().build().unwrap();
    load(&client, 2, ms(100)).await;
    world.freeze(0);
    // Idle: a ping after 10 s, and 2 s for its answer.
    sleep(ms(13_000)).await;
    let snapshot = client.resolver().snapshot();
    let stats = snapshot.endpoints.at(0).unwrap().stats();
    assert!(stats.is_suspect() && stats.is_ejected(), "{stats:?}");
    let call = Call::new("Foo.Do").args(&()).unwrap();
    for _ in 0..20 {
        client.send(call.clone()).await.unwrap();
    }
    world.thaw(0);
    sleep(ms(100)).await;
    assert!(!stats.is_ejected() && !stats.is_suspect(), "its answer came");
    assert_eq!(world.at(0).behaviour.running.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_closed_leaves_the_probes_to_the_others() {
    let world = World::of(2).await;
    let closed = world.client().attempt_timeout(ms(100)).build().unwrap();
    let other = XClient::with_resolver(closed.resolver().clone()).transport(world.network());
    let other = other.attempt_timeout(ms(100)).build().unwrap();
    load(&other, 2, ms(100)).await;
    closed.close().await;
    world.freeze(0);
    load(&other, 2, ms(1_000)).await;
    assert_eq!(other.resolver().stats().readmissions, 0);
    world.thaw(0);
    sleep(ms(8_000)).await;
    assert_eq!(other.resolver().stats().readmissions, 1);
}
