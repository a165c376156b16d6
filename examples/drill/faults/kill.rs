//! One server is killed, and another one started in its place, at another port.

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
    let slot = window.victim(cluster, rng, "SIGKILL for")?;
    cluster.take(slot)?.child.kill().await?;
    sleep(Duration::from_millis(1_500)).await;
    cluster.start_in(slot).await
}
