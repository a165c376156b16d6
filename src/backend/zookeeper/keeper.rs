//! Ends registrations that are not renewed: their session would keep them for as long as the process
//! lives.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Inner;
use super::registering::expire;
use crate::instance::{InstanceId, ServiceName};
use crate::registry::Held;

/// How often it looks.
const SWEEP: Duration = Duration::from_millis(250);

type Key = (ServiceName, InstanceId);

/// Until when each registration holds. Its task runs while there are any, and ends with the value.
#[derive(Default)]
pub(super) struct Keeper(Mutex<Table>);

#[derive(Default)]
struct Table {
    until: HashMap<Key, Instant>,
    task: Option<AbortHandle>,
}

impl Keeper {
    /// The registration holds until then.
    pub(super) fn note(
        &self,
        inner: &Arc<Inner>,
        service: &ServiceName,
        id: &InstanceId,
        until: Instant,
    ) {
        let mut table = self.0.lock();
        table.until.insert((service.clone(), id.clone()), until);
        if table.task.as_ref().is_none_or(AbortHandle::is_finished) {
            let task = tokio::spawn(sweep(Arc::downgrade(inner)));
            table.task = Some(task.abort_handle());
        }
    }

    /// It was taken back.
    pub(super) fn forget(&self, service: &ServiceName, id: &InstanceId) {
        self.0.lock().until.remove(&(service.clone(), id.clone()));
    }

    /// Whether nothing else is registered.
    pub(super) fn keeps_only(&self, held: &[Held]) -> bool {
        let table = self.0.lock();
        let is_held = |(service, id): &Key| {
            let same = |held: &Held| {
                held.registration.service == *service && held.registration.instance.id == *id
            };
            held.iter().any(same)
        };
        table.until.keys().all(is_held)
    }

    /// Whether its time is over.
    pub(super) fn is_due(&self, service: &ServiceName, id: &InstanceId) -> bool {
        let key = (service.clone(), id.clone());
        self.0.lock().until.get(&key).is_some_and(|until| *until <= Instant::now())
    }

    /// Those whose time is over. `None`: nothing is registered.
    fn due(&self) -> Option<Vec<Key>> {
        let (mut table, now) = (self.0.lock(), Instant::now());
        if table.until.is_empty() {
            table.task = None;
            return None;
        }
        let due = table.until.iter().filter(|(_, until)| **until <= now);
        Some(due.map(|(key, _)| key.clone()).collect())
    }

    /// It is gone, unless it was renewed meanwhile.
    fn settle(&self, key: &Key) {
        let mut table = self.0.lock();
        if table.until.get(key).is_some_and(|until| *until <= Instant::now()) {
            table.until.remove(key);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(task) = self.0.get_mut().task.take() {
            task.abort();
        }
    }
}

async fn sweep(inner: Weak<Inner>) {
    loop {
        sleep(SWEEP).await;
        let Some(inner) = inner.upgrade() else { return };
        let Some(due) = inner.keeper.due() else { return };
        for key in due {
            let (service, id) = &key;
            match timeout(inner.timeout, expire(&inner, service, id)).await {
                Ok(Ok(())) => inner.keeper.settle(&key),
                // The others would fare no better: all are tried again.
                Ok(Err(failure)) => {
                    tracing::debug!(%service, %id, ?failure, "a lease is not ended yet");
                    break;
                }
                Err(_) => break,
            }
        }
    }
}
