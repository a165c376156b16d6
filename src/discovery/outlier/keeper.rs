//! Keeps the table of outliers up to date, and probes those whose time is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::probe::{Probe, Probes};
use super::table::Outliers;
use crate::call::until;
use crate::discovery::Endpoint;
use crate::error::{Panic, caught, discard};

/// Runs until it is dropped, and its probes with it.
pub(crate) async fn keep(outliers: Arc<Outliers>, probes: Arc<Probes>) {
    // Those of a task before this one, whose runtime has ended.
    outliers.forget_probes();
    let mut probing: JoinSet<(Endpoint, bool)> = JoinSet::new();
    loop {
        let due = outliers.due(Instant::now());
        tokio::select! {
            biased;
            Some(ended) = probing.join_next() => {
                match ended {
                    Ok((endpoint, answered)) => {
                        outliers.probed(&endpoint, answered, Instant::now());
                    }
                    Err(error) => drop(Panic::of_task(error)),
                }
            }
            () = outliers.changed.notified() => {}
            () = until(due) => {
                for (endpoint, is_early) in outliers.turn(Instant::now()) {
                    let (probes, limit) = (probes.usable(), outliers.settings().probe_timeout);
                    probing.spawn(async move {
                        // If nobody can ask, time alone takes it back.
                        let answered = match probes.is_empty() {
                            true => !is_early,
                            false => answers(&probes, &endpoint, limit).await,
                        };
                        // Each may be the last reference to a custom probe, whose drop may panic.
                        probes.into_iter().for_each(discard);
                        (endpoint, answered)
                    });
                }
            }
        }
    }
}

/// Whether an endpoint answers one of the probes in time. They may be a user's: one that panics has
/// no answer.
async fn answers(probes: &[Arc<dyn Probe>], endpoint: &Endpoint, limit: Duration) -> bool {
    let mut asked = JoinSet::new();
    for probe in probes {
        let (probe, endpoint) = (Arc::clone(probe), endpoint.clone());
        asked.spawn(async move {
            let answered = caught(async { probe.probe(&endpoint).await.is_ok() }).await;
            discard(probe);
            answered.unwrap_or(false)
        });
    }
    let any = async {
        while let Some(answered) = asked.join_next().await {
            if answered.unwrap_or(false) {
                return true;
            }
        }
        false
    };
    timeout(limit, any).await.unwrap_or(false)
}
