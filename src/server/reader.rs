//! Takes calls in: refuses them, answers them in place, or gives them a task.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::time::Instant;

use super::context::{Context, Request, Response};
use super::handler::{Failure, Guarded, Outcome, codec_of};
use super::job::{Job, Ticket};
use super::reply::{expired, put_reply, too_large};
use super::session::{End, Session, State};
use super::shared::{Entry, deadline_in};
use crate::call::{CodecId, after};
use crate::error::Kind;
use crate::protocol::{
    CallHead, Flags, FrameReader, FrameType, Header, MethodRef, OwnedFrame, WireError, decode_call,
    encode_frame,
};
use crate::transport::Stream;

/// A handler that computes for longer than this when polled in place gets a task of its own from
/// then on.
const SLOW: Duration = Duration::from_micros(200);
/// How much of one read's replies is gathered before it joins the outbox.
const GATHERED: usize = 64 * 1024;

/// The loop that takes calls in.
pub(super) struct Reader {
    pub(super) frames: FrameReader,
    /// Methods by the number that the client gave them; grows to 256 at most.
    pub(super) numbers: Vec<Option<Result<Arc<Entry>, Failure>>>,
    /// The replies that this read gave at once; written together.
    pub(super) replies: Vec<u8>,
    pub(super) max_reply: usize,
}

impl Reader {
    pub(super) async fn run(&mut self, session: &Arc<Session>, from: &mut ReadHalf<Stream>) -> End {
        loop {
            // First what came with the handshake, then what each read brings.
            let whole = self.frames.whole();
            let taken = self.take_in(session);
            let full = {
                let mut state = session.state.lock();
                self.hand_over(session, &mut state);
                if self.frames.whole() != whole {
                    // The time for the next frame starts anew.
                    state.partial = None;
                }
                state.partial = match (self.frames.is_within_frame(), state.partial) {
                    (false, _) => None,
                    (true, since) => Some(since.unwrap_or_else(Instant::now)),
                };
                if state.partial.is_some() {
                    let due = after(Instant::now(), session.server.settings.frame_timeout);
                    session.look_by(&state, due);
                }
                let full = state.waiting() > session.outbox_limit();
                if full {
                    // The frame is not slow while it is we who do not read.
                    state.partial = None;
                }
                full
            };
            match taken {
                Err(error) => return End::Refused(error),
                Ok(more) if more || full => {
                    session.room().await;
                    if more {
                        continue;
                    }
                }
                Ok(_) => {}
            }
            match from.read_buf(self.frames.buffer()).await {
                Ok(0) | Err(_) => return End::Lost,
                Ok(bytes) => self.frames.was_read(bytes),
            }
        }
    }

