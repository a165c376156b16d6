//! The one task of a connection: reads replies, writes calls in batches, looks after deadlines.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::connection::{Phase, Ping, Shared, State, Writer};
use crate::call::{CodecId, Reply, after};
use crate::error::{Error, Fate, Kind};
use crate::protocol::{
    FrameReader, FrameType, Header, OwnedFrame, WireError, decode_reply, encode_connection_error,
    encode_frame,
};
use crate::transport::Stream;

/// What a write buffer keeps for the next batch.
const KEPT: usize = 256 * 1024;

/// Runs a connection until one side ends it; then fails what is in flight.
///
/// Reading, writing and keeping are three loops of one task: a reply that comes in and the calls
/// that it sets off are handled without a hop between tasks.
pub(super) async fn run(shared: Arc<Shared>, stream: Stream, reader: FrameReader) {
    let _end = End(Arc::clone(&shared));
    let (read_half, write_half) = tokio::io::split(stream);
    let why = tokio::select! {
        biased;
        why = read(&shared, read_half, reader) => why,
        why = write(&shared, write_half) => why,
        why = keep(&shared) => why,
    };
    tracing::debug!(
        endpoint = shared.endpoint.as_ref().map(|e| e.instance().address.as_str()),
        why,
        "connection ended"
    );
    shared.close(&why, Writer::Ended);
}

/// However the driver ends, by a panic or with its runtime too, nobody waits for it any longer.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.close("its task ended", Writer::Ended);
    }
}

async fn read(shared: &Shared, mut from: ReadHalf<Stream>, mut reader: FrameReader) -> String {
    let mut wakers = Vec::new();
    loop {
        // First what came with the handshake, then what each read brings.
        let error = take_in(shared, &mut reader, &mut wakers);
        wakers.drain(..).for_each(Waker::wake);
        if let Err(error) = error {
            // The server learns why, if it reads and our writer gets to it; nobody else can be
            // told.
            shared.state.lock().outbox.append(|out| encode_connection_error(out, &error));
            shared.to_write.notify_one();
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            return error.to_string();
        }
        match from.read_buf(reader.buffer()).await {
            Ok(0) => return "the server closed it".to_owned(),
            Ok(bytes) => reader.was_read(bytes),
            Err(error) => return error.to_string(),
        }
    }
}

/// Hands every whole frame of a read to its call, under one lock.
fn take_in(
    shared: &Shared,
    reader: &mut FrameReader,
    wakers: &mut Vec<Waker>,
) -> Result<(), WireError> {
    let now = Instant::now();
    let mut state = shared.state.lock();
    state.heard = now;
    state.suspect = false;
    if state.pinged.take().is_some()
        && let Some(endpoint) = &shared.endpoint
    {
        endpoint.stats().set_ejected(false);
    }
    let mut write = false;
    while let Some(frame) = reader.next_frame()? {
        match frame {
            OwnedFrame::Whole(header, payload) => {
                write |= take_frame(shared, &mut state, header, payload, now, wakers)?;
            }
            OwnedFrame::Oversized(header) if header.frame != FrameType::Reply => {
                return Err(WireError::Side(header.frame as u8));
            }
            OwnedFrame::Oversized(header) => {
                let error = Error::new(
                    Kind::ResourceExhausted,
                    Fate::Undecodable,
                    "the reply is larger than this client takes",
                );
                wakers.extend(state.calls.answer(header.id, Err(error)));
            }
        }
    }
    wakers.extend(state.next_in_line());
    drop(state);
    if write {
        shared.to_write.notify_one();
    }
    Ok(())
}

