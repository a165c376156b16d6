//! One HTTP request and its answer, over a connection that is kept for the next request.

use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::api;
use super::failure::Failure;
use super::urls::Location;
use crate::transport::{Stream, Transport};

/// The largest body of an answer, in bytes.
const MAX_BODY: usize = 64 * 1024 * 1024;
/// The largest head of an answer, in bytes: the seed's contract puts its whole list there.
const MAX_HEAD: usize = 2 * 1024 * 1024;
/// How long a connection waits for the next request: less than our own server lets it.
const IDLE: Duration = Duration::from_secs(5);
/// How many connections wait.
const MAX_IDLE: usize = 4;

/// What is asked.
#[derive(Debug)]
pub(super) struct Ask {
    method: Method,
    /// Path and query.
    target: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Ask {
    pub(super) fn get(target: impl Into<String>) -> Self {
        Self::new(Method::GET, target)
    }

    pub(super) fn post(target: impl Into<String>) -> Self {
        Self::new(Method::POST, target)
    }

    fn new(method: Method, target: impl Into<String>) -> Self {
        let headers = HeaderMap::new();
        Self { method, target: target.into(), headers, body: Bytes::new() }
    }

    pub(super) fn header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.insert(HeaderName::from_static(name), value);
        self
    }

    pub(super) fn json(mut self, body: impl Into<Bytes>) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(api::JSON));
        self.body = body.into();
        self
    }

    fn request(
        &self,
        authority: &str,
        token: Option<&HeaderValue>,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(self.target.as_str())
            .header(HOST, authority)
            .header(ACCEPT, "application/json, application/problem+json, */*;q=0.1")
            .body(Full::new(self.body.clone()))?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        if let Some(token) = token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        Ok(request)
    }
}

/// What is answered, its body read whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// How long it asks to be left alone, where it says so in seconds.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        value.trim().parse().ok().map(Duration::from_secs)
    }

    /// The media type without its parameters; empty where there is none.
    pub(super) fn content_type(&self) -> &str {
        let value = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let value = value.unwrap_or("");
        value.split_once(';').map_or(value, |(media_type, _)| media_type).trim()
    }
}

/// The connections to one registry that wait for their next request.
pub(super) struct Connections {
    /// Shown with every request: no other registry gets it, since no redirect is followed.
    token: Option<HeaderValue>,
    idle: Mutex<Vec<Connection>>,
}

impl Connections {
    pub(super) fn new(token: Option<HeaderValue>) -> Self {
        Self { token, idle: Mutex::default() }
    }

    /// Asks and waits for the answer, connecting included, for at most `limit`. Dropping the future
    /// closes the connection; no task works on for it.
    pub(super) async fn ask(
        &self,
        transport: &dyn Transport,
        location: &Location,
        ask: &Ask,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let late = |_| Failure::unavailable(format!("no answer within {limit:?}"));
        tokio::time::timeout(limit, self.exchange(transport, location, ask)).await.map_err(late)?
    }

    async fn exchange(
        &self,
        transport: &dyn Transport,
        location: &Location,
        ask: &Ask,
    ) -> Result<Answer, Failure> {
        if let Some(kept) = self.take() {
            match self.over(kept, location, ask).await {
                // It was closed while it waited. What was asked may be asked again: every verb of a
                // registry may be repeated.
                Err(Failure::Unavailable { .. }) => {}
                answered => return answered,
            }
        }
        let connected = transport.connect(&location.address).await;
        let stream = connected.map_err(|error| Failure::because("cannot connect", error))?;
        let fresh = Connection::open(stream).await.map_err(broken)?;
        self.over(fresh, location, ask).await
    }

    async fn over(
        &self,
        mut connection: Connection,
        location: &Location,
        ask: &Ask,
    ) -> Result<Answer, Failure> {
        let request = ask
            .request(&location.authority, self.token.as_ref())
            .map_err(|error| Failure::Nonsense(format!("this cannot be asked: {error}")))?;
        let answer = connection.exchange(request).await?;
        self.keep(connection);
        Ok(answer)
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(Connection::is_fresh);
        idle.pop()
    }

    fn keep(&self, mut connection: Connection) {
        if connection.driver.is_none() || connection.sender.is_closed() {
            return;
        }
        connection.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain(Connection::is_fresh);
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }
}

/// What moves a connection's bytes while it is polled.
type Driver = http1::Connection<TokioIo<Stream>, Full<Bytes>>;

/// One connection, driven by whoever waits for its answer.
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once it has ended.
    driver: Option<Pin<Box<Driver>>>,
    idle_since: Instant,
}

impl Connection {
    async fn open(stream: Stream) -> hyper::Result<Self> {
        let (sender, driver) =
            http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, driver: Some(Box::pin(driver)), idle_since: Instant::now() })
    }

    fn is_fresh(&self) -> bool {
        self.idle_since.elapsed() < IDLE
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let Self { sender, driver, .. } = self;
        let answer = async move {
            sender.ready().await.map_err(broken)?;
            read(sender.send_request(request).await.map_err(broken)?).await
        };
        let mut answer = pin!(answer);
        // Why the connection ended says more than that it did: a certificate may be refused.
        let mut reason = None;
        poll_fn(|cx| {
            if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                return Poll::Ready(answered);
            }
            if let Some(running) = driver
                && let Poll::Ready(ended) = running.as_mut().poll(cx)
            {
                // Its drop tells whoever still waits for an answer that none will come.
                *driver = None;
                reason = ended.err();
            }
            answer.as_mut().poll(cx)
        })
        .await
        .map_err(|failure| reason.take().map_or(failure, broken))
    }
}

async fn read(response: Response<Incoming>) -> Result<Answer, Failure> {
    let too_large =
        || Failure::Nonsense(format!("too large: an answer of more than {MAX_BODY} bytes"));
    let (parts, mut incoming) = response.into_parts();
    if incoming.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if data.len() > MAX_BODY - body.len() {
            return Err(too_large());
        }
        body.extend_from_slice(&data);
    }
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.into() })
}

fn broken(error: hyper::Error) -> Failure {
    // What is no HTTP at all will not be HTTP at the next try either.
    if error.is_parse() {
        let hint = "a registry that speaks TLS is named by https://";
        return Failure::Nonsense(format!("the answer is no HTTP: {error}; {hint}"));
    }
    // hyper's own text leaves out what the transport says, such as that a certificate is refused.
    let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    let message = format!("the connection broke: {why}");
    Failure::Unavailable { message, source: Some(error.into()) }
}
