//! How an async function becomes a method.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::Instant;
use tower::{Service as TowerService, ServiceExt};

use super::context::{Answered, Asked, Context, Request, Response, State};
use super::reply::expired;
use crate::call::{
    Codec, CodecError, CodecId, FromBody, IntoBody, LayerScope, Packed, PassedOn, enter,
};
use crate::error::{
    BoxError, Execution, Fate, Kind, Panic, Status, catch, causes, discard, foreign_kind, full_text,
};
use crate::sync::assert_unlocked;

/// What a handler's future comes to.
pub type Outcome = Result<Answered, Failure>;

/// A handler at work.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Why a request was not answered with a result; passes through tower layers as their error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Failure {
    pub(super) kind: Kind,
    pub(super) execution: Execution,
    pub(super) message: String,
}

impl Failure {
    /// The request was not started: overloaded, not allowed. `Unavailable` and `ResourceExhausted`
    /// let the client try another instance.
    pub fn rejected(kind: Kind, message: impl Into<String>) -> Self {
        Self::new(kind, Fate::Refused, message)
    }

    /// The service answers with an error.
    pub fn failed(status: Status) -> Self {
        Self::new(status.kind(), Fate::Failed, status.message())
    }

    pub(super) fn new(kind: Kind, fate: Fate, message: impl Into<String>) -> Self {
        Self { kind, execution: fate.execution(), message: message.into() }
    }

    /// What the layers around a handler failed with: the one place where erased errors come back. `passed_on` is the
    /// strongest class of the copies of the request that they passed on; `NotSent` without any.
    fn of_layers(error: BoxError, passed_on: Execution) -> Self {
        let mut failure = match causes(&*error).find_map(|cause| cause.downcast_ref::<Failure>()) {
            Some(failure) => failure.clone(),
            None => {
                let kind = foreign_kind(&*error);
                let fate = match kind {
                    _ if passed_on == Execution::NotSent => Fate::Refused,
                    Some(Kind::DeadlineExceeded) => Fate::HandlerDropped,
                    _ => Fate::Unknown,
                };
                Self::new(kind.unwrap_or(Kind::Unknown), fate, full_text(&*error))
            }
        };
        failure.execution = failure.execution.max(passed_on);
        failure
    }
}

/// A method's code, erased: takes a request, answers in its codec.
pub trait Handler: Send + Sync + 'static {
    /// Starts the handler; it runs as its future is polled.
    fn handle(&self, asked: Asked, codec: Option<Codec>) -> HandlerFuture;

    /// A seat for this handler, if it has any: its calls can take it one after another, each without
    /// an allocation. `None`, the default: each call has a box of its own.
    fn seat(&self) -> Option<Box<dyn Seat>> {
        None
    }

    /// Whether its calls always have tasks of their own, so that no connection's task ever polls one.
    /// Default: false.
    fn runs_in_task(&self) -> bool {
        false
    }
}

/// Memory in which one call of a handler after another runs.
pub trait Seat: Send {
    /// Starts a call, whose future takes the place of the last one's.
    fn start(&mut self, asked: Asked, codec: Option<Codec>);

    /// Polls the call that was started last. Its future is dropped when it is ready.
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Outcome>;
}

/// An async function that can be a method of a service with state `S`: it takes its arguments,
/// before them a [`Context`] if it wants one, and before that a [`State`] if the service has one;
/// it answers `Result<R, E>`, where whatever can be displayed is an `E`.
///
/// `Form` tells the forms apart and is inferred.
pub trait Method<S, Form>: Send + Sync + 'static {
    /// Erases the function.
    fn into_handler(self, state: Arc<S>) -> Arc<dyn Handler>;
}

