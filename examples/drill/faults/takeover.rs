//! A new process takes over the address of one that still runs, which is then told to drain.

use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use super::Window;
use crate::Fallible;
use crate::cluster::{Cluster, SERVERS};
use crate::roles::TTL;

/// How long it may take until every registry lists the new one, once the first has registered it.
const LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn inject(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
) -> Fallible<()> {
    let slot = window.victim(cluster, rng, "a new process takes over the address of")?;
    let address = cluster.server(slot)?.address.clone();
    let before = cluster.holders(&address).await?;
    let old = cluster.start_beside(slot).await?;
    let name = old.child.name.clone();
    let started = Instant::now();
    let new = loop {
        let listed = cluster.holders(&address).await?;
        let is_new = listed.iter().all(|holder| {
            *holder == listed[0] && holder.ends_with(" up") && !before.contains(holder)
        });
        if is_new {
            break listed;
        }
        if started.elapsed() > LIMIT {
            window.broken.push(format!("{listed:?} at {address}, where {before:?} was taken over"));
            break listed;
        }
        sleep(Duration::from_millis(20)).await;
    };
    // Both renew: the old one must not take the address back.
    keeps_its_address(cluster, window, &address, &new, TTL).await?;
    old.child.signal("TERM").await?;
    let status = old.child.ended().await?;
    if !status.success() {
        window.broken.push(format!("{name} was told to drain and ended with {status}"));
    }
    // The end of the old one must not deregister the new one, now or when a lease runs out.
    let lease = TTL + Duration::from_millis(500);
    keeps_its_address(cluster, window, &address, &new, lease).await
}

/// Whether every registry lists this one and no other at the address, and all servers, for so long.
async fn keeps_its_address(
    cluster: &mut Cluster,
    window: &mut Window,
    address: &str,
    new: &[String],
    time: Duration,
) -> Fallible<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        let holders = cluster.holders(address).await?;
        let listed = cluster.listed().await?;
        if holders != new || listed.iter().any(|listed| *listed != SERVERS.to_string()) {
            let all = format!("{holders:?} at {address}, of {listed:?}; {new:?} had taken it over");
            window.broken.push(all);
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
