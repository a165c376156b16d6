//! A tower layer that asks a second instance when the first is slow to answer.

mod latencies;

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};

use self::latencies::Latencies;
use crate::call::{Call, Racer, Reply, after, has_runtime, until};
use crate::error::{BoxError, Error, Execution};

/// A tower layer that makes a second attempt of a call, on another instance, while the first is
/// still under way: after a fixed time, or one at which nearly all calls are answered.
///
/// ```
/// # use std::time::Duration;
/// # use srpc::xclient::{Hedge, XClientBuilder};
/// # fn example(builder: XClientBuilder) -> XClientBuilder {
/// builder.idempotent(true).layer(Hedge::after(Duration::from_millis(20)))
/// # }
/// ```
///
/// # What it promises
/// - Only calls that are marked as idempotent are hedged, and none that names its instance.
/// - The first answer wins, be it an error of the service; the other attempt is dropped, and with it
///   cancelled on the wire.
/// - The second attempt draws on the retry budget, and counts among the call's attempts (3). It goes
///   to an instance that was not tried for this call; if there is none, or the budget is spent, the
///   first is waited for. If it fails, nothing follows it, and the first is waited for too.
/// - If both fail, the later failure is the result, with the stronger class of the two.
///
/// It belongs around the retries of an [`XClient`](crate::XClient), as one of its
/// [layers](crate::xclient::XClientBuilder::layer); around anything else it does nothing more than
/// call twice. Clones share what they have observed.
#[derive(Clone)]
pub struct Hedge {
    shared: Arc<Shared>,
}

struct Shared {
    delay: Delay,
    hedged: AtomicU64,
    won: AtomicU64,
}

enum Delay {
    Fixed(Duration),
    Observed(Latencies),
}

/// What a [`Hedge`] has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HedgeStats {
    /// Calls whose first attempt took longer than the delay.
    pub hedged: u64,
    /// Those of them that the second attempt answered.
    pub won: u64,
}

impl Hedge {
    /// The second attempt starts `delay` after the first.
    pub fn after(delay: Duration) -> Self {
        Self::of(Delay::Fixed(delay))
    }

    /// The second attempt starts once this share of the calls of the last 10 to 20 s were answered:
    /// 0.95 hedges every twentieth. Nothing is hedged before 100 calls were seen.
    ///
    /// The share is taken to be at least 0.5, and at most 0.999.
    pub fn percentile(share: f64) -> Self {
        Self::of(Delay::Observed(Latencies::new(share.clamp(0.5, 0.999), Instant::now())))
    }

    fn of(delay: Delay) -> Self {
        let shared = Shared { delay, hedged: AtomicU64::new(0), won: AtomicU64::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// How long a first attempt is waited for at present; `None` while too little was observed.
    pub fn delay(&self) -> Option<Duration> {
        match &self.shared.delay {
            Delay::Fixed(delay) => Some(*delay),
            Delay::Observed(latencies) => latencies.at_share(),
        }
    }

    /// What it has done so far.
    pub fn stats(&self) -> HedgeStats {
        let Shared { hedged, won, .. } = &*self.shared;
        HedgeStats { hedged: hedged.load(Relaxed), won: won.load(Relaxed) }
    }

    /// A first attempt took this long, or longer.
    fn observe(&self, latency: Duration, now: Instant) {
        if let Delay::Observed(latencies) = &self.shared.delay {
            latencies.record(latency, now);
        }
    }
}

impl<S> Layer<S> for Hedge {
    type Service = Hedged<S>;

    fn layer(&self, inner: S) -> Hedged<S> {
        Hedged { inner, hedge: self.clone() }
    }
}

impl fmt::Debug for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge").field("delay", &self.delay()).finish_non_exhaustive()
    }
}

/// A service whose slow calls are made a second time; see [`Hedge`].
#[derive(Clone, Debug)]
pub struct Hedged<S> {
    inner: S,
    hedge: Hedge,
}

impl<S> Service<Call> for Hedged<S>
where
    S: Service<Call, Response = Reply> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Reply;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(|error| Error::from_boxed(error.into()))
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let second = self.inner.clone();
        // The one that was made ready takes the first attempt.
        let mut first = std::mem::replace(&mut self.inner, second.clone());
        if !call.idempotent || call.only.is_some() || call.racer.is_some() {
            let answer = first.call(call);
            return Box::pin(async move { answer.await.map_err(into_error) });
        }
        let hedge = self.hedge.clone();
        Box::pin(async move {
            let (one, other) = Racer::pair();
            let later = Call { racer: Some(other), ..call.clone() };
            call.racer = Some(one);
            let started = Instant::now();
            let first = first.call(call);
            let second = async { second.oneshot(later).await.map_err(into_error) };
            let first = async { first.await.map_err(into_error) };
            hedge.race(first, second, started).await
        })
    }
}

impl Hedge {
    async fn race(
        &self,
        first: impl Future<Output = Result<Reply, Error>>,
        second: impl Future<Output = Result<Reply, Error>>,
        started: Instant,
    ) -> Result<Reply, Error> {
        let mut first = pin!(first);
        // Without a runtime there is no timer that tells when to hedge.
        if let Some(delay) = self.delay().filter(|_| has_runtime()) {
            tokio::select! {
                biased;
                answer = &mut first => {
                    self.first_ended(&answer, started);
                    return answer;
                }
                () = until(Some(after(started, delay))) => {}
            }
        } else {
            let answer = first.await;
            self.first_ended(&answer, started);
            return answer;
        }
        self.shared.hedged.fetch_add(1, Relaxed);
        let mut second = pin!(second);
        tokio::select! {
            biased;
            answer = &mut first => {
                self.first_ended(&answer, started);
                match answer {
                    Err(error) if !is_answer(&error) => self.last(second.await, error),
                    answer => answer,
                }
            }
            answer = &mut second => match answer {
                Err(error) if !is_answer(&error) => {
                    let answer = first.await;
                    self.first_ended(&answer, started);
                    answer.map_err(|last| last.after(error.execution()))
                }
                answer => {
                    // It would have taken longer still.
                    let now = Instant::now();
                    self.observe(now.saturating_duration_since(started), now);
                    self.shared.won.fetch_add(1, Relaxed);
                    answer
                }
            },
        }
    }

    /// The second attempt's end, after the first has failed.
    fn last(&self, second: Result<Reply, Error>, first: Error) -> Result<Reply, Error> {
        match second {
            Ok(reply) => {
                self.shared.won.fetch_add(1, Relaxed);
                Ok(reply)
            }
            // It was never made, or says less than the first.
            Err(error) if error.execution() == Execution::NotSent => Err(first),
            Err(error) => Err(error.after(first.execution())),
        }
    }

    fn first_ended(&self, answer: &Result<Reply, Error>, started: Instant) {
        if answer.as_ref().is_ok_and(|_| true) || answer.as_ref().is_err_and(is_answer) {
            let now = Instant::now();
            self.observe(now.saturating_duration_since(started), now);
        }
    }
}

/// Whether a failure is the service's own word.
fn is_answer(error: &Error) -> bool {
    error.execution() == Execution::Executed
}

fn into_error(error: impl Into<BoxError>) -> Error {
    Error::from_boxed(error.into())
}
