//! Who is registered for one service, and who holds each address of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Entry;
use super::quota::Account;
use crate::instance::{Address, Instance, InstanceId, ServiceName};

/// The service; `None` for what was registered by its address alone.
pub(super) type GroupName = Option<ServiceName>;

/// What is registered for one service: every slot holds one address, every address has one holder.
#[derive(Default)]
pub(super) struct Group {
    /// The store's revision at the last visible change of this group.
    pub(super) revision: u64,
    slots: HashMap<InstanceId, Slot>,
    holders: BTreeMap<Address, InstanceId>,
}

/// An instance and its lease.
pub(super) struct Slot {
    pub(super) instance: Instance,
    /// The lease's id: 128 random bits as hexadecimal.
    pub(super) lease: Arc<str>,
    pub(super) ttl: Option<Duration>,
    /// When it runs out, in the leases' time. `None`: never.
    pub(super) due: Option<Instant>,
    /// Where it stands in the queue: never later than `due`, often earlier, since a renewal only
    /// moves `due`.
    pub(super) queued: Option<Instant>,
    /// Tells slots of equal queue times apart.
    pub(super) number: u64,
    /// Whether it came through `register`, not through `register_address`.
    pub(super) registered: bool,
    /// What it takes, and on whose account.
    pub(super) account: Account,
    /// Whether it has run out once already and is kept for a while: not a second time.
    pub(super) kept: bool,
}

impl Group {
    pub(super) fn slot(&self, id: &InstanceId) -> Option<&Slot> {
        self.slots.get(id)
    }

    pub(super) fn slot_mut(&mut self, id: &InstanceId) -> Option<&mut Slot> {
        self.slots.get_mut(id)
    }

    pub(super) fn holder(&self, address: &Address) -> Option<&Slot> {
        self.slots.get(self.holders.get(address)?)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Adds a slot whose id is new and whose address is free.
    pub(super) fn insert(&mut self, slot: Slot) {
        let id = slot.instance.id.clone();
        self.holders.insert(slot.instance.address.clone(), id.clone());
        self.slots.insert(id, slot);
    }

    /// Gives the slot of this id a newer state, whose address is free or its own.
    pub(super) fn replace(&mut self, instance: Instance) {
        if let Some(slot) = self.slots.get_mut(&instance.id) {
            self.holders.remove(&slot.instance.address);
            self.holders.insert(instance.address.clone(), instance.id.clone());
            slot.instance = instance;
        }
    }

    pub(super) fn remove(&mut self, id: &InstanceId) -> Option<Slot> {
        let slot = self.slots.remove(id)?;
        self.holders.remove(&slot.instance.address);
        Some(slot)
    }

    /// Every instance, in the order of their addresses.
    pub(super) fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.in_order().map(|slot| &slot.instance)
    }

    /// The same for a listing.
    pub(super) fn entries(&self, name: &GroupName, now: Instant) -> impl Iterator<Item = Entry> {
        self.in_order().map(move |slot| Entry {
            service: name.clone(),
            instance: slot.instance.clone(),
            expires_in: slot.due.map(|due| due.saturating_duration_since(now)),
        })
    }

    /// Every slot, in no order.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    fn in_order(&self) -> impl Iterator<Item = &Slot> {
        self.holders.values().filter_map(|id| self.slots.get(id))
    }
}
