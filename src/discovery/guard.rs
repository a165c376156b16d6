//! Whether an instance that an answer lacks is believed to be gone.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Resolved;
use crate::instance::{Address, Instance, InstanceId};

/// How long an instance that a source lacks is kept while the source says that it has just started:
/// longer than our registry warms up, whose longest lease is 5 min unless it is set.
const LONGEST_WARMING: Duration = Duration::from_secs(360);

/// The last believed list, and the instances that are missing from the source's answers without
/// proof.
///
/// Sources fail by answering "nobody" (restarted empty, cut off from their own store, a proxy's
/// `[]`), and a client that believes it fails every call while its servers are well. An answer is
/// therefore believed at once only if it is proven or costs little; what it lacks otherwise stays,
/// doubtful, until an answer at least one lease after the first still lacks it. Instances that an
/// answer adds always enter at once.
///
/// Why does no timer end a doubt? The second answer has to come after the lease: only then has
/// every instance that lives had the time to renew, so only then does the answer say something new.
#[derive(Debug)]
pub(super) struct Guard {
    lease: Duration,
    known: Vec<Known>,
    /// The list was set by hand: it gives way to a proven answer only.
    by_hand: bool,
}

/// An instance of the list.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) instance: Arc<Instance>,
    missing: Option<Missing>,
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    /// When an answer first lacked it.
    since: Instant,
    /// An answer that was not warming lost too much at once. While false, only warming answers
    /// lacked it, and the next one that is not warming decides.
    guarded: bool,
}

impl Guard {
    /// An empty list; `lease` is how long an instance must be missing without proof.
    pub(super) fn new(lease: Duration) -> Self {
        Self { lease, known: Vec::new(), by_hand: false }
    }

    /// The list as it is believed now, in no order.
    pub(super) fn known(&self) -> &[Known] {
        &self.known
    }

    /// Whether any instance is missing without proof.
    pub(super) fn is_doubting(&self) -> bool {
        self.known.iter().any(Known::is_doubtful)
    }

    /// Takes the source's whole list. True: it lacks instances that stay all the same.
    pub(super) fn answer(&mut self, answer: Resolved, now: Instant) -> bool {
        let mut missing = self.missing_from(&answer.instances);
        let before = missing.len();
        let deregistered: HashSet<&InstanceId> = answer.deregistered.iter().collect();
        missing.retain(|known| !deregistered.contains(&known.instance.id));
        // What was deregistered is no part of what is lost.
        let known = self.known.len() - (before - missing.len());
        let proven = answer.is_proven();
        if self.by_hand && !proven {
            return !missing.is_empty();
        }
        self.by_hand = false;
        // Those doubted before count as well: the list that may not shrink at once is the one that
        // is served, not the last answer.
        let too_many = missing.len() * 2 > known;
        let kept: Vec<Known> = missing
            .into_iter()
            .filter(|_| !proven)
            .filter_map(|known| known.missed(answer.warming, too_many, self.lease, now))
            .collect();
        let guarded = !kept.is_empty();
        self.known = answer.instances.into_iter().map(Known::present).chain(kept).collect();
        guarded
    }

    /// Takes instances that are new or changed; an id that was elsewhere has moved.
    pub(super) fn upsert(&mut self, instances: Vec<Instance>) {
        self.take_out_replaced_by(&instances);
        self.known.extend(instances.into_iter().map(Known::present));
    }

    /// Takes out what the source knows to be gone.
    pub(super) fn remove(&mut self, ids: &[InstanceId]) {
        let ids: HashSet<&InstanceId> = ids.iter().collect();
        self.known.retain(|known| !ids.contains(&known.instance.id));
    }

    /// The source knows that the service is gone.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.by_hand = false;
    }

    /// Takes a list set by hand, which only a proven answer of the source replaces.
    pub(super) fn by_hand(&mut self, instances: Vec<Instance>) {
        self.known = instances.into_iter().map(Known::present).collect();
        self.by_hand = true;
    }

    fn take_out_replaced_by(&mut self, instances: &[Instance]) {
        let ids: HashSet<&InstanceId> = instances.iter().map(|i| &i.id).collect();
        let addresses: HashSet<&Address> = instances.iter().map(|i| &i.address).collect();
        self.known.retain(|known| {
            let taken_over = known.is_doubtful() && addresses.contains(&known.instance.address);
            !taken_over && !ids.contains(&known.instance.id)
        });
    }

    /// What of the list has vanished. An address with a new holder and an id with a new address
    /// have not: the old registration is known to be replaced.
    fn missing_from(&self, instances: &[Instance]) -> Vec<Known> {
        let ids: HashSet<&InstanceId> = instances.iter().map(|i| &i.id).collect();
        let addresses: HashSet<&Address> = instances.iter().map(|i| &i.address).collect();
        self.known
            .iter()
            .filter(|known| !ids.contains(&known.instance.id))
            .filter(|known| !addresses.contains(&known.instance.address))
            .cloned()
            .collect()
    }
}

impl Known {
    /// Whether it is missing from the source's answers without proof.
    pub(super) fn is_doubtful(&self) -> bool {
        self.missing.is_some()
    }

    fn present(instance: Instance) -> Self {
        Self { instance: Arc::new(instance), missing: None }
    }

    /// What an unproven answer that lacks it makes of it; `None`: it is gone.
    fn missed(self, warming: bool, too_many: bool, lease: Duration, now: Instant) -> Option<Self> {
        let since = self.missing.map_or(now, |missing| missing.since);
        let again = self.missing.is_some();
        let patience = if warming { lease.max(LONGEST_WARMING) } else { lease };
        if again && now.saturating_duration_since(since) >= patience {
            return None;
        }
        let before = self.missing.is_some_and(|missing| missing.guarded);
        let guarded = before || (too_many && !warming);
        let missing = Missing { since, guarded };
        (warming || guarded).then_some(Self { missing: Some(missing), ..self })
    }
}
