//! What is made of each endpoint, for as long as it is listed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::discovery::{Endpoint, Snapshot};
use crate::sync::{ClonePool, Mutex, assert_unlocked};

pub(super) struct Pool<S> {
    make: Box<dyn Fn(&Endpoint) -> S + Send + Sync>,
    made: Mutex<Made<S>>,
}

struct Made<S> {
    generation: u64,
    /// By the endpoint's key, which the endpoint keeps from being used again.
    by_key: HashMap<usize, (Endpoint, Arc<Kept<S>>)>,
}

/// What was made of an endpoint.
struct Kept<S> {
    clones: ClonePool<S>,
    has_answered: Arc<AtomicBool>,
}

/// What was made of an endpoint, for one request.
pub(super) struct Pooled<S> {
    pub(super) service: S,
    /// It has answered since it was made or last failed: before that a request may have to connect.
    pub(super) has_answered: Arc<AtomicBool>,
}

impl<S: Clone> Pool<S> {
    pub(super) fn new(make: impl Fn(&Endpoint) -> S + Send + Sync + 'static) -> Self {
        let made = Made { generation: 0, by_key: HashMap::new() };
        Self { make: Box::new(make), made: Mutex::new(made) }
    }

    /// What was made of this endpoint of a list, or is made now. What is no longer listed is let go.
    ///
    /// Both happen under no lock. Of two that are made at once one is dropped.
    pub(super) async fn get(&self, snapshot: &Snapshot, endpoint: &Endpoint) -> Pooled<S> {
        let kept = self.kept(snapshot, endpoint);
        loop {
            if let Some(mut taken) = kept.clones.take()
                && let Some(service) = taken.get_mut()
            {
                let service = service.clone();
                return Pooled { service, has_answered: Arc::clone(&kept.has_answered) };
            }
            // The last one is being cloned for another request.
            tokio::task::yield_now().await;
        }
    }

    fn kept(&self, snapshot: &Snapshot, endpoint: &Endpoint) -> Arc<Kept<S>> {
        let mut made = self.made.lock();
        let mut unlisted = Vec::new();
        if made.generation < snapshot.generation {
            made.generation = snapshot.generation;
            let listed: HashSet<usize> = snapshot.endpoints.iter().map(Endpoint::key).collect();
            unlisted.extend(made.by_key.extract_if(|key, _| !listed.contains(key)));
        }
        let known = made.by_key.get(&endpoint.key()).map(|(_, kept)| Arc::clone(kept));
        drop(made);
        drop(unlisted);
        if let Some(known) = known {
            return known;
        }
        assert_unlocked();
        let clones = ClonePool::new((self.make)(endpoint));
        let fresh = Arc::new(Kept { clones, has_answered: Arc::default() });
        let mut made = self.made.lock();
        let entry = made.by_key.entry(endpoint.key());
        let (_, kept) = entry.or_insert_with(|| (endpoint.clone(), Arc::clone(&fresh)));
        let kept = Arc::clone(kept);
        drop(made);
        kept
    }
}
