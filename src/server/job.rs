//! A call whose handler did not end at once: its task, its place, its share of the load.

use std::future::poll_fn;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Waker;

use tokio::time::Instant;

use super::context::Answered;
use super::handler::{Failure, Guarded, Outcome};
use super::limit::Ended;
use super::reply::{NO_MEMORY_FOR_RESULT, expired, send_reply};
use super::session::{Session, State};
use super::shared::{Entry, Shared};
use crate::error::{Fate, Kind};
use crate::sync::wake_all;

/// A call whose handler did not end at once.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) handler: Guarded,
    pub(super) ticket: Ticket,
    /// The bytes of its body.
    pub(super) bytes: usize,
    pub(super) deadline: Instant,
    /// Its method, if it was not polled yet: its first poll is tried out.
    pub(super) untried: Option<Arc<Entry>>,
    /// The handler's start is answer enough.
    pub(super) notify: bool,
    /// The caller waits: it has no acknowledgement yet.
    pub(super) awaited: bool,
    pub(super) max_reply: usize,
}

impl Session {
    /// Gives a call a task of its own, which the table can end.
    pub(super) fn spawn(self: &Arc<Self>, job: Job) {
        let Job { id, mut handler, ticket, bytes, deadline, untried, notify, awaited, max_reply } =
            job;
        {
            let mut state = self.state.lock();
            state.running.insert(id, deadline, bytes, awaited);
            self.look_by(&state, deadline);
        }
        let place = Place { session: Arc::clone(self), id, bytes, ticket };
        // Not under the lock: a runtime that shuts down drops the future at once, and with it the
        // place, which takes the lock.
        let task = tokio::spawn(async move {
            // A busy runtime may come to it late, and before the keeper does.
            if untried.is_some() && Instant::now() >= deadline {
                return place.end(Err(expired()), max_reply).await;
            }
            let mut untried = untried;
            let outcome = poll_fn(|cx| {
                let Some(entry) = untried.take() else { return Pin::new(&mut handler).poll(cx) };
                let task = cx.waker().data();
                let polled = entry.try_out(task, || Pin::new(&mut handler).poll(cx));
                if notify && polled.is_pending() {
                    place.acknowledge();
                }
                polled
            })
            .await;
            // Its memory is not kept while its result waits to be read.
            drop(handler);
            let outcome = if notify { outcome.map(|_| Answered::default()) } else { outcome };
            place.end(outcome, max_reply).await;
        });
        self.state.lock().running.started(id, task.abort_handle());
    }
}

/// A running call's place in the table, given back when its handler has ended or was dropped.
struct Place {
    session: Arc<Session>,
    id: u64,
    /// The bytes of its body, which is gone when its handler has ended.
    bytes: usize,
    ticket: Ticket,
}

impl Place {
    /// Answers, if somebody waits. A client that does not read its replies has room for a window
    /// of them in the outbox and for another that waits before it, while the server has memory for them; the
    /// rest is dropped.
    async fn end(mut self, outcome: Outcome, max_reply: usize) {
        let session = Arc::clone(&self.session);
        let answered = outcome.is_ok();
        let bytes = outcome.as_ref().map_or(0, |response| response.body.len());
        let limit = session.outbox_limit();
        let waits = {
            let mut state = session.state.lock();
            let fits = state.try_charge_reply(self.bytes, bytes);
            let room = state.waiting() <= limit;
            if room || !fits || state.held + bytes > limit {
                let why = match fits {
                    true => "the result was dropped: the client does not read its replies",
                    false => NO_MEMORY_FOR_RESULT,
                };
                let dropped = || Err(Failure::new(Kind::ResourceExhausted, Fate::Failed, why));
                let writer = match room && fits {
                    true => self.answer(&mut state, &outcome, max_reply),
                    false => self.answer(&mut state, &dropped(), max_reply),
                };
                // Under the lock: who has the answer may count on the place.
                self.ticket.end(answered);
                drop(state);
                wake_all(writer);
                return;
            }
            state.held += bytes;
            state.recount();
            Held { session: Arc::clone(&session), bytes }
        };
        // What waits for its client to read is no work.
        self.ticket.end(answered);
        loop {
            session.room().await;
            let mut state = session.state.lock();
            if state.waiting() <= limit {
                let writer = self.answer(&mut state, &outcome, max_reply);
                drop(state);
                wake_all(writer);
                break;
            }
        }
        drop(waits);
    }

