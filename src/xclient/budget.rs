//! How many attempts beyond the first the clients of one service may make together.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tower::retry::budget::TpsBudget;

use crate::instance::ServiceName;

/// Over which time a budget counts.
const WINDOW: Duration = Duration::from_secs(10);
/// What it allows beside the share of calls, a second.
const PER_SECOND: u32 = 10;
/// The share of calls that may be tried again (Envoy: 20 %).
const SHARE: f32 = 0.2;

/// The budgets that this process's clients share, by service.
///
/// Why is there a global table here, the only one? A retry storm is made by all clients of a
/// process together, and those that two libraries build do not know of each other.
static SHARED: Mutex<BTreeMap<ServiceName, Weak<TpsBudget>>> = Mutex::new(BTreeMap::new());

/// The budget that all clients of a service in this process share; it lasts as long as they do.
pub(super) fn shared(service: &ServiceName) -> Arc<TpsBudget> {
    let mut shared = SHARED.lock();
    if let Some(budget) = shared.get(service).and_then(Weak::upgrade) {
        return budget;
    }
    shared.retain(|_, budget| budget.strong_count() > 0);
    let budget = own();
    shared.insert(service.clone(), Arc::downgrade(&budget));
    budget
}

/// A budget of the default size that nobody else has.
pub(super) fn own() -> Arc<TpsBudget> {
    sized(SHARE, PER_SECOND)
}

/// A budget of this size that nobody else has.
pub(super) fn sized(share: f32, per_second: u32) -> Arc<TpsBudget> {
    Arc::new(TpsBudget::new(WINDOW, per_second, share))
}
