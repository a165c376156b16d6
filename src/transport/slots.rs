//! Connection slots of a listener: caps in all and per host, and which connection is evicted at a cap.

#[cfg(feature = "http")]
mod waiting;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

#[cfg(feature = "http")]
pub(crate) use self::waiting::Entered;
use crate::sync::Mutex;

/// A connection that holds a slot and may be evicted from it.
pub(crate) trait Evictable: Send + Sync + 'static {
    /// Its place among those that may be evicted: the least goes first. `None`: it is in use. Called
    /// under the table's lock: it must neither log nor wake.
    fn eviction_rank(&self, now: Instant) -> Option<(u8, Instant)>;

    /// It has lost its slot and must close. Called without a lock.
    fn evict(&self);
}

/// Which cap of connections is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReachedCap {
    Total,
    Host,
}

impl ReachedCap {
    /// What a refused peer and the operator are told.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Total => "too many connections",
            Self::Host => "too many connections from this host",
        }
    }
}

/// The connection slots of one listener. Clones are the same slots.
pub(crate) struct ConnectionSlots<T> {
    table: Arc<Mutex<Table<T>>>,
}

struct Table<T> {
    max: usize,
    max_per_host: usize,
    open: usize,
    waiting: usize,
    hosts: HashMap<Arc<str>, HostSlots<T>>,
}

struct HostSlots<T> {
    open: Vec<Arc<T>>,
    waiting: usize,
    /// Wakes one that waits, when a slot is given back.
    freed: Arc<Notify>,
}

impl<T> Clone for ConnectionSlots<T> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table) }
    }
}

impl<T> Default for HostSlots<T> {
    fn default() -> Self {
        Self { open: Vec::new(), waiting: 0, freed: Arc::default() }
    }
}

impl<T: Evictable> ConnectionSlots<T> {
    /// Slots for `max` connections, `max_per_host` of one host. An empty host tells no peer from
    /// another (a Unix socket) and has no cap of its own.
    pub(crate) fn new(max: usize, max_per_host: usize) -> Self {
        let table = Table { max, max_per_host, open: 0, waiting: 0, hosts: HashMap::new() };
        Self { table: Arc::new(Mutex::new(table)) }
    }

    /// A slot for a connection from `host`, for which another may be evicted.
    pub(crate) fn enter(
        &self,
        host: &Arc<str>,
        connection: T,
    ) -> Result<ConnectionSlot<T>, ReachedCap> {
        let connection = Arc::new(connection);
        self.place(host, &connection)?;
        Ok(self.slot(host, connection))
    }

    /// Evicts one connection of any host, for a process that has no file descriptors left. False:
    /// all are in use.
    pub(crate) fn evict_one(&self) -> bool {
        let victim = self.table.lock().evict_from_largest(Instant::now());
        if let Some(victim) = &victim {
            victim.evict();
        }
        victim.is_some()
    }

    /// The connections that hold slots.
    pub(crate) fn connections(&self) -> Vec<Arc<T>> {
        let table = self.table.lock();
        table.hosts.values().flat_map(|host| &host.open).cloned().collect()
    }

    fn place(&self, host: &Arc<str>, connection: &Arc<T>) -> Result<(), ReachedCap> {
        let placed = self.table.lock().place(host, connection, Instant::now());
        // Without the lock: it wakes a task.
        if let Some(victim) = placed? {
            victim.evict();
        }
        Ok(())
    }

    fn slot(&self, host: &Arc<str>, connection: Arc<T>) -> ConnectionSlot<T> {
        ConnectionSlot { slots: self.clone(), host: Arc::clone(host), connection }
    }
}

