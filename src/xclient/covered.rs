//! Whether a call that waits within a user's layers has reached what ends it by its deadline.
//!
//! Below the layers a connection's sweep looks after deadlines; in them nobody does, so that a call
//! which waits there needs a timer of its own, and one that has passed them does not. A timer for each
//! call would cost as much as the call.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

thread_local! {
    /// How many futures below a stack's layers were polled, and wait, since the poll of that stack
    /// began on this thread.
    static WAITING: Cell<u32> = const { Cell::new(0) };
}

/// Runs one poll of a stack; whether its call waits below the layers now.
pub(super) fn watch<R>(poll: impl FnOnce() -> R) -> (R, bool) {
    /// Gives the stack around this one its number back, whatever happens.
    struct Outer(u32);
    impl Drop for Outer {
        fn drop(&mut self) {
            WAITING.set(self.0);
        }
    }
    let _outer = Outer(WAITING.replace(0));
    let polled = poll();
    (polled, WAITING.get() > 0)
}

/// Runs a future that ends by its call's deadline by itself.
pub(super) struct Below<F> {
    future: F,
    /// Whether it waited when it was polled last.
    waits: bool,
}

impl<F> Below<F> {
    pub(super) fn new(future: F) -> Self {
        Self { future, waits: false }
    }
}

impl<F: Future + Unpin> Future for Below<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = Pin::new(&mut self.future).poll(cx);
        self.waits = polled.is_pending();
        if self.waits {
            WAITING.set(WAITING.get() + 1);
        }
        polled
    }
}

impl<F> Drop for Below<F> {
    /// One that is dropped while it waits covers nobody any more.
    fn drop(&mut self) {
        if self.waits {
            WAITING.set(WAITING.get().saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::task::Waker;

    use super::*;

    fn poll(future: &mut Pin<Box<impl Future>>) -> (bool, bool) {
        let mut cx = Context::from_waker(Waker::noop());
        let (polled, covered) = watch(|| future.as_mut().poll(&mut cx));
        (polled.is_pending(), covered)
    }

    #[test]
    fn only_who_waits_below_is_covered() {
        assert_eq!(poll(&mut Box::pin(Below::new(pending::<()>()))), (true, true));
        assert_eq!(poll(&mut Box::pin(Below::new(ready(())))), (false, false));
        assert_eq!(poll(&mut Box::pin(pending::<()>())), (true, false));
        let mut left = Box::pin(async {
            let mut reached = Box::pin(Below::new(pending::<()>()));
            let polled = std::future::poll_fn(|cx| Poll::Ready(reached.as_mut().poll(cx))).await;
            assert!(polled.is_pending());
            drop(reached);
            pending::<()>().await;
        });
        assert_eq!(poll(&mut left), (true, false), "it was dropped in the same poll");
        let mut nested = Box::pin(async {
            let mut inner = Box::pin(Below::new(pending::<()>()));
            let within = std::future::poll_fn(|cx| {
                Poll::Ready(watch(|| inner.as_mut().poll(cx).is_pending()))
            });
            assert_eq!(within.await, (true, true));
            pending::<()>().await;
        });
        assert_eq!(poll(&mut nested), (true, false), "another stack's call covers nobody here");
    }
}
