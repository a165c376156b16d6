//! The connections of a server that is up: who is let in, and when all have left.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep};

use super::connection;
use super::shared::{Phase, Shared};
use crate::error::Panic;
use crate::sync::event;
use crate::transport::{Listener, Stream};

/// The connections of a server that is up.
pub(super) struct House {
    pub(super) shared: Arc<Shared>,
    pub(super) phases: watch::Receiver<Phase>,
    /// Owns every connection's task; dropped, it ends them.
    pub(super) connections: JoinSet<()>,
    /// Connections refused since that was last told.
    pub(super) refused: u64,
    pub(super) told: Option<Instant>,
}

impl House {
    /// Accepts for as long as it is polled.
    pub(super) async fn accept_from(&mut self, listener: &mut Listener) {
        let mut pause = Duration::ZERO;
        loop {
            while let Some(ended) = self.connections.try_join_next() {
                report(ended);
            }
            match listener.accept().await {
                Ok(stream) => {
                    pause = Duration::ZERO;
                    self.admit(stream);
                }
                Err(error) => {
                    // Too many open files passes when connections end: wait, and accept again.
                    pause = (pause * 2).clamp(Duration::from_millis(5), Duration::from_secs(1));
                    event!(WARN, %error, ?pause, "cannot accept");
                    sleep(pause).await;
                }
            }
        }
    }

    fn admit(&mut self, stream: Stream) {
        let host = stream.peer().account();
        let Some(guest) = Guest::admit(&self.shared, host, self.connections.len()) else {
            self.refused += 1;
            // A loop that connects must not fill a disk with lines.
            if self.told.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
                let refused = std::mem::take(&mut self.refused);
                event!(WARN, host = &*stream.peer().host, refused, "too many connections");
                self.told = Some(Instant::now());
            }
            return;
        };
        let shared = Arc::clone(&self.shared);
        let phases = self.phases.clone();
        self.connections.spawn(async move {
            connection::run(shared, stream, phases).await;
            drop(guest);
        });
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

/// A connection's place under its host's cap.
pub(super) struct Guest {
    shared: Arc<Shared>,
    host: Arc<str>,
}

impl Guest {
    fn admit(shared: &Arc<Shared>, host: Arc<str>, connections: usize) -> Option<Self> {
        if connections >= shared.settings.max_connections {
            return None;
        }
        let mut hosts = shared.hosts.lock();
        let count = hosts.entry(Arc::clone(&host)).or_default();
        // Unix sockets have no host: whoever may open their file is trusted with all of them.
        if !host.is_empty() && *count >= shared.settings.max_connections_per_host {
            return None;
        }
        *count += 1;
        drop(hosts);
        Some(Self { shared: Arc::clone(shared), host })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut hosts = self.shared.hosts.lock();
        if let Some(count) = hosts.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                hosts.remove(&self.host);
            }
        }
    }
}
