//! All servers refuse calls for a moment, before their handlers.

use std::time::Duration;

use tokio::time::sleep;

use super::Window;
use crate::Fallible;
use crate::cluster::Cluster;

pub(super) async fn inject(cluster: &mut Cluster, window: &mut Window) -> Fallible<()> {
    let time = Duration::from_millis(1_200);
    window.done = format!("for {time:?} every server answers Unavailable");
    // The first server refuses a little before the last one does, and serves a little earlier.
    let from = cluster.clock.now();
    cluster.tell_servers("refuse").await?;
    sleep(time).await;
    cluster.tell_servers("serve").await?;
    window.unserved = Some((from, cluster.clock.now()));
    Ok(())
}
