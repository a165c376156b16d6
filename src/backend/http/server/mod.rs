//! The registry as an HTTP server.

mod accept;
mod access;
mod body;
mod check;
mod front;
mod hosts;
mod memory;
mod meter;
mod pacing;
mod problem;
mod query;
mod rate;
mod seed;
mod stall;
mod store;
#[cfg(test)]
mod tests;
mod tokens;
mod usage;
mod v1;

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, EXPECT};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use serde::Serialize;

use self::accept::Stopping;
use self::access::{Access, Caller};
use self::front::Front;
use self::hosts::{Hosts, Reach};
use self::memory::RequestMemory;
use self::meter::{Meter, Share};
use self::pacing::ListPacer;
use self::problem::Refusal;
use self::rate::{Rate, Rates, Use};
use self::store::Store;
pub use self::tokens::{InvalidTokens, Tokens};
use self::usage::{Activity, Usage};
use super::{DEFAULT_PATH, api};
use crate::backend::memory::{MemoryRegistry, MemoryRegistryBuilder, Owner};
use crate::discovery::Discovery;
use crate::instance::Address;
use crate::registry::Registry;
use crate::sync::event;
use crate::transport::{Budget, ConnectionCaps, Listener, Peer, Refusals};

/// The lease of an address over a backend, where none is set.
const LONGEST_OF_BACKEND: Duration = Duration::from_secs(24 * 60 * 60);

/// The registry as an HTTP server: `/srpc/registry` and `/v1`. Clones share one state.
///
/// # Who may do what
/// With [`tokens`](RegistryServerBuilder::tokens) every request must show one, or come from a
/// listed identity: 401 without, 403 where the scope lacks, whatever the path. Without them
/// everybody may do everything, and [`serve`](Self::serve) refuses a listener that others than this
/// machine reach, unless it is told to be [`insecure`](RegistryServerBuilder::insecure).
///
/// # What it may cost
/// Headers, bodies, idle connections and stalled readers have a time limit; connections, requests a
/// second, long polls, what is registered, bodies that come and answers that are not yet read are capped, in
/// all, for each address and for each token. Whatever cap is reached, what is registered is renewed.
///
/// # Over a backend
/// Given [another registry](RegistryServerBuilder::backend), such as etcd, it keeps nothing of its own and
/// answers the same requests: for programs that speak only HTTP, and so that few clients, not all, connect
/// to the backend. Several such servers over one backend agree, and each may be killed at any time. What
/// differs is what a backend does not tell: an instance's `expires_in_ms`, a registration's `revision`, and
/// protection. A registration's TTL is what the backend makes of it; what was registered by its address
/// alone and without a service is of the service `srpc.unnamed` there; an address that an instance holds
/// through `/v1` is left to that instance's own renewals. A backend that is away is a 503.
///
/// A request's [`Peer`] is among its extensions; without it, it comes from nowhere.
#[derive(Clone)]
pub struct RegistryServer {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    limits: Limits,
    access: Access,
    hosts: Hosts,
    insecure: bool,
    rates: Rates,
    /// Requests under way, by token.
    in_flight: Meter,
    /// The same of renewals.
    renewing: Meter,
    /// Long polls that are held, by address.
    polls: Meter,
    /// The same, by token.
    polls_by_token: Meter,
    /// What bodies that are read and answers that are not yet sent may hold.
    budget: Arc<Budget>,
    /// When the clients of an address ask for lists again.
    list_pacer: ListPacer,
    /// What was refused and is not logged yet.
    refusals: Arc<Refusals>,
}

/// What a peer may cost.
#[derive(Clone, Debug)]
struct Limits {
    header_timeout: Duration,
    body_timeout: Duration,
    write_timeout: Duration,
    grace: Duration,
    max_body: usize,
    max_connections: usize,
    max_connections_per_host: usize,
    max_in_flight_per_token: usize,
    max_polls_per_host: Option<usize>,
    max_bytes_in_flight: usize,
    max_bytes_in_flight_per_host: Option<usize>,
    rate: Rate,
}

