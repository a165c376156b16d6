//! How all who want an answer of the source share one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::sync::{Notify, watch};

use crate::discovery::DiscoveryError;

/// The requests to the source, of which one at most is under way.
pub(super) struct Flights {
    /// A watch channel for its lock as well as for its news: between a look at `finished` and the
    /// wish, a request could end unseen.
    state: watch::Sender<State>,
    /// Somebody doubts the list. Set and not yet seen, it wakes nobody again.
    doubted: AtomicBool,
    /// Wakes the task.
    wish: Notify,
}

#[derive(Default)]
struct State {
    wanted: bool,
    finished: u64,
    /// The error that the last one ended with.
    error: Option<Arc<DiscoveryError>>,
}

impl Flights {
    pub(super) fn new() -> Self {
        Self {
            state: watch::Sender::new(State::default()),
            doubted: AtomicBool::new(false),
            wish: Notify::new(),
        }
    }

    /// Wants a request, or joins the one under way, and waits for its end.
    pub(super) async fn join(&self) -> Result<(), Arc<DiscoveryError>> {
        let mut states = self.state.subscribe();
        let mut before = 0;
        self.state.send_if_modified(|state| {
            state.wanted = true;
            before = state.finished;
            false
        });
        self.wish.notify_one();
        let ended = states.wait_for(|state| state.finished > before).await;
        // No state means that the sender is gone, which lives in `self`.
        let error = ended.ok().and_then(|state| state.error.clone());
        error.map_or(Ok(()), Err)
    }

    /// Tells the task that the list may be out of date. Cheap, however often it is called.
    pub(super) fn doubt(&self) {
        if !self.doubted.swap(true, Relaxed) {
            self.wish.notify_one();
        }
    }

    /// For the task: whether somebody has doubted the list since this was asked last.
    pub(super) fn take_doubt(&self) -> bool {
        self.doubted.swap(false, Relaxed)
    }

    /// For the task: waits until a request is wanted. It may be done by then; see
    /// [`is_wanted`](Self::is_wanted).
    pub(super) async fn wished(&self) {
        self.wish.notified().await;
    }

    /// For the task: whether a request is wanted that has not ended since.
    pub(super) fn is_wanted(&self) -> bool {
        self.state.borrow().wanted
    }

    /// For the task: a request ended, and with it everybody's wish.
    pub(super) fn landed(&self, error: Option<Arc<DiscoveryError>>) {
        let mut former = error;
        self.state.send_modify(|state| {
            state.wanted = false;
            state.finished += 1;
            std::mem::swap(&mut state.error, &mut former);
        });
        // Not under the channel's lock: the error's source is the user's.
        drop(former);
    }
}
