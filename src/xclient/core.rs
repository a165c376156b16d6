//! The part of a call that every client has: retry, selection, one attempt after another.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::attempt::Attempt;
use super::channels::Channels;
use super::retry::Retry;
use super::stack::Stack;
use crate::call::{Call, Racer, Reply, after, inherited};
use crate::discovery::{Endpoint, Outcome, Resolver};
use crate::error::{Error, Execution, Fate, Kind};
use crate::selector::PickContext;

/// What all calls of a client share.
pub(super) struct Core {
    pub(super) resolver: Resolver,
    pub(super) channels: Arc<Channels>,
    /// The user's attempt layers around the exchange, if there are any.
    pub(super) attempts: Option<Stack<Attempt>>,
    pub(super) retry: Retry,
    pub(super) timeout: Duration,
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) idempotent: bool,
    /// Calls made inside a handler end by its deadline.
    pub(super) inherit: bool,
    pub(super) zone: Option<String>,
    /// What the next call's random numbers start from.
    pub(super) seed: AtomicU64,
    pub(super) closed: AtomicBool,
}

impl Core {
    /// Fills in what the call leaves to the client; tells its deadline.
    pub(super) fn settle(&self, call: &mut Call) -> Instant {
        let within = |timeout| after(Instant::now(), timeout);
        let deadline = match (call.deadline, call.timeout.take()) {
            (None, None) => within(self.timeout),
            (None, Some(timeout)) => within(timeout),
            (Some(deadline), None) => deadline,
            (Some(deadline), Some(timeout)) => deadline.min(within(timeout)),
        };
        let deadline = match inherited().filter(|_| self.inherit) {
            Some(outer) => deadline.min(outer),
            None => deadline,
        };
        call.deadline = Some(deadline);
        call.attempt_timeout = call.attempt_timeout.or(self.attempt_timeout);
        call.idempotent |= self.idempotent;
        deadline
    }

    /// Makes one attempt after another, until one succeeds or none may follow.
    pub(super) async fn run(&self, call: &Call, deadline: Instant) -> Result<Reply, Error> {
        if Instant::now() >= deadline {
            return Err(too_late());
        }
        if let Some(racer) = call.racer.as_ref().filter(|racer| racer.second) {
            return self.run_second(call, racer, deadline).await;
        }
        self.retry.count_call();
        let mut tried = Vec::new();
        let mut last: Option<Error> = None;
        let mut strongest = Execution::NotSent;
        // Those that reached the wire: what never left costs nobody anything.
        let mut sent = 0;
        for number in 1.. {
            if let Some(racer) = &call.racer {
                tried = self.tried(racer);
            }
            let picked = self.select(call, number, &tried, deadline).await;
            let endpoint = match (picked, last.take()) {
                (Ok(endpoint), _) => endpoint,
                // Nobody else is there: the attempt that was made says more.
                (Err(_), Some(error)) => return Err(error),
                (Err(error), None) => return Err(error),
            };
            if let Some(racer) = &call.racer {
                racer.tries(&endpoint.instance().address);
            }
            let error = match self.attempt(call, &endpoint, number, deadline).await {
                Ok(mut reply) => {
                    reply.from = Some((endpoint.instance().address.clone(), number));
                    return Ok(reply);
                }
                Err(error) => error.at(&endpoint.instance().address).on_attempt(number),
            };
            let left = error.execution() != Execution::NotSent;
            if !left && error.kind() == Kind::Unavailable {
                // Whoever is not there may have left since the list came.
                self.resolver.doubt();
            }
            sent = match &call.racer {
                Some(racer) if left => racer.sent(),
                _ => sent + u32::from(left),
            };
            let pause = self.pause(call, &endpoint, &tried, &error, number);
            let next = Instant::now() + pause.unwrap_or_default();
            // The budget is asked last: it is drawn upon only for an attempt that will be made.
            let again = self.may_go_on(call, &error, number)
                && error.may_be_sent_again(call.idempotent)
                && next < deadline
                && !self.closed.load(Relaxed)
                && self.retry.allows(number, sent, left, tried.iter().any(|e| endpoint.is(e)));
            let error = error.after(strongest);
            strongest = error.execution();
            if !again {
                return Err(error);
            }
            tracing::debug!(%error, "tried again");
            last = Some(error);
            tried.push(endpoint);
            if let Some(pause) = pause {
                sleep(pause).await;
            }
        }
        Err(last.unwrap_or_else(|| self.nobody("no attempt was made")))
    }

