//! One server is cut off: from the registry, or from the clients, in one direction or both.

use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::sleep;

use super::Window;
use crate::Fallible;
use crate::cluster::Cluster;
use crate::roles::TTL;

/// Long enough to be ejected by what a silent peer does not answer: 3 s.
const BOTH_WAYS: Duration = Duration::from_secs(4);
const ONE_WAY: Duration = Duration::from_millis(2_500);

/// Cut off from every registry for longer than its lease lasts.
pub(super) async fn from_registry(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
) -> Fallible<()> {
    let slot = window.victim(cluster, rng, "no way between the registries and")?;
    cluster.cut_from_registries(slot)?;
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
    let (how, time) = match (requests, replies) {
        (true, true) => ("no way between the clients and", BOTH_WAYS),
        (true, false) => ("no way from the clients to", ONE_WAY),
        _ => ("no way to the clients from", ONE_WAY),
    };
    let slot = window.victim(cluster, rng, how)?;
    if requests {
        cluster.cut_requests(slot)?;
    }
    if replies {
        cluster.cut_replies(slot)?;
    }
    sleep(time).await;
    cluster.heal()
}
