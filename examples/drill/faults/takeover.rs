//! A new process takes over the address of one that still runs, which is then told to drain.

use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use super::Window;
use crate::Fallible;
use crate::cluster::{Cluster, SERVERS};
use crate::roles::TTL;

pub(super) async fn inject(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
) -> Fallible<()> {
    let slot = window.victim(cluster, rng, "a new process takes over the address of")?;
    let old = cluster.start_beside(slot).await?;
    let name = old.child.name.clone();
    // Both renew: the old one must not take the address back.
    sleep(TTL).await;
    old.child.signal("TERM").await?;
    let status = old.child.ended().await?;
    if !status.success() {
        window.broken.push(format!("{name} was told to drain and ended with {status}"));
    }
    // The end of the old one must not deregister the new one, now or when a lease runs out.
    let until = Instant::now() + TTL + Duration::from_millis(500);
    while Instant::now() < until {
        let listed = cluster.listed().await?;
        if listed.iter().any(|listed| *listed != SERVERS.to_string()) {
            window.broken.push(format!("after {name} ended the registries listed {listed:?}"));
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
