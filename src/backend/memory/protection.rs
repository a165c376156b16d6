//! When may leases that have run out stay for a while, and for how long?

use std::time::Duration;

use tokio::time::Instant;

/// That a registry keeps leases that have run out, because too many did at once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Protection {
    /// How many leases it keeps. One that is renewed is no longer among them.
    pub kept: usize,
    /// In what time the last of them ends, unless it is renewed before.
    pub ends_in: Duration,
}

/// From how many leases on which share of them is too many to believe.
#[derive(Clone, Debug)]
pub(super) struct Threshold {
    pub(super) min_leases: usize,
    pub(super) share: f64,
}

/// The leases that a registry keeps though they have run out.
///
/// Why does it end, unlike Eureka's (eureka#1267)? Each lease is kept once, for one TTL at
/// most, and only a renewal gives it another chance: so what is really dead is gone by then,
/// however many there are and however slow the registry is.
#[derive(Debug)]
pub(super) struct Reprieve {
    threshold: Threshold,
    kept: usize,
    /// When the last of them ends, in the leases' time; of no meaning while there are none.
    ends: Instant,
}

impl Reprieve {
    pub(super) fn new(threshold: Threshold, now: Instant) -> Self {
        Self { threshold, kept: 0, ends: now }
    }

    /// Whether it is too many, if `due` of `leases` have run out at once.
    pub(super) fn is_due_to(&self, due: usize, leases: usize) -> bool {
        let Threshold { min_leases, share } = self.threshold;
        leases >= min_leases && due as f64 > leases as f64 * share
    }

    /// Until when the lease of this rank is kept, the one that ran out first having rank 0 of
    /// `kept`: spread over the second half of its TTL from now.
    ///
    /// Why not over all of it? Whoever lives renews at a third of the TTL. What ended earlier would
    /// be gone before its server had a chance to say so.
    pub(super) fn end(now: Instant, ttl: Duration, rank: usize, kept: usize) -> Instant {
        let share = (rank + 1) as f64 / kept.max(1) as f64;
        now + (ttl / 2 + (ttl / 2).mul_f64(share.min(1.0))).min(ttl)
    }

    /// Notes that these are kept, the last of them until `ends`.
    pub(super) fn keep(&mut self, kept: usize, ends: Instant) {
        self.ends = if self.kept == 0 { ends } else { self.ends.max(ends) };
        self.kept += kept;
    }

    /// Notes that one of them is no longer kept: renewed, taken back or gone. True: it was the last.
    pub(super) fn release(&mut self) -> bool {
        self.kept = self.kept.saturating_sub(1);
        self.kept == 0
    }

    pub(super) fn state(&self, now: Instant) -> Option<Protection> {
        let ends_in = self.ends.saturating_duration_since(now);
        (self.kept > 0).then_some(Protection { kept: self.kept, ends_in })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at_most(min_leases: usize, share: f64) -> Reprieve {
        Reprieve::new(Threshold { min_leases, share }, Instant::now())
    }

    #[test]
    fn more_than_the_share_of_enough_leases_is_too_many() {
        let reprieve = at_most(20, 0.15);
        assert!(!reprieve.is_due_to(3, 20), "15 % is not more than 15 %");
        assert!(reprieve.is_due_to(4, 20));
        assert!(!reprieve.is_due_to(19, 19), "too few to tell");
        assert!(!reprieve.is_due_to(15, 100));
        assert!(reprieve.is_due_to(16, 100));
        assert!(!at_most(0, 1.0).is_due_to(50, 50), "a share of 1 is never exceeded");
        assert!(!at_most(0, f64::NAN).is_due_to(50, 50));
        assert!(at_most(0, 0.0).is_due_to(1, 50));
    }

    #[test]
    fn ends_are_spread_in_order_over_the_second_half_of_the_ttl() {
        let now = Instant::now();
        let ends: Vec<Duration> =
            (0..5).map(|rank| Reprieve::end(now, TTL, rank, 5) - now).collect();
        assert_eq!(ends, [6, 7, 8, 9, 10].map(Duration::from_secs));
        assert_eq!(Reprieve::end(now, TTL, 0, 1), now + TTL);
    }

    #[test]
    fn it_is_over_with_the_last_one_kept() {
        let now = Instant::now();
        let mut reprieve = Reprieve::new(Threshold { min_leases: 0, share: 0.0 }, now);
        assert_eq!(reprieve.state(now), None);
        reprieve.keep(2, now + TTL);
        reprieve.keep(1, now + TTL / 2);
        assert_eq!(reprieve.state(now), Some(Protection { kept: 3, ends_in: TTL }));
        assert_eq!([(); 3].map(|()| reprieve.release()), [false, false, true]);
        assert_eq!(reprieve.state(now), None);
    }
}
