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
    /// `None` until the handler's task was started.
    task: Option<AbortHandle>,
    deadline: Instant,
    bytes: usize,
    /// Somebody waits for its answer: it was neither acknowledged before nor given up.
    awaited: bool,
    /// Its handler is being dropped. It holds its place until that is done.
    dropped: bool,
}

impl Running {
    /// Takes a call in, before its handler's task is started.
    pub(super) fn insert(&mut self, id: u64, deadline: Instant, bytes: usize, awaited: bool) {
        self.bytes += bytes;
        self.calls.insert(id, Call { task: None, deadline, bytes, awaited, dropped: false });
    }

    /// Names the task of a call's handler; one that was given up meanwhile is ended.
    pub(super) fn started(&mut self, id: u64, task: AbortHandle) {
        if let Some(call) = self.calls.get_mut(&id) {
            if call.dropped {
                task.abort();
            }
            call.task = Some(task);
        }
    }

    /// Ends a call; whether somebody waits for its answer. One that has ended before is not waited
    /// for.
    pub(super) fn end(&mut self, id: u64) -> bool {
        let Some(call) = self.calls.remove(&id) else { return false };
        self.bytes -= call.bytes;
        call.awaited
    }

    /// Drops the handler of a call whose caller left. An unknown id is a call that has ended.
    pub(super) fn cancel(&mut self, id: u64) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.give_up();
        }
    }

    /// Drops the handlers of all calls whose deadlines have come; the ids of those for whose
    /// answers somebody waits.
    pub(super) fn drop_overdue(&mut self, now: Instant) -> Vec<u64> {
        self.drop_those(|call| call.deadline <= now)
    }

    /// Drops all handlers; the ids of those for whose answers somebody waits.
    pub(super) fn drop_all(&mut self) -> Vec<u64> {
        self.drop_those(|_| true)
    }

    /// The earliest deadline of a handler at work.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.calls.values().filter(|call| !call.dropped).map(|call| call.deadline).min()
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

    fn drop_those(&mut self, which: impl Fn(&Call) -> bool) -> Vec<u64> {
        let mut ids = Vec::new();
        for (id, call) in &mut self.calls {
            if !call.dropped && which(call) {
                if call.awaited {
                    ids.push(*id);
                }
                call.give_up();
            }
        }
        ids
    }
}

impl Call {
    fn give_up(&mut self) {
        self.awaited = false;
        self.dropped = true;
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
