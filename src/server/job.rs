//! A call whose handler did not end at once: its task, its place, its share of the load.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use tokio::time::Instant;

use super::context::Response;
use super::handler::{Failure, Guarded, Outcome};
use super::reply::put_reply;
use super::session::{Session, State};
use super::shared::Shared;
use crate::error::{Fate, Kind};

/// A call whose handler did not end at once.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) handler: Guarded,
    pub(super) ticket: Ticket,
    pub(super) deadline: Instant,
    /// The handler's start is answer enough.
    pub(super) notify: bool,
    /// The caller waits: it has no acknowledgement yet.
    pub(super) awaited: bool,
    pub(super) max_reply: usize,
}

impl Session {
    /// Gives a call a task of its own, which the table can end.
    pub(super) fn spawn(self: &Arc<Self>, job: Job) {
        let Job { id, mut handler, ticket, deadline, notify, awaited, max_reply } = job;
        let bytes = ticket.bytes;
        {
            let mut state = self.state.lock();
            state.running.insert(id, deadline, bytes, awaited);
            self.look_by(&state, deadline);
        }
        let place = Place { session: Arc::clone(self), id, _ticket: ticket };
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
}

/// A running call's place in the table, given back when its handler has ended or was dropped.
struct Place {
    session: Arc<Session>,
    id: u64,
    _ticket: Ticket,
}

impl Place {
    /// Answers, if somebody waits. A client that does not read its replies has room for a window
    /// of them in the outbox and for another that waits before it; the rest is dropped.
    async fn end(self, outcome: Outcome, max_reply: usize) {
        let session = Arc::clone(&self.session);
        let bytes = outcome.as_ref().map_or(0, |response| response.body.len());
        let limit = session.outbox_limit();
        let waits = {
            let mut state = session.state.lock();
            if state.waiting() <= limit {
                return self.answer(&mut state, outcome, max_reply);
            }
            if state.held + bytes > limit {
                let why = "the result was dropped: the client does not read its replies";
                let failure = Failure::new(Kind::ResourceExhausted, Fate::Failed, why);
                return self.answer(&mut state, Err(failure), max_reply);
            }
            state.held += bytes;
            Held { session: Arc::clone(&session), bytes }
        };
        loop {
            session.room().await;
            let mut state = session.state.lock();
            if state.waiting() <= limit {
                self.answer(&mut state, outcome, max_reply);
                break;
            }
        }
        drop(waits);
    }

    fn answer(&self, state: &mut State, outcome: Outcome, max_reply: usize) {
        if state.running.end(self.id) {
            let load = self.session.server.load();
            state.outbox.append(|out| put_reply(out, self.id, outcome, load, max_reply));
            self.session.to_write.notify_one();
        }
    }

    /// Tells the caller that the handler has started.
    fn acknowledge(&self) {
        let mut state = self.session.state.lock();
        if state.running.acknowledged(self.id) {
            let (load, done) = (self.session.server.load(), Ok(Response::default()));
            state.outbox.append(|out| put_reply(out, self.id, done, load, usize::MAX));
            self.session.to_write.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.session.state.lock();
        // Still awaited only if the handler's task ended without an answer.
        let why = "the handler's task ended";
        let failure = Failure::new(Kind::Internal, Fate::HandlerDropped, why);
        self.answer(&mut state, Err(failure), usize::MAX);
        state.busy = Instant::now();
        if state.drained_at.is_some() {
            self.session.to_keep.notify_one();
        }
    }
}

/// A reply's share of what waits for room in the outbox.
struct Held {
    session: Arc<Session>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.session.state.lock().held -= self.bytes;
    }
}

/// A call's share of the server's load.
pub(super) struct Ticket {
    server: Arc<Shared>,
    bytes: usize,
}

impl Ticket {
    pub(super) fn new(server: &Arc<Shared>, bytes: usize) -> Self {
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
