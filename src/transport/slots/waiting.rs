//! Waiting for a connection slot of a host whose connections are all in use.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{ConnectionSlot, ConnectionSlots, Evictable, ReachedCap, Table};

/// How long a connection waits for a slot.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// Of all connections one in this many may wait.
const WAITING_SHARE: usize = 4;

/// What became of a new connection.
pub(crate) enum Entered<T: Evictable> {
    /// It has a slot.
    Now(ConnectionSlot<T>),
    /// All connections of its host are in use: it may wait for one of them.
    Later(WaitingConnection<T>),
    /// It is refused.
    Refused(ReachedCap),
}

impl<T: Evictable> ConnectionSlots<T> {
    /// A slot for a connection from `host`, for which another may be evicted; or a place among those
    /// that wait for one.
    pub(crate) fn enter_or_wait(&self, host: &Arc<str>, connection: T) -> Entered<T> {
        let connection = Arc::new(connection);
        match self.place(host, &connection) {
            Ok(()) => return Entered::Now(self.slot(host, connection)),
            Err(ReachedCap::Total) => return Entered::Refused(ReachedCap::Total),
            Err(ReachedCap::Host) => {}
        }
        let waits = self.table.lock().wait(host);
        match waits {
            Ok(freed) => {
                let (slots, host) = (self.clone(), Arc::clone(host));
                Entered::Later(WaitingConnection { slots, host, connection, freed })
            }
            Err(cap) => Entered::Refused(cap),
        }
    }
}

impl<T: Evictable> ConnectionSlot<T> {
    /// Whether so few slots are left that a connection should close behind its answer.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let seven_eighths = |max: usize| max - max / 8;
        let table = self.slots.table.lock();
        let host = table.hosts.get(&self.host).filter(|_| !self.host.is_empty());
        let of_host = host.map_or(0, |host| host.open.len() + host.waiting);
        (host.is_some() && of_host >= seven_eighths(table.max_per_host))
            || table.open + table.waiting >= seven_eighths(table.max)
    }
}

impl<T: Evictable> Table<T> {
    fn wait(&mut self, host: &Arc<str>) -> Result<Arc<Notify>, ReachedCap> {
        if self.open + self.waiting >= self.max {
            return Err(ReachedCap::Total);
        }
        if self.waiting >= self.max / WAITING_SHARE {
            return Err(ReachedCap::Host);
        }
        self.waiting += 1;
        let of_host = self.hosts.entry(Arc::clone(host)).or_default();
        of_host.waiting += 1;
        Ok(Arc::clone(&of_host.freed))
    }

    /// Gives one that waits a slot: a free one, or that of the connection that is returned.
    fn place_waiting(
        &mut self,
        host: &Arc<str>,
        connection: &Arc<T>,
        now: Instant,
    ) -> Result<Option<Arc<T>>, ReachedCap> {
        if self.is_full(host) {
            return self.replace(host, connection, now).map(Some);
        }
        self.insert(host, connection);
        Ok(None)
    }
}

/// A connection that waits for a slot of its host; its drop gives up its place.
pub(crate) struct WaitingConnection<T: Evictable> {
    slots: ConnectionSlots<T>,
    host: Arc<str>,
    connection: Arc<T>,
    freed: Arc<Notify>,
}

impl<T: Evictable> WaitingConnection<T> {
    /// A slot, within a second.
    pub(crate) async fn slot(self) -> Result<ConnectionSlot<T>, ReachedCap> {
        let until = Instant::now() + MAX_WAIT;
        loop {
            let is_over = timeout_at(until, self.freed.notified()).await.is_err();
            let now = Instant::now();
            let placed = self.slots.table.lock().place_waiting(&self.host, &self.connection, now);
            match placed {
                Ok(victim) => {
                    if let Some(victim) = victim {
                        victim.evict();
                    }
                    return Ok(self.slots.slot(&self.host, Arc::clone(&self.connection)));
                }
                Err(cap) if is_over => return Err(cap),
                Err(_) => {}
            }
        }
    }
}

impl<T: Evictable> Drop for WaitingConnection<T> {
    fn drop(&mut self) {
        let waiter = {
            let mut table = self.slots.table.lock();
            table.waiting -= 1;
            if let Some(host) = table.hosts.get_mut(&self.host) {
                host.waiting -= 1;
            }
            table.forget_if_empty(&self.host);
            // It may have been woken for a slot that it does not take: the next one looks.
            table.waiter(&self.host)
        };
        if let Some(waiter) = waiter {
            waiter.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Connection, enter, is_empty};
    use super::*;

    fn waiting(
        slots: &ConnectionSlots<Connection>,
        host: &Arc<str>,
    ) -> WaitingConnection<Connection> {
        match slots.enter_or_wait(host, Connection::busy()) {
            Entered::Later(waiting) => waiting,
            Entered::Now(_) => panic!("it has a slot"),
            Entered::Refused(cap) => panic!("{cap:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_while_all_of_its_host_are_in_use() {
        let (slots, a) = (ConnectionSlots::new(100, 1), Arc::from("a"));
        let busy = enter(&slots, &a).unwrap();
        let later = tokio::spawn(waiting(&slots, &a).slot());
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!later.is_finished());
        drop(busy);
        let slot = later.await.unwrap().unwrap();
        assert_eq!(waiting(&slots, &a).slot().await.err(), Some(ReachedCap::Host));
        drop(slot);
        assert!(is_empty(&slots));
    }

    #[tokio::test(start_paused = true)]
    async fn each_slot_that_is_given_back_serves_one_that_waits() {
        let (slots, a) = (ConnectionSlots::new(100, 3), Arc::from("a"));
        let busy: Vec<_> = (0..3).map(|_| enter(&slots, &a).unwrap()).collect();
        let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(waiting(&slots, &a).slot())).collect();
        // All of them at once: some were not yet polled, and one wake-up is kept at most.
        drop(busy);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let served = waiting.iter().filter(|one| one.is_finished()).count();
        assert_eq!(served, 3);
        let mut slots_held = Vec::new();
        for one in waiting {
            slots_held.extend(one.await.unwrap().ok());
        }
        assert_eq!(slots_held.len(), 3, "the fourth is refused");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quarter_of_all_may_wait_and_new_ones_queue_behind_them() {
        let (slots, a) = (ConnectionSlots::new(8, 1), Arc::from("a"));
        let busy = enter(&slots, &a).unwrap();
        let first = waiting(&slots, &a);
        let second = waiting(&slots, &a);
        let refused = slots.enter_or_wait(&a, Connection::busy());
        assert!(matches!(refused, Entered::Refused(ReachedCap::Host)));
        drop((busy, second));
        // The slot is free, and is for the one that waits.
        assert_eq!(enter(&slots, &a).err(), Some(ReachedCap::Host));
        let slot = first.slot().await.unwrap();
        assert!(!slot.connection().is_evicted() && slot.is_nearly_full());
        drop(slot);
        assert!(is_empty(&slots));
    }
}
