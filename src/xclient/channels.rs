//! A client's ways to its endpoints, kept for as long as the endpoints are listed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::call::Reply;
use crate::client::{Channel, ConnectionSettings, Lanes};
use crate::discovery::{Endpoint, EndpointSet, Probe, Snapshot};
use crate::error::BoxError;
use crate::instance::Address;
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
    /// What the call path reads: the ways to the endpoints of the newest list, by their places in
    /// it.
    routes: ArcSwap<Routes>,
}

/// An endpoint and the way to it: what an attempt needs, behind one count of references.
pub(super) struct Route {
    pub(super) endpoint: Endpoint,
    /// Its address, with a count of references of its own: every reply names it.
    pub(super) address: Address,
    pub(super) channel: Arc<Channel>,
}

impl Route {
    /// Says who gave a reply, and at which attempt.
    pub(super) fn names(&self, mut reply: Reply, attempt: u32) -> Reply {
        reply.from = Some((self.address.clone(), attempt));
        reply
    }
}

/// The ways to the endpoints of one list. Each is made when it is first taken: of a long list most
/// never are.
struct Routes {
    /// Which list it is.
    generation: Option<u64>,
    endpoints: Arc<EndpointSet>,
    routes: Lanes<Box<[OnceLock<Arc<Route>>]>>,
}

/// How many routes there may be in all before threads share them.
const MOST_ROUTES: usize = 16 * 1024;

impl Routes {
    fn new(generation: Option<u64>, endpoints: &Arc<EndpointSet>) -> Self {
        let lanes = MOST_ROUTES / endpoints.len().max(1);
        let routes = Lanes::at_most(lanes, || endpoints.iter().map(|_| OnceLock::new()).collect());
        Self { generation, endpoints: Arc::clone(endpoints), routes }
    }
}

impl Channels {
    pub(super) fn new(transport: Arc<dyn Transport>, settings: ConnectionSettings) -> Self {
        Self {
            transport,
            settings,
            open: RwLock::default(),
            closed: AtomicBool::new(false),
            routes: ArcSwap::from_pointee(Routes::new(None, &Arc::default())),
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

    /// The way to the endpoint at an index of a snapshot. The first call after a change of the list
    /// lets go of endpoints that are no longer on it; their connections end with their last call.
    pub(super) fn route(&self, snapshot: &Snapshot, index: usize) -> Option<Arc<Route>> {
        let mut routes = self.routes.load();
        if !Arc::ptr_eq(&routes.endpoints, &snapshot.endpoints) {
            routes = self.follow(snapshot);
        }
        let endpoint = snapshot.endpoints.at(index)?;
        let make = || {
            let address = endpoint.instance().address.copied();
            Arc::new(Route { endpoint: endpoint.clone(), address, channel: self.to(endpoint) })
        };
        if Arc::ptr_eq(&routes.endpoints, &snapshot.endpoints) {
            return Some(Arc::clone(routes.routes.mine().get(index)?.get_or_init(make)));
        }
        // Another call has seen a newer list meanwhile.
        Some(make())
    }

    #[cold]
    fn follow(&self, snapshot: &Snapshot) -> Guard<Arc<Routes>> {
        let mut open = self.open.write();
        if self.routes.load().generation.is_none_or(|seen| seen < snapshot.generation) {
            let listed: HashSet<_> = snapshot.endpoints.iter().map(Endpoint::key).collect();
            open.retain(|key, _| listed.contains(key));
            let routes = Routes::new(Some(snapshot.generation), &snapshot.endpoints);
            self.routes.store(Arc::new(routes));
        }
        self.routes.load()
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
