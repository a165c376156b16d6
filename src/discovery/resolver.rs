//! How a client keeps up with the live instances of one service.

mod builder;
mod flight;
mod merge;
mod shared;
mod snapshot;
#[cfg(test)]
mod tests;
mod worker;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use self::builder::ResolverBuilder;
use self::shared::{Shared, orphaned};
pub use self::snapshot::{Snapshot, SnapshotStatus};
use self::worker::{Timing, Worker};
use super::outlier;
use super::{Discovery, DiscoveryError, Endpoint, Probe};
use crate::call::{NO_RUNTIME, has_runtime};
use crate::instance::{Instance, ServiceName};
use crate::selector::PickContext;
use crate::sync::{Mutex, event};

/// Keeps the list of one service's instances: one task, shared by all clones, that watches or polls
/// a [`Discovery`] and publishes [`Snapshot`]s.
///
/// # What it promises
/// - The source is watched if it can be, and polled every 10 s if not; it is asked for its whole
///   list every 60 s even under a watch. Intervals vary by 10 % either way, so that clients do not
///   march in step.
/// - The last good list is served while the source fails, with its age. Each request is bounded by
///   10 s; after a failure the next one follows after 100 ms, doubling up to the poll interval.
/// - An answer that is empty, or has lost more than half at once, is believed only with proof; see
///   [`Resolved::is_proven`](super::Resolved::is_proven). Without it the vanished endpoints stay,
///   [doubtful](Endpoint::is_doubtful), until an answer one lease (15 s) later still lacks them.
/// - Endpoints keep their statistics for as long as one id stands at one address.
/// - An endpoint that fails while its lease holds is ejected for a while, and comes back slowly; see
///   [`OutlierEjection`](super::OutlierEjection).
/// - Of two instances with one address the one with the higher epoch is listed.
/// - Its task runs on the tokio runtime that it is made in, or on that of its first caller. If that
///   runtime ends, the next caller within a runtime starts the task there. Until then the list is stale,
///   and [`Snapshot::last_error`] says why.
///
/// # Clone
/// Cheap; clones share everything. Dropping the last one ends the task.
///
/// # Example
/// ```
/// use std::{sync::Arc, time::Duration};
/// use srpc::discovery::{Discovery, DiscoveryError, Resolved, Resolver};
/// use srpc::selector::PickContext;
/// use srpc::{Instance, ServiceName};
///
/// struct Mine;
///
/// #[srpc::async_trait]
/// impl Discovery for Mine {
///     async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
///         let addresses = ["tcp@10.0.0.1:7001", "tcp@10.0.0.2:7001"];
///         let instances = addresses.map(|a| Instance::at(a.parse().unwrap()));
///         Ok(Vec::from(instances).into())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let resolver = Resolver::new("Foo".parse()?, Arc::new(Mine));
/// resolver.ready(Duration::from_secs(2)).await?;
/// let endpoint = resolver.pick(&PickContext::new(tokio::time::Instant::now(), 1)).unwrap();
/// assert_eq!(endpoint.instance().address.port(), Some(7001));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Resolver {
    handle: Arc<Handle>,
}

/// What the clones own together. The task holds `Shared` and never this, so that the last clone's
/// drop is the task's end.
struct Handle {
    shared: Arc<Shared>,
    discovery: Arc<dyn Discovery>,
    timing: Timing,
    seed: u64,
    task: Mutex<Option<AbortHandle>>,
}

impl Handle {
    /// Starts the task on the caller's runtime, unless it runs. False: it runs nowhere.
    fn keep_running(&self) -> bool {
        !self.shared.is_orphaned() || self.start()
    }

    #[cold]
    fn start(&self) -> bool {
        let Ok(runtime) = runtime::Handle::try_current() else { return false };
        let mut task = self.task.lock();
        let is_adopted = self.shared.adopt();
        if is_adopted {
            let guard = TaskGuard(Arc::clone(&self.shared));
            let (shared, discovery) = (Arc::clone(&self.shared), Arc::clone(&self.discovery));
            let outliers =
                outlier::keep(Arc::clone(&self.shared.outliers), Arc::clone(&self.shared.probes));
            let worker = Worker::new(shared, discovery, self.timing, self.seed);
            let started = runtime.spawn(async move {
                let _guard = guard;
                tokio::join!(worker.run(), outliers);
            });
            *task = Some(started.abort_handle());
        }
        drop(task);
        if is_adopted && self.shared.stats().restarts > 0 {
            let service = &self.shared.service;
            event!(DEBUG, %service, "the runtime of the resolver has ended: it runs on another one");
        }
        // A runtime that is shutting down drops the task at once.
        !self.shared.is_orphaned()
    }
}

