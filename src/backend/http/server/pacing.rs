//! Spacing of list requests per host: when to ask again, so that a host's clients stay below its rate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::Mutex;

/// The longest wait that is told, but for one turn.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// How many hosts are remembered before those whose turn is over are dropped.
const MANY_HOSTS: usize = 1024;
/// The part of a host's rate, as a divisor, that its lists are spread over. The rest is for first
/// lists, and for clients that do not heed what they are told.
const RATE_DIVISOR: u32 = 4;

/// Gives each list of a host a turn of its own.
pub(super) struct ListPacer {
    interval: Duration,
    turns: Mutex<Turns>,
}

struct Turns {
    /// The next free turn of each host.
    next: HashMap<Arc<str>, Instant>,
    /// How many hosts there may be until those without a turn ahead are dropped.
    sweep_at: usize,
}

impl ListPacer {
    pub(super) fn new(rate_per_host: u32) -> Self {
        let interval = Duration::from_secs(1) / (rate_per_host / RATE_DIVISOR).max(1);
        Self { interval, turns: Mutex::new(Turns { next: HashMap::new(), sweep_at: MANY_HOSTS }) }
    }

    /// Takes the next turn of a host: how long it is until then. An empty host tells no peer from
    /// another (a Unix socket), and never waits.
    pub(super) fn take_turn(&self, host: &Arc<str>, now: Instant) -> Duration {
        if host.is_empty() {
            return Duration::ZERO;
        }
        let mut turns = self.turns.lock();
        if turns.next.len() >= turns.sweep_at {
            turns.next.retain(|_, next| *next > now);
            turns.sweep_at = (turns.next.len() * 2).max(MANY_HOSTS);
        }
        let next = turns.next.entry(Arc::clone(host)).or_insert(now);
        let turn = (*next).max(now);
        let wait = turn.saturating_duration_since(now);
        if wait < MAX_WAIT {
            *next = turn + self.interval;
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_thousand_clients_that_heed_it_ask_half_of_the_rate_at_most() {
        let (pacer, host) = (ListPacer::new(1000), Arc::from("a"));
        let start = Instant::now();
        // Each asks every second, or as late as it was told.
        let mut due = vec![Duration::ZERO; 2000];
        let mut per_second = [0; 60];
        for second in 0..60_u64 {
            let now = Duration::from_secs(second);
            for due in due.iter_mut().filter(|due| **due <= now) {
                per_second[second as usize] += 1;
                let wait = pacer.take_turn(&host, start + now).as_secs() + 1;
                *due = now + Duration::from_secs(wait);
            }
        }
        assert!(per_second[1..].iter().all(|asked| *asked <= 500), "{per_second:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn few_clients_never_wait_and_nobody_waits_longer_than_half_a_minute() {
        let (pacer, host) = (ListPacer::new(1000), Arc::from("a"));
        let start = Instant::now();
        for n in 0..100_u32 {
            let now = start + n * Duration::from_millis(5);
            assert_eq!(pacer.take_turn(&host, now), Duration::ZERO);
        }
        let longest = (0..100_000).map(|_| pacer.take_turn(&host, start)).max();
        assert!(longest.is_some_and(|longest| longest <= MAX_WAIT + Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_without_a_turn_ahead_are_forgotten() {
        let pacer = ListPacer::new(1000);
        let start = Instant::now();
        for n in 0..100_000_u32 {
            pacer.take_turn(&n.to_string().into(), start + n * Duration::from_millis(1));
        }
        assert!(pacer.turns.lock().next.len() <= MANY_HOSTS);
    }
}
