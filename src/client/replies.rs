//! Reads frames and hands each reply to its call.

use std::mem;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use tokio::io::ReadHalf;

use super::answer::Answer;
use super::keeper::overdue;
use super::shared::{Phase, Shared, State, Trial};
use crate::call::{Moment, Stamp};
use crate::discovery::Answers;
use crate::error::{Error, Fate, Kind, cut, text_of};
use crate::protocol::{
    Cut, FrameReader, FrameType, Header, Payload, WireError, decode_reply, encode_connection_error,
    encode_frame,
};
use crate::sync::{event, wake_all};
use crate::transport::{Stream, read_some};

/// How much may wait to be written before pings are not answered any more.
const PONGS: usize = 256 * 1024;
/// After a read of this many bytes those whose replies they are go first: else all that the socket holds
/// would be read before any of it is used, into memory of its own.
const MUCH: usize = 128 * 1024;

pub(super) async fn read(
    shared: &Shared,
    mut from: ReadHalf<Stream>,
    mut reader: FrameReader,
) -> String {
    let mut brought = Brought::default();
    let mut bytes = 0;
    loop {
        // First what came with the handshake, then what each read brings.
        let now = Moment::now();
        let error = take_in(shared, &mut reader, &mut brought, now);
        brought.tell(shared, now);
        if bytes >= MUCH {
            tokio::task::yield_now().await;
        }
        if let Err(error) = error {
            if let WireError::Peer(reason) = &error {
                event!(
                    WARN,
                    endpoint = shared.endpoint.as_ref().map(|e| e.instance().address.as_str()),
                    reason = %reason,
                    "the server refuses the connection"
                );
                return error.to_string();
            }
            // The server learns why, if it reads and our writer gets to it; nobody else can be
            // told.
            let writer = {
                let mut state = shared.state.lock();
                state.outbox.append(|out| encode_connection_error(out, &error));
                state.writer.take()
            };
            wake_all(writer);
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            return error.to_string();
        }
        match read_some(&mut from, &mut reader).await {
            Ok(0) => return "the server closed it".to_owned(),
            Ok(read) => {
                bytes = read;
                reader.was_read(bytes);
            }
            Err(error) => return error.to_string(),
        }
    }
}

/// What a read has brought, to be told once the lock is released.
#[derive(Default)]
struct Brought {
    wakers: Vec<Waker>,
    answers: Answers,
    /// The endpoint is no longer suspected: its outlier table must be told.
    is_trusted: bool,
    /// The number of the last of our pings that was answered; 0: none was.
    ponged: u64,
    is_draining: bool,
    /// The server drains while calls wait for it.
    drains_with_calls: bool,
}

impl Brought {
    fn tell(&mut self, shared: &Shared, now: Moment) {
        if let Some(endpoint) = &shared.endpoint {
            // Before the outlier table hears of it: an endpoint that is readmitted begins anew.
            endpoint.stats().answered(&mem::take(&mut self.answers), now.stamp);
        }
        if mem::take(&mut self.is_trusted) {
            shared.tell_suspicion(true, now.at);
        }
        wake_all(self.wakers.drain(..));
        let ponged = mem::take(&mut self.ponged);
        if ponged > 0 {
            shared.ponged.send_if_modified(|last| {
                let is_news = ponged > *last;
                *last = ponged.max(*last);
                is_news
            });
        }
        if mem::take(&mut self.is_draining) {
            shared.to_keep.notify_one();
        }
        if mem::take(&mut self.drains_with_calls)
            && let Some(endpoint) = &shared.endpoint
        {
            event!(DEBUG, endpoint = %endpoint.instance().address, "the server drains");
        }
    }
}

/// Hands every whole frame of a read to its call, under one lock.
fn take_in(
    shared: &Shared,
    reader: &mut FrameReader,
    brought: &mut Brought,
    now: Moment,
) -> Result<(), WireError> {
    let Moment { at, stamp: now } = now;
    let mut state = shared.state.lock();
    state.heard = at;
    state.pinged = None;
    brought.is_trusted |= shared.trust(&mut state);
    let mut write = false;
    while let Some(frame) = reader.cut()? {
        match frame {
            Cut::Whole(header, payload) => {
                write |= take_frame(shared, &mut state, header, payload, now, brought)?;
            }
            Cut::Oversized(header) if header.frame != FrameType::Reply => {
                return Err(WireError::Side(header.frame as u8));
            }
            Cut::Oversized(header) => {
                let late = state.calls.pending(header.id).is_some_and(|c| c.deadline <= now);
                let error = if late {
                    overdue(Fate::Overdue)
                } else {
                    let why = "the reply is larger than this client takes";
                    Error::new(Kind::ResourceExhausted, Fate::Undecodable, why)
                };
                if let Some(call) = state.calls.answer(header.id, Err(error)) {
                    shared.pass_trial(&mut state);
                    brought.wakers.push(call.waker);
                }
            }
        }
    }
    brought.wakers.extend(state.next_in_line());
    if write {
        brought.wakers.extend(state.writer.take());
    }
    Ok(())
}

