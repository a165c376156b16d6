//! Whether a call within a user's layers waits for something that ends by the call's deadline.
//!
//! Below the layers a connection's sweep enforces deadlines, and there the call needs no timer. A call that waits in
//! the layers themselves does. A timer for each call would cost as much as the call.

use std::cell::Cell;
use std::mem;
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, RawWakerVTable, Waker};

use tokio::task::coop;

use crate::call::{LayerScope, Stamp, enter, inherited};
use crate::sync::{assert_unlocked, wake};

/// One poll of a stack.
struct StackPoll {
    /// Unique in the process, and never 0.
    id: u64,
    scope: LayerScope,
    /// The task that polls the stack.
    task: WakerId,
    /// Futures below the layers that wait, wake the task, and end by the stack's deadline.
    waiting: u32,
}

/// Tells wakers of different tasks apart.
type WakerId = (*const (), *const RawWakerVTable);

fn id_of(waker: &Waker) -> WakerId {
    (waker.data(), ptr::from_ref(waker.vtable()))
}

thread_local! {
    /// The innermost poll of a stack on this thread.
    static CURRENT: Cell<Option<StackPoll>> = const { Cell::new(None) };
    static NEXT_ID: Cell<u64> = Cell::new(first_id());
}

/// Each thread takes its ids from a range of its own.
fn first_id() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    (THREADS.fetch_add(1, Relaxed) << 40) + 1
}

/// Accesses the innermost poll of a stack on this thread, if there is one. `access` runs no user code.
fn with_current<R>(access: impl FnOnce(&mut StackPoll) -> R) -> Option<R> {
    let accessed = CURRENT.try_with(|cell| {
        let mut current = cell.take()?;
        let accessed = access(&mut current);
        cell.set(Some(current));
        Some(accessed)
    });
    accessed.ok().flatten()
}

/// Runs one poll of a stack. Returns also whether its call waits below the layers now. Calls made in this poll, of any
/// client, inherit the stack's deadline.
pub(super) fn watch<R>(scope: &LayerScope, waker: &Waker, poll: impl FnOnce() -> R) -> (R, bool) {
    /// Restores the poll of the surrounding stack, also on a panic.
    struct Surrounding(Option<StackPoll>);
    impl Drop for Surrounding {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    assert_unlocked();
    let id = NEXT_ID.get();
    NEXT_ID.set(id + 1);
    let current = StackPoll { id, scope: scope.clone(), task: id_of(waker), waiting: 0 };
    let _surrounding = Surrounding(CURRENT.replace(Some(current)));
    let deadline = inherited().map_or(scope.deadline(), |outer| outer.min(scope.deadline()));
    let polled = enter(deadline, poll);
    (polled, with_current(|current| current.waiting > 0).unwrap_or(false))
}

/// The scope in which a service below the layers was last used or cloned.
///
/// A layer's task uses the service outside of the stack's poll. Its calls belong to that scope.
#[derive(Default)]
pub(super) struct LastScope(Cell<Option<LayerScope>>);

impl LastScope {
    /// The scope of the current poll, which is remembered, or else the last one.
    pub(super) fn get(&self) -> Option<LayerScope> {
        let last = self.0.take();
        let scope = with_current(|current| current.scope.clone()).or(last);
        self.0.set(scope.clone());
        scope
    }
}

impl Clone for LastScope {
    fn clone(&self) -> Self {
        // A layer may keep the clone and move the original into a task: both remember the scope.
        Self(Cell::new(self.get()))
    }
}

/// A future that ends by a deadline on its own.
pub(super) trait HasDeadline {
    /// Its deadline, once it has been polled.
    fn deadline(&self) -> Stamp;
}

/// Runs a future below a user's layers.
pub(super) struct Below<F> {
    future: F,
    /// Id of the stack's poll that counts on it; 0: none does.
    poll: u64,
    /// The task of that poll.
    waker: Option<Waker>,
}

impl<F> Below<F> {
    pub(super) fn new(future: F) -> Self {
        Self { future, poll: 0, waker: None }
    }

    /// Takes back that a stack counts on this future. The stack's task is woken unless it polls right now (`polled_by`):
    /// a layer may have moved this future to another task, and the stack then needs a timer.
    fn uncover(&mut self, polled_by: Option<&Waker>) {
        let poll = mem::take(&mut self.poll);
        let Some(waker) = self.waker.as_ref().filter(|_| poll != 0) else { return };
        let task = id_of(waker);
        let is_polling = with_current(|current| {
            current.waiting -= u32::from(current.id == poll);
            current.id == poll || current.task == task
        });
        let is_polling =
            is_polling.unwrap_or(false) || polled_by.is_some_and(|by| by.will_wake(waker));
        if !is_polling && let Some(waker) = self.waker.take() {
            wake(waker);
        }
    }
}

impl<F: HasDeadline> Below<F> {
    /// Lets the current poll of a stack count on this future, if it ends in time and wakes the stack's task.
    fn cover(&mut self, waker: &Waker) {
        // A task without budget is polled again at once. That may go on for ever, so it is no waiting.
        if !coop::has_budget_remaining() {
            return;
        }
        let (task, deadline) = (id_of(waker), self.future.deadline());
        let poll = with_current(|current| {
            let covers = current.task == task && deadline <= Stamp::of(current.scope.deadline());
            current.waiting += u32::from(covers);
            if covers { current.id } else { 0 }
        });
        self.poll = poll.unwrap_or(0);
        if self.poll != 0 {
            match &mut self.waker {
                Some(known) => known.clone_from(waker),
                None => self.waker = Some(waker.clone()),
            }
        }
    }
}

impl<F: Future + HasDeadline + Unpin> Future for Below<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.uncover(Some(cx.waker()));
        let polled = Pin::new(&mut this.future).poll(cx);
        if polled.is_pending() {
            this.cover(cx.waker());
        }
        polled
    }
}

