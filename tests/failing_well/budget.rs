//! When everything fails, how much is tried again?

use std::time::Duration;

use srpc::Kind;
use srpc::xclient::Retry;
use tokio::time::{Instant, sleep};

use crate::world::{Mode, World};

/// All servers are unavailable: the attempts that clients make in ten seconds at so many calls a
/// second each.
async fn attempts(world: &World, clients: &[srpc::XClient], calls_each: u64) -> u64 {
    let attempts = || -> u64 {
        clients
            .iter()
            .map(|client| {
                let snapshot = client.resolver().snapshot();
                snapshot
                    .endpoints
                    .iter()
                    .map(|endpoint| endpoint.stats().failed() + endpoint.stats().succeeded())
                    .sum::<u64>()
            })
            .sum()
    };
    for server in 0..world.servers.len() {
        world.mode(server, Mode::Refuse(Kind::Unavailable));
    }
    let started = Instant::now();
    let mut calls = Vec::new();
    for number in 0..calls_each {
        for client in clients {
            let client = client.clone();
            calls.push(tokio::spawn(async move {
                client.call::<_, usize>("Budgeted.Do", &()).await.unwrap_err();
            }));
        }
        let due = Duration::from_secs(10).mul_f64((number + 1) as f64 / calls_each as f64);
        sleep(due.saturating_sub(started.elapsed())).await;
    }
    for call in calls {
        call.await.unwrap();
    }
    attempts()
}

#[tokio::test]
async fn two_clients_of_a_service_share_one_budget() {
    // On the machine's clock: the budget is a library's, and keeps its own time.
    // A service of its own: the other tests' calls would fill the budget.
    let world = World::named("Budgeted", 3).await;
    let service = |client: srpc::xclient::XClientBuilder| client.build().unwrap();
    let clients = [service(world.client()), service(world.client())];
    for client in &clients {
        client.resolver().ready(Duration::from_secs(5)).await.unwrap();
    }
    let started = Instant::now();
    let made = attempts(&world, &clients, 500).await;
    // A thousand calls in ten seconds or more: a fifth of them, and ten a second, of which the
    // reserve of ten seconds may be used at once.
    let allowed = 1_000 + 200 + 100 + 10 * started.elapsed().as_secs() + 20;
    assert!(made <= allowed, "{made} of {allowed}");
    assert!(made > 1_100, "it does try again: {made}");
}

#[tokio::test]
async fn a_budget_of_ones_own_is_not_shared() {
    let world = World::of(2).await;
    let spent = world.client().retry(Retry::new(3).budget(0.0, 0)).build().unwrap();
    world.mode(0, Mode::Refuse(Kind::Unavailable));
    world.mode(1, Mode::Refuse(Kind::Unavailable));
    let error = spent.call::<_, usize>("Foo.Do", &()).await.unwrap_err();
    assert_eq!(error.attempt(), 1, "{error}");
}
