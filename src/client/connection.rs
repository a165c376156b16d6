//! One connection to one server, shared by any number of calls.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Waker;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::driver;
use super::in_flight::InFlight;
use super::waiting::Waiting;
use super::{ConnectionSettings, Exchange};
use crate::call::Call;
use crate::discovery::Endpoint;
use crate::error::{Error, Fate, Kind};
use crate::protocol::{FrameReader, Hello, Limits, Outbox, decode_hello, hello_len};
use crate::transport::Stream;

/// One connection to one server. Cheap to clone; any number of calls share it.
///
/// When the last clone is dropped, what is in flight fails by its class and the connection ends.
#[derive(Clone)]
pub struct Connection {
    handle: Arc<Handle>,
}

/// What the clones share; its drop ends the driver. The driver itself holds only `shared`.
struct Handle {
    shared: Arc<Shared>,
    driver: AbortHandle,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.driver.abort();
        self.shared.close("the client closed the connection", Writer::MayWrite);
    }
}

/// Whether the connection's writer may still hand bytes to the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// It has ended: what it has written is final.
    Ended,
    /// Aborting a task does not stop a poll that is under way.
    MayWrite,
}

/// What calls and the driver share.
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// Something waits in the outbox.
    pub(super) to_write: Notify,
    /// The first call since the keeper had nothing to look after.
    pub(super) to_keep: Notify,
    /// How far the socket has taken the outgoing stream.
    pub(super) written: AtomicU64,
    pub(super) settings: ConnectionSettings,
    /// Whose live flags this connection sets; `None` for a connection without an endpoint.
    pub(super) endpoint: Option<Endpoint>,
    /// The smaller of both sides' limits.
    pub(super) limits: Limits,
}

pub(super) struct State {
    pub(super) calls: InFlight,
    pub(super) waiting: Waiting,
    pub(super) outbox: Outbox,
    pub(super) phase: Phase,
    /// When the last byte came.
    pub(super) heard: Instant,
    /// When the first of the calls now in flight was sent.
    pub(super) busy: Instant,
    /// The ping that nothing has come after.
    pub(super) pinged: Option<Ping>,
    /// That ping is not answered in time.
    pub(super) suspect: bool,
    /// Set while the keeper sleeps for long, so that a first call wakes it.
    pub(super) keeper_parked: bool,
    /// Replies to nobody: late after a cancel, doubled, or lies.
    pub(super) stray: u64,
}

/// A ping that is under way.
#[derive(Debug)]
pub(super) struct Ping {
    /// Where it ends in the outgoing stream.
    pub(super) end: u64,
    /// How far the stream had come when this was last looked at.
    pub(super) written: u64,
    /// When it was written, or when the stream last moved before that.
    pub(super) since: Instant,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Open,
    /// The server takes no call above an id: new ones go elsewhere.
    Draining,
    Closed(Arc<str>),
}

