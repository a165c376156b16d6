//! Writes a batch of frames, as much of it as the stream takes.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;

use tokio::io::AsyncWrite;

use crate::protocol::Batch;

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