    /// Takes what was read, frame by frame; true: there may be more, for which the outbox has no
    /// room.
    fn take_in(&mut self, session: &Arc<Session>) -> Result<bool, WireError> {
        let now = Instant::now();
        let mut since = now;
        while let Some(frame) = self.frames.next_frame()? {
            match frame {
                OwnedFrame::Whole(header, payload) => match header.frame {
                    FrameType::Call => {
                        self.take_call(session, header, payload, now, &mut since)?;
                    }
                    FrameType::Cancel => session.state.lock().running.cancel(header.id),
                    FrameType::Ping => {
                        encode_frame(&mut self.replies, FrameType::Pong, 0, 0, |out| {
                            out.extend_from_slice(&payload);
                        });
                    }
                    FrameType::Pong | FrameType::Void | FrameType::ConnectionError => {}
                    FrameType::Reply | FrameType::Drain => {
                        return Err(WireError::Side(header.frame as u8));
                    }
                },
                OwnedFrame::Oversized(header) if header.frame == FrameType::Call => {
                    session.state.lock().take_id(header.id)?;
                    let failure = too_large(session.server.settings.limits.max_body);
                    self.answer(session, header.id, Err(failure));
                }
                OwnedFrame::Oversized(header) => {
                    return Err(WireError::Side(header.frame as u8));
                }
            }
            if self.replies.len() > GATHERED {
                let mut state = session.state.lock();
                self.hand_over(session, &mut state);
                if state.waiting() > session.outbox_limit() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Takes a call: refuses it, answers it in place, or gives it a task.
    fn take_call(
        &mut self,
        session: &Arc<Session>,
        header: Header,
        mut payload: Bytes,
        now: Instant,
        since: &mut Instant,
    ) -> Result<(), WireError> {
        let (head, body) = decode_call(&payload)?;
        let before_body = payload.len() - body.len();
        let method = self.method(session, &head)?;
        let CallHead { codec, remaining_ms, metadata, .. } = head;
        payload.advance(before_body);
        let id = header.id;
        let deadline = deadline_in(now, remaining_ms);
        let admitted = session.admit(id, payload.len(), remaining_ms)?;
        let ready = admitted.and_then(|()| {
            let entry = method?;
            if *since >= deadline {
                // The calls before it, of the same read, took its time.
                return Err(expired());
            }
            let own = codec_of(codec, &entry.codecs);
            if own.is_none() && codec != CodecId::RAW {
                return Err(Failure::rejected(
                    Kind::InvalidArgument,
                    format!("this server has no codec {codec}"),
                ));
            }
            Ok((entry, own))
        });
        let (entry, own) = match ready {
            Ok(ready) => ready,
            Err(failure) => {
                self.answer(session, id, Err(failure));
                return Ok(());
            }
        };
        let bytes = payload.len();
        let Some(mut ticket) = Ticket::take(&session.server, &entry, bytes, now, deadline) else {
            let why = "the server has as many calls at work as it takes";
            let failure = Failure::rejected(Kind::ResourceExhausted, why);
            self.answer(session, id, Err(failure));
            return Ok(());
        };
        let context = Context {
            method: Arc::clone(&entry.name),
            deadline,
            metadata,
            peer: Arc::clone(&session.peer),
            idempotent: header.flags.has(Flags::IDEMPOTENT),
        };
        let request = Request { context, codec, body: payload };
        let mut handler = Guarded::start(deadline, || entry.handler.handle(request, own));
        let notify = header.flags.has(Flags::NOTIFY);
        let mut awaited = true;
        let in_place = entry.runs_in_place();
        // Most handlers are done at once: then neither a task nor a waker is needed.
        if in_place {
            let polled = Pin::new(&mut handler).poll(&mut TaskContext::from_waker(Waker::noop()));
            let after = Instant::now();
            if after.duration_since(*since) > SLOW {
                entry.was_slow();
            }
            *since = after;
            match polled {
                Poll::Ready(outcome) => {
                    let answered = outcome.is_ok();
                    let told = outcome.map(|it| if notify { Response::default() } else { it });
                    self.answer(session, id, told);
                    ticket.end(answered);
                    return Ok(());
                }
                Poll::Pending if notify => {
                    self.answer(session, id, Ok(Response::default()));
                    awaited = false;
                }
                Poll::Pending => {}
            }
        }
        let max_reply = self.max_reply;
        let started = in_place;
        session.spawn(Job { id, handler, ticket, deadline, started, notify, awaited, max_reply });
        Ok(())
    }

    /// The method that a call names, or why there is none.
    fn method(
        &mut self,
        session: &Session,
        head: &CallHead<'_>,
    ) -> Result<Result<Arc<Entry>, Failure>, WireError> {
        let find = |name: &str| {
            session.server.methods.get(name).cloned().ok_or_else(|| {
                Failure::rejected(
                    Kind::Unimplemented,
                    format!("there is no method {:?} here", name),
                )
            })
        };
        Ok(match head.method {
            MethodRef::Name(name) => find(name),
            MethodRef::Define(number, name) => {
                let at = usize::from(number);
                if self.numbers.len() <= at {
                    self.numbers.resize(at + 1, None);
                }
                self.numbers[at].insert(find(name)).clone()
            }
            MethodRef::Number(number) => match self.numbers.get(usize::from(number)) {
                Some(Some(method)) => method.clone(),
                _ => return Err(WireError::Value("a method's number: it was never given")),
            },
        })
    }

    /// Gives the replies that this read gave at once to the writer.
    fn hand_over(&mut self, session: &Session, state: &mut State) {
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
        session.to_write.notify_one();
    }

    fn answer(&mut self, session: &Session, id: u64, outcome: Outcome) {
        let load = session.server.load();
        put_reply(&mut self.replies, id, outcome, load, self.max_reply);
    }
}
