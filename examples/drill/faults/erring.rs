//! One server answers every call with an error for a moment: it must lose its share of the calls.

use std::time::Duration;

use rand::RngExt;
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
    let time = Duration::from_secs(3);
    let how = ["internal", "unknown"][rng.random_range(0..2)];
    let slot = window.victim(cluster, rng, &format!("{how} as the answer to every call, from"))?;
    cluster.server(slot)?.child.ask(&format!("answer {how}")).await?;
    sleep(time).await;
    cluster.server(slot)?.child.ask("serve").await.map(|_| ())
}
