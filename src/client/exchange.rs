//! One call on one connection, from its first poll to its answer.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::task::coop;
use tokio::time::Instant;

use super::answer::Answer;
use super::in_flight::{Pending, Polled, Removed};
use super::outcome::outcome;
use super::shared::{Phase, Shared, State};
use super::sync::MutexGuard;
use crate::call::{BodyRef, Call, MethodName, Moment, Reply, Stamp, Terms, call_begins};
use crate::discovery::Outcome;
use crate::error::{Error, Fate, Kind};
use crate::protocol::{
    CallHead, Flags, FrameType, LARGE_BODY, MethodRef, encode_call, encode_frame,
    encode_frame_before,
};
use crate::sync::{wake, wake_all};

/// One call on one connection. Dropping it sends a cancel, or takes the call back if the writer
/// does not have it yet.
#[must_use = "nothing is sent before it is polled"]
pub struct Exchange<'a> {
    shared: &'a Shared,
    call: &'a Call,
    /// What time it is at the first poll, if whoever polls has just read it.
    now: Option<Instant>,
    flight: Flight,
    /// It failed, and the task's budget may be spent.
    failed: Option<Error>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        call: &'a Call,
        now: Option<Instant>,
        deadline: Instant,
    ) -> Self {
        Self { shared, call, now, flight: Flight::new(Stamp::of(deadline)), failed: None }
    }
}

impl Future for Exchange<'_> {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { shared, call, now, flight, failed } = &mut *self;
        if failed.is_none() {
            let (terms, body) = (call.terms(), BodyRef::Shared(&call.body));
            let answer = match now.take() {
                Some(now) => flight.begin(shared, terms, body, Moment::of(now), cx),
                None => flight.poll(shared, terms, body, cx),
            };
            match ready!(answer) {
                Ok(answer) => return Poll::Ready(Ok(answer.into_reply(call.codec))),
                Err(error) => *failed = Some(error),
            }
        }
        // A loop of calls that fail at once lets other tasks run.
        ready!(coop::poll_proceed(cx)).made_progress();
        failed.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        self.flight.leave(self.shared);
    }
}

impl fmt::Debug for Exchange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("method", &self.call.method).finish()
    }
}

/// How far a call on a connection has come, apart from both: whoever owns them polls it with them,
/// always the same, and says when it [leaves](Flight::leave).
pub(crate) struct Flight {
    /// When it was polled first, once it was.
    started: Stamp,
    deadline: Stamp,
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

impl Flight {
    pub(crate) fn new(deadline: Stamp) -> Self {
        Self { started: Stamp::default(), deadline, stage: Stage::Start }
    }

