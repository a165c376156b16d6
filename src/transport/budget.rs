//! Memory budget of a listener's connections: bodies in flight and unread replies, with a share for each host.
//!
//! A connection charges what it holds in whole steps, so that small calls touch no shared counter.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::refusals::Refusals;
use super::slots::{ConnectionSlots, Evictable};
use crate::sync::Mutex;

/// Unit of charges, in bytes. A connection holds less than this for free.
pub(crate) const CHARGE_STEP: usize = 16 * 1024;
/// How long a connection must have moved less than a step before it counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Pause between two searches for stuck connections.
const SEARCH_INTERVAL: Duration = Duration::from_millis(100);
/// Pause between two tries to get memory.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// How long a body waits for memory.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that the connections of a server may hold together.
pub(crate) struct Budget {
    max: usize,
    /// What one host may hold before its stuck connections are closed.
    share: usize,
    held: AtomicUsize,
    /// Bytes of the bodies that wait for room.
    wanted: AtomicUsize,
    hosts: Mutex<HashMap<Arc<str>, HostEntry>>,
    /// Wakes [`close_stuck_connections`].
    exceeded: Notify,
}

struct HostEntry {
    connections: usize,
    account: Arc<HostAccount>,
}

/// What the connections of one host hold.
struct HostAccount {
    host: Arc<str>,
    share: usize,
    held: AtomicUsize,
}

impl HostAccount {
    fn new(host: &Arc<str>, share: usize) -> Arc<Self> {
        Arc::new(Self { host: Arc::clone(host), share, held: AtomicUsize::new(0) })
    }

    fn excess(&self) -> usize {
        self.held.load(Relaxed).saturating_sub(self.share)
    }
}

impl Budget {
    pub(crate) fn new(max: usize, share: usize) -> Self {
        Self {
            max,
            share: share.min(max),
            held: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            hosts: Mutex::default(),
            exceeded: Notify::new(),
        }
    }

    /// The account of a connection from `host`. An empty host tells no peer from another (a Unix socket)
    /// and has no share of its own.
    pub(crate) fn open_charge(self: &Arc<Self>, host: &Arc<str>) -> Charge {
        let account = match host.is_empty() {
            true => HostAccount::new(host, usize::MAX),
            false => {
                let mut hosts = self.hosts.lock();
                let entry = hosts.entry(Arc::clone(host)).or_insert_with(|| HostEntry {
                    connections: 0,
                    account: HostAccount::new(host, self.share),
                });
                entry.connections += 1;
                Arc::clone(&entry.account)
            }
        };
        Charge { budget: Arc::clone(self), account, charged: 0 }
    }

    /// Asks again and again whether there is room for so many bytes. False: there is none for too long.
    pub(crate) async fn wait_for_room(
        &self,
        bytes: usize,
        mut has_room: impl FnMut() -> bool,
    ) -> bool {
        let _wanted = self.want(bytes);
        let give_up_at = Instant::now() + ROOM_TIMEOUT;
        loop {
            sleep(RETRY_INTERVAL).await;
            if has_room() {
                return true;
            }
            if Instant::now() >= give_up_at {
                return false;
            }
        }
    }

    /// Announces a body that waits for room.
    fn want(&self, bytes: usize) -> Wanted<'_> {
        self.wanted.fetch_add(bytes, Relaxed);
        self.exceeded.notify_one();
        Wanted { budget: self, bytes }
    }

    /// What a host beyond its share may fill: a quarter at most is kept for the others.
    fn max_beyond_share(&self) -> usize {
        self.max - self.share.min(self.max / 4)
    }

    /// How many bytes must be given back for the total to be within its limit.
    fn excess(&self) -> usize {
        let wanted = self.wanted.load(Relaxed);
        let max = if wanted > 0 { self.max_beyond_share() } else { self.max };
        (self.held.load(Relaxed) + wanted).saturating_sub(max)
    }

    /// The same for each host that is beyond its share.
    fn host_excesses(&self) -> HashMap<Arc<str>, usize> {
        let hosts = self.hosts.lock();
        let excesses = hosts.iter().map(|(host, entry)| (Arc::clone(host), entry.account.excess()));
        excesses.filter(|(_, excess)| *excess > 0).collect()
    }

    /// The stuck connections to close: of hosts beyond their shares first, then of all while the total is
    /// exceeded. Those that hold most for longest come first.
    fn choose<T>(&self, mut stuck: Vec<(Stuck, T)>) -> Vec<(Stuck, T)> {
        stuck.sort_unstable_by_key(|(stuck, _)| Reverse(stuck.weight));
        let mut excess = self.excess();
        let mut of_hosts = self.host_excesses();
        let (mut chosen, mut others) = (Vec::new(), Vec::new());
        for (stuck, connection) in stuck {
            match of_hosts.get_mut(&stuck.host).filter(|excess| **excess > 0) {
                Some(of_host) => {
                    *of_host = of_host.saturating_sub(stuck.bytes);
                    excess = excess.saturating_sub(stuck.bytes);
                    chosen.push((stuck, connection));
                }
                None => others.push((stuck, connection)),
            }
        }
        for (stuck, connection) in others {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(stuck.bytes);
            chosen.push((stuck, connection));
        }
        chosen
    }
}