impl<T: Evictable> Table<T> {
    /// Gives a newcomer a slot: a free one, or that of the connection that is returned.
    fn place(
        &mut self,
        host: &Arc<str>,
        connection: &Arc<T>,
        now: Instant,
    ) -> Result<Option<Arc<T>>, ReachedCap> {
        // Those that wait come first.
        if self.hosts.get(host).is_some_and(|host| host.waiting > 0) {
            return Err(ReachedCap::Host);
        }
        if self.is_full(host) {
            return self.replace(host, connection, now).map(Some);
        }
        let victim = match self.open + self.waiting < self.max {
            true => None,
            false => Some(self.evict_from_largest(now).ok_or(ReachedCap::Total)?),
        };
        self.insert(host, connection);
        Ok(victim)
    }

    /// Gives a newcomer the slot of a connection of its own host, which is returned.
    fn replace(
        &mut self,
        host: &Arc<str>,
        connection: &Arc<T>,
        now: Instant,
    ) -> Result<Arc<T>, ReachedCap> {
        let victim = self.evict_from(host, now).ok_or(ReachedCap::Host)?;
        self.insert(host, connection);
        Ok(victim)
    }

    fn insert(&mut self, host: &Arc<str>, connection: &Arc<T>) {
        self.open += 1;
        self.hosts.entry(Arc::clone(host)).or_default().open.push(Arc::clone(connection));
    }

    fn is_full(&self, host: &Arc<str>) -> bool {
        let open = self.hosts.get(host).map_or(0, |host| host.open.len());
        !host.is_empty() && open >= self.max_per_host
    }

    fn evict_from(&mut self, host: &Arc<str>, now: Instant) -> Option<Arc<T>> {
        let of_host = self.hosts.get_mut(host)?;
        let at = of_host.first_to_evict(now)?;
        let victim = of_host.open.swap_remove(at);
        self.open -= 1;
        self.forget_if_empty(host);
        Some(victim)
    }

    /// Evicts from the host that has most connections, of those that have one to evict.
    fn evict_from_largest(&mut self, now: Instant) -> Option<Arc<T>> {
        let mut largest: Option<(&Arc<str>, usize)> = None;
        for (name, host) in &self.hosts {
            let is_larger = largest.is_none_or(|(_, open)| host.open.len() > open);
            if is_larger && host.first_to_evict(now).is_some() {
                largest = Some((name, host.open.len()));
            }
        }
        let host = Arc::clone(largest?.0);
        self.evict_from(&host, now)
    }

    fn release(&mut self, host: &Arc<str>, connection: &Arc<T>) {
        let Some(of_host) = self.hosts.get_mut(host) else { return };
        let at = of_host.open.iter().position(|open| Arc::ptr_eq(open, connection));
        // A connection that was evicted has no slot to give back.
        let Some(at) = at else { return };
        of_host.open.swap_remove(at);
        self.open -= 1;
        self.forget_if_empty(host);
    }

    fn forget_if_empty(&mut self, host: &Arc<str>) {
        if self.hosts.get(host).is_some_and(|host| host.open.is_empty() && host.waiting == 0) {
            self.hosts.remove(host);
        }
    }

    /// What wakes one that waits for a slot of this host, to be used without the lock.
    fn waiter(&self, host: &Arc<str>) -> Option<Arc<Notify>> {
        let host = self.hosts.get(host)?;
        (host.waiting > 0).then(|| Arc::clone(&host.freed))
    }
}

impl<T: Evictable> HostSlots<T> {
    fn first_to_evict(&self, now: Instant) -> Option<usize> {
        let open = self.open.iter().enumerate();
        let ranks = open.filter_map(|(at, one)| Some((one.eviction_rank(now)?, at)));
        ranks.min().map(|(_, at)| at)
    }
}

/// A connection's slot; its drop gives the slot back.
pub(crate) struct ConnectionSlot<T: Evictable> {
    slots: ConnectionSlots<T>,
    host: Arc<str>,
    connection: Arc<T>,
}

impl<T: Evictable> ConnectionSlot<T> {
    /// What was given for the connection when it entered.
    pub(crate) fn connection(&self) -> &Arc<T> {
        &self.connection
    }
}

