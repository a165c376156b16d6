//! Whether a handler blocks its thread on a call of its own.

use std::cell::Cell;
use std::ptr;
use std::task::Waker;

thread_local! {
    /// The task whose poll is watched on this thread, by its waker's data; null: none is.
    static WATCHED: Cell<*const ()> = const { Cell::new(ptr::null()) };
    /// Whether that poll began a call for which another waker waits.
    static HAS_BLOCKED: Cell<bool> = const { Cell::new(false) };
}

/// Runs one poll of a handler by its task, which its waker's data names. Returns also whether something
/// other than that task waits for a call of the poll: `block_on`, which holds the thread.
pub(crate) fn watch_calls<T>(task: *const (), poll: impl FnOnce() -> T) -> (T, bool) {
    struct Outer(*const (), bool);
    impl Drop for Outer {
        fn drop(&mut self) {
            WATCHED.set(self.0);
            HAS_BLOCKED.set(self.1);
        }
    }
    let _outer = Outer(WATCHED.replace(task), HAS_BLOCKED.replace(false));
    let polled = poll();
    (polled, HAS_BLOCKED.get())
}

/// A call is polled for the first time, with this waker.
#[inline]
pub(crate) fn call_begins(waker: &Waker) {
    let watched = WATCHED.get();
    if !watched.is_null() && watched != waker.data() {
        HAS_BLOCKED.set(true);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    struct Nothing;

    impl Wake for Nothing {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn a_call_that_another_waker_waits_for_blocks() {
        let task = Waker::from(Arc::new(Nothing));
        assert!(watch_calls(task.data(), || call_begins(Waker::noop())).1);
        assert!(!watch_calls(task.data(), || call_begins(&task)).1, "its own task waits");
        assert!(!watch_calls(task.data(), || ()).1);
        call_begins(Waker::noop());
        assert!(!watch_calls(task.data(), || ()).1, "nothing was watched");
    }
}
