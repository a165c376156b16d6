//! The table of a connection's handlers at work: no sockets, no clock.

use std::collections::HashMap;

use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The handlers at work for one connection.
#[derive(Debug, Default)]
pub(super) struct Running {
    calls: HashMap<u64, Call>,
    /// Those for whose answers somebody waits, and the bytes of their bodies: the window, as the
    /// client counts it.
    awaited: usize,
    awaited_bytes: usize,
    /// Bytes of the bodies of all.
    bytes: usize,
}

/// Whether a call fits into a connection's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// Too many calls are in flight.
    NoCalls,
    /// Their bodies are too large together.
    NoBytes,
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
        if awaited {
            self.awaited += 1;
            self.awaited_bytes += bytes;
        }
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
        let Some(mut call) = self.calls.remove(&id) else { return false };
        self.bytes -= call.bytes;
        let released = call.release();
        self.settle(released);
        released.is_some()
    }

    /// Drops the handler of a call whose caller left. An unknown id is a call that has ended.
    pub(super) fn cancel(&mut self, id: u64) {
        let released = self.calls.get_mut(&id).and_then(Call::give_up);
        self.settle(released);
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

    /// Whether a call with a body of `bytes` fits in. Those whose handlers are being dropped have
    /// a window of their own: their callers count on their places already.
    pub(super) fn room(&self, calls: usize, window: usize, bytes: usize) -> Room {
        if self.awaited >= calls || self.calls.len() >= 2 * calls {
            return Room::NoCalls;
        }
        // A body larger than the window goes alone.
        let fits = |held: usize, window: usize| held == 0 || held + bytes <= window;
        match fits(self.awaited_bytes, window) && fits(self.bytes, 2 * window) {
            true => Room::Enough,
            false => Room::NoBytes,
        }
    }

    /// Its caller has all it waits for; the handler works on.
    pub(super) fn acknowledged(&mut self, id: u64) -> bool {
        let released = self.calls.get_mut(&id).and_then(Call::release);
        self.settle(released);
        released.is_some()
    }

    /// The bytes of the bodies of all.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    fn drop_those(&mut self, which: impl Fn(&Call) -> bool) -> Vec<u64> {
        let mut ids = Vec::new();
        for (id, call) in &mut self.calls {
            if !call.dropped
                && which(call)
                && let Some(bytes) = call.give_up()
            {
                ids.push(*id);
                self.awaited -= 1;
                self.awaited_bytes -= bytes;
            }
        }
        ids
    }

    /// Takes a call out of the window that holds this many bytes of it.
    fn settle(&mut self, released: Option<usize>) {
        if let Some(bytes) = released {
            self.awaited -= 1;
            self.awaited_bytes -= bytes;
        }
    }
}

impl Call {
    /// Nobody waits any more: what it held of the window, if somebody did.
    fn release(&mut self) -> Option<usize> {
        std::mem::take(&mut self.awaited).then_some(self.bytes)
    }

    fn give_up(&mut self) -> Option<usize> {
        self.dropped = true;
        if let Some(task) = &self.task {
            task.abort();
        }
        self.release()
    }
}
