//! Reads lists from the backend: whoever wants the same one waits for the same request.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::UNNAMED;
use crate::backend::join::all;
use crate::backend::memory::{Entry, Listing};
use crate::discovery::{Discovery, DiscoveryError, DiscoveryErrorKind, MAX_UNREAD, Resolved};
use crate::error::Panic;
use crate::instance::ServiceName;
use crate::sync::{Mutex, event};

/// How many services are read at once for a list of all.
const AT_ONCE: usize = 8;

type Answer<T> = Result<Arc<T>, Arc<DiscoveryError>>;
/// When a reading began, and what it came to.
type Last<T> = Mutex<Option<(u64, Answer<T>)>>;

pub(super) struct Readings {
    discovery: Arc<dyn Discovery>,
    limit: Duration,
    turns: Arc<Semaphore>,
    /// Tells which came first, a question or a reading.
    clock: Arc<AtomicU64>,
    /// By service, or all.
    lists: Mutex<HashMap<Option<ServiceName>, Weak<Place<Listing>>>>,
    services: Place<Vec<ServiceName>>,
    backend: Arc<Mutex<Backend>>,
}

/// What was said of the backend last.
#[derive(Default)]
struct Backend {
    is_away: bool,
    told: Option<Instant>,
}

/// How long what was said stands, whatever comes: services may differ.
const STANDS: Duration = Duration::from_secs(10);

/// Where those wait who want the same.
struct Place<T> {
    turn: Arc<Semaphore>,
    last: Arc<Last<T>>,
    /// The reading that is under way: not of the one who asked for it first, since his time may end before
    /// that of those who wait for it too.
    reading: Mutex<Option<AbortHandle>>,
}

impl<T> Place<T> {
    fn new() -> Self {
        let (turn, last) = (Arc::new(Semaphore::new(1)), Arc::default());
        Self { turn, last, reading: Mutex::default() }
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        if let Some(reading) = self.reading.get_mut().take() {
            reading.abort();
        }
    }
}

impl Readings {
    pub(super) fn new(discovery: Arc<dyn Discovery>, requests: usize, limit: Duration) -> Self {
        Self {
            discovery,
            limit,
            turns: Arc::new(Semaphore::new(requests)),
            clock: Arc::default(),
            lists: Mutex::default(),
            services: Place::new(),
            backend: Arc::default(),
        }
    }

    /// The list as it is now or later: the answer of no request that began before.
    pub(super) async fn list(&self, service: Option<&ServiceName>) -> Answer<Listing> {
        let place = self.place(service);
        let (discovery, service) = (Arc::clone(&self.discovery), service.cloned());
        self.shared(&place, async move {
            match service {
                Some(service) => one(&*discovery, &service).await,
                None => every(&*discovery).await,
            }
        })
        .await
    }

    /// The same of the names of all services.
    pub(super) async fn services(&self) -> Answer<Vec<ServiceName>> {
        let discovery = Arc::clone(&self.discovery);
        self.shared(&self.services, async move { discovery.services().await }).await
    }

    /// What `read` comes to, or a reading by another that began after this one was asked for.
    async fn shared<T: Send + Sync + 'static>(
        &self,
        place: &Place<T>,
        read: impl Future<Output = Result<T, DiscoveryError>> + Send + 'static,
    ) -> Answer<T> {
        let asked = self.clock.fetch_add(1, Relaxed);
        let closed = |_| Arc::new(DiscoveryError::unavailable("the registry is closed"));
        let turn = Arc::clone(&place.turn).acquire_owned().await.map_err(closed)?;
        let last = place.last.lock().clone();
        if let Some((began, answer)) = last
            && began > asked
        {
            return answer;
        }
        let (turns, clock) = (Arc::clone(&self.turns), Arc::clone(&self.clock));
        let (last, limit) = (Arc::clone(&place.last), self.limit);
        let backend = Arc::clone(&self.backend);
        let reading = tokio::spawn(async move {
            let _turn = turn;
            let _place = turns.acquire().await;
            let began = clock.fetch_add(1, Relaxed);
            let answer = timeout(limit, read).await.unwrap_or_else(|_| {
                let message = format!("the backend has not answered within {limit:?}");
                Err(DiscoveryError::unavailable(message))
            });
            let error = answer.as_ref().err();
            let news = backend.lock().judge(error, Instant::now());
            match (news, error) {
                (Some(true), Some(error)) => event!(WARN, %error, "the backend does not answer"),
                (Some(false), _) => event!(WARN, "the backend answers again"),
                _ => {}
            }
            let answer = answer.map(Arc::new).map_err(Arc::new);
            let former = last.lock().replace((began, answer.clone()));
            // Not under the lock: the source of an error is the user's.
            drop(former);
            answer
        });
        *place.reading.lock() = Some(reading.abort_handle());
        reading.await.unwrap_or_else(|error| {
            // A custom backend may panic, and its payload may panic when it is dropped.
            let message = format!("the reading ended: {error}");
            drop(Panic::of_task(error));
            Err(Arc::new(DiscoveryError::unavailable(message)))
        })
    }

    fn place(&self, service: Option<&ServiceName>) -> Arc<Place<Listing>> {
        let mut places = self.lists.lock();
        let key = service.cloned();
        if let Some(place) = places.get(&key).and_then(Weak::upgrade) {
            return place;
        }
        // As often as there are twice as many as before: they go with those who wait there.
        if places.len() == places.capacity() {
            places.retain(|_, place| place.strong_count() > 0);
        }
        let place = Arc::new(Place::new());
        places.insert(key, Arc::downgrade(&place));
        place
    }
}

