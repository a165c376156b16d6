//! What a process wants registered, and what to ask of the registry next: no I/O, no clock.

use std::mem;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::RegistrarStats;
use super::entry::{Entry, Phase, Sent};
use crate::instance::{Health, Instance, InstanceId, ServiceName};
use crate::registry::{Held, Lease, Registration, RegistryError, RegistryErrorKind, Renewal};
use crate::sync::{Deferred, event};

/// The first backoff; each further failure doubles it, up to the renewal interval.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// Why registrations are not renewed.
const ABANDONED: &str = "the tokio runtime that renewed the registrations has ended";

/// Emits an event about the registration with these labels.
macro_rules! event_of {
    ($level:ident, $labels:ident, $($field:tt)+) => {
        event!(
            $level,
            service = $labels.service.as_str(),
            id = $labels.id.as_str(),
            address = $labels.address.as_str(),
            $($field)+
        )
    };
}

/// The registrations of a process.
pub(super) struct Book {
    ttl: Duration,
    rng: StdRng,
    entries: Vec<Entry>,
    next_key: u64,
    /// What was said of the whole process. `None`: each instance's own word holds.
    health: Option<Health>,
    /// When the next batch of renewals starts. `None`: nothing is held.
    renew_at: Option<Instant>,
    /// One batch at a time.
    renewing: bool,
    /// Whether the registry answered when it was last asked.
    reachable: bool,
    closed: bool,
    /// All but `registered` and `overrides`, which are made when asked for.
    stats: RegistrarStats,
    /// Events, and answers to those who wait, until the book's lock is released.
    deferred: Deferred,
}

/// A request to be made.
pub(super) struct Job {
    /// What it is about, in the order of its answers.
    pub(super) sent: Vec<Sent>,
    pub(super) ask: Ask,
}

pub(super) enum Ask {
    Register(Registration),
    Renew(Vec<Held>),
}

/// What came of one registration.
pub(super) type Answer = Result<Good, RegistryError>;

pub(super) enum Good {
    Lease(Lease),
    Renewal(Renewal),
}

impl Book {
    pub(super) fn new(ttl: Duration, rng: StdRng) -> Self {
        Self {
            ttl,
            rng,
            entries: Vec::new(),
            next_key: 0,
            health: None,
            renew_at: None,
            renewing: false,
            reachable: true,
            closed: false,
            stats: RegistrarStats::default(),
            deferred: Deferred::default(),
        }
    }

    /// What is to be done once the book's lock is released.
    pub(super) fn take_deferred(&mut self) -> Deferred {
        mem::take(&mut self.deferred)
    }

    /// Adds an instance, or a new state of one. The receiver is told how the first try went.
    pub(super) fn add(
        &mut self,
        service: ServiceName,
        mut instance: Instance,
        now: Instant,
    ) -> Result<oneshot::Receiver<Result<(), RegistryError>>, RegistryError> {
        if self.closed {
            return Err(closed());
        }
        instance.health = self.health.unwrap_or(instance.health);
        let (asker, answer) = oneshot::channel();
        let known = self.entries.iter_mut().find(|entry| {
            entry.registration.service == service && entry.registration.instance.id == instance.id
        });
        if let Some(entry) = known {
            entry.update(instance, now);
            let error = RegistryError::unavailable("a newer state was registered meanwhile");
            entry.tell(Err(error), &mut self.deferred);
            entry.asker = Some(asker);
        } else {
            let registration = Registration::new(service, instance).ttl(self.ttl);
            self.entries.push(Entry::new(self.next_key, registration, asker, now));
            self.next_key += 1;
        }
        Ok(answer)
    }

    pub(super) fn set_health(&mut self, health: Health, now: Instant) {
        self.health = Some(health);
        self.entries.iter_mut().for_each(|entry| entry.set_own_health(health, now));
    }