/// Held by the task. Its drop tells that the task has ended, also if its runtime has.
///
/// Why not `AbortHandle::is_finished`? tokio drops the task, which wakes those who wait, before it
/// marks the task as finished: they would look too early, and wait for ever.
struct TaskGuard(Arc<Shared>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.orphan();
    }
}

/// What a resolver has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResolverStats {
    /// Requests that the source answered.
    pub resolved: u64,
    /// Requests and watches that failed. A watch that is unsupported has not failed.
    pub errors: u64,
    /// Changes that a watch told or that were set by hand.
    pub updates: u64,
    /// Answers whose losses were not believed.
    pub guarded: u64,
    /// How often an endpoint was ejected: for how calls to it went, or for a ping without answer.
    pub ejections: u64,
    /// How often one was taken back.
    pub readmissions: u64,
    /// Whether ejection is ignored at present, since too few endpoints would stay usable.
    pub panicking: bool,
    /// How often its task was started again, on a caller's runtime, because the one before had ended.
    pub restarts: u64,
}

impl Resolver {
    /// A resolver of `service` with the defaults.
    pub fn new(service: ServiceName, discovery: Arc<dyn Discovery>) -> Self {
        Self::builder(service, discovery).build()
    }

    /// A resolver of `service` with settings of one's own.
    pub fn builder(service: ServiceName, discovery: Arc<dyn Discovery>) -> ResolverBuilder {
        ResolverBuilder::new(service, discovery)
    }

    /// The service whose instances it lists.
    pub fn service(&self) -> &ServiceName {
        &self.handle.shared.service
    }

    /// The zone that [`pick`](Self::pick) prefers where its context names none.
    pub fn zone(&self) -> Option<&str> {
        self.handle.shared.zone.as_deref()
    }