macro_rules! method_form {
    ($form:ty, ($($param:ty),*), |$state:ident, $context:ident| $($arg:expr),*) => {
        impl<S, F, A, Fut, R, E> Method<S, $form> for F
        where
            S: Send + Sync + 'static,
            F: Fn($($param,)* A) -> Fut + Clone + Send + Sync + 'static,
            A: FromBody + Send + 'static,
            Fut: Future<Output = Result<R, E>> + Send + 'static,
            R: IntoBody + Send + 'static,
            E: Into<Status> + 'static,
        {
            fn into_handler(self, state: Arc<S>) -> Arc<dyn Handler> {
                Arc::new(Function(move |asked: Asked, codec: Option<Codec>| {
                    let function = self.clone();
                    let $state = Arc::clone(&state);
                    async move {
                        let Asked { context: $context, body, .. } = asked;
                        // A large body keeps a whole read alive: it goes before the handler runs.
                        let args = decode::<A>(&codec, body)?;
                        let _ = (&$state, &$context);
                        let result = function($($arg,)* args).await;
                        encode(codec, result)
                    }
                }))
            }
        }
    };
}

method_form!(fn(A), (), |_state, _context|);
method_form!(fn(Context, A), (Context), |_state, context| context);
method_form!(fn(State<S>, A), (State<S>), |state, _context| State(state));
method_form!(fn(State<S>, Context, A), (State<S>, Context), |state, context| State(state), context);

/// A function that may block and can be a method of a service with state `S`: it takes what a
/// [`Method`] takes, is not async, and runs on the runtime's blocking pool.
///
/// `Form` tells the forms apart and is inferred.
pub trait BlockingMethod<S, Form>: Send + Sync + 'static {
    /// Erases the function.
    fn into_handler(self, state: Arc<S>) -> Arc<dyn Handler>;
}

macro_rules! blocking_form {
    ($form:ty, ($($param:ty),*), |$state:ident, $context:ident| $($arg:expr),*) => {
        impl<S, F, A, R, E> BlockingMethod<S, $form> for F
        where
            S: Send + Sync + 'static,
            F: Fn($($param,)* A) -> Result<R, E> + Clone + Send + Sync + 'static,
            A: FromBody + Send + 'static,
            R: IntoBody + Send + 'static,
            E: Into<Status> + 'static,
        {
            fn into_handler(self, state: Arc<S>) -> Arc<dyn Handler> {
                let handler = Function(move |asked: Asked, codec: Option<Codec>| {
                    let function = self.clone();
                    let $state = Arc::clone(&state);
                    async move {
                        let Asked { context: $context, body, .. } = asked;
                        let args = decode::<A>(&codec, body)?;
                        let deadline = $context.deadline();
                        run_blocking(deadline, move || {
                            let _ = (&$state, &$context);
                            let result = function($($arg,)* args);
                            encode(codec, result)
                        })
                        .await
                    }
                });
                Arc::new(InTask(Arc::new(handler)))
            }
        }
    };
}

blocking_form!(fn(A), (), |_state, context|);
blocking_form!(fn(Context, A), (Context), |_state, context| context);
blocking_form!(fn(State<S>, A), (State<S>), |state, context| State(state));
blocking_form!(
    fn(State<S>, Context, A),
    (State<S>, Context),
    |state, context| State(state),
    context
);

/// Runs a function on the blocking pool, under its caller's deadline.
async fn run_blocking(
    deadline: Instant,
    run: impl FnOnce() -> Outcome + Send + 'static,
) -> Outcome {
    /// A function that has not begun when its caller leaves never begins.
    struct Queued(AbortHandle);

    impl Drop for Queued {
        fn drop(&mut self) {
            self.0.abort();
        }
    }

    let task = spawn_blocking(move || {
        if Instant::now() >= deadline { Err(expired()) } else { enter(deadline, run) }
    });
    let _queued = Queued(task.abort_handle());
    task.await.unwrap_or_else(|error| {
        Err(match Panic::of_task(error) {
            Some(panic) => panicked(&panic),
            None => Failure::new(Kind::Unavailable, Fate::HandlerDropped, "the runtime ended"),
        })
    })
}

/// A handler whose calls always have tasks.
pub(super) struct InTask(pub(super) Arc<dyn Handler>);

impl Handler for InTask {
    fn handle(&self, asked: Asked, codec: Option<Codec>) -> HandlerFuture {
        self.0.handle(asked, codec)
    }

