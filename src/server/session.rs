//! What a connection's loops and its handlers share: its calls at work and what waits to be written.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::handler::Failure;
use super::reply::{expired, too_large};
use super::running::{Room, Running};
use super::shared::Shared;
use crate::error::Kind;
use crate::protocol::{Outbox, WireError};
use crate::sync::Mutex;
use crate::transport::{IdleWriter, Peer};

/// What a connection's loops and its handlers share.
pub(super) struct Session {
    pub(super) server: Arc<Shared>,
    pub(super) peer: Arc<Peer>,
    pub(super) state: Mutex<State>,
    /// The socket has taken something.
    pub(super) to_read: Notify,
    /// The reader has stopped in the middle of a read, so that its replies are written.
    pub(super) paused: AtomicBool,
    /// A deadline is earlier than the keeper's next look, or a draining connection may be empty.
    pub(super) to_keep: Notify,
}

pub(super) struct State {
    pub(super) running: Running,
    pub(super) outbox: Outbox,
    /// The writer, while it waits for something to write. The reader runs just before it, in the same
    /// task, and need not wake it; everybody else takes it out and does.
    pub(super) writer: IdleWriter,
    /// Since when the writer holds bytes that the socket does not take.
    pub(super) writing: Option<Instant>,
    /// How many bytes those are.
    pub(super) unwritten: usize,
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
    /// When the last whole frame came.
    pub(super) whole_frame_at: Instant,
    /// Another connection has its slot.
    pub(super) is_evicted: bool,
}

/// Why a connection ends.
pub(super) enum End {
    /// The socket failed, or the peer takes nothing.
    Lost,
    /// The peer says nothing more: it closed its sending side, or refused the connection.
    Closed,
    /// The peer broke a rule.
    Refused(WireError),
    /// All was said: drained, or cut.
    Done,
    /// Another connection has its slot, and no call is at work.
    Evicted,
}

impl Session {
    /// Whether a call may start: `Err` breaks the protocol, `Ok(Err(_))` is an answer.
    pub(super) fn admit(
        &self,
        id: u64,
        bytes: usize,
        remaining_ms: u32,
        now: Instant,
    ) -> Result<Result<(), Failure>, WireError> {
        let settings = &self.server.settings;
        let limits = &settings.limits;
        let mut state = self.state.lock();
        state.take_id(id)?;
        state.busy = now;
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
            return Ok(Err(expired()));
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

    /// Lets the writer go first, which is polled by the same task.
    pub(super) async fn pause(&self) {
        let mut paused = false;
        poll_fn(|_| {
            if paused {
                return Poll::Ready(());
            }
            paused = true;
            self.paused.store(true, Relaxed);
            Poll::Pending
        })
        .await;
    }

    /// Waits until the outbox has room again: a client that does not read its replies is not read
    /// either.
    pub(super) async fn room(&self) {
        loop {
            let mut emptied = pin!(self.to_read.notified());
            emptied.as_mut().enable();
            if self.state.lock().waiting() <= self.outbox_limit() {
                return;
            }
            emptied.await;
        }
    }
}

impl State {
    /// The bytes that wait for the socket: in the outbox and with the writer.
    pub(super) fn waiting(&self) -> usize {
        self.outbox.len() + self.unwritten
    }

    /// Ready once something waits in the outbox; else `cx` is woken then.
    pub(super) fn poll_filled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.writer.poll(&self.outbox, cx)
    }

    /// Ids rise; a falling one would make a drain's last id meaningless.
    pub(super) fn take_id(&mut self, id: u64) -> Result<(), WireError> {
        if id <= self.last_id {
            return Err(WireError::Id(id));
        }
        self.last_id = id;
        Ok(())
    }
}
