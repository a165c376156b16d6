//! One connection from the server's side: handshake, calls in, replies out, drain.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::context::{Context, Request, Response};
use super::handler::{Failure, Guarded, Outcome, codec_of};
use super::running::Running;
use super::{Entry, Phase, Shared, deadline_in};
use crate::call::{CodecId, Metadata, after};
use crate::error::{Fate, Kind};
use crate::protocol::{
    CallHead, Flags, FrameReader, FrameType, Header, Hello, MethodRef, Outbox, OwnedFrame,
    ReplyHead, WireError, decode_call, decode_hello, encode_connection_error, encode_frame,
    encode_reply, hello_len,
};
use crate::transport::{Peer, Stream};

/// A handler that computes for longer than this when polled in place gets a task of its own from
/// then on.
const SLOW: Duration = Duration::from_micros(200);
/// How long a connection that ends waits for its peer to have read everything.
const LINGER: Duration = Duration::from_secs(1);
/// The least time between two looks at deadlines.
const SWEEP: Duration = Duration::from_millis(10);
/// What a write buffer keeps for the next batch.
const KEPT: usize = 256 * 1024;
/// How much of one read's replies is gathered before it joins the outbox.
const GATHERED: usize = 64 * 1024;
/// The longest error text that travels, in bytes.
const MAX_TEXT: usize = 4 * 1024;

/// What a connection's loops and its handlers share.
struct Connection {
    server: Arc<Shared>,
    peer: Arc<Peer>,
    state: Mutex<State>,
    /// Something waits in the outbox.
    to_write: Notify,
    /// The outbox has been emptied.
    to_read: Notify,
    /// A deadline is earlier than the keeper's next look, or a draining connection may be empty.
    to_keep: Notify,
}

struct State {
    running: Running,
    outbox: Outbox,
    /// Since when the writer holds bytes that the socket does not take.
    writing: Option<Instant>,
    /// The highest id seen.
    last_id: u64,
    /// Bytes of replies that wait for room in the outbox.
    held: usize,
    /// Set by the drain frame: no call above this id is started.
    drained_at: Option<u64>,
    /// When the keeper looks next.
    next_look: Instant,
    /// When the last call came or ended.
    busy: Instant,
    /// Since when the start of a frame waits for its end.
    partial: Option<Instant>,
}

