//! The registry as an HTTP server.

mod accept;
mod body;
mod check;
mod problem;
mod query;
mod seed;
mod stall;
#[cfg(test)]
mod tests;
mod v1;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use serde::Serialize;

use self::accept::Stopping;
use self::problem::Refusal;
use super::{DEFAULT_PATH, api};
use crate::backend::memory::MemoryRegistry;
use crate::transport::Listener;

/// The registry as an HTTP server: `/srpc/registry` and `/v1`. Clones share one state.
///
/// It holds no more than a peer may cost it: headers, bodies, idle connections and stalled readers
/// all have a time limit, and connections are capped, in all and for each address.
///
/// Every request carries its [`Peer`](crate::transport::Peer) among its extensions.
#[derive(Clone)]
pub struct RegistryServer {
    shared: Arc<Shared>,
}

struct Shared {
    registry: MemoryRegistry,
    limits: Limits,
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
            ttl: Some(Duration::from_secs(300)),
            protection: None,
            limits: Limits {
                header_timeout: Duration::from_secs(10),
                body_timeout: Duration::from_secs(30),
                write_timeout: Duration::from_secs(30),
                grace: Duration::from_secs(10),
                max_body: 1024 * 1024,
                max_connections: 10_000,
                max_connections_per_host: 256,
            },
        }
    }

    /// The state that is served.
    pub fn registry(&self) -> &MemoryRegistry {
        &self.shared.registry
    }

    /// Serves `listener` until `shutdown` ends: then stops accepting, answers every long poll at
    /// once, lets requests finish within the grace, and cuts the rest.
    ///
    /// Neither a failed accept nor a panic in a request ends it. Dropping the future closes every
    /// connection and the listener; no task is left behind.
    ///
    /// # Errors
    /// None at present: `Ok` after the last connection is closed.
    pub async fn serve(
        self,
        listener: Listener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let limits = self.shared.limits.clone();
        let handle = move |request: Request<Incoming>, stopping: Stopping| {
            let server = self.clone();
            async move { server.answer(request, stopping.wait()).await }
        };
        accept::run(listener, shutdown, &limits, handle).await;
        Ok(())
    }

    /// Answers one request: mounts the registry in a server of one's own.
    ///
    /// The request's path must be the one of its origin (`/srpc/registry`, `/v1/...`): a router
    /// must not strip it. Timeouts of headers and connections are the outer server's; the limits of
    /// bodies hold. A long poll is answered when its time is over; dropping the future ends it.
    pub async fn handle<B: Body>(&self, request: Request<B>) -> Response<Full<Bytes>> {
        self.answer(request, std::future::pending()).await
    }

    /// `stop` ends long polls early.
    async fn answer<B: Body>(
        &self,
        request: Request<B>,
        stop: impl Future<Output = ()>,
    ) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        match self.route(&parts, body, stop).await {
            Ok(response) => response,
            Err(refusal) => {
                tracing::debug!(
                    method = %parts.method,
                    path = ?parts.uri.path(),
                    status = refusal.status().as_u16(),
                    detail = ?refusal.detail(),
                    "request refused"
                );
                refusal.into_response()
            }
        }
    }

    async fn route<B: Body>(
        &self,
        parts: &Parts,
        body: B,
        stop: impl Future<Output = ()>,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let Shared { registry, limits } = &*self.shared;
        if body.size_hint().lower() > limits.max_body as u64 {
            return Err(Refusal::too_large(limits.max_body));
        }
        match parts.uri.path() {
            DEFAULT_PATH => Ok(seed::answer(registry, parts)),
            _ => v1::answer(registry, limits, parts, body, stop).await,
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

/// Configures a [`RegistryServer`].
#[must_use]
pub struct RegistryServerBuilder {
    registry: Option<MemoryRegistry>,
    ttl: Option<Duration>,
    /// From how many leases on, and which share of them.
    protection: Option<(usize, f64)>,
    limits: Limits,
}

impl RegistryServerBuilder {
    /// The state to serve. Default: one of its own, which says that it is warming after its start.
    pub fn registry(mut self, registry: MemoryRegistry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// How long an entry without a TTL of its own lives, and the longest that is granted; `None`:
    /// such an entry never expires, and what is asked for is granted. Without effect on a registry
    /// that was given. Default: 5 minutes.
    pub fn ttl(mut self, ttl: Option<Duration>) -> Self {
        self.ttl = ttl;
        self
    }

    /// When leases that have run out are kept for up to one more TTL, as
    /// [`MemoryRegistryBuilder::protection`](crate::backend::memory::MemoryRegistryBuilder::protection)
    /// says. Without effect on a registry that was given. Default: from 20 leases on, more than
    /// 0.15 of them.
    pub fn protection(mut self, min_leases: usize, share: f64) -> Self {
        self.protection = Some((min_leases, share));
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

    /// How many connections are open at most; one more is closed. Default: 10,000.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.limits.max_connections = connections;
        self
    }

    /// How many connections one address may have open, loopback included. Connections without an
    /// address (unix sockets) count only in all. Default: 256.
    pub fn max_connections_per_host(mut self, connections: usize) -> Self {
        self.limits.max_connections_per_host = connections;
        self
    }

    /// The server.
    pub fn build(self) -> RegistryServer {
        let registry = self.registry.unwrap_or_else(|| {
            let own = MemoryRegistry::builder().default_ttl(self.ttl).warming(true);
            match self.protection {
                Some((min_leases, share)) => own.protection(min_leases, share).build(),
                None => own.build(),
            }
        });
        RegistryServer { shared: Arc::new(Shared { registry, limits: self.limits }) }
    }
}

impl fmt::Debug for RegistryServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryServerBuilder")
            .field("ttl", &self.ttl)
            .field("protection", &self.protection)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
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
