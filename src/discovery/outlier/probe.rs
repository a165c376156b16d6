//! How an ejected endpoint is asked whether it answers.

use std::sync::{Arc, Weak};

use async_trait::async_trait;

use crate::discovery::Endpoint;
use crate::error::BoxError;
use crate::sync::Mutex;

/// Asks an endpoint whether it answers: given to a resolver by whoever can reach endpoints.
///
/// # Contract
/// `probe` costs the endpoint next to nothing and no user a call: a ping. It need not bound its
/// time; the resolver does.
///
/// # Cancellation
/// Dropping the future ends the probe.
///
/// # Implementing
/// Put `#[srpc::async_trait]` on the `impl`.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// Ends well once the endpoint has answered.
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), BoxError>;
}

#[async_trait]
impl<P: Probe + ?Sized> Probe for Arc<P> {
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), BoxError> {
        (**self).probe(endpoint).await
    }
}

/// What a resolver probes with.
#[derive(Default)]
pub(crate) struct Probes {
    own: Option<Arc<dyn Probe>>,
    /// Those of clients, which end with their clients.
    lent: Mutex<Vec<Weak<dyn Probe>>>,
}

impl Probes {
    pub(crate) fn new(own: Option<Arc<dyn Probe>>) -> Self {
        Self { own, lent: Mutex::default() }
    }

    pub(crate) fn lend(&self, probe: Weak<dyn Probe>) {
        let mut lent = self.lent.lock();
        lent.retain(|probe| probe.strong_count() > 0);
        lent.push(probe);
    }

    /// Those that can be used now: one's own alone, else all that were lent, since a client may be
    /// closed and not yet gone.
    pub(crate) fn usable(&self) -> Vec<Arc<dyn Probe>> {
        match &self.own {
            Some(own) => vec![Arc::clone(own)],
            None => self.lent.lock().iter().filter_map(Weak::upgrade).collect(),
        }
    }
}