/// Takes one frame; true: something is to be written.
fn take_frame(
    shared: &Shared,
    state: &mut State,
    header: Header,
    payload: Bytes,
    now: Instant,
    wakers: &mut Vec<Waker>,
) -> Result<bool, WireError> {
    match header.frame {
        FrameType::Reply => {
            let answer = answer(payload)?;
            let late = state.calls.pending(header.id).is_some_and(|call| call.deadline <= now);
            let answer = if late { Err(overdue(Fate::Overdue)) } else { answer };
            match state.calls.answer(header.id, answer) {
                Some(waker) => wakers.push(waker),
                None => state.stray += 1,
            }
        }
        FrameType::Drain => {
            drain(shared, state, header.id, wakers);
        }
        // A flood of pings whose answers are not read is not answered.
        FrameType::Ping if state.outbox.len() > KEPT => {}
        FrameType::Ping => {
            state.outbox.append(|out| {
                encode_frame(out, FrameType::Pong, 0, 0, |out| out.extend_from_slice(&payload));
            });
            return Ok(true);
        }
        FrameType::Pong | FrameType::Void => {}
        FrameType::ConnectionError => {
            tracing::warn!(
                endpoint = shared.endpoint.as_ref().map(|e| e.instance().address.as_str()),
                reason = %String::from_utf8_lossy(&payload).escape_debug(),
                "the server refuses the connection"
            );
        }
        FrameType::Call | FrameType::Cancel => return Err(WireError::Side(header.frame as u8)),
    }
    Ok(false)
}

fn answer(mut payload: Bytes) -> Result<Result<Reply, Error>, WireError> {
    let (head, body) = decode_reply(&payload)?;
    let before_body = payload.len() - body.len();
    payload.advance(before_body);
    Ok(match head.status {
        Ok(()) => {
            let mut reply = Reply::new(CodecId::RAW, payload);
            reply.metadata = head.metadata;
            reply.load = head.load;
            Ok(reply)
        }
        Err((kind, execution)) => {
            let message = String::from_utf8_lossy(&payload).into_owned();
            Err(Error::answered(kind, execution, message))
        }
    })
}

/// The server takes no call above `last`: those fail as rejected, the others go on.
fn drain(shared: &Shared, state: &mut State, last: u64, wakers: &mut Vec<Waker>) {
    if matches!(state.phase, Phase::Open) {
        state.phase = Phase::Draining;
    }
    // Without calls the connection ends at once, and with it what it knows: whoever calls next
    // finds out by dialling. An idle connection is drained by a server that serves on.
    if let Some(endpoint) = &shared.endpoint
        && state.calls.len() > 0
    {
        endpoint.stats().set_draining(true);
        tracing::debug!(endpoint = %endpoint.instance().address, "the server drains");
    }
    wakers.extend(state.calls.fail(|id, _| {
        (id > last)
            .then(|| (Kind::Unavailable, Fate::AboveDrain, "the server was draining".to_owned()))
    }));
    wakers.extend(state.waiting.all());
    shared.to_keep.notify_one();
}

async fn write(shared: &Shared, mut to: WriteHalf<Stream>) -> String {
    let mut batch = Vec::new();
    loop {
        shared.to_write.notified().await;
        loop {
            // With more than one call in flight others are probably ready to append: they get
            // their turn first, so that one write carries all of them.
            if shared.state.lock().calls.len() > 1 {
                tokio::task::yield_now().await;
            }
            let next = {
                let mut state = shared.state.lock();
                state.outbox.take(&mut batch);
                state.next_in_line()
            };
            if let Some(next) = next {
                next.wake();
            }
            if batch.is_empty() {
                break;
            }
            let mut done = 0;
            while done < batch.len() {
                match to.write(&batch[done..]).await {
                    Ok(0) => return "the socket takes no more".to_owned(),
                    Ok(n) => {
                        done += n;
                        shared.written.fetch_add(n as u64, Relaxed);
                    }
                    Err(error) => return error.to_string(),
                }
            }
            // A transport may buffer (TLS): what was taken must also leave.
            if let Err(error) = to.flush().await {
                return error.to_string();
            }
            if batch.capacity() > KEPT {
                batch = Vec::new();
            }
        }
    }
}

