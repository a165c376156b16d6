//! The part of a call that every client has: retry, selection, one attempt after another.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::coop;
use tokio::time::{Instant, timeout_at};

use super::attempt::Attempt;
use super::channels::{Channels, Route};
use super::covered::{Below, LastScope};
use super::poll_budget;
use super::retry::Retry;
use super::sending::{Landed, Sending};
use super::stack::Stack;
use crate::call::{
    Call, LayerScope, PassedOn, Racer, Reply, Stamp, after, has_runtime, inherited, no_runtime,
    until,
};
use crate::client::{Channel, Lanes};
use crate::discovery::{Endpoint, Resolver};
use crate::error::{Error, Execution, Fate, Kind};
use crate::instance::Address;
use crate::selector::PickContext;
use crate::sync::event;

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
    pub(super) seeds: Lanes<AtomicU64>,
    pub(super) closed: AtomicBool,
}

/// What a call says of where it is to go.
#[derive(Clone, Copy, Default)]
pub(super) struct Aim<'a> {
    only: Option<&'a Address>,
    hash_key: Option<u64>,
}

impl<'a> Aim<'a> {
    pub(super) fn of(call: &'a Call) -> Self {
        Self { only: call.only.as_ref(), hash_key: call.hash_key }
    }
}

impl Core {
    /// Fills in what the call leaves to the client; tells its deadline.
    pub(super) fn settle(&self, call: &mut Call, now: Instant) -> Instant {
        let within = |timeout| after(now, timeout);
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
        // A layer may shorten it, and neither prolong nor clear it.
        let deadline = match &call.scope {
            Some(scope) => deadline.min(scope.deadline()),
            None => deadline,
        };
        call.deadline = Some(deadline);
        call.attempt_timeout = call.attempt_timeout.or(self.attempt_timeout);
        call.idempotent |= self.idempotent;
        deadline
    }

    /// Settles a call that enters the user's layers.
    pub(super) fn enter_layers(&self, call: &mut Call) -> Result<LayerScope, Error> {
        let now = Instant::now();
        let deadline = self.settle(call, now);
        if deadline <= now {
            return Err(too_late());
        }
        let scope = LayerScope::new(deadline);
        call.scope = Some(scope.clone());
        Ok(scope)
    }

    /// The deadline of a call that leaves everything to the client.
    pub(super) fn deadline(&self, now: Stamp) -> Stamp {
        let deadline = now.after(self.timeout);
        match inherited().filter(|_| self.inherit) {
            Some(outer) => deadline.min(Stamp::of(outer)),
            None => deadline,
        }
    }

