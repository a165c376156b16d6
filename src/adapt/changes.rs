//! Endpoints that come and go, for tower's own balancer.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tower::discover::Change;

use crate::discovery::{Endpoint, Resolver, Snapshot};
use crate::instance::Address;

type Next = Pin<Box<dyn Future<Output = Arc<Snapshot>> + Send>>;

/// The endpoints of a service as they come and go: a [`tower::discover::Discover`], such as
/// `tower::balance::p2c::Balance` takes. Keys are addresses.
///
/// Endpoints that drain or are not ready are gone. Ejections are not told, as the balancer would lose
/// what it knows of the endpoint: [`Balance`](super::Balance) heeds them.
pub struct Changes<S> {
    make: Box<dyn Fn(&Endpoint) -> S + Send + Sync>,
    known: HashMap<Address, Endpoint>,
    pending: VecDeque<Change<Address, S>>,
    resolver: Resolver,
    /// `None` before the first poll: the list may be there already.
    next: Option<Next>,
}

impl<S> Changes<S> {
    /// What comes and goes among a resolver's endpoints; `make` makes a service of each.
    pub fn new(resolver: Resolver, make: impl Fn(&Endpoint) -> S + Send + Sync + 'static) -> Self {
        let (known, pending) = (HashMap::new(), VecDeque::new());
        Self { make: Box::new(make), known, pending, resolver, next: None }
    }

    fn follow(&mut self, snapshot: &Snapshot) {
        let ready = snapshot.endpoints.iter().filter(|endpoint| endpoint.is_ready());
        let ready: HashMap<Address, &Endpoint> =
            ready.map(|endpoint| (endpoint.instance().address.clone(), endpoint)).collect();
        let gone: Vec<Address> =
            self.known.keys().filter(|address| !ready.contains_key(address)).cloned().collect();
        for address in gone {
            self.known.remove(&address);
            self.pending.push_back(Change::Remove(address));
        }
        for (address, endpoint) in ready {
            // Another process at the same address is another service.
            if !self.known.get(&address).is_some_and(|known| known.is(endpoint)) {
                self.known.insert(address.clone(), endpoint.clone());
                self.pending.push_back(Change::Insert(address, (self.make)(endpoint)));
            }
        }
        let (resolver, generation) = (self.resolver.clone(), snapshot.generation);
        self.next = Some(Box::pin(async move { resolver.changed(generation).await }));
    }
}

// Nothing of it is pinned in place.
impl<S> Unpin for Changes<S> {}

impl<S> Stream for Changes<S> {
    type Item = Result<Change<Address, S>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Poll::Ready(Some(Ok(change)));
            }
            let snapshot = match &mut self.next {
                None => self.resolver.snapshot(),
                Some(next) => match next.as_mut().poll(cx) {
                    Poll::Ready(snapshot) => snapshot,
                    Poll::Pending => return Poll::Pending,
                },
            };
            self.follow(&snapshot);
        }
    }
}

impl<S> fmt::Debug for Changes<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("resolver", &self.resolver).finish_non_exhaustive()
    }
}
