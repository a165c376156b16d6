//! The connections of a server that is up: who is let in, and when all have left.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Interval, sleep};

use super::connection;
use super::shared::{Phase, Shared};
use super::usage::Usage;
use crate::error::Panic;
use crate::sync::event;
use crate::transport::{Listener, ReachedCap, Stream, is_out_of_files};

/// The pause after a failed accept, doubled with each further failure.
const MIN_PAUSE: Duration = Duration::from_millis(5);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The connections of a server that is up.
pub(super) struct House {
    pub(super) shared: Arc<Shared>,
    pub(super) phases: watch::Receiver<Phase>,
    /// Owns every connection's task; dropped, it ends them.
    pub(super) connections: JoinSet<()>,
    /// Owns the tasks of refused connections, which nothing waits for.
    pub(super) refused: JoinSet<()>,
    /// Owns the task that closes stuck connections when too much memory is held.
    pub(super) watchdog: JoinSet<()>,
    /// When to look for refusals that are not logged yet.
    pub(super) log_check: Interval,
}

impl House {
    /// Accepts for as long as it is polled.
    pub(super) async fn accept_from(&mut self, listener: &mut Listener) {
        let mut pause = Duration::ZERO;
        loop {
            while let Some(ended) = self.connections.try_join_next() {
                report(ended);
            }
            while self.refused.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = self.log_check.tick() => {
                    self.shared.refusals.log_due();
                    continue;
                }
            };
            match accepted {
                Ok(stream) => {
                    pause = Duration::ZERO;
                    self.admit(stream);
                }
                Err(error) if is_out_of_files(&error) && self.shared.slots.evict_one() => {
                    self.shared.refusals.count("too many open files", &Arc::from(""));
                    // Until the file is closed.
                    sleep(MIN_PAUSE).await;
                }
                Err(error) => {
                    // Too many open files passes when connections end: wait, and accept again.
                    pause = (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
                    event!(WARN, %error, ?pause, "cannot accept");
                    sleep(pause).await;
                }
            }
        }
    }

    fn admit(&mut self, stream: Stream) {
        let host = stream.peer().account();
        let shared = Arc::clone(&self.shared);
        match self.shared.slots.enter(&host, Usage::new()) {
            Ok(slot) => {
                let phases = self.phases.clone();
                self.connections.spawn(connection::run(shared, stream, phases, slot));
            }
            Err(cap) => {
                self.shared.refusals.count(cap.reason(), &host);
                self.refuse(stream, cap);
            }
        }
    }

    /// Tells a client why its connection is refused, unless too many are being told.
    fn refuse(&mut self, stream: Stream, cap: ReachedCap) {
        let shared = Arc::clone(&self.shared);
        if let Ok(permit) = Arc::clone(&shared.farewells).try_acquire_owned() {
            self.refused.spawn(async move {
                let _permit = permit;
                connection::refuse(shared, stream, cap).await;
            });
        }
    }

    /// Waits until every connection has ended.
    pub(super) async fn empty(&mut self) {
        while let Some(ended) = self.connections.join_next().await {
            report(ended);
        }
    }
}

/// Logs that a connection's task panicked.
fn report(ended: Result<(), JoinError>) {
    if let Some(panic) = ended.err().and_then(Panic::of_task) {
        event!(ERROR, panic = panic.text(), "a connection's task panicked: its calls are lost");
    }
}