    /// What is to be asked now. Each job is to be [`answered`](Self::answered).
    pub(super) fn due(&mut self, now: Instant) -> Vec<Job> {
        let mut jobs = Vec::new();
        if self.closed {
            return jobs;
        }
        for entry in &mut self.entries {
            if entry.end_override(now) {
                let labels = entry.labels();
                let health = entry.registration.instance.health;
                self.deferred.push(move || {
                    event_of!(
                        INFO,
                        labels,
                        health = health.as_str(),
                        "the time of an operator's override is over"
                    );
                });
            }
            let due = matches!(entry.phase, Phase::Pending { due } if due <= now);
            if due && !entry.busy {
                entry.busy = true;
                jobs.push(Job {
                    sent: vec![entry.sent(false)],
                    ask: Ask::Register(entry.registration.clone()),
                });
            }
        }
        if !self.renewing && self.renew_at.is_some_and(|at| at <= now) {
            jobs.extend(self.renewals(now));
        }
        jobs
    }

    /// When to ask for what is due again, unless an answer comes first; and whether it is closed.
    pub(super) fn next_due(&self) -> (Option<Instant>, bool) {
        if self.closed {
            return (None, true);
        }
        let registrations = self.entries.iter().filter_map(|entry| match entry.phase {
            Phase::Pending { due } if !entry.busy => Some(due),
            _ => None,
        });
        let renewals = self.renew_at.filter(|_| !self.renewing);
        let overrides = self.entries.iter().filter_map(Entry::override_end);
        (registrations.chain(renewals).chain(overrides).min(), false)
    }

    /// Takes in what came of a job. An answer that is missing is a failure.
    pub(super) fn answered(&mut self, sent: &[Sent], answers: Vec<Answer>, now: Instant) {
        let mut answers = answers.into_iter();
        let mut unreachable = None;
        let mut reached = false;
        for sent in sent {
            if sent.renewal {
                self.renewing = false;
            }
            let answer = answers.next().unwrap_or_else(|| {
                Err(RegistryError::unavailable("the registry gave no answer for it"))
            });
            match &answer {
                Err(error) if error.kind() == RegistryErrorKind::Unavailable => {
                    unreachable = Some(error.to_string());
                }
                _ => reached = true,
            }
            self.settle(*sent, answer, now);
        }
        if !answers.as_slice().is_empty() {
            // More answers than questions: the errors among them are the user's.
            self.deferred.discard(answers);
        }
        match unreachable {
            _ if reached && !self.reachable => {
                self.reachable = true;
                // As loud as what it takes back.
                self.deferred.push(|| event!(WARN, "registry reachable again"));
            }
            Some(error) if !reached && self.reachable => {
                self.reachable = false;
                self.deferred.push(move || {
                    event!(WARN, error = error.as_str(), "registry unreachable: trying on");
                });
            }
            _ => {}
        }
    }

    /// Whether of every registration the present state has been tried.
    pub(super) fn all_tried(&self) -> bool {
        self.entries.iter().all(|entry| entry.tried >= Some(entry.epoch()))
    }

    /// Whether there is something to do for a task.
    pub(super) fn is_in_use(&self) -> bool {
        !self.closed && !self.entries.is_empty()
    }

    /// The task has ended, with its runtime: forgets its requests and answers those who wait. How many
    /// registrations nobody renews from now on.
    pub(super) fn abandon(&mut self) -> usize {
        self.renewing = false;
        if self.closed {
            return 0;
        }
        for entry in &mut self.entries {
            entry.busy = false;
            // Until the next answer it does not count as registered.
            entry.failures = entry.failures.max(1);
            entry.tell(Err(RegistryError::unavailable(ABANDONED)), &mut self.deferred);
        }
        if !self.entries.is_empty() {
            self.stats.errors += 1;
            self.stats.last_error = Some(ABANDONED.to_owned());
        }
        self.entries.len()
    }

    /// From now on nothing is due, and nothing is added.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Empties the book: what is to be deregistered.
    pub(super) fn take_held(&mut self) -> Vec<Held> {
        let deferred = &mut self.deferred;
        let held = |entry: Entry| {
            if let Some(asker) = entry.asker {
                // Its drop wakes whoever waits.
                deferred.discard(asker);
            }
            entry.lease.map(|lease| Held { registration: entry.registration, lease })
        };
        self.entries.drain(..).filter_map(held).collect()
    }

    pub(super) fn stats(&self, now: Instant) -> RegistrarStats {
        let held = self.entries.iter().filter(|entry| entry.lease.is_some() && entry.failures == 0);
        let overrides = self.entries.iter().filter_map(|entry| {
            Some((entry.registration.service.clone(), entry.health_override(now)?))
        });
        RegistrarStats {
            registered: held.count(),
            overrides: overrides.collect(),
            ..self.stats.clone()
        }
    }