    /// Answers, if somebody waits. The writer is to be woken once the lock is released.
    #[must_use = "the writer is to be woken"]
    fn answer(&self, state: &mut State, outcome: &Outcome, max_reply: usize) -> Option<Waker> {
        let is_awaited = state.running.end(self.id);
        if is_awaited {
            let load = self.session.server.load();
            send_reply(&mut state.outbox, self.id, outcome, load, max_reply);
        }
        state.recount();
        if is_awaited { state.writer.take() } else { None }
    }

    /// Tells the caller that the handler has started.
    fn acknowledge(&self) {
        let (load, done) = (self.session.server.load(), Ok(Answered::default()));
        let mut state = self.session.state.lock();
        if !state.running.acknowledged(self.id) {
            return;
        }
        send_reply(&mut state.outbox, self.id, &done, load, usize::MAX);
        let writer = state.writer.take();
        drop(state);
        wake_all(writer);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let why = "the handler's task ended";
        let failure = Err(Failure::new(Kind::Internal, Fate::HandlerDropped, why));
        let mut state = self.session.state.lock();
        // Still awaited only if the handler's task ended without an answer.
        let writer = self.answer(&mut state, &failure, usize::MAX);
        state.busy = Instant::now();
        let drains = state.drained_at.is_some();
        drop(state);
        wake_all(writer);
        if drains {
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
        let mut state = self.session.state.lock();
        state.held -= self.bytes;
        state.recount();
    }
}

/// A call's share of the server's load. Taken with the server borrowed, for as long as the handler
/// is polled in place; a call that gets a task [holds](Ticket::hold) it.
pub(super) struct Ticket<S: Deref<Target = Shared> = Arc<Shared>> {
    /// `None` once it was handed on.
    server: Option<S>,
    /// The number of its method.
    method: usize,
    deadline: Instant,
    /// When it was read. Its time counts from here: to wait for the calls before it is load too.
    read: Instant,
    /// Its handler has not ended.
    at_work: bool,
}

impl<'a> Ticket<&'a Shared> {
    /// `None`: enough calls are at work.
    pub(super) fn take(
        server: &'a Shared,
        entry: &Entry,
        read: Instant,
        deadline: Instant,
    ) -> Option<Self> {
        let method = entry.number;
        server.limit.enter(read).then(|| Self {
            server: Some(server),
            method,
            deadline,
            read,
            at_work: true,
        })
    }

    /// The same share, for longer.
    pub(super) fn hold(mut self, server: &Arc<Shared>) -> Ticket {
        self.server = None;
        let Self { method, deadline, read, at_work, .. } = self;
        Ticket { server: Some(Arc::clone(server)), method, deadline, read, at_work }
    }
}

impl<S: Deref<Target = Shared>> Ticket<S> {
    /// Its handler has ended. `answered`: with a result.
    pub(super) fn end(&mut self, answered: bool) {
        self.leave(if answered { Ended::Answered } else { Ended::Failed });
    }

    fn leave(&mut self, ended: Ended) {
        if let Some(server) = &self.server
            && std::mem::take(&mut self.at_work)
        {
            server.limit.leave(self.method, self.read, ended);
        }
    }
}

impl<S: Deref<Target = Shared>> Drop for Ticket<S> {
    fn drop(&mut self) {
        if self.server.is_some() && self.at_work {
            // Its handler was dropped.
            let overdue = Instant::now() >= self.deadline;
            self.leave(if overdue { Ended::Overdue } else { Ended::Failed });
        }
    }
}
