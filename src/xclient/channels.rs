//! A client's ways to its endpoints, kept for as long as the endpoints are listed.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use async_trait::async_trait;
use tokio::time::Instant;

use crate::call::Reply;
use crate::client::{Channel, Connection, ConnectionSettings, Lanes};
use crate::discovery::{Endpoint, Probe, Resolver, Snapshot};
use crate::error::BoxError;
use crate::instance::Address;
use crate::sync::RwLock;
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
    /// How many connections took the place of another: with each, what the routes know is old.
    replaced: Arc<AtomicU64>,
    /// What the call path reads, and all that it reads: the newest list and the ways to its endpoints.
    routes: ArcSwap<Routes>,
}

/// An endpoint and the way to it: what an attempt needs, behind one count of references.
pub(super) struct Route {
    pub(super) endpoint: Endpoint,
    /// Its address, with a count of references of its own: every reply names it.
    pub(super) address: Address,
    pub(super) channel: Arc<Channel>,
    /// The connections that stood when they were first asked for, by their places in the channel. One
    /// that broke stays here until another has taken its place, and the routes are made anew.
    standing: Box<[OnceLock<Connection>]>,
}

impl Route {
    fn new(endpoint: &Endpoint, channel: Arc<Channel>) -> Self {
        let address = endpoint.instance().address.copied();
        let standing = (0..channel.lines()).map(|_| OnceLock::new()).collect();
        Self { endpoint: endpoint.clone(), address, channel, standing }
    }

    /// The place in the channel whose turn it is; `Err`: no connection is known to stand there.
    pub(super) fn next(&self) -> Result<usize, usize> {
        let at = self.channel.line();
        let stands = match self.connection(at) {
            Some(connection) => connection.is_open(),
            None => self.channel.standing(at).is_some_and(|connection| {
                // Another thread of the same lane may come first.
                self.standing[at].get_or_init(|| connection).is_open()
            }),
        };
        if stands { Ok(at) } else { Err(at) }
    }

    /// Whether all of its connections are known and stand. One that is not known yet may just be looked
    /// up by a call that sees what stood before.
    fn is_current(&self) -> bool {
        self.standing.iter().all(|known| known.get().is_some_and(Connection::is_open))
    }

    /// The connection that stood at a place.
    pub(super) fn connection(&self, at: usize) -> Option<&Connection> {
        self.standing.get(at)?.get()
    }

    /// Says who gave a reply, and at which attempt.
    pub(super) fn names(&self, mut reply: Reply, attempt: u32) -> Reply {
        reply.from = Some((self.address.clone(), attempt));
        reply
    }
}

/// A list and the ways to its endpoints, by their places in it. Each is made when it is first taken: of
/// a long list most never are.
pub(super) struct Routes {
    /// The first snapshot with this set of endpoints, and so with this picker; `None` before any.
    snapshot: Option<Arc<Snapshot>>,
    /// How many connections had taken the place of another before.
    replaced: u64,
    routes: Lanes<Box<[OnceLock<Arc<Route>>]>>,
}

/// How many routes there may be in all before threads share them.
const MOST_ROUTES: usize = 16 * 1024;

impl Routes {
    fn new(snapshot: Option<Arc<Snapshot>>, replaced: u64) -> Self {
        let len = snapshot.as_ref().map_or(0, |snapshot| snapshot.endpoints.len());
        let lanes = MOST_ROUTES / len.max(1);
        let routes = Lanes::at_most(lanes, || (0..len).map(|_| OnceLock::new()).collect());
        Self { snapshot, replaced, routes }
    }

    /// The same list, without the routes of whose connections one has lost its place.
    fn renewed(&self, replaced: u64) -> Self {
        let keep = |way: &OnceLock<Arc<Route>>| match way.get() {
            Some(route) if route.is_current() => OnceLock::from(Arc::clone(route)),
            _ => OnceLock::new(),
        };
        let routes = self.routes.map(|lane| lane.iter().map(keep).collect());
        Self { snapshot: self.snapshot.clone(), replaced, routes }
    }

    /// The list.
    pub(super) fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_deref()
    }

    fn generation(&self) -> Option<u64> {
        self.snapshot.as_ref().map(|snapshot| snapshot.generation)
    }
}

impl Channels {
    pub(super) fn new(transport: Arc<dyn Transport>, settings: ConnectionSettings) -> Self {
        Self {
            transport,
            settings,
            open: RwLock::default(),
            closed: AtomicBool::new(false),
            replaced: Arc::default(),
            routes: ArcSwap::from_pointee(Routes::new(None, 0)),
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
            let (endpoint, settings) = (endpoint.clone(), self.settings.clone());
            let replaced = Arc::clone(&self.replaced);
            let channel = Channel::counting(endpoint, transport, settings, replaced);
            // Set before `close` takes the lock that is held here.
            if self.closed.load(Relaxed) {
                channel.close();
            }
            Arc::new(channel)
        });
        Arc::clone(channel)
    }

    /// The list of now, and the ways to its endpoints. The first call after a change of the list lets go
    /// of endpoints that are no longer on it; their connections end with their last call.
    pub(super) fn routes(&self, resolver: &Resolver) -> Guard<Arc<Routes>> {
        let routes = self.routes.load();
        if routes.generation() == Some(resolver.generation())
            && routes.replaced == self.replaced.load(Acquire)
        {
            return routes;
        }
        self.follow(resolver)
    }

    /// The way to the endpoint at an index of the list.
    pub(super) fn route(&self, routes: &Routes, index: usize) -> Option<Arc<Route>> {
        let way = routes.routes.mine().get(index)?;
        if let Some(route) = way.get() {
            return Some(Arc::clone(route));
        }
        let endpoint = routes.snapshot()?.endpoints.at(index)?;
        let make = || Arc::new(Route::new(endpoint, self.to(endpoint)));
        Some(Arc::clone(way.get_or_init(make)))
    }

    #[cold]
    fn follow(&self, resolver: &Resolver) -> Guard<Arc<Routes>> {
        // If no task refreshes the list, each call comes here.
        resolver.keep_running();
        let mut open = self.open.write();
        // Under the lock: whoever comes later sees no older one.
        let replaced = self.replaced.load(Acquire);
        let snapshot = resolver.current();
        let known = self.routes.load();
        let mut before = None;
        let mut unlisted = Vec::new();
        if known.generation().is_none_or(|seen| seen < snapshot.generation) {
            let listed: HashSet<_> = snapshot.endpoints.iter().map(Endpoint::key).collect();
            unlisted.extend(open.extract_if(|key, _| !listed.contains(key)));
            before = Some(self.routes.swap(Arc::new(Routes::new(Some(snapshot), replaced))));
        } else if known.replaced != replaced {
            before = Some(self.routes.swap(Arc::new(known.renewed(replaced))));
        }
        drop(known);
        drop(open);
        // The last handle of a channel fails its calls, which wakes their callers.
        drop(unlisted);
        // Its picker is the user's, and may take long to drop.
        drop(before);
        self.routes.load()
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        let mut open = self.open.write();
        let channels = std::mem::take(&mut *open);
        // Under the lock, as every change of them: they know connections too.
        let routes = self.routes.swap(Arc::new(Routes::new(None, 0)));
        drop(open);
        channels.into_values().for_each(|channel| channel.close());
        drop(routes);
    }
}

#[async_trait]
impl Probe for Channels {
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), BoxError> {
        Ok(self.to(endpoint).ping(Instant::now() + PROBE).await?)
    }
}
