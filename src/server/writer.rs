//! Writes what waits in the outbox, in batches.

use std::future::poll_fn;
use std::io;

use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::time::Instant;

use super::session::{End, Session};
use crate::call::after;
use crate::protocol::Batch;
use crate::transport::{Stream, write_some};

/// What a write buffer keeps for the next batch.
const KEPT: usize = 256 * 1024;

/// The loop that writes, in batches.
pub(super) struct Writer {
    pub(super) to: WriteHalf<Stream>,
    pub(super) batch: Batch,
}

impl Writer {
    pub(super) async fn run(&mut self, session: &Session) -> End {
        loop {
            poll_fn(|cx| session.state.lock().poll_filled(cx)).await;
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
            while !self.batch.is_empty() {
                // Only a client that does not read at once has to be looked after.
                let waits = || {
                    let state = session.state.lock();
                    let limit = session.server.settings.frame_timeout;
                    session.look_by(&state, after(Instant::now(), limit));
                };
                let written = write_some(&mut self.to, &mut self.batch, waits).await?;
                if !self.batch.is_empty() {
                    let now = Instant::now();
                    let mut state = session.state.lock();
                    state.writing = Some(now);
                    state.unwritten = self.batch.len();
                    state.count_taken(written, now);
                    state.recount();
                    drop(state);
                    session.to_read.notify_waiters();
                }
            }
            self.to.flush().await?;
            self.batch.shrink(KEPT);
            let mut state = session.state.lock();
            state.outbox.take(&mut self.batch);
            state.writing = (!self.batch.is_empty()).then(Instant::now);
            state.unwritten = self.batch.len();
            if let Some(now) = state.writing {
                (state.taken, state.taken_at) = (0, now);
            }
            state.recount();
            if self.batch.is_empty() && state.drained_at.is_some() {
                session.to_keep.notify_one();
            }
            drop(state);
            // Also of the last write: one that took all at once is told nowhere else.
            session.to_read.notify_waiters();
            if self.batch.is_empty() {
                return Ok(());
            }
        }
    }
}
