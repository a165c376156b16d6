//! The task that keeps a process's registrations alive, whatever happens to the registry.

mod book;
mod builder;
mod entry;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use self::book::{Answer, Ask, Book, Good, Job};
pub use self::builder::RegistrarBuilder;
use self::entry::Sent;
use super::{HealthOverride, Registry, RegistryError, RegistryErrorKind};
use crate::call::{NO_RUNTIME, has_runtime, until};
use crate::error::{Panic, caught};
use crate::instance::{Health, Instance, ServiceName};
use crate::sync::{Mutex, assert_unlocked, event};

/// How long `close` may take, whatever the registry does.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps a process's registrations alive over any [`Registry`]. Cheap to clone.
///
/// One task renews all of them together, at a third of the shortest lease granted, with 10 % of
/// jitter. It never gives up: what the registry has lost is registered again at once, what fails
/// is tried again with a backoff from 100 ms up to one renewal interval.
///
/// A registration whose id another process has registered with a higher epoch is superseded: it
/// ends, with a warning. Only if it is the first one of this process, whose clock may have gone
/// back, does it take the other's epoch plus one, once.
///
/// A registration whose address another instance of the service keeps, as
/// [`Instance::takes_address_from`] says, is superseded as well. If this process never held the address,
/// it takes the holder's epoch plus one, once. Otherwise it warns once and asks again once a TTL, so that
/// it is back when the other's lease has ended; one that drains ends.
///
/// The task starts with the first registration. Dropping the last clone ends it without
/// deregistering anything: the leases run out. [`close`](Self::close) deregisters. If the task's tokio
/// runtime ends, the next `register`, `set_health` or `drain` within a runtime starts the task there.
/// Until then nothing is renewed, and [`RegistrarStats::last_error`] says so.
#[derive(Clone)]
pub struct Registrar {
    owner: Arc<Owner>,
}

impl Registrar {
    /// A registrar with the defaults.
    pub fn new(registry: Arc<dyn Registry>) -> Self {
        Self::builder(registry).build()
    }

    /// A registrar with settings of one's own.
    pub fn builder(registry: Arc<dyn Registry>) -> RegistrarBuilder {
        RegistrarBuilder::new(registry)
    }

    /// Adds an instance to what is kept alive, and waits for the first try.
    ///
    /// Epoch 0 is replaced by the Unix time in milliseconds. An id that this registrar holds
    /// already is given its new state, with a higher epoch. Once [`set_health`](Self::set_health)
    /// was called, its word replaces the instance's.
    ///
    /// # Errors
    /// `Invalid`, also of the unspecified address, after [`close`](Self::close), outside of a tokio runtime and
    /// for an empty key in the instance's metadata, and `StaleEpoch`: the registry refuses it, and it is not
    /// kept. Any other kind, `Superseded` among them, such as `Unavailable`, `Full` or `NotAllowed`: it is
    /// tried on all the same, since the registry may answer, have room or know the token later.
    ///
    /// # Cancellation
    /// Dropping the future leaves the registration in place.
    pub async fn register(
        &self,
        service: ServiceName,
        mut instance: Instance,
    ) -> Result<(), RegistryError> {
        if instance.metadata.contains_key("") {
            let message = "the instance's metadata has an empty key";
            return Err(RegistryError::new(RegistryErrorKind::Invalid, message));
        }
        if instance.address.is_unspecified() {
            let reason = "others cannot dial it: name the address that they can";
            let message = format!("{}: {reason}", instance.address);
            return Err(RegistryError::new(RegistryErrorKind::Invalid, message));
        }
        if instance.epoch == 0 {
            instance.epoch = unix_millis();
        }
        if !has_runtime() {
            return Err(RegistryError::new(RegistryErrorKind::Invalid, NO_RUNTIME));
        }
        let shared = &self.owner.shared;
        let answer = shared.with_book(|book| book.add(service, instance, Instant::now()))?;
        self.owner.keep_running();
        shared.wake.notify_one();
        let answer = answer.await.unwrap_or_else(|_| Err(book::closed()));
        // If another runtime ran the task and has ended, it is tried on here.
        self.owner.keep_running();
        answer
    }

