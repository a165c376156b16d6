//! Keeps the table of outliers up to date, and probes those whose time is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::probe::{Probe, Probes};
use super::table::Outliers;
use crate::discovery::Endpoint;
use crate::discovery::caught::caught;

/// Runs until it is dropped, and its probes with it.
pub(crate) async fn keep(outliers: Arc<Outliers>, probes: Arc<Probes>) {
    let mut probing: JoinSet<(Endpoint, bool)> = JoinSet::new();
    loop {
        let due = outliers.due(Instant::now());
        tokio::select! {
            biased;
            Some(ended) = probing.join_next() => {
                if let Ok((endpoint, answered)) = ended {
                    outliers.probed(&endpoint, answered, Instant::now());
                }
            }
            () = outliers.changed.notified() => {}
            () = at(due) => {
                for endpoint in outliers.turn(Instant::now()) {
                    let (probe, limit) = (probes.any(), outliers.settings().probe_timeout);
                    probing.spawn(async move {
                        let answered = match probe {
                            Some(probe) => answers(&*probe, &endpoint, limit).await,
                            // Nobody can ask: time alone takes it back.
                            None => true,
                        };
                        (endpoint, answered)
                    });
                }
            }
        }
    }
}

/// Whether an endpoint answers in time. The probe may be a user's: one that panics has no answer.
async fn answers(probe: &dyn Probe, endpoint: &Endpoint, limit: Duration) -> bool {
    matches!(caught(timeout(limit, probe.probe(endpoint))).await, Some(Ok(Ok(()))))
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
