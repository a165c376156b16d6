//! A service that picks an endpoint for each request.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use rand::RngExt;
use tokio::task::coop;
use tokio::time::{Instant, timeout};
use tower::Service;

use super::failover::{Failover, Once};
use super::pool::{Pool, Pooled};
use crate::call::{NO_RUNTIME, Stamp, has_runtime};
use crate::discovery::{Endpoint, Outcome, Resolver};
use crate::error::BoxError;
use crate::instance::ServiceName;
use crate::selector::PickContext;
use crate::sync::event;
use crate::xclient::Retry;

/// How long an endpoint that could not be reached is left alone at first, and how often that doubles: up to
/// 12.8 s.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MOST_DOUBLINGS: u32 = 7;

/// Picks an endpoint for each request, by the resolver's policy, and hands the request to the service that
/// is made of that endpoint.
///
/// Unlike tower's balancer it can be cloned, is always ready, and never waits for discovery once there
/// is a list: the pick is made when the request is. An endpoint that fails is ejected as for calls of
/// this crate's own, since requests count in the same statistics; one that cannot be reached is left alone
/// for a while. A request whose caller gives up blames nobody: timeouts belong into the endpoint's service.
/// Without any instance it fails at once.
///
/// ```
/// use std::sync::Arc;
///
/// use srpc::adapt::Balance;
/// use srpc::backend::static_list::StaticList;
/// use srpc::discovery::Resolver;
/// use tower::{Service, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), srpc::error::BoxError> {
/// let list = StaticList::parse("tcp@10.0.0.1:80,tcp@10.0.0.2:80")?;
/// let resolver = Resolver::new("web".parse()?, Arc::new(list));
/// // Of each endpoint a client of yours; here one that answers with the endpoint's address.
/// let mut balance = Balance::new(resolver, |endpoint| {
///     let address = endpoint.instance().address.clone();
///     service_fn(move |_: &'static str| {
///         let address = address.clone();
///         async move { Ok::<_, std::io::Error>(address) }
///     })
/// });
/// let answered_by = balance.ready().await?.call("a request").await?;
/// assert_eq!(answered_by.port(), Some(80));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`NoInstance`], or what the endpoint's service fails with.
pub struct Balance<S, P = Once> {
    shared: Arc<Shared<S, P>>,
}

struct Shared<S, P> {
    resolver: Resolver,
    pool: Pool<S>,
    failover: P,
    attempts: u32,
    /// The budget that all clients of the service share, unless it has one of its own.
    retry: Retry,
    patience: Duration,
    /// What the next request's random numbers start from.
    seed: AtomicU64,
}

/// No endpoint can take a request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no instance of {service}: {reason}")]
pub struct NoInstance {
    service: ServiceName,
    reason: String,
}

impl NoInstance {
    /// The service of which there is none.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }
}

impl<S: Clone> Balance<S> {
    /// A balancer over a resolver's endpoints; `make` makes a service of each that is first picked, which is
    /// cloned for each request and dropped when the endpoint is no longer listed. `make` may run twice for an
    /// endpoint that two requests reach first at the same time; one of the services is dropped.
    pub fn new(resolver: Resolver, make: impl Fn(&Endpoint) -> S + Send + Sync + 'static) -> Self {
        Self::builder(resolver, make).build()
    }

    /// A balancer to be configured.
    pub fn builder(
        resolver: Resolver,
        make: impl Fn(&Endpoint) -> S + Send + Sync + 'static,
    ) -> BalanceBuilder<S> {
        BalanceBuilder {
            resolver,
            pool: Pool::new(make),
            failover: Once,
            attempts: 3,
            retry: Retry::default(),
            patience: Duration::from_secs(5),
        }
    }
}

impl<S, P> Balance<S, P> {
    /// The list of endpoints that it picks from.
    pub fn resolver(&self) -> &Resolver {
        &self.shared.resolver
    }
}

impl<S, P> Clone for Balance<S, P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S, P, Req> Service<Req> for Balance<S, P>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    S::Response: Send,
    P: Failover<Req>,
    Req: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    /// Always ready: an endpoint that is not is waited for by the request.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let answer = shared.send(request).await;
            if answer.is_err() {
                // A loop of requests that fail at once lets other tasks run.
                coop::consume_budget().await;
            }
            answer
        })
    }
}