    /// Says how all instances of this process are, now and when registered later. Raises the epochs
    /// of those of which it is news by one, and registers them with their new state at once.
    ///
    /// What an operator says of an instance is kept apart, and the worse of both is registered: `Up`
    /// takes back nothing of it.
    pub fn set_health(&self, health: Health) {
        let shared = &self.owner.shared;
        shared.with_book(|book| book.set_health(health, Instant::now()));
        self.owner.keep_running();
        shared.wake.notify_one();
    }

    /// Tells the registry that all instances drain, and waits for one try of each, no longer than
    /// one request may take.
    ///
    /// Dropping the future leaves them draining.
    pub async fn drain(&self) {
        let shared = &self.owner.shared;
        let mut progress = shared.progress.subscribe();
        self.set_health(Health::Draining);
        if !has_runtime() {
            event!(WARN, "the registry is not told that this process drains: {NO_RUNTIME}");
            return;
        }
        let tried = async {
            while !shared.with_book(|book| book.all_tried()) {
                self.owner.keep_running();
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(shared.request_timeout, tried).await.is_err() {
            event!(WARN, "the registry was not told in time that this process drains");
        }
    }

    /// Deregisters everything and ends the task, within 5 s whatever the registry does. Nothing can
    /// be registered afterwards; a second call does nothing. Outside of a tokio runtime nothing is
    /// deregistered, and the leases run out.
    ///
    /// Dropping the future leaves it closed, and leaves it open what was deregistered.
    pub async fn close(&self) {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let shared = &self.owner.shared;
        shared.with_book(Book::close);
        shared.wake.notify_one();
        let task = self.owner.task.lock().take();
        if !has_runtime() {
            if !shared.with_book(Book::take_held).is_empty() {
                event!(WARN, "not deregistered: {NO_RUNTIME}; the leases will run out");
            }
            return;
        }
        if let Some(mut task) = task {
            // A request under way could undo the deregistration by coming after it. What does not
            // end in half of the time is cut.
            let _ = timeout(CLOSE_TIMEOUT / 2, &mut task.0).await;
        }
        let held = shared.with_book(Book::take_held);
        shared.progress.send_replace(());
        if held.is_empty() {
            return;
        }
        assert_unlocked();
        let deregistered = caught(async { shared.registry.deregister(&held).await });
        match timeout_at(deadline, deregistered).await {
            Ok(Ok(Ok(()))) => event!(INFO, instances = held.len(), "deregistered"),
            Ok(Ok(Err(error))) => {
                event!(WARN, %error, "not deregistered: the leases will run out");
            }
            Ok(Err(panic)) => event!(
                WARN,
                panic = panic.text(),
                "not deregistered: the registry panicked; the leases will run out"
            ),
            Err(_) => event!(WARN, "not deregistered in time: the leases will run out"),
        }
    }

    /// What it has done so far.
    pub fn stats(&self) -> RegistrarStats {
        self.owner.shared.stats()
    }

    /// Reads the stats of this registrar without keeping it alive.
    pub(crate) fn reader(&self) -> StatsReader {
        StatsReader(Arc::clone(&self.owner.shared))
    }
}

impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registrar").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What a [`Registrar`] has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistrarStats {
    /// How many registrations the registry holds, by its last answer for each.
    pub registered: usize,
    /// How often a lease was renewed.
    pub renewed: u64,
    /// How often the registry no longer knew a lease.
    pub lost: u64,
    /// How often a registration or renewal failed.
    pub errors: u64,
    /// The last of these failures, in words.
    pub last_error: Option<String>,
    /// How often another process had registered the same id, or held the address.
    pub superseded: u64,
    /// What operators say of the instances of which they say something, by service: see
    /// [`Registry::set_health`].
    pub overrides: Vec<(ServiceName, HealthOverride)>,
}

/// What a registrar has done, for as long as anybody wants to know.
#[derive(Clone)]
pub(crate) struct StatsReader(Arc<Shared>);

impl StatsReader {
    pub(crate) fn stats(&self) -> RegistrarStats {
        self.0.stats()
    }
}

impl fmt::Debug for StatsReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatsReader").field(&self.stats()).finish()
    }
}

