//! Marks of deregistrations: what tells an instance that was deregistered from one whose lease ended.

use std::collections::HashMap;

use tokio::time::Instant;

use super::Inner;
use super::api::{Op, Range, Txn, Txned};
use super::failure::Failure;
use crate::instance::{InstanceId, ServiceName};
use crate::sync::event;

/// How many marks one request looks for: etcd takes 128 operations.
const BATCH: usize = 100;

/// Looks for the marks of instances that vanished with too many others, and settles which are doubted.
pub(super) async fn judge(
    inner: &Inner,
    service: &ServiceName,
    suspects: &[InstanceId],
) -> Result<(), Failure> {
    if suspects.is_empty() {
        return Ok(());
    }
    let mut marks = HashMap::with_capacity(suspects.len());
    for batch in suspects.chunks(BATCH) {
        let range = |id: &InstanceId| Op::Range(Range::one(&inner.keys.mark(service, id)));
        let look = Txn { success: batch.iter().map(range).collect(), ..Txn::default() };
        let found = match inner.gateway.ask::<Txned>("/v3/kv/txn", &look).await {
            Ok(found) => found.found(),
            // Who may not read marks doubts all that vanished together.
            Err(failure @ Failure::Refused { .. }) => {
                event!(DEBUG, %service, %failure, "marks of deregistrations cannot be read");
                Vec::new()
            }
            Err(failure) => return Err(failure),
        };
        let mut found = found.into_iter();
        marks.extend(batch.iter().map(|id| {
            let mark = found.next().flatten();
            (id.clone(), mark.map(|kv| kv.mod_revision.0))
        }));
    }
    inner.mass_expiry.judge(service, &marks, Instant::now());
    Ok(())
}
