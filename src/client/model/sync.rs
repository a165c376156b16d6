//! Stand-ins over loom for what `client::sync` names, with the same methods.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

pub(in crate::client) use loom::sync::MutexGuard;
pub(in crate::client) use loom::sync::atomic::AtomicU64;

/// loom's, without poisoning.
pub(in crate::client) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(in crate::client) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(in crate::client) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// What is used of tokio's, for one waiter: a permit that `notify_one` leaves if nobody waits.
/// tokio's own would not be seen by loom.
pub(in crate::client) struct Notify(Mutex<Signal>);

#[derive(Default)]
struct Signal {
    permit: bool,
    waiter: Option<Waker>,
}

impl Notify {
    pub(in crate::client) fn new() -> Self {
        Self(Mutex::new(Signal::default()))
    }

    pub(in crate::client) fn notify_one(&self) {
        let mut signal = self.0.lock();
        signal.permit = true;
        let waiter = signal.waiter.take();
        drop(signal);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    pub(in crate::client) async fn notified(&self) {
        poll_fn(|cx| {
            let mut signal = self.0.lock();
            if std::mem::take(&mut signal.permit) {
                return Poll::Ready(());
            }
            signal.waiter = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Polls a future to its end, and blocks the thread of the model between a poll and a wake-up: one
/// that nobody gives is a deadlock, which loom reports.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let parked = Arc::new(Parked {
        woken: loom::sync::Mutex::new(false),
        changed: loom::sync::Condvar::new(),
    });
    let waker = Waker::from(Arc::clone(&parked));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        let mut woken = parked.woken.lock().unwrap();
        while !*woken {
            woken = parked.changed.wait(woken).unwrap();
        }
        *woken = false;
    }
}

struct Parked {
    woken: loom::sync::Mutex<bool>,
    changed: loom::sync::Condvar,
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_one();
    }
}
