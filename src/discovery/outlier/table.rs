//! Which endpoints are ejected, why, and until when: a table to which time is an argument.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::OutlierEjection;
use crate::call::after;
use crate::discovery::{Endpoint, EndpointSet, EndpointStats};
use crate::instance::Health;
use crate::sync::{Deferred, Mutex, event};

/// How often the table is gone through again while an endpoint is ejected: whether enough others
/// are usable changes by itself, as reconnects are put off or succeed.
const REVIEW: Duration = Duration::from_secs(1);

/// The outliers among a resolver's endpoints.
///
/// Two things eject an endpoint: a connection to it whose ping is not answered, for as long as that
/// lasts, and a *case*, made by how calls to it went, for a time that grows. What a pick reads is
/// one flag on the endpoint, which is set here alone, within the quota and unless too few would
/// stay.
pub(crate) struct Outliers {
    settings: OutlierEjection,
    state: Mutex<State>,
    /// Something is due earlier than it was.
    pub(super) changed: Notify,
    ejections: AtomicU64,
    readmissions: AtomicU64,
    panicking: AtomicBool,
}

struct State {
    endpoints: Arc<EndpointSet>,
    /// That of the snapshot whose endpoints these are.
    generation: u64,
    /// By the endpoint's key.
    cases: HashMap<usize, Case>,
    rng: StdRng,
    /// When shares were taken last.
    evaluated: Instant,
    /// Whether any endpoint is suspect or has an open case.
    troubled: bool,
}

/// An endpoint that is ejected, or was lately.
struct Case {
    endpoint: Endpoint,
    /// How many ejections are not yet forgotten.
    level: u32,
    opened: Instant,
    /// `None`: taken back.
    out: Option<Out>,
}

struct Out {
    /// When it may be probed, or, without a probe, is taken back.
    until: Instant,
    /// A newer registration said "up": a probe is due now, and `until` stays where it stood.
    is_renewed: bool,
    probing: bool,
    /// For a ping without answer alone: the answer to that ping ends it too.
    suspicion: bool,
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy)]
enum Reason {
    Row(u32),
    Share { own: f64, others: f64 },
}

impl Outliers {
    pub(crate) fn new(settings: OutlierEjection, seed: u64, now: Instant) -> Self {
        Self {
            settings,
            state: Mutex::new(State {
                endpoints: Arc::default(),
                generation: 0,
                cases: HashMap::new(),
                rng: StdRng::seed_from_u64(seed),
                evaluated: now,
                troubled: false,
            }),
            changed: Notify::new(),
            ejections: AtomicU64::new(0),
            readmissions: AtomicU64::new(0),
            panicking: AtomicBool::new(false),
        }
    }

    pub(super) fn settings(&self) -> &OutlierEjection {
        &self.settings
    }

    /// How many ejections there were.
    pub(crate) fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// How many times an endpoint was taken back.
    pub(crate) fn readmissions(&self) -> u64 {
        self.readmissions.load(Relaxed)
    }

    /// Whether ejection is ignored, since too few endpoints would stay usable.
    pub(crate) fn is_panicking(&self) -> bool {
        self.panicking.load(Relaxed)
    }

    /// Takes the endpoints of a snapshot, unless it has those of a newer one; what is no longer listed is
    /// forgotten.
    pub(crate) fn follow(&self, endpoints: &Arc<EndpointSet>, generation: u64, now: Instant) {
        let mut deferred = Deferred::default();
        let mut state = self.state.lock();
        if generation < state.generation {
            return;
        }
        state.generation = generation;
        if state.endpoints.len() < 2 && state.cases.is_empty() {
            // Nobody was compared until now: what went before is no part of the first interval.
            state.evaluated = now;
            endpoints.iter().for_each(|endpoint| _ = endpoint.stats().since_last_look());
        }
        state.endpoints = Arc::clone(endpoints);
        if !state.cases.is_empty() {
            let listed: HashMap<usize, &Endpoint> =
                endpoints.iter().map(|endpoint| (endpoint.key(), endpoint)).collect();
            state.cases.retain(|key, case| match listed.get(key) {
                Some(endpoint) => {
                    let (before, instance) = (case.endpoint.instance(), endpoint.instance());
                    if let Some(out) = &mut case.out {
                        out.is_renewed |=
                            instance.epoch > before.epoch && instance.health == Health::Up;
                    }
                    case.endpoint = (*endpoint).clone();
                    true
                }
                None => false,
            });
        }
        self.review(&mut state, now, &mut deferred);
        drop(state);
        // When something is due was computed for the old list.
        self.changed.notify_one();
    }

