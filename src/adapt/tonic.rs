//! tonic over a discovery: a drop-in for its `Channel`.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use srpc::adapt::tonic::Channels;
//! use srpc::backend;
//! use srpc::discovery::Resolver;
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let source = backend::open("http://127.0.0.1:9999")?.discovery;
//! let channels = Channels::new(Resolver::new("greeter".parse()?, source));
//! // let mut client = GreeterClient::new(channels);
//! # drop(channels);
//! # Ok(())
//! # }
//! ```

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, request};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::task::coop;
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint as Target};
use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tower::{Service, ServiceExt, service_fn};

use super::balance::{Balance, NoInstance};
use super::failover::Failover;
use super::sent::was_not_sent;
use crate::discovery::{Endpoint, Outcome, Resolver};
use crate::error::BoxError;
use crate::instance::{Address, Instance};
use crate::sync::Mutex;
use crate::transport::{Net, Stream, Transport};

/// How long connecting may take, where no function says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How soon it is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// How often a connection is asked whether its peer lives, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest request that is kept to be sent again, in bytes.
const MOST_KEPT: usize = 4 * 1024 * 1024;

/// A channel over all endpoints of a service: one lazy [`Channel`] an endpoint, picked for each request. Cheap
/// to clone, always ready.
///
/// # What it promises
/// - Without an instance a call fails at once with `Unavailable`, and names the service.
/// - A call of which nothing was sent goes to another endpoint, up to three in all; one that may have been
///   executed does so only if it is marked with [`Idempotent`]. An error names its endpoint.
/// - Endpoints that fail are ejected, as for calls of this crate's own. What a server answers with a
///   status of its own is an answer and is not sent again; `Unavailable`, `DataLoss`, `Internal`, `Unknown`
///   and `DeadlineExceeded` count against its endpoint.
///
/// Addresses of `tcp@` and `unix@` are dialled within 2 s, and connections are asked every 10 s whether their
/// peer lives; for TLS, [`connecting`](Self::connecting) says how.
#[derive(Clone)]
pub struct Channels {
    balance: Balance<Named, Replay>,
}

/// Marks a call as one that may be executed twice: put it into the extensions of a `tonic::Request`. Such a
/// request is kept in memory until it is answered; one of more than 4 MiB is refused.
#[derive(Clone, Copy, Debug)]
pub struct Idempotent;

impl Channels {
    /// A channel over a resolver's endpoints.
    pub fn new(resolver: Resolver) -> Self {
        Self::connecting(resolver, |instance| {
            let target = Target::from_shared(uri(&instance.address)?)?
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
            let dial = Dial { address: instance.address.clone(), failed: Arc::default() };
            Ok(target.connect_with_connector_lazy(service_fn(move |_| dial.clone().connect())))
        })
    }

    /// The same with channels that `connect` makes, lazily: for TLS, timeouts, sizes of windows. It is
    /// called once for each endpoint that is picked, within the runtime, or twice if two requests reach the
    /// endpoint first at the same time.
    pub fn connecting(
        resolver: Resolver,
        connect: impl Fn(&Instance) -> Result<Channel, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let make = move |endpoint: &Endpoint| {
            let instance = endpoint.instance();
            let channel = connect(instance).map_err(|error| error.to_string());
            Named { channel, address: instance.address.clone() }
        };
        Self { balance: Balance::builder(resolver, make).failover(Replay).build() }
    }

    /// The list of endpoints.
    pub fn resolver(&self) -> &Resolver {
        self.balance.resolver()
    }
}

/// Connects to one endpoint. tonic lets the requests that wait for a connection each try it in turn: of a
/// machine that is gone the last would wait for a long time. So those that were there when it failed fail
/// with it.
#[derive(Clone)]
struct Dial {
    address: Address,
    /// When it failed last.
    failed: Arc<Mutex<Option<Instant>>>,
}

impl Dial {
    async fn connect(self) -> io::Result<TokioIo<Stream>> {
        let failed = *self.failed.lock();
        if failed.is_some_and(|at| at.elapsed() < AGAIN) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "it could not be reached"));
        }
        let dialled = timeout(CONNECT_TIMEOUT, Net::default().connect(&self.address)).await;
        let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        *self.failed.lock() = dialled.is_err().then(Instant::now);
        dialled.map(TokioIo::new)
    }
}

/// What tonic calls an address.
fn uri(address: &Address) -> Result<String, BoxError> {
    match address.protocol() {
        "tcp" => Ok(format!("http://{}", address.target())),
        "unix" => Ok("http://localhost".to_owned()),
        other => {
            Err(format!("{other}@ needs a function of one's own: Channels::connecting").into())
        }
    }
}

impl Service<Request<Body>> for Channels {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut balance = self.balance.clone();
        Box::pin(async move {
            let request = match request.extensions().get::<Idempotent>() {
                Some(Idempotent) => match kept_whole(request).await {
                    Ok(request) => request,
                    Err(status) => {
                        // A loop of requests that fail at once lets other tasks run.
                        coop::consume_budget().await;
                        return Err(status);
                    }
                },
                None => request,
            };
            balance.call(request).await.map_err(|error| match error.downcast::<NoInstance>() {
                Ok(none) => Status::unavailable(none.to_string()),
                Err(error) => Status::from_error(error),
            })
        })
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").field("resolver", self.resolver()).finish()
    }
}

