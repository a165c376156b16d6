//! One server is cut off: from the registry, or from the clients, in one direction or both.

use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::sleep;

use super::Window;
use crate::Fallible;
use crate::cluster::Cluster;
use crate::roles::TTL;

/// Cut off from the registry for longer than its lease lasts.
pub(super) async fn from_registry(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
) -> Fallible<()> {
    let slot = window.victim(cluster, rng, "no way between the registry and")?;
    cluster.cut_from_registry(slot)?;
    sleep(TTL + Duration::from_secs(1)).await;
    cluster.heal()
}

/// Cut off from every client, while the registry goes on listing it.
pub(super) async fn from_clients(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
    requests: bool,
    replies: bool,
) -> Fallible<()> {
    let how = match (requests, replies) {
        (true, true) => "no way between the clients and",
        (true, false) => "no way from the clients to",
        _ => "no way to the clients from",
    };
    let slot = window.victim(cluster, rng, how)?;
    if requests {
        cluster.cut_requests(slot)?;
    }
    if replies {
        cluster.cut_replies(slot)?;
    }
    sleep(Duration::from_secs(4)).await;
    cluster.heal()
}