impl Backend {
    /// Whether the backend is away, if that is to be told: once that it is, and once that it is back, since nobody
    /// else tells who runs the front.
    fn judge(&mut self, error: Option<&DiscoveryError>, now: Instant) -> Option<bool> {
        let is_away = error.is_some_and(|error| error.kind() == DiscoveryErrorKind::Unavailable);
        let stands = self.told.is_some_and(|told| now.duration_since(told) < STANDS);
        if is_away == self.is_away || stands {
            return None;
        }
        (self.is_away, self.told) = (is_away, Some(now));
        Some(is_away)
    }
}

async fn one(discovery: &dyn Discovery, service: &ServiceName) -> Result<Listing, DiscoveryError> {
    let mut resolved = discovery.resolve(service).await?;
    let deregistered = std::mem::take(&mut resolved.deregistered);
    let mut read = Read::default();
    read.take(service, resolved);
    let mut listing = read.listing();
    listing.deregistered = deregistered;
    Ok(listing)
}

async fn every(discovery: &dyn Discovery) -> Result<Listing, DiscoveryError> {
    let mut read = Read::default();
    let services = discovery.services().await?;
    for services in services.chunks(AT_ONCE) {
        let lists = all(services.iter().map(|service| discovery.resolve(service)).collect()).await;
        for (service, resolved) in services.iter().zip(lists) {
            read.take(service, resolved?);
        }
    }
    Ok(read.listing())
}

#[derive(Default)]
struct Read {
    entries: Vec<Entry>,
    /// Something says that it is not sure of all that it lacks.
    warming: bool,
    unread: Vec<Arc<str>>,
}

impl Read {
    fn take(&mut self, service: &ServiceName, resolved: Resolved) {
        self.warming |= !resolved.is_proven();
        let name = (service.as_str() != UNNAMED).then(|| service.clone());
        let entry = |instance| Entry::new(name.clone(), instance, None);
        self.entries.extend(resolved.instances.into_iter().map(entry));
        for reason in resolved.unread {
            if self.unread.len() < MAX_UNREAD && !self.unread.contains(&reason) {
                self.unread.push(reason);
            }
        }
    }

    fn listing(self) -> Listing {
        let Self { mut entries, warming, unread } = self;
        entries.sort_by(|one, other| {
            let by_service = one.service.cmp(&other.service);
            by_service.then_with(|| one.instance.address.cmp(&other.instance.address))
        });
        let mut listing = Listing::new(revision(&entries), warming, entries);
        listing.unread = unread;
        listing
    }
}

/// What names a list: the same for all fronts, whatever the backend calls it, so that another front can
/// tell whether its own differs. Of 128 bits, for a difference that is not seen is a change that is not
/// told.
fn revision(entries: &[Entry]) -> String {
    let mut halves = [DefaultHasher::new(), DefaultHasher::new()];
    halves[1].write_u8(1);
    for entry in entries {
        // An instance is texts and numbers: it always serializes.
        let text = serde_json::to_vec(&entry.instance).unwrap_or_default();
        for half in &mut halves {
            half.write(entry.service.as_ref().map_or("", ServiceName::as_str).as_bytes());
            half.write_u8(0xff);
            half.write(&text);
            half.write_u8(0xff);
        }
    }
    format!("{:016x}{:016x}", halves[0].finish(), halves[1].finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_of_a_backend_stands_for_ten_seconds() {
        let (mut backend, start) = (Backend::default(), Instant::now());
        let away = DiscoveryError::unavailable("connection refused");
        let refused = DiscoveryError::new(DiscoveryErrorKind::NotAllowed, "a wrong password");
        for (second, error, is_away) in [
            (0, None, false),
            (1, Some(&away), true),
            (2, None, true),
            (11, None, false),
            (20, Some(&away), false),
            (21, Some(&away), true),
            // Whoever refuses is there.
            (31, Some(&refused), false),
        ] {
            backend.judge(error, start + Duration::from_secs(second));
            assert_eq!(backend.is_away, is_away, "at {second} s");
        }
    }
}
