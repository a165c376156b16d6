//! A rolling restart: every server in turn is told to drain, and another one started in its place.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::time::sleep;

use super::Window;
use crate::Fallible;
use crate::cluster::{Cluster, SERVERS};

const ROUNDS: usize = 3;

pub(super) async fn inject(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
) -> Fallible<()> {
    window.done = format!("{ROUNDS} rounds of SIGTERM for each server and a new one in its place");
    for _ in 0..ROUNDS {
        let mut slots: Vec<_> = (0..SERVERS).collect();
        slots.shuffle(rng);
        for slot in slots {
            let server = cluster.take(slot)?;
            let name = server.child.name.clone();
            server.child.signal("TERM").await?;
            let status = server.child.ended().await?;
            if !status.success() {
                window.broken.push(format!("{name} was told to drain and ended with {status}"));
            }
            cluster.start_in(slot).await?;
            // Its clients hear of it before the next one goes, as in any careful restart.
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}