/// Looks after deadlines while calls wait, pings a peer that is silent, and ends a connection that
/// is drained or dead.
async fn keep(shared: &Shared) -> String {
    loop {
        let now = Instant::now();
        let (wakers, next) = {
            let mut state = shared.state.lock();
            let mut wakers = sweep(shared, &mut state, now);
            let quiet = state.calls.len() == 0 && state.waiting.is_empty();
            if quiet && matches!(state.phase, Phase::Draining) {
                return "the server drained it".to_owned();
            }
            let silence = check_silence(shared, &mut state, now, quiet, &mut wakers);
            let Some(silence) = silence else {
                return "the server does not answer a ping".to_owned();
            };
            state.keeper_parked = quiet;
            let next = if quiet { silence } else { silence.min(after(now, shared.settings.sweep)) };
            (wakers, next)
        };
        wakers.into_iter().for_each(Waker::wake);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = shared.to_keep.notified() => {}
        }
    }
}

fn sweep(shared: &Shared, state: &mut State, now: Instant) -> Vec<Waker> {
    let mut ids = Vec::new();
    state.calls.overdue(now, &mut ids);
    let mut wakers = state.waiting.remove_overdue(now);
    for id in ids {
        let fate = leave(shared, state, id, Fate::Overdue);
        wakers.extend(state.calls.answer(id, Err(overdue(fate))));
    }
    if !wakers.is_empty() {
        wakers.extend(state.next_in_line());
    }
    wakers
}

/// Gives a call up: takes it back if the writer does not have it yet, else cancels it.
fn leave(shared: &Shared, state: &mut State, id: u64, sent: Fate) -> Fate {
    let Some(place) = state.calls.pending(id).map(|call| call.place) else { return sent };
    if state.outbox.withdraw(place) {
        return Fate::NeverWritten;
    }
    state.outbox.append(|out| encode_frame(out, FrameType::Cancel, 0, id, |_| ()));
    shared.to_write.notify_one();
    sent
}

fn overdue(fate: Fate) -> Error {
    Error::new(Kind::DeadlineExceeded, fate, "no answer came in time")
}

/// Pings a silent peer; tells when to look again, or `None` if the peer is dead.
///
/// A peer that does not answer is suspect: its endpoint is ejected, its idempotent calls and those
/// that wait in line move on, the others wait for their deadlines. The connection stays for a
/// while: a stopped process that goes on answers the ping, whereupon the endpoint is taken back
/// without having cost a call.
fn check_silence(
    shared: &Shared,
    state: &mut State,
    now: Instant,
    quiet: bool,
    wakers: &mut Vec<Waker>,
) -> Option<Instant> {
    let settings = &shared.settings;
    let Some(ping) = &mut state.pinged else {
        let (since, patience) = match quiet {
            true => (state.heard, settings.ping_idle),
            false => (state.heard.max(state.busy), settings.ping_busy),
        };
        let due = after(since, patience);
        if now < due {
            return Some(due);
        }
        let place = state.outbox.append(|out| {
            encode_frame(out, FrameType::Ping, 0, 0, |out| out.extend_from_slice(&[0; 8]));
        });
        let written = shared.written.load(Relaxed);
        state.pinged = Some(Ping { end: place.end, written, since: now });
        shared.to_write.notify_one();
        return Some(after(now, settings.ping_timeout));
    };
    // A ping behind large bodies is not late while the socket takes them.
    let written = shared.written.load(Relaxed);
    if ping.written < ping.end && written > ping.written {
        ping.written = written;
        ping.since = now;
    }
    let until = after(ping.since, settings.ping_timeout);
    if now < until {
        return Some(until);
    }
    if now >= after(ping.since, settings.dead_after) {
        return None;
    }
    if !state.suspect {
        state.suspect = true;
        if let Some(endpoint) = &shared.endpoint {
            endpoint.stats().set_ejected(true);
            tracing::warn!(
                endpoint = %endpoint.instance().address,
                "ejected: a ping is not answered"
            );
        }
        wakers.extend(state.waiting.all());
    }
    let idempotent: Vec<_> =
        state.calls.waiting().filter(|(_, call)| call.idempotent).map(|(id, _)| id).collect();
    for id in idempotent {
        let fate = leave(shared, state, id, Fate::ConnectionLost);
        let error = Error::new(Kind::Unavailable, fate, "the server does not answer a ping");
        wakers.extend(state.calls.answer(id, Err(error)));
    }
    Some(after(now, settings.ping_busy))
}
