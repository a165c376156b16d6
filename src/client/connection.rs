//! One connection to one server, shared by any number of calls.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::answer::Answer;
use super::driver;
use super::exchange::Flight;
use super::lane::Lanes;
use super::replies::peer_error;
use super::shared::{Phase, Shared, Writer};
use super::{ConnectionSettings, Exchange};
use crate::call::{BodyRef, Call, Moment, NO_RUNTIME, Terms, has_runtime};
use crate::discovery::Endpoint;
use crate::error::Error;
use crate::protocol::{
    Frame, FrameReader, FrameType, Hello, Limits, Next, WireError, decode_hello, encode_frame,
    hello_len, next_frame,
};
use crate::sync::wake_all;
use crate::transport::Stream;

/// How a server that speaks TLS starts its answer to what is none: with an alert.
const TLS_ALERT: [u8; 2] = [21, 3];

/// One connection to one server. Cheap to clone; any number of calls share it.
///
/// When the last clone is dropped, what is in flight fails by its class and the connection ends.
#[derive(Clone)]
#[allow(clippy::redundant_allocation, reason = "what is redundant here is what is wanted")]
pub struct Connection {
    /// Two counts of references: the outer one belongs to a lane, so that calls of different threads
    /// do not change the same one.
    handle: Arc<Arc<Handle>>,
}

/// What the clones share; its drop ends the driver. The driver itself holds only `shared`.
struct Handle {
    shared: Arc<Shared>,
    driver: AbortHandle,
}

