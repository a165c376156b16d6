//! A registry in memory: in the process as it is, and behind HTTP the registry server's state.

mod builder;
mod clock;
mod event;
mod group;
mod listing;
mod protection;
mod quota;
mod store;
#[cfg(test)]
mod tests;
mod ttl_counts;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

pub use self::builder::MemoryRegistryBuilder;
#[cfg(feature = "http")]
pub(in crate::backend) use self::event::{RegistrationChange, RegistrationEvent};
pub use self::listing::{Entry, Listing};
pub use self::protection::Protection;
#[cfg(feature = "http")]
pub(in crate::backend) use self::quota::{Account, Ledger, Owner, Quota, weight};
use self::store::Store;
use crate::discovery::{Discovery, DiscoveryError, Resolved, Update, UpdateStream};
use crate::instance::{Address, InstanceId, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, Registry, RegistryError, Renewal,
};
use crate::sync::Mutex;

/// A registry in memory. Clones share its state.
///
/// # Expiry
/// A lease ends between its TTL and one sweep (500 ms) later, and never before its TTL: who asks
/// for a list sees it gone at once, who watches is told by the sweep. Time in which the process
/// stood still, known by a sweep that comes more than two sweeps late, does not age leases: whoever
/// could not renew in that time is not evicted for it. (A test that jumps a paused clock ahead
/// makes such a pause; one that sleeps does not.) A pause is forgiven if the ten sweeps before it
/// came in time.
///
/// # Mass expiry
/// Whatever of a pause is not forgiven, many leases may have run out because the registry took no
/// renewals. So where a sweep that came late finds that more than 15 % of at least 20 leases have
/// run out, it keeps them: for half of their TTL at least, then they end one after the other, the
/// last after one TTL. A renewal saves a lease; no lease is kept twice without one, so it ends by
/// itself. [`Listing::protection`] tells of it. Leases that run out while sweeps come in time end
/// in time, however many they are.
///
/// # Revisions
/// `INCARNATION-N`: the incarnation is random per start; `N` rises at each visible change of a
/// service, which a mere renewal is not. A service of which nothing is registered has the revision
/// `INCARNATION-0`.
///
/// The sweep is a task, started by the first use within a tokio runtime and ended with the last
/// clone. If its runtime ends, the next use within a runtime starts it there. Without a runtime lists
/// are right all the same.
#[derive(Clone)]
pub struct MemoryRegistry {
    shared: Arc<Shared>,
}

impl MemoryRegistry {
    /// An empty registry with the defaults.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A registry with settings of one's own.
    pub fn builder() -> MemoryRegistryBuilder {
        MemoryRegistryBuilder::new()
    }

    /// Registers an address, or renews it, as a plain `POST` to the registry server does: its text
    /// is the instance's id, its lease the default TTL, and without a service it belongs to none.
    ///
    /// An address that is held through [`Registry::register`], in this service or, without one, in
    /// any, is not added: its leases are renewed, and nothing else changes.
    ///
    /// False: nothing was stored, since the registry is full, or an instance at another address
    /// has this address's text for its id.
    pub fn register_address(&self, service: Option<&ServiceName>, address: &Address) -> bool {
        self.shared.keep_sweeping();
        self.shared.with(|store, now| store.register_address(service, address, now))
    }

    /// The same on somebody's account, which its caps are counted by.
    #[cfg(feature = "http")]
    pub(in crate::backend) fn register_address_by(
        &self,
        service: Option<&ServiceName>,
        address: &Address,
        owner: &Owner,
    ) -> bool {
        self.shared.keep_sweeping();
        self.shared.with(|store, now| store.register_address_by(service, address, owner, now))
    }

    /// [`Registry::register`] on somebody's account.
    #[cfg(feature = "http")]
    pub(in crate::backend) fn register_by(
        &self,
        registration: &Registration,
        owner: &Owner,
    ) -> Result<Lease, RegistryError> {
        self.shared.keep_sweeping();
        self.shared.with(|store, now| store.register_by(registration, owner, now))
    }

    /// What is registered for a service; for `None`, everything. No expired entry, unless it is
    /// kept: see "Mass expiry" above.
    pub fn list(&self, service: Option<&ServiceName>) -> Listing {
        self.shared.with(|store, now| store.list(service, now))
    }

    /// Every service of which there is an instance, sorted.
    pub fn services(&self) -> Vec<ServiceName> {
        self.shared.with(|store, now| store.services(now))
    }

    /// Names this start: it is what revisions begin with.
    pub fn incarnation(&self) -> Arc<str> {
        self.shared.with(|store, _| store.incarnation())
    }

    /// The service's revision as it is now.
    pub fn revision(&self, service: &ServiceName) -> Arc<str> {
        self.shared.with(|store, now| store.state(service, now)).0
    }

