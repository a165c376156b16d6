//! reqwest over a discovery: an instance is picked for each request.
//!
//! ```no_run
//! use srpc::adapt::reqwest::Client;
//! use srpc::backend;
//! use srpc::discovery::Resolver;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let source = backend::open("dns+srv://_http._tcp.shop.example.org")?.discovery;
//! let shop = Client::new(Resolver::new("shop".parse()?, source), "shop.example.org");
//! let request = reqwest::Request::new(reqwest::Method::GET, "http://shop.example.org/cart".parse()?);
//! let response = shop.execute(request).await?;
//! # drop(response);
//! # Ok(())
//! # }
//! ```

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, Method, Request, Response, StatusCode};
use tokio::task::coop;
use tower::Service;

use super::balance::{Balance, NoInstance};
use super::failover::Failover;
use super::sent::was_not_sent;
use crate::discovery::{Endpoint, Outcome, Resolver};
use crate::instance::Address;
use crate::transport::lookup;

/// How long connecting may take, where no function says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A client of one service: a `reqwest::Client` for each instance, of which one is picked for each request.
/// Cheap to clone, always ready.
///
/// # What it promises
/// - The URL keeps its host: the header `Host`, the name that TLS asks for and cookies are right. What is
///   connected to is the instance; a port in the URL does not count, in `Host` neither.
/// - Without an instance a request fails at once, and says so.
/// - A request of which nothing was sent goes to another instance, up to three in all, if its body is no
///   stream; so does one that may have been executed, if its method is idempotent by RFC 9110, section 9.2.2,
///   unless [`only_if_not_sent`](ClientOptions::only_if_not_sent) says otherwise.
/// - An instance that leaves gets no more requests, whatever connections are open.
/// - Responses of status 500, 502, 503 and 504 count against their instance; none is sent again for its status.
///
/// It follows no redirects, which would leave the service, and uses no proxy.
#[derive(Clone)]
pub struct Client {
    balance: Balance<One, Replay>,
    host: Arc<str>,
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No instance can take it.
    #[error(transparent)]
    NoInstance(NoInstance),
    /// The URL is of another host, or an instance's address is none that HTTP is spoken at.
    #[error("{0}")]
    Invalid(String),
    /// What reqwest says.
    #[error("{endpoint}: {source}")]
    Request {
        /// Where it failed.
        endpoint: Address,
        /// What reqwest says.
        source: reqwest::Error,
    },
}

/// How a [`Client`] is made.
#[must_use]
pub struct ClientOptions {
    resolver: Resolver,
    host: Arc<str>,
    build: Box<dyn Fn() -> ClientBuilder + Send + Sync>,
    only_if_not_sent: bool,
}

impl Client {
    /// A client of the service that URLs call `host`.
    pub fn new(resolver: Resolver, host: &str) -> Self {
        Self::options(resolver, host).build()
    }

    /// A client to be configured.
    pub fn options(resolver: Resolver, host: &str) -> ClientOptions {
        ClientOptions {
            resolver,
            host: host.to_ascii_lowercase().into(),
            build: Box::new(|| reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT)),
            only_if_not_sent: false,
        }
    }

    /// Sends a request to an instance.
    ///
    /// # Errors
    /// [`ClientError`]. A response of any status is none.
    ///
    /// # Cancellation
    /// Dropping the future ends the request.
    pub async fn execute(&self, mut request: Request) -> Result<Response, ClientError> {
        let checked = self.check(&request);
        if let Err(error) = checked {
            // A loop of requests that fail at once lets other tasks run.
            coop::consume_budget().await;
            return Err(error);
        }
        if request.url().host_str() != Some(&*self.host) {
            // What is connected to is found by this very text.
            let _ = request.url_mut().set_host(Some(&*self.host));
        }
        // The port is the instance's. A `Host` that names the URL's would contradict what HTTP/2 says
        // beside it.
        let _ = request.url_mut().set_port(None);
        let sent = self.balance.clone().call(request).await;
        sent.map_err(|error| match error.downcast::<NoInstance>() {
            Ok(none) => ClientError::NoInstance(*none),
            Err(error) => match error.downcast::<ClientError>() {
                Ok(error) => *error,
                Err(other) => ClientError::Invalid(other.to_string()),
            },
        })
    }

    /// Whether a request is one to this service.
    fn check(&self, request: &Request) -> Result<(), ClientError> {
        let host = request.url().host_str().unwrap_or_default();
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            let why = format!("{host} is no name: an IP address would be connected to itself");
            return Err(ClientError::Invalid(why));
        }
        if !undotted(host).eq_ignore_ascii_case(undotted(&self.host)) {
            let why = format!("a request to {host:?}, by a client of {:?}", self.host);
            return Err(ClientError::Invalid(why));
        }
        Ok(())
    }

    /// The list of instances.
    pub fn resolver(&self) -> &Resolver {
        self.balance.resolver()
    }
}