    /// Whether there is anywhere else to go. A call that names its instance goes back there only
    /// after a drain, and once: it may have been that of a connection that was idle.
    fn may_go_on(&self, call: &Call, error: &Error, number: u32) -> bool {
        let drained = error.fate() == Fate::AboveDrain && number < self.retry.most().min(2);
        call.only.is_none() || drained
    }

    /// The second of two copies of a call makes one attempt, where none was made, within the budget.
    async fn run_second(
        &self,
        call: &Call,
        racer: &Racer,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let tried = self.tried(racer);
        let number = racer.tried().len() as u32 + 1;
        if number > self.retry.most() {
            return Err(self.nobody("no attempt is left to hedge with"));
        }
        let endpoint = self.select(call, number, &tried, deadline).await?;
        if tried.iter().any(|other| other.is(&endpoint)) || !endpoint.is_usable(Instant::now()) {
            return Err(self.nobody("there is no other instance to hedge with"));
        }
        if !self.retry.withdraw() {
            return Err(self.nobody("the retry budget is spent"));
        }
        let number = racer.tries(&endpoint.instance().address);
        match self.attempt(call, &endpoint, number, deadline).await {
            Ok(mut reply) => {
                reply.from = Some((endpoint.instance().address.clone(), number));
                Ok(reply)
            }
            Err(error) => {
                if error.execution() != Execution::NotSent {
                    racer.sent();
                }
                Err(error.at(&endpoint.instance().address).on_attempt(number))
            }
        }
    }

    /// The endpoints that a call or its copy tried.
    fn tried(&self, racer: &Racer) -> Vec<Endpoint> {
        let addresses = racer.tried();
        let snapshot = self.resolver.snapshot();
        let was_tried = |e: &&Endpoint| addresses.contains(&e.instance().address);
        snapshot.endpoints.iter().filter(was_tried).cloned().collect()
    }

    /// An endpoint for an attempt. Waits for discovery only before its first list.
    async fn select(
        &self,
        call: &Call,
        number: u32,
        tried: &[Endpoint],
        deadline: Instant,
    ) -> Result<Endpoint, Error> {
        if self.closed.load(Relaxed) {
            return Err(self.nobody("the client is closed"));
        }
        let pick = || {
            let now = Instant::now();
            if let Some(only) = &call.only {
                let snapshot = self.resolver.snapshot();
                return snapshot.endpoints.iter().find(|e| e.instance().address == *only).cloned();
            }
            let seed = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
            let cx = PickContext::new(now, seed)
                .retry(number, tried)
                .hash_key(call.hash_key)
                .zone(self.zone.as_deref());
            self.resolver.pick(&cx)
        };
        if let Some(endpoint) = pick() {
            return Ok(endpoint);
        }
        self.listed(deadline).await?;
        pick().ok_or_else(|| {
            let known = self.resolver.snapshot().endpoints.len();
            match known {
                0 => self.nobody("no instance is known"),
                n => self.nobody(&format!("none of {n} instances takes calls")),
            }
        })
    }

    /// Waits until there is a list.
    pub(super) async fn listed(&self, deadline: Instant) -> Result<(), Error> {
        timeout_at(deadline, self.resolver.listed()).await.map_err(|_| {
            match &self.resolver.snapshot().last_error {
                Some(error) => self.nobody(&format!("no list yet: {error}")),
                None => self.nobody("no list yet: the source has not answered"),
            }
        })
    }

