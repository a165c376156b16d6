//! Time limits of a connection's sending side: for a peer that takes nothing, and for a lingering close.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::usage::Usage;

/// What a peer must take within the limit: one that takes a byte now and then would hold its answer
/// as one that takes nothing.
const LEAST: usize = 64 * 1024;
/// How long a connection that is closed early goes on reading at most.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of what nobody reads it takes at most meanwhile, in bytes.
const MAX_LINGERED: usize = 4 * 1024 * 1024;

/// Fails a write that makes no progress within a limit: hyper has no such limit of its own, and a
/// peer that reads nothing would hold its answer in memory for ever.
pub(super) struct WriteTimeout<S> {
    inner: S,
    limit: Duration,
    /// Set while a write waits for the peer.
    stalled: Option<Pin<Box<Sleep>>>,
    /// What it has taken since.
    taken: usize,
    usage: Arc<Usage>,
    /// Set once the sending side is closed.
    lingering: Option<Pin<Box<Sleep>>>,
    /// What was read since then.
    lingered: usize,
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(inner: S, limit: Duration, usage: Arc<Usage>) -> Self {
        Self { inner, limit, stalled: None, taken: 0, usage, lingering: None, lingered: 0 }
    }

    fn limited<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn took(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.usage.moved(*bytes);
            self.taken += bytes;
            if self.taken >= LEAST {
                self.nothing_waits();
            }
        }
    }

    fn nothing_waits(&mut self) {
        (self.taken, self.stalled) = (0, None);
    }
}

impl<S: AsyncRead + Unpin> WriteTimeout<S> {
    /// Reads what the peer has sent until it closes: bytes that nobody reads would make TCP reset the
    /// connection, and destroy the answer under way.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let limit = || Box::pin(tokio::time::sleep(LINGER_TIMEOUT));
        if self.lingering.get_or_insert_with(limit).as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf));
            self.lingered += buf.filled().len();
            let is_over = buf.filled().is_empty() || self.lingered > MAX_LINGERED;
            if read.is_err() || is_over {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.took(&written);
        self.limited(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.took(&written);
        self.limited(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        if flushed.is_ready() {
            self.nothing_waits();
            self.usage.flushed();
        }
        self.limited(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let closed = Pin::new(&mut self.inner).poll_shutdown(cx);
            if closed.is_ready() {
                self.nothing_waits();
            }
            ready!(self.limited(cx, closed))?;
        }
        if self.usage.lingers() { self.poll_linger(cx) } else { Poll::Ready(Ok(())) }
    }
}
