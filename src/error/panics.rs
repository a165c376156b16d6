//! Panics of user code, caught and held as values.

use std::any::Any;
use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use tokio::task::JoinError;

use crate::sync::assert_unlocked;

type Payload = Box<dyn Any + Send>;

/// A payload's drop may panic with another payload. This many are dropped; the next one is leaked.
const MAX_NESTED_PANICS: usize = 8;

/// What user code panicked with. Its drop never panics, even if the payload's drop does.
pub(crate) struct Panic(Option<Payload>);

impl Panic {
    /// The panic that ended a task; `None` if the task was cancelled.
    pub(crate) fn of_task(error: JoinError) -> Option<Self> {
        error.try_into_panic().ok().map(|payload| Self(Some(payload)))
    }

    /// The panic's message.
    pub(crate) fn text(&self) -> &str {
        let Some(payload) = self.0.as_deref() else { return "no text" };
        if let Some(text) = payload.downcast_ref::<&'static str>() {
            return text;
        }
        payload.downcast_ref::<String>().map_or("no text", String::as_str)
    }
}

impl Drop for Panic {
    fn drop(&mut self) {
        let mut left = self.0.take();
        for _ in 0..MAX_NESTED_PANICS {
            let Some(payload) = left else { return };
            left = catch_unwind(AssertUnwindSafe(|| drop(payload))).err();
        }
        mem::forget(left);
    }
}

/// Runs user code.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| Panic(Some(payload)))
}

/// Drops a value of user code, whose `Drop` may panic. One value at a time: a second panic during the
/// unwinding of the first aborts the process.
pub(crate) fn discard<T>(value: T) {
    let _ = catch(|| drop(value));
}

/// Runs a future of user code. After a panic it is not polled again.
pub(crate) async fn caught<F: Future>(future: F) -> Result<F::Output, Panic> {
    let mut future = pin!(Some(future));
    let ended = poll_fn(|cx| {
        assert_unlocked();
        let poll = || match future.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx),
            None => Poll::Pending,
        };
        match catch(poll) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await;
    let _ = catch(|| future.set(None));
    ended
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;
    use std::pin::Pin;
    use std::task::Context;

    use super::*;

    /// Panics when it is dropped, with a payload that does the same, this many times.
    struct Nested(usize);

    impl Drop for Nested {
        fn drop(&mut self) {
            if !std::thread::panicking() && self.0 > 0 {
                panic_any(Nested(self.0 - 1));
            }
        }
    }

    #[test]
    fn a_payload_that_panics_when_it_is_dropped_goes_no_further() {
        for depth in [0, 1, 2, MAX_NESTED_PANICS, usize::MAX] {
            let panic = catch::<()>(|| panic_any(Nested(depth))).err().unwrap();
            assert_eq!(panic.text(), "no text");
            drop(panic);
            discard(Nested(depth));
        }
        assert_eq!(catch::<()>(|| panic!("on purpose")).err().unwrap().text(), "on purpose");
        let number = 7;
        let panic = catch::<()>(|| panic!("number {number}")).err().unwrap();
        assert_eq!(panic.text(), "number 7");
    }

    /// Is ready at once, and panics when it is dropped or polled.
    struct Leaves {
        nested: Nested,
        panics: bool,
    }

    impl Future for Leaves {
        type Output = usize;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<usize> {
            assert!(!self.panics, "on purpose");
            Poll::Ready(self.nested.0)
        }
    }

    #[tokio::test]
    async fn a_future_whose_drop_panics_has_its_output() {
        let leaves = Leaves { nested: Nested(3), panics: false };
        assert_eq!(caught(leaves).await.ok(), Some(3));
        let panics = Leaves { nested: Nested(3), panics: true };
        assert_eq!(caught(panics).await.err().unwrap().text(), "on purpose");
    }
}