impl RegistryServer {
    /// A server over a registry of its own, with every default of the [builder](Self::builder).
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A server to be configured.
    pub fn builder() -> RegistryServerBuilder {
        RegistryServerBuilder {
            registry: None,
            backend: None,
            backend_timeout: Duration::from_secs(10),
            max_backend_requests: 256,
            max_backend_watches: 1000,
            ttl: Some(Duration::from_secs(300)),
            caps: MemoryRegistry::builder(),
            tokens: None,
            identified: false,
            open_seed_path: false,
            hosts: Hosts::default(),
            insecure: false,
            limits: Limits {
                header_timeout: Duration::from_secs(10),
                body_timeout: Duration::from_secs(30),
                write_timeout: Duration::from_secs(30),
                grace: Duration::from_secs(10),
                max_body: 1024 * 1024,
                max_connections: 10_000,
                max_connections_per_host: 256,
                max_in_flight_per_token: 5000,
                max_polls_per_host: None,
                max_bytes_in_flight: 256 * 1024 * 1024,
                max_bytes_in_flight_per_host: None,
                rate: Rate { all: 10_000, per_host: 1000, per_token: 5000 },
            },
        }
    }

    /// The state that is served; `None`: it is a backend's.
    pub fn registry(&self) -> Option<&MemoryRegistry> {
        match &self.shared.store {
            Store::Memory(registry) => Some(registry),
            Store::Front(_) => None,
        }
    }

    /// Puts these tokens in the place of those before, for every request from now on.
    pub fn replace_tokens(&self, tokens: Tokens) {
        self.shared.access.replace(tokens);
    }