impl<T: Evictable> Drop for ConnectionSlot<T> {
    fn drop(&mut self) {
        let waiter = {
            let mut table = self.slots.table.lock();
            table.release(&self.host, &self.connection);
            table.waiter(&self.host)
        };
        if let Some(waiter) = waiter {
            waiter.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::time::Duration;

    use super::*;

    pub(super) struct Connection {
        pub(super) rank: Mutex<Option<(u8, Instant)>>,
        evicted: AtomicBool,
    }

    impl Connection {
        /// One that is in use.
        pub(super) fn busy() -> Self {
            Self { rank: Mutex::new(None), evicted: AtomicBool::new(false) }
        }

        pub(super) fn is_evicted(&self) -> bool {
            self.evicted.load(Relaxed)
        }
    }

    impl Evictable for Connection {
        fn eviction_rank(&self, _: Instant) -> Option<(u8, Instant)> {
            *self.rank.lock()
        }

        fn evict(&self) {
            self.evicted.store(true, Relaxed);
        }
    }

    type Slot = ConnectionSlot<Connection>;

    /// The slot of one that is in use.
    pub(super) fn enter(
        slots: &ConnectionSlots<Connection>,
        host: &Arc<str>,
    ) -> Result<Slot, ReachedCap> {
        slots.enter(host, Connection::busy())
    }

    fn rank(slot: &Slot, rank: u8, at: Instant) {
        *slot.connection().rank.lock() = Some((rank, at));
    }

    pub(super) fn is_empty(slots: &ConnectionSlots<Connection>) -> bool {
        let table = slots.table.lock();
        table.hosts.is_empty() && table.open == 0 && table.waiting == 0
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_rank_of_a_full_host_is_evicted_and_nobody_elses() {
        let slots = ConnectionSlots::new(100, 2);
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let (first, second) = (enter(&slots, &a).unwrap(), enter(&slots, &a).unwrap());
        assert_eq!(enter(&slots, &a).err(), Some(ReachedCap::Host), "all are in use");
        let other = enter(&slots, &b).unwrap();
        let now = Instant::now();
        rank(&other, 0, now);
        rank(&first, 1, now);
        rank(&second, 0, now + Duration::from_secs(1));
        let third = enter(&slots, &a).unwrap();
        assert!(second.connection().is_evicted() && !first.connection().is_evicted());
        assert!(!other.connection().is_evicted());
        drop(second);
        let fourth = enter(&slots, &a).unwrap();
        assert!(first.connection().is_evicted(), "an evicted one gives back no second slot");
        drop((first, third, fourth, other));
        assert!(is_empty(&slots));
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_total_cap_the_largest_host_pays() {
        let slots = ConnectionSlots::new(3, 3);
        let (a, b, c) = (Arc::from("a"), Arc::from("b"), Arc::from("c"));
        let (first, second) = (enter(&slots, &a).unwrap(), enter(&slots, &a).unwrap());
        let other = enter(&slots, &b).unwrap();
        assert_eq!(enter(&slots, &c).err(), Some(ReachedCap::Total), "all are in use");
        let now = Instant::now();
        rank(&other, 0, now);
        rank(&first, 1, now);
        let third = enter(&slots, &c).unwrap();
        assert!(first.connection().is_evicted() && !other.connection().is_evicted());
        assert!(slots.evict_one() && other.connection().is_evicted());
        assert!(!slots.evict_one());
        drop((first, second, third, other));
        assert!(is_empty(&slots));
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_host_has_no_cap_of_its_own() {
        let slots = ConnectionSlots::new(3, 1);
        let unix = Arc::from("");
        let open: Vec<_> = (0..3).map(|_| enter(&slots, &unix).unwrap()).collect();
        assert_eq!(enter(&slots, &unix).err(), Some(ReachedCap::Total));
        drop(open);
        assert!(is_empty(&slots));
    }
}
