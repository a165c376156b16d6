//! The client of a registry over HTTP.

mod failure;
mod seed;
mod site;
#[cfg(test)]
mod tests;
mod urls;
mod v1;
mod watch;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::failure::{Failure, Failures};
use self::site::Site;
use super::api;
use super::token::Token;
use crate::backend::InvalidUrl;
use crate::backend::memory::{Entry, Listing, Protection};
use crate::discovery::{Discovery, DiscoveryError, Resolved, UpdateStream};
use crate::instance::{InstanceId, ServiceName};
use crate::registry::{
    DEFAULT_TTL, HealthOverride, Held, Lease, Registration, Registry, RegistryError, Renewal,
};
use crate::transport::{Net, Transport};

/// How many leases are renewed in one request.
const BATCH: usize = 500;
/// What a request's JSON may weigh: less than a server takes.
const BATCH_BYTES: usize = 768 * 1024;

/// A registry over HTTP: registers there, and finds what is registered. Cheap to clone.
///
/// It speaks `/v1`, and falls back to the contract of one header where there is no `/v1`: a 404 or
/// 405 that is no `application/problem+json`, or a success that is no JSON. In the fallback
/// - the one plain list serves every service name, and proves nothing;
/// - a lease is renewed by registering again, and cannot be given back: it runs out;
/// - `/v1` is asked for again at every registration and watch, and once a minute by the rest.
///
/// Of several URLs the one that worked last is asked first, and the others if it fails. After such
/// a change lists count as warming for 15 s: instances may not have come over yet.
///
/// # Errors
/// 401 and 403 are `NotAllowed`, and no reason to ask another registry or to fall back.
///
/// No failure is an empty list: no status but success, no page, no other JSON, no silence. Every
/// request is over within its timeout, connecting included; several URLs share it evenly.
///
/// # Cancellation
/// Dropping a future or a stream closes its connection. There are no tasks.
#[derive(Clone)]
pub struct HttpRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    /// At least one.
    sites: Vec<Site>,
    /// The index of the one that answered last.
    last: AtomicUsize,
    /// The index of the one to ask first: the last one, or the next if that one was given up on.
    first: AtomicUsize,
    /// When another one than before answered.
    switched: Mutex<Option<Instant>>,
    long_poll: Duration,
}

/// What a registry listed.
struct Found {
    revision: Option<Arc<str>>,
    warming: bool,
    protection: Option<Protection>,
    complete: bool,
    entries: Vec<Entry>,
}

type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

impl HttpRegistry {
    /// The registry at `http://host:port/srpc/registry`, or the registries at several such URLs,
    /// separated by commas. A URL without a path means `/srpc/registry`; `/v1` is at the root.
    ///
    /// `https://` needs a transport that speaks `tls`: see
    /// [`transport`](HttpRegistryBuilder::transport).
    ///
    /// # Errors
    /// [`InvalidUrl`]; also for `https`.
    pub fn new(urls: &str) -> Result<Self, InvalidUrl> {
        Self::builder(urls).build()
    }

    /// A client to be configured.
    pub fn builder(urls: &str) -> HttpRegistryBuilder {
        HttpRegistryBuilder {
            urls: urls.to_owned(),
            transport: Arc::new(Net::default()),
            token: None,
            timeout: Duration::from_secs(5),
            long_poll: Duration::from_secs(30),
        }
    }

    /// What is registered for one service, or for all and none. In the fallback the revision is
    /// empty, and every address is listed under no service.
    ///
    /// # Errors
    /// As [`Discovery::resolve`].
    pub async fn list(&self, service: Option<&ServiceName>) -> Result<Listing, DiscoveryError> {
        let found = self.inner.first(|site| Box::pin(site.list(service))).await?;
        Ok(Listing {
            revision: found.revision.unwrap_or_default(),
            warming: found.warming,
            protection: found.protection,
            entries: found.entries,
        })
    }

    /// Registers or renews an address by the seed's contract alone.
    pub(super) async fn post(&self, address: &str) -> Result<(), RegistryError> {
        Ok(self.inner.first(|site| Box::pin(seed::post(site, None, address))).await?)
    }
}

#[async_trait]
impl Registry for HttpRegistry {
    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError> {
        Ok(self.inner.first(|site| Box::pin(site.register(registration))).await?)
    }

    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        let mut results = Vec::with_capacity(held.len());
        for batch in batches(held) {
            match self.inner.first(|site| Box::pin(site.renew(batch))).await {
                Ok(renewed) => results.extend(renewed),
                Err(failure) => {
                    results.extend(batch.iter().map(|_| Err(failure.registry_error())));
                }
            }
        }
        results
    }

    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        for batch in batches(held) {
            self.inner.first(|site| Box::pin(site.deregister(batch))).await?;
        }
        Ok(())
    }

    async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        Ok(self.inner.first(|site| Box::pin(site.set_health(service, id, word))).await?)
    }
}

#[async_trait]
impl Discovery for HttpRegistry {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let found = self.inner.first(|site| Box::pin(site.list(Some(service)))).await?;
        Ok(self.inner.resolved(found))
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let (inner, service) = (Arc::clone(&self.inner), service.clone());
        Some(UpdateStream::fed(1, |updates| watch::feed(inner, service, updates)))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        Ok(self.inner.first(|site| Box::pin(site.services())).await?)
    }
}

