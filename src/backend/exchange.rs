//! One HTTP request and its answer, over a connection that is kept for the next request: for backends
//! whose servers are asked over HTTP.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::BoxError;
use crate::instance::Address;
use crate::sync::{Mutex, assert_unlocked};
use crate::transport::{Stream, Transport, dial};

/// The largest body of an answer, in bytes.
const MAX_BODY: usize = 64 * 1024 * 1024;
/// The largest head of an answer, in bytes: the seed's contract puts its whole list there.
const MAX_HEAD: usize = 2 * 1024 * 1024;
/// How long a connection waits for the next request: less than our own server lets it.
const IDLE: Duration = Duration::from_secs(5);
/// How many connections wait.
const MAX_IDLE: usize = 4;

const JSON: &str = "application/json";

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum ExchangeError {
    /// Not reached, broken off, or late.
    Unavailable { message: String, source: Option<BoxError> },
    /// What came is no HTTP, or too much of it.
    Nonsense(String),
}

impl ExchangeError {
    fn because(message: impl fmt::Display, source: impl Into<BoxError>) -> Self {
        let source = source.into();
        Self::Unavailable { message: format!("{message}: {source}"), source: Some(source) }
    }
}

/// Who is asked: what to connect to, and what the `Host` header says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host<'a> {
    pub(crate) address: &'a Address,
    pub(crate) authority: &'a str,
}

/// What is asked.
#[derive(Debug)]
pub(crate) struct Ask {
    method: Method,
    /// Path and query.
    target: String,
    headers: HeaderMap,
    body: Bytes,
    priority: Priority,
}

/// Which requests leave connections to which others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priority {
    /// Renewals, and whatever else must not wait for those below.
    Urgent,
    /// Reads.
    Normal,
    /// Registrations, of which there may be thousands at once.
    Bulk,
}

impl Ask {
    pub(crate) fn get(target: impl Into<String>) -> Self {
        Self::new(Method::GET, target, Priority::Normal)
    }

    pub(crate) fn post(target: impl Into<String>) -> Self {
        Self::new(Method::POST, target, Priority::Urgent)
    }

    /// The same below a path prefix.
    pub(crate) fn below(mut self, prefix: &str) -> Self {
        self.target.insert_str(0, prefix);
        self
    }

    fn new(method: Method, target: impl Into<String>, priority: Priority) -> Self {
        let (target, headers) = (target.into(), HeaderMap::new());
        Self { method, target, headers, body: Bytes::new(), priority }
    }

    /// Says that thousands of these may be asked at once.
    pub(crate) fn bulk(mut self) -> Self {
        self.priority = Priority::Bulk;
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.insert(HeaderName::from_static(name), value);
        self
    }

    pub(crate) fn json(mut self, body: impl Into<Bytes>) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
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
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// How long it asks to be left alone, where it says so in seconds.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        value.trim().parse().ok().map(Duration::from_secs)
    }

    /// Whether its server closes the connection behind it.
    fn is_last(&self) -> bool {
        let values = self.headers.get_all(CONNECTION).iter();
        let values = values.filter_map(|value| value.to_str().ok());
        let mut options = values.flat_map(|value| value.split(',')).map(str::trim);
        options.any(|option| option.eq_ignore_ascii_case("close"))
    }

    /// The media type without its parameters; empty where there is none.
    pub(crate) fn content_type(&self) -> &str {
        let value = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let value = value.unwrap_or("");
        value.split_once(';').map_or(value, |(media_type, _)| media_type).trim()
    }
}

/// The connections to one registry.
pub(crate) struct Connections {
    /// Shown with every request: no other registry gets it, since no redirect is followed.
    token: Option<HeaderValue>,
    /// Those that wait for their next request.
    idle: Mutex<Vec<Connection>>,
    /// A permit for each request under way, and so for each connection in use.
    requests: Semaphore,
    /// One fewer: those that are not urgent leave a connection to those that are.
    not_urgent: Semaphore,
    /// Two fewer.
    bulk: Semaphore,
    /// Where the last connection was opened to.
    last: Mutex<Option<LastPlace>>,
}

/// One of the places that a registry's address stands for. HTTP has no handshake that would show
/// that it works.
#[derive(Clone, Debug)]
struct LastPlace {
    place: Address,
    /// Whether it has answered since; if not, it is dialled last.
    has_answered: bool,
}

impl LastPlace {
    /// Puts it first or last among the places that are dialled.
    fn order(&self, places: &mut Vec<Address>) {
        if let Some(at) = places.iter().position(|place| *place == self.place) {
            let place = places.remove(at);
            places.insert(if self.has_answered { 0 } else { places.len() }, place);
        }
    }
}

impl Connections {
    /// At most `max_requests` are under way at once; more wait for their turn.
    pub(crate) fn new(token: Option<HeaderValue>, max_requests: usize) -> Self {
        let but = |fewer: usize| Semaphore::new(max_requests.saturating_sub(fewer).max(1));
        let (requests, not_urgent, bulk) = (but(0), but(1), but(2));
        let last = Mutex::default();
        Self { token, idle: Mutex::default(), requests, not_urgent, bulk, last }
    }