impl Handle {
    fn close(&self) {
        self.driver.abort();
        self.shared.close("the client closed the connection", Writer::MayWrite);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Connection {
    /// Shakes hands over an open stream and starts the connection's one task on the current
    /// runtime. No call is sent before the server has answered.
    ///
    /// Takes as long as the peer likes: the caller bounds it. Dropping the future closes the
    /// stream.
    ///
    /// # Errors
    /// If the peer closes, does not speak this protocol, or refuses the connection; outside of a tokio runtime.
    pub async fn open(
        mut stream: Stream,
        mut settings: ConnectionSettings,
        endpoint: Option<Endpoint>,
    ) -> io::Result<Self> {
        if !has_runtime() {
            return Err(io::Error::other(NO_RUNTIME));
        }
        settings.limits = settings.limits.clamped();
        let mut hello = Vec::new();
        Hello::new(settings.limits).encode(&mut hello);
        stream.write_all(&hello).await?;
        stream.flush().await?;
        let mut read = BytesMut::with_capacity(1024);
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let peer = loop {
            if read.starts_with(&TLS_ALERT) {
                let why = "the server speaks TLS: its address is tls@host:port";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            if let Some(len) = hello_len(&read).map_err(invalid)?
                && read.len() >= len
            {
                let hello = decode_hello(&read.split_to(len)).map_err(invalid)?;
                hello.check_version().map_err(invalid)?;
                break hello;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        if let Some(refusal) = refusal(&read) {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, refusal));
        }
        let ours = settings.limits;
        let limits = Limits {
            max_body: peer.limits.max_body.min(Limits::LARGEST_BODY),
            window_calls: peer.limits.window_calls.min(ours.window_calls),
            window_bytes: peer.limits.window_bytes.min(ours.window_bytes),
        };
        let reader = FrameReader::new(read, ours.max_payload());
        let shared = Arc::new(Shared::new(settings, endpoint, limits));
        let driver = tokio::spawn(driver::run(Arc::clone(&shared), stream, reader));
        Ok(Self::of(Arc::new(Handle { shared, driver: driver.abort_handle() })))
    }

    fn of(handle: Arc<Handle>) -> Self {
        Self { handle: Arc::new(handle) }
    }

    /// Sends a call that must be answered before `deadline`. It counts in the statistics of the
    /// endpoint that the connection was opened for, if any.
    ///
    /// Nothing is sent before the first poll. Dropping the future sends a cancel, or takes the call
    /// back if it was not written yet.
    pub fn exchange<'a>(&'a self, call: &'a Call, deadline: Instant) -> Exchange<'a> {
        Exchange::new(&self.handle.shared, call, None, deadline)
    }

    /// [`exchange`](Self::exchange) at a time that was read already.
    pub(super) fn exchange_at<'a>(
        &'a self,
        call: &'a Call,
        now: Instant,
        deadline: Instant,
    ) -> Exchange<'a> {
        Exchange::new(&self.handle.shared, call, Some(now), deadline)
    }

    /// Polls a call that is made on this connection by one who keeps it, the call and its body. `now`
    /// is what time it is at the first poll.
    #[inline]
    pub(crate) fn poll_flight(
        &self,
        flight: &mut Flight,
        terms: Terms<'_>,
        body: BodyRef<'_>,
        now: Option<Moment>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Answer, Error>> {
        match now {
            Some(now) => flight.begin(&self.handle.shared, terms, body, now, cx),
            None => flight.poll(&self.handle.shared, terms, body, cx),
        }
    }

    /// The caller leaves: as dropping an [`Exchange`].
    pub(crate) fn leave(&self, flight: &mut Flight) {
        flight.leave(&self.handle.shared);
    }

    /// Sends a ping and waits for its answer, for as long as that takes: the caller bounds it.
    ///
    /// # Errors
    /// If the connection is closed, or ends first.
    pub async fn ping(&self) -> io::Result<()> {
        let shared = &self.handle.shared;
        let mut answers = shared.ponged.subscribe();
        let (number, writer) = {
            let mut state = shared.state.lock();
            state.probes += 1;
            let number = state.probes;
            state.outbox.append(|out| {
                encode_frame(out, FrameType::Ping, 0, 0, |out| {
                    out.extend_from_slice(&number.to_be_bytes());
                });
            });
            (number, state.writer.take())
        };
        wake_all(writer);
        let ended = answers.wait_for(|answered| *answered >= number).await;
        match ended.map(|answered| *answered) {
            Ok(u64::MAX) | Err(_) => Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Whether new calls can be sent: neither closed nor draining, nor replaced by another.
    pub fn is_open(&self) -> bool {
        self.handle.shared.open.load(Relaxed)
    }

    /// How many calls are in flight.
    pub fn in_flight(&self) -> usize {
        self.handle.shared.state.lock().calls.len()
    }

    /// Replies that came for no call: late, doubled, or lies.
    pub fn stray_replies(&self) -> u64 {
        self.handle.shared.state.lock().stray
    }

    /// Whether its server takes no more calls on it, or another connection has its place: what was not
    /// sent on it can be sent on that one.
    pub(crate) fn is_leaving(&self) -> bool {
        let state = self.handle.shared.state.lock();
        matches!(state.phase, Phase::Draining) || state.replaced
    }

    /// Whether its peer owes it the answer to a ping.
    pub(super) fn is_suspect(&self) -> bool {
        self.handle.shared.state.lock().suspect
    }

    /// Another connection has its place: it is given no more calls.
    pub(super) fn retire(&self) {
        self.handle.shared.open.store(false, Relaxed);
    }

    /// Another connection to the same endpoint stands: this one's silence says nothing more of it, and it
    /// ends with its last call.
    pub(super) fn replaced(&self) {
        let shared = &self.handle.shared;
        let mut state = shared.state.lock();
        let suspect = state.suspect;
        state.replaced = true;
        let is_trusted = shared.trust(&mut state);
        state.suspect = suspect;
        drop(state);
        if is_trusted {
            shared.tell_suspicion(true, Instant::now());
        }
        shared.to_keep.notify_one();
    }

    /// It has its place in a channel: the endpoint can be called, unless it has failed already.
    /// `is_early`: a newer registration earned the dial, before the backoff was over.
    pub(super) fn stands(&self, is_early: bool) {
        self.handle.shared.stands(is_early);
    }

    /// Why it takes no more calls, if it does not.
    pub(super) fn end(&self) -> Option<String> {
        match &self.handle.shared.state.lock().phase {
            Phase::Open => None,
            Phase::Draining => Some("the server was draining".to_owned()),
            Phase::Closed(why) => Some(why.to_string()),
        }
    }

    /// Closes the connection: what is in flight fails by its class.
    pub fn close(&self) {
        self.handle.close();
    }

    /// What closes it later, if it is still there, and does not keep it.
    pub(super) fn closer(&self) -> Closer {
        Closer(Arc::downgrade(&*self.handle))
    }
}

/// Why the server refuses the connection, if that came right behind its handshake: no call is sent then.
fn refusal(mut read: &[u8]) -> Option<WireError> {
    // No other frame comes before it.
    while let Ok(Next::Frame(Frame { header, payload }, whole)) = next_frame(read, 0) {
        match header.frame {
            FrameType::ConnectionError => return Some(peer_error(payload)),
            FrameType::Drain => read = read.get(whole..)?,
            _ => return None,
        }
    }
    None
}

/// Closes a connection that others hold.
pub(super) struct Closer(Weak<Handle>);

impl Closer {
    /// Whether the connection is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }

    pub(super) fn close(&self) {
        if let Some(handle) = self.0.upgrade() {
            handle.close();
        }
    }
}

/// A place for a connection that is read by every call, without a lock.
pub(super) struct ConnectionCell(Lanes<ArcSwapOption<Arc<Handle>>>);

impl ConnectionCell {
    /// The connection, if new calls can be sent on it.
    pub(super) fn open(&self) -> Option<Connection> {
        self.load().filter(Connection::is_open)
    }

    pub(super) fn load(&self) -> Option<Connection> {
        self.0.mine().load_full().map(|handle| Connection { handle })
    }

    /// Takes what is there out and puts a connection in. One at a time: threads see the change one
    /// after the other.
    pub(super) fn replace(&self, connection: Option<&Connection>) -> Option<Connection> {
        let mut before = None;
        for lane in self.0.iter() {
            let handle = connection.map(|connection| Arc::new(Arc::clone(&*connection.handle)));
            before = lane.swap(handle).or(before);
        }
        before.map(|handle| Connection { handle })
    }
}

impl Default for ConnectionCell {
    fn default() -> Self {
        Self(Lanes::new(ArcSwapOption::empty))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("in_flight", &self.in_flight()).finish()
    }
}