    /// Serves `listener` until `shutdown` ends: then stops accepting, answers every long poll at
    /// once, lets requests finish within the grace, and cuts the rest.
    ///
    /// Neither a failed accept nor a panic in a request ends it. Dropping the future closes every
    /// connection and the listener; no task is left behind.
    ///
    /// # Errors
    /// `PermissionDenied` at once, with [`Unprotected`] inside, if others than this machine reach the
    /// listener, nobody has to show a token or prove an identity, and it was not told to be
    /// [`insecure`](RegistryServerBuilder::insecure). `Ok` after the last connection is closed.
    pub async fn serve(
        self,
        listener: Listener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let reach = Reach::of(&listener);
        if reach.is_exposed() && !self.shared.insecure && !self.shared.access.is_restricted() {
            let unprotected = Unprotected { address: listener.address().clone() };
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, unprotected));
        }
        let mut limits = self.shared.limits.clone();
        let (total, per_host) = (limits.max_connections, limits.max_connections_per_host);
        let caps = ConnectionCaps::for_listener(&listener, total, per_host);
        (limits.max_connections, limits.max_connections_per_host) = (caps.total, caps.per_host);
        let refusals = Arc::clone(&self.shared.refusals);
        let budget = Arc::clone(&self.shared.budget);
        let handle = move |request: Request<Incoming>, stopping: Stopping| {
            let server = self.clone();
            async move { server.answer(request, reach, stopping.wait()).await }
        };
        accept::run(listener, shutdown, &limits, caps.refusing, refusals, budget, handle).await;
        Ok(())
    }

    /// Answers one request: mounts the registry in a server of one's own.
    ///
    /// The request's path must be the one of its origin (`/srpc/registry`, `/v1/...`): a router
    /// must not strip it. Who may do what is checked here; whom its listener lets in is the outer
    /// server's, and so are the check of the header `Host` and the [`Peer`] to insert, without which nothing is
    /// counted by address. Timeouts of headers and connections are the outer server's; the limits of
    /// bodies hold. A long poll is answered when its time is over; dropping the future ends it.
    pub async fn handle<B: Body>(&self, request: Request<B>) -> Response<Full<Bytes>> {
        self.answer(request, Reach::Mounted, std::future::pending()).await
    }

    /// `stop` ends long polls early.
    async fn answer<B: Body>(
        &self,
        request: Request<B>,
        reach: Reach,
        stop: impl Future<Output = ()>,
    ) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let mut body = pin!(body);
        let routed = self.route(&parts, body.as_mut(), reach, stop).await;
        // A client that waits for `100 Continue` sends no body once it is refused.
        let sends_no_body = routed.is_err() && parts.headers.contains_key(EXPECT);
        let mut response = match routed {
            Ok(response) => response,
            Err(refusal) => {
                if let Some(limit) = refusal.limit() {
                    self.shared.refusals.count(limit, &host(&parts));
                }
                event!(
                    DEBUG,
                    method = %parts.method,
                    path = ?parts.uri.path(),
                    status = refusal.status().as_u16(),
                    detail = ?refusal.detail(),
                    "request refused"
                );
                refusal.into_response()
            }
        };
        if !body.is_end_stream() {
            let usage = Usage::of(&parts);
            if let Some(usage) = usage {
                usage.begin(Activity::Receiving);
            }
            let closes = response.headers().contains_key(CONNECTION) || sends_no_body;
            // A connection goes on behind a request that was read whole, and behind no other.
            if closes || !body::drain(body).await {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                if let Some(usage) = usage {
                    usage.set_lingers();
                }
            }
        }
        response
    }

    async fn route<B: Body>(
        &self,
        parts: &Parts,
        body: B,
        reach: Reach,
        stop: impl Future<Output = ()>,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let shared = &*self.shared;
        let limits = &shared.limits;
        let host = host(parts);
        // Before anything else is looked at.
        let caller = match shared.caller(parts, reach) {
            Ok(caller) => caller,
            Err(refusal) => {
                shared.rates.count(&host, None, Use::Stranger)?;
                return Err(refusal);
            }
        };
        let of = match renews(parts) && caller.may_write_something().is_ok() {
            _ if caller.is_guest() => Use::Open,
            true => Use::Renewal,
            false if parts.uri.path() == api::INSTANCES => Use::List,
            false => Use::Other,
        };
        let _under_way = shared.under_way(caller.name(), of == Use::Renewal)?;
        shared.rates.count(&host, caller.name(), of)?;
        if body.size_hint().lower() > limits.max_body as u64 {
            return Err(Refusal::too_large(limits.max_body));
        }
        match parts.uri.path() {
            DEFAULT_PATH => seed::answer(shared, &caller, parts).await,
            _ => v1::answer(shared, &caller, parts, body, stop).await,
        }
    }
}

impl Default for RegistryServer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RegistryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryServer")
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Who asks, if this server answers it.
    fn caller(&self, parts: &Parts, reach: Reach) -> Result<Caller, Refusal> {
        hosts::check_header(parts, reach)?;
        let caller = self.access.caller(parts, reach.is_exposed())?;
        // A page in a browser of this machine has no token to show.
        if caller.name().is_none() {
            self.hosts.check(parts, reach)?;
        }
        Ok(caller)
    }

    /// A place for a request; renewals have places of their own.
    fn under_way(&self, token: Option<&Arc<str>>, renews: bool) -> Result<Option<Share>, Refusal> {
        let Some(token) = token else { return Ok(None) };
        let place = if renews { self.renewing.take(token) } else { self.in_flight.take(token) };
        let busy = || {
            let reason = "too many requests of this token are under way";
            Refusal::too_many(reason, Duration::from_secs(1))
        };
        place.map(Some).ok_or_else(busy)
    }

    /// The places of a long poll. `None`: it is not to be held.
    fn poll(&self, host: &Arc<str>, token: Option<&Arc<str>>) -> Option<(Share, Option<Share>)> {
        let of_token = match token {
            Some(token) => Some(self.polls_by_token.take(token)?),
            None => None,
        };
        Some((self.polls.take(host)?, of_token))
    }

    /// The memory of a request or its answer.
    fn memory(&self, parts: &Parts) -> RequestMemory {
        RequestMemory::of(parts, &self.budget)
    }
}