    /// The leases that are kept though they have run out; `None` if there are none.
    pub fn protection(&self) -> Option<Protection> {
        self.shared.with(|store, now| store.protection(now))
    }

    /// Returns once the service's revision differs from the one given: at once if it does already,
    /// or if it is of another incarnation. Dropping the future leaves nothing behind.
    pub async fn changed(&self, service: &ServiceName, revision: &str) {
        let mut version = self.shared.version.subscribe();
        loop {
            self.shared.keep_sweeping();
            let (current, _) = self.shared.with(|store, now| store.state(service, now));
            if *current != *revision || version.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sets what an operator says of an instance's health, as [`Registry::set_health`] says. False: the
    /// instance is not there.
    pub fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: impl Into<HealthOverride>,
    ) -> bool {
        let word = word.into();
        self.shared.keep_sweeping();
        self.shared.with(|store, now| store.set_health(service, id, &word, now))
    }
}

impl Default for MemoryRegistry {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError> {
        self.shared.keep_sweeping();
        self.shared.with(|store, now| store.register(registration, now))
    }

    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        self.shared.keep_sweeping();
        self.shared.with(|store, now| held.iter().map(|held| store.renew(held, now)).collect())
    }

    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        self.shared.with(|store, now| held.iter().for_each(|held| store.deregister(held, now)));
        Ok(())
    }

    async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        Ok(MemoryRegistry::set_health(self, service, id, word.clone()))
    }

    async fn name(&self) -> Result<Option<Arc<str>>, RegistryError> {
        Ok(Some(self.incarnation()))
    }
}

#[async_trait]
impl Discovery for MemoryRegistry {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        self.shared.keep_sweeping();
        Ok(self.shared.with(|store, now| store.resolve(service, now)))
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let (shared, service) = (Arc::clone(&self.shared), service.clone());
        Some(UpdateStream::fed(1, move |sender| async move {
            let mut version = shared.version.subscribe();
            let mut sent: Option<(Arc<str>, bool)> = None;
            loop {
                shared.keep_sweeping();
                let news = shared.with(|store, now| {
                    let state = store.state(&service, now);
                    (sent.as_ref() != Some(&state)).then(|| (state, store.resolve(&service, now)))
                });
                if let Some((state, resolved)) = news {
                    sent = Some(state);
                    if !sender.send(Ok(Update::Set(resolved))).await {
                        return;
                    }
                }
                if version.changed().await.is_err() {
                    return;
                }
            }
        }))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        Ok(MemoryRegistry::services(self))
    }
}

impl fmt::Debug for MemoryRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegistry").finish_non_exhaustive()
    }
}

struct Shared {
    store: Mutex<Store>,
    /// The store's version: wakes whoever watches anything.
    version: watch::Sender<u64>,
    sweep: Duration,
    /// Whether the sweep runs.
    is_sweeping: AtomicBool,
    /// Holds the rest weakly, so that it ends with the last clone.
    sweeper: Mutex<Option<AbortHandle>>,
}

impl Shared {
    /// Does something to the store now, and wakes the watchers if it changed.
    fn with<T>(&self, act: impl FnOnce(&mut Store, Instant) -> T) -> T {
        let mut store = self.store.lock();
        let done = act(&mut store, Instant::now());
        let (version, deferred) = (store.version(), store.take_deferred());
        drop(store);
        // Under no lock, since watchers are woken. Versions only rise: one that is told late is no news.
        self.version.send_if_modified(|told| {
            let is_news = version > *told;
            *told = version.max(*told);
            is_news
        });
        drop(deferred);
        done
    }

    /// Starts the sweep, unless it runs or there is no runtime to run it.
    fn keep_sweeping(self: &Arc<Self>) {
        if self.is_sweeping.load(Acquire) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.is_sweeping.swap(true, AcqRel) {
            let guard = SweepGuard { shared: Arc::downgrade(self), has_begun: false };
            // Not under the lock: a runtime that is shutting down drops the task at once.
            let sweeper = runtime.spawn(sweep(guard, self.sweep)).abort_handle();
            *self.sweeper.lock() = Some(sweeper);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(sweeper) = self.sweeper.get_mut().take() {
            sweeper.abort();
        }
    }
}

/// Held by the sweep. If it ends with its runtime, those who watch on another runtime start it there.
struct SweepGuard {
    shared: Weak<Shared>,
    /// The end of a sweep that never ran wakes nobody: those who are woken start the next one, perhaps
    /// on the same runtime.
    has_begun: bool,
}

impl Drop for SweepGuard {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        shared.is_sweeping.store(false, Release);
        if self.has_begun {
            shared.version.send_modify(|_| ());
        }
    }
}

async fn sweep(mut guard: SweepGuard, every: Duration) {
    guard.has_begun = true;
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = guard.shared.upgrade() else { return };
        shared.with(Store::sweep);
    }
}
