//! Whether a request that failed goes to another endpoint.

use std::any::Any;
use std::error::Error;

use crate::discovery::Outcome;

/// Whether a request that failed goes to another endpoint, and what is needed for that.
///
/// # Contract
/// A request that may have been executed is sent again only if its caller said that this does no harm.
pub trait Failover<Req>: Send + Sync + 'static {
    /// What lets a request be made once more.
    type Kept: Send;

    /// Called before each attempt; answers with the request to send.
    fn keep(&self, request: Req) -> (Req, Self::Kept);

    /// The request again, after this failure; `None`: it fails with it.
    fn again(&self, kept: Self::Kept, error: &(dyn Error + 'static)) -> Option<Req>;

    /// Whether the endpoint could not be reached, so that nothing was sent. Default: no.
    fn is_unreachable(&self, error: &(dyn Error + 'static)) -> bool {
        let _ = error;
        false
    }

    /// What a response, of the type that the endpoints' services give, says of its endpoint. Default: it
    /// succeeded.
    fn outcome(&self, response: &dyn Any) -> Outcome {
        let _ = response;
        Outcome::Succeeded { load: 0 }
    }
}

/// Every request is sent once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Once;

impl<Req> Failover<Req> for Once {
    type Kept = ();

    fn keep(&self, request: Req) -> (Req, ()) {
        (request, ())
    }

    fn again(&self, (): (), _: &(dyn Error + 'static)) -> Option<Req> {
        None
    }
}

/// Requests that can be cloned go to another endpoint if a function says so of their failure.
#[derive(Clone, Copy, Debug)]
pub struct ToOthers<F>(F);

impl<F> ToOthers<F>
where
    F: Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
{
    /// `was_not_sent` tells of a failure whether nothing of the request has left.
    pub fn if_not_sent(was_not_sent: F) -> Self {
        Self(was_not_sent)
    }
}

impl<Req, F> Failover<Req> for ToOthers<F>
where
    Req: Clone + Send,
    F: Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
{
    type Kept = Req;

    fn keep(&self, request: Req) -> (Req, Req) {
        (request.clone(), request)
    }

    fn again(&self, kept: Req, error: &(dyn Error + 'static)) -> Option<Req> {
        (self.0)(error).then_some(kept)
    }

    fn is_unreachable(&self, error: &(dyn Error + 'static)) -> bool {
        (self.0)(error)
    }
}