/// Why a listener is not served: whoever reaches it could register, and be sent calls.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "others reach {address}, and nobody is asked for a token: give tokens, or say that it is to be insecure"
)]
pub struct Unprotected {
    address: Address,
}

/// Configures a [`RegistryServer`].
#[must_use]
pub struct RegistryServerBuilder {
    registry: Option<MemoryRegistry>,
    backend: Option<(Arc<dyn Discovery>, Arc<dyn Registry>)>,
    backend_timeout: Duration,
    max_backend_requests: usize,
    max_backend_watches: usize,
    ttl: Option<Duration>,
    /// What its own registry holds at most.
    caps: MemoryRegistryBuilder,
    tokens: Option<Tokens>,
    identified: bool,
    open_seed_path: bool,
    hosts: Hosts,
    insecure: bool,
    limits: Limits,
}

impl RegistryServerBuilder {
    /// The state to serve. Default: one of its own, which says that it is warming after its start.
    pub fn registry(mut self, registry: MemoryRegistry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Another registry, in front of which the server stands: see
    /// [Over a backend](RegistryServer#over-a-backend). Both must look at the same one; it must end each
    /// registration by itself, as
    /// [`OpenOptions::lease_each`](crate::backend::OpenOptions::lease_each) says. A
    /// [`registry`](Self::registry) that was given is then not served. Default: none.
    pub fn backend(mut self, discovery: Arc<dyn Discovery>, registry: Arc<dyn Registry>) -> Self {
        self.backend = Some((discovery, registry));
        self
    }

    /// How long the backend may take for an answer, waiting for a turn included; then it is a 503.
    /// Default: 10 s.
    pub fn backend_timeout(mut self, timeout: Duration) -> Self {
        self.backend_timeout = timeout;
        self
    }

    /// How many lists are read, registrations made and renewals passed on at once, each; more wait for
    /// their turn. Who wants the same list shares one request. Default: 256.
    pub fn max_backend_requests(mut self, requests: usize) -> Self {
        self.max_backend_requests = requests;
        self
    }

    /// How many services are watched at the backend for the sake of long polls; a long poll of one more is
    /// answered at once. A watch ends a minute after the last poll. Default: 1,000.
    pub fn max_backend_watches(mut self, watches: usize) -> Self {
        self.max_backend_watches = watches;
        self
    }

    /// How long an entry without a TTL of its own lives, and the longest that is granted; `None`:
    /// such an entry never expires, and what is asked for is granted. Without effect on a registry
    /// that was given. Over a backend nothing lives for ever: `None` is 24 hours there. Default:
    /// 5 minutes.
    pub fn ttl(mut self, ttl: Option<Duration>) -> Self {
        self.ttl = ttl;
        self
    }

    /// Who may do what. Default: everybody, everything.
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Where there are no [`tokens`](Self::tokens): answer only peers that have proved who they are
    /// to the transport ([`Peer::identity`]), and let them do everything. Default: false.
    pub fn identified(mut self, identified: bool) -> Self {
        self.identified = identified;
        self
    }

    /// Whether `/srpc/registry` is open to everybody, whatever the rest is: programs that speak
    /// only that contract have no token to show. Without it the path needs one where there are
    /// tokens, and is off where others than this machine reach a registry without. Default: false.
    pub fn open_seed_path(mut self, open: bool) -> Self {
        self.open_seed_path = open;
        self
    }

    /// A host name, beside `localhost` and IP addresses, by which a registry on loopback may be asked without a
    /// token; a request for another name is 421, since any page in a browser of this machine can make it. Port
    /// and case do not matter; may be called several times. Without effect on other listeners. Default: none.
    pub fn allow_host(mut self, host: &str) -> Self {
        self.hosts.allow(host);
        self
    }

    /// Whether a listener that others reach is served although nobody has to show a token.
    /// Default: false.
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// How many instances are registered at most, of all services and none. Without effect on a
    /// registry that was given, as the three that follow; over a backend what was registered or renewed
    /// through this server counts, for the time of its lease. Default: 100,000.
    pub fn max_instances(mut self, instances: usize) -> Self {
        self.caps = self.caps.max_instances(instances);
        self
    }

    /// How many of them from one address. Default: 10,000.
    pub fn max_instances_per_host(mut self, instances: usize) -> Self {
        self.caps = self.caps.max_instances_per_host(instances);
        self
    }

    /// How many of them with tokens of one name. Default: 10,000.
    pub fn max_instances_per_token(mut self, instances: usize) -> Self {
        self.caps = self.caps.max_instances_per_token(instances);
        self
    }

    /// What all of them may take, in bytes, as [`MemoryRegistryBuilder::max_bytes`] counts.
    /// Default: 256 MiB.
    pub fn max_registered_bytes(mut self, bytes: usize) -> Self {
        self.caps = self.caps.max_bytes(bytes);
        self
    }

    /// How many requests a second are answered, those without a valid token apart; for a moment
    /// twice as many. Renewals and lists of instances are counted by themselves, here and below, and
    /// may be as many, each.
    /// Beyond it: 429. Default: 10,000.
    pub fn rate(mut self, requests: u32) -> Self {
        self.limits.rate.all = requests;
        self
    }

    /// How many requests a second from one address. Default: 1,000.
    pub fn rate_per_host(mut self, requests: u32) -> Self {
        self.limits.rate.per_host = requests;
        self
    }

    /// How many requests a second with tokens of one name. Default: 5,000.
    pub fn rate_per_token(mut self, requests: u32) -> Self {
        self.limits.rate.per_token = requests;
        self
    }

    /// How many requests with tokens of one name are under way at most, of which half may be long
    /// polls; one more is answered 429. Default: 5,000.
    pub fn max_in_flight_per_token(mut self, requests: usize) -> Self {
        self.limits.max_in_flight_per_token = requests;
        self
    }

    /// How many long polls of one address are held; one more is answered at once, and its
    /// connection closed. In all half of the connections may be held. Default: half of the
    /// connections that one address may have.
    pub fn max_polls_per_host(mut self, polls: usize) -> Self {
        self.limits.max_polls_per_host = Some(polls);
        self
    }

    /// How much memory requests that are read, and answers that their readers have not taken yet, may
    /// take together, in bytes; less than 16 KiB of each is free. When it is full, connections that hold
    /// much and have moved less than 16 KiB for a second are closed, and who has waited for room for
    /// 2 s is answered 503. Answers to renewals are charged, and wait for no room. Default: 256 MiB.
    pub fn max_bytes_in_flight(mut self, bytes: usize) -> Self {
        self.limits.max_bytes_in_flight = bytes;
        self
    }

    /// How much of that one address may hold before connections of its own are closed in the same way.
    /// It leaves a quarter of the whole, or its share if that is less, to the others. Default: a quarter.
    pub fn max_bytes_in_flight_per_host(mut self, bytes: usize) -> Self {
        self.limits.max_bytes_in_flight_per_host = Some(bytes);
        self
    }

    /// When leases that have run out are kept for up to one more TTL, as
    /// [`MemoryRegistryBuilder::protection`](crate::backend::memory::MemoryRegistryBuilder::protection)
    /// says. Without effect on a registry that was given. Default: from 20 leases on, more than
    /// 0.15 of them.
    pub fn protection(mut self, min_leases: usize, share: f64) -> Self {
        self.caps = self.caps.protection(min_leases, share);
        self
    }

    /// How long a request's header may take, and how long a connection may be idle. Default: 10 s.
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.limits.header_timeout = timeout;
        self
    }

