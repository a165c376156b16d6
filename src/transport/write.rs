//! How a connection's writer waits for frames and writes them, as many as the stream takes.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::AsyncWrite;

use crate::protocol::{Batch, Outbox};

/// A connection's writer while it waits for something to write. Whoever puts something into the outbox takes it, and
/// wakes it once the lock is released. It lies under the outbox's lock, so that no wake-up is lost.
#[derive(Debug, Default)]
pub(crate) struct IdleWriter(Option<Waker>);

impl IdleWriter {
    /// Takes its waker; `None` if it does not wait.
    pub(crate) fn take(&mut self) -> Option<Waker> {
        self.0.take()
    }

    /// Ready if there is something to write; else `cx` is woken then.
    pub(crate) fn poll(&mut self, outbox: &Outbox, cx: &mut Context<'_>) -> Poll<()> {
        if !outbox.is_empty() {
            return Poll::Ready(());
        }
        match &mut self.0 {
            Some(writer) => writer.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// How many parts of a batch one write takes.
const PARTS: usize = 32;

/// Writes a part of a batch; how many bytes that were, never 0. `waits` is told once if the stream
/// does not take any at once. Dropping the future loses nothing.
pub(crate) async fn write_some<W: AsyncWrite + Unpin>(
    to: &mut W,
    batch: &mut Batch,
    waits: impl FnOnce(),
) -> io::Result<usize> {
    let mut waits = Some(waits);
    let written = poll_fn(|cx| {
        let mut slices = [IoSlice::new(&[]); PARTS];
        let polled = match batch.slices(&mut slices) {
            1 => Pin::new(&mut *to).poll_write(cx, &slices[0]),
            used => Pin::new(&mut *to).poll_write_vectored(cx, &slices[..used]),
        };
        if polled.is_pending()
            && let Some(waits) = waits.take()
        {
            waits();
        }
        polled
    });
    match written.await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => {
            batch.advance(written);
            Ok(written)
        }
    }
}