    fn runs_in_task(&self) -> bool {
        true
    }
}

impl<F> Handler for F
where
    F: Fn(Asked, Option<Codec>) -> HandlerFuture + Send + Sync + 'static,
{
    fn handle(&self, asked: Asked, codec: Option<Codec>) -> HandlerFuture {
        self(asked, codec)
    }
}

/// A handler whose future's type is known.
struct Function<F>(F);

impl<F, Fut> Handler for Function<F>
where
    F: Fn(Asked, Option<Codec>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    fn handle(&self, asked: Asked, codec: Option<Codec>) -> HandlerFuture {
        Box::pin((self.0)(asked, codec))
    }

    fn seat(&self) -> Option<Box<dyn Seat>> {
        Some(Box::new(Seated { function: self.0.clone(), future: Box::pin(None) }))
    }
}

struct Seated<F, Fut> {
    function: F,
    future: Pin<Box<Option<Fut>>>,
}

impl<F, Fut> Seat for Seated<F, Fut>
where
    F: Fn(Asked, Option<Codec>) -> Fut + Send,
    Fut: Future<Output = Outcome> + Send,
{
    fn start(&mut self, asked: Asked, codec: Option<Codec>) {
        let future = (self.function)(asked, codec);
        self.future.set(Some(future));
    }

    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Outcome> {
        let Some(future) = self.future.as_mut().as_pin_mut() else { return Poll::Pending };
        let polled = future.poll(cx);
        if polled.is_ready() {
            self.future.set(None);
        }
        polled
    }
}

fn decode<A: FromBody>(codec: &Option<Codec>, body: Packed) -> Result<A, Failure> {
    A::from_packed(codec.as_ref(), body).map_err(|error: CodecError| {
        Failure::rejected(Kind::InvalidArgument, format!("the arguments: {error}"))
    })
}

fn encode<R: IntoBody, E: Into<Status>>(codec: Option<Codec>, result: Result<R, E>) -> Outcome {
    let result = result.map_err(|error| Failure::failed(error.into()))?;
    let body = result.into_packed(codec.as_ref()).map_err(|error| {
        Failure::new(Kind::Internal, Fate::Failed, format!("the result: {error}"))
    })?;
    Ok(Answered::new(body))
}

/// A method as a tower service, for layers to wrap.
#[derive(Clone)]
pub struct MethodService {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) codecs: Arc<Vec<Codec>>,
}

impl TowerService<Request> for MethodService {
    type Response = Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let codec = codec_of(request.codec, &self.codecs);
        let handler = Arc::clone(&self.handler);
        Box::pin(async move {
            let mut passed = match request.scope.as_ref().map(LayerScope::pass_on) {
                Some(Some(passed)) => passed,
                Some(None) => {
                    let why = "a layer passed the request on after it had refused it";
                    return Err(BoxError::from(Failure::rejected(Kind::Cancelled, why)));
                }
                None => PassedOn::uncounted(),
            };
            let answer = handler.handle(request.into(), codec).await;
            if let Err(failure) = &answer {
                passed.failed(failure.execution);
            }
            Ok(Response::from(answer?))
        })
    }
}

impl fmt::Debug for MethodService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MethodService")
    }
}

/// The codec of an id: built in, or one of the user's own.
pub(super) fn codec_of(id: CodecId, own: &[Codec]) -> Option<Codec> {
    Codec::built_in(id).or_else(|| own.iter().find(|codec| codec.id() == id).cloned())
}

/// A stack of layers around a method. A stack that is not ready is awaited within the call.
pub(super) struct Layered<T> {
    pub(super) stack: T,
    /// What its handler says of [`Handler::runs_in_task`].
    pub(super) in_task: bool,
}

impl<T> Handler for Layered<T>
where
    T: TowerService<Request, Response = Response> + Clone + Send + Sync + 'static,
    T::Error: Into<BoxError> + Send,
    T::Future: Send,
{
    fn handle(&self, asked: Asked, _: Option<Codec>) -> HandlerFuture {
        let stack = self.stack.clone();
        Box::pin(async move {
            let scope = LayerScope::new(asked.context.deadline);
            let request = Request { scope: Some(scope.clone()), ..Request::from(asked) };
            let answer = stack.oneshot(request).await;
            answer
                .map(Answered::from)
                .map_err(|error| Failure::of_layers(error.into(), scope.close()))
        })
    }

    fn runs_in_task(&self) -> bool {
        self.in_task
    }
}

