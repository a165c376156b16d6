//! Counts what is under way at once, in all and for each key.

use std::collections::HashMap;
use std::sync::Arc;

use crate::sync::Mutex;

/// Counts one thing: held polls by host, requests by token.
#[derive(Clone)]
pub(super) struct Meter {
    taken: Arc<Mutex<Taken>>,
    max: usize,
    max_per_key: usize,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_key: HashMap<Arc<str>, usize>,
}

impl Meter {
    pub(super) fn new(max: usize, max_per_key: usize) -> Self {
        Self { taken: Arc::default(), max, max_per_key }
    }

    /// One more. An empty key tells nobody from anybody (a unix socket): it counts only in all.
    pub(super) fn take(&self, key: &Arc<str>) -> Option<Share> {
        let mut taken = self.taken.lock();
        let of_key = taken.by_key.get(key).copied().unwrap_or(0);
        if taken.all >= self.max || of_key >= self.max_per_key {
            return None;
        }
        taken.all += 1;
        if !key.is_empty() {
            *taken.by_key.entry(Arc::clone(key)).or_default() += 1;
        }
        Some(Share { taken: Arc::clone(&self.taken), key: Arc::clone(key) })
    }
}

/// One of what is counted; its drop gives it back.
pub(super) struct Share {
    taken: Arc<Mutex<Taken>>,
    key: Arc<str>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.all -= 1;
        if let Some(of_key) = taken.by_key.get_mut(&self.key) {
            *of_key -= 1;
            if *of_key == 0 {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_hold_for_each_key_and_in_all_and_shares_come_back() {
        let meter = Meter::new(3, 2);
        let key = |name: &str| Arc::<str>::from(name);
        let first = meter.take(&key("a")).unwrap();
        let _second = meter.take(&key("a")).unwrap();
        assert!(meter.take(&key("a")).is_none());
        let _third = meter.take(&key("b")).unwrap();
        assert!(meter.take(&key("c")).is_none(), "in all");
        drop(first);
        let _fourth = meter.take(&key("")).unwrap();
        assert_eq!(meter.taken.lock().by_key.len(), 2, "no key is not counted");
    }
}
