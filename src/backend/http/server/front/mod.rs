//! A registry that has nothing of its own: all that it says is another's, which it asks each time.
//!
//! Several fronts may stand before one registry, behind one name, and be started and killed at any time:
//! a lease is the backend's own, and a list's revision is made of what the list says, so that each front
//! understands what another has answered.

mod book;
mod news;
mod reading;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use self::book::Book;
use self::news::News;
use self::reading::Readings;
use super::problem::Refusal;
use crate::backend::memory::{Listing, Owner, Quota};
use crate::call::after;
use crate::discovery::Discovery;
use crate::instance::{Address, Health, Instance, InstanceId, ServiceName};
use crate::registry::{
    Held, Lease, Registration, Registry, RegistryError, RegistryErrorKind, Renewal,
};

/// The service that addresses are of which were registered without one: the doors know none without a
/// name.
const UNNAMED: &str = "srpc.unnamed";

pub(super) struct Front {
    registry: Arc<dyn Registry>,
    discovery: Arc<dyn Discovery>,
    limits: Limits,
    book: Mutex<Book>,
    readings: Readings,
    news: News,
    renewals: Semaphore,
    writes: Semaphore,
}

/// What a front asks of its backend at most.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// The lease of an address, and the longest that is asked for.
    pub(super) ttl: Duration,
    pub(super) quota: Quota,
    /// How long a request may take, waiting for its turn included.
    pub(super) timeout: Duration,
    /// How many lists, registrations and renewals are under way, each.
    pub(super) requests: usize,
    /// How many services are watched for long polls.
    pub(super) watches: usize,
}

impl Front {
    pub(super) fn new(
        discovery: Arc<dyn Discovery>,
        registry: Arc<dyn Registry>,
        limits: Limits,
    ) -> Self {
        // More is more than any backend takes, and than a semaphore counts.
        let requests = limits.requests.clamp(1, 1 << 20);
        Self {
            registry,
            book: Mutex::new(Book::new(limits.quota.clone())),
            readings: Readings::new(Arc::clone(&discovery), requests),
            news: News::new(Arc::clone(&discovery), limits.watches),
            discovery,
            renewals: Semaphore::new(requests),
            writes: Semaphore::new(requests),
            limits,
        }
    }

    pub(super) async fn register(
        &self,
        registration: &Registration,
        owner: &Owner,
    ) -> Result<Lease, RegistryError> {
        if registration.ttl.is_zero() {
            let message = "a lease of 0 s: ask for at least 1 ms";
            return Err(RegistryError::new(RegistryErrorKind::Invalid, message));
        }
        let registration = self.capped(registration.clone());
        let Registration { service, instance, ttl, .. } = &registration;
        let until = after(Instant::now(), *ttl);
        let is_new = self.book.lock().admit(service, instance, owner, until)?;
        let registered = self.asked(&self.writes, self.registry.register(&registration)).await;
        let mut book = self.book.lock();
        match &registered {
            Ok(lease) => {
                book.extend(
                    service,
                    &instance.id,
                    after(Instant::now(), lease.ttl.unwrap_or(*ttl)),
                );
            }
            // It may be there all the same, for the time of its lease.
            Err(error) if error.kind() == RegistryErrorKind::Unavailable => {}
            Err(_) if is_new => book.close(service, &instance.id),
            Err(_) => {}
        }
        registered
    }