    /// An endpoint has failed so many times in a row.
    pub(crate) fn failed(&self, stats: &EndpointStats, row: u32, now: Instant) {
        let threshold = self.settings.consecutive_failures;
        if threshold == 0 || row < threshold {
            return;
        }
        let mut deferred = Deferred::default();
        let mut state = self.state.lock();
        let found = state.endpoints.iter().find(|endpoint| endpoint.key() == stats.key()).cloned();
        let is_ejected = found.is_some_and(|endpoint| {
            self.eject(&mut state, endpoint, Reason::Row(row), now, &mut deferred)
        });
        drop(state);
        if is_ejected {
            self.changed.notify_one();
        }
    }

    /// A connection's ping is not answered, or now is, which is `heard`, or the connection has ended
    /// without: what `stats` count has changed.
    pub(crate) fn suspected(&self, stats: &EndpointStats, heard: bool, now: Instant) {
        let mut deferred = Deferred::default();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let key = stats.key();
        let Some(endpoint) = state.endpoints.iter().find(|endpoint| endpoint.key() == key) else {
            return;
        };
        let case = state.cases.entry(key).or_insert_with(|| Case {
            endpoint: endpoint.clone(),
            level: 0,
            opened: now,
            out: None,
        });
        match &mut case.out {
            None if stats.is_suspect() => {
                case.opened = now;
                // Probed at once: if one handler holds up its connection, a new one is answered.
                let until = now;
                case.out = Some(Out { until, is_renewed: false, probing: false, suspicion: true });
                self.ejections.fetch_add(1, Relaxed);
            }
            // Nobody has heard of it: no user's call is to find out, but a probe, and now.
            Some(out) if out.suspicion && !stats.is_suspect() && !heard => {
                out.suspicion = false;
                if !out.probing {
                    out.until = now;
                }
            }
            Some(out) if out.suspicion && !stats.is_suspect() => {
                case.out = None;
                stats.begin_anew(now, self.settings.slow_start);
                self.readmissions.fetch_add(1, Relaxed);
            }
            _ => {}
        }
        self.review(state, now, &mut deferred);
        drop(guard);
        self.changed.notify_one();
    }

