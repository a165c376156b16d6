//! One try of a call on one endpoint, as a user's attempt layers see it.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::channels::Channels;
use super::core::exchange;
use super::covered::Below;
use crate::call::{Call, Reply};
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
    pub(super) channels: Arc<Channels>,
}

impl tower::Service<Attempt> for AttemptService {
    type Response = Reply;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        /// Only if a layer took the deadline away.
        const FALLBACK: Duration = Duration::from_secs(10);
        let channels = Arc::clone(&self.channels);
        Box::pin(async move {
            let Attempt { call, endpoint, .. } = attempt;
            let now = Instant::now();
            let deadline = call.deadline.unwrap_or(now + FALLBACK);
            let channel = channels.to(&endpoint);
            Below::new(pin!(exchange(&channel, &call, now, deadline))).await
        })
    }
}

impl fmt::Debug for AttemptService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptService")
    }
}
