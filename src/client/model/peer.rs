//! The socket of the model and the server behind it: it records what it is handed, and checks it.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::call::Metadata;
use crate::protocol::{
    Frame, FrameType, Next, ReplyHead, decode_call, encode_frame, encode_reply, next_frame,
};

/// The body of a call that is not answered: its caller is expected to leave.
pub(super) const LEFT: &str = "left";

/// What the server does with calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    Nothing,
    /// Each call's body, as its reply.
    Echo,
    /// The same, and before it the reply before once more: it has come to nobody's slot, or to
    /// another call's.
    EchoTwice,
    /// The first call's body, and that no other will be started.
    EchoAndDrain,
}

/// The socket of the model and the server behind it. Clones are the same one.
///
/// Its own lock is one that loom does not see: whatever happens within one read or write is one
/// step of the model.
#[derive(Clone)]
pub(super) struct Peer(Arc<Mutex<Inner>>);

struct Inner {
    answers: Answers,
    /// The most calls that the server takes at once.
    window: usize,
    /// How many bytes it takes in one write.
    chunk: usize,
    /// How many bytes it takes at all.
    room: usize,
    taken: Vec<u8>,
    /// How much of that was read as frames.
    read: usize,
    last_id: u64,
    live: BTreeSet<u64>,
    /// The bodies of the calls that came whole, in order.
    bodies: Vec<Vec<u8>>,
    last_reply: Option<(u64, Vec<u8>)>,
    cancelled: usize,
    to_client: Vec<u8>,
    hung_up: bool,
    reader: Option<Waker>,
}

impl Peer {
    pub(super) fn new(answers: Answers, window: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            answers,
            window,
            chunk: usize::MAX,
            room: usize::MAX,
            taken: Vec::new(),
            read: 0,
            last_id: 0,
            live: BTreeSet::new(),
            bodies: Vec::new(),
            last_reply: None,
            cancelled: 0,
            to_client: Vec::new(),
            hung_up: false,
            reader: None,
        })))
    }

    /// Takes so many bytes at once, and fails after so many in all.
    pub(super) fn takes(self, chunk: usize, room: usize) -> Self {
        self.with(|inner| (inner.chunk, inner.room) = (chunk, room));
        self
    }

    /// Whether a call with this body was handed to the socket from its first byte to its last.
    pub(super) fn has(&self, body: &str) -> bool {
        self.with(|inner| inner.bodies.iter().any(|have| have == body.as_bytes()))
    }

    /// How many calls the client has taken back by a cancel.
    pub(super) fn cancelled(&self) -> usize {
        self.with(|inner| inner.cancelled)
    }

    /// Closes the connection.
    pub(super) fn hang_up(&self) {
        let reader = self.with(|inner| {
            inner.hung_up = true;
            inner.reader.take()
        });
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    fn take(&mut self, bytes: &[u8]) {
        self.taken.extend_from_slice(bytes);
        let taken = std::mem::take(&mut self.taken);
        loop {
            match next_frame(&taken[self.read..], u32::MAX).unwrap() {
                Next::Frame(frame, whole) => {
                    self.frame(frame);
                    self.read += whole;
                }
                Next::Skip(_, whole) if self.read + whole <= taken.len() => self.read += whole,
                Next::Skip(..) | Next::More(_) => break,
            }
        }
        self.taken = taken;
    }

    fn frame(&mut self, Frame { header, payload }: Frame<'_>) {
        let id = header.id;
        match header.frame {
            FrameType::Call => {
                assert!(id > self.last_id, "ids rise in the order of the wire");
                self.last_id = id;
                self.live.insert(id);
                assert!(self.live.len() <= self.window, "more calls than the window allows");
                let (_, body) = decode_call(payload).unwrap();
                self.bodies.push(body.to_vec());
                self.answer(id, body);
            }
            FrameType::Cancel => {
                self.cancelled += 1;
                self.live.remove(&id);
            }
            other => panic!("a client sends no {other:?}"),
        }
    }

    fn answer(&mut self, id: u64, body: &[u8]) {
        if body == LEFT.as_bytes() {
            return;
        }
        let first = self.bodies.len() == 1;
        match self.answers {
            Answers::Nothing => {}
            Answers::Echo => self.reply(id, body),
            Answers::EchoTwice => {
                if let Some((id, body)) = self.last_reply.take() {
                    self.reply(id, &body);
                }
                self.reply(id, body);
            }
            Answers::EchoAndDrain if first => {
                self.reply(id, body);
                encode_frame(&mut self.to_client, FrameType::Drain, 0, id, |_| ());
            }
            Answers::EchoAndDrain => {}
        }
    }

    fn reply(&mut self, id: u64, body: &[u8]) {
        self.live.remove(&id);
        self.last_reply = Some((id, body.to_vec()));
        let head = ReplyHead { status: Ok(()), load: 0, metadata: Metadata::default() };
        encode_frame(&mut self.to_client, FrameType::Reply, 0, id, |out| {
            encode_reply(out, &head, body);
        });
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|inner| {
            if inner.to_client.is_empty() && !inner.hung_up {
                inner.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let bytes = inner.to_client.len().min(buffer.remaining());
            buffer.put_slice(&inner.to_client[..bytes]);
            inner.to_client.drain(..bytes);
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let (taken, reader) = self.with(|inner| {
            let taken = bytes.len().min(inner.chunk).min(inner.room);
            inner.room -= taken;
            inner.take(&bytes[..taken]);
            let answered = !inner.to_client.is_empty();
            (taken, if answered { inner.reader.take() } else { None })
        });
        if let Some(reader) = reader {
            reader.wake();
        }
        match taken {
            0 => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            taken => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
