//! When a call is tried again, how soon, and how often in all.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::time::{Sleep, sleep};
use tower::retry::Policy;

use super::budget::{self, Budget};
use crate::call::{Call, Reply, Stamp, has_runtime};
use crate::error::{Error, Execution};
use crate::instance::ServiceName;

/// When a call is tried again: only if its failure and its caller's word allow it, at most three
/// attempts on the wire, within a budget that the calls of all clients of the service in this
/// process fill.
///
/// It is the policy of the client's own retry, and a policy for tower's `RetryLayer`. Clones share
/// the budget, and so do clients that are given clones of one.
#[derive(Clone)]
pub struct Retry {
    attempts: u32,
    first: Duration,
    cap: Duration,
    /// An attempt after one that was sent takes from it; every call puts a fifth in.
    budget: Arc<Budget>,
    /// The budget was named: it is not the one that the service's clients share.
    named: bool,
    /// Attempts made so far, where tower's layer counts.
    made: u32,
    /// The strongest class of those.
    strongest: Execution,
}

impl Retry {
    /// At most `attempts` on the wire; 1 never tries again what was sent.
    pub fn new(attempts: u32) -> Self {
        Self {
            attempts: attempts.max(1),
            first: Duration::from_millis(50),
            cap: Duration::from_secs(1),
            budget: Arc::default(),
            named: false,
            made: 0,
            strongest: Execution::NotSent,
        }
    }

    /// Sets how many attempts may reach the wire; 1 never tries again what was sent. Default: 3.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets the first pause, which doubles with each attempt, and the longest. Default: 50 ms, 1 s.
    #[must_use]
    pub fn pauses(mut self, first: Duration, cap: Duration) -> Self {
        (self.first, self.cap) = (first, cap);
        self
    }

    /// Sets a budget of one's own: a share of the calls, and a number a second, counted over ten
    /// seconds. Default: 0.2 and 10, shared by all clients of the service in this process.
    #[must_use]
    pub fn budget(mut self, share: f32, per_second: u32) -> Self {
        self.budget = Arc::new(Budget::new(share, per_second));
        self.named = true;
        self
    }

    /// With the budget of this service's clients, unless it has one of its own.
    pub(crate) fn of(mut self, service: &ServiceName) -> Self {
        if !self.named {
            self.budget = budget::shared(service);
        }
        self
    }

    /// How many attempts may reach the wire.
    pub(super) fn most(&self) -> u32 {
        self.attempts
    }

    /// Takes an attempt from the budget, if it has one.
    pub(crate) fn withdraw(&self) -> bool {
        self.budget.withdraw(Stamp::now())
    }

    pub(crate) fn count_call(&self, now: Stamp) {
        self.budget.deposit(now);
    }

    /// Whether another attempt may follow the `number`th, of which `sent` reached the wire. One
    /// that did draws on the budget; one that did not may only be followed on another endpoint, or
    /// within the number of attempts.
    pub(super) fn allows(&self, number: u32, sent: u32, left: bool, repeated: bool) -> bool {
        if left {
            sent < self.attempts && self.withdraw()
        } else {
            !repeated || number < self.attempts
        }
    }

    /// How long to wait after the `number`th attempt, with full jitter.
    pub(super) fn pause(&self, number: u32) -> Duration {
        let bound = self.first.saturating_mul(2_u32.saturating_pow(number.saturating_sub(1)));
        bound.min(self.cap).mul_f64(rand::rng().random_range(0.0..=1.0))
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::new(3)
    }
}

impl Policy<Call, Reply, Error> for Retry {
    type Future = Sleep;

    fn retry(
        &mut self,
        call: &mut Call,
        result: &mut Result<Reply, Error>,
    ) -> Option<Self::Future> {
        let error = result.as_mut().err()?;
        self.made += 1;
        let left = error.execution() != Execution::NotSent;
        let again = error.may_be_sent_again(call.idempotent)
            && self.made < self.attempts
            && has_runtime()
            && (!left || self.withdraw());
        error.raise(self.strongest);
        self.strongest = error.execution();
        again.then(|| sleep(self.pause(self.made)))
    }

    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        if self.made == 0 {
            self.count_call(Stamp::now());
        }
        Some(call.clone())
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("attempts", &self.attempts).finish()
    }
}
