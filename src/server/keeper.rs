//! Looks after a connection's deadlines, slow frames, idleness and drain.

use std::task::Waker;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::handler::Failure;
use super::reply::send_reply;
use super::session::{End, Eviction, Session, State};
use super::shared::Phase;
use crate::call::after;
use crate::error::{Fate, Kind};
use crate::protocol::{FrameType, WireError, encode_frame};
use crate::sync::wake_all;

/// How long a connection that ends waits for its peer to have read everything.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// The least time between two looks at deadlines.
const SWEEP: Duration = Duration::from_millis(10);

/// Looks after deadlines, slow frames, idleness and drain.
pub(super) async fn keep(session: &Session, phases: &mut watch::Receiver<Phase>) -> End {
    let settings = &session.server.settings;
    loop {
        let now = Instant::now();
        let phase = *phases.borrow_and_update();
        // Declared before the guard: where this returns, it is dropped after it.
        let mut wakers = Vec::new();
        let next = {
            let mut state = session.state.lock();
            let overdue = state.running.drop_overdue(now);
            let why = "the handler was dropped at its deadline";
            session.give_up(&mut state, overdue, Kind::DeadlineExceeded, why, &mut wakers);
            let idle_at = after(state.busy, settings.idle_timeout);
            if phase != Phase::Serving || (state.running.is_empty() && now >= idle_at) {
                session.drain(&mut state, &mut wakers);
            }
            if phase == Phase::Cut {
                let all = state.running.drop_all();
                let why = "the server stopped before the handler ended";
                session.give_up(&mut state, all, Kind::Unavailable, why, &mut wakers);
                return End::Done;
            }
            if let Some(eviction) = state.eviction {
                session.drain(&mut state, &mut wakers);
                if eviction == Eviction::ForMemory {
                    let all = state.running.drop_all();
                    let why = "the connection was closed: it held memory and made no progress";
                    session.give_up(&mut state, all, Kind::Unavailable, why, &mut wakers);
                    return End::Stuck;
                }
                if state.running.is_empty() {
                    return End::Evicted;
                }
            }
            let all_said = state.outbox.is_empty() && state.writing.is_none();
            if state.drained_at.is_some() && state.running.is_empty() && all_said {
                return End::Done;
            }
            let too_slow = state.partial.map(|since| after(since, settings.frame_timeout));
            if too_slow.is_some_and(|due| now >= due) {
                return End::Refused(WireError::Slow);
            }
            let unread = state.writing.map(|since| after(since, settings.frame_timeout));
            if unread.is_some_and(|due| now >= due) {
                return End::Lost;
            }
            let mut next = match state.drained_at {
                Some(_) => now + LINGER,
                None if state.running.is_empty() => idle_at,
                // It is not idle as long as this runs.
                None => after(now, settings.idle_timeout),
            };
            // Never later than a frame may take: so no start of one has to wake this.
            next = next.min(after(now, settings.frame_timeout));
            for due in [too_slow, unread, state.running.earliest()].into_iter().flatten() {
                next = next.min(due);
            }
            state.next_look = next.max(now + SWEEP);
            state.next_look
        };
        wake_all(wakers);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = session.to_keep.notified() => {}
            changed = phases.changed() => {
                // Nobody is left to drain for.
                if changed.is_err() {
                    return End::Done;
                }
            }
        }
    }
}

impl Session {
    /// Tells the client, once, that nothing after what it has sent so far will be started.
    fn drain(&self, state: &mut State, wakers: &mut Vec<Waker>) {
        if state.drained_at.is_none() {
            let last = state.last_id;
            state.drained_at = Some(last);
            state.outbox.append(|out| encode_frame(out, FrameType::Drain, 0, last, |_| ()));
            wakers.extend(state.writer.take());
        }
    }

    /// Tells the callers of handlers that were dropped.
    fn give_up(
        &self,
        state: &mut State,
        ids: Vec<u64>,
        kind: Kind,
        why: &str,
        wakers: &mut Vec<Waker>,
    ) {
        let load = self.server.load();
        for id in ids {
            let failure = Err(Failure::new(kind, Fate::HandlerDropped, why));
            send_reply(&mut state.outbox, id, &failure, load, usize::MAX);
            wakers.extend(state.writer.take());
        }
    }
}
