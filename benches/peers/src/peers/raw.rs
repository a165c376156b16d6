//! The limit: many requests at once on one socket, by a loop written for nothing else.
//!
//! Frames are `length, slot, payload`, the first two of 4 bytes. There are no names, deadlines,
//! cancellation, limits or errors. What makes it fast is what `docs/PERFORMANCE.md` lists: callers
//! encode into one buffer under one lock, the writer lets all who are ready append before it writes
//! once, and the server answers everything that one read brought with one write.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::Caller;

const HEADER: usize = 8;
const SMALL: usize = 4 * 1024;
const LARGE: usize = 128 * 1024;

/// Answers 16 bytes that start with anything but 7 with the sum of two numbers, others with
/// themselves.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut incoming = Incoming::default();
    let mut out = Vec::new();
    loop {
        if incoming.read(&mut stream).await? == 0 {
            return Ok(());
        }
        incoming.take(|slot, payload| {
            if payload.len() == 16 && payload[0] != 7 {
                let sum = number(payload, 0) + number(payload, 8);
                put_frame(&mut out, slot, &[&sum.to_be_bytes()]);
            } else {
                put_frame(&mut out, slot, &[payload]);
            }
        });
        stream.write_all(&out).await?;
        out.clear();
    }
}

#[derive(Clone)]
pub struct Raw(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    to_write: Notify,
}

#[derive(Default)]
struct State {
    out: Vec<u8>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
    /// The writer was woken, or runs.
    writing: bool,
}

#[derive(Default)]
enum Slot {
    #[default]
    Free,
    Waiting(Waker),
    Done(Answer),
}

#[derive(Clone, Copy)]
enum Answer {
    Number(i64),
    Length(usize),
}

pub async fn connect(server: SocketAddr) -> io::Result<Raw> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let (from, to) = stream.into_split();
    let shared = Arc::new(Shared { state: Mutex::default(), to_write: Notify::new() });
    tokio::spawn(write(Arc::clone(&shared), to));
    tokio::spawn(read(Arc::clone(&shared), from));
    Ok(Raw(shared))
}

async fn write(shared: Arc<Shared>, mut to: OwnedWriteHalf) -> io::Result<()> {
    let mut batch = Vec::new();
    loop {
        let many = {
            let mut state = shared.state.lock();
            state.writing = !state.out.is_empty();
            state.writing.then_some(state.in_flight > 1)
        };
        let Some(many) = many else {
            shared.to_write.notified().await;
            continue;
        };
        if many {
            tokio::task::yield_now().await;
        }
        std::mem::swap(&mut shared.state.lock().out, &mut batch);
        to.write_all(&batch).await?;
        batch.clear();
    }
}

async fn read(shared: Arc<Shared>, mut from: OwnedReadHalf) -> io::Result<()> {
    let mut incoming = Incoming::default();
    let mut wakers = Vec::new();
    loop {
        if incoming.read(&mut from).await? == 0 {
            return Ok(());
        }
        let mut state = shared.state.lock();
        incoming.take(|slot, payload| {
            let answer = match payload.len() {
                8 => Answer::Number(number(payload, 0)),
                // What any user would be given: a copy of their own.
                len => Answer::Length(std::hint::black_box(payload.to_vec()).len().min(len)),
            };
            let slot = &mut state.slots[slot as usize];
            if let Slot::Waiting(waker) = std::mem::replace(slot, Slot::Done(answer)) {
                wakers.push(waker);
            }
        });
        drop(state);
        wakers.drain(..).for_each(Waker::wake);
    }
}

impl Raw {
    async fn call(&self, payload: &[&[u8]]) -> Answer {
        let mut sent = None;
        poll_fn(|cx| {
            let mut state = self.0.state.lock();
            if let Some(slot) = sent {
                let at = slot as usize;
                if let Slot::Done(answer) = state.slots[at] {
                    state.slots[at] = Slot::Free;
                    state.free.push(slot);
                    state.in_flight -= 1;
                    return Poll::Ready(answer);
                }
                state.slots[at] = Slot::Waiting(cx.waker().clone());
                return Poll::Pending;
            }
            let slot = state.free.pop().unwrap_or_else(|| {
                state.slots.push(Slot::Free);
                state.slots.len() as u32 - 1
            });
            sent = Some(slot);
            state.slots[slot as usize] = Slot::Waiting(cx.waker().clone());
            state.in_flight += 1;
            put_frame(&mut state.out, slot, payload);
            let wake = !std::mem::replace(&mut state.writing, true);
            drop(state);
            if wake {
                self.0.to_write.notify_one();
            }
            Poll::Pending
        })
        .await
    }
}

impl Caller for Raw {
    async fn sum(&self, a: i64, b: i64) -> i64 {
        match self.call(&[&a.to_be_bytes(), &b.to_be_bytes()]).await {
            Answer::Number(sum) => sum,
            Answer::Length(_) => unreachable!("a sum has 8 bytes"),
        }
    }

    async fn echo(&self, body: &Bytes) -> usize {
        match self.call(&[body]).await {
            Answer::Length(len) => len,
            Answer::Number(_) => unreachable!("no body here has 8 bytes"),
        }
    }
}

/// What was read and not yet taken. Its room grows while reads fill it.
struct Incoming {
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { buffer: vec![0; SMALL], filled: 0, taken: 0 }
    }
}

impl Incoming {
    async fn read(&mut self, from: &mut (impl AsyncReadExt + Unpin)) -> io::Result<usize> {
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
        } else if self.taken > 0 {
            self.buffer.copy_within(self.taken..self.filled, 0);
            (self.taken, self.filled) = (0, self.filled - self.taken);
        }
        if self.filled == self.buffer.len() {
            self.buffer.resize((self.filled * 4).clamp(SMALL, 4 * LARGE), 0);
        }
        let bytes = from.read(&mut self.buffer[self.filled..]).await?;
        self.filled += bytes;
        if self.filled == self.buffer.len() && self.filled < LARGE {
            self.buffer.resize(self.filled * 4, 0);
        }
        Ok(bytes)
    }

    fn take(&mut self, mut each: impl FnMut(u32, &[u8])) {
        while let Some(header) = self.buffer[self.taken..self.filled].first_chunk::<HEADER>() {
            let [len, slot] =
                [0, 4].map(|at| u32::from_be_bytes(header[at..at + 4].try_into().expect("four")));
            let start = self.taken + HEADER;
            let end = start + len as usize;
            if end > self.filled {
                return;
            }
            each(slot, &self.buffer[start..end]);
            self.taken = end;
        }
    }
}

fn put_frame(out: &mut Vec<u8>, slot: u32, payload: &[&[u8]]) {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&(len as u32).to_be_bytes());
    out.extend_from_slice(&slot.to_be_bytes());
    payload.iter().for_each(|part| out.extend_from_slice(part));
}

fn number(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
