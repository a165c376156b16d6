//! What the clones of a resolver share with its task: the only place that publishes a snapshot.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::flight::Flights;
use super::merge::merge;
use super::{ResolverStats, Snapshot, SnapshotStatus};
use crate::discovery::guard::{Guard, Known};
use crate::discovery::outlier::{Outliers, Probes};
use crate::discovery::{DiscoveryError, EndpointSet, Resolved, Update};
use crate::instance::{Instance, ServiceName};
use crate::selector::{Picker, Selector};
use crate::sync::{Deferred, Mutex, MutexGuard, assert_unlocked, event};

/// Whether a protocol can be dialled.
pub(super) type Speaks = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// The generation while no task refreshes the list. The call path compares generations anyway, so that
/// this costs it nothing.
const ORPHANED: u64 = u64::MAX;

pub(super) struct Shared {
    pub(super) service: ServiceName,
    pub(super) zone: Option<String>,
    selector: Box<dyn Selector>,
    speaks: Speaks,
    current: ArcSwap<Snapshot>,
    /// Held while a snapshot is replaced, so that snapshots follow one another in the order of the changes.
    list: Mutex<List>,
    /// Wakes those who wait for a snapshot.
    changes: watch::Sender<()>,
    pub(super) flights: Flights,
    pub(super) outliers: Arc<Outliers>,
    pub(super) probes: Arc<Probes>,
    /// That of the current snapshot, or of the one that follows at once; or `ORPHANED`.
    generation: AtomicU64,
    /// How many tasks were started to refresh the list.
    starts: AtomicU64,
    resolved: AtomicU64,
    errors: AtomicU64,
    updates: AtomicU64,
    guarded: AtomicU64,
}

struct List {
    guard: Guard,
    /// Counts what came without being asked for: an answer to a question asked before is older.
    version: u64,
    /// The source said so, and has listed nobody since.
    gone: bool,
    /// Number of changes so far.
    changes: u64,
    /// The last change that is shown. Pickers are prepared under no lock, so that two may be ready in another
    /// order than they were begun in.
    shown: u64,
}

/// What a list becomes for those who pick from it.
struct Prepared {
    /// `None`: the endpoints are as before.
    set: Option<(Arc<EndpointSet>, Arc<dyn Picker>)>,
    skipped: usize,
}