    /// Asks and waits for the answer, for at most `limit`, which includes the wait for a turn and
    /// connecting. Dropping the future closes the connection; no task works on for it.
    pub(crate) async fn ask(
        &self,
        transport: &dyn Transport,
        host: Host<'_>,
        ask: &Ask,
        limit: Duration,
    ) -> Result<Answer, ExchangeError> {
        let answered = async {
            // No semaphore is ever closed.
            let _bulk = match ask.priority {
                Priority::Bulk => self.bulk.acquire().await.ok(),
                Priority::Normal | Priority::Urgent => None,
            };
            let _not_urgent = match ask.priority {
                Priority::Bulk | Priority::Normal => self.not_urgent.acquire().await.ok(),
                Priority::Urgent => None,
            };
            let _request = self.requests.acquire().await.ok();
            self.exchange(transport, host, ask).await
        };
        tokio::time::timeout(limit, answered).await.map_err(|_| late(limit))?
    }

    /// [`ask`](Self::ask) without a turn, for an answer that the server holds back, as of a long poll.
    pub(crate) async fn poll(
        &self,
        transport: &dyn Transport,
        host: Host<'_>,
        ask: &Ask,
        limit: Duration,
    ) -> Result<Answer, ExchangeError> {
        tokio::time::timeout(limit, self.exchange(transport, host, ask))
            .await
            .map_err(|_| late(limit))?
    }

    /// Asks for an answer that goes on for as long as it is read, over a connection of its own. Its
    /// head comes within `limit`. Dropping what is returned closes the connection.
    #[cfg(feature = "etcd")]
    pub(crate) async fn open(
        &self,
        transport: &dyn Transport,
        host: Host<'_>,
        ask: &Ask,
        limit: Duration,
    ) -> Result<OpenAnswer, ExchangeError> {
        let open = async {
            let mut connection = self.connect(transport, host).await?;
            let request = self.request(host, ask)?;
            let Connection { sender, driver, .. } = &mut connection;
            let head = async move {
                sender.ready().await.map_err(broken)?;
                sender.send_request(request).await.map_err(broken)
            };
            let (parts, body) = driven(driver, head).await?.into_parts();
            self.answered(&connection.place);
            Ok(OpenAnswer { status: parts.status, connection, body })
        };
        tokio::time::timeout(limit, open).await.map_err(|_| late(limit))?
    }

    async fn exchange(
        &self,
        transport: &dyn Transport,
        host: Host<'_>,
        ask: &Ask,
    ) -> Result<Answer, ExchangeError> {
        if let Some(kept) = self.take() {
            match self.over(kept, host, ask).await {
                // It was closed while it waited. What was asked may be asked again: every verb of a
                // registry may be repeated.
                Err(ExchangeError::Unavailable { .. }) => {}
                answered => return answered,
            }
        }
        self.over(self.connect(transport, host).await?, host, ask).await
    }

    /// A new connection. Until it has answered its place is not dialled first again.
    async fn connect(
        &self,
        transport: &dyn Transport,
        host: Host<'_>,
    ) -> Result<Connection, ExchangeError> {
        let last = self.last.lock().clone();
        let connection = Connection::connect(transport, host, last.as_ref()).await?;
        let place = connection.place.clone();
        *self.last.lock() = Some(LastPlace { place, has_answered: false });
        Ok(connection)
    }

    fn answered(&self, place: &Address) {
        *self.last.lock() = Some(LastPlace { place: place.clone(), has_answered: true });
    }

    async fn over(
        &self,
        mut connection: Connection,
        host: Host<'_>,
        ask: &Ask,
    ) -> Result<Answer, ExchangeError> {
        let answer = connection.exchange(self.request(host, ask)?).await?;
        self.answered(&connection.place);
        if !answer.is_last() {
            self.keep(connection);
        }
        Ok(answer)
    }

    fn request(&self, host: Host<'_>, ask: &Ask) -> Result<Request<Full<Bytes>>, ExchangeError> {
        ask.request(host.authority, self.token.as_ref())
            .map_err(|error| ExchangeError::Nonsense(format!("this cannot be asked: {error}")))
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let stale: Vec<_> = idle.extract_if(.., |kept| !kept.is_fresh()).collect();
        let kept = idle.pop();
        drop(idle);
        // Under no lock: a connection's stream may be the user's.
        drop(stale);
        kept
    }

    fn keep(&self, mut connection: Connection) {
        if connection.driver.is_none() || connection.sender.is_closed() {
            return;
        }
        connection.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        let stale: Vec<_> = idle.extract_if(.., |kept| !kept.is_fresh()).collect();
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
        drop(idle);
        drop(stale);
    }
}

/// What moves a connection's bytes while it is polled.
type Driver = http1::Connection<TokioIo<Stream>, Full<Bytes>>;