/// One endpoint's channel, whose errors name it.
#[derive(Clone)]
struct Named {
    channel: Result<Channel, String>,
    address: Address,
}

impl Service<Request<Body>> for Named {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { channel, address } = self.clone();
        Box::pin(async move {
            let channel = channel.map_err(|why| {
                let mut status = Status::unavailable(format!("{address}: {why}"));
                status.set_source(Arc::new(ConnectError(why.into())));
                status
            })?;
            channel.oneshot(request).await.map_err(|error| {
                let (why, unsent) = (last(&error).to_string(), was_not_sent(&error, is_connect));
                let told = Status::from_error(error.into());
                // tonic calls a connection that ended before the request was written a cancellation.
                let code = if unsent { Code::Unavailable } else { told.code() };
                let mut status = Status::new(code, format!("{address}: {why}"));
                status.set_source(Arc::new(told));
                status
            })
        })
    }
}

/// The last cause: those before it say "transport error".
fn last<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

/// Whether the call's own time is over, wherever it would go.
fn is_late(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn is_connect(error: &(dyn Error + 'static)) -> bool {
    error.is::<ConnectError>()
}

/// The body of an idempotent request, read whole.
#[derive(Clone)]
struct Whole(Bytes);

async fn kept_whole(request: Request<Body>) -> Result<Request<Body>, Status> {
    let (mut head, body) = request.into_parts();
    let body = http_body_util::Limited::new(body, MOST_KEPT).collect().await;
    let body = body.map_err(|error| {
        Status::invalid_argument(format!("an idempotent request is kept to be sent again: {error}"))
    })?;
    head.extensions.insert(Whole(body.to_bytes()));
    Ok(Request::from_parts(head, Body::empty()))
}

/// Sends again what was not sent, and what may be executed twice.
struct Replay;

/// What makes a request again: its head, and its body if that is whole or was not touched.
struct Kept {
    head: request::Parts,
    body: KeptBody,
}

enum KeptBody {
    /// In the head's extensions.
    Whole,
    /// Taken by whoever polls it first.
    Lent(Arc<Mutex<Option<Body>>>),
}

impl Failover<Request<Body>> for Replay {
    type Kept = Kept;

    fn keep(&self, request: Request<Body>) -> (Request<Body>, Kept) {
        let (head, body) = request.into_parts();
        let (sent, body) = match head.extensions.get::<Whole>() {
            Some(Whole(bytes)) => (Body::new(Full::new(bytes.clone())), KeptBody::Whole),
            None => {
                let hint = http_body::Body::size_hint(&body);
                let slot = Arc::new(Mutex::new(Some(body)));
                let lent = Lent { slot: Arc::clone(&slot), taken: None, hint };
                (Body::new(lent), KeptBody::Lent(slot))
            }
        };
        (Request::from_parts(head.clone(), sent), Kept { head, body })
    }

    fn again(&self, kept: Kept, error: &(dyn Error + 'static)) -> Option<Request<Body>> {
        let body = match kept.body {
            KeptBody::Whole if !is_late(error) => Body::empty(),
            KeptBody::Lent(slot) if was_not_sent(error, is_connect) => slot.lock().take()?,
            KeptBody::Whole | KeptBody::Lent(_) => return None,
        };
        Some(Request::from_parts(kept.head, body))
    }

    fn is_unreachable(&self, error: &(dyn Error + 'static)) -> bool {
        was_not_sent(error, is_connect)
    }

    /// A status that comes without a body is in the headers; one behind a body is not known yet.
    fn outcome(&self, response: &dyn Any) -> Outcome {
        let response = response.downcast_ref::<Response<Body>>();
        let status = response.and_then(|response| response.headers().get("grpc-status"));
        match status.map(|status| Code::from_bytes(status.as_bytes())) {
            Some(Code::Unavailable | Code::DataLoss | Code::Internal) => Outcome::Failed,
            Some(Code::Unknown | Code::DeadlineExceeded) => Outcome::Ambiguous,
            Some(Code::ResourceExhausted) => Outcome::Overloaded,
            _ => Outcome::Succeeded { load: 0 },
        }
    }
}

/// A body that can be had back until somebody has polled it.
struct Lent {
    slot: Arc<Mutex<Option<Body>>>,
    taken: Option<Body>,
    /// That of the untouched body, which is the user's and not asked under the slot's lock.
    hint: SizeHint,
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.taken.is_none() {
            let body = self.slot.lock().take();
            self.taken = body;
        }
        match &mut self.taken {
            Some(body) => Pin::new(body).poll_frame(cx),
            // Another attempt has it.
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.taken {
            Some(body) => body.is_end_stream(),
            // Never before it is polled: tonic would drop it unread.
            None => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.taken {
            Some(body) => body.size_hint(),
            None if self.slot.lock().is_some() => self.hint,
            None => SizeHint::default(),
        }
    }
}
