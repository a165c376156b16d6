//! How many attempts beyond the first the clients of one service may make together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use crate::call::Stamp;
use crate::client::Lanes;
use crate::instance::ServiceName;
use crate::sync::Mutex;

/// Over how many seconds a budget counts, the one that runs included.
const WINDOW: usize = 10;
/// What it allows beside the share of calls, a second.
const PER_SECOND: u32 = 10;
/// The share of calls that may be tried again (Envoy: 20 %).
const SHARE: f32 = 0.2;

/// The budgets that this process's clients share, by service.
///
/// Why is there a global table here, the only one? A retry storm is made by all clients of a
/// process together, and those that two libraries build do not know of each other.
static SHARED: Mutex<BTreeMap<ServiceName, Weak<Budget>>> = Mutex::new(BTreeMap::new());

/// The budget that all clients of a service in this process share; it lasts as long as they do.
pub(super) fn shared(service: &ServiceName) -> Arc<Budget> {
    let mut shared = SHARED.lock();
    if let Some(budget) = shared.get(service).and_then(Weak::upgrade) {
        return budget;
    }
    shared.retain(|_, budget| budget.strong_count() > 0);
    let budget = Arc::new(Budget::default());
    shared.insert(service.clone(), Arc::downgrade(&budget));
    budget
}

/// Calls, and a share of them that may be tried again.
///
/// Every call is counted, and hardly any is tried again: so counting touches nothing that threads share, and only who
/// takes from it looks at the whole window. Tower's `TpsBudget` has the same rule behind a lock and a
/// clock reading for each call.
pub(super) struct Budget {
    share: f64,
    per_second: u32,
    /// Calls by second, in turn: the second in the high half, their number in the low one.
    calls: Lanes<[AtomicU64; WINDOW]>,
    /// What was taken, by second, oldest first.
    taken: Mutex<Vec<(u64, u32)>>,
}

impl Budget {
    /// A budget of `share` of the calls and so many attempts a second beside.
    pub(super) fn new(share: f32, per_second: u32) -> Self {
        Self {
            share: f64::from(share).max(0.0),
            per_second,
            calls: Lanes::new(Default::default),
            taken: Mutex::default(),
        }
    }

    /// Counts a call.
    pub(super) fn deposit(&self, now: Stamp) {
        let second = now.micros() / 1_000_000;
        let slot = &self.calls.mine()[second as usize % WINDOW];
        let seen = slot.load(Relaxed);
        // Two threads in one lane may count two calls as one: a call more or less does not matter.
        slot.store(if seen >> 32 == second { seen + 1 } else { second << 32 | 1 }, Relaxed);
    }

    /// Takes an attempt, if there is one left.
    pub(super) fn withdraw(&self, now: Stamp) -> bool {
        let second = now.micros() / 1_000_000;
        let is_over = |of: u64| of + WINDOW as u64 <= second;
        let calls: u64 = self
            .calls
            .iter()
            .flatten()
            .map(|slot| slot.load(Relaxed))
            .filter(|seen| !is_over(seen >> 32))
            .map(|seen| seen & u64::from(u32::MAX))
            .sum();
        let most = calls as f64 * self.share + f64::from(self.per_second) * WINDOW as f64;
        let mut taken = self.taken.lock();
        taken.retain(|(of, _)| !is_over(*of));
        let so_far: u64 = taken.iter().map(|(_, number)| u64::from(*number)).sum();
        if so_far as f64 + 1.0 > most {
            return false;
        }
        match taken.last_mut() {
            Some((of, number)) if *of >= second => *number += 1,
            _ => taken.push((second, 1)),
        }
        true
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(SHARE, PER_SECOND)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("share", &self.share).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(budget: &Budget, now: Stamp) -> usize {
        (0..10_000).take_while(|_| budget.withdraw(now)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_the_calls_and_a_number_a_second() {
        let (start, budget) = (Stamp::now(), Budget::new(0.2, 10));
        assert_eq!(taken(&budget, start), 100);
        (0..1000).for_each(|_| budget.deposit(start));
        assert_eq!(taken(&budget, start), 200);
        assert_eq!(taken(&budget, start.after(Duration::from_secs(9))), 0);
        // Both are forgotten together.
        assert_eq!(taken(&budget, start.after(Duration::from_secs(10))), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_of_the_window_count_and_older_ones_do_not() {
        let (start, budget) = (Stamp::now(), Budget::new(1.0, 0));
        for second in 0..30 {
            let now = start.after(Duration::from_secs(second));
            (0..7).for_each(|_| budget.deposit(now));
        }
        let last = start.after(Duration::from_secs(29));
        assert_eq!(taken(&budget, last), 70);
        assert_eq!(taken(&budget, last), 0);
        let later = last.after(Duration::from_secs(5));
        assert_eq!(taken(&budget, later), 0, "what was taken stays taken");
        assert!(!Budget::new(0.0, 0).withdraw(start));
    }
}
