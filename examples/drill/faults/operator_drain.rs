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
    if !is_told(cluster, &format!("drain {address}")).await? {
        window.broken.push(format!("no registry lists {address}"));
    }
    if !until_drained(cluster, slot).await? {
        window.broken.push(format!("{address} was not drained within {LIMIT:?}"));
        // Registries that start again empty would show nothing now, and hide what went wrong.
        return undrain(cluster, slot, window).await;
    }
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
    undrain(cluster, slot, window).await
}

/// Takes the drain back, and waits until the server knows: a registry that ends before the server's next
/// renewal would leave it drained for good, as a server that was never drained is not.
async fn undrain(cluster: &mut Cluster, slot: usize, window: &mut Window) -> Fallible<()> {
    let address = cluster.server(slot)?.address.clone();
    let started = Instant::now();
    while cluster.server(slot)?.child.ask("health").await? != "up" {
        if started.elapsed() > LIMIT {
            window.broken.push(format!("{address} was not taken back within {LIMIT:?}"));
            break;
        }
        // No registry may list it yet, or one may have ended with the order.
        is_told(cluster, &format!("undrain {address}")).await?;
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Gives an order about a server to the registries; whether one of them lists it.
async fn is_told(cluster: &mut Cluster, order: &str) -> Fallible<bool> {
    let told = cluster.tell_registries(order).await?;
    Ok(told.iter().any(|told| told == "done"))
}

/// Waits until the server itself says that it is drained, and no client calls it. False: it took too long.
async fn until_drained(cluster: &mut Cluster, slot: usize) -> Fallible<bool> {
    let address = cluster.server(slot)?.address.clone();
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        let health = cluster.server(slot)?.child.ask("health").await?;
        if health == "draining" && !is_called(cluster, &address).await? {
            return Ok(true);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(false)
}

/// Whether any client would call it.
async fn is_called(cluster: &mut Cluster, address: &str) -> Fallible<bool> {
    let called = cluster.called_by_clients().await?;
    Ok(called.iter().flatten().any(|server| server == address))
}
