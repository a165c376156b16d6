//! An operator drains one server at a registry, which then comes back empty: the server stays drained.

use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use super::Window;
use crate::Fallible;
use crate::cluster::Cluster;
use crate::roles::TTL;

/// How long the drain may take to reach the server, by its renewals, and every client.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn inject(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
) -> Fallible<()> {
    let slot = window.victim(cluster, rng, "an operator drains")?;
    let address = cluster.server(slot)?.address.clone();
    window.done += ", then every registry starts again empty";
    set_health(cluster, window, "drain", &address).await?;
    until_drained(cluster, window, slot).await?;
    for registry in 0..cluster.registries() {
        cluster.kill_registry(registry).await?;
        cluster.start_registry(registry).await?;
    }
    // Longer than a lease, so that everybody has registered again.
    let until = Instant::now() + TTL + Duration::from_millis(500);
    while Instant::now() < until {
        if is_called(cluster, &address).await? {
            window.broken.push(format!("{address} was called again though it was drained"));
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    set_health(cluster, window, "undrain", &address).await
}

/// Tells the registries, one of which knows it at least.
async fn set_health(
    cluster: &mut Cluster,
    window: &mut Window,
    order: &str,
    address: &str,
) -> Fallible<()> {
    let told = cluster.tell_registries(&format!("{order} {address}")).await?;
    if !told.iter().any(|told| told == "done") {
        window.broken.push(format!("no registry took {order:?} for {address}: {told:?}"));
    }
    Ok(())
}

/// Waits until the server itself says that it is drained, and no client calls it.
async fn until_drained(cluster: &mut Cluster, window: &mut Window, slot: usize) -> Fallible<()> {
    let address = cluster.server(slot)?.address.clone();
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        let health = cluster.server(slot)?.child.ask("health").await?;
        if health == "draining" && !is_called(cluster, &address).await? {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
    window.broken.push(format!("{address} was not drained within {LIMIT:?}"));
    Ok(())
}

/// Whether any client would call it.
async fn is_called(cluster: &mut Cluster, address: &str) -> Fallible<bool> {
    let called = cluster.called_by_clients().await?;
    Ok(called.iter().flatten().any(|server| server == address))
}
