//! One call on one connection, from its first poll to its answer.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::in_flight::Pending;
use super::shared::{Phase, Shared, State};
use super::sync::MutexGuard;
use crate::call::{Call, MethodName, Reply};
use crate::error::{Error, Fate, Kind};
use crate::protocol::{CallHead, Flags, FrameType, MethodRef, encode_call, encode_frame};

/// One call on one connection. Dropping it sends a cancel, or takes the call back if the writer
/// does not have it yet.
#[must_use = "nothing is sent before it is polled"]
pub struct Exchange<'a> {
    shared: &'a Arc<Shared>,
    call: &'a Call,
    deadline: Instant,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    /// Not yet polled.
    Start,
    /// Waits for a place in the window, by its number in the queue.
    Waiting(u64),
    /// Holds a slot, by its id.
    Sent(u64),
    Done,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, call: &'a Call, deadline: Instant) -> Self {
        Self { shared, call, deadline, stage: Stage::Start }
    }

    /// Sends the call if the window has room and nobody is before it, else waits in line.
    fn start(&mut self, ticket: Option<u64>, waker: &Waker) -> Poll<Result<Reply, Error>> {
        let now = Instant::now();
        let remaining = self.deadline.saturating_duration_since(now);
        let bytes = self.call.body.len();
        let mut state = self.shared.state.lock();
        if let Some(error) = self.refusal(&state, ticket) {
            return self.leave(state, ticket, error);
        }
        let taken_out = ticket.is_some_and(|ticket| !state.waiting.holds(ticket));
        if remaining.is_zero() || taken_out {
            let error = Error::new(
                Kind::DeadlineExceeded,
                Fate::NeverWritten,
                "the deadline passed before the call was sent",
            );
            return self.leave(state, ticket, error);
        }
        let my_turn =
            ticket.map_or(state.waiting.is_empty(), |ticket| state.waiting.is_first(ticket));
        if !my_turn || !state.has_room(&self.shared.limits, bytes) {
            match ticket {
                Some(ticket) => state.waiting.wait_on(ticket, waker),
                None => {
                    let ticket = state.waiting.join(self.deadline, waker.clone());
                    self.stage = Stage::Waiting(ticket);
                    self.wake_keeper(state);
                }
            }
            return Poll::Pending;
        }
        if let Some(ticket) = ticket {
            state.waiting.leave(ticket);
        }
        if state.calls.len() == 0 {
            state.busy = now;
        }
        let id = self.send(&mut state, remaining.as_millis(), waker);
        self.stage = Stage::Sent(id);
        let next = state.next_in_line();
        self.wake_keeper(state);
        self.shared.to_write.notify_one();
        if let Some(next) = next {
            next.wake();
        }
        Poll::Pending
    }

    /// Why the call cannot be sent on this connection at all.
    fn refusal(&self, state: &State, ticket: Option<u64>) -> Option<Error> {
        let limits = &self.shared.limits;
        match &state.phase {
            Phase::Open => {}
            Phase::Draining => {
                return Some(Error::new(
                    Kind::Unavailable,
                    Fate::NoConnection,
                    "the server is draining",
                ));
            }
            Phase::Closed(why) => return Some(State::closed(why)),
        }
        if state.suspect && ticket.is_some() {
            return Some(Error::new(
                Kind::Unavailable,
                Fate::NoConnection,
                "the server does not answer a ping",
            ));
        }
        if self.call.body.len() > limits.max_body as usize {
            return Some(Error::new(
                Kind::InvalidArgument,
                Fate::NotEncodable,
                format!(
                    "a body of {} bytes; the server takes {}",
                    self.call.body.len(),
                    limits.max_body
                ),
            ));
        }
        if let Err(error) = MethodName::parse(&self.call.method) {
            return Some(Error::new(Kind::InvalidArgument, Fate::NotEncodable, error.to_string()));
        }
        let windows = self.shared.settings.waiting_windows as usize;
        let most = (limits.window_calls as usize).saturating_mul(windows);
        (ticket.is_none() && !state.waiting.is_empty() && state.waiting.len() >= most).then(|| {
            Error::new(
                Kind::ResourceExhausted,
                Fate::QueueFull,
                format!("{most} calls wait for a place in the connection's window already"),
            )
        })
    }

    fn send(&self, state: &mut State, remaining_ms: u128, waker: &Waker) -> u64 {
        let head = CallHead {
            method: MethodRef::Name(&self.call.method),
            codec: self.call.codec,
            // Rounded up, so that less than a millisecond is not taken for none.
            remaining_ms: u32::try_from(remaining_ms + 1).unwrap_or(u32::MAX),
            metadata: self.call.metadata.clone(),
        };
        let mut flags = 0;
        if self.call.idempotent {
            flags |= Flags::IDEMPOTENT;
        }
        if self.call.notify {
            flags |= Flags::NOTIFY;
        }
        let id = state.calls.next_id();
        let place = state.outbox.append(|out| {
            encode_frame(out, FrameType::Call, flags, id, |out| {
                encode_call(out, &head, &self.call.body);
            });
        });
        state.calls.insert(Pending {
            waker: waker.clone(),
            deadline: self.deadline,
            place,
            bytes: self.call.body.len(),
            idempotent: self.call.idempotent,
        })
    }

    /// Ends without having been sent, and lets the next in line try.
    fn leave(
        &mut self,
        mut state: MutexGuard<'_, State>,
        ticket: Option<u64>,
        error: Error,
    ) -> Poll<Result<Reply, Error>> {
        self.stage = Stage::Done;
        let next = ticket.and_then(|ticket| {
            state.waiting.leave(ticket);
            state.next_in_line()
        });
        drop(state);
        if let Some(next) = next {
            next.wake();
        }
        Poll::Ready(Err(error))
    }

    fn wake_keeper(&self, mut state: MutexGuard<'_, State>) {
        let parked = std::mem::take(&mut state.keeper_parked);
        drop(state);
        if parked {
            self.shared.to_keep.notify_one();
        }
    }
}

impl Future for Exchange<'_> {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.stage {
            Stage::Start => self.start(None, cx.waker()),
            Stage::Waiting(ticket) => self.start(Some(ticket), cx.waker()),
            Stage::Sent(id) => {
                let answer = self.shared.state.lock().calls.poll(id, cx.waker());
                match answer {
                    Some(mut answer) => {
                        self.stage = Stage::Done;
                        if let Ok(reply) = &mut answer {
                            reply.codec = self.call.codec;
                        }
                        Poll::Ready(answer)
                    }
                    None => Poll::Pending,
                }
            }
            Stage::Done => Poll::Pending,
        }
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        let state = match self.stage {
            Stage::Start | Stage::Done => return,
            Stage::Waiting(ticket) => {
                let mut state = self.shared.state.lock();
                state.waiting.leave(ticket);
                state
            }
            Stage::Sent(id) => {
                let mut state = self.shared.state.lock();
                if let Some(call) = state.calls.remove(id)
                    && !state.outbox.withdraw(call.place)
                {
                    state.outbox.append(|out| {
                        encode_frame(out, FrameType::Cancel, 0, id, |_| ());
                    });
                    self.shared.to_write.notify_one();
                }
                state
            }
        };
        let next = state.next_in_line();
        drop(state);
        if let Some(next) = next {
            next.wake();
        }
    }
}

impl fmt::Debug for Exchange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("method", &self.call.method).finish()
    }
}
