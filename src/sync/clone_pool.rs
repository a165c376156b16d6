//! A small pool of clones of a user's value.

use super::{Mutex, assert_unlocked};

/// Clones of a user's value. Each is used by one caller at a time, and under no lock.
///
/// Why not one value behind a lock? The value, its `clone` and its drop are the user's, and may call this crate.
pub(crate) struct ClonePool<T>(Mutex<Vec<T>>);

/// Maximum number of idle clones. More exist only while calls are made within calls.
const MAX_IDLE: usize = 4;

impl<T: Clone> ClonePool<T> {
    pub(crate) fn new(first: T) -> Self {
        Self(Mutex::new(vec![first]))
    }

    /// Takes a clone; `None` if all are in use. The last idle one is cloned first, so that a nested call finds one.
    pub(crate) fn take(&self) -> Option<TakenClone<'_, T>> {
        let mut idle = self.0.lock();
        let value = idle.pop()?;
        let is_last = idle.is_empty();
        drop(idle);
        // From here on it is put back if the clone panics.
        let taken = TakenClone { pool: self, value: Some(value) };
        if is_last && let Some(value) = &taken.value {
            assert_unlocked();
            self.put(value.clone());
        }
        Some(taken)
    }

    fn put(&self, value: T) {
        let mut idle = self.0.lock();
        if idle.len() < MAX_IDLE {
            idle.push(value);
            return;
        }
        drop(idle);
        assert_unlocked();
        drop(value);
    }
}

/// A clone taken from a [`ClonePool`], and put back when this is dropped.
pub(crate) struct TakenClone<'a, T: Clone> {
    pool: &'a ClonePool<T>,
    /// `None` once it was [detached](Self::detach).
    value: Option<T>,
}

impl<T: Clone> TakenClone<'_, T> {
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.value.as_mut()
    }

    /// Removes it from the pool for good. The pool holds another one, or will with a later call.
    pub(crate) fn detach(mut self) -> Option<T> {
        self.value.take()
    }
}

impl<T: Clone> Drop for TakenClone<'_, T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.pool.put(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    struct Counted(Arc<AtomicUsize>);

    impl Clone for Counted {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, SeqCst);
            Self(Arc::clone(&self.0))
        }
    }

    #[test]
    fn the_last_idle_clone_is_cloned_before_it_is_used() {
        let clones = Arc::new(AtomicUsize::new(0));
        let pool = ClonePool::new(Counted(Arc::clone(&clones)));
        let first = pool.take().unwrap();
        assert_eq!(clones.load(SeqCst), 1);
        let nested = pool.take().unwrap();
        assert_eq!(clones.load(SeqCst), 2);
        drop((first, nested));
        for _ in 0..10 {
            assert!(pool.take().unwrap().get_mut().is_some());
        }
        assert_eq!(clones.load(SeqCst), 2, "with an idle one left, nothing is cloned");
    }

    #[test]
    fn a_pool_outlives_clones_that_are_detached() {
        let pool = ClonePool::new(Counted(Arc::default()));
        for _ in 0..10 {
            assert!(pool.take().unwrap().detach().is_some());
        }
    }

    #[test]
    fn idle_clones_are_bounded() {
        let pool = ClonePool::new(Counted(Arc::default()));
        let taken: Vec<_> = (0..10).map(|_| pool.take().unwrap()).collect();
        drop(taken);
        assert_eq!(pool.0.lock().len(), MAX_IDLE);
    }
}
