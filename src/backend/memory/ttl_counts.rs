//! Counts of leases by their TTL.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

/// How many leases there are of each TTL, so that a lease that ends needs no look at all others.
#[derive(Debug, Default)]
pub(super) struct TtlCounts(BTreeMap<Duration, usize>);

impl TtlCounts {
    /// Counts a lease under another TTL; `None` is no lease.
    pub(super) fn moved(&mut self, from: Option<Duration>, to: Option<Duration>) {
        // A renewal changes nothing.
        if from == to {
            return;
        }
        if let Some(from) = from
            && let Entry::Occupied(mut count) = self.0.entry(from)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if let Some(to) = to {
            *self.0.entry(to).or_default() += 1;
        }
    }

    /// The longest TTL of all.
    pub(super) fn longest(&self) -> Option<Duration> {
        self.0.last_key_value().map(|(ttl, _)| *ttl)
    }

    /// Whether two leases at least have this TTL or a shorter one.
    pub(super) fn has_two_within(&self, ttl: Duration) -> bool {
        // None of the counts is 0.
        self.0.range(..=ttl).take(2).map(|(_, count)| count).sum::<usize>() >= 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_leases() {
        let ttl = |seconds| Some(Duration::from_secs(seconds));
        let mut counts = TtlCounts::default();
        assert_eq!(counts.longest(), None);
        counts.moved(None, ttl(5));
        counts.moved(None, ttl(60));
        counts.moved(ttl(5), ttl(5));
        assert_eq!(counts.longest(), ttl(60));
        assert!(!counts.has_two_within(Duration::from_secs(59)));
        assert!(counts.has_two_within(Duration::from_secs(60)));
        counts.moved(ttl(60), ttl(5));
        assert!(counts.has_two_within(Duration::from_secs(5)));
        assert_eq!(counts.longest(), ttl(5));
        counts.moved(ttl(5), None);
        counts.moved(ttl(5), None);
        assert!(counts.0.is_empty());
    }
}