/// One connection, driven by whoever waits for its answer.
struct Connection {
    /// Which of the places of its host it is to.
    place: Address,
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once it has ended.
    driver: Option<Pin<Box<Driver>>>,
    idle_since: Instant,
}

impl Connection {
    async fn connect(
        transport: &dyn Transport,
        host: Host<'_>,
        last: Option<&LastPlace>,
    ) -> Result<Self, ExchangeError> {
        assert_unlocked();
        let connected = async {
            let mut places = transport.resolve(host.address).await?;
            if let Some(last) = last {
                last.order(&mut places);
            }
            let open = |place, stream| async move { Ok::<_, io::Error>((place, stream)) };
            dial(transport, host.address, places, open).await
        };
        let connected = connected.await;
        let (place, stream) =
            connected.map_err(|error| ExchangeError::because("cannot connect", error))?;
        Self::open(place, stream).await.map_err(broken)
    }

    async fn open(place: Address, stream: Stream) -> hyper::Result<Self> {
        let (sender, driver) =
            http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
        let driver = Some(Box::pin(driver));
        Ok(Self { place, sender, driver, idle_since: Instant::now() })
    }

    fn is_fresh(&self) -> bool {
        self.idle_since.elapsed() < IDLE
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, ExchangeError> {
        let Self { sender, driver, .. } = self;
        let answer = async move {
            sender.ready().await.map_err(broken)?;
            read(sender.send_request(request).await.map_err(broken)?).await
        };
        driven(driver, answer).await
    }
}

/// What `work` comes to, whose connection is driven meanwhile.
async fn driven<T>(
    driver: &mut Option<Pin<Box<Driver>>>,
    work: impl Future<Output = Result<T, ExchangeError>>,
) -> Result<T, ExchangeError> {
    let mut work = pin!(work);
    // Why the connection ended says more than that it did: a certificate may be refused.
    let mut reason = None;
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        if let Some(running) = driver
            && let Poll::Ready(ended) = running.as_mut().poll(cx)
        {
            // Its drop tells whoever still waits for an answer that none will come.
            *driver = None;
            reason = ended.err();
        }
        work.as_mut().poll(cx)
    })
    .await
    .map_err(|error| reason.take().map_or(error, broken))
}

/// An answer whose body comes bit by bit, for as long as it is read.
#[cfg(feature = "etcd")]
pub(crate) struct OpenAnswer {
    pub(crate) status: StatusCode,
    connection: Connection,
    body: Incoming,
}

#[cfg(feature = "etcd")]
impl OpenAnswer {
    /// The next part of the body; `None`: it is over. Dropping the future loses nothing.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ExchangeError> {
        let Self { connection, body, .. } = self;
        driven(&mut connection.driver, async {
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(broken)?.into_data() {
                    return Ok(Some(data));
                }
            }
            Ok(None)
        })
        .await
    }
}

async fn read(response: Response<Incoming>) -> Result<Answer, ExchangeError> {
    let too_large =
        || ExchangeError::Nonsense(format!("too large: an answer of more than {MAX_BODY} bytes"));
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

fn late(limit: Duration) -> ExchangeError {
    ExchangeError::Unavailable { message: format!("no answer within {limit:?}"), source: None }
}

fn broken(error: hyper::Error) -> ExchangeError {
    // What is no HTTP at all will not be HTTP at the next try either.
    if error.is_parse() {
        let hint = "a registry that speaks TLS is named by https://";
        return ExchangeError::Nonsense(format!("the answer is no HTTP: {error}; {hint}"));
    }
    // hyper's own text leaves out what the transport says, such as that a certificate is refused. Of a
    // request that was not begun it says that it was cancelled, because of an error of its own.
    let mut why: &(dyn Error + 'static) = &error;
    while let Some(cause) = why.downcast_ref::<hyper::Error>().and_then(Error::source) {
        why = cause;
    }
    let message = format!("the connection broke: {why}");
    ExchangeError::Unavailable { message, source: Some(error.into()) }
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use tokio::io::{AsyncRead, ReadBuf, join, sink};

    use super::*;
    use crate::transport::Peer;

    /// What is read of a connection that, at the `fails`-th time, says why it goes on no longer.
    struct Refused {
        fails: u32,
    }

    impl AsyncRead for Refused {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.fails -= 1;
            if self.fails == 0 {
                return Poll::Ready(Err(io::Error::other("no certificate")));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    /// Before the request was given to the connection, between that and its start, and after it.
    #[tokio::test]
    async fn a_connection_says_why_it_broke_whenever_it_did() {
        for fails in 1..=4 {
            let stream = Stream::new(join(Refused { fails }, sink()), Peer::new("test"));
            let place = "mem@test".parse().unwrap();
            let mut connection = Connection::open(place, stream).await.unwrap();
            let request = Request::new(Full::default());
            let error = connection.exchange(request).await.map(|_| ()).unwrap_err();
            let ExchangeError::Unavailable { message, .. } = error else { panic!("{error:?}") };
            assert_eq!(message, "the connection broke: no certificate", "{fails}");
        }
    }
}
