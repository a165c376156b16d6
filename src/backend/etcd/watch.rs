//! Follows a service: its list, then what changes after it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::api::{Blob, Event, Int, Range, Ranged, Watch, WatchFrom, Watched};
use super::failure::Failure;
use super::gateway::Lines;
use super::keys::end_of;
use super::listing::{Listed, instance, list};
use crate::discovery::{Update, UpdateSender};
use crate::instance::{InstanceId, ServiceName};

/// How often the member that is watched is asked whether it still answers: one that hangs, or has lost
/// its cluster, is silent.
const PROBE: Duration = Duration::from_secs(5);
/// How soon the list is read again while it proves nothing.
const WARMING_LIST: Duration = Duration::from_secs(5);

/// Sends the list and then its changes, until nobody listens or the watch fails. It is never resumed by
/// its revision: an etcd that came back empty takes one that it never had, and stays silent.
pub(super) async fn feed(inner: Arc<Inner>, service: ServiceName, updates: UpdateSender) {
    if let Err(failure) = follow(&inner, &service, &updates).await {
        updates.send(Err(failure.into())).await;
    }
}

async fn follow(
    inner: &Inner,
    service: &ServiceName,
    updates: &UpdateSender,
) -> Result<(), Failure> {
    let prefix = inner.keys.service(service);
    loop {
        let Listed { revision, resolved } =
            list(&inner.gateway, &inner.keys, &inner.history, service).await?;
        let warming = resolved.warming;
        let mut lines = open(inner, &prefix, revision).await?;
        if !updates.send(Ok(Update::Set(resolved))).await {
            return Ok(());
        }
        let again = warming.then(|| Instant::now() + WARMING_LIST);
        let mut probe = Instant::now() + PROBE;
        loop {
            let due = again.map_or(probe, |again| again.min(probe));
            let item = tokio::select! {
                biased;
                item = lines.next::<Watched>() => Some(item?),
                () = sleep_until(due) => None,
            };
            match item {
                Some(item) => {
                    for update in changes(&prefix, checked(item)?.events) {
                        if !updates.send(Ok(update)).await {
                            return Ok(());
                        }
                    }
                }
                None if again.is_some_and(|again| Instant::now() >= again) => break,
                None => {
                    let count = Range { count_only: true, ..Range::one(&prefix) };
                    inner.gateway.ask_at::<Ranged>(lines.at, "/v3/kv/range", &count).await?;
                    probe = Instant::now() + PROBE;
                }
            }
        }
    }
}

async fn open(inner: &Inner, prefix: &str, revision: Int) -> Result<Lines, Failure> {
    let create_request = WatchFrom {
        key: prefix.into(),
        range_end: Blob(end_of(prefix)),
        start_revision: Int(revision.0.saturating_add(1)),
        fragment: true,
    };
    let mut lines = inner.gateway.open("/v3/watch", &Watch { create_request }).await?;
    let created = tokio::time::timeout(inner.timeout, lines.next::<Watched>()).await;
    let created = created.map_err(|_| Failure::unavailable("the watch does not begin"))??;
    let created = checked(created)?;
    if !created.created {
        return Err(Failure::Nonsense("a watch that begins with something else".to_owned()));
    }
    if created.header.revision < revision {
        return Err(Failure::unavailable("the store has gone back since it was listed"));
    }
    Ok(lines)
}

fn checked(item: Watched) -> Result<Watched, Failure> {
    if item.canceled {
        let compacted = match item.compact_revision {
            Int(0) => String::new(),
            Int(revision) => format!(", which was compacted up to revision {revision}"),
        };
        let reason = item.cancel_reason;
        return Err(Failure::unavailable(format!("etcd ended the watch{compacted}: {reason}")));
    }
    Ok(item)
}

/// Changes in their order, neighbours of a kind together.
fn changes(prefix: &str, events: Vec<Event>) -> Vec<Update> {
    let mut updates = Vec::new();
    for Event { r#type, kv } in events {
        if r#type == "DELETE" {
            let key = String::from_utf8_lossy(&kv.key.0);
            let Some(id) = key.strip_prefix(prefix).map(InstanceId::from) else { continue };
            match updates.last_mut() {
                Some(Update::Remove(ids)) => ids.push(id),
                _ => updates.push(Update::Remove(vec![id])),
            }
        } else if let Ok(instance) = instance(prefix, &kv) {
            match updates.last_mut() {
                Some(Update::Upsert(instances)) => {
                    instances.retain(|one| one.id != instance.id);
                    instances.push(instance);
                }
                _ => updates.push(Update::Upsert(vec![instance])),
            }
        }
    }
    updates
}
