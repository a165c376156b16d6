//! A client's ways to its endpoints, kept for as long as the endpoints are listed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::client::{Channel, ConnectionSettings};
use crate::discovery::{Endpoint, Probe, Resolver};
use crate::error::BoxError;
use crate::transport::Transport;

/// How long a probe may take at most; the resolver that asks for it has a limit of its own.
const PROBE: Duration = Duration::from_secs(30);

/// A client's channels, one an endpoint.
pub(super) struct Channels {
    transport: Arc<dyn Transport>,
    settings: ConnectionSettings,
    /// By the endpoint's key, which its channel keeps from being used again.
    open: RwLock<HashMap<usize, Arc<Channel>>>,
    closed: AtomicBool,
    /// The list that `open` was last compared with.
    generation: AtomicU64,
}

impl Channels {
    pub(super) fn new(transport: Arc<dyn Transport>, settings: ConnectionSettings) -> Self {
        Self {
            transport,
            settings,
            open: RwLock::default(),
            closed: AtomicBool::new(false),
            generation: AtomicU64::new(u64::MAX),
        }
    }

    /// The way to an endpoint, not dialled before it is used.
    pub(super) fn to(&self, endpoint: &Endpoint) -> Arc<Channel> {
        if let Some(channel) = self.open.read().get(&endpoint.key()) {
            return Arc::clone(channel);
        }
        let mut open = self.open.write();
        let channel = open.entry(endpoint.key()).or_insert_with(|| {
            let transport = Arc::clone(&self.transport);
            let channel = Channel::new(endpoint.clone(), transport, self.settings.clone());
            // Set before `close` takes the lock that is held here.
            if self.closed.load(Relaxed) {
                channel.close();
            }
            Arc::new(channel)
        });
        Arc::clone(channel)
    }

    /// Lets go of endpoints that are no longer listed; their connections end with their last call.
    pub(super) fn follow(&self, resolver: &Resolver) {
        let snapshot = resolver.snapshot();
        if self.generation.swap(snapshot.generation, Relaxed) == snapshot.generation {
            return;
        }
        let listed: HashSet<_> = snapshot.endpoints.iter().map(Endpoint::key).collect();
        self.open.write().retain(|key, _| listed.contains(key));
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        let open = std::mem::take(&mut *self.open.write());
        open.into_values().for_each(|channel| channel.close());
    }
}

#[async_trait]
impl Probe for Channels {
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), BoxError> {
        Ok(self.to(endpoint).ping(Instant::now() + PROBE).await?)
    }
}
