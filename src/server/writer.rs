//! Writes what waits in the outbox, in batches.

use std::io;

use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::time::Instant;

use super::session::{End, Session};
use crate::call::after;
use crate::transport::Stream;

/// What a write buffer keeps for the next batch.
const KEPT: usize = 256 * 1024;

/// The loop that writes, in batches.
pub(super) struct Writer {
    pub(super) to: WriteHalf<Stream>,
    pub(super) batch: Vec<u8>,
    /// How much of the batch the socket has taken.
    pub(super) done: usize,
}

impl Writer {
    pub(super) async fn run(&mut self, session: &Session) -> End {
        loop {
            session.to_write.notified().await;
            // Handlers that are ready to answer get their turn first, so that one write carries
            // all of their replies.
            if session.state.lock().running.len() > 1 {
                tokio::task::yield_now().await;
            }
            if self.flush(session).await.is_err() {
                return End::Lost;
            }
        }
    }

    /// Writes until nothing waits. Dropping the future loses nothing: the next call goes on.
    pub(super) async fn flush(&mut self, session: &Session) -> io::Result<()> {
        loop {
            while self.done < self.batch.len() {
                let written = self.to.write(&self.batch[self.done..]).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.done += written;
                if self.done < self.batch.len() {
                    let mut state = session.state.lock();
                    state.writing = Some(Instant::now());
                    state.unwritten = self.batch.len() - self.done;
                    drop(state);
                    session.to_read.notify_waiters();
                }
            }
            self.to.flush().await?;
            self.done = 0;
            if self.batch.capacity() > KEPT {
                self.batch = Vec::new();
            }
            let mut state = session.state.lock();
            state.outbox.take(&mut self.batch);
            let now = Instant::now();
            state.writing = (!self.batch.is_empty()).then_some(now);
            state.unwritten = self.batch.len();
            if !self.batch.is_empty() {
                session.look_by(&state, after(now, session.server.settings.frame_timeout));
            }
            if self.batch.is_empty() {
                if state.drained_at.is_some() {
                    session.to_keep.notify_one();
                }
                return Ok(());
            }
            drop(state);
            session.to_read.notify_waiters();
        }
    }
}
