//! Counts of refused connections and requests by limit and host, logged once a minute.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::{Mutex, event};

/// How often one limit's refusals of one host are logged at most.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// How many pairs of limit and host are counted apart; further hosts of a limit are counted together.
const MAX_COUNTS: usize = 1024;
const OTHER_HOSTS: &str = "others";

/// The limit, by what a refused peer is told, and the host.
type Key = (&'static str, Arc<str>);

/// Refusals of one listener that are not logged yet.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    by_key: HashMap<Key, Count>,
    /// When the first of them is due.
    next_due: Option<Instant>,
}

struct Count {
    logged: Instant,
    /// Since then.
    refused: u64,
}

impl Refusals {
    /// Counts a refusal. The first one is logged at once, those of the next minute together.
    pub(crate) fn count(&self, limit: &'static str, host: &Arc<str>) {
        let now = Instant::now();
        // Logged without the lock.
        let (is_first, due) = {
            let mut counts = self.0.lock();
            (counts.add(limit, host, now), counts.take_due(now))
        };
        if is_first {
            log(limit, host, 1);
        }
        due.iter().for_each(|((limit, host), refused)| log(limit, host, *refused));
    }

    /// Logs what has been counted for a minute. Cheap if there is nothing.
    pub(crate) fn log_due(&self) {
        let due = self.0.lock().take_due(Instant::now());
        due.iter().for_each(|((limit, host), refused)| log(limit, host, *refused));
    }
}

impl Counts {
    /// True: it is the first one, and is to be logged.
    fn add(&mut self, limit: &'static str, host: &Arc<str>, now: Instant) -> bool {
        let mut key = (limit, Arc::clone(host));
        if self.by_key.len() >= MAX_COUNTS && !self.by_key.contains_key(&key) {
            key.1 = Arc::from(OTHER_HOSTS);
        }
        if let Some(count) = self.by_key.get_mut(&key) {
            count.refused += 1;
            return false;
        }
        self.by_key.insert(key, Count { logged: now, refused: 0 });
        self.next_due = self.next_due.or(Some(now + LOG_INTERVAL));
        true
    }

    fn take_due(&mut self, now: Instant) -> Vec<(Key, u64)> {
        let mut due = Vec::new();
        if self.next_due.is_none_or(|next| now < next) {
            return due;
        }
        self.by_key.retain(|key, count| {
            if now < count.logged + LOG_INTERVAL {
                return true;
            }
            if count.refused == 0 {
                return false;
            }
            due.push((key.clone(), std::mem::take(&mut count.refused)));
            count.logged = now;
            true
        });
        self.next_due = self.by_key.values().map(|count| count.logged + LOG_INTERVAL).min();
        due
    }
}

fn log(limit: &str, host: &str, refused: u64) {
    event!(WARN, limit, host, refused, "refused: a limit is reached");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_logged_at_once_and_the_rest_once_a_minute() {
        let (mut counts, host) = (Counts::default(), Arc::from("a"));
        let now = Instant::now();
        assert!(counts.add("x", &host, now));
        assert!((0..999).all(|_| !counts.add("x", &host, now)));
        assert!(counts.add("y", &host, now), "another limit");
        assert!(counts.take_due(now + LOG_INTERVAL / 2).is_empty());
        assert_eq!(counts.take_due(now + LOG_INTERVAL), [(("x", Arc::clone(&host)), 999)]);
        assert!(counts.take_due(now + LOG_INTERVAL * 2).is_empty());
        assert!(counts.add("x", &host, now + LOG_INTERVAL * 2), "it was over, and begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn many_hosts_are_counted_in_bounded_memory() {
        let (mut counts, now) = (Counts::default(), Instant::now());
        for n in 0..100_000 {
            counts.add("x", &Arc::from(n.to_string()), now);
        }
        assert!(counts.by_key.len() <= MAX_COUNTS + 1);
        let due = counts.take_due(now + LOG_INTERVAL);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].1, 100_000 - MAX_COUNTS as u64 - 1);
    }
}
