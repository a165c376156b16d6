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
use super::marks::judge;
use crate::backend::wrap::apply;
use crate::discovery::{Update, UpdateSender};
use crate::instance::{Instance, InstanceId, ServiceName};

/// How often the member that is watched is asked whether it still answers: one that hangs, or has lost
/// its cluster, is silent.
const PROBE: Duration = Duration::from_secs(5);
/// How soon the list is read again while it proves nothing.
const WARMING_LIST: Duration = Duration::from_secs(5);
/// The least time between two lists of which the second follows a loss: leases that end together do so one
/// by one.
const PACE: Duration = Duration::from_millis(100);

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
        let asked = Instant::now();
        let Listed { revision, resolved } = list(inner, service).await?;
        let mut known = resolved.clone();
        let mut lines = open(inner, &prefix, revision).await?;
        if !updates.send(Ok(Update::Set(resolved))).await {
            return Ok(());
        }
        let again = known.warming.then(|| Instant::now() + WARMING_LIST);
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
                    let events = checked(item)?.events;
                    let revision = events.iter().map(|event| event.kv.mod_revision).max();
                    let changes = changes(&prefix, events);
                    for change in &changes {
                        apply(&mut known, change.clone());
                    }
                    let is_loss = changes.iter().any(|change| matches!(change, Update::Remove(_)));
                    if let Some(revision) = revision
                        && is_doubted(inner, service, &known.instances, revision).await?
                        && is_loss
                    {
                        // The list that follows says that it proves nothing, and what was deregistered.
                        sleep_until(asked + PACE).await;
                        break;
                    }
                    for change in changes {
                        if !updates.send(Ok(change)).await {
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

/// Whether so much has vanished by this revision that what the service's list lacks is not proven gone.
async fn is_doubted(
    inner: &Inner,
    service: &ServiceName,
    instances: &[Instance],
    revision: Int,
) -> Result<bool, Failure> {
    let suspects = inner.mass_expiry.listed(service, instances, revision.0, Instant::now());
    judge(inner, service, &suspects).await?;
    Ok(inner.mass_expiry.doubt(service, Instant::now()).is_some())
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
