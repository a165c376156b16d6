//! One call from the user's side: through the user's layers, retry and selection to one instance.

mod attempt;
mod broadcast;
mod budget;
mod builder;
mod channels;
mod core;
mod covered;
mod hedge;
mod retry;
mod sending;
mod stack;

use std::borrow::Cow;
use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::coop;

pub use self::attempt::{Attempt, AttemptService};
pub use self::builder::XClientBuilder;
pub use self::core::CoreService;
use self::core::{Core, pass_on};
pub use self::hedge::{Hedge, HedgeStats, Hedged};
pub use self::retry::Retry;
use self::sending::{Form, Landed, Plain, Sending};
use self::stack::{Stack, Within};
use crate::call::{Call, Codec, LayerScope, Packed, Reply, not_encodable};
use crate::discovery::{Discovery, Resolver};
use crate::error::Error;

/// A client of one service. Cheap to clone; the clones share connections and what is known of the
/// instances.
///
/// A call takes this way, and each part is there only if it was asked for:
///
/// ```text
/// deadline > user's layers > retry > select > user's attempt layers > attempt timeout > exchange
/// ```
///
/// Dropping a call's future cancels it at the server. Dropping the last clone fails what is in
/// flight by its class and ends every task behind it.
#[derive(Clone)]
pub struct XClient {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    codec: Codec,
    /// The user's layers around `core`, if there are any.
    stack: Option<Stack<Call>>,
}

impl XClient {
    /// A client of `service` with all defaults.
    ///
    /// # Errors
    /// `InvalidArgument` if the service's name breaks the rule.
    pub fn new(service: impl AsRef<str>, discovery: impl Discovery) -> Result<Self, Error> {
        Self::builder(service, discovery).build()
    }

    /// A client of `service`, with settings.
    pub fn builder(service: impl AsRef<str>, discovery: impl Discovery) -> XClientBuilder {
        XClientBuilder::new(service.as_ref(), Arc::new(discovery))
    }

    /// A client that shares a resolver, and with it the list and what is known of the endpoints.
    pub fn with_resolver(resolver: Resolver) -> XClientBuilder {
        XClientBuilder::with_resolver(resolver)
    }

    /// Calls `method` (such as `Foo.Sum`) on one instance.
    ///
    /// # Errors
    /// Each says its kind, where it happened, and whether the call was executed.
    pub async fn call<A, R>(
        &self,
        method: impl Into<Cow<'static, str>>,
        args: &A,
    ) -> Result<R, Error>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let codec = &self.inner.codec;
        // By reference: what is awaited by value is copied once more.
        let mut way = match codec.encode_packed(args) {
            Ok(body) => self.way(Plain::new(method.into(), codec.id()), body),
            Err(error) => Way::Failed(Some(not_encodable(&error))),
        };
        (&mut way).await?.decode(codec)
    }

    /// Sends a call to one instance. Nothing is sent before the first poll.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn send(&self, mut call: Call) -> impl Future<Output = Result<Reply, Error>> + Send {
        let body = Packed::Shared(mem::take(&mut call.body));
        let scope = call.scope.clone();
        let way = self.way(call, body);
        async move {
            // Another client's layers may hand their call to this one.
            let mut passed = match pass_on(scope.as_ref(), true) {
                Ok(passed) => passed,
                Err(error) => return fail(error).await,
            };
            let landed = way.await;
            if let Err(error) = &landed {
                passed.failed(error.execution());
            }
            Ok(landed?.into_reply())
        }
    }

    /// The way of a call whose body is apart from it.
    #[inline(always)]
    fn way<F: Form>(&self, mut form: F, body: Packed) -> Way<'_, F> {
        let inner = &*self.inner;
        match &inner.stack {
            None => Way::Direct(Sending::with_body(&inner.core, form, body)),
            Some(stack) => {
                let mut call = form.take();
                call.body = body.into_bytes();
                let stage = Stage::Start(call);
                Way::Layered(Layered { core: &inner.core, stack, stage, has_waited: false })
            }
        }
    }

    /// Calls `method` on one instance and returns when its handler has started: the result, and
    /// whether there is one, is nobody's business.
    ///
    /// # Errors
    /// As [`call`](Self::call), up to the handler's start.
    pub async fn notify<A>(
        &self,
        method: impl Into<Cow<'static, str>>,
        args: &A,
    ) -> Result<(), Error>
    where
        A: Serialize + ?Sized,
    {
        match Call::new(method).args_in(&self.inner.codec, args) {
            Ok(call) => self.send(call.notify(true)).await.map(|_| ()),
            Err(error) => fail(error).await,
        }
    }

    /// The list behind this client.
    pub fn resolver(&self) -> &Resolver {
        &self.inner.core.resolver
    }

    /// Closes the client and its clones: what is in flight fails by its class, and later calls fail
    /// without having been sent.
    pub async fn close(&self) {
        self.inner.core.close();
        // Those that were in flight get to see it before this returns.
        tokio::task::yield_now().await;
    }
}

