//! What is registered through this front, and on whose account: its own caps, and nothing that it could
//! not do without.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::memory::{Account, Ledger, Owner, Quota, weight};
use crate::call::after;
use crate::instance::{Instance, InstanceId, ServiceName};
use crate::registry::{Held, Lease, Registration, RegistryError};

/// How often what has run out is looked for.
const SWEEP: Duration = Duration::from_secs(1);

type Key = (ServiceName, InstanceId);

pub(super) struct Book {
    ledger: Ledger,
    items: HashMap<Key, Item>,
    swept: Instant,
}

struct Item {
    account: Account,
    /// Until when its lease holds, as far as this front has heard.
    until: Instant,
    /// Of what was registered here: how it is renewed.
    held: Option<Held>,
}

impl Book {
    pub(super) fn new(quota: Quota) -> Self {
        Self { ledger: Ledger::new(quota), items: HashMap::new(), swept: Instant::now() }
    }

    /// Takes an instance in, or goes on with it, whatever it has become: what is there may stay.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn admit(
        &mut self,
        service: &ServiceName,
        instance: &Instance,
        owner: &Owner,
        until: Instant,
    ) -> Result<(), RegistryError> {
        self.sweep();
        let bytes = weight(&Some(service.clone()), instance);
        match self.items.entry((service.clone(), instance.id.clone())) {
            Entry::Occupied(mut known) => {
                let item = known.get_mut();
                item.until = item.until.max(until);
                self.ledger.resize_to(&mut item.account, bytes);
            }
            Entry::Vacant(vacant) => {
                let account = self.ledger.open(owner, bytes, None)?;
                vacant.insert(Item { account, until, held: None });
            }
        }
        Ok(())
    }

    /// It was registered.
    pub(super) fn hold(&mut self, held: Held, owner: &Owner, until: Instant) {
        let Registration { service, instance, .. } = &held.registration;
        // It may have gone meanwhile: then it comes back, if there is room.
        let _ = self.admit(service, instance, owner, until);
        if let Some(item) = self.items.get_mut(&key(&held)) {
            item.until = until;
            item.held = Some(held);
        }
    }

    /// It was renewed, for as long as was granted; for `longest` where another front did that, since who
    /// asks is not to be believed.
    pub(super) fn renewed(
        &mut self,
        renewed: &Held,
        owner: &Owner,
        longest: Duration,
        now: Instant,
    ) {
        let Registration { service, instance, .. } = &renewed.registration;
        let known = self.items.get(&key(renewed)).and_then(|item| item.held.as_ref());
        let lease = known.map(|held| &held.lease).filter(|lease| lease.id == renewed.lease.id);
        // The backend says that this is its lease.
        let lease = lease.cloned().unwrap_or(Lease::new(renewed.lease.id.clone(), Some(longest)));
        let until = after(now, lease.ttl.unwrap_or(longest));
        // Without room for it, it is renewed all the same.
        let _ = self.admit(service, instance, owner, until);
        if let Some(item) = self.items.get_mut(&key(renewed)) {
            item.held = Some(Held { registration: renewed.registration.clone(), lease });
        }
    }

    /// It was not registered, as far as this request is concerned.
    pub(super) fn refused(&mut self, service: &ServiceName, id: &InstanceId) {
        let key = (service.clone(), id.clone());
        if self.items.get(&key).is_some_and(|item| item.held.is_none()) {
            self.close(&key);
        }
    }

    /// It was taken back by one who knows its lease: what was registered then.
    pub(super) fn taken_back(&mut self, back: &Held) -> Option<Registration> {
        let key = key(back);
        let held = self.items.get(&key)?.held.as_ref()?;
        let Registration { instance, .. } = &back.registration;
        let is_same =
            held.lease.id == back.lease.id && held.registration.instance.epoch <= instance.epoch;
        let registration = is_same.then(|| held.registration.clone())?;
        self.close(&key);
        Some(registration)
    }

    pub(super) fn held(&self, service: &ServiceName, id: &InstanceId) -> Option<Held> {
        self.items.get(&(service.clone(), id.clone()))?.held.clone()
    }

    fn close(&mut self, key: &Key) {
        if let Some(item) = self.items.remove(key) {
            self.ledger.close(&item.account);
        }
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        let Self { ledger, items, .. } = self;
        items.retain(|_, item| {
            let holds = item.until > now;
            if !holds {
                ledger.close(&item.account);
            }
            holds
        });
    }
}

fn key(held: &Held) -> Key {
    let Registration { service, instance, .. } = &held.registration;
    (service.clone(), instance.id.clone())
}
