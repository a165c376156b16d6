//! The one task of a connection: it reads replies, writes calls in batches, and keeps watch.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::io::{AsyncWriteExt, WriteHalf};

use super::keeper::keep;
use super::replies::read;
use super::shared::{Shared, Writer};
use crate::protocol::{Batch, FrameReader};
use crate::sync::{event, wake};
use crate::transport::{Stream, write_some};

/// What a write buffer keeps for the next batch.
const KEPT: usize = 256 * 1024;
/// How often the writer lets others go first, as long as they append. The runtime gives a task that lets
/// others go first its turn again after some sixty of them, which may be before a batch is large.
const TURNS: u32 = 4;

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
    event!(
        DEBUG,
        endpoint = shared.endpoint.as_ref().map(|e| e.instance().address.as_str()),
        why,
        "connection ended"
    );
    shared.ended_by_peer();
    shared.close(&why, Writer::Ended);
}

/// However the driver ends, by a panic or with its runtime too, nobody waits for it any longer.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.close("its task ended", Writer::Ended);
    }
}

pub(super) async fn write(shared: &Shared, mut to: WriteHalf<Stream>) -> String {
    let mut batch = Batch::default();
    loop {
        poll_fn(|cx| shared.state.lock().poll_filled(cx)).await;
        loop {
            let_others_append(shared).await;
            let next = {
                let mut state = shared.state.lock();
                state.outbox.take(&mut batch);
                state.impatient = None;
                state.batching.taken();
                state.next_in_line()
            };
            if let Some(next) = next {
                wake(next);
            }
            if batch.is_empty() {
                break;
            }
            while !batch.is_empty() {
                match write_some(&mut to, &mut batch, || ()).await {
                    Ok(written) => shared.written.fetch_add(written as u64, Relaxed),
                    Err(error) => return error.to_string(),
                };
            }
            // A transport may buffer (TLS): what was taken must also leave.
            if let Err(error) = to.flush().await {
                return error.to_string();
            }
            batch.shrink(KEPT);
        }
    }
}

/// With more than one call in flight others are probably ready to append: they get their turn first, so
/// that one write carries all of them.
async fn let_others_append(shared: &Shared) {
    let mut before = {
        let state = shared.state.lock();
        if state.calls.len() <= 1 {
            return;
        }
        state.batching.count()
    };
    for _ in 0..TURNS {
        let mut turn = pin!(tokio::task::yield_now());
        poll_fn(|cx| {
            shared.state.lock().impatient = Some(cx.waker().clone());
            turn.as_mut().poll(cx)
        })
        .await;
        let state = shared.state.lock();
        let appended = state.batching.count();
        if appended == before || state.batching.is_large(&state.outbox) {
            return;
        }
        before = appended;
    }
}
