//! How often may one ask?

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use super::problem::Refusal;

/// How many keys are remembered before those that say nothing any more are dropped.
const MANY: usize = 1024;

/// How many requests a second are answered. For a moment twice as many are.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    pub(super) all: u32,
    pub(super) per_host: u32,
    pub(super) per_token: u32,
}

/// The rates of one server, each as large as the next. Renewals of those who may write have their
/// own: whatever else is asked too often, and by whomever, what is registered goes on being renewed.
/// So do lists of instances, those who are not let in, and the path that is open to all.
pub(super) struct Rates {
    renewals: Budget,
    lists: Budget,
    others: Budget,
    strangers: Budget,
    open: Budget,
}

/// What a request counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Of somebody who may write.
    Renewal,
    /// A list of instances: clients that watch take nothing from those that register.
    List,
    Other,
    /// Of nobody who is known: it is answered 401 or 403.
    Stranger,
    /// On the path that is open to all while the others are not.
    Open,
}

struct Budget {
    all: RateLimiter<NotKeyed, InMemoryState, Time, NoOpMiddleware<Duration>>,
    by_host: Keyed,
    by_token: Keyed,
}

impl Rates {
    pub(super) fn new(rate: &Rate) -> Self {
        let budget = || Budget::new(rate);
        Self {
            renewals: budget(),
            lists: budget(),
            others: budget(),
            strangers: budget(),
            open: budget(),
        }
    }

    /// Counts a request of this host and, if it is known, of this token.
    pub(super) fn count(
        &self,
        host: &Arc<str>,
        name: Option<&Arc<str>>,
        of: Use,
    ) -> Result<(), Refusal> {
        let budget = self.budget(of);
        // A unix socket has no host to tell one peer from another by.
        if !host.is_empty() {
            budget
                .by_host
                .check(host)
                .map_err(|wait| Refusal::too_many("this address asks too often", wait))?;
        }
        if let Some(name) = name {
            budget
                .by_token
                .check(name)
                .map_err(|wait| Refusal::too_many("this token is used too often", wait))?;
        }
        budget.all.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(budget.all.clock().now());
            Refusal::too_many("the registry is asked too often", wait)
        })
    }

    fn budget(&self, of: Use) -> &Budget {
        match of {
            Use::Renewal => &self.renewals,
            Use::List => &self.lists,
            Use::Other => &self.others,
            Use::Stranger => &self.strangers,
            Use::Open => &self.open,
        }
    }
}

impl Budget {
    fn new(rate: &Rate) -> Self {
        Self {
            all: RateLimiter::direct_with_clock(quota(rate.all), Time::new()),
            by_host: Keyed::new(rate.per_host),
            by_token: Keyed::new(rate.per_token),
        }
    }
}

/// One rate for each key. Keys that have been silent long enough are forgotten.
struct Keyed {
    limiter: RateLimiter<Arc<str>, HashMapStateStore<Arc<str>>, Time, NoOpMiddleware<Duration>>,
    /// How many keys there may be until they are looked through.
    look_at: AtomicUsize,
}

impl Keyed {
    fn new(rate: u32) -> Self {
        Self {
            limiter: RateLimiter::hashmap_with_clock(quota(rate), Time::new()),
            look_at: AtomicUsize::new(MANY),
        }
    }

    /// Counts one. The error: how long to wait.
    fn check(&self, key: &Arc<str>) -> Result<(), Duration> {
        let checked = self
            .limiter
            .check_key(key)
            .map_err(|not_until| not_until.wait_time_from(self.limiter.clock().now()));
        if self.limiter.len() >= self.look_at.load(Relaxed) {
            self.limiter.retain_recent();
            // Looking through them costs as much as there are: not again until as many are new.
            self.look_at.store((self.limiter.len() * 2).max(MANY), Relaxed);
        }
        checked
    }
}

/// Never zero: a registry that answers nobody is none.
fn quota(rate: u32) -> Quota {
    let rate = NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(rate).allow_burst(rate.saturating_mul(NonZeroU32::MIN.saturating_add(1)))
}

/// Tokio's time, which a test can pause.
#[derive(Clone)]
struct Time(Instant);

impl Time {
    fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Time {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates() -> Rates {
        Rates::new(&Rate { all: 30, per_host: 10, per_token: 20 })
    }

    fn served(mut ask: impl FnMut() -> Result<(), Refusal>) -> usize {
        (0..1000).take_while(|_| ask().is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_asks_too_often_costs_no_other_and_no_renewal() {
        let rates = Rates::new(&Rate { all: 10_000, per_host: 10, per_token: 20 });
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        assert_eq!(served(|| rates.count(&a, None, Use::Other)), 20);
        assert_eq!(served(|| rates.count(&b, None, Use::Other)), 20);
        assert_eq!(served(|| rates.count(&a, None, Use::Stranger)), 20);
        assert_eq!(served(|| rates.count(&a, None, Use::Renewal)), 20, "whatever else it asks");
        assert_eq!(served(|| rates.count(&Arc::from(""), None, Use::Other)), 1000, "no host");
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(served(|| rates.count(&a, None, Use::Other)), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_and_all_of_them_have_a_rate() {
        let rates = rates();
        let (one, two) = (Arc::from("one"), Arc::from("two"));
        assert_eq!(served(|| rates.count(&Arc::from(""), Some(&one), Use::Other)), 40);
        assert_eq!(served(|| rates.count(&Arc::from(""), Some(&two), Use::Other)), 20, "60 in all");
        assert_eq!(served(|| rates.count(&Arc::from(""), Some(&two), Use::Renewal)), 40);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(served(|| rates.count(&Arc::from(""), None, Use::Other)), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_hosts_are_forgotten() {
        let rates = Rates::new(&Rate { all: 1_000_000, per_host: 10, per_token: 20 });
        for host in 0..100_000 {
            tokio::time::advance(Duration::from_millis(1)).await;
            rates.count(&format!("{host}").into(), None, Use::Other).unwrap();
        }
        assert!(rates.others.by_host.limiter.len() <= MANY);
    }
}
