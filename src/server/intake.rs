//! Takes one call in: refuses it, answers it in place, or gives it a task.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use tokio::time::Instant;

use super::context::{Answered, Asked, Context};
use super::handler::{Failure, Guarded, Outcome, codec_of};
use super::job::{Job, Ticket};
use super::methods::Methods;
use super::reply::{NO_MEMORY_FOR_RESULT, expired, is_large, put_reply, send_reply};
use super::session::{Session, State};
use super::shared::{SLOW, deadline_in};
use crate::call::CodecId;
use crate::error::{Fate, Kind};
use crate::protocol::{
    CallRest, Flags, FrameType, Header, Payload, WireError, decode_call_of, encode_frame,
};

/// How many of one read's replies are gathered before they are written: their client can work on them
/// meanwhile. Those of half of a read, but no fewer than the least: a write costs as much as some of them.
/// The least is less than what its client waits for before it writes: so the client has work again while
/// the rest of its batch is answered. Measured in `docs/PERFORMANCE.md`.
const LEAST: u32 = 16;
const MOST: u32 = 256;
/// So many bytes of small replies, which are copied together, are written however few those are.
const GATHERED: usize = 64 * 1024;
/// So are so many bytes of replies in all.
const MOST_BYTES: usize = 512 * 1024;

/// What takes a connection's calls in.
pub(super) struct Intake {
    methods: Methods,
    /// The replies that this read gave at once; written together.
    replies: Vec<u8>,
    /// The bytes of those that are in the outbox already, with a large one.
    handed: usize,
    /// How many replies that makes, here and there.
    answered: u32,
    max_reply: usize,
}

impl Intake {
    /// Takes calls of a client that takes replies of at most so many bytes.
    pub(super) fn new(max_reply: usize) -> Self {
        Self { methods: Methods::default(), replies: Vec::new(), handed: 0, answered: 0, max_reply }
    }

    /// Whether the replies that were gathered are worth to be written; few are only once half of a read
    /// `is_taken`.
    pub(super) fn is_full(&self, is_taken: bool) -> bool {
        self.answered >= MOST
            || (self.answered >= LEAST && is_taken)
            || self.replies.len() > GATHERED
            || self.replies.len() + self.handed > MOST_BYTES
    }

    /// Answers a ping.
    pub(super) fn pong(&mut self, payload: &[u8]) {
        encode_frame(&mut self.replies, FrameType::Pong, 0, 0, |out| {
            out.extend_from_slice(payload);
        });
    }

    /// Refuses a call whose body is not read.
    pub(super) fn refuse(
        &mut self,
        session: &Session,
        id: u64,
        why: Failure,
    ) -> Result<(), WireError> {
        session.state.lock().take_id(id)?;
        self.answer(session, id, Err(why));
        Ok(())
    }

