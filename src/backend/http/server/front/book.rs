//! What is registered through this front, and on whose account: its own caps, and nothing that it could
//! not do without.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::memory::{Account, Ledger, Owner, Quota, weight};
use crate::instance::{Instance, InstanceId, ServiceName};
use crate::registry::{Held, RegistryError};

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
    /// Of an address: what it is renewed by, as its own requests do not say.
    held: Option<Held>,
}

impl Book {
    pub(super) fn new(quota: Quota) -> Self {
        Self { ledger: Ledger::new(quota), items: HashMap::new(), swept: Instant::now() }
    }

    /// Takes an instance in, or goes on with it. True: it is new.
    ///
    /// # Errors
    /// There is no room for it, or not for all that it has become.
    pub(super) fn admit(
        &mut self,
        service: &ServiceName,
        instance: &Instance,
        owner: &Owner,
        until: Instant,
    ) -> Result<bool, RegistryError> {
        self.sweep();
        let bytes = weight(&Some(service.clone()), instance);
        match self.items.entry((service.clone(), instance.id.clone())) {
            Entry::Occupied(mut known) => {
                let item = known.get_mut();
                item.until = item.until.max(until);
                self.ledger.resize(&mut item.account, bytes)?;
                Ok(false)
            }
            Entry::Vacant(vacant) => {
                let account = self.ledger.open(owner, bytes, None)?;
                vacant.insert(Item { account, until, held: None });
                Ok(true)
            }
        }
    }

    pub(super) fn extend(&mut self, service: &ServiceName, id: &InstanceId, until: Instant) {
        if let Some(item) = self.items.get_mut(&(service.clone(), id.clone())) {
            item.until = until;
        }
    }

    /// It is not there any more.
    pub(super) fn close(&mut self, service: &ServiceName, id: &InstanceId) {
        if let Some(item) = self.items.remove(&(service.clone(), id.clone())) {
            self.ledger.close(&item.account);
        }
    }

    /// Keeps what an address is renewed by.
    pub(super) fn hold(&mut self, held: Held) {
        let Held { registration, .. } = &held;
        let key = (registration.service.clone(), registration.instance.id.clone());
        if let Some(item) = self.items.get_mut(&key) {
            item.held = Some(held);
        }
    }

    pub(super) fn held(&self, service: &ServiceName, id: &InstanceId) -> Option<Held> {
        self.items.get(&(service.clone(), id.clone()))?.held.clone()
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