impl<F> Drop for Below<F> {
    fn drop(&mut self) {
        self.uncover(None);
    }
}

/// A future whose deadline is known before it is polled.
pub(super) struct WithDeadline<F> {
    future: F,
    deadline: Stamp,
}

impl<F> WithDeadline<F> {
    pub(super) fn new(future: F, deadline: Stamp) -> Self {
        Self { future, deadline }
    }
}

impl<F> HasDeadline for WithDeadline<F> {
    fn deadline(&self) -> Stamp {
        self.deadline
    }
}

impl<F: Future + Unpin> Future for WithDeadline<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.future).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Pending, pending, poll_fn, ready};
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    const LIMIT: Duration = Duration::from_secs(1);

    fn scope() -> LayerScope {
        LayerScope::new(Instant::now() + LIMIT)
    }

    fn below(limit: Duration) -> Below<WithDeadline<Pending<()>>> {
        Below::new(WithDeadline::new(pending(), Stamp::of(Instant::now() + limit)))
    }

    /// Polls it as a stack; whether it is pending, and whether it is covered.
    fn poll_by(
        waker: &Waker,
        scope: &LayerScope,
        future: &mut Pin<Box<impl Future>>,
    ) -> (bool, bool) {
        let mut cx = Context::from_waker(waker);
        let (polled, is_covered) = watch(scope, waker, || future.as_mut().poll(&mut cx));
        (polled.is_pending(), is_covered)
    }

    fn poll(future: &mut Pin<Box<impl Future>>) -> (bool, bool) {
        poll_by(Waker::noop(), &scope(), future)
    }

    /// Polls a future once.
    async fn once(future: &mut (impl Future + Unpin)) {
        poll_fn(|cx| {
            let _ = Pin::new(&mut *future).poll(cx);
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_waits_below_and_ends_in_time_covers() {
        assert_eq!(poll(&mut Box::pin(below(LIMIT))), (true, true));
        assert_eq!(poll(&mut Box::pin(below(LIMIT * 2))), (true, false), "it ends too late");
        let ended = Below::new(WithDeadline::new(ready(()), Stamp::now()));
        assert_eq!(poll(&mut Box::pin(ended)), (false, false));
        assert_eq!(poll(&mut Box::pin(pending::<()>())), (true, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_polled_and_left_does_not_cover() {
        let mut dropped = Box::pin(async {
            let mut reached = below(LIMIT);
            once(&mut reached).await;
            once(&mut reached).await;
            drop(reached);
            pending::<()>().await;
        });
        assert_eq!(poll(&mut dropped), (true, false), "it was polled twice and dropped");
        let mut nested = Box::pin(async {
            let (mut inner, scope) = (Box::pin(below(LIMIT)), scope());
            let within = poll_fn(|cx| {
                let waker = cx.waker().clone();
                let mut cx = Context::from_waker(&waker);
                Poll::Ready(watch(&scope, &waker, || inner.as_mut().poll(&mut cx).is_pending()))
            });
            assert_eq!(within.await, (true, true));
            pending::<()>().await;
        });
        assert_eq!(poll(&mut nested), (true, false), "another stack's call covers nobody here");
        let mut unwoken = Box::pin(async {
            let mut reached = below(LIMIT);
            let mut cx = Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut reached).poll(&mut cx);
            pending::<()>().await;
        });
        let waker = Waker::from(Arc::<Woken>::default());
        assert_eq!(
            poll_by(&waker, &scope(), &mut unwoken),
            (true, false),
            "it does not wake the stack"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stack_is_woken_when_another_task_polls_what_it_counts_on() {
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let mut moved = Box::pin(below(LIMIT));
        assert_eq!(poll_by(&waker, &scope(), &mut moved), (true, true));
        assert_eq!(poll_by(&waker, &scope(), &mut moved), (true, true));
        assert_eq!(woken.0.load(Relaxed), 0, "the same task polls it again");
        let _ = moved.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(woken.0.load(Relaxed), 1);
        drop(moved);
        assert_eq!(woken.0.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn services_remember_the_scope_that_they_are_used_or_cloned_in() {
        let deadline = |last: &LastScope| last.get().map(|scope| scope.deadline());
        let kept = LastScope::default();
        assert_eq!(deadline(&kept), None);
        let first = scope();
        let (moved, _) = watch(&first, Waker::noop(), || kept.clone());
        assert_eq!(deadline(&kept), Some(first.deadline()));
        assert_eq!(deadline(&moved.clone()), Some(first.deadline()));
        let later = LayerScope::new(first.deadline() + LIMIT);
        let (told, _) = watch(&later, Waker::noop(), || deadline(&kept));
        assert_eq!((told, deadline(&kept)), (Some(later.deadline()), Some(later.deadline())));
        assert_eq!(deadline(&moved), Some(first.deadline()));
    }
}
