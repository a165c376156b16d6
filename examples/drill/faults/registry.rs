//! The registry is killed, stopped, or something else answers in its place.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::Window;
use crate::Fallible;
use crate::cluster::Cluster;
use crate::roles::{Answering, TTL};

/// Killed, and restarted empty on the same port.
pub(super) async fn kill(cluster: &mut Cluster, window: &mut Window) -> Fallible<()> {
    window.done = "SIGKILL for the registry, which starts again empty".to_owned();
    cluster.kill_registry().await?;
    sleep(Duration::from_millis(1_500)).await;
    cluster.start_registry().await
}

/// Stopped: it accepts connections and does not answer.
pub(super) async fn stop(cluster: &mut Cluster, window: &mut Window) -> Fallible<()> {
    window.done = "SIGSTOP for 2.5 s for the registry".to_owned();
    cluster.signal_registry("STOP").await?;
    // Longer than a lease: none may run out because of it.
    sleep(TTL + Duration::from_millis(500)).await;
    cluster.signal_registry("CONT").await
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
    window.done = format!("for {time:?} the registry is: {}", answering.name());
    cluster.registry_answers(answering).await?;
    sleep(time).await;
    cluster.registry_answers(Answering::Registry).await
}
