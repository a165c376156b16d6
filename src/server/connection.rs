//! One connection from the server's side, from its first byte to its last.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::Phase;
use super::handler::Failure;
use super::handshake::shake_hands;
use super::house::Shared;
use super::keeper::keep;
use super::reader::Reader;
use super::reply::too_large;
use super::running::{Room, Running};
use super::writer::Writer;
use crate::error::Kind;
use crate::protocol::{FrameReader, Outbox, WireError, encode_connection_error};
use crate::transport::{Peer, Stream};

/// How long a connection that ends waits for its peer to have read everything.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// What a connection's loops and its handlers share.
pub(super) struct Connection {
    pub(super) server: Arc<Shared>,
    pub(super) peer: Arc<Peer>,
    pub(super) state: Mutex<State>,
    /// Something waits in the outbox.
    pub(super) to_write: Notify,
    /// The outbox has been emptied.
    pub(super) to_read: Notify,
    /// A deadline is earlier than the keeper's next look, or a draining connection may be empty.
    pub(super) to_keep: Notify,
}

pub(super) struct State {
    pub(super) running: Running,
    pub(super) outbox: Outbox,
    /// Since when the writer holds bytes that the socket does not take.
    pub(super) writing: Option<Instant>,
    /// The highest id seen.
    pub(super) last_id: u64,
    /// Bytes of replies that wait for room in the outbox.
    pub(super) held: usize,
    /// Set by the drain frame: no call above this id is started.
    pub(super) drained_at: Option<u64>,
    /// When the keeper looks next.
    pub(super) next_look: Instant,
    /// When the last call came or ended.
    pub(super) busy: Instant,
    /// Since when the start of a frame waits for its end.
    pub(super) partial: Option<Instant>,
}

/// Why a connection ends.
pub(super) enum End {
    /// The peer closed it, or the socket failed.
    Lost,
    /// The peer broke a rule.
    Refused(WireError),
    /// All was said: drained, or cut.
    Done,
}

/// Serves one connection until it ends. Dropping the future drops its handlers.
pub(super) async fn run(
    server: Arc<Shared>,
    mut stream: Stream,
    mut phases: watch::Receiver<Phase>,
) {
    let peer = Arc::new(stream.peer().clone());
    let shaken = async {
        tokio::select! {
            shaken = timeout(server.settings.handshake_timeout, shake_hands(&server, &mut stream))
                => shaken.ok().and_then(Result::ok),
            // Nothing was asked yet, so there is nothing to drain.
            _ = phases.wait_for(|phase| *phase != Phase::Serving) => None,
        }
    };
    let Some((read, client)) = shaken.await else { return };
    let now = Instant::now();
    let connection = Arc::new(Connection {
        peer,
        state: Mutex::new(State {
            running: Running::default(),
            outbox: Outbox::default(),
            writing: None,
            last_id: 0,
            held: 0,
            drained_at: None,
            next_look: now,
            busy: now,
            partial: None,
        }),
        to_write: Notify::new(),
        to_read: Notify::new(),
        to_keep: Notify::new(),
        server,
    });
    let _handlers = Handlers(Arc::clone(&connection));
    let limits = connection.server.settings.limits;
    let mut reader = Reader {
        frames: FrameReader::new(read, limits.max_payload()),
        numbers: Vec::new(),
        replies: Vec::new(),
        max_reply: client.limits.max_body as usize,
    };
    let (mut from, to) = tokio::io::split(stream);
    let mut writer = Writer { to, batch: Vec::new(), done: 0 };
    let end = tokio::select! {
        biased;
        end = reader.run(&connection, &mut from) => end,
        end = writer.run(&connection) => end,
        end = keep(&connection, &mut phases) => end,
    };
    match end {
        End::Lost => return,
        End::Refused(error) => {
            tracing::debug!(host = &*connection.peer.host, %error, "a peer broke the protocol");
            connection.state.lock().outbox.append(|out| encode_connection_error(out, &error));
        }
        End::Done => {}
    }
    // The peer reads what was written before it sees the end: closing with unread bytes in our
    // receive buffer would reset the connection and destroy what is under way.
    let farewell = async {
        writer.flush(&connection).await?;
        writer.to.shutdown().await?;
        let mut rest = [0; 4096];
        while from.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(LINGER, farewell).await;
}

/// Drops a connection's handlers with it: nobody could receive their answers.
struct Handlers(Arc<Connection>);

impl Drop for Handlers {
    fn drop(&mut self) {
        self.0.state.lock().running.drop_all();
    }
}

impl Connection {
    /// Whether a call may start: `Err` breaks the protocol, `Ok(Err(_))` is an answer.
    pub(super) fn admit(
        &self,
        id: u64,
        bytes: usize,
        remaining_ms: u32,
    ) -> Result<Result<(), Failure>, WireError> {
        let settings = &self.server.settings;
        let limits = &settings.limits;
        let mut state = self.state.lock();
        state.take_id(id)?;
        state.busy = Instant::now();
        let exhausted =
            |what: &str| Ok(Err(Failure::rejected(Kind::ResourceExhausted, what.to_owned())));
        if state.drained_at.is_some_and(|last| id > last) {
            return Ok(Err(Failure::rejected(Kind::Unavailable, "the server is draining")));
        }
        if bytes > limits.max_body as usize {
            return Ok(Err(too_large(limits.max_body)));
        }
        let (calls, window) = (limits.window_calls as usize, limits.window_bytes as usize);
        match state.running.room(calls, window, bytes) {
            Room::Enough => {}
            Room::NoCalls => return exhausted("the connection's window of calls is full"),
            Room::NoBytes => return exhausted("the connection's window of bytes is full"),
        }
        if self.server.bytes_in_flight.load(Relaxed) + bytes > settings.max_bytes_in_flight {
            return exhausted("the server has too many bytes in flight");
        }
        if remaining_ms == 0 {
            let expired = "the deadline passed before the call was started";
            return Ok(Err(Failure::rejected(Kind::DeadlineExceeded, expired)));
        }
        Ok(Ok(()))
    }

    /// Makes the keeper look at this time at the latest.
    pub(super) fn look_by(&self, state: &State, due: Instant) {
        if due < state.next_look {
            self.to_keep.notify_one();
        }
    }

    /// What may wait to be written before no more calls are read.
    pub(super) fn outbox_limit(&self) -> usize {
        self.server.settings.limits.window_bytes as usize
    }

    /// Waits until the outbox has room again: a client that does not read its replies is not read
    /// either.
    pub(super) async fn room(&self) {
        loop {
            let mut emptied = pin!(self.to_read.notified());
            emptied.as_mut().enable();
            if self.state.lock().outbox.len() <= self.outbox_limit() {
                return;
            }
            emptied.await;
        }
    }
}

impl State {
    /// Ids rise; a falling one would make a drain's last id meaningless.
    pub(super) fn take_id(&mut self, id: u64) -> Result<(), WireError> {
        if id <= self.last_id {
            return Err(WireError::Id(id));
        }
        self.last_id = id;
        Ok(())
    }
}