    /// The first poll, by one who has just read the clock.
    pub(super) fn begin(
        &mut self,
        shared: &Shared,
        terms: Terms<'_>,
        body: BodyRef<'_>,
        now: Moment,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Answer, Error>> {
        call_begins(cx.waker());
        self.started = now.stamp;
        if let Some(endpoint) = &shared.endpoint {
            endpoint.stats().start();
        }
        self.start(shared, terms, body, now, None, cx.waker())
    }

    pub(super) fn poll(
        &mut self,
        shared: &Shared,
        terms: Terms<'_>,
        body: BodyRef<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Answer, Error>> {
        let id = match self.stage {
            Stage::Sent(id) => id,
            Stage::Start => return self.begin(shared, terms, body, Moment::now(), cx),
            Stage::Waiting(ticket) => {
                return self.start(shared, terms, body, Moment::now(), Some(ticket), cx.waker());
            }
            Stage::Done => return Poll::Pending,
        };
        let mut fresh = None;
        let answer = loop {
            let polled = shared.state.lock().calls.poll(id, cx.waker(), &mut fresh);
            match polled {
                Polled::Done(answer) => break answer,
                Polled::Waits => return Poll::Pending,
                // A waker is the user's: it is cloned and dropped under no lock.
                Polled::NeedsWaker => fresh = Some(cx.waker().clone()),
            }
        };
        self.stage = Stage::Done;
        if let Err(error) = &answer {
            self.failed(shared, error);
        }
        Poll::Ready(answer)
    }

    /// The caller leaves: the call is taken back, or cancelled.
    pub(super) fn leave(&mut self, shared: &Shared) {
        let mut writer = None;
        let (mut state, removed, left) = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Start | Stage::Done => return,
            Stage::Waiting(ticket) => {
                let mut state = shared.state.lock();
                let left = state.waiting.leave(ticket);
                (state, None, left)
            }
            Stage::Sent(id) => {
                let mut state = shared.state.lock();
                let removed = state.calls.remove(id);
                if let Some(Removed::Waiting(call)) = &removed
                    && !state.outbox.withdraw(call.place)
                {
                    state.outbox.append(|out| {
                        encode_frame(out, FrameType::Cancel, 0, id, |_| ());
                    });
                    writer = state.writer.take();
                }
                (state, removed, None)
            }
        };
        let next = state.next_in_line();
        drop(state);
        drop(left);
        wake_all(writer.into_iter().chain(next));
        match removed {
            Some(Removed::Done(Ok(_))) => {}
            Some(Removed::Done(Err(error))) => self.failed(shared, &error),
            // Whoever noticed it first, its time was over.
            _ if Stamp::now() >= self.deadline => self.ended(shared, Outcome::Failed),
            _ => self.ended(shared, Outcome::Abandoned),
        }
    }

    /// Sends the call if the window has room and nobody is before it, else waits in line.
    fn start(
        &mut self,
        shared: &Shared,
        terms: Terms<'_>,
        body: BodyRef<'_>,
        now: Moment,
        ticket: Option<u64>,
        waker: &Waker,
    ) -> Poll<Result<Answer, Error>> {
        let remaining = self.deadline.since(now.stamp);
        let bytes = body.len();
        // A waker is the user's: it is cloned and dropped under no lock.
        let waker = waker.clone();
        let mut state = shared.state.lock();
        let is_named = ticket.is_some() || is_named(terms.method, &mut state.named);
        if let Some(error) = refusal(shared, terms.method, bytes, &state, ticket, is_named) {
            return self.refuse(shared, state, ticket, error);
        }
        let taken_out = ticket.is_some_and(|ticket| !state.waiting.holds(ticket));
        if remaining == 0 || taken_out {
            let error = Error::new(
                Kind::DeadlineExceeded,
                Fate::NeverWritten,
                "the deadline passed before the call was sent",
            );
            return self.refuse(shared, state, ticket, error);
        }
        let my_turn =
            ticket.map_or(state.waiting.is_empty(), |ticket| state.waiting.is_first(ticket));
        if !my_turn || !state.has_room(&shared.limits, bytes) {
            match ticket {
                Some(ticket) => {
                    let former = state.waiting.wait_on(ticket, waker);
                    drop(state);
                    drop(former);
                }
                None => {
                    let ticket = state.waiting.join(self.deadline, waker);
                    self.stage = Stage::Waiting(ticket);
                    wake_keeper(shared, state);
                }
            }
            return Poll::Pending;
        }
        let left = ticket.and_then(|ticket| state.waiting.leave(ticket));
        if state.calls.len() == 0 {
            state.busy = now.at;
        }
        let id = self.send(terms, body, &mut state, remaining, waker);
        self.stage = Stage::Sent(id);
        let next = state.next_in_line();
        let mut writer = state.writer.take();
        let State { batching, calls, outbox, .. } = &mut *state;
        let is_large = batching.appended(calls.len(), calls.bytes(), outbox);
        if writer.is_none() && is_large {
            writer = state.impatient.take();
        }
        wake_keeper(shared, state);
        drop(left);
        if let Some(writer) = writer {
            wake(writer);
        }
        if let Some(next) = next {
            wake(next);
        }
        Poll::Pending
    }

    fn send(
        &self,
        terms: Terms<'_>,
        body: BodyRef<'_>,
        state: &mut State,
        remaining: u64,
        waker: Waker,
    ) -> u64 {
        let head = CallHead {
            method: MethodRef::Name(terms.method),
            codec: terms.codec,
            // Rounded up, so that less than a millisecond is not taken for none.
            remaining_ms: u32::try_from(remaining / 1000 + 1).unwrap_or(u32::MAX),
            metadata: terms.metadata.clone(),
        };
        let mut flags = 0;
        if terms.idempotent {
            flags |= Flags::IDEMPOTENT;
        }
        if terms.notify {
            flags |= Flags::NOTIFY;
        }
        let id = state.calls.next_id();
        let place = match body {
            BodyRef::Shared(body) if body.len() >= LARGE_BODY => {
                state.outbox.append_before(body, |out| {
                    let rest = body.len();
                    encode_frame_before(out, FrameType::Call, flags, id, rest, |out| {
                        encode_call(out, &head, &[]);
                    });
                })
            }
            _ => state.outbox.append(|out| {
                encode_frame(out, FrameType::Call, flags, id, |out| {
                    encode_call(out, &head, body.as_slice());
                });
            }),
        };
        state.calls.insert(Pending {
            waker,
            started: self.started,
            deadline: self.deadline,
            place,
            bytes: body.len(),
            idempotent: terms.idempotent,
        })
    }

    /// Ends without having been sent, and lets the next in line try.
    fn refuse(
        &mut self,
        shared: &Shared,
        mut state: MutexGuard<'_, State>,
        ticket: Option<u64>,
        error: Error,
    ) -> Poll<Result<Answer, Error>> {
        self.stage = Stage::Done;
        let (left, next) = match ticket {
            Some(ticket) => (state.waiting.leave(ticket), state.next_in_line()),
            None => (None, None),
        };
        let draining = matches!(state.phase, Phase::Draining);
        drop(state);
        drop(left);
        if let Some(endpoint) = &shared.endpoint {
            // A connection that is drained is replaced, and says nothing of its endpoint.
            self.ended(
                shared,
                if draining { Outcome::Abandoned } else { outcome(&error, endpoint) },
            );
        }
        if let Some(next) = next {
            wake(next);
        }
        Poll::Ready(Err(error))
    }

    /// Counts the attempt out. One that was answered is counted by the connection.
    fn ended(&self, shared: &Shared, outcome: Outcome) {
        if let Some(endpoint) = &shared.endpoint {
            endpoint.stats().end(outcome, self.started, Instant::now());
        }
    }

    /// Counts out an attempt that ended with `error`.
    fn failed(&self, shared: &Shared, error: &Error) {
        if let Some(endpoint) = &shared.endpoint {
            self.ended(shared, outcome(error, endpoint));
        }
    }
}

/// Whether a method's name is valid, or is the one that was found so before.
#[allow(clippy::ptr_arg, reason = "what is not static may be other letters at the same place")]
fn is_named(method: &Cow<'static, str>, known: &mut Option<&'static str>) -> bool {
    match method {
        Cow::Borrowed(name) => {
            if known.is_some_and(|known| std::ptr::eq(*name, known)) {
                return true;
            }
            *known = Some(*name).filter(|name| MethodName::is_valid(name));
            known.is_some()
        }
        Cow::Owned(name) => MethodName::is_valid(name),
    }
}

/// Why the call cannot be sent on this connection at all.
fn refusal(
    shared: &Shared,
    method: &str,
    bytes: usize,
    state: &State,
    ticket: Option<u64>,
    is_named: bool,
) -> Option<Error> {
    let limits = &shared.limits;
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
    if bytes > limits.max_body as usize {
        return Some(Error::new(
            Kind::InvalidArgument,
            Fate::NotEncodable,
            format!("a body of {bytes} bytes; the server takes {}", limits.max_body),
        ));
    }
    if !is_named && let Err(error) = MethodName::parse(method) {
        return Some(Error::new(Kind::InvalidArgument, Fate::NotEncodable, error.to_string()));
    }
    let windows = shared.settings.waiting_windows as usize;
    let most = (limits.window_calls as usize).saturating_mul(windows);
    (ticket.is_none() && !state.waiting.is_empty() && state.waiting.len() >= most).then(|| {
        Error::new(
            Kind::ResourceExhausted,
            Fate::QueueFull,
            format!("{most} calls wait for a place in the connection's window already"),
        )
    })
}

fn wake_keeper(shared: &Shared, mut state: MutexGuard<'_, State>) {
    let parked = std::mem::take(&mut state.keeper_parked);
    drop(state);
    if parked {
        shared.to_keep.notify_one();
    }
}
