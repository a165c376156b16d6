//! Deadline of a call within a stack of tower layers, and what became of the copies that they passed on.

use std::sync::Arc;

use tokio::time::Instant;

use crate::error::Execution;
use crate::sync::Mutex;

/// One call within one stack of layers. The stack, the call and its copies share it.
#[derive(Clone, Debug)]
pub(crate) struct LayerScope(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    deadline: Instant,
    state: Mutex<State>,
}

struct State {
    /// Copies that were passed on and have not ended.
    in_flight: usize,
    /// Strongest class of the copies that have ended.
    strongest: Execution,
    /// The caller was told that the call was not executed: no copy may follow.
    is_closed: bool,
}

impl LayerScope {
    pub(crate) fn new(deadline: Instant) -> Self {
        let state = State { in_flight: 0, strongest: Execution::NotSent, is_closed: false };
        Self(Arc::new(Inner { deadline, state: Mutex::new(state) }))
    }

    /// Deadline of the call and of every copy of it.
    pub(crate) fn deadline(&self) -> Instant {
        self.0.deadline
    }

    /// Counts a copy that the layers pass on now; `None` if the scope is closed.
    pub(crate) fn pass_on(&self) -> Option<PassedOn> {
        let mut state = self.0.state.lock();
        if state.is_closed {
            return None;
        }
        state.in_flight += 1;
        Some(PassedOn(Some(self.clone())))
    }

    /// The layers failed. Returns the strongest class that the call may have: `NotSent` if they never passed it on.
    ///
    /// After `NotSent` and `Rejected`, which are promises, later copies are refused.
    pub(crate) fn close(&self) -> Execution {
        let mut state = self.0.state.lock();
        let class = match state.in_flight {
            0 => state.strongest,
            _ => state.strongest.max(Execution::MaybeExecuted),
        };
        state.is_closed |= class <= Execution::Rejected;
        class
    }
}

/// A copy of a call that its layers passed on. Unless it [failed](Self::failed), it counts as MaybeExecuted.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub(crate) struct PassedOn(Option<LayerScope>);

impl PassedOn {
    /// A call outside of all layers, which nobody counts.
    pub(crate) fn uncounted() -> Self {
        Self(None)
    }

    /// It failed with this class.
    pub(crate) fn failed(&mut self, class: Execution) {
        if let Some(scope) = self.0.take() {
            let mut state = scope.0.state.lock();
            state.in_flight -= 1;
            state.strongest = state.strongest.max(class);
        }
    }
}

impl Drop for PassedOn {
    fn drop(&mut self) {
        self.failed(Execution::MaybeExecuted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> LayerScope {
        LayerScope::new(Instant::now())
    }

    #[test]
    fn nothing_is_passed_on_after_the_call_was_told_as_not_executed() {
        let scope = scope();
        let copy = scope.clone();
        assert_eq!(scope.close(), Execution::NotSent);
        assert!(copy.pass_on().is_none());
        assert_eq!(scope.close(), Execution::NotSent);
    }

    #[test]
    fn the_class_is_the_strongest_of_all_copies() {
        let scope = scope();
        let mut first = scope.pass_on().unwrap();
        let second = scope.pass_on().unwrap();
        assert_eq!(scope.close(), Execution::MaybeExecuted, "two copies are in flight");
        first.failed(Execution::NotSent);
        first.failed(Execution::Executed);
        assert_eq!(scope.close(), Execution::MaybeExecuted, "one copy is in flight");
        drop(second);
        assert_eq!(scope.close(), Execution::MaybeExecuted, "it was dropped or answered");
        scope.pass_on().unwrap().failed(Execution::Executed);
        assert_eq!(scope.close(), Execution::Executed);
    }

    #[test]
    fn copies_that_were_never_sent_leave_the_call_not_sent() {
        let scope = scope();
        scope.pass_on().unwrap().failed(Execution::NotSent);
        scope.pass_on().unwrap().failed(Execution::NotSent);
        assert_eq!(scope.close(), Execution::NotSent);
        assert!(scope.pass_on().is_none());
    }
}
