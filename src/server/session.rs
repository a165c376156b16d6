//! What a connection's loops and its handlers share: its calls at work and what waits to be written.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::handler::Failure;
use super::reply::{expired, too_large};
use super::running::{Room, Running};
use super::shared::Shared;
use crate::error::Kind;
use crate::protocol::{Outbox, WireError};
use crate::sync::Mutex;
use crate::transport::{CHARGE_STEP, Charge, IdleWriter, Peer, Stuck};

/// How long to wait for other connections to give memory back, before it is looked again.
const MEMORY_RETRY_INTERVAL: Duration = Duration::from_millis(50);

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
    /// When the socket had last taken a step's worth of bytes, or all that waited before.
    pub(super) taken_at: Instant,
    /// How many it has taken since then.
    pub(super) taken: usize,
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
    /// The bytes of the long frame that has begun to come; 0: none has.
    pub(super) frame_bytes: usize,
    /// When a step's worth of it had last come.
    pub(super) frame_moved: Instant,
    pub(super) charge: Charge,
    pub(super) eviction: Option<Eviction>,
}

/// Why a connection must close for the sake of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    /// Another connection has its slot: it ends when no call is at work.
    ForSlot,
    /// It holds much and makes no progress: it ends at once.
    ForMemory,
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
    /// Its memory is needed.
    Stuck,
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
        let limits = &self.server.settings.limits;
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
        if !state.try_charge(bytes) {
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
        let limit = self.outbox_limit();
        loop {
            let mut emptied = pin!(self.to_read.notified());
            emptied.as_mut().enable();
            let is_outbox_full = {
                let state = self.state.lock();
                if !state.is_full(limit) {
                    return;
                }
                state.waiting() > limit
            };
            if is_outbox_full {
                emptied.await;
            } else {
                // Memory that other connections give back is announced nowhere.
                // In a box: its room would be a part of every connection's task.
                let _ = Box::pin(timeout(MEMORY_RETRY_INTERVAL, emptied)).await;
            }
        }
    }

    /// Waits until there is memory for a frame of so many bytes. False: there is none for too long.
    pub(super) async fn memory(&self, frame_bytes: usize) -> bool {
        let admit = || self.state.lock().admit_frame(frame_bytes, Instant::now());
        self.server.budget.wait_for_room(frame_bytes, admit).await
    }
}

impl State {
    /// The bytes that wait for the socket: in the outbox and with the writer.
    pub(super) fn waiting(&self) -> usize {
        self.outbox.len() + self.unwritten
    }

    /// Whether no more calls are read for now: too much waits to be written, or something does and the server
    /// has no memory for more.
    pub(super) fn is_full(&self, limit: usize) -> bool {
        let waiting = self.waiting();
        waiting > limit || (waiting >= CHARGE_STEP && self.charge.is_full())
    }

    /// What is held beside the frame that comes.
    fn held_bytes(&self) -> usize {
        self.waiting() + self.held + self.running.bytes()
    }

    /// Charges what is held now.
    pub(super) fn recount(&mut self) {
        let bytes = self.held_bytes() + self.frame_bytes;
        self.charge.set(bytes);
    }

    /// Charges so many bytes more, until the next recount. False: there is no room for them. The frame that
    /// they may have come in is not counted beside them.
    pub(super) fn try_charge(&mut self, bytes: usize) -> bool {
        let bytes = self.held_bytes() + bytes;
        self.charge.try_raise(bytes)
    }

    /// The same for a reply that is held instead of its call's body.
    pub(super) fn try_charge_reply(&mut self, body: usize, reply: usize) -> bool {
        let bytes = (self.held_bytes() + reply).saturating_sub(body);
        self.charge.try_raise(bytes)
    }

    /// Charges a frame before memory is taken for it. False: there is no room.
    pub(super) fn admit_frame(&mut self, bytes: usize, now: Instant) -> bool {
        let is_admitted = self.try_charge(bytes);
        if is_admitted {
            (self.frame_bytes, self.frame_moved) = (bytes, now);
        }
        is_admitted
    }

    /// The socket has taken so many bytes.
    pub(super) fn count_taken(&mut self, bytes: usize, now: Instant) {
        self.taken += bytes;
        if self.taken >= CHARGE_STEP {
            (self.taken, self.taken_at) = (0, now);
        }
    }

    /// What it holds, if it makes no progress.
    pub(super) fn stuck(&self, now: Instant) -> Option<Stuck> {
        if self.eviction == Some(Eviction::ForMemory) {
            return None;
        }
        let unread = if self.writing.is_some() { self.waiting() + self.held } else { 0 };
        // While it is we who do not read, the frame is not slow.
        let frame = if self.partial.is_some() { self.frame_bytes } else { 0 };
        let parts = [(unread, self.taken_at), (frame, self.frame_moved)];
        Stuck::new(self.charge.host(), self.charge.charged(), parts, now)
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
