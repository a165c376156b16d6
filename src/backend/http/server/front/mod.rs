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

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use self::book::Book;
use self::news::News;
use self::reading::Readings;
use super::problem::Refusal;
use crate::backend::memory::{Listing, Owner, Quota, RegistrationChange, RegistrationEvent};
use crate::call::after;
use crate::discovery::Discovery;
use crate::instance::{Address, Instance, InstanceId, ServiceName};
use crate::registry::{
    DEFAULT_TTL, HealthOverride, Held, Lease, Registration, Registry, RegistryError,
    RegistryErrorKind, Renewal,
};
use crate::sync::Mutex;

/// The service that addresses are of which were registered without one: the doors know none without a
/// name.
const UNNAMED: &str = "srpc.unnamed";
/// How long the backend's name is not asked for again.
const NAME_HOLDS: Duration = Duration::from_secs(15);

pub(super) struct Front {
    registry: Arc<dyn Registry>,
    limits: Limits,
    started: Instant,
    book: Mutex<Book>,
    readings: Readings,
    news: News,
    renewals: Semaphore,
    writes: Semaphore,
    /// The backend's name, and when it was asked for.
    name: Mutex<Option<(Option<Arc<str>>, Instant)>>,
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
            readings: Readings::new(Arc::clone(&discovery), requests, limits.timeout),
            news: News::new(discovery, limits.watches),
            started: Instant::now(),
            renewals: Semaphore::new(requests),
            writes: Semaphore::new(requests),
            name: Mutex::new(None),
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
        self.book.lock().admit(service, instance, owner, until)?;
        let registered = self.asked(&self.writes, self.registry.register(&registration)).await;
        let mut news = None;
        {
            let mut book = self.book.lock();
            match &registered {
                Ok(lease) => {
                    let known = book.held(service, &instance.id);
                    news = news_of(known.as_ref(), &registration, owner);
                    let until = after(Instant::now(), lease.ttl.unwrap_or(*ttl));
                    let (registration, lease) = (registration.clone(), lease.clone());
                    book.hold(Held { registration, lease }, owner, until);
                }
                // It may be there all the same, for the time of its lease.
                Err(error) if error.kind() == RegistryErrorKind::Unavailable => {}
                Err(_) => book.refused(service, &instance.id),
            }
        }
        if let Some(news) = news {
            news.emit();
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
        let known = known.filter(|held| held.registration.instance == instance);
        if let Some(held) = known {
            match self.renew(vec![held], owner).await.pop() {
                Some(Ok(renewal)) if renewal.holds() => return Ok(true),
                Some(Err(error)) => return Err(error.into()),
                _ => {}
            }
        }
        // Whoever is there under this text or at this address, and is more than an address.
        let own = self.list(Some(&group)).await?.entries;
        let is_address = |one: &Instance| one.clone().health(instance.health) == instance;
        let mut others = own.iter().map(|entry| &entry.instance).filter(|one| !is_address(one));
        if let Some(other) = others.find(|one| one.address == *address || one.id == instance.id) {
            return Ok(other.address == *address);
        }
        if service.is_none() {
            let all = match self.list(None).await {
                Ok(all) => all.entries,
                // Where a backend has no such list, nobody is known to hold it.
                Err(refusal) if refusal.is_unsupported() => Vec::new(),
                Err(refusal) => return Err(refusal),
            };
            if all.iter().any(|one| one.service.is_some() && one.instance.address == *address) {
                return Ok(true);
            }
        }
        match self.register(&Registration::new(group, instance).ttl(self.limits.ttl), owner).await {
            Ok(_) => Ok(true),
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
        let mut news = Vec::new();
        {
            let (mut book, now) = (self.book.lock(), Instant::now());
            for (held, renewal) in held.iter().zip(&renewed) {
                // What is lost stays on its account until its time is over: it may be on its way back.
                if renewal.as_ref().is_ok_and(Renewal::holds) {
                    let Registration { service, instance, .. } = &held.registration;
                    // What another front has registered is no news.
                    if let Some(known) = book.held(service, &instance.id) {
                        news.extend(news_of(Some(&known), &held.registration, owner));
                    }
                    book.renewed(held, owner, self.limits.ttl, now);
                }
            }
        }
        news.iter().for_each(RegistrationEvent::emit);
        renewed
    }

    pub(super) async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        self.asked(&self.writes, self.registry.deregister(held)).await?;
        let gone: Vec<Registration> = {
            let mut book = self.book.lock();
            held.iter().filter_map(|held| book.taken_back(held)).collect()
        };
        for Registration { service, instance, .. } in &gone {
            let change = RegistrationChange::Deregistered;
            RegistrationEvent::new(change, Some(service), instance, None).emit();
        }
        Ok(())
    }