    pub(super) fn nobody(&self, why: &str) -> Error {
        Error::new(
            Kind::Unavailable,
            Fate::NoConnection,
            format!("service {}: {why}", self.resolver.service()),
        )
    }

    async fn attempt(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        number: u32,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        self.channels.follow(&self.resolver);
        match &self.attempts {
            None => exchange(&self.channels, call, endpoint, deadline).await,
            Some(stack) => {
                let attempt = Attempt { call: call.clone(), endpoint: endpoint.clone(), number };
                timeout_at(deadline, stack.call(attempt))
                    .await
                    .unwrap_or_else(|_| Err(super::overdue()))
            }
        }
    }

    /// How long to wait before the next attempt: not at all if somebody else can be asked at once.
    fn pause(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        tried: &[Endpoint],
        error: &Error,
        number: u32,
    ) -> Option<Duration> {
        let now = Instant::now();
        let snapshot = self.resolver.snapshot();
        let other = snapshot
            .endpoints
            .iter()
            .any(|e| e.is_usable(now) && !e.is(endpoint) && !tried.iter().any(|t| t.is(e)));
        let other = other && call.only.is_none();
        (!other || error.kind() == Kind::ResourceExhausted).then(|| self.retry.pause(number))
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        self.channels.close();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.close();
    }
}

fn too_late() -> Error {
    let why = "the deadline had passed before the call was made";
    Error::new(Kind::DeadlineExceeded, Fate::NeverWritten, why)
}

/// One attempt on the wire, counted by its endpoint's statistics.
pub(super) async fn exchange(
    channels: &Channels,
    call: &Call,
    endpoint: &Endpoint,
    deadline: Instant,
) -> Result<Reply, Error> {
    let channel = channels.to(endpoint);
    let now = Instant::now();
    let until = match call.attempt_timeout {
        Some(timeout) => deadline.min(after(now, timeout)),
        None => deadline,
    };
    let in_flight = endpoint.start(now).until(until);
    let answer = channel.exchange(call, until).await;
    in_flight.end(outcome(&answer, endpoint), Instant::now());
    answer
}

/// Whether the endpoint is to blame for how an attempt ended.
fn outcome(answer: &Result<Reply, Error>, endpoint: &Endpoint) -> Outcome {
    let error = match answer {
        Ok(reply) => return Outcome::Succeeded { load: reply.load },
        Err(error) => error,
    };
    // It leaves, which is no failure.
    if error.fate() == Fate::AboveDrain {
        return Outcome::Abandoned;
    }
    let answered = Outcome::Succeeded { load: endpoint.stats().reported_load() };
    match (error.execution(), error.kind()) {
        // The service's own errors are answers; a defect is not.
        (Execution::Executed, Kind::Internal) => Outcome::Failed,
        (Execution::Executed, _) => answered,
        (Execution::Rejected, Kind::ResourceExhausted) => Outcome::Overloaded,
        (Execution::Rejected, Kind::Unavailable) => Outcome::Failed,
        (Execution::Rejected, _) => answered,
        // Of what was never sent only a missing connection is the endpoint's, and that is put off
        // anyway: a backoff, and no ejection.
        (Execution::NotSent, Kind::Unavailable) => Outcome::Unreachable,
        (Execution::NotSent, _) => Outcome::Abandoned,
        (Execution::MaybeExecuted, _) => Outcome::Failed,
    }
}

/// What the user's layers wrap: retry, selection and everything below.
#[derive(Clone)]
pub struct CoreService(pub(super) Arc<Core>);

impl tower::Service<Call> for CoreService {
    type Response = Reply;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let core = Arc::clone(&self.0);
        // A layer may have shortened the deadline, or made a call of its own.
        let deadline = core.settle(&mut call);
        Box::pin(async move { core.run(&call, deadline).await })
    }
}

impl fmt::Debug for CoreService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CoreService")
    }
}