impl Service<Request> for Client {
    type Response = Response;
    type Error = ClientError;
    type Future = Pin<Box<dyn Future<Output = Result<Response, ClientError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { client.execute(request).await })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("host", &self.host).finish_non_exhaustive()
    }
}

impl ClientOptions {
    /// How each instance's client begins: timeouts, TLS, headers. Its resolution, redirects, retries and
    /// proxies are set afterwards. Set a `connect_timeout`: reqwest has none, and a machine that is gone
    /// answers nothing. Default: `reqwest::Client::builder` with 2 s for connecting.
    pub fn builder(mut self, build: impl Fn() -> ClientBuilder + Send + Sync + 'static) -> Self {
        self.build = Box::new(build);
        self
    }

    /// Sends nothing again that may have been executed, whatever its method. Default: idempotent methods
    /// are.
    pub fn only_if_not_sent(mut self) -> Self {
        self.only_if_not_sent = true;
        self
    }

    /// The client.
    pub fn build(self) -> Client {
        let Self { resolver, host, build, only_if_not_sent } = self;
        let name = Arc::clone(&host);
        let make = move |endpoint: &Endpoint| {
            let address = endpoint.instance().address.clone();
            One { client: one(build(), &name, &address), address }
        };
        let balance = Balance::builder(resolver, make).failover(Replay { only_if_not_sent });
        Client { balance: balance.build(), host }
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions").field("host", &self.host).finish_non_exhaustive()
    }
}

/// A host without the dot that turns search lists off.
fn undotted(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// The client of one instance.
fn one(builder: ClientBuilder, name: &str, address: &Address) -> Result<reqwest::Client, String> {
    let builder = builder.no_proxy().redirect(Policy::none()).retry(reqwest::retry::never());
    let builder = match (address.protocol(), address.target().parse::<SocketAddr>()) {
        ("tcp" | "tls", Ok(at)) if !at.ip().is_unspecified() => builder.resolve(name, at),
        ("tcp" | "tls", Err(_)) => {
            let target = address.target().to_owned();
            builder.dns_resolver(Arc::new(InstanceHost { target }))
        }
        #[cfg(unix)]
        ("unix", _) => builder.unix_socket(address.target()),
        _ => return Err(format!("{address}: neither a host with a port nor a Unix socket")),
    };
    builder.build().map_err(|error| format!("{address}: {error}"))
}

/// Looks up the host of an instance, which URLs call by the service's name.
struct InstanceHost {
    /// `host:port`.
    target: String,
}

impl Resolve for InstanceHost {
    fn resolve(&self, _: Name) -> Resolving {
        let target = self.target.clone();
        Box::pin(async move {
            let found = lookup(&target).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[derive(Clone)]
struct One {
    client: Result<reqwest::Client, String>,
    address: Address,
}

impl Service<Request> for One {
    type Response = Response;
    type Error = ClientError;
    type Future = Pin<Box<dyn Future<Output = Result<Response, ClientError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Self { client, address } = self.clone();
        Box::pin(async move {
            let client = client.map_err(ClientError::Invalid)?;
            let answered = client.execute(request).await;
            answered.map_err(|source| ClientError::Request { endpoint: address, source })
        })
    }
}

/// Sends again what was not sent, and what may be executed twice.
struct Replay {
    only_if_not_sent: bool,
}

impl Failover<Request> for Replay {
    /// `None`: its body is a stream.
    type Kept = Option<Request>;

    fn keep(&self, request: Request) -> (Request, Option<Request>) {
        let copy = request.try_clone();
        (request, copy)
    }

    fn again(&self, kept: Option<Request>, error: &(dyn Error + 'static)) -> Option<Request> {
        let request = kept?;
        // Its time is over, wherever it would go.
        let is_late = matches!(
            error.downcast_ref(),
            Some(ClientError::Request { source, .. }) if source.is_timeout()
        );
        let may_be_sent_twice =
            !self.only_if_not_sent && !is_late && is_idempotent(request.method());
        (may_be_sent_twice || self.is_unreachable(error)).then_some(request)
    }

    fn is_unreachable(&self, error: &(dyn Error + 'static)) -> bool {
        // A client that cannot be made for one instance says nothing of the others.
        let is_ours = matches!(error.downcast_ref(), Some(ClientError::Invalid(_)));
        is_ours || was_not_sent(error, is_connect)
    }

    fn outcome(&self, response: &dyn Any) -> Outcome {
        match response.downcast_ref::<Response>().map(Response::status) {
            Some(StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE) => Outcome::Failed,
            Some(StatusCode::INTERNAL_SERVER_ERROR | StatusCode::GATEWAY_TIMEOUT) => {
                Outcome::Ambiguous
            }
            Some(StatusCode::TOO_MANY_REQUESTS) => Outcome::Overloaded,
            _ => Outcome::Succeeded { load: 0 },
        }
    }
}

fn is_connect(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect)
}

/// By RFC 9110, section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    let methods =
        [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
    methods.contains(method)
}
