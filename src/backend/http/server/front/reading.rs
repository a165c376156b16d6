//! Reads lists from the backend: whoever wants the same one waits for the same request.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::UNNAMED;
use crate::backend::join::all;
use crate::backend::memory::{Entry, Listing};
use crate::discovery::{Discovery, DiscoveryError};
use crate::instance::ServiceName;

/// How many services are read at once for a list of all.
const AT_ONCE: usize = 8;

type Answer = Result<Arc<Listing>, Arc<DiscoveryError>>;

pub(super) struct Readings {
    discovery: Arc<dyn Discovery>,
    turns: Semaphore,
    /// Tells which came first, a question or a reading.
    clock: AtomicU64,
    /// By service, or all.
    places: Mutex<HashMap<Option<ServiceName>, Weak<Place>>>,
}

/// Where those wait who want the same list.
struct Place {
    turn: Semaphore,
    /// When the last reading began, and what it came to.
    last: Mutex<Option<(u64, Answer)>>,
}

impl Readings {
    pub(super) fn new(discovery: Arc<dyn Discovery>, requests: usize) -> Self {
        let (turns, clock) = (Semaphore::new(requests), AtomicU64::new(0));
        Self { discovery, turns, clock, places: Mutex::default() }
    }

    /// The list as it is now or later: the answer of no request that began before.
    pub(super) async fn list(&self, service: Option<&ServiceName>) -> Answer {
        let place = self.place(service);
        let asked = self.clock.fetch_add(1, Relaxed);
        let _mine = place.turn.acquire().await;
        let last = place.last.lock().clone();
        if let Some((began, answer)) = last
            && began > asked
        {
            return answer;
        }
        let _turn = self.turns.acquire().await;
        let began = self.clock.fetch_add(1, Relaxed);
        let answer = self.read(service).await;
        *place.last.lock() = Some((began, answer.clone()));
        answer
    }

    fn place(&self, service: Option<&ServiceName>) -> Arc<Place> {
        let mut places = self.places.lock();
        let key = service.cloned();
        if let Some(place) = places.get(&key).and_then(Weak::upgrade) {
            return place;
        }
        // As often as there are twice as many as before: they go with those who wait there.
        if places.len() == places.capacity() {
            places.retain(|_, place| place.strong_count() > 0);
        }
        let place = Arc::new(Place { turn: Semaphore::new(1), last: Mutex::new(None) });
        places.insert(key, Arc::downgrade(&place));
        place
    }

    async fn read(&self, service: Option<&ServiceName>) -> Answer {
        let mut read = Read::default();
        match service {
            Some(service) => self.add(service, &mut read).await?,
            None => {
                let services = self.discovery.services().await?;
                for services in services.chunks(AT_ONCE) {
                    let resolve = |service| self.discovery.resolve(service);
                    let lists = all(services.iter().map(resolve).collect()).await;
                    for (service, resolved) in services.iter().zip(lists) {
                        read.take(service, resolved?);
                    }
                }
            }
        }
        Ok(Arc::new(read.listing()))
    }

    async fn add(&self, service: &ServiceName, read: &mut Read) -> Result<(), DiscoveryError> {
        read.take(service, self.discovery.resolve(service).await?);
        Ok(())
    }
}

#[derive(Default)]
struct Read {
    entries: Vec<Entry>,
    /// Something says that it is not sure of all that it lacks.
    warming: bool,
}

impl Read {
    fn take(&mut self, service: &ServiceName, resolved: crate::discovery::Resolved) {
        self.warming |= !resolved.is_proven();
        let name = (service.as_str() != UNNAMED).then(|| service.clone());
        let entry = |instance| Entry::new(name.clone(), instance, None);
        self.entries.extend(resolved.instances.into_iter().map(entry));
    }

    fn listing(self) -> Listing {
        let Self { mut entries, warming } = self;
        entries.sort_by(|one, other| {
            let by_service = one.service.cmp(&other.service);
            by_service.then_with(|| one.instance.address.cmp(&other.instance.address))
        });
        Listing::new(revision(&entries, warming), warming, entries)
    }
}

/// What names a list: the same for all fronts, whatever the backend calls it, so that another front can
/// tell whether its own differs. Of 128 bits, for a difference that is not seen is a change that is not
/// told.
fn revision(entries: &[Entry], warming: bool) -> String {
    let mut halves = [DefaultHasher::new(), DefaultHasher::new()];
    halves[1].write_u8(1);
    for half in &mut halves {
        half.write_u8(u8::from(warming));
    }
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
