//! Mutex and RwLock wrappers that count held locks in debug builds, and actions deferred until a lock is released.
//!
//! A tracing subscriber, a layer, a selector, a waker or the drop of a user's value may call this crate, and would
//! deadlock on a lock that its own thread holds. User code therefore runs after the lock is released: see [`Deferred`].

mod clone_pool;

#[cfg(debug_assertions)]
use std::cell::Cell;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::Waker;
use std::thread;

pub(crate) use clone_pool::ClonePool;

#[cfg(debug_assertions)]
thread_local! {
    /// Number of this crate's locks that the thread holds.
    static HELD_LOCKS: Cell<u32> = const { Cell::new(0) };
}

/// Asserts, in debug builds, that this thread holds no lock of this crate, so that user code may run.
#[inline]
#[track_caller]
pub(crate) fn assert_unlocked() {
    // A second panic while one unwinds would abort the process and hide the first.
    #[cfg(debug_assertions)]
    assert!(
        HELD_LOCKS.get() == 0 || thread::panicking(),
        "user code would run while a lock of srpc is held"
    );
}

/// Wakes a task.
#[inline]
#[track_caller]
pub(crate) fn wake(waker: Waker) {
    assert_unlocked();
    waker.wake();
}

/// Wakes tasks.
#[inline]
#[track_caller]
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(wake);
}

/// Emits a tracing event: `event!(WARN, service = %name, "what happened")`.
macro_rules! event {
    ($level:ident, $($field:tt)+) => {{
        $crate::sync::assert_unlocked();
        ::tracing::event!(::tracing::Level::$level, $($field)+);
    }};
}
pub(crate) use event;

/// Counts one held lock until it is dropped. Zero-sized, and without effect in release builds.
struct HeldLock;

impl HeldLock {
    #[inline]
    fn new() -> Self {
        #[cfg(debug_assertions)]
        HELD_LOCKS.set(HELD_LOCKS.get() + 1);
        Self
    }
}

#[cfg(debug_assertions)]
impl Drop for HeldLock {
    fn drop(&mut self) {
        HELD_LOCKS.set(HELD_LOCKS.get() - 1);
    }
}

/// parking_lot's mutex, counted while it is held.
#[derive(Default)]
pub(crate) struct Mutex<T>(parking_lot::Mutex<T>);

/// A locked [`Mutex`].
#[must_use = "the lock is released when the guard is dropped"]
pub(crate) struct MutexGuard<'a, T> {
    guard: parking_lot::MutexGuard<'a, T>,
    _held: HeldLock,
}

impl<T> Mutex<T> {
    #[inline]
    pub(crate) const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { guard: self.0.lock(), _held: HeldLock::new() }
    }

    #[inline]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = self.0.try_lock()?;
        Some(MutexGuard { guard, _held: HeldLock::new() })
    }

    /// The value, without locking: the borrow is exclusive.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> fmt::Debug for Mutex<T> {
    /// Omits the value: the formatter is the user's, and would be called under the lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

/// parking_lot's readers-writer lock, counted while it is held.
#[derive(Default)]
pub(crate) struct RwLock<T>(parking_lot::RwLock<T>);

/// A [`RwLock`] locked for reading.
#[must_use = "the lock is released when the guard is dropped"]
pub(crate) struct RwLockReadGuard<'a, T> {
    guard: parking_lot::RwLockReadGuard<'a, T>,
    _held: HeldLock,
}

/// A [`RwLock`] locked for writing.
#[must_use = "the lock is released when the guard is dropped"]
pub(crate) struct RwLockWriteGuard<'a, T> {
    guard: parking_lot::RwLockWriteGuard<'a, T>,
    _held: HeldLock,
}

impl<T> RwLock<T> {
    #[cfg(feature = "http")]
    pub(crate) const fn new(value: T) -> Self {
        Self(parking_lot::RwLock::new(value))
    }

    #[inline]
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        RwLockReadGuard { guard: self.0.read(), _held: HeldLock::new() }
    }

    #[inline]
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        RwLockWriteGuard { guard: self.0.write(), _held: HeldLock::new() }
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// Actions deferred until a lock is released: events, wake-ups, drops of a user's values.
///
/// They run when it is dropped. Declare it before the guard, so that it is dropped after the guard on an early
/// return and on a panic too.
#[derive(Default)]
pub(crate) struct Deferred(Vec<Box<dyn FnOnce() + Send>>);

impl Deferred {
    pub(crate) fn push(&mut self, action: impl FnOnce() + Send + 'static) {
        self.0.push(Box::new(action));
    }

    /// Defers the drop of a value.
    pub(crate) fn discard(&mut self, value: impl Send + 'static) {
        self.push(move || drop(value));
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if self.0.is_empty() {
            return;
        }
        assert_unlocked();
        let mut panic = None;
        // An action that panics does not cost the others their wake-ups.
        for action in mem::take(&mut self.0) {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(action)) {
                match panic {
                    None => panic = Some(payload),
                    // Leaked: the drop of a payload may panic again.
                    Some(_) => mem::forget(payload),
                }
            }
        }
        match panic {
            Some(payload) if !thread::panicking() => resume_unwind(payload),
            Some(payload) => mem::forget(payload),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[test]
    fn deferred_actions_run_after_the_lock_is_released() {
        let lock = Arc::new(Mutex::new(()));
        let ran = Arc::new(AtomicUsize::new(0));
        {
            let mut deferred = Deferred::default();
            let _guard = lock.lock();
            let (lock, ran) = (Arc::clone(&lock), Arc::clone(&ran));
            deferred.push(move || {
                assert!(lock.try_lock().is_some());
                ran.fetch_add(1, SeqCst);
            });
            assert_eq!(deferred.0.len(), 1);
        }
        assert_eq!(ran.load(SeqCst), 1);
    }

    #[test]
    fn a_panic_in_one_deferred_action_does_not_skip_the_others() {
        let ran = Arc::new(AtomicUsize::new(0));
        let run = || {
            let mut deferred = Deferred::default();
            deferred.push(|| panic!("a subscriber"));
            let ran = Arc::clone(&ran);
            deferred.push(move || _ = ran.fetch_add(1, SeqCst));
        };
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        assert_eq!(ran.load(SeqCst), 1);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "while a lock of srpc is held")]
    fn user_code_under_a_lock_is_detected() {
        let lock = Mutex::new(());
        let _guard = lock.lock();
        assert_unlocked();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "while a lock of srpc is held")]
    fn an_event_under_a_lock_is_detected() {
        let lock = RwLock::<u8>::default();
        let _guard = lock.read();
        event!(DEBUG, "not reached");
    }

    #[test]
    fn debug_output_of_a_lock_omits_its_value() {
        assert_eq!(format!("{:?}", Mutex::new(1)), "Mutex { .. }");
    }
}
