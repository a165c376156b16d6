//! One registration, and how it stands with the registry.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::instance::Instance;
use crate::registry::{Lease, Registration, RegistryError};

/// Renewals are never closer than this, whatever lease is granted.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// A registration that is kept alive. One that was superseded or refused is no entry any more.
pub(super) struct Entry {
    /// Names it in requests; the entry may be gone when the answer comes.
    pub(super) key: u64,
    pub(super) registration: Registration,
    pub(super) phase: Phase,
    /// The last one granted, kept through failures: what is to be deregistered in the end.
    pub(super) lease: Option<Lease>,
    /// Whether a request about it is under way.
    pub(super) busy: bool,
    /// How many tries failed since the last good one.
    pub(super) failures: u32,
    /// The newest epoch of which a try has ended, well or not.
    pub(super) tried: Option<u64>,
    /// Whether this process ever held its id: from then on a higher epoch is another process's.
    pub(super) was_held: bool,
    /// Whether this process ever held its address: from then on another holder there is newer.
    pub(super) held_address: bool,
    /// Whether it took the epoch of its id's former holder plus one, which it may once.
    pub(super) raised: bool,
    /// The same of its address's former holder.
    pub(super) raised_for_address: bool,
    /// Whether another instance holds its address, since the last lease that was granted.
    pub(super) is_superseded: bool,
    /// Who waits for the first try.
    pub(super) asker: Option<oneshot::Sender<Result<(), RegistryError>>>,
}

/// How a registration stands with the registry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The registry does not know its present state; to be registered at this time.
    Pending { due: Instant },
    /// The registry holds it; to be renewed with the next batch.
    Held,
}

/// A registration as it was sent in one request.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub(super) key: u64,
    pub(super) epoch: u64,
    pub(super) renewal: bool,
}

impl Entry {
    /// A registration of which the registry has not heard.
    pub(super) fn new(
        key: u64,
        registration: Registration,
        asker: oneshot::Sender<Result<(), RegistryError>>,
        now: Instant,
    ) -> Self {
        Self {
            key,
            registration,
            phase: Phase::Pending { due: now },
            lease: None,
            busy: false,
            failures: 0,
            tried: None,
            was_held: false,
            held_address: false,
            raised: false,
            raised_for_address: false,
            is_superseded: false,
            asker: Some(asker),
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.registration.instance.epoch
    }

    /// Takes a newer state, with a higher epoch.
    pub(super) fn update(&mut self, mut instance: Instance, now: Instant) {
        instance.epoch = instance.epoch.max(self.epoch().saturating_add(1));
        if instance.address != self.registration.instance.address {
            self.held_address = false;
            self.raised_for_address = false;
            self.is_superseded = false;
        }
        self.registration.instance = instance;
        self.phase = Phase::Pending { due: now };
    }

    pub(super) fn sent(&self, renewal: bool) -> Sent {
        Sent { key: self.key, epoch: self.epoch(), renewal }
    }

    /// How often it is to be renewed: a third of the lease granted, or of the one asked for where
    /// the registry does not say.
    pub(super) fn interval(&self) -> Duration {
        let granted = self.lease.as_ref().and_then(|lease| lease.ttl);
        let asked = self.registration.ttl;
        // No registry can make it renew later than it asked for.
        (granted.unwrap_or(asked).min(asked) / 3).max(MIN_INTERVAL)
    }

    /// Tells whoever waits, if still someone does.
    pub(super) fn tell(&mut self, result: Result<(), RegistryError>) {
        if let Some(asker) = self.asker.take() {
            let _ = asker.send(result);
        }
    }

    pub(super) fn service(&self) -> &str {
        self.registration.service.as_str()
    }

    pub(super) fn id(&self) -> &str {
        self.registration.instance.id.as_str()
    }

    pub(super) fn address(&self) -> &str {
        self.registration.instance.address.as_str()
    }
}