    /// Makes one attempt after another, until one succeeds or none may follow. A first one that
    /// `failed` was made already.
    pub(super) async fn run(
        &self,
        call: &Call,
        mut now: Instant,
        deadline: Instant,
        mut failed: Option<(Arc<Route>, Error)>,
    ) -> Result<Reply, Error> {
        if let Some(racer) = call.racer.as_ref().filter(|racer| racer.second) {
            return self.run_second(call, racer, now, deadline).await;
        }
        if failed.is_none() {
            self.retry.count_call(Stamp::of(now));
        }
        let mut tried = Vec::new();
        let mut last: Option<Error> = None;
        let mut strongest = Execution::NotSent;
        // Those that reached the wire: what never left costs nobody anything.
        let mut sent = 0;
        for number in 1.. {
            let (route, error) = match failed.take() {
                Some(first) => first,
                None => {
                    if let Some(racer) = &call.racer {
                        tried = self.tried(racer);
                    }
                    let picked = match self.pick(Aim::of(call), number, &tried, now) {
                        Some(route) => Ok(route),
                        None => self.await_pick(call, number, &tried, deadline).await,
                    };
                    let route = match (picked, last.take()) {
                        (Ok(route), _) => route,
                        // Nobody else is there: the attempt that was made says more.
                        (Err(_), Some(error)) => return Err(error),
                        (Err(error), None) => return Err(error),
                    };
                    if let Some(racer) = &call.racer {
                        racer.tries(&route.address);
                    }
                    match self.attempt(call, &route, number, now, deadline).await {
                        Ok(reply) => return Ok(route.names(reply, number)),
                        Err(error) => (route, error),
                    }
                }
            };
            let endpoint = &route.endpoint;
            let error = error.at(&route.address).on_attempt(number);
            // A refusal by an attempt layer says nothing of the endpoint. It counts as sent: else the layer would be
            // asked again for every endpoint.
            let is_refusal = error.fate() == Fate::LayerRefused;
            let left = error.execution() != Execution::NotSent || is_refusal;
            if !left && error.kind() == Kind::Unavailable {
                // Whoever is not there may have left since the list came.
                self.resolver.doubt();
            }
            sent = match &call.racer {
                Some(racer) if left => racer.sent(),
                _ => sent + u32::from(left),
            };
            let pause = self.pause(call, endpoint, &tried, &error, number);
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
            event!(DEBUG, %error, "tried again");
            last = Some(error);
            tried.push(endpoint.clone());
            // Without a runtime there is no timer, and the next attempt is made at once: they are few.
            if pause.is_some() && has_runtime() {
                until(Some(next)).await;
            } else {
                // Attempts that fail at once, on one endpoint after another, let other tasks run.
                coop::consume_budget().await;
            }
            now = Instant::now();
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
        now: Instant,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let tried = self.tried(racer);
        let number = racer.tried().len() as u32 + 1;
        if number > self.retry.most() {
            return Err(self.nobody("no attempt is left to hedge with"));
        }
        let route = match self.pick(Aim::of(call), number, &tried, now) {
            Some(route) => route,
            None => self.await_pick(call, number, &tried, deadline).await?,
        };
        let (endpoint, now) = (&route.endpoint, Instant::now());
        if tried.iter().any(|other| other.is(endpoint)) || !endpoint.is_usable(now) {
            return Err(self.nobody("there is no other instance to hedge with"));
        }
        if !self.retry.withdraw() {
            return Err(self.nobody("the retry budget is spent"));
        }
        let number = racer.tries(&endpoint.instance().address);
        match self.attempt(call, &route, number, now, deadline).await {
            Ok(reply) => Ok(route.names(reply, number)),
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

    /// Where an attempt goes, as of the list that is known now.
    pub(super) fn pick(
        &self,
        aim: Aim<'_>,
        number: u32,
        tried: &[Endpoint],
        now: Instant,
    ) -> Option<Arc<Route>> {
        if self.closed.load(Relaxed) {
            return None;
        }
        let routes = self.channels.routes(&self.resolver);
        let snapshot = routes.snapshot()?;
        let index = match aim.only {
            Some(only) => snapshot.endpoints.iter().position(|e| &e.instance().address == only)?,
            None => {
                let next = self.seeds.mine();
                let seed = next.load(Relaxed);
                next.store(seed.wrapping_add(0x9e37_79b9_7f4a_7c15), Relaxed);
                let cx = PickContext::new(now, seed)
                    .retry(number, tried)
                    .hash_key(aim.hash_key)
                    .zone(self.zone.as_deref());
                snapshot.pick(&cx)?
            }
        };
        self.channels.route(&routes, index)
    }

    /// Where an attempt goes, if none can be picked: waits for discovery only before its first list.
    async fn await_pick(
        &self,
        call: &Call,
        number: u32,
        tried: &[Endpoint],
        deadline: Instant,
    ) -> Result<Arc<Route>, Error> {
        if self.closed.load(Relaxed) {
            return Err(self.nobody("the client is closed"));
        }
        self.listed(deadline).await?;
        self.pick(Aim::of(call), number, tried, Instant::now()).ok_or_else(|| {
            let known = self.resolver.snapshot().endpoints.len();
            match known {
                _ if self.closed.load(Relaxed) => self.nobody("the client is closed"),
                0 => self.nobody(&format!("no instance is known{}", self.resolver.restart_note())),
                n => self.nobody(&format!("none of {n} instances takes calls")),
            }
        })
    }

    /// Waits until there is a list.
    pub(super) async fn listed(&self, deadline: Instant) -> Result<(), Error> {
        let is_listed = || self.resolver.snapshot().status.is_listed();
        if is_listed() {
            return Ok(());
        }
        if !has_runtime() {
            return Err(no_runtime(Fate::NoConnection));
        }
        if timeout_at(deadline, self.resolver.listed()).await.is_ok() && is_listed() {
            return Ok(());
        }
        let note = self.resolver.restart_note();
        Err(match &self.resolver.snapshot().last_error {
            Some(error) => self.nobody(&format!("no list yet: {error}{note}")),
            None => self.nobody(&format!("no list yet: the source has not answered{note}")),
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
        route: &Route,
        number: u32,
        now: Instant,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        match &self.attempts {
            None => exchange(&route.channel, call, now, deadline).await,
            Some(stack) => {
                let (scope, endpoint) = (LayerScope::new(deadline), route.endpoint.clone());
                let mut call = call.clone();
                call.scope = Some(scope.clone());
                stack.call(Attempt { call, endpoint, number }, scope).await
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

pub(super) fn too_late() -> Error {
    let why = "the deadline had passed before the call was made";
    Error::new(Kind::DeadlineExceeded, Fate::NeverWritten, why)
}

/// Counts a call as passed on by the layers that it is within, if it is within any.
///
/// `is_callers` says that it is the caller's call or a copy of it, and not one that a layer made. It is refused if the
/// caller was told that it was not executed.
pub(super) fn pass_on(scope: Option<&LayerScope>, is_callers: bool) -> Result<PassedOn, Error> {
    let Some(scope) = scope else { return Ok(PassedOn::uncounted()) };
    match scope.pass_on() {
        Some(passed) => Ok(passed),
        None if is_callers => {
            let why = "a layer passed the call on after it had failed as one that was not executed";
            Err(Error::new(Kind::Cancelled, Fate::NeverWritten, why))
        }
        None => Ok(PassedOn::uncounted()),
    }
}

/// One attempt on the wire, made at `now`.
async fn exchange(
    channel: &Channel,
    call: &Call,
    now: Instant,
    deadline: Instant,
) -> Result<Reply, Error> {
    channel.exchange_at(call, now, call.attempt_until(now, deadline)).await
}

/// What the user's layers wrap: retry, selection and everything below.
#[derive(Clone)]
pub struct CoreService {
    core: Arc<Core>,
    /// The call that it was last used or cloned in.
    last: LastScope,
}

impl CoreService {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core, last: LastScope::default() }
    }
}

impl tower::Service<Call> for CoreService {
    type Response = Reply;
    type Error = Error;
    type Future = CoreFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.last.get();
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut call: Call) -> CoreFuture {
        // A call without a scope is one that a layer made.
        let is_callers = call.scope.is_some();
        if !is_callers {
            call.scope = self.last.get();
        }
        let scope = call.scope.clone();
        // It settles anew when it is polled: a layer may have shortened the deadline.
        let future = Below::new(Sending::new(Arc::clone(&self.core), call));
        CoreFuture { future, scope, is_callers, passed: None }
    }
}

/// A call below the user's layers.
#[must_use = "nothing is sent before it is polled"]
pub struct CoreFuture {
    future: Below<Sending<Arc<Core>, Call>>,
    scope: Option<LayerScope>,
    is_callers: bool,
    /// Set by the first poll.
    passed: Option<PassedOn>,
}

impl Future for CoreFuture {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { future, scope, is_callers, passed } = &mut *self;
        let passed = match passed {
            Some(passed) => passed,
            None => match pass_on(scope.as_ref(), *is_callers) {
                Ok(begun) => passed.insert(begun),
                Err(error) => {
                    ready!(poll_budget(cx));
                    return Poll::Ready(Err(error));
                }
            },
        };
        let landed = ready!(Pin::new(future).poll(cx));
        if let Err(error) = &landed {
            passed.failed(error.execution());
        }
        Poll::Ready(landed.map(Landed::into_reply))
    }
}

impl fmt::Debug for CoreFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CoreFuture")
    }
}

impl fmt::Debug for CoreService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CoreService")
    }
}
