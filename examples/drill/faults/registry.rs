//! Registries are killed, stopped, or something else answers in their place.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::Window;
use crate::Fallible;
use crate::cluster::Cluster;
use crate::roles::{Answering, TTL};

/// All are killed, and restarted empty on their ports.
pub(super) async fn kill(cluster: &mut Cluster, window: &mut Window) -> Fallible<()> {
    window.done = "SIGKILL for every registry, which starts again empty".to_owned();
    for registry in 0..cluster.registries() {
        cluster.kill_registry(registry).await?;
    }
    sleep(Duration::from_millis(1_500)).await;
    for registry in 0..cluster.registries() {
        cluster.start_registry(registry).await?;
    }
    Ok(())
}

/// One of two is killed and comes back empty. A client that starts meanwhile finds every server.
pub(super) async fn kill_one(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
) -> Fallible<()> {
    let registry = rng.random_range(0..cluster.registries());
    window.done = format!("SIGKILL for registry {} alone, which starts again empty", registry + 1);
    cluster.kill_registry(registry).await?;
    // Longer than a lease, so that everybody has seen the other one alone.
    sleep(TTL + Duration::from_millis(500)).await;
    new_client_finds_all(cluster, window, "one registry was away").await?;
    cluster.start_registry(registry).await?;
    new_client_finds_all(cluster, window, "one registry was empty").await
}

async fn new_client_finds_all(
    cluster: &mut Cluster,
    window: &mut Window,
    when: &str,
) -> Fallible<()> {
    let mut found = cluster.ask_new_client().await?;
    let mut servers = cluster.addresses();
    found.sort_unstable();
    servers.sort_unstable();
    if found != servers {
        window.broken.push(format!("while {when} a new client knew only of {found:?}"));
    }
    Ok(())
}

/// Stopped: they accept connections and do not answer.
pub(super) async fn stop(cluster: &mut Cluster, window: &mut Window) -> Fallible<()> {
    window.done = "SIGSTOP for 2.5 s for every registry".to_owned();
    for registry in 0..cluster.registries() {
        cluster.signal_registry(registry, "STOP").await?;
    }
    // Longer than a lease: none may run out because of it.
    sleep(TTL + Duration::from_millis(500)).await;
    for registry in 0..cluster.registries() {
        cluster.signal_registry(registry, "CONT").await?;
    }
    Ok(())
}

/// Something else answers, in one of two cases for longer than the leases last.
pub(super) async fn answer(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
    answering: Answering,
) -> Fallible<()> {
    let long = rng.random_bool(0.5);
    let time = if long { TTL + Duration::from_millis(500) } else { TTL / 2 };
    window.done = format!("for {time:?} every registry is: {}", answering.name());
    cluster.registries_answer(answering).await?;
    sleep(time).await;
    cluster.registries_answer(Answering::Registry).await
}
