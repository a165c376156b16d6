//! Tells of a service whose list may have changed: one watch for all long polls of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval};

use crate::backend::wrap::endless;
use crate::discovery::Discovery;
use crate::instance::ServiceName;
use crate::sync::{Mutex, event};

/// How often a service is read whose source has no watch.
const POLL: Duration = Duration::from_secs(1);
/// How long a watch goes on that nobody waits for: whoever was told asks again at once.
const LINGER: Duration = Duration::from_secs(60);

type Watched = Mutex<HashMap<ServiceName, Watch>>;

pub(super) struct News {
    discovery: Arc<dyn Discovery>,
    watched: Arc<Watched>,
    max: usize,
}

/// A task that follows the service. It ends when nobody has waited for a while, and with this.
struct Watch {
    rung: watch::Sender<()>,
    has_ended: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Watch {
    fn is_running(&self) -> bool {
        !self.has_ended.load(Acquire)
    }
}

/// The task's end of a watch. Its drop wakes those who wait: the task has ended, perhaps with its
/// runtime, and the next one who asks starts another.
struct TaskGuard {
    rung: watch::Sender<()>,
    has_ended: Arc<AtomicBool>,
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.has_ended.store(true, Release);
        self.rung.send_replace(());
    }
}

impl News {
    pub(super) fn new(discovery: Arc<dyn Discovery>, max: usize) -> Self {
        Self { discovery, watched: Arc::default(), max }
    }

    /// Whether it is watched already.
    pub(super) fn has(&self, service: &ServiceName) -> bool {
        self.watched.lock().get(service).is_some_and(Watch::is_running)
    }

    /// Changes whenever the service's list may have, from now on. `None`: as many services as may be are
    /// watched.
    pub(super) fn of(&self, service: &ServiceName) -> Option<watch::Receiver<()>> {
        // Declared before the guard, and dropped after it: the end of a watch wakes its polls.
        let mut ended = Vec::new();
        let mut watched = self.watched.lock();
        if let Some(watch) = watched.get(service)
            && watch.is_running()
        {
            return Some(watch.rung.subscribe());
        }
        ended.extend(watched.remove(service));
        if watched.len() >= self.max {
            // One that lingers without anybody who waits gives way.
            let idle = watched.iter().find(|(_, watch)| watch.rung.receiver_count() == 0);
            let idle = idle.map(|(service, _)| service.clone())?;
            ended.extend(watched.remove(&idle));
        }
        let (rung, news) = watch::channel(());
        let has_ended = Arc::new(AtomicBool::new(false));
        let following = follow(
            Arc::clone(&self.discovery),
            service.clone(),
            TaskGuard { rung: rung.clone(), has_ended: Arc::clone(&has_ended) },
            Arc::downgrade(&self.watched),
        );
        let task = tokio::spawn(following).abort_handle();
        watched.insert(service.clone(), Watch { rung, has_ended, task });
        Some(news)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(
    source: Arc<dyn Discovery>,
    service: ServiceName,
    guard: TaskGuard,
    watched: Weak<Watched>,
) {
    let rung = &guard.rung;
    let mut updates = endless(source, service.clone(), POLL);
    let mut awaited = Instant::now();
    let mut looks = interval(LINGER / 4);
    loop {
        tokio::select! {
            update = updates.next() => match update {
                Some(Ok(_)) => {
                    rung.send_replace(());
                }
                // What cannot be read now has not changed, as far as is known.
                Some(Err(error)) => {
                    event!(DEBUG, %service, %error, "a watch for long polls failed");
                }
                None => return,
            },
            _ = looks.tick() => {
                if rung.receiver_count() > 0 {
                    awaited = Instant::now();
                } else if awaited.elapsed() >= LINGER {
                    let Some(watched) = watched.upgrade() else { return };
                    let mut watched = watched.lock();
                    // Nobody comes to wait while this is locked.
                    if rung.receiver_count() == 0 {
                        let ended = watched.remove(&service);
                        drop(watched);
                        drop(ended);
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::MemoryRegistry;

    #[test]
    fn those_who_wait_hear_of_the_end_of_the_runtime() {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (first, second) = (runtime(), runtime());
        let news = News::new(Arc::new(MemoryRegistry::new()), 10);
        let service: ServiceName = "Foo".parse().unwrap();
        let told = first.block_on(async { news.of(&service).unwrap() });
        assert!(news.has(&service) && !told.has_changed().unwrap());
        drop(first);
        assert!(!news.has(&service) && told.has_changed().unwrap());
        second.block_on(async { news.of(&service).unwrap() });
        assert!(news.has(&service));
    }
}
