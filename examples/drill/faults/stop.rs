//! One server is stopped: the system still takes its connections and bytes, and nobody answers.

use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::sleep;

use super::Window;
use crate::Fallible;
use crate::cluster::Cluster;

pub(super) async fn inject(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
) -> Fallible<()> {
    let slot = window.victim(cluster, rng, "SIGSTOP for 4 s for")?;
    cluster.server(slot)?.child.signal("STOP").await?;
    sleep(Duration::from_secs(4)).await;
    cluster.server(slot)?.child.signal("CONT").await
}
