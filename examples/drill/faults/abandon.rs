//! A client drops a thousand calls at once: their handlers must stop.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use super::Window;
use crate::Fallible;
use crate::cluster::{CLIENTS, Cluster};

const CALLS: u64 = 1_000;
/// How long handlers may go on after the last call was dropped.
const LIMIT: Duration = Duration::from_secs(1);
/// How long anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn inject(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
) -> Fallible<()> {
    let client = rng.random_range(0..CLIENTS);
    window.beside = CALLS;
    cluster.clients[client].ask(&format!("hold {CALLS}")).await?;
    if until_held(cluster, CALLS).await?.is_none() {
        window.broken.push(format!("not all of {CALLS} calls have started within {PATIENCE:?}"));
    }
    cluster.clients[client].ask("abandon").await?;
    let stopped = until_held(cluster, 0).await?;
    match stopped {
        Some(after) if after <= LIMIT => {}
        late => window.broken.push(format!("handlers went on after {LIMIT:?}: {late:?}")),
    }
    window.done = format!(
        "client-{client} drops {CALLS} calls at once; their handlers were gone after {} ms",
        stopped.unwrap_or(PATIENCE).as_millis()
    );
    Ok(())
}

/// Waits until so many handlers are at work on calls that only end by being dropped.
async fn until_held(cluster: &mut Cluster, calls: u64) -> Fallible<Option<Duration>> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let held = cluster.tell_servers("held").await?;
        let held: u64 = held.iter().filter_map(|held| held.parse::<u64>().ok()).sum();
        if held == calls {
            return Ok(Some(started.elapsed()));
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(None)
}