/// How a call is sent. Most calls have no layers, and none of them an allocation of their own.
#[allow(clippy::large_enum_variant, reason = "the large variant is the one that is used")]
enum Way<'a, F: Form> {
    Direct(Sending<&'a Arc<Core>, F>),
    Layered(Layered<'a>),
    /// Its arguments cannot be encoded.
    Failed(Option<Error>),
}

impl<F: Form> Future for Way<'_, F> {
    type Output = Result<Landed, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Direct(sending) => Pin::new(sending).poll(cx),
            Self::Layered(layered) => layered.poll(cx).map(|answer| answer.map(Landed::Reply)),
            Self::Failed(error) => {
                ready!(poll_budget(cx));
                error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
            }
        }
    }
}

/// Takes one unit of the task's cooperative budget, for a call that ends. A loop of calls that end without having
/// waited would otherwise never let other tasks run.
fn poll_budget(cx: &mut Context<'_>) -> Poll<()> {
    coop::poll_proceed(cx).map(|unit| unit.made_progress())
}

/// Fails a call that was never on its way, and takes from the budget as [`poll_budget`] does.
async fn fail<T>(error: Error) -> Result<T, Error> {
    coop::consume_budget().await;
    Err(error)
}

/// A call through a user's layers.
struct Layered<'a> {
    core: &'a Core,
    stack: &'a Stack<Call>,
    stage: Stage,
    /// Whether it returned `Pending` before it ended.
    has_waited: bool,
}

enum Stage {
    Start(Call),
    /// Its deadline is settled; it waits for a free instance of the layers.
    Settled(Option<Call>, LayerScope),
    Within(Within),
    /// The task's budget may be spent.
    Ended(Result<Reply, Error>),
    Done,
}

impl Layered<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, Error>> {
        if let Stage::Start(call) = &mut self.stage {
            let entered = self.core.enter_layers(call);
            let Stage::Start(call) = mem::replace(&mut self.stage, Stage::Done) else {
                return Poll::Pending;
            };
            self.stage = match entered {
                Ok(scope) => Stage::Settled(Some(call), scope),
                Err(error) => Stage::Ended(Err(error)),
            };
        }
        if let Stage::Settled(call, scope) = &mut self.stage {
            let Poll::Ready(begun) = self.stack.begin(call, scope, cx) else {
                self.has_waited = true;
                return Poll::Pending;
            };
            self.stage = match begun {
                Ok(within) => Stage::Within(within),
                Err(error) => Stage::Ended(Err(error)),
            };
        }
        if let Stage::Within(within) = &mut self.stage {
            let Poll::Ready(answer) = Pin::new(within).poll(cx) else {
                self.has_waited = true;
                return Poll::Pending;
            };
            self.stage = Stage::Ended(answer);
        }
        // A layer may answer without having waited, too: from a cache.
        if !self.has_waited {
            ready!(poll_budget(cx));
        }
        match mem::replace(&mut self.stage, Stage::Done) {
            Stage::Ended(answer) => Poll::Ready(answer),
            _ => Poll::Pending,
        }
    }
}

impl tower::Service<Call> for XClient {
    type Response = Reply;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>;

    /// Always ready: what is not ready within is awaited by the call, within its deadline.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        tower::Service::call(&mut &*self, call)
    }
}

impl tower::Service<Call> for &XClient {
    type Response = Reply;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let client = (*self).clone();
        Box::pin(async move { client.send(call).await })
    }
}

impl fmt::Debug for XClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XClient").field("service", self.resolver().service()).finish()
    }
}
