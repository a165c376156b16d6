//! Memory that a request holds: its body while it is read, and its answer until that is taken.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use hyper::body::Bytes;

use super::problem::Refusal;
use super::usage::Usage;
use crate::transport::{Budget, CHARGE_STEP, Charge, Peer};

/// When to ask again if there is no room.
const WAIT: Duration = Duration::from_secs(1);

/// A request's part of the budget, given back when it is dropped. Less than [`CHARGE_STEP`] is free.
pub(super) struct RequestMemory {
    charge: Charge,
    budget: Arc<Budget>,
    /// That of its connection, which may have to close for what it holds. `None`: another server has
    /// accepted it.
    usage: Option<Arc<Usage>>,
    /// What that was told.
    told: usize,
}

impl RequestMemory {
    /// Nothing yet.
    pub(super) fn of(parts: &Parts, budget: &Arc<Budget>) -> Self {
        let host = parts.extensions.get::<Peer>().map(Peer::account).unwrap_or_default();
        Self {
            charge: budget.open_charge(&host),
            budget: Arc::clone(budget),
            usage: parts.extensions.get::<Arc<Usage>>().cloned(),
            told: 0,
        }
    }

    /// Charges so many bytes, for which it waits as long as there is no room.
    pub(super) async fn raise(&mut self, bytes: usize) -> Result<(), Refusal> {
        let budget = Arc::clone(&self.budget);
        let has_room = self.charge.try_raise(bytes)
            || budget.wait_for_room(bytes, || self.charge.try_raise(bytes)).await;
        self.tell();
        if has_room { Ok(()) } else { Err(Refusal::memory_full(WAIT)) }
    }

    /// Waits as long as there is no room for anything.
    pub(super) async fn room(self) -> Result<Self, Refusal> {
        let has_room = !self.charge.is_full()
            || self.budget.wait_for_room(CHARGE_STEP, || !self.charge.is_full()).await;
        if has_room { Ok(self) } else { Err(Refusal::memory_full(WAIT)) }
    }

    /// These bytes, which are charged until they have been sent, or never will be, whether there is room or
    /// not. `times`: how often they are held.
    pub(super) fn bytes(mut self, bytes: Vec<u8>, times: usize) -> Bytes {
        self.charge.set(bytes.capacity().saturating_mul(times));
        self.tell();
        Bytes::from_owner(Charged { bytes, _memory: self })
    }

    fn tell(&mut self) {
        let charged = self.charge.charged();
        if let Some(usage) = &self.usage {
            usage.holds(self.told, charged);
        }
        self.told = charged;
    }
}

impl Drop for RequestMemory {
    fn drop(&mut self) {
        self.charge.set(0);
        self.tell();
    }
}

/// Bytes with the memory that they are charged for.
struct Charged {
    bytes: Vec<u8>,
    _memory: RequestMemory,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