    /// How long a request's body may take. Default: 30 s.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.limits.body_timeout = timeout;
        self
    }

    /// How long a peer may take nothing of its answer. Default: 30 s.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.limits.write_timeout = timeout;
        self
    }

    /// How long requests may go on after the shutdown began. Default: 10 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.limits.grace = grace;
        self
    }

    /// The largest body, in bytes. Default: 1 MiB.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.limits.max_body = bytes;
        self
    }

    /// How many connections are open at most; fewer where the process's limit of open files is lower.
    /// One more takes the place of an idle one, or is answered 503. Default: 10,000.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.limits.max_connections = connections;
        self
    }

    /// How many connections one address may have open, loopback included. One more takes the place of
    /// an idle one; if all are in use it waits for a second, and is answered 429. Connections without
    /// an address (unix sockets) count only in all. Default: 256.
    pub fn max_connections_per_host(mut self, connections: usize) -> Self {
        self.limits.max_connections_per_host = connections;
        self
    }

    /// The server.
    pub fn build(self) -> RegistryServer {
        let store = match (self.backend, self.registry) {
            (Some((discovery, registry)), _) => {
                let limits = front::Limits {
                    ttl: self.ttl.filter(|ttl| !ttl.is_zero()).unwrap_or(LONGEST_OF_BACKEND),
                    quota: self.caps.quota(),
                    timeout: self.backend_timeout,
                    requests: self.max_backend_requests,
                    watches: self.max_backend_watches,
                };
                Store::Front(Arc::new(Front::new(discovery, registry, limits)))
            }
            (None, Some(registry)) => Store::Memory(registry),
            (None, None) => Store::Memory(self.caps.default_ttl(self.ttl).warming(true).build()),
        };
        let limits = self.limits;
        let (total, per_host) = (limits.max_connections, limits.max_connections_per_host);
        let caps = ConnectionCaps::within_open_files(total, per_host);
        let max_polls = limits.max_polls_per_host.unwrap_or(caps.per_host / 2);
        let max_polls_per_token = limits.max_in_flight_per_token / 2;
        let max_bytes = limits.max_bytes_in_flight;
        let host_bytes = limits.max_bytes_in_flight_per_host.unwrap_or(max_bytes / 4);
        RegistryServer {
            shared: Arc::new(Shared {
                store,
                access: Access::new(self.tokens, self.identified, self.open_seed_path),
                hosts: self.hosts,
                insecure: self.insecure,
                rates: Rates::new(&limits.rate),
                in_flight: Meter::new(usize::MAX, limits.max_in_flight_per_token),
                renewing: Meter::new(usize::MAX, limits.max_in_flight_per_token),
                polls: Meter::new(caps.total / 2, max_polls),
                polls_by_token: Meter::new(usize::MAX, max_polls_per_token),
                budget: Arc::new(Budget::new(max_bytes, host_bytes)),
                list_pacer: ListPacer::new(limits.rate.per_host),
                refusals: Arc::default(),
                limits,
            }),
        }
    }
}