    pub(super) async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        self.asked(&self.writes, self.registry.set_health(service, id, word)).await
    }

    pub(super) async fn list(&self, service: Option<&ServiceName>) -> Result<Listing, Refusal> {
        let listed = timeout(self.limits.timeout, self.readings.list(service)).await;
        let mut listing = match listed.map_err(|_| self.late())? {
            Ok(listing) => Listing::clone(&listing),
            Err(error) => return Err(Refusal::from(&*error)),
        };
        // A backend that came back without what it had may have done so before this process began.
        listing.warming |= self.started.elapsed() < DEFAULT_TTL;
        Ok(listing)
    }

    pub(super) async fn services(&self) -> Result<Vec<ServiceName>, Refusal> {
        let listed = timeout(self.limits.timeout, self.readings.services()).await;
        let services = match listed.map_err(|_| self.late())? {
            Ok(services) => services,
            Err(error) => return Err(Refusal::from(&*error)),
        };
        Ok(services.iter().filter(|service| service.as_str() != UNNAMED).cloned().collect())
    }

    /// The backend's name. It changes when the backend has lost what it had, so it is asked for from time
    /// to time.
    pub(super) async fn name(&self) -> Option<Arc<str>> {
        let known = self.name.lock().clone();
        if let Some((name, asked)) = &known
            && asked.elapsed() < NAME_HOLDS
        {
            return name.clone();
        }
        let asked = Instant::now();
        let name = match self.asked(&self.writes, self.registry.name()).await {
            Ok(name) => name,
            // What was known is more likely than another one.
            Err(_) => return known.and_then(|(name, _)| name),
        };
        *self.name.lock() = Some((name.clone(), asked));
        name
    }

    /// Returns once the list has another revision, at once if it has; also at once if no further service
    /// can be watched: that is slower news, and no failure.
    pub(super) async fn changed(
        &self,
        service: &ServiceName,
        revision: &str,
    ) -> Result<(), Refusal> {
        // Nobody else's watch ends for the sake of one who has nothing to wait for.
        if !self.news.has(service) && self.differs(service, revision).await? {
            return Ok(());
        }
        loop {
            // Before the list is read: what changes meanwhile is told.
            let Some(mut news) = self.news.of(service) else { return Ok(()) };
            if self.differs(service, revision).await? {
                return Ok(());
            }
            // An end of news is one, too.
            let _ = news.changed().await;
        }
    }

    async fn differs(&self, service: &ServiceName, revision: &str) -> Result<bool, Refusal> {
        Ok(*self.list(Some(service)).await?.revision != *revision)
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

/// What a registration that the backend has taken changes of what this front knew.
fn news_of(
    known: Option<&Held>,
    registration: &Registration,
    owner: &Owner,
) -> Option<RegistrationEvent> {
    let Registration { service, instance, .. } = registration;
    let change = match known.map(|held| held.registration.instance.epoch) {
        None => RegistrationChange::Registered,
        Some(epoch) if epoch < instance.epoch => RegistrationChange::Changed,
        Some(_) => return None,
    };
    Some(RegistrationEvent::new(change, Some(service), instance, owner.text()))
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
