//! One server answers every call with an error for a moment: it must lose its share of the calls.

use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::sleep;

use super::Window;
use crate::Fallible;
use crate::cluster::Cluster;
use crate::roles::HandlerError;

pub(super) async fn inject(
    cluster: &mut Cluster,
    rng: &mut StdRng,
    window: &mut Window,
    error: HandlerError,
) -> Fallible<()> {
    let time = Duration::from_secs(3);
    let error = error.name();
    let slot =
        window.victim(cluster, rng, &format!("{error} as the answer to every call, from"))?;
    cluster.server(slot)?.child.ask(error).await?;
    let from = cluster.clock.now();
    sleep(time).await;
    window.erring = Some((from, cluster.clock.now()));
    cluster.server(slot)?.child.ask("serve").await.map(|_| ())
}
