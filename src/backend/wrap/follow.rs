//! A source's list as its updates make it, and updates as two lists differ.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::discovery::{
    Discovery, DiscoveryError, DiscoveryErrorKind, Resolved, Update, UpdateSender, UpdateStream,
};
use crate::error::caught;
use crate::instance::{Instance, InstanceId, ServiceName};

/// How long a watch that ended is left alone before it is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes an update into the list. True: it was the whole list, of which `list` now has the rest too.
pub(in crate::backend) fn apply(list: &mut Resolved, update: Update) -> bool {
    match update {
        Update::Set(resolved) => {
            *list = resolved;
            return true;
        }
        Update::Upsert(changed) => {
            list.instances.retain(|one| changed.iter().all(|other| other.id != one.id));
            list.instances.extend(changed);
        }
        Update::Remove(ids) => list.instances.retain(|one| !ids.contains(&one.id)),
        Update::Gone => list.instances.clear(),
    }
    false
}

/// What makes one list of the other. What is new comes first, so that no list in between is shorter than
/// both.
pub(super) fn changes(before: &[Instance], after: &[Instance]) -> Vec<Update> {
    let old: HashMap<&InstanceId, &Instance> = before.iter().map(|one| (&one.id, one)).collect();
    let new: HashMap<&InstanceId, &Instance> = after.iter().map(|one| (&one.id, one)).collect();
    let changed = after.iter().filter(|one| old.get(&one.id) != Some(one));
    let changed: Vec<Instance> = changed.cloned().collect();
    let gone = before.iter().map(|one| &one.id).filter(|id| !new.contains_key(id));
    let gone: Vec<InstanceId> = gone.cloned().collect();
    let changed = (!changed.is_empty()).then_some(Update::Upsert(changed));
    let gone = (!gone.is_empty()).then_some(Update::Remove(gone));
    changed.into_iter().chain(gone).collect()
}

/// A source's updates without an end: a watch that ends is opened again, and a source without one is
/// polled. A failure or a panic of the source is an item like any other.
pub(in crate::backend) fn endless(
    source: Arc<dyn Discovery>,
    service: ServiceName,
    poll: Duration,
) -> UpdateStream {
    UpdateStream::fed(1, move |updates| async move {
        loop {
            let followed = caught(follow_once(&*source, &service, &updates, poll)).await;
            let pause = match followed {
                Ok(Some(pause)) => pause,
                Ok(None) => return,
                Err(panic) => {
                    let message = format!("the source panicked: {}", panic.text());
                    let error = DiscoveryError::new(DiscoveryErrorKind::Invalid, message);
                    if !updates.send(Err(error)).await {
                        return;
                    }
                    PAUSE
                }
            };
            sleep(pause).await;
        }
    })
}

/// Follows one watch to its end, or polls once. Returns the pause before the next time; `None` if nobody
/// listens.
async fn follow_once(
    source: &dyn Discovery,
    service: &ServiceName,
    updates: &UpdateSender,
    poll: Duration,
) -> Option<Duration> {
    if let Some(mut watch) = source.watch(service) {
        let mut is_unsupported = false;
        while let Some(item) = watch.next().await {
            if let Err(error) = &item
                && error.kind() == DiscoveryErrorKind::Unsupported
            {
                is_unsupported = true;
                break;
            }
            if !updates.send(item).await {
                return None;
            }
        }
        if !is_unsupported {
            return Some(PAUSE);
        }
    }
    let answer = source.resolve(service).await;
    updates.send(answer.map(Update::Set)).await.then_some(poll)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use async_trait::async_trait;

    use super::*;

    /// Panics at the first request.
    #[derive(Default)]
    struct PanicsOnce(AtomicBool);

    #[async_trait]
    impl Discovery for PanicsOnce {
        async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
            assert!(self.0.swap(true, Relaxed), "on purpose");
            Ok(Resolved::new(Vec::new()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_panics_is_followed_on() {
        let source = Arc::new(PanicsOnce::default());
        let mut updates = endless(source, "Foo".parse().unwrap(), Duration::from_secs(1));
        let error = updates.next().await.unwrap().unwrap_err();
        assert_eq!(error.message(), "the source panicked: on purpose");
        let listed = updates.next().await.unwrap().unwrap();
        assert_eq!(listed, Update::Set(Resolved::new(Vec::new())));
    }

    fn instance(id: &str, weight: u32) -> Instance {
        Instance::new(id, format!("tcp@{id}:1").parse().unwrap()).weight(weight)
    }

    #[test]
    fn changes_make_the_one_list_of_the_other() {
        let before = [instance("a", 1), instance("b", 1), instance("c", 1)];
        let after = [instance("c", 2), instance("d", 1), instance("a", 1)];
        let updates = changes(&before, &after);
        let ids = vec![InstanceId::from("b")];
        assert_eq!(updates, [Update::Upsert(after[..2].to_vec()), Update::Remove(ids)]);
        let mut list = Resolved::new(before.to_vec());
        for update in updates {
            assert!(!apply(&mut list, update));
        }
        assert!(changes(&list.instances, &after).is_empty());
        assert!(changes(&after, &after).is_empty());
    }
}
