//! Ends registrations that are not renewed: their session would keep them for as long as the process
//! lives.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Inner;
use super::registering::expire;
use crate::call::after;
use crate::instance::{InstanceId, ServiceName};
use crate::registry::{Held, Registration};
use crate::sync::{Mutex, event};

/// How often it looks.
const SWEEP: Duration = Duration::from_millis(250);

type Key = (ServiceName, InstanceId);

/// Until when each registration holds. Its task runs while there are any, and ends with the value.
#[derive(Default)]
pub(super) struct Keeper(Mutex<Table>);

#[derive(Default)]
struct Table {
    kept: HashMap<Key, Kept>,
    task: Option<AbortHandle>,
}

struct Kept {
    until: Instant,
    /// The highest epoch that was asked for: it may be registered when nobody waits for it any more.
    epoch: u64,
}

impl Kept {
    fn is_over(&self) -> bool {
        self.until <= Instant::now()
    }
}

impl Keeper {
    /// It is being registered: whatever comes of it ends after its TTL, and what is registered no sooner.
    pub(super) fn ask(&self, inner: &Arc<Inner>, registration: &Registration) {
        self.keep(inner, registration, |kept, until| kept.max(until));
    }

    /// It is registered, and holds for its TTL from now on.
    pub(super) fn note(&self, inner: &Arc<Inner>, registration: &Registration) {
        self.keep(inner, registration, |_, until| until);
    }

    fn keep(
        &self,
        inner: &Arc<Inner>,
        registration: &Registration,
        until_when: impl FnOnce(Instant, Instant) -> Instant,
    ) {
        let Registration { service, instance, ttl, .. } = registration;
        let until = after(Instant::now(), *ttl);
        let mut table = self.0.lock();
        let kept = table.kept.entry((service.clone(), instance.id.clone()));
        let kept = kept.or_insert(Kept { until, epoch: instance.epoch });
        kept.until = until_when(kept.until, until);
        kept.epoch = kept.epoch.max(instance.epoch);
        if table.task.as_ref().is_none_or(AbortHandle::is_finished) {
            let task = tokio::spawn(sweep(Arc::downgrade(inner)));
            table.task = Some(task.abort_handle());
        }
    }

    /// They were taken back; what was registered with a higher epoch since is kept.
    pub(super) fn forget(&self, held: &[Held]) {
        let mut table = self.0.lock();
        for Held { registration: Registration { service, instance, .. }, .. } in held {
            let key = (service.clone(), instance.id.clone());
            if table.kept.get(&key).is_some_and(|kept| kept.epoch <= instance.epoch) {
                table.kept.remove(&key);
            }
        }
    }

    /// Whether nothing else is registered.
    pub(super) fn keeps_only(&self, held: &[Held]) -> bool {
        let table = self.0.lock();
        table.kept.iter().all(|((service, id), kept)| {
            held.iter().map(|held| &held.registration).any(|registration| {
                let Registration { service: of, instance, .. } = registration;
                of == service && instance.id == *id && kept.epoch <= instance.epoch
            })
        })
    }

    /// Whether its time is over.
    pub(super) fn is_due(&self, service: &ServiceName, id: &InstanceId) -> bool {
        let key = (service.clone(), id.clone());
        self.0.lock().kept.get(&key).is_some_and(Kept::is_over)
    }

    /// Those whose time is over. `None`: nothing is registered.
    fn due(&self) -> Option<Vec<Key>> {
        let mut table = self.0.lock();
        if table.kept.is_empty() {
            table.task = None;
            return None;
        }
        let due = table.kept.iter().filter(|(_, kept)| kept.is_over());
        Some(due.map(|(key, _)| key.clone()).collect())
    }

    /// It is gone, unless it was renewed meanwhile.
    fn settle(&self, key: &Key) {
        let mut table = self.0.lock();
        if table.kept.get(key).is_some_and(Kept::is_over) {
            table.kept.remove(key);
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
                    event!(DEBUG, %service, %id, ?failure, "a lease is not ended yet");
                    break;
                }
                Err(_) => break,
            }
        }
    }
}