    /// The list as of now. Never waits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.handle.keep_running();
        self.handle.shared.snapshot()
    }

    /// The list as of now, for a caller that holds a lock: it starts no task.
    pub(crate) fn current(&self) -> Arc<Snapshot> {
        self.handle.shared.snapshot()
    }

    /// Starts the task on the caller's runtime, unless it runs.
    pub(crate) fn keep_running(&self) {
        self.handle.keep_running();
    }

    /// What an error adds about a list that was asked for again because a runtime has ended.
    pub(crate) fn restart_note(&self) -> &'static str {
        match self.stats().restarts {
            0 => "",
            _ => " (it was asked again, since the runtime that the resolver ran on has ended)",
        }
    }

    /// The number of the list's set of endpoints, as of now or the next, for the call path.
    pub(crate) fn generation(&self) -> u64 {
        self.handle.shared.generation()
    }

    /// Chooses an endpoint from the list as of now; `None` if it has none to offer. Never waits.
    pub fn pick(&self, cx: &PickContext<'_>) -> Option<Endpoint> {
        self.handle.keep_running();
        let snapshot = self.handle.shared.current();
        let index = match (cx.zone, self.zone()) {
            (None, Some(zone)) => {
                let ours = PickContext::new(cx.now, cx.random())
                    .retry(cx.attempt, cx.tried)
                    .hash_key(cx.hash_key)
                    .zone(Some(zone));
                snapshot.pick(&ours)
            }
            _ => snapshot.pick(cx),
        };
        snapshot.endpoints.at(index?).cloned()
    }

    /// Asks the source now, or joins the request that is under way, and waits for its answer.
    ///
    /// What a watch told or [`update`](Self::update) set since the question was asked is newer than
    /// the answer, and stands.
    ///
    /// # Errors
    /// Those of the source, or that no runtime runs the task; the list stays as it is.
    ///
    /// # Cancellation
    /// Dropping the future leaves the request under way.
    pub async fn refresh(&self) -> Result<(), Arc<DiscoveryError>> {
        if !self.handle.keep_running() {
            return Err(Arc::new(orphaned()));
        }
        let ended = async {
            let mut changes = self.handle.shared.changes();
            while !self.handle.shared.is_orphaned() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            answer = self.handle.shared.flights.join() => answer,
            () = ended => Err(Arc::new(orphaned())),
        }
    }

    /// Says that the list may be out of date, since endpoints on it cannot be reached: the source is
    /// asked again, a second after it was asked last at the earliest, and not while it fails. Cheap,
    /// and does not wait; an [`XClient`](crate::XClient) says so by itself.
    pub fn doubt(&self) {
        self.handle.keep_running();
        self.handle.shared.flights.doubt();
    }

    /// Sets the list by hand. It counts as proven, is seen by the next [`snapshot`](Self::snapshot)
    /// and holds until the source's next proven answer: a source that never names a revision never
    /// replaces it. What a watch tells of single instances is applied to it.
    ///
    /// The selector is prepared for it before this returns. If another list is set meanwhile, only the later
    /// one is shown.
    pub fn update(&self, instances: Vec<Instance>) {
        self.handle.keep_running();
        self.handle.shared.by_hand(instances, Instant::now());
    }

    /// Waits until at least one instance is known, for `timeout` at most: at a program's start it
    /// finds the mistyped name or the wrong registry.
    ///
    /// # Errors
    /// If the time passes first: names the service and says what is known of the source. Outside of a
    /// tokio runtime: at once.
    ///
    /// # Cancellation
    /// Dropping the future leaves nothing behind.
    pub async fn ready(&self, timeout: Duration) -> Result<(), DiscoveryError> {
        if !has_runtime() {
            return Err(DiscoveryError::unavailable(NO_RUNTIME));
        }
        let known = self.until(|snapshot| !snapshot.endpoints.is_empty());
        match tokio::time::timeout(timeout, known).await {
            Ok(true) => Ok(()),
            _ => Err(self.snapshot().nobody(self.service(), timeout)),
        }
    }

    /// Waits until the status is no longer pending: for the first list or the first error. Does not wait
    /// while no runtime runs the task.
    ///
    /// # Cancellation
    /// Dropping the future leaves nothing behind.
    pub async fn first(&self) {
        self.until(|snapshot| snapshot.status != SnapshotStatus::Pending).await;
    }

    /// Waits until a list is known, be it empty, stale or gone; longer than any deadline if the
    /// source never answers. Does not wait while no runtime runs the task.
    ///
    /// # Cancellation
    /// Dropping the future leaves nothing behind.
    pub async fn listed(&self) {
        self.until(|snapshot| snapshot.status.is_listed()).await;
    }

    /// Waits until the set of endpoints is another than at this
    /// [`generation`](Snapshot::generation), and tells it. For ever, if it is polled outside of a runtime
    /// while none runs the task.
    ///
    /// # Cancellation
    /// Dropping the future leaves nothing behind.
    pub async fn changed(&self, generation: u64) -> Arc<Snapshot> {
        self.until(|snapshot| snapshot.generation != generation).await;
        let snapshot = self.snapshot();
        if snapshot.generation == generation {
            std::future::pending::<()>().await;
        }
        snapshot
    }

    /// Lends it a way to ask an ejected endpoint whether it answers, for as long as the probe lives
    /// elsewhere. One that the [builder](ResolverBuilder::probe) was given goes first; an
    /// [`XClient`](crate::XClient) lends its own.
    pub fn lend_probe(&self, probe: Weak<dyn Probe>) {
        self.handle.shared.probes.lend(probe);
    }

    /// What it has done so far.
    pub fn stats(&self) -> ResolverStats {
        self.handle.shared.stats()
    }

    /// Waits until a snapshot is as wanted. False: no task runs, so that no change will come.
    async fn until(&self, done: impl Fn(&Snapshot) -> bool) -> bool {
        // Subscribed before the first look, so that no change falls between the two.
        let mut changes = self.handle.shared.changes();
        loop {
            let is_running = self.handle.keep_running();
            if done(&self.handle.shared.current()) {
                return true;
            }
            if !is_running || changes.changed().await.is_err() {
                return false;
            }
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("service", self.service())
            .field("snapshot", &self.handle.shared.snapshot())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().take() {
            task.abort();
        }
    }
}