    fn renewals(&mut self, now: Instant) -> Option<Job> {
        let (mut sent, mut held) = (Vec::new(), Vec::new());
        let mut shortest: Option<Duration> = None;
        for entry in self.entries.iter_mut().filter(|entry| entry.phase == Phase::Held) {
            if let Some(lease) = entry.lease.clone() {
                entry.busy = true;
                sent.push(entry.sent(true));
                held.push(Held { registration: entry.registration.clone(), lease });
                let interval = entry.interval();
                shortest = Some(shortest.map_or(interval, |shortest| shortest.min(interval)));
            }
        }
        self.renew_at = shortest.map(|interval| now + self.jittered(interval));
        self.renewing = !sent.is_empty();
        self.renewing.then_some(Job { sent, ask: Ask::Renew(held) })
    }

    fn settle(&mut self, sent: Sent, answer: Answer, now: Instant) {
        let Some(at) = self.entries.iter().position(|entry| entry.key == sent.key) else {
            self.deferred.discard(answer);
            return;
        };
        let entry = &mut self.entries[at];
        entry.busy = false;
        entry.tried = entry.tried.max(Some(sent.epoch));
        // If not, its newer state is due already, and whoever waits, waits for that.
        let current = entry.epoch() == sent.epoch;
        match answer {
            Ok(Good::Lease(lease)) => {
                entry.lease = Some(lease);
                entry.was_held = true;
                entry.failures = 0;
                if current {
                    entry.held_address = true;
                    entry.is_superseded = false;
                    entry.phase = Phase::Held;
                    entry.tell(Ok(()), &mut self.deferred);
                    let labels = entry.labels();
                    let health = entry.registration.instance.health;
                    self.deferred.push(move || {
                        event_of!(
                            INFO,
                            labels,
                            epoch = sent.epoch,
                            health = health.as_str(),
                            "registered"
                        );
                    });
                }
                let interval = entry.interval();
                let at = now + self.jittered(interval);
                self.renew_at = Some(self.renew_at.map_or(at, |planned| planned.min(at)));
            }
            Ok(Good::Renewal(renewal @ (Renewal::Renewed | Renewal::Overridden(_)))) => {
                entry.failures = 0;
                self.stats.renewed += 1;
                let word = match renewal {
                    Renewal::Overridden(word) => Some(word),
                    _ => None,
                };
                if entry.take_over(word.clone(), now)
                    && let Some(word) = word
                {
                    let labels = entry.labels();
                    let health = entry.registration.instance.health;
                    self.deferred.push(move || {
                        event_of!(
                            INFO,
                            labels,
                            said = word.health.as_str(),
                            by = word.by.as_deref(),
                            reason = word.reason.as_deref(),
                            duration = ?word.duration,
                            health = health.as_str(),
                            "an operator set the health of this instance"
                        );
                    });
                }
            }
            Ok(Good::Renewal(Renewal::Lost)) => {
                let labels = entry.labels();
                self.deferred.push(move || {
                    event_of!(WARN, labels, "lease lost: registering again");
                });
                entry.lease = None;
                entry.phase = Phase::Pending { due: now };
                self.stats.lost += 1;
            }
            Err(error) => {
                self.stats.errors += 1;
                self.stats.last_error = Some(error.to_string());
                self.failed(at, current, error, now);
            }
        }
    }