/// Takes one frame; true: something is to be written.
fn take_frame(
    shared: &Shared,
    state: &mut State,
    header: Header,
    payload: Payload<'_>,
    now: Stamp,
    brought: &mut Brought,
) -> Result<bool, WireError> {
    match header.frame {
        FrameType::Reply => {
            let answer = answer(payload)?;
            let mut load = None;
            let answered = state.calls.answer_with(header.id, |call| {
                if call.deadline <= now {
                    return Err(overdue(Fate::Overdue));
                }
                load = answer.as_ref().ok().map(Answer::load);
                answer
            });
            match answered {
                Some(call) => {
                    if state.trial != Trial::Passed {
                        shared.pass_trial(state);
                    }
                    brought.wakers.push(call.waker);
                    // A failure is counted by its call, which knows what it means.
                    if let (Some(endpoint), Some(load)) = (&shared.endpoint, load) {
                        endpoint.stats().add(&mut brought.answers, load, call.started, now);
                    }
                }
                None => state.stray += 1,
            }
        }
        FrameType::Drain => drain(shared, state, header.id, brought),
        // A flood of pings whose answers are not read is not answered.
        FrameType::Ping if state.outbox.len() > PONGS => {}
        FrameType::Ping => {
            state.outbox.append(|out| {
                encode_frame(out, FrameType::Pong, 0, 0, |out| {
                    out.extend_from_slice(payload.as_slice())
                });
            });
            return Ok(true);
        }
        FrameType::Pong => {
            if let Ok(number) = <[u8; 8]>::try_from(payload.as_slice()) {
                let number = u64::from_be_bytes(number);
                // One that nobody asked for proves nothing.
                let is_answer = match number {
                    0 => state.has_pinged,
                    number => number <= state.probes,
                };
                if is_answer {
                    shared.pass_trial(state);
                    brought.ponged = brought.ponged.max(number);
                }
            }
        }
        FrameType::Void => {}
        FrameType::ConnectionError => {
            return Err(peer_error(payload.as_slice()));
        }
        FrameType::Call | FrameType::Cancel => return Err(WireError::Side(header.frame as u8)),
    }
    Ok(false)
}

/// What a connection error says.
pub(super) fn peer_error(payload: &[u8]) -> WireError {
    let text = String::from_utf8_lossy(payload).escape_debug().to_string();
    WireError::Peer(cut(&text).to_owned())
}

fn answer(payload: Payload<'_>) -> Result<Result<Answer, Error>, WireError> {
    let (head, body) = decode_reply(payload.as_slice())?;
    let before_body = payload.as_slice().len() - body.len();
    Ok(match head.status {
        Ok(()) => Ok(Answer::new(payload.packed(before_body), head.metadata, head.load)),
        Err((kind, execution)) => Err(Error::answered(kind, execution, text_of(body))),
    })
}

/// The server takes no call above `last`: those fail as rejected, the others go on.
fn drain(shared: &Shared, state: &mut State, last: u64, brought: &mut Brought) {
    if matches!(state.phase, Phase::Open) {
        let now = state.heard;
        shared.end_trial(state, now);
        state.phase = Phase::Draining;
        shared.open.store(false, Relaxed);
    }
    // Without calls the connection ends at once, and with it what it knows: whoever calls next
    // finds out by dialling. An idle connection is drained by a server that serves on.
    if let Some(endpoint) = &shared.endpoint
        && state.calls.len() > 0
    {
        endpoint.stats().set_draining(true);
        brought.drains_with_calls = true;
    }
    brought.wakers.extend(state.calls.fail(|id, _| {
        (id > last)
            .then(|| (Kind::Unavailable, Fate::AboveDrain, "the server was draining".to_owned()))
    }));
    brought.wakers.extend(state.waiting.all());
    brought.is_draining = true;
}