/// A body that waits for room.
struct Wanted<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.budget.wanted.fetch_sub(self.bytes, Relaxed);
    }
}

/// One connection's part of the budget, given back when it is dropped.
pub(crate) struct Charge {
    budget: Arc<Budget>,
    account: Arc<HostAccount>,
    /// Whole steps.
    charged: usize,
}

impl Charge {
    pub(crate) fn charged(&self) -> usize {
        self.charged
    }

    pub(crate) fn host(&self) -> &Arc<str> {
        &self.account.host
    }

    /// Charges what the connection holds, whether there is room or not.
    #[inline]
    pub(crate) fn set(&mut self, bytes: usize) {
        let target = bytes / CHARGE_STEP * CHARGE_STEP;
        if target != self.charged {
            self.change(target);
        }
    }

    /// Raises the charge to what the connection will hold. False: there is no room, and nothing has changed.
    #[inline]
    pub(crate) fn try_raise(&mut self, bytes: usize) -> bool {
        let target = bytes / CHARGE_STEP * CHARGE_STEP;
        target <= self.charged || self.try_change(target)
    }

    /// Whether nothing more fits.
    pub(crate) fn is_full(&self) -> bool {
        self.budget.held.load(Relaxed) >= self.limit(0)
    }

    fn limit(&self, more: usize) -> usize {
        match self.account.held.load(Relaxed) + more > self.account.share {
            true => self.budget.max_beyond_share(),
            false => self.budget.max,
        }
    }

    fn try_change(&mut self, target: usize) -> bool {
        let more = target - self.charged;
        let limit = self.limit(more);
        // A body larger than the limit has it alone.
        let fits = |held: usize| (held == 0 || held + more <= limit).then_some(held + more);
        if self.budget.held.fetch_update(Relaxed, Relaxed, fits).is_err() {
            self.budget.exceeded.notify_one();
            return false;
        }
        self.account.held.fetch_add(more, Relaxed);
        self.charged = target;
        self.check_share();
        true
    }

    fn change(&mut self, target: usize) {
        let before = std::mem::replace(&mut self.charged, target);
        if target < before {
            self.budget.held.fetch_sub(before - target, Relaxed);
            self.account.held.fetch_sub(before - target, Relaxed);
            return;
        }
        let held = self.budget.held.fetch_add(target - before, Relaxed) + target - before;
        self.account.held.fetch_add(target - before, Relaxed);
        if held > self.budget.max {
            self.budget.exceeded.notify_one();
        }
        self.check_share();
    }

    fn check_share(&self) {
        if self.account.excess() > 0 {
            self.budget.exceeded.notify_one();
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
        let mut hosts = self.budget.hosts.lock();
        let Some(entry) = hosts.get_mut(&self.account.host) else { return };
        entry.connections -= 1;
        if entry.connections == 0 {
            hosts.remove(&self.account.host);
        }
    }
}

/// A connection that holds memory and makes no progress.
pub(crate) struct Stuck {
    host: Arc<str>,
    bytes: usize,
    /// Bytes times the milliseconds that they have not moved.
    weight: u128,
}

impl Stuck {
    /// Judges a connection by what is charged for it and its parts: bytes, and since when less than a step of
    /// them has moved. `None`: it makes progress, or holds no more than is free.
    pub(crate) fn new<const N: usize>(
        host: &Arc<str>,
        charged: usize,
        parts: [(usize, Instant); N],
        now: Instant,
    ) -> Option<Self> {
        let weight = parts.iter().map(|(bytes, since)| {
            let still = now.saturating_duration_since(*since);
            if still < STUCK_AFTER { 0 } else { still.as_millis() * *bytes as u128 }
        });
        let weight: u128 = weight.sum();
        let is_stuck = charged > 0 && weight > 0;
        is_stuck.then(|| Self { host: Arc::clone(host), bytes: charged, weight })
    }
}

/// A connection that may have to close for the memory that it holds.
pub(crate) trait HoldsMemory: Evictable {
    /// What it holds, if it makes no progress.
    fn stuck(&self, now: Instant) -> Option<Stuck>;

