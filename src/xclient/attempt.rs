//! One try of a call on one endpoint, as a user's attempt layers see it.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::channels::Channels;
use super::core::pass_on;
use super::covered::{Below, LastScope, WithDeadline};
use super::fail;
use crate::call::{Call, LayerScope, Reply, Stamp, after};
use crate::discovery::Endpoint;
use crate::error::Error;

/// One try of a call on one endpoint.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// The call, with its deadline set.
    pub call: Call,
    /// The endpoint that was selected.
    pub endpoint: Endpoint,
    /// Counted from 1.
    pub number: u32,
}

/// What the user's attempt layers wrap: attempt timeout and exchange.
#[derive(Clone)]
pub struct AttemptService {
    channels: Arc<Channels>,
    /// The attempt that it was last used or cloned in.
    last: LastScope,
}

impl AttemptService {
    pub(super) fn new(channels: Arc<Channels>) -> Self {
        Self { channels, last: LastScope::default() }
    }
}

impl tower::Service<Attempt> for AttemptService {
    type Response = Reply;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.last.get();
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut attempt: Attempt) -> Self::Future {
        /// Only if a layer sends a call of its own, without a deadline, from a task that knows of no attempt.
        const FALLBACK: Duration = Duration::from_secs(10);
        let channels = Arc::clone(&self.channels);
        let is_callers = attempt.call.scope.is_some();
        if !is_callers {
            attempt.call.scope = self.last.get();
        }
        Box::pin(async move {
            let Attempt { call, endpoint, .. } = attempt;
            let mut passed = match pass_on(call.scope.as_ref(), is_callers) {
                Ok(passed) => passed,
                Err(error) => return fail(error).await,
            };
            let now = Instant::now();
            // A layer may shorten the deadline, and neither prolong nor clear it.
            let latest = call.scope.as_ref().map(LayerScope::deadline);
            let limit = call.timeout.map(|timeout| after(now, timeout));
            let deadline = [call.deadline, latest, limit].into_iter().flatten().min();
            let deadline = deadline.unwrap_or_else(|| after(now, FALLBACK));
            let until = call.attempt_until(now, deadline);
            let channel = channels.to(&endpoint);
            let exchange = pin!(channel.exchange_at(&call, now, until));
            let answer = Below::new(WithDeadline::new(exchange, Stamp::of(until))).await;
            match answer {
                Ok(reply) => Ok(reply),
                Err(error) => {
                    passed.failed(error.execution());
                    fail(error).await
                }
            }
        })
    }
}

impl fmt::Debug for AttemptService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptService")
    }
}