impl Shared {
    pub(super) fn new(
        service: ServiceName,
        selector: Box<dyn Selector>,
        speaks: Speaks,
        zone: Option<String>,
        lease: Duration,
        outliers: Outliers,
        probes: Probes,
    ) -> Self {
        assert_unlocked();
        let endpoints = Arc::new(EndpointSet::default());
        let picker: Arc<dyn Picker> = Arc::from(selector.prepare(&endpoints));
        let pending = Snapshot {
            endpoints,
            status: SnapshotStatus::Pending,
            revision: None,
            generation: 0,
            updated_at: Instant::now(),
            skipped: 0,
            last_error: None,
            picker,
        };
        let guard = Guard::new(lease);
        let list = List { guard, version: 0, gone: false, changes: 0, shown: 0 };
        Self {
            service,
            zone,
            selector,
            speaks,
            current: ArcSwap::from_pointee(pending),
            list: Mutex::new(list),
            changes: watch::Sender::new(()),
            flights: Flights::new(),
            outliers: Arc::new(outliers),
            probes: Arc::new(probes),
            generation: AtomicU64::new(ORPHANED),
            starts: AtomicU64::new(0),
            resolved: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            updates: AtomicU64::new(0),
            guarded: AtomicU64::new(0),
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The current snapshot without a count of references, for who picks at once.
    pub(super) fn current(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Which set the current snapshot has, or the one that follows at once: for the call path, which keeps
    /// a snapshot of its own and looks no further as long as the set is the same.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether no task refreshes the list.
    pub(super) fn is_orphaned(&self) -> bool {
        self.generation() == ORPHANED
    }

    /// Gives the list to a task that is about to start. False: another task refreshes it.
    pub(super) fn adopt(&self) -> bool {
        let list = self.list.lock();
        if !self.is_orphaned() {
            return false;
        }
        self.starts.fetch_add(1, Relaxed);
        let snapshot = self.snapshot();
        self.generation.store(snapshot.generation, Release);
        if snapshot.status == SnapshotStatus::Failed {
            // The new task has not asked yet.
            let status = SnapshotStatus::Pending;
            let former =
                self.show(Snapshot { status, last_error: None, ..Snapshot::clone(&snapshot) });
            drop(list);
            drop(former);
            self.changes.send_replace(());
        }
        true
    }

    /// The task that refreshed the list has ended, or there is no runtime to start one on: the list is
    /// stale, and waiting requests fail.
    pub(super) fn orphan(&self) {
        let list = self.list.lock();
        self.generation.store(ORPHANED, Release);
        let former = self.show(Snapshot::clone(&self.snapshot()));
        drop(list);
        drop(former);
        self.changes.send_replace(());
        self.flights.landed(Some(Arc::new(orphaned())));
    }

    pub(super) fn stats(&self) -> ResolverStats {
        ResolverStats {
            resolved: self.resolved.load(Relaxed),
            errors: self.errors.load(Relaxed),
            updates: self.updates.load(Relaxed),
            guarded: self.guarded.load(Relaxed),
            ejections: self.outliers.ejections(),
            readmissions: self.outliers.readmissions(),
            panicking: self.outliers.is_panicking(),
            restarts: self.starts.load(Relaxed).saturating_sub(1),
        }
    }

    /// What an answer must be asked under to be the newest news when it comes.
    pub(super) fn version(&self) -> u64 {
        self.list.lock().version
    }

    pub(super) fn is_doubting(&self) -> bool {
        self.list.lock().guard.is_doubting()
    }

    /// Takes the answer to a question asked at `version`.
    pub(super) fn answered(&self, answer: Resolved, version: u64, now: Instant) {
        self.resolved.fetch_add(1, Relaxed);
        let mut deferred = Deferred::default();
        let mut list = self.list.lock();
        if list.version == version {
            let revision = answer.revision.clone();
            self.take_list(&mut list, answer, now, &mut deferred);
            self.publish(list, revision, now);
        }
    }

    /// Takes what a watch tells.
    pub(super) fn told(&self, update: Update, now: Instant) {
        self.updates.fetch_add(1, Relaxed);
        let mut deferred = Deferred::default();
        let mut list = self.list.lock();
        list.version += 1;
        let revision = match update {
            Update::Set(answer) => {
                let revision = answer.revision.clone();
                self.take_list(&mut list, answer, now, &mut deferred);
                revision
            }
            Update::Upsert(instances) => {
                list.gone &= instances.is_empty();
                list.guard.upsert(instances);
                None
            }
            Update::Remove(ids) => {
                list.guard.remove(&ids);
                None
            }
            Update::Gone => {
                list.guard.clear();
                list.gone = true;
                None
            }
        };
        self.publish(list, revision, now);
    }

    /// Takes a list set by hand.
    pub(super) fn by_hand(&self, instances: Vec<Instance>, now: Instant) {
        self.updates.fetch_add(1, Relaxed);
        let mut list = self.list.lock();
        list.version += 1;
        list.gone = false;
        list.guard.by_hand(instances);
        self.publish(list, None, now);
    }

    /// A request failed: the last list is kept, and stale.
    pub(super) fn failed(&self, error: &Arc<DiscoveryError>, now: Instant) {
        self.errors.fetch_add(1, Relaxed);
        let list = self.list.lock();
        let old = self.snapshot();
        let status = old.status.failed(now);
        let former = self.show(Snapshot {
            status,
            last_error: Some(Arc::clone(error)),
            ..Snapshot::clone(&old)
        });
        drop(list);
        drop(former);
        self.changes.send_replace(());
        if old.status != status {
            let message = if status.is_listed() {
                "the list of instances is stale"
            } else {
                "there is no list of instances yet"
            };
            let age = old.age(now);
            event!(WARN, service = %self.service, error = %error, ?age, "{message}");
        }
    }

    /// A watch failed: counted and shown. The request that follows decides what the list is worth.
    pub(super) fn watch_failed(&self, error: DiscoveryError) {
        self.errors.fetch_add(1, Relaxed);
        event!(DEBUG, service = %self.service, %error, "a watch ended");
        let list = self.list.lock();
        let old = self.snapshot();
        let former =
            self.show(Snapshot { last_error: Some(Arc::new(error)), ..Snapshot::clone(&old) });
        drop(list);
        drop(former);
        self.changes.send_replace(());
    }

    fn take_list(&self, list: &mut List, answer: Resolved, now: Instant, deferred: &mut Deferred) {
        list.gone &= answer.instances.is_empty();
        let doubting = list.guard.is_doubting();
        if !list.guard.answer(answer, now) {
            return;
        }
        self.guarded.fetch_add(1, Relaxed);
        if list.guard.is_doubting() && !doubting {
            let service = self.service.clone();
            deferred.push(move || {
                event!(
                    WARN,
                    %service,
                    "an answer lost instances without proof: they are kept for now, picked last"
                );
            });
        }
    }

    /// Shows the list as the guard believes it: good news. The selector and the protocols are asked under no lock,
    /// since they are the user's.
    fn publish(&self, mut list: MutexGuard<'_, List>, revision: Option<Arc<str>>, now: Instant) {
        list.changes += 1;
        let change = list.changes;
        let mut known = list.guard.known().to_vec();
        let mut old = self.snapshot();
        drop(list);
        loop {
            let prepared = self.prepare(&known, &old.endpoints, now);
            let mut list = self.list.lock();
            if list.shown >= change {
                // A later change was shown meanwhile, and this one with it.
                drop(list);
                return;
            }
            let current = self.snapshot();
            if !Arc::ptr_eq(&current.endpoints, &old.endpoints) {
                // An earlier change was shown meanwhile: its endpoints keep their statistics.
                known = list.guard.known().to_vec();
                drop(list);
                old = current;
                continue;
            }
            list.shown = change;
            let Prepared { set, skipped } = prepared;
            let (endpoints, picker, generation) = match &set {
                Some((set, picker)) => {
                    (Arc::clone(set), Arc::clone(picker), current.generation + 1)
                }
                None => {
                    let (set, picker) = (&current.endpoints, &current.picker);
                    (Arc::clone(set), Arc::clone(picker), current.generation)
                }
            };
            let former = self.show(Snapshot {
                endpoints,
                status: if list.gone { SnapshotStatus::Gone } else { SnapshotStatus::Ready },
                revision,
                generation,
                updated_at: now,
                skipped,
                last_error: None,
                picker,
            });
            drop(list);
            if let Some((set, _)) = &set {
                self.outliers.follow(set, generation, now);
            }
            self.changes.send_replace(());
            let was_stale =
                matches!(former.status, SnapshotStatus::Stale { .. } | SnapshotStatus::Failed);
            if was_stale && !self.is_orphaned() {
                let error = former.last_error.as_deref().map(tracing::field::display);
                let age = former.age(now);
                event!(
                    WARN,
                    service = %self.service, error, ?age, "the list of instances is fresh again"
                );
            }
            return;
        }
    }

    /// Makes endpoints and picker of a list, if they differ from those of `old`.
    fn prepare(&self, known: &[Known], old: &EndpointSet, now: Instant) -> Prepared {
        assert_unlocked();
        let merged = merge(known, old, &*self.speaks, &self.outliers, now);
        let set = merged.changed.then(|| {
            let set = Arc::new(EndpointSet::new(merged.endpoints));
            let picker: Arc<dyn Picker> = Arc::from(self.selector.prepare(&set));
            (set, picker)
        });
        Prepared { set, skipped: merged.skipped }
    }

    /// Replaces the current snapshot, and returns it: its picker and its error are the user's, and are dropped once
    /// the list's lock is released.
    #[must_use = "it is dropped under no lock"]
    fn show(&self, mut snapshot: Snapshot) -> Arc<Snapshot> {
        if self.is_orphaned() {
            // However good the news is, nobody refreshes it.
            snapshot.status = snapshot.status.failed(Instant::now());
            snapshot.last_error = Some(Arc::new(orphaned()));
        } else {
            // First, so that whoever has seen the snapshot looks for no older one by this.
            self.generation.store(snapshot.generation, Release);
        }
        self.current.swap(Arc::new(snapshot))
    }
}

/// Why a list is stale that no task refreshes.
pub(super) fn orphaned() -> DiscoveryError {
    DiscoveryError::unavailable(
        "nothing refreshes the list: the tokio runtime that the resolver ran on has ended, or it was \
         made outside of one",
    )
}