    /// Takes a call: refuses it, answers it in place, or gives it a task.
    pub(super) fn take(
        &mut self,
        session: &Arc<Session>,
        header: Header,
        payload: Payload<'_>,
        now: Instant,
        since: &mut Instant,
    ) -> Result<(), WireError> {
        let (method, rest) = decode_call_of(payload.as_slice(), self.methods.names())?;
        let CallRest { codec, remaining_ms, metadata, body } = rest;
        let before_body = payload.as_slice().len() - body.len();
        let method = self.methods.find(session, method)?;
        let (id, bytes) = (header.id, body.len());
        let deadline = deadline_in(now, remaining_ms);
        let admitted = session.admit(id, bytes, remaining_ms, now)?;
        let ready = admitted.and_then(|()| {
            let known = method?;
            if *since >= deadline {
                // The calls before it, of the same read, took its time.
                return Err(expired());
            }
            let own = codec_of(codec, &known.entry.codecs);
            if own.is_none() && codec != CodecId::RAW {
                return Err(Failure::rejected(
                    Kind::InvalidArgument,
                    format!("this server has no codec {codec}"),
                ));
            }
            let ticket = Ticket::take(&session.server, &known.entry, now, deadline);
            let ticket = ticket.ok_or_else(|| {
                let why = "the server has as many calls at work as it takes";
                Failure::rejected(Kind::ResourceExhausted, why)
            })?;
            Ok((known, own, ticket))
        });
        let (known, own, mut ticket) = match ready {
            Ok(ready) => ready,
            Err(failure) => {
                self.answer(session, id, Err(failure));
                return Ok(());
            }
        };
        let context = Context {
            origin: Arc::clone(&known.origin),
            deadline,
            metadata,
            idempotent: header.flags.has(Flags::IDEMPOTENT),
        };
        let asked = Asked { context, codec, body: payload.packed(before_body) };
        let notify = header.flags.has(Flags::NOTIFY);
        let mut awaited = true;
        // Most handlers are done at once: then neither a task nor a waker is needed.
        let (handler, untried) = if known.entry.runs_in_place() {
            let (seat, handler) = (known.seat.take(), &*known.entry.handler);
            let cx = &mut TaskContext::from_waker(Waker::noop());
            let (mut handler, polled) = Guarded::start(seat, handler, asked, own, deadline, cx);
            let after = Instant::now();
            let took = after.duration_since(*since);
            if took > SLOW {
                known.entry.was_slow(took);
            }
            *since = after;
            match polled {
                Poll::Ready(outcome) => {
                    known.seat = handler.leave();
                    let answered = outcome.is_ok();
                    let told = outcome.map(|it| if notify { Answered::default() } else { it });
                    self.answer(session, id, told);
                    ticket.end(answered);
                    return Ok(());
                }
                Poll::Pending if notify => {
                    self.answer(session, id, Ok(Answered::default()));
                    awaited = false;
                }
                Poll::Pending => {}
            }
            (handler, None)
        } else {
            let entry = Arc::clone(&known.entry);
            let handler = Arc::clone(&entry.handler);
            (Guarded::later(handler, asked, own, deadline), Some(entry))
        };
        let ticket = ticket.hold(&session.server);
        let max_reply = self.max_reply;
        session.spawn(Job {
            id,
            handler,
            ticket,
            bytes,
            deadline,
            untried,
            notify,
            awaited,
            max_reply,
        });
        Ok(())
    }

    /// Gives the replies that this read gave at once to the writer.
    pub(super) fn hand_over(&mut self, state: &mut State) {
        (self.handed, self.answered) = (0, 0);
        if self.replies.is_empty() {
            return;
        }
        state.outbox.append(|out| match out.is_empty() {
            // A large reply is not copied, and its buffer goes with it.
            true => std::mem::swap(out, &mut self.replies),
            false => out.append(&mut self.replies),
        });
        if self.replies.capacity() > GATHERED {
            self.replies = Vec::new();
        }
    }

    fn answer(&mut self, session: &Session, id: u64, outcome: Outcome) {
        let load = session.server.load();
        self.answered += 1;
        if is_large(&outcome) {
            let reply_bytes = outcome.as_ref().map_or(0, |response| response.body.len());
            let dropped;
            let mut state = session.state.lock();
            // What was answered before comes first, though nothing depends on it. It still counts: nothing
            // of it is written yet.
            let (bytes, answered) = (self.handed + self.replies.len(), self.answered);
            self.hand_over(&mut state);
            let before = state.outbox.len();
            // The outcome itself is dropped under no lock: its body may be the user's.
            let outcome = match state.try_charge(reply_bytes) {
                true => &outcome,
                false => {
                    let kind = Kind::ResourceExhausted;
                    dropped = Err(Failure::new(kind, Fate::Failed, NO_MEMORY_FOR_RESULT));
                    &dropped
                }
            };
            send_reply(&mut state.outbox, id, outcome, load, self.max_reply);
            (self.handed, self.answered) = (bytes + state.outbox.len() - before, answered);
            return;
        }
        put_reply(&mut self.replies, id, &outcome, load, self.max_reply);
    }
}
