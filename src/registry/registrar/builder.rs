//! What can be set about a registrar.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};

use super::book::Book;
use super::{Owner, Registrar, Shared};
use crate::registry::{DEFAULT_TTL, Registry};
use crate::sync::Mutex;

/// Sets up a [`Registrar`].
#[derive(Clone)]
pub struct RegistrarBuilder {
    registry: Arc<dyn Registry>,
    ttl: Duration,
    request_timeout: Duration,
    seed: Option<u64>,
}

impl RegistrarBuilder {
    pub(super) fn new(registry: Arc<dyn Registry>) -> Self {
        Self { registry, ttl: DEFAULT_TTL, request_timeout: Duration::from_secs(5), seed: None }
    }

    /// Sets the lease asked for. Default: 15 s.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how long one request to the registry may take. Default: 5 s.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets what jitter and backoff are drawn from, for tests that must be repeatable. Default:
    /// random.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Makes the registrar.
    pub fn build(self) -> Registrar {
        let rng = match self.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_rng(&mut rand::rng()),
        };
        let shared = Arc::new(Shared {
            registry: self.registry,
            request_timeout: self.request_timeout,
            book: Mutex::new(Book::new(self.ttl, rng)),
            is_running: AtomicBool::new(false),
            wake: Notify::new(),
            progress: watch::Sender::new(()),
        });
        Registrar { owner: Arc::new(Owner { shared, task: Mutex::new(None) }) }
    }
}

impl fmt::Debug for RegistrarBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrarBuilder")
            .field("ttl", &self.ttl)
            .field("request_timeout", &self.request_timeout)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}