impl fmt::Debug for HttpRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls = self.inner.sites.iter().map(|site| &site.location.url);
        f.debug_tuple("HttpRegistry").field(&urls.collect::<Vec<_>>()).finish()
    }
}

impl Inner {
    /// The answer of the first registry that gives one, starting with the one that did last.
    async fn first<'a, T>(
        &'a self,
        ask: impl Fn(&'a Site) -> Asked<'a, T> + Send,
    ) -> Result<T, Failure> {
        let (before, from) = self.sites.split_at(self.first.load(Relaxed));
        let mut failures = Failures::default();
        for site in from.iter().chain(before) {
            match ask(site).await {
                Err(failure) if !failure.is_final() => {
                    // Also for a caller with a limit of its own that ends before the round does:
                    // its next request goes on where this one stopped.
                    self.first.store((site.index + 1) % self.sites.len(), Relaxed);
                    failures.push(&site.location.url, failure);
                }
                answered => {
                    self.answered(site);
                    return answered.map_err(|failure| failure.naming(&site.location.url));
                }
            }
        }
        Err(failures.into_one())
    }

    fn answered(&self, site: &Site) {
        self.first.store(site.index, Relaxed);
        let last = self.last.swap(site.index, Relaxed);
        if last != site.index {
            *self.switched.lock() = Some(Instant::now());
            tracing::info!(url = site.location.url, "another registry is used");
        }
    }

    /// A registry to which everyone has just come over may lack some, and would prove them gone.
    fn resolved(&self, found: Found) -> Resolved {
        let switched = self.switched.lock().is_some_and(|at| at.elapsed() < DEFAULT_TTL);
        let instances = found.entries.into_iter().map(|entry| entry.instance).collect();
        let resolved =
            Resolved::new(instances).warming(found.warming || switched).complete(found.complete);
        match found.revision {
            Some(revision) => resolved.revision(revision),
            None => resolved,
        }
    }
}

/// Splits what does not fit one request.
fn batches(held: &[Held]) -> Vec<&[Held]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, held_lease) in held.iter().enumerate() {
        let weight = weight(held_lease);
        if index > start && (index - start == BATCH || bytes + weight > BATCH_BYTES) {
            batches.push(&held[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += weight;
    }
    if start < held.len() {
        batches.push(&held[start..]);
    }
    batches
}

/// The most bytes that its JSON takes: an escaped character is six.
fn weight(held: &Held) -> usize {
    let instance = &held.registration.instance;
    let texts = [&instance.zone, &instance.version].into_iter().flatten();
    let metadata = instance.metadata.iter();
    let escaped = texts.map(String::len).sum::<usize>()
        + metadata.map(|(key, value)| key.len() + value.len() + 1).sum::<usize>();
    let plain = instance.address.as_str().len() + held.registration.service.as_str().len();
    256 + plain + 6 * (instance.id.as_str().len() + held.lease.id.len() + escaped)
}

/// Configures an [`HttpRegistry`].
#[must_use]
pub struct HttpRegistryBuilder {
    urls: String,
    transport: Arc<dyn Transport>,
    token: Option<Token>,
    timeout: Duration,
    long_poll: Duration,
}

impl HttpRegistryBuilder {
    /// What connections go over. With one that speaks `tls`, such as `transport::Tls` of the
    /// feature `tls`, URLs may start with `https://`. Default: real sockets.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// What is shown to every one of the registries, in a header; nobody else gets it. Without TLS
    /// whoever can listen on the way reads it. Default: none.
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// How long a request may take, connecting included; each of several URLs gets an even share of
    /// nine tenths of it, so that all are asked before it ends. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a poll of a watch is held, on top of the timeout; a server holds none longer than
    /// 60 s. Default: 30 s.
    pub fn long_poll(mut self, wait: Duration) -> Self {
        self.long_poll = wait.min(Duration::from_millis(api::MAX_WAIT_MS));
        self
    }

    /// The client. It connects when it is first used.
    ///
    /// # Errors
    /// [`InvalidUrl`]; also for `https`, if the transport does not speak `tls`.
    pub fn build(self) -> Result<HttpRegistry, InvalidUrl> {
        let locations = urls::parse(&self.urls, |protocol| self.transport.speaks(protocol))?;
        // All of them are asked within the timeout, and a little before: whoever bounds a request
        // by the same time still gets the answer of the last.
        let share = match locations.len() as u32 {
            0 | 1 => self.timeout,
            several => self.timeout.mul_f64(0.9) / several,
        };
        let token = self.token.as_ref().map(Token::header);
        let locations = locations.into_iter().enumerate();
        let sites = locations
            .map(|(index, location)| {
                Site::new(index, location, Arc::clone(&self.transport), share, token.clone())
            })
            .collect();
        Ok(HttpRegistry {
            inner: Arc::new(Inner {
                sites,
                last: AtomicUsize::new(0),
                first: AtomicUsize::new(0),
                switched: Mutex::new(None),
                long_poll: self.long_poll,
            }),
        })
    }
}

impl fmt::Debug for HttpRegistryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRegistryBuilder")
            .field("urls", &self.urls)
            .field("token", &self.token)
            .field("timeout", &self.timeout)
            .field("long_poll", &self.long_poll)
            .finish_non_exhaustive()
    }
}
