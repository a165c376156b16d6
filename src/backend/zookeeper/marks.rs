//! Marks of deregistrations: what tells an instance that was deregistered from one whose session ended.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;
use zookeeper_client::{Client, Error, MultiReadResult};

use super::Inner;
use super::failure::Failure;
use super::listing::children;
use super::registering::{Node, nodes};
use crate::instance::{InstanceId, ServiceName};
use crate::registry::{Held, Registration};

/// How many marks one request looks for, and one sweep.
const BATCH: usize = 100;
/// How long a mark stays at least: all clients have looked by then.
const MARK_TTL_MS: i64 = 120_000;

/// Looks for the marks of instances that vanished with too many others, and settles which are doubted.
pub(super) async fn judge(
    inner: &Inner,
    client: &Client,
    service: &ServiceName,
    suspects: &[InstanceId],
) -> Result<(), Failure> {
    if suspects.is_empty() {
        return Ok(());
    }
    let mut marks = HashMap::with_capacity(suspects.len());
    for batch in suspects.chunks(BATCH) {
        let mut reader = client.new_multi_reader();
        for id in batch {
            reader.add_get_data(&inner.paths.mark(service, id))?;
        }
        for (id, result) in batch.iter().zip(reader.commit().await?) {
            let mark = match result {
                MultiReadResult::Data { stat, .. } => Some(stat.mzxid),
                // Who may not read marks doubts all that vanished together.
                MultiReadResult::Error { err: Error::NoNode | Error::NoAuth } => None,
                MultiReadResult::Error { err } => return Err(err.into()),
                _ => None,
            };
            marks.insert(id.clone(), mark);
        }
    }
    inner.mass_expiry.judge(service, &marks, Instant::now());
    Ok(())
}

/// Deletes old marks of the services that these were of. Some at a time: each who leaves deletes some.
pub(super) async fn sweep(inner: &Inner, held: &[Held]) -> Result<(), Failure> {
    let client = inner.keeping.client(inner.timeout).await?;
    let mut swept = BTreeSet::new();
    for Held { registration: Registration { service, instance, .. }, .. } in held {
        if !swept.insert(service) {
            continue;
        }
        let folder = inner.paths.marks(service);
        let Some((mut names, _)) = children(&client, &folder).await? else { continue };
        if names.is_empty() {
            continue;
        }
        let first = rand::random::<u32>() as usize % names.len();
        names.rotate_left(first);
        names.truncate(BATCH);
        // The first was made just now: it tells what time it is at the servers.
        let mut paths = vec![inner.paths.mark(service, &instance.id)];
        paths.extend(names.iter().map(|name| format!("{folder}/{name}")));
        let found = nodes(&client, &paths.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        let made = |node: &Option<Node>| node.as_ref().map(|node| node.stat.mtime);
        let now = found.iter().filter_map(made).max().unwrap_or_default();
        for (path, node) in paths.iter().zip(&found) {
            if let Some(Node { stat, .. }) = node
                && stat.mtime < now.saturating_sub(MARK_TTL_MS)
            {
                match client.delete(path, Some(stat.version)).await {
                    // Another has deleted it, or it was made anew.
                    Ok(()) | Err(Error::NoNode | Error::BadVersion) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(())
}