impl fmt::Debug for RegistryServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryServerBuilder")
            .field("ttl", &self.ttl)
            .field("caps", &self.caps)
            .field("tokens", &self.tokens)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Where a request comes from; empty: not known.
fn host(parts: &Parts) -> Arc<str> {
    parts.extensions.get::<Peer>().map(Peer::account).unwrap_or_default()
}

fn owner(parts: &Parts, caller: &Caller) -> Owner {
    Owner { host: host(parts), token: caller.name().cloned() }
}

/// Whether a request keeps alive what is registered. By the seed's contract that looks the same as
/// a registration.
fn renews(parts: &Parts) -> bool {
    parts.method == Method::POST && matches!(parts.uri.path(), api::RENEW | DEFAULT_PATH)
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn json(answer: &impl Serialize) -> Result<Response<Full<Bytes>>, Refusal> {
    let body = serde_json::to_vec(answer).map_err(Refusal::internal)?;
    Ok(respond(StatusCode::OK, api::JSON, body))
}

/// The same for what may be large: it is charged until it is sent.
fn json_of(
    answer: &impl Serialize,
    memory: RequestMemory,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let body = serde_json::to_vec(answer).map_err(Refusal::internal)?;
    Ok(respond(StatusCode::OK, api::JSON, memory.bytes(body, 1)))
}