    fn failed(&mut self, at: usize, current: bool, error: RegistryError, now: Instant) {
        let entry = &mut self.entries[at];
        match error.kind() {
            // Of an older state than the present one, which is due already.
            RegistryErrorKind::StaleEpoch { held } if !current && held < entry.epoch() => {
                entry.phase = Phase::Pending { due: now };
                self.deferred.discard(error);
            }
            RegistryErrorKind::Superseded { .. } if !current => {
                entry.phase = Phase::Pending { due: now };
                self.deferred.discard(error);
            }
            RegistryErrorKind::Superseded { held } => self.superseded(at, held, error, now),
            RegistryErrorKind::StaleEpoch { held } if !entry.was_held && !entry.raised => {
                entry.raised = true;
                let higher = entry.epoch().max(held.saturating_add(1));
                entry.registration.instance.epoch = higher;
                entry.phase = Phase::Pending { due: now };
                self.deferred.discard(error);
            }
            RegistryErrorKind::StaleEpoch { held } => {
                let (labels, epoch) = (entry.labels(), entry.epoch());
                self.deferred.push(move || {
                    event_of!(
                        WARN,
                        labels,
                        epoch,
                        held,
                        "superseded: another process has registered this id"
                    );
                });
                self.stats.superseded += 1;
                self.entries.remove(at).tell(Err(error), &mut self.deferred);
            }
            RegistryErrorKind::Invalid if current && entry.asker.is_some() => {
                let (labels, text) = (entry.labels(), error.to_string());
                self.deferred.push(move || {
                    event_of!(WARN, labels, error = %text, "registration refused");
                });
                self.entries.remove(at).tell(Err(error), &mut self.deferred);
            }
            _ => {
                entry.failures = entry.failures.saturating_add(1);
                // A token may be let in later: what would be asked for stays right.
                if error.kind() == RegistryErrorKind::NotAllowed && entry.failures == 1 {
                    let (labels, text) = (entry.labels(), error.to_string());
                    self.deferred.push(move || {
                        let service = labels.service.as_str();
                        event!(WARN, service, error = %text, "not allowed: trying on");
                    });
                }
                if current {
                    let doublings = 1_u32 << (entry.failures - 1).min(16);
                    let most = FIRST_BACKOFF.saturating_mul(doublings).min(entry.interval());
                    // What the registry asks for, but no longer than a lease can wait.
                    let least = error.retry_after().unwrap_or_default().min(entry.interval());
                    entry.tell(Err(error), &mut self.deferred);
                    let backoff = self.rng.random_range(Duration::ZERO..=most);
                    entry.phase = Phase::Pending { due: now + least + backoff };
                } else {
                    self.deferred.discard(error);
                }
            }
        }
    }

    /// Another instance of the service holds this one's address.
    fn superseded(&mut self, at: usize, held: u64, error: RegistryError, now: Instant) {
        let entry = &mut self.entries[at];
        let health = entry.registration.instance.health;
        if entry.own_health() == Health::Draining {
            let (labels, holder) = (entry.labels(), error.holder().cloned());
            self.deferred.push(move || {
                event_of!(
                    INFO,
                    labels,
                    holder = holder.as_ref().map(InstanceId::as_str),
                    "superseded while it drains: its registration ends"
                );
            });
            self.stats.superseded += u64::from(!entry.is_superseded);
            self.entries.remove(at).tell(Err(error), &mut self.deferred);
            return;
        }
        // A host whose clock is behind gets its address all the same.
        if health == Health::Up && !entry.held_address && !entry.raised_for_address {
            entry.raised_for_address = true;
            let higher = entry.epoch().max(held.saturating_add(1));
            entry.registration.instance.epoch = higher;
            entry.phase = Phase::Pending { due: now };
            self.deferred.discard(error);
            return;
        }
        if !entry.is_superseded {
            entry.is_superseded = true;
            self.stats.superseded += 1;
            let (labels, epoch) = (entry.labels(), entry.epoch());
            let holder = error.holder().cloned();
            self.deferred.push(move || {
                event_of!(
                    WARN,
                    labels,
                    epoch,
                    held,
                    holder = holder.as_ref().map(InstanceId::as_str),
                    "superseded: another instance holds this address; asking again once a TTL"
                );
            });
        }
        entry.lease = None;
        entry.tell(Err(error), &mut self.deferred);
        let wait = entry.registration.ttl;
        let wait = self.jittered(wait);
        self.entries[at].phase = Phase::Pending { due: now + wait };
    }

    /// The interval, up to a tenth shorter or longer, so that processes which started together do
    /// not renew together.
    fn jittered(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(self.rng.random_range(0.9..=1.1))
    }
}

/// What is answered to whoever registers, or waits for a registration, when the registrar closes.
pub(super) fn closed() -> RegistryError {
    RegistryError::new(RegistryErrorKind::Invalid, "the registrar is closed")
}