    /// Registers an address under its own text, or renews it. An instance that holds the address through
    /// `register` is left as it is: its own renewals keep it.
    pub(super) async fn register_address(
        &self,
        service: Option<&ServiceName>,
        address: &Address,
        owner: &Owner,
    ) -> Result<bool, Refusal> {
        let group = match service {
            Some(service) => service.clone(),
            None => UNNAMED.parse::<ServiceName>().map_err(Refusal::internal)?,
        };
        let instance = Instance::at(address.clone());
        let known = self.book.lock().held(&group, &instance.id);
        if let Some(held) = known {
            match self.renew(vec![held], owner).await.pop() {
                Some(Ok(Renewal::Renewed)) => return Ok(true),
                Some(Err(error)) => return Err(error.into()),
                _ => {}
            }
        }
        let listed = self.list(service).await?;
        let is_held = listed.entries.iter().any(|entry| {
            let is_other =
                entry.instance.id != instance.id || (service.is_none() && entry.service.is_some());
            entry.instance.address == *address && is_other
        });
        // An id that is this address's text may have been registered for another address: it stays.
        let is_taken = listed.entries.iter().any(|entry| {
            let is_here = entry.service.as_ref() == service;
            is_here && entry.instance.id == instance.id && entry.instance.address != *address
        });
        if is_held || is_taken {
            return Ok(is_held);
        }
        let registration = Registration::new(group, instance).ttl(self.limits.ttl);
        match self.register(&registration, owner).await {
            Ok(lease) => {
                self.book.lock().hold(Held { registration, lease });
                Ok(true)
            }
            Err(error) if error.kind() == RegistryErrorKind::Full => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn renew(
        &self,
        held: Vec<Held>,
        owner: &Owner,
    ) -> Vec<Result<Renewal, RegistryError>> {
        let cap = |held: Held| Held { registration: self.capped(held.registration), ..held };
        let held: Vec<Held> = held.into_iter().map(cap).collect();
        let renewed = async {
            let renewed = self.registry.renew(&held).await;
            match renewed.len() == held.len() {
                true => Ok(renewed),
                false => {
                    Err(RegistryError::unavailable("the backend did not answer for each lease"))
                }
            }
        };
        let renewed = match self.asked(&self.renewals, renewed).await {
            Ok(renewed) => renewed.into_iter().map(|one| one.map_err(not_ours)).collect(),
            Err(error) => {
                let again = || RegistryError::new(error.kind(), error.message());
                held.iter().map(|_| Err(again())).collect::<Vec<_>>()
            }
        };
        let (mut book, now) = (self.book.lock(), Instant::now());
        for (Held { registration, .. }, renewal) in held.iter().zip(&renewed) {
            let Registration { service, instance, ttl, .. } = registration;
            match renewal {
                // What another front took in counts here from now on. It is renewed all the same.
                Ok(Renewal::Renewed) => {
                    let _ = book.admit(service, instance, owner, after(now, *ttl));
                }
                Ok(Renewal::Lost) => book.close(service, &instance.id),
                Err(_) => {}
            }
        }
        renewed
    }

    pub(super) async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        self.asked(&self.writes, self.registry.deregister(held)).await?;
        let mut book = self.book.lock();
        for Held { registration, .. } in held {
            book.close(&registration.service, &registration.instance.id);
        }
        Ok(())
    }

    pub(super) async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        health: Health,
    ) -> Result<bool, RegistryError> {
        self.asked(&self.writes, self.registry.set_health(service, id, health)).await
    }

    pub(super) async fn list(&self, service: Option<&ServiceName>) -> Result<Listing, Refusal> {
        let listed = timeout(self.limits.timeout, self.readings.list(service)).await;
        match listed.map_err(|_| self.late())? {
            Ok(listing) => Ok(Listing::clone(&listing)),
            Err(error) => Err(Refusal::from(&*error)),
        }
    }

    pub(super) async fn services(&self) -> Result<Vec<ServiceName>, Refusal> {
        let listed = timeout(self.limits.timeout, self.discovery.services()).await;
        let mut services = match listed.map_err(|_| self.late())? {
            Ok(services) => services,
            Err(error) => return Err(Refusal::from(&error)),
        };
        services.retain(|service| service.as_str() != UNNAMED);
        Ok(services)
    }

    /// Returns once the list has another revision, at once if it has; also at once if no further service
    /// can be watched: that is slower news, and no failure.
    pub(super) async fn changed(
        &self,
        service: &ServiceName,
        revision: &str,
    ) -> Result<(), Refusal> {
        loop {
            // Before the list is read: what changes meanwhile is told.
            let Some(mut news) = self.news.of(service) else { return Ok(()) };
            if *self.list(Some(service)).await?.revision != *revision {
                return Ok(());
            }
            // An end of news is one, too.
            let _ = news.changed().await;
        }
    }

    /// No lease is longer than the server grants.
    fn capped(&self, registration: Registration) -> Registration {
        let ttl = registration.ttl.min(self.limits.ttl);
        registration.ttl(ttl)
    }

    /// Asks the backend once it is this request's turn.
    async fn asked<T>(
        &self,
        turns: &Semaphore,
        request: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let answered = timeout(self.limits.timeout, async {
            let _turn = turns.acquire().await;
            request.await
        });
        answered.await.unwrap_or_else(|_| Err(self.late())).map_err(not_ours)
    }

    fn late(&self) -> RegistryError {
        let limit = self.limits.timeout;
        RegistryError::unavailable(format!("the backend has not answered within {limit:?}"))
    }
}

/// What the backend says of this registry is not the fault of those who ask it.
fn not_ours(error: RegistryError) -> RegistryError {
    match error.kind() {
        RegistryErrorKind::NotAllowed => RegistryError::unavailable(format!(
            "the backend refuses this registry: {}",
            error.message()
        )),
        _ => error,
    }
}
