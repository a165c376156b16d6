//! The client of a registry over HTTP.

mod failure;
mod replicas;
mod seed;
mod site;
#[cfg(test)]
mod tests;
mod urls;
mod v1;
mod watch;

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use self::failure::Failure;
use self::replicas::Replicas;
use self::site::Site;
use super::api;
use super::token::Token;
use crate::backend::memory::{Entry, Listing, Protection};
use crate::backend::{InvalidUrl, masked_url};
use crate::discovery::{Discovery, DiscoveryError, Resolved, UpdateStream};
use crate::instance::{InstanceId, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, Registry, RegistryError, Renewal,
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
/// - a list proves nothing; where the registry does not filter by service, as the original contract
///   does not, its one list serves every service name, which is warned of once;
/// - a lease is renewed by registering again, and cannot be given back: it runs out;
/// - `/v1` is asked for again at every registration and watch, and once a minute by the rest.
///
/// # Several URLs
/// Those whose answers name one registry (fronts of one backend) lead to one: that which worked last is
/// asked first, and the others if it fails. Different registries are replicas of each other, and a URL
/// whose answers name none is a registry of its own. What is registered is registered at each:
/// `register` succeeds once one has taken it, and the others follow at once or with the next renewal; what
/// is superseded at one is given up at all. Lists are merged by id and epoch, and what every registry
/// lacks that answers and does not warm up is gone. So each of them may be away, or come back empty. A
/// first list waits for the others for 2 s at most, and 250 ms once one has answered that does not warm
/// up; until each has answered once, lists are incomplete.
///
/// # Errors
/// 401, 403 and 421 are `NotAllowed`, and no reason to fall back. A registry that refuses is told once, and counts
/// as away while others answer.
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
    replicas: Replicas,
    long_poll: Duration,
}

/// What a registry listed.
struct Found {
    revision: Option<Arc<str>>,
    warming: bool,
    deregistered: Vec<InstanceId>,
    protection: Option<Protection>,
    complete: bool,
    /// What could not be read, in words: by the registry, or of its answer.
    unread: Vec<Arc<str>>,
    entries: Vec<Entry>,
    /// When the registry wants to be asked again at the earliest.
    again: Option<Duration>,
}

type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

impl HttpRegistry {
    /// The registry at `http://host:port/srpc/registry`, or the registries at several such URLs,
    /// separated by commas. What comes before `/srpc/registry` is a prefix of `/v1` too, and a prefix
    /// alone will do: `http://proxy/reg`. A path at which no registry is found so is that of a header
    /// contract, with `/v1` at the root.
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
    /// empty, and an address is listed under no service unless the registry filtered by it.
    ///
    /// # Errors
    /// As [`Discovery::resolve`].
    pub async fn list(&self, service: Option<&ServiceName>) -> Result<Listing, DiscoveryError> {
        let found = self.inner.replicas.list(service).await?;
        Ok(Listing {
            revision: found.revision.unwrap_or_default(),
            warming: found.warming,
            deregistered: found.deregistered,
            protection: found.protection,
            unread: found.unread,
            entries: found.entries,
        })
    }

    /// Registers or renews an address by the seed's contract alone.
    pub(super) async fn post(&self, address: &str) -> Result<(), RegistryError> {
        let replicas = &self.inner.replicas;
        Ok(replicas.each(|site| Box::pin(seed::post(site, None, address)), |(), ()| ()).await?)
    }
}

#[async_trait]
impl Registry for HttpRegistry {
    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError> {
        self.inner.replicas.register(registration).await
    }

    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        self.inner.replicas.renew(held).await
    }

    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        self.inner.replicas.deregister(held).await
    }

    async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        let replicas = &self.inner.replicas;
        let either = |one, other| one || other;
        Ok(replicas.each(|site| Box::pin(site.set_health(service, id, word)), either).await?)
    }

    async fn name(&self) -> Result<Option<Arc<str>>, RegistryError> {
        let names = self.inner.replicas.known_registries().await;
        let names: Option<Vec<Arc<str>>> = names.iter().map(|doors| doors[0].name()).collect();
        Ok(names.map(|names| names.join("+").into()))
    }
}

#[async_trait]
impl Discovery for HttpRegistry {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        Ok(self.inner.replicas.list(Some(service)).await?.resolved())
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let (inner, service) = (Arc::clone(&self.inner), service.clone());
        Some(UpdateStream::fed(1, |updates| watch::feed(inner, service, updates)))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        let union = |one: Vec<ServiceName>, other: Vec<ServiceName>| {
            let all: BTreeSet<ServiceName> = one.into_iter().chain(other).collect();
            all.into_iter().collect()
        };
        Ok(self.inner.replicas.each(|site| Box::pin(site.services()), union).await?)
    }
}

impl fmt::Debug for HttpRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls = self.inner.replicas.sites.iter().map(|site| &site.location.url);
        f.debug_tuple("HttpRegistry").field(&urls.collect::<Vec<_>>()).finish()
    }
}

impl Found {
    fn resolved(self) -> Resolved {
        let instances = self.entries.into_iter().map(|entry| entry.instance).collect();
        let resolved = Resolved::new(instances)
            .warming(self.warming)
            .complete(self.complete)
            .deregistered(self.deregistered)
            .unread(self.unread);
        match self.revision {
            // A list of the registry's own API: whoever has a revision keeps the state itself, or says
            // that it is warming up.
            Some(revision) => resolved.revision(revision).authoritative(true),
            None => resolved,
        }
    }

    /// Whether another list says nothing new.
    fn is_same(&self, other: &Self) -> bool {
        match (&self.revision, &other.revision) {
            (Some(one), Some(other_revision)) => {
                one == other_revision && self.warming == other.warming
            }
            _ => self.entries == other.entries,
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
            inner: Arc::new(Inner { replicas: Replicas::new(sites), long_poll: self.long_poll }),
        })
    }
}

impl fmt::Debug for HttpRegistryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRegistryBuilder")
            .field("urls", &masked_url(&self.urls))
            .field("token", &self.token)
            .field("timeout", &self.timeout)
            .field("long_poll", &self.long_poll)
            .finish_non_exhaustive()
    }
}