impl<S, P> Shared<S, P> {
    async fn send<Req>(&self, mut request: Req) -> Result<S::Response, BoxError>
    where
        S: Service<Req> + Clone,
        S::Error: Into<BoxError>,
        S::Response: 'static,
        P: Failover<Req>,
    {
        self.retry.count_call(Stamp::now());
        let mut tried: Vec<Endpoint> = Vec::new();
        // What the last attempt failed with, and whether it may have left.
        let mut last: Option<(BoxError, bool)> = None;
        loop {
            let (endpoint, pooled) = match (self.pick(&tried).await, last.take()) {
                // There is nobody else: what failed says more.
                (Err(_), Some((error, _))) => return Err(error),
                (Ok((endpoint, _)), Some((error, _)))
                    if tried.iter().any(|one| one.is(&endpoint)) =>
                {
                    return Err(error);
                }
                // The budget is asked last: it is drawn upon only for an attempt that will be made.
                (Ok(_), Some((error, true))) if !self.retry.withdraw() => return Err(error),
                (picked, _) => picked?,
            };
            let (sent, kept) = self.failover.keep(request);
            // What a newer registration earned is one request: for the others the backoff holds.
            endpoint.stats().take_renewal();
            let Pooled { mut service, has_answered } = pooled;
            // Until it has answered once, a request may have to connect, which is no latency.
            let attempt = endpoint.start(Instant::now()).dialled(!has_answered.load(Relaxed));
            let answer = async {
                poll_fn(|cx| service.poll_ready(cx)).await?;
                service.call(sent).await
            };
            let error: BoxError = match answer.await {
                Ok(response) => {
                    endpoint.stats().connected();
                    has_answered.store(true, Relaxed);
                    attempt.end(self.failover.outcome(&response), Instant::now());
                    return Ok(response);
                }
                Err(error) => error.into(),
            };
            has_answered.store(false, Relaxed);
            let unreachable = self.failover.is_unreachable(&*error);
            let outcome = if unreachable { Outcome::Unreachable } else { Outcome::Failed };
            attempt.end(outcome, Instant::now());
            if unreachable {
                put_off(&endpoint);
                // Whoever is not there may have left since the list came.
                self.resolver.doubt();
            }
            tried.push(endpoint);
            if tried.len() >= self.attempts as usize {
                return Err(error);
            }
            match self.failover.again(kept, &*error) {
                Some(again) => request = again,
                None => return Err(error),
            }
            event!(DEBUG, %error, "goes to another endpoint");
            last = Some((error, !unreachable));
            coop::consume_budget().await;
        }
    }

    async fn pick(&self, tried: &[Endpoint]) -> Result<(Endpoint, Pooled<S>), NoInstance>
    where
        S: Clone,
    {
        let nobody =
            |reason: String| NoInstance { service: self.resolver.service().clone(), reason };
        let is_listed = || self.resolver.snapshot().status.is_listed();
        if !is_listed() {
            if !has_runtime() {
                return Err(nobody(NO_RUNTIME.to_owned()));
            }
            let waited = timeout(self.patience, self.resolver.listed()).await;
            if waited.is_err() || !is_listed() {
                return Err(nobody(match &self.resolver.snapshot().last_error {
                    Some(error) => format!("no list yet: {error}"),
                    None => "no list yet: the source has not answered".to_owned(),
                }));
            }
        }
        let snapshot = self.resolver.snapshot();
        let seed = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        let picked = {
            let cx = PickContext::new(Instant::now(), seed)
                .retry(tried.len() as u32 + 1, tried)
                .zone(self.resolver.zone());
            snapshot.pick(&cx).and_then(|index| snapshot.endpoints.at(index))
        };
        match picked {
            Some(endpoint) => {
                let pooled = self.pool.get(&snapshot, endpoint).await;
                Ok((endpoint.clone(), pooled))
            }
            None => Err(nobody(match snapshot.endpoints.len() {
                0 => "none is known".to_owned(),
                n => format!("none of {n} takes requests"),
            })),
        }
    }
}

/// An endpoint that could not be reached gets no requests for a while, which doubles each time, while
/// another is usable.
fn put_off(endpoint: &Endpoint) {
    // Requests that were under way together fail together: that is one failure to reach it.
    if endpoint.stats().in_backoff(Instant::now()) {
        return;
    }
    let doublings = endpoint.stats().connect_failures().min(MOST_DOUBLINGS);
    let pause = FIRST_PAUSE.saturating_mul(1 << doublings);
    let pause = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
    endpoint.stats().connect_failed(Instant::now() + pause);
}

impl<S, P> fmt::Debug for Balance<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance").field("resolver", &self.shared.resolver).finish_non_exhaustive()
    }
}

/// Configures a [`Balance`].
#[must_use]
pub struct BalanceBuilder<S, P = Once> {
    resolver: Resolver,
    pool: Pool<S>,
    failover: P,
    attempts: u32,
    retry: Retry,
    patience: Duration,
}

impl<S, P> BalanceBuilder<S, P> {
    /// Which requests go to another endpoint when they fail. Default: none.
    pub fn failover<Q>(self, failover: Q) -> BalanceBuilder<S, Q> {
        let Self { resolver, pool, attempts, retry, patience, .. } = self;
        BalanceBuilder { resolver, pool, failover, attempts, retry, patience }
    }

    /// How many endpoints a request is sent to at most; 1 at least. Default: 3.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// A budget of its own for requests that are sent again though they may have left: a share of the
    /// requests, and a number a second, counted over ten seconds. Default: 0.2 and 10, shared with all
    /// clients of the service in this process.
    pub fn budget(mut self, share: f32, per_second: u32) -> Self {
        self.retry = self.retry.budget(share, per_second);
        self
    }

    /// How long a request waits for the source's first list. Default: 5 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The balancer.
    pub fn build(self) -> Balance<S, P> {
        let Self { resolver, pool, failover, attempts, retry, patience } = self;
        let retry = retry.of(resolver.service());
        let seed = AtomicU64::new(rand::random());
        let shared = Shared { resolver, pool, failover, attempts, retry, patience, seed };
        Balance { shared: Arc::new(shared) }
    }
}

impl<S, P> fmt::Debug for BalanceBuilder<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceBuilder")
            .field("resolver", &self.resolver)
            .field("attempts", &self.attempts)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}
