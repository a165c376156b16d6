//! What is made of each endpoint, for as long as it is listed.

use std::collections::{HashMap, HashSet};

use crate::discovery::{Endpoint, Snapshot};
use crate::sync::Mutex;

pub(super) struct Pool<S> {
    make: Box<dyn Fn(&Endpoint) -> S + Send + Sync>,
    made: Mutex<Made<S>>,
}

struct Made<S> {
    generation: u64,
    /// By the endpoint's key, which the endpoint keeps from being used again.
    by_key: HashMap<usize, (Endpoint, S)>,
}

impl<S: Clone> Pool<S> {
    pub(super) fn new(make: impl Fn(&Endpoint) -> S + Send + Sync + 'static) -> Self {
        let made = Made { generation: 0, by_key: HashMap::new() };
        Self { make: Box::new(make), made: Mutex::new(made) }
    }

    /// What was made of this endpoint of a list, or is made now. What is no longer listed is let go.
    pub(super) fn get(&self, snapshot: &Snapshot, endpoint: &Endpoint) -> S {
        let mut made = self.made.lock();
        if made.generation < snapshot.generation {
            made.generation = snapshot.generation;
            let listed: HashSet<usize> = snapshot.endpoints.iter().map(Endpoint::key).collect();
            made.by_key.retain(|key, _| listed.contains(key));
        }
        let make = || (endpoint.clone(), (self.make)(endpoint));
        made.by_key.entry(endpoint.key()).or_insert_with(make).1.clone()
    }
}