    /// When something is due next; `None` while nothing is.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let state = self.state.lock();
        let probe = state.cases.values().filter_map(|case| case.out.as_ref());
        let probe = probe.filter(|out| !out.probing);
        let probe = probe.map(|out| if out.is_renewed { now } else { out.until }).min();
        let review = state.troubled.then(|| now + REVIEW);
        let shares = (state.endpoints.len() > 1 || !state.cases.is_empty())
            .then(|| after(state.evaluated, self.settings.interval));
        [probe, review, shares].into_iter().flatten().min()
    }

    /// Does what is due; the endpoints to be probed now, and whether that is before their time.
    pub(super) fn turn(&self, now: Instant) -> Vec<(Endpoint, bool)> {
        let mut deferred = Deferred::default();
        let mut state = self.state.lock();
        if now >= after(state.evaluated, self.settings.interval) {
            self.take_shares(&mut state, now, &mut deferred);
        }
        self.review(&mut state, now, &mut deferred);
        let mut probed = Vec::new();
        for case in state.cases.values_mut() {
            if let Some(out) = &mut case.out
                && !out.probing
                && (out.is_renewed || now >= out.until)
            {
                out.probing = true;
                out.is_renewed = false;
                probed.push((case.endpoint.clone(), now < out.until));
            }
        }
        probed
    }

    /// Forgets the probes of a task that has ended: what is due is probed again.
    pub(super) fn forget_probes(&self) {
        let mut state = self.state.lock();
        for out in state.cases.values_mut().filter_map(|case| case.out.as_mut()) {
            out.probing = false;
        }
    }

    /// A probe ended; an endpoint that answered is taken back.
    pub(super) fn probed(&self, endpoint: &Endpoint, answered: bool, now: Instant) {
        let mut deferred = Deferred::default();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(case) = state.cases.get_mut(&endpoint.key()) else { return };
        let Some(out) = &mut case.out else { return };
        // Of a suspicion every connection that has it must have heard, or have been replaced.
        if answered && !(out.suspicion && endpoint.stats().is_suspect()) {
            case.out = None;
            endpoint.stats().begin_anew(now, self.settings.slow_start);
            self.readmissions.fetch_add(1, Relaxed);
            let address = endpoint.instance().address.clone();
            let after = now.saturating_duration_since(case.opened);
            deferred.push(move || {
                event!(INFO, endpoint = %address, ?after, "taken back: it answers");
            });
        } else {
            out.probing = false;
            // A probe before its time, which a newer registration earned, changes nothing if it fails.
            if now >= out.until {
                out.until = after(now, jittered(&mut state.rng, self.settings.probe_interval));
            }
        }
        self.review(state, now, &mut deferred);
    }

    /// True: the endpoint is ejected from now on.
    fn eject(
        &self,
        state: &mut State,
        endpoint: Endpoint,
        reason: Reason,
        now: Instant,
        deferred: &mut Deferred,
    ) -> bool {
        let key = endpoint.key();
        let known = state.cases.get(&key);
        if known.is_some_and(|case| case.out.is_some()) {
            return false;
        }
        let ready = state.endpoints.iter().filter(|endpoint| endpoint.is_ready()).count();
        let open = |endpoint: &&Endpoint| {
            endpoint.stats().is_suspect()
                || state.cases.get(&endpoint.key()).is_some_and(|case| case.out.is_some())
        };
        let ejected = state.endpoints.iter().filter(|e| e.is_ready()).filter(open).count();
        if ejected >= self.settings.quota(ready) {
            let address = endpoint.instance().address.clone();
            deferred.push(move || {
                event!(
                    DEBUG,
                    endpoint = %address, %reason, ejected, ready,
                    "not ejected: no more may be"
                );
            });
            // It has as many tries again.
            endpoint.stats().forgive();
            return false;
        }
        let level = known.map_or(0, |case| case.level);
        let time = jittered(&mut state.rng, self.settings.time(level));
        let address = endpoint.instance().address.clone();
        deferred.push(move || event!(WARN, endpoint = %address, %reason, ?time, "ejected"));
        endpoint.stats().count_ejection();
        self.ejections.fetch_add(1, Relaxed);
        let until = after(now, time);
        let out = Some(Out { until, is_renewed: false, probing: false, suspicion: false });
        state.cases.insert(key, Case { endpoint, level: level + 1, opened: now, out });
        self.review(state, now, deferred);
        true
    }

    /// Compares the endpoints' shares of successes, and forgets what is long ago.
    fn take_shares(&self, state: &mut State, now: Instant, deferred: &mut Deferred) {
        state.evaluated = now;
        state.cases.retain(|_, case| {
            if case.out.is_none() {
                case.level = case.level.saturating_sub(1);
            }
            case.level > 0 || case.out.is_some()
        });
        let shares: Vec<(Endpoint, f64)> = state
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                let (succeeded, failed) = endpoint.stats().since_last_look();
                let calls = succeeded + failed;
                (calls >= self.settings.min_calls.max(1))
                    .then(|| (endpoint.clone(), succeeded as f64 / calls as f64))
            })
            .collect();
        if self.settings.success_ratio <= 0.0 || shares.len() < 2 {
            return;
        }
        let sum: f64 = shares.iter().map(|(_, share)| share).sum();
        let mut worst_first = shares.clone();
        worst_first.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        for (endpoint, own) in worst_first {
            let others = (sum - own) / (shares.len() - 1) as f64;
            if own < others * self.settings.success_ratio {
                self.eject(state, endpoint, Reason::Share { own, others }, now, deferred);
            }
        }
    }

    /// Sets each endpoint's flag: within the quota, the suspects first, and then who was ejected
    /// first; none if too few would stay usable.
    fn review(&self, state: &mut State, now: Instant, deferred: &mut Deferred) {
        let ready = || state.endpoints.iter().filter(|endpoint| endpoint.is_ready());
        let opened = |endpoint: &&Endpoint| {
            let case = state.cases.get(&endpoint.key());
            case.filter(|case| case.out.is_some()).map(|case| case.opened)
        };
        let mut bad: Vec<(bool, Option<Instant>, &Endpoint)> = ready()
            .filter_map(|endpoint| {
                let (suspect, opened) = (endpoint.stats().is_suspect(), opened(&endpoint));
                (suspect || opened.is_some()).then_some((!suspect, opened, endpoint))
            })
            .collect();
        state.troubled = !bad.is_empty();
        bad.sort_by_key(|(certain, opened, _)| (*certain, *opened));
        let all = ready().count();
        bad.truncate(self.settings.quota(all));
        let usable = ready()
            .filter(|endpoint| !endpoint.is_doubtful() && !endpoint.stats().in_backoff(now))
            .filter(|endpoint| !bad.iter().any(|(.., ejected)| ejected.is(endpoint)))
            .count();
        let panicking = !bad.is_empty() && (usable as f64) < all as f64 * self.settings.panic_below;
        if self.panicking.swap(panicking, Relaxed) != panicking {
            deferred.push(move || {
                if panicking {
                    event!(WARN, usable, ready = all, "too few are usable: ejection is ignored");
                } else {
                    event!(WARN, usable, ready = all, "enough are usable: ejection holds again");
                }
            });
        }
        for endpoint in state.endpoints.iter() {
            let ejected = !panicking && bad.iter().any(|(.., bad)| bad.is(endpoint));
            endpoint.stats().set_ejected(ejected);
        }
    }
}

/// A fifth more or less.
fn jittered(rng: &mut StdRng, time: Duration) -> Duration {
    time.mul_f64(rng.random_range(0.8..=1.2))
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(failures) => write!(f, "{failures} failures in a row"),
            Self::Share { own, others } => {
                let (own, others) = (own * 100.0, others * 100.0);
                write!(f, "{own:.0} % of its calls succeed, and {others:.0} % of the others'")
            }
        }
    }
}
