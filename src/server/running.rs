//! The table of a connection's handlers at work: no sockets, no clock.

use std::collections::HashMap;

use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The handlers at work for one connection.
#[derive(Debug, Default)]
pub(super) struct Running {
    calls: HashMap<u64, Call>,
    /// Bytes of bodies that those calls hold.
    bytes: usize,
}

#[derive(Debug)]
struct Call {
    task: AbortHandle,
    deadline: Instant,
    bytes: usize,
    /// Nobody waits for its answer: it was cancelled, or dropped at its deadline. It holds its
    /// place until its handler has ended.
    abandoned: bool,
}

impl Running {
    /// Takes a call in whose handler runs as `task`.
    pub(super) fn insert(&mut self, id: u64, task: AbortHandle, deadline: Instant, bytes: usize) {
        self.bytes += bytes;
        self.calls.insert(id, Call { task, deadline, bytes, abandoned: false });
    }

    /// Ends a call; whether somebody waits for its answer, or `None` if it has ended before.
    pub(super) fn end(&mut self, id: u64) -> Option<(bool, usize)> {
        let call = self.calls.remove(&id)?;
        self.bytes -= call.bytes;
        Some((!call.abandoned, call.bytes))
    }

    /// Drops the handler of a call whose caller left. An unknown id is a call that has ended.
    pub(super) fn cancel(&mut self, id: u64) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.abandoned = true;
            call.task.abort();
        }
    }

    /// Drops the handlers of all calls whose deadlines have come; their ids.
    pub(super) fn drop_overdue(&mut self, now: Instant) -> Vec<u64> {
        self.abandon(|call| call.deadline <= now)
    }

    /// Drops all handlers; the ids of those for whose answers somebody waits.
    pub(super) fn drop_all(&mut self) -> Vec<u64> {
        self.abandon(|_| true)
    }

    /// The earliest deadline of a call that somebody waits for.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.calls.values().filter(|call| !call.abandoned).map(|call| call.deadline).min()
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn abandon(&mut self, which: impl Fn(&Call) -> bool) -> Vec<u64> {
        let mut ids = Vec::new();
        for (id, call) in &mut self.calls {
            if !call.abandoned && which(call) {
                call.abandoned = true;
                call.task.abort();
                ids.push(*id);
            }
        }
        ids
    }
}
