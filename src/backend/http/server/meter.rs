//! Counts what is under way at once, in all and for each key.

use std::collections::HashMap;
use std::sync::Arc;

use hyper::body::Bytes;

use crate::sync::Mutex;

/// Counts one thing: held polls by host, requests by token, bytes by host.
///
/// A share is given while less than the cap is taken, so that the last one may go beyond it: what
/// is counted in bytes ends one answer above its cap, and what is larger than the cap is served too.
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
        let mut share = Share { taken: Arc::clone(&self.taken), key: Arc::clone(key), amount: 0 };
        share.add(&mut taken, 1);
        Some(share)
    }
}

/// A part of what is counted; its drop gives it back.
pub(super) struct Share {
    taken: Arc<Mutex<Taken>>,
    key: Arc<str>,
    amount: usize,
}

impl Share {
    /// These bytes, which have been made since; the share is given back when they have been sent,
    /// or never will be. `times`: how often they are held.
    pub(super) fn of(mut self, bytes: Vec<u8>, times: usize) -> Bytes {
        let taken = Arc::clone(&self.taken);
        self.add(&mut taken.lock(), bytes.capacity().saturating_mul(times));
        Bytes::from_owner(Held { bytes, _share: self })
    }

    fn add(&mut self, taken: &mut Taken, amount: usize) {
        taken.all = taken.all.saturating_add(amount);
        self.amount = self.amount.saturating_add(amount);
        if !self.key.is_empty() {
            let of_key = taken.by_key.entry(Arc::clone(&self.key)).or_default();
            *of_key = of_key.saturating_add(amount);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.all = taken.all.saturating_sub(self.amount);
        if let Some(of_key) = taken.by_key.get_mut(&self.key) {
            *of_key = of_key.saturating_sub(self.amount);
            if *of_key == 0 {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

/// Bytes with the share that they take.
struct Held {
    bytes: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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

    #[test]
    fn bytes_are_counted_until_the_last_copy_is_gone() {
        let meter = Meter::new(100, 50);
        let host = Arc::from("a");
        let bytes = meter.take(&host).unwrap().of(vec![0; 60], 2);
        let copy = bytes.slice(10..20);
        drop(bytes);
        assert!(meter.take(&host).is_none() && meter.take(&Arc::from("b")).is_none());
        drop(copy);
        assert!(meter.take(&host).is_some());
        assert!(meter.taken.lock().by_key.is_empty());
    }
}