impl Connection {
    /// Shakes hands over an open stream and starts the connection's one task on the current
    /// runtime. No call is sent before the server has answered.
    ///
    /// Takes as long as the peer likes: the caller bounds it. Dropping the future closes the
    /// stream.
    ///
    /// # Errors
    /// If the peer closes, or does not speak this protocol.
    pub async fn open(
        mut stream: Stream,
        mut settings: ConnectionSettings,
        endpoint: Option<Endpoint>,
    ) -> io::Result<Self> {
        settings.limits = settings.limits.clamped();
        let mut hello = Vec::new();
        Hello::new(settings.limits).encode(&mut hello);
        stream.write_all(&hello).await?;
        stream.flush().await?;
        let mut read = BytesMut::with_capacity(1024);
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let peer = loop {
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
        let ours = settings.limits;
        let limits = Limits {
            max_body: peer.limits.max_body.min(Limits::LARGEST_BODY),
            window_calls: peer.limits.window_calls.min(ours.window_calls),
            window_bytes: peer.limits.window_bytes.min(ours.window_bytes),
        };
        let reader = FrameReader::new(read, ours.max_payload());
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                calls: InFlight::default(),
                waiting: Waiting::default(),
                outbox: Outbox::default(),
                phase: Phase::Open,
                heard: Instant::now(),
                busy: Instant::now(),
                pinged: None,
                suspect: false,
                keeper_parked: false,
                stray: 0,
            }),
            to_write: Notify::new(),
            to_keep: Notify::new(),
            written: AtomicU64::new(0),
            settings,
            endpoint,
            limits,
        });
        let driver = tokio::spawn(driver::run(Arc::clone(&shared), stream, reader));
        Ok(Self { handle: Arc::new(Handle { shared, driver: driver.abort_handle() }) })
    }

    /// Sends a call that must be answered before `deadline`.
    ///
    /// Nothing is sent before the first poll. Dropping the future sends a cancel, or takes the call
    /// back if it was not written yet.
    pub fn exchange<'a>(&'a self, call: &'a Call, deadline: Instant) -> Exchange<'a> {
        Exchange::new(&self.handle.shared, call, deadline)
    }

    /// Whether new calls can be sent: neither closed nor draining.
    pub fn is_open(&self) -> bool {
        matches!(self.handle.shared.state.lock().phase, Phase::Open)
    }

    /// How many calls are in flight.
    pub fn in_flight(&self) -> usize {
        self.handle.shared.state.lock().calls.len()
    }

    /// Replies that came for no call: late, doubled, or lies.
    pub fn stray_replies(&self) -> u64 {
        self.handle.shared.state.lock().stray
    }

    /// Closes the connection: what is in flight fails by its class.
    pub fn close(&self) {
        self.handle.driver.abort();
        self.handle.shared.close("the client closed the connection", Writer::MayWrite);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("in_flight", &self.in_flight()).finish()
    }
}

impl Shared {
    /// Ends the connection: every call in flight fails by how far the socket took its frame.
    pub(super) fn close(&self, why: &str, writer: Writer) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        state.phase = Phase::Closed(why.into());
        let State { calls, outbox, .. } = &mut *state;
        let written = self.written.load(Relaxed);
        let mut wakers = calls.fail(|_, call| {
            // A frame that the writer does not have, and will not get, is surely not sent; of one
            // that it has, only its end tells.
            let not_sent = outbox.withdraw(call.place)
                || (writer == Writer::Ended && call.place.end > written);
            let fate = if not_sent { Fate::PartlyWritten } else { Fate::ConnectionLost };
            Some((Kind::Unavailable, fate, format!("the connection ended: {why}")))
        });
        wakers.extend(state.waiting.all());
        // Bodies are not kept for as long as the connection's last handle is.
        state.outbox = Outbox::default();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        if let Some(endpoint) = &self.endpoint {
            // A drain or a suspicion ends with its connection: whoever answers there next is
            // somebody new, and if nobody does, connecting fails and is put off.
            endpoint.stats().set_draining(false);
            endpoint.stats().set_ejected(false);
        }
    }
}

impl State {
    /// Whether a call with a body of `bytes` fits into the window now. A body larger than the
    /// window's bytes goes alone.
    pub(super) fn has_room(&self, limits: &Limits, bytes: usize) -> bool {
        let held = self.calls.bytes();
        self.calls.len() < limits.window_calls as usize
            // A peer that does not read must not make withdrawn calls pile up here.
            && self.outbox.len() <= limits.window_bytes as usize
            && (held == 0 || held + bytes <= limits.window_bytes as usize)
    }

    /// The waker of the call that may take a place that has become free.
    pub(super) fn next_in_line(&self) -> Option<Waker> {
        self.waiting.first()
    }

    pub(super) fn closed(why: &str) -> Error {
        Error::new(
            Kind::Unavailable,
            Fate::NoConnection,
            format!("the connection is closed: {why}"),
        )
    }
}
