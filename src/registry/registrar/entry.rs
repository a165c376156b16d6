//! One registration, and how it stands with the registry.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::call::after;
use crate::instance::{Address, Health, Instance, InstanceId, ServiceName};
use crate::registry::{HealthOverride, Lease, Registration, RegistryError};
use crate::sync::Deferred;

/// Renewals are never closer than this, whatever lease is granted.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// A registration that is kept alive. One that was superseded or refused is no entry any more.
pub(super) struct Entry {
    /// Names it in requests; the entry may be gone when the answer comes.
    pub(super) key: u64,
    /// Its instance's health is the worse of its own and of an operator's word.
    pub(super) registration: Registration,
    /// What the process says of the instance.
    own_health: Health,
    /// What an operator says of it. It holds whatever registry is met.
    said: Option<Said>,
    /// What the registry said last: the same again is no news, though the operator may have taken it
    /// back elsewhere since.
    told: Option<Said>,
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

/// An operator's word, and when it ends.
#[derive(Clone)]
struct Said {
    /// Without a duration.
    word: HealthOverride,
    until: Option<Instant>,
}

/// How much later the same word may seem to end because its answer took longer.
const SAME_END: Duration = Duration::from_secs(2);

impl Said {
    fn is_same(&self, other: &Self) -> bool {
        let apart = match (self.until, other.until) {
            (Some(one), Some(other)) => one.max(other) - one.min(other),
            (None, None) => Duration::ZERO,
            _ => return false,
        };
        self.word == other.word && apart <= SAME_END
    }
}

/// How a registration stands with the registry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The registry does not know its present state; to be registered at this time.
    Pending { due: Instant },
    /// The registry holds it; to be renewed with the next batch.
    Held,
}

/// What events call a registration.
pub(super) struct Labels {
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    pub(super) address: Address,
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
            own_health: registration.instance.health,
            said: None,
            told: None,
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
        self.own_health = instance.health;
        instance.health = self.health();
        if instance.address != self.registration.instance.address {
            self.held_address = false;
            self.raised_for_address = false;
            self.is_superseded = false;
        }
        self.raise(instance, now);
    }

    /// What the process itself says of the instance.
    pub(super) fn own_health(&self) -> Health {
        self.own_health
    }

    pub(super) fn set_own_health(&mut self, health: Health, now: Instant) {
        self.own_health = health;
        self.settle_health(now);
    }

    /// Takes over what the registry tells of an operator's word, or that it tells of none. True: it is
    /// news.
    pub(super) fn take_over(&mut self, word: Option<HealthOverride>, now: Instant) -> bool {
        let Some(word) = word else {
            self.told = None;
            return false;
        };
        let until = word.duration.map(|duration| after(now, duration));
        let said = Said { word: HealthOverride { duration: None, ..word }, until };
        if self.told.as_ref().is_some_and(|told| told.is_same(&said)) {
            return false;
        }
        self.said = (said.word.health != Health::Up).then(|| said.clone());
        self.told = Some(said);
        // A higher epoch in any case: it tells the registry that its word has arrived.
        let instance = Instance { health: self.health(), ..self.registration.instance.clone() };
        self.raise(instance, now);
        true
    }

    /// What an operator says of the instance, with the time that is left of it.
    pub(super) fn health_override(&self, now: Instant) -> Option<HealthOverride> {
        let Said { word, until } = self.said.as_ref()?;
        let duration = until.map(|until| until.saturating_duration_since(now));
        Some(HealthOverride { duration, ..word.clone() })
    }

    /// When the operator's word ends by itself.
    pub(super) fn override_end(&self) -> Option<Instant> {
        self.said.as_ref()?.until
    }

    /// Ends an operator's word whose time is over. True: it has ended.
    pub(super) fn end_override(&mut self, now: Instant) -> bool {
        let is_over = self.override_end().is_some_and(|end| end <= now);
        if is_over {
            self.said = None;
            self.settle_health(now);
        }
        is_over
    }

    fn health(&self) -> Health {
        let said = self.said.as_ref().map_or(Health::Up, |said| said.word.health);
        self.own_health.worse_of(said)
    }

    /// Has the registry told if the instance is to be listed differently.
    fn settle_health(&mut self, now: Instant) {
        let health = self.health();
        if self.registration.instance.health != health {
            let instance = Instance { health, ..self.registration.instance.clone() };
            self.raise(instance, now);
        }
    }

    /// Has a newer state registered.
    fn raise(&mut self, mut instance: Instance, now: Instant) {
        instance.epoch = instance.epoch.max(self.epoch().saturating_add(1));
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
    pub(super) fn tell(&mut self, result: Result<(), RegistryError>, deferred: &mut Deferred) {
        match self.asker.take() {
            // Its waker, and the drop of an error that nobody takes, are the user's.
            Some(asker) => deferred.push(move || _ = asker.send(result)),
            None => deferred.discard(result),
        }
    }

    /// What events call it.
    pub(super) fn labels(&self) -> Labels {
        let Registration { service, instance, .. } = &self.registration;
        Labels {
            service: service.clone(),
            id: instance.id.clone(),
            address: instance.address.clone(),
        }
    }
}