    /// It must close, with what it has in flight.
    fn close_for_memory(&self);
}

/// Closes stuck connections of these slots while the total or a host's share is exceeded. Never ends.
pub(crate) async fn close_stuck_connections<T: HoldsMemory>(
    budget: &Budget,
    slots: &ConnectionSlots<T>,
    refusals: &Refusals,
) {
    loop {
        budget.exceeded.notified().await;
        while budget.excess() > 0 || !budget.host_excesses().is_empty() {
            let now = Instant::now();
            let open = slots.connections();
            let stuck = open.into_iter().filter_map(|usage| Some((usage.stuck(now)?, usage)));
            for (stuck, usage) in budget.choose(stuck.collect()) {
                refusals.count("bytes held by connections", &stuck.host);
                usage.close_for_memory();
            }
            // Another listener with this budget may have the connections that are stuck.
            budget.exceeded.notify_one();
            sleep(SEARCH_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn budget() -> Arc<Budget> {
        Arc::new(Budget::new(16 * MIB, 4 * MIB))
    }

    fn host(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    #[test]
    fn what_is_less_than_a_step_is_free_and_all_is_given_back() {
        let budget = budget();
        let mut charge = budget.open_charge(&host("a"));
        assert!(charge.try_raise(CHARGE_STEP - 1));
        assert_eq!(budget.held.load(Relaxed), 0);
        charge.set(5 * CHARGE_STEP + 1);
        assert_eq!(budget.held.load(Relaxed), 5 * CHARGE_STEP);
        charge.set(CHARGE_STEP);
        assert_eq!(budget.held.load(Relaxed), CHARGE_STEP);
        drop(charge);
        assert_eq!(budget.held.load(Relaxed), 0);
        assert!(budget.hosts.lock().is_empty());
    }

    #[test]
    fn a_host_beyond_its_share_leaves_a_quarter_to_the_others() {
        let budget = budget();
        let (mut a, mut b) = (budget.open_charge(&host("a")), budget.open_charge(&host("b")));
        assert!(a.try_raise(12 * MIB));
        assert!(!a.try_raise(13 * MIB) && a.is_full());
        assert_eq!(a.charged(), 12 * MIB);
        assert!(!b.is_full() && b.try_raise(4 * MIB));
        assert!(b.is_full() && !b.try_raise(5 * MIB));
        assert_eq!(budget.host_excesses(), HashMap::from([(host("a"), 8 * MIB)]));
    }

    #[test]
    fn a_body_larger_than_the_budget_has_it_alone() {
        let budget = budget();
        let (mut a, mut b) = (budget.open_charge(&host("a")), budget.open_charge(&host("b")));
        b.set(CHARGE_STEP);
        assert!(!a.try_raise(20 * MIB));
        b.set(0);
        assert!(a.try_raise(20 * MIB));
        assert!(!b.try_raise(CHARGE_STEP));
    }

    #[test]
    fn an_empty_host_has_no_share() {
        let budget = budget();
        let (mut a, mut b) = (budget.open_charge(&host("")), budget.open_charge(&host("")));
        assert!(a.try_raise(12 * MIB) && b.try_raise(4 * MIB));
        assert!(budget.host_excesses().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_beyond_their_shares_pay_first_and_the_heaviest_of_them() {
        let budget = budget();
        let start = Instant::now();
        let now = start + Duration::from_secs(9);
        // Host, mebibytes, for how many seconds they have stood still.
        let open: [(&str, usize, u64); 5] =
            [("a", 5, 2), ("a", 3, 8), ("a", 2, 2), ("b", 3, 8), ("b", 1, 0)];
        let charges: Vec<_> = open
            .iter()
            .map(|(name, mib, _)| {
                let mut charge = budget.open_charge(&host(name));
                charge.set(mib * MIB);
                charge
            })
            .collect();
        let chosen = || {
            let stuck = charges.iter().zip(open).enumerate().filter_map(|(at, (charge, open))| {
                let since = now - Duration::from_secs(open.2);
                let parts = [(charge.charged(), since), (0, start)];
                let stuck = Stuck::new(charge.host(), charge.charged(), parts, now)?;
                Some((stuck, at))
            });
            let chosen = budget.choose(stuck.collect());
            chosen.into_iter().map(|(_, at)| at).collect::<Vec<_>>()
        };
        assert_eq!(chosen(), [1, 0], "down to the share, though there is room in all");
        let _wanted = budget.want(9 * MIB);
        assert_eq!(chosen(), [1, 0, 3], "then of all, but none that has just moved");
    }
}
