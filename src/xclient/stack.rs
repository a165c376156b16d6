//! A user's tower layers, boxed once.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::task::coop;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceExt};

use super::covered;
use crate::call::{LayerScope, Reply, has_runtime, no_runtime};
use crate::client::Lanes;
use crate::error::{BoxError, Error, Execution, Fate, Kind};
use crate::sync::{ClonePool, assert_unlocked};

pub(super) type Boxed<T> = BoxCloneService<T, Reply, BoxError>;
type Answer = Pin<Box<dyn Future<Output = Result<Reply, BoxError>> + Send>>;

/// A user's layers around one of ours. A stack that is not ready is awaited within the call.
///
/// Why is there a pool for each thread? Cloning a boxed stack for every call costs more than the rest of the call.
/// A call takes an instance out of its thread's pool, since a layer may call this client in turn, and puts it back.
/// If the instance is not ready, the call keeps it, and with it its place in a queue.
pub(super) struct Stack<T>(Lanes<ClonePool<Boxed<T>>>);

impl<T: Send + 'static> Stack<T> {
    /// `base` within `layers`, the first of which is the outermost; `None` without layers.
    pub(super) fn new<S>(base: S, layers: Vec<BoxedLayer<T>>) -> Option<Self>
    where
        S: Service<T, Response = Reply, Error = Error> + Clone + Send + 'static,
        S::Future: Send,
    {
        if layers.is_empty() {
            return None;
        }
        let base = BoxCloneService::new(base.map_err(BoxError::from));
        let stack = layers.into_iter().rev().fold(base, |inner, layer| layer(inner));
        Some(Self(Lanes::new(|| ClonePool::new(stack.clone()))))
    }

    /// Sends a request through the layers. It ends by the deadline of its `scope`, wherever in them it is then.
    pub(super) async fn call(&self, request: T, scope: LayerScope) -> Result<Reply, Error> {
        let mut request = Some(request);
        poll_fn(|cx| self.begin(&mut request, &scope, cx)).await?.await
    }

    /// Sends a request through the layers once an instance of them is free; what is left of it ends by
    /// the deadline of its `scope`. If they are not ready, their waker is that of `cx`.
    pub(super) fn begin(
        &self,
        request: &mut Option<T>,
        scope: &LayerScope,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Within, Error>> {
        assert_unlocked();
        // Other threads may share this lane, and a layer may call this client within its own call.
        let taken = self.0.mine().take().or_else(|| self.0.iter().find_map(ClonePool::take));
        let Some(mut taken) = taken else {
            // Every last instance is being cloned: by other threads, or further up on this thread's stack.
            if Instant::now() >= scope.deadline() {
                return Poll::Ready(Err(overdue(scope)));
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        let Some(stack) = taken.get_mut() else { unreachable!("it was just taken") };
        let (called, _) = covered::watch(scope, cx.waker(), || {
            stack.poll_ready(cx).map_ok(|()| request.take().map(|request| stack.call(request)))
        });
        let answer: Answer = match called {
            Poll::Ready(Ok(Some(answer))) => answer,
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(Error::of_layers(error, scope.close())));
            }
            Poll::Pending => match (taken.detach(), request.take()) {
                (Some(waiting), Some(request)) => Box::pin(waiting.oneshot(request)),
                _ => unreachable!("it was just taken, and is not polled again"),
            },
            Poll::Ready(Ok(None)) => unreachable!("it is not polled again"),
        };
        Poll::Ready(Ok(Within { answer, scope: scope.clone(), timer: None }))
    }
}

/// A stack's answer, or the end of its time.
pub(super) struct Within {
    answer: Answer,
    scope: LayerScope,
    /// Only once the call waits where nobody else looks after its deadline.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for Within {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { answer, scope, timer } = &mut *self;
        let (polled, is_covered) = covered::watch(scope, cx.waker(), || answer.as_mut().poll(cx));
        match polled {
            Poll::Ready(Ok(_)) if Instant::now() >= scope.deadline() => {
                Poll::Ready(Err(overdue(scope)))
            }
            Poll::Ready(ended) => {
                Poll::Ready(ended.map_err(|error| Error::of_layers(error, scope.close())))
            }
            Poll::Pending if is_covered => Poll::Pending,
            Poll::Pending if timer.is_none() && !has_runtime() => {
                let fate = match scope.close() {
                    Execution::NotSent => Fate::NeverWritten,
                    _ => Fate::Unknown,
                };
                Poll::Ready(Err(no_runtime(fate)))
            }
            Poll::Pending => {
                let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(scope.deadline())));
                // Layers that have spent the task's budget do not hold up the timer.
                let timer = pin!(coop::unconstrained(timer.as_mut()));
                timer.poll(cx).map(|()| Err(overdue(scope)))
            }
        }
    }
}

/// The deadline came while the layers had the call.
fn overdue(scope: &LayerScope) -> Error {
    match scope.close() {
        Execution::NotSent => {
            let why = "the deadline passed while the call waited in a layer";
            Error::new(Kind::DeadlineExceeded, Fate::NeverWritten, why)
        }
        class => {
            let why = "no answer came in time";
            Error::new(Kind::DeadlineExceeded, Fate::Overdue, why).after(class)
        }
    }
}

pub(super) type BoxedLayer<T> = Box<dyn FnOnce(Boxed<T>) -> Boxed<T> + Send>;

/// Erases a layer's type.
pub(super) fn boxed<T, L>(layer: L) -> BoxedLayer<T>
where
    T: Send + 'static,
    L: Layer<Boxed<T>> + Send + 'static,
    L::Service: Service<T, Response = Reply> + Clone + Send + 'static,
    <L::Service as Service<T>>::Error: Into<BoxError>,
    <L::Service as Service<T>>::Future: Send,
{
    Box::new(move |inner| BoxCloneService::new(layer.layer(inner).map_err(Into::into)))
}