/// What the clones of a registrar share, and its task does not: its drop ends the task.
struct Owner {
    shared: Arc<Shared>,
    /// `None` before the first registration, and once it is closed.
    task: Mutex<Option<Task>>,
}

/// What the task shares with its registrar.
struct Shared {
    registry: Arc<dyn Registry>,
    request_timeout: Duration,
    book: Mutex<Book>,
    /// Whether the task runs.
    is_running: AtomicBool,
    /// Tells the task that the book has changed.
    wake: Notify,
    /// Tells those who wait that the task has brought an answer into the book.
    progress: watch::Sender<()>,
}

impl Shared {
    fn stats(&self) -> RegistrarStats {
        self.with_book(|book| book.stats(Instant::now()))
    }

    /// Does something with the book, and what it has deferred once its lock is released.
    fn with_book<T>(&self, act: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.book.lock();
        let done = act(&mut book);
        let deferred = book.take_deferred();
        drop(book);
        drop(deferred);
        done
    }
}

/// A task that ends when it is dropped.
struct Task(JoinHandle<()>);

impl Owner {
    /// Starts the task on the caller's runtime, if there is something to do for it and it does not run.
    fn keep_running(&self) {
        if self.shared.is_running.load(Acquire) || !self.shared.with_book(|book| book.is_in_use()) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let mut task = self.task.lock();
        if !self.shared.is_running.swap(true, AcqRel) {
            let guard = TaskGuard(Arc::clone(&self.shared));
            *task = Some(Task(runtime.spawn(keep(Arc::clone(&self.shared), guard))));
        }
    }
}

impl Drop for Owner {
    /// Nobody can ask for anything any more: that the task ends is no news.
    fn drop(&mut self) {
        self.shared.with_book(Book::close);
    }
}

/// Held by the task. Its drop tells that the task has ended, also if its runtime has.
struct TaskGuard(Arc<Shared>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.is_running.store(false, Release);
        let abandoned = self.0.with_book(Book::abandon);
        self.0.progress.send_replace(());
        if abandoned > 0 {
            event!(
                WARN,
                registrations = abandoned,
                "the runtime that renews the registrations has ended: their leases run out"
            );
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks the registry for whatever the book says is due, until the book is closed.
async fn keep(shared: Arc<Shared>, _guard: TaskGuard) {
    let mut requests = JoinSet::new();
    // By task, so that a request whose code panicked is answered too.
    let mut pending: HashMap<Id, Vec<Sent>> = HashMap::new();
    loop {
        let jobs = shared.with_book(|book| book.due(Instant::now()));
        for Job { sent, ask } in jobs {
            let request = put(ask, Arc::clone(&shared.registry), shared.request_timeout);
            pending.insert(requests.spawn(request).id(), sent);
        }
        let (next, closed) = shared.with_book(|book| book.next_due());
        if closed && requests.is_empty() {
            return;
        }
        tokio::select! {
            Some(done) = requests.join_next_with_id() => {
                let (id, answers) = done.unwrap_or_else(|error| {
                    let id = error.id();
                    // The payload may panic when it is dropped, and must not end this task.
                    drop(Panic::of_task(error));
                    (id, Vec::new())
                });
                let sent = pending.remove(&id).unwrap_or_default();
                shared.with_book(|book| book.answered(&sent, answers, Instant::now()));
                shared.progress.send_replace(());
            }
            () = until(next) => {}
            () = shared.wake.notified() => {}
        }
    }
}

/// One request, which ends in time: an answer for each registration that was asked about.
async fn put(ask: Ask, registry: Arc<dyn Registry>, limit: Duration) -> Vec<Answer> {
    assert_unlocked();
    let late = || RegistryError::unavailable(format!("no answer within {limit:?}"));
    match ask {
        Ask::Register(registration) => {
            let lease = timeout(limit, registry.register(&registration)).await;
            vec![lease.unwrap_or_else(|_| Err(late())).map(Good::Lease)]
        }
        Ask::Renew(held) => match timeout(limit, registry.renew(&held)).await {
            Ok(renewals) => renewals.into_iter().map(|one| one.map(Good::Renewal)).collect(),
            Err(_) => held.iter().map(|_| Err(late())).collect(),
        },
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