/// A handler whose panic is a value: it fails its own call and nothing else.
pub(super) struct Guarded {
    work: Work,
    /// Calls that it makes end by then.
    deadline: Instant,
}

enum Work {
    Seated(Box<dyn Seat>),
    Boxed(HandlerFuture),
    /// It is started by its first poll, in its own task.
    Unstarted(Box<Unstarted>),
    /// It panicked, or was taken out: nothing is left of it.
    Over,
}

struct Unstarted {
    handler: Arc<dyn Handler>,
    asked: Asked,
    codec: Option<Codec>,
}

impl Work {
    /// Polls it; its first poll starts it.
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Outcome> {
        if let Self::Unstarted(_) = self
            && let Self::Unstarted(unstarted) = mem::replace(self, Self::Over)
        {
            let Unstarted { handler, asked, codec } = *unstarted;
            *self = Self::Boxed(handler.handle(asked, codec));
        }
        match self {
            Self::Seated(seat) => seat.poll(cx),
            Self::Boxed(future) => future.as_mut().poll(cx),
            Self::Unstarted(_) | Self::Over => Poll::Pending,
        }
    }
}

impl Guarded {
    /// Starts a handler in the seat given, or in one of its own, if it has any, and polls it in place.
    pub(super) fn start(
        seat: Option<Box<dyn Seat>>,
        handler: &dyn Handler,
        asked: Asked,
        codec: Option<Codec>,
        deadline: Instant,
        cx: &mut TaskContext<'_>,
    ) -> (Self, Poll<Outcome>) {
        let mut guarded = Self { work: Work::Over, deadline };
        let polled = guarded.run(|work| {
            *work = match seat.or_else(|| handler.seat()) {
                Some(mut seat) => {
                    seat.start(asked, codec);
                    Work::Seated(seat)
                }
                None => Work::Boxed(handler.handle(asked, codec)),
            };
            work.poll(cx)
        });
        (guarded, polled)
    }

    /// A handler that is started by its first poll.
    pub(super) fn later(
        handler: Arc<dyn Handler>,
        asked: Asked,
        codec: Option<Codec>,
        deadline: Instant,
    ) -> Self {
        let unstarted = Unstarted { handler, asked, codec };
        Self { work: Work::Unstarted(Box::new(unstarted)), deadline }
    }

    /// Its seat, for the next call, once it has ended.
    pub(super) fn leave(&mut self) -> Option<Box<dyn Seat>> {
        match mem::replace(&mut self.work, Work::Over) {
            Work::Seated(seat) => Some(seat),
            other => {
                discard(other);
                None
            }
        }
    }

    /// Runs the user's code. A handler that panics is never polled again, so nothing half-done is seen.
    #[inline]
    fn run(&mut self, run: impl FnOnce(&mut Work) -> Poll<Outcome>) -> Poll<Outcome> {
        assert_unlocked();
        let Self { work, deadline } = self;
        match catch(|| enter(*deadline, || run(work))) {
            Ok(polled) => polled,
            Err(panic) => {
                discard(mem::replace(&mut self.work, Work::Over));
                Poll::Ready(Err(panicked(&panic)))
            }
        }
    }
}

impl Future for Guarded {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Outcome> {
        self.run(|work| work.poll(cx))
    }
}

impl Drop for Guarded {
    /// A handler's values may panic when they are dropped, while other calls are under way.
    #[inline]
    fn drop(&mut self) {
        if !matches!(self.work, Work::Over) {
            discard(mem::replace(&mut self.work, Work::Over));
        }
    }
}

fn panicked(panic: &Panic) -> Failure {
    let message = format!("the handler panicked: {}", panic.text());
    Failure::new(Kind::Internal, Fate::Panicked, message)
}