/// Why a connection ends.
enum End {
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

/// Reads the client's handshake and answers it.
async fn shake_hands(server: &Shared, stream: &mut Stream) -> io::Result<(BytesMut, Hello)> {
    let mut read = BytesMut::with_capacity(1024);
    let client = loop {
        match hello_len(&read) {
            Ok(Some(len)) if read.len() >= len => {
                break decode_hello(&read.split_to(len)).and_then(|hello| {
                    hello.check_version()?;
                    Ok(hello)
                });
            }
            Ok(_) => {}
            Err(error) => break Err(error),
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut answer = Vec::new();
    if matches!(client, Err(WireError::Magic)) && is_http(&read) {
        answer.extend_from_slice(
            b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n\
              content-length: 38\r\n\r\nThis port speaks srpc, and not HTTP.\r\n",
        );
    } else {
        Hello::new(server.settings.limits).encode(&mut answer);
        if let Err(error) = &client {
            encode_connection_error(&mut answer, error);
        }
    }
    stream.write_all(&answer).await?;
    stream.flush().await?;
    match client {
        Ok(hello) => Ok((read, hello)),
        Err(error) => {
            stream.shutdown().await?;
            // Unread bytes would reset the connection and destroy the answer.
            let mut rest = [0; 4096];
            while stream.read(&mut rest).await? > 0 {}
            Err(io::Error::new(io::ErrorKind::InvalidData, error))
        }
    }
}

fn is_http(read: &[u8]) -> bool {
    [&b"GET "[..], b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"PATC", b"PRI "]
        .iter()
        .any(|method| read.starts_with(&method[..read.len().min(4)]))
}

/// The loop that takes calls in.
struct Reader {
    frames: FrameReader,
    /// Methods by the number that the client gave them; grows to 256 at most.
    numbers: Vec<Option<Result<Arc<Entry>, Failure>>>,
    /// The replies that this read gave at once; written together.
    replies: Vec<u8>,
    max_reply: usize,
}

impl Reader {
    async fn run(&mut self, connection: &Arc<Connection>, from: &mut ReadHalf<Stream>) -> End {
        loop {
            // First what came with the handshake, then what each read brings.
            let taken = self.take_in(connection);
            let full = {
                let mut state = connection.state.lock();
                if !self.replies.is_empty() {
                    state.outbox.append(|out| out.append(&mut self.replies));
                    connection.to_write.notify_one();
                }
                state.partial = match (self.frames.is_within_frame(), state.partial) {
                    (false, _) => None,
                    (true, since) => Some(since.unwrap_or_else(Instant::now)),
                };
                if state.partial.is_some() {
                    let due = after(Instant::now(), connection.server.settings.frame_timeout);
                    connection.look_by(&state, due);
                }
                let full = state.outbox.len() > connection.outbox_limit();
                if full {
                    // The frame is not slow while it is we who do not read.
                    state.partial = None;
                }
                full
            };
            match taken {
                Err(error) => return End::Refused(error),
                Ok(more) if more || full => {
                    connection.room().await;
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
    fn take_in(&mut self, connection: &Arc<Connection>) -> Result<bool, WireError> {
        let now = Instant::now();
        let mut since = now;
        while let Some(frame) = self.frames.next_frame()? {
            // A frame has ended: the time for the next one starts anew.
            connection.state.lock().partial = None;
            match frame {
                OwnedFrame::Whole(header, payload) => match header.frame {
                    FrameType::Call => {
                        self.take_call(connection, header, payload, now, &mut since)?;
                    }
                    FrameType::Cancel => connection.state.lock().running.cancel(header.id),
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
                    connection.state.lock().take_id(header.id)?;
                    let failure = too_large(connection.server.settings.limits.max_body);
                    self.answer(connection, header.id, Err(failure));
                }
                OwnedFrame::Oversized(header) => {
                    return Err(WireError::Side(header.frame as u8));
                }
            }
            if self.replies.len() > GATHERED {
                let mut state = connection.state.lock();
                state.outbox.append(|out| out.append(&mut self.replies));
                connection.to_write.notify_one();
                if state.outbox.len() > connection.outbox_limit() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Takes a call: refuses it, answers it in place, or gives it a task.
    fn take_call(
        &mut self,
        connection: &Arc<Connection>,
        header: Header,
        mut payload: Bytes,
        now: Instant,
        since: &mut Instant,
    ) -> Result<(), WireError> {
        let (head, body) = decode_call(&payload)?;
        let before_body = payload.len() - body.len();
        let method = self.method(connection, &head)?;
        let CallHead { codec, remaining_ms, metadata, .. } = head;
        payload.advance(before_body);
        let id = header.id;
        let admitted = connection.admit(id, payload.len(), remaining_ms)?;
        let ready = admitted.and_then(|()| {
            let entry = method?;
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
                self.answer(connection, id, Err(failure));
                return Ok(());
            }
        };
        let ticket = Ticket::new(&connection.server, payload.len());
        let deadline = deadline_in(now, remaining_ms);
        let context = Context {
            method: Arc::clone(&entry.name),
            deadline,
            metadata,
            peer: Arc::clone(&connection.peer),
            idempotent: header.flags.has(Flags::IDEMPOTENT),
        };
        let request = Request { context, codec, body: payload };
        let mut handler = Guarded::start(|| entry.handler.handle(request, own));
        let notify = header.flags.has(Flags::NOTIFY);
        let mut awaited = true;
        // Most handlers are done at once: then neither a task nor a waker is needed.
        if entry.runs_in_place() {
            let polled = Pin::new(&mut handler).poll(&mut TaskContext::from_waker(Waker::noop()));
            let after = Instant::now();
            if after.duration_since(*since) > SLOW {
                entry.was_slow();
            }
            *since = after;
            match polled {
                Poll::Ready(Ok(_)) if notify => {
                    self.answer(connection, id, Ok(Response::default()));
                    return Ok(());
                }
                Poll::Ready(outcome) => {
                    self.answer(connection, id, outcome);
                    return Ok(());
                }
                Poll::Pending if notify => {
                    self.answer(connection, id, Ok(Response::default()));
                    awaited = false;
                }
                Poll::Pending => {}
            }
        }
        let max_reply = self.max_reply;
        connection.spawn(Job { id, handler, ticket, deadline, notify, awaited, max_reply });
        Ok(())
    }

    /// The method that a call names, or why there is none.
    fn method(
        &mut self,
        connection: &Connection,
        head: &CallHead<'_>,
    ) -> Result<Result<Arc<Entry>, Failure>, WireError> {
        let find = |name: &str| {
            connection.server.methods.get(name).cloned().ok_or_else(|| {
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

    fn answer(&mut self, connection: &Connection, id: u64, outcome: Outcome) {
        let load = connection.server.load();
        put_reply(&mut self.replies, id, outcome, load, self.max_reply);
    }
}

/// A call whose handler did not end at once.
struct Job {
    id: u64,
    handler: Guarded,
    ticket: Ticket,
    deadline: Instant,
    /// The handler's start is answer enough.
    notify: bool,
    /// The caller waits: it has no acknowledgement yet.
    awaited: bool,
    max_reply: usize,
}

impl Connection {
    /// Whether a call may start: `Err` breaks the protocol, `Ok(Err(_))` is an answer.
    fn admit(
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
        if !state.running.has_room(calls, window, bytes) {
            return exhausted("the connection's window is full");
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

    /// Gives a call a task of its own, which the table can end.
    fn spawn(self: &Arc<Self>, job: Job) {
        let Job { id, mut handler, ticket, deadline, notify, awaited, max_reply } = job;
        let bytes = ticket.bytes;
        {
            let mut state = self.state.lock();
            state.running.insert(id, deadline, bytes, awaited);
            self.look_by(&state, deadline);
        }
        let place = Place { connection: Arc::clone(self), id, _ticket: ticket };
        // Not under the lock: a runtime that shuts down drops the future at once, and with it the
        // place, which takes the lock.
        let task = tokio::spawn(async move {
            if notify && awaited {
                let started = poll_fn(|cx| Poll::Ready(Pin::new(&mut handler).poll(cx))).await;
                match started {
                    Poll::Ready(outcome) => {
                        return place.end(outcome.map(|_| Response::default()), max_reply).await;
                    }
                    Poll::Pending => place.acknowledge(),
                }
            }
            let outcome = handler.await;
            place.end(outcome, max_reply).await;
        });
        self.state.lock().running.started(id, task.abort_handle());
    }

    /// Makes the keeper look at this time at the latest.
    fn look_by(&self, state: &State, due: Instant) {
        if due < state.next_look {
            self.to_keep.notify_one();
        }
    }

    /// What may wait to be written before no more calls are read.
    fn outbox_limit(&self) -> usize {
        self.server.settings.limits.window_bytes as usize
    }

    /// Waits until the outbox has room again: a client that does not read its replies is not read
    /// either.
    async fn room(&self) {
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
    fn take_id(&mut self, id: u64) -> Result<(), WireError> {
        if id <= self.last_id {
            return Err(WireError::Id(id));
        }
        self.last_id = id;
        Ok(())
    }
}

/// A running call's place in the table, given back when its handler has ended or was dropped.
struct Place {
    connection: Arc<Connection>,
    id: u64,
    _ticket: Ticket,
}

impl Place {
    /// Answers, if somebody waits. A client that does not read its replies has room for a window
    /// of them in the outbox and for another that waits before it; the rest is dropped.
    async fn end(self, outcome: Outcome, max_reply: usize) {
        let connection = Arc::clone(&self.connection);
        let bytes = outcome.as_ref().map_or(0, |response| response.body.len());
        let limit = connection.outbox_limit();
        let waits = {
            let mut state = connection.state.lock();
            if state.outbox.len() <= limit {
                return self.answer(&mut state, outcome, max_reply);
            }
            if state.held + bytes > limit {
                let why = "the result was dropped: the client does not read its replies";
                let failure = Failure::new(Kind::ResourceExhausted, Fate::Failed, why);
                return self.answer(&mut state, Err(failure), max_reply);
            }
            state.held += bytes;
            Held { connection: Arc::clone(&connection), bytes }
        };
        loop {
            connection.room().await;
            let mut state = connection.state.lock();
            if state.outbox.len() <= limit {
                self.answer(&mut state, outcome, max_reply);
                break;
            }
        }
        drop(waits);
    }

    fn answer(&self, state: &mut State, outcome: Outcome, max_reply: usize) {
        if state.running.end(self.id) {
            let load = self.connection.server.load();
            state.outbox.append(|out| put_reply(out, self.id, outcome, load, max_reply));
            self.connection.to_write.notify_one();
        }
    }

    /// Tells the caller that the handler has started.
    fn acknowledge(&self) {
        let mut state = self.connection.state.lock();
        if state.running.acknowledged(self.id) {
            let (load, done) = (self.connection.server.load(), Ok(Response::default()));
            state.outbox.append(|out| put_reply(out, self.id, done, load, usize::MAX));
            self.connection.to_write.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.connection.state.lock();
        // Still awaited only if the handler's task ended without an answer.
        let why = "the handler's task ended";
        let failure = Failure::new(Kind::Internal, Fate::HandlerDropped, why);
        self.answer(&mut state, Err(failure), usize::MAX);
        state.busy = Instant::now();
        if state.drained_at.is_some() {
            self.connection.to_keep.notify_one();
        }
    }
}

/// A reply's share of what waits for room in the outbox.
struct Held {
    connection: Arc<Connection>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.state.lock().held -= self.bytes;
    }
}

/// A call's share of the server's load.
struct Ticket {
    server: Arc<Shared>,
    bytes: usize,
}

impl Ticket {
    fn new(server: &Arc<Shared>, bytes: usize) -> Self {
        server.in_flight.fetch_add(1, Relaxed);
        server.bytes_in_flight.fetch_add(bytes, Relaxed);
        Self { server: Arc::clone(server), bytes }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.server.in_flight.fetch_sub(1, Relaxed);
        self.server.bytes_in_flight.fetch_sub(self.bytes, Relaxed);
    }
}

/// The loop that writes, in batches.
struct Writer {
    to: WriteHalf<Stream>,
    batch: Vec<u8>,
    /// How much of the batch the socket has taken.
    done: usize,
}

impl Writer {
    async fn run(&mut self, connection: &Connection) -> End {
        loop {
            connection.to_write.notified().await;
            // Handlers that are ready to answer get their turn first, so that one write carries
            // all of their replies.
            if connection.state.lock().running.len() > 1 {
                tokio::task::yield_now().await;
            }
            if self.flush(connection).await.is_err() {
                return End::Lost;
            }
        }
    }

    /// Writes until nothing waits. Dropping the future loses nothing: the next call goes on.
    async fn flush(&mut self, connection: &Connection) -> io::Result<()> {
        loop {
            while self.done < self.batch.len() {
                let written = self.to.write(&self.batch[self.done..]).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.done += written;
                if self.done < self.batch.len() {
                    connection.state.lock().writing = Some(Instant::now());
                }
            }
            self.to.flush().await?;
            self.done = 0;
            if self.batch.capacity() > KEPT {
                self.batch = Vec::new();
            }
            let mut state = connection.state.lock();
            state.outbox.take(&mut self.batch);
            let now = Instant::now();
            state.writing = (!self.batch.is_empty()).then_some(now);
            if !self.batch.is_empty() {
                connection.look_by(&state, after(now, connection.server.settings.frame_timeout));
            }
            if self.batch.is_empty() {
                if state.drained_at.is_some() {
                    connection.to_keep.notify_one();
                }
                return Ok(());
            }
            drop(state);
            connection.to_read.notify_waiters();
        }
    }
}

/// Looks after deadlines, slow frames, idleness and drain.
async fn keep(connection: &Connection, phases: &mut watch::Receiver<Phase>) -> End {
    let settings = &connection.server.settings;
    loop {
        let now = Instant::now();
        let phase = *phases.borrow_and_update();
        let next = {
            let mut state = connection.state.lock();
            let overdue = state.running.drop_overdue(now);
            let why = "the handler was dropped at its deadline";
            connection.give_up(&mut state, overdue, Kind::DeadlineExceeded, why);
            let idle_at = after(state.busy, settings.idle_timeout);
            if phase != Phase::Serving || (state.running.is_empty() && now >= idle_at) {
                connection.drain(&mut state);
            }
            if phase == Phase::Cut {
                let all = state.running.drop_all();
                let why = "the server stopped before the handler ended";
                connection.give_up(&mut state, all, Kind::Unavailable, why);
                return End::Done;
            }
            let all_said = state.outbox.is_empty() && state.writing.is_none();
            if state.drained_at.is_some() && state.running.is_empty() && all_said {
                return End::Done;
            }
            let too_slow = state.partial.map(|since| after(since, settings.frame_timeout));
            if too_slow.is_some_and(|due| now >= due) {
                return End::Refused(WireError::Slow);
            }
            let unread = state.writing.map(|since| after(since, settings.frame_timeout));
            if unread.is_some_and(|due| now >= due) {
                return End::Lost;
            }
            let mut next = if state.drained_at.is_some() { now + LINGER } else { idle_at };
            for due in [too_slow, unread, state.running.earliest()].into_iter().flatten() {
                next = next.min(due);
            }
            state.next_look = next.max(now + SWEEP);
            state.next_look
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = connection.to_keep.notified() => {}
            changed = phases.changed() => {
                // Nobody is left to drain for.
                if changed.is_err() {
                    return End::Done;
                }
            }
        }
    }
}

impl Connection {
    /// Tells the client, once, that nothing after what it has sent so far will be started.
    fn drain(&self, state: &mut State) {
        if state.drained_at.is_none() {
            let last = state.last_id;
            state.drained_at = Some(last);
            state.outbox.append(|out| encode_frame(out, FrameType::Drain, 0, last, |_| ()));
            self.to_write.notify_one();
        }
    }

    /// Tells the callers of handlers that were dropped.
    fn give_up(&self, state: &mut State, ids: Vec<u64>, kind: Kind, why: &str) {
        let load = self.server.load();
        for id in ids {
            let failure = Failure::new(kind, Fate::HandlerDropped, why);
            state.outbox.append(|out| put_reply(out, id, Err(failure), load, usize::MAX));
            self.to_write.notify_one();
        }
    }
}

fn too_large(max_body: u32) -> Failure {
    Failure::rejected(
        Kind::ResourceExhausted,
        format!("the body is larger than the {max_body} bytes that this server takes"),
    )
}

fn put_reply(out: &mut Vec<u8>, id: u64, outcome: Outcome, load: u32, max_reply: usize) {
    let outcome = outcome.and_then(|response| {
        if response.body.len() > max_reply {
            return Err(Failure::new(
                Kind::ResourceExhausted,
                Fate::Failed,
                "the result is larger than the client takes",
            ));
        }
        Ok(response)
    });
    encode_frame(out, FrameType::Reply, 0, id, |out| match &outcome {
        Ok(response) => {
            let metadata = response.metadata.clone();
            encode_reply(out, &ReplyHead { status: Ok(()), load, metadata }, &response.body);
        }
        Err(failure) => {
            let head = ReplyHead {
                status: Err((failure.kind, failure.execution)),
                load,
                metadata: Metadata::default(),
            };
            let text = &failure.message;
            // Half a character at the end is replaced by whoever reads it.
            let end = text.len().min(MAX_TEXT);
            encode_reply(out, &head, &text.as_bytes()[..end]);
        }
    });
}
