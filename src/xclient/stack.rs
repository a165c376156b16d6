//! A user's tower layers, boxed once.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceExt};

use super::{covered, overdue};
use crate::call::{Reply, has_runtime, no_runtime};
use crate::client::Lanes;
use crate::error::{BoxError, Error, Fate};
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

    /// Sends a request through the layers. It ends by `deadline`, wherever in them it is then.
    pub(super) async fn call(&self, request: T, deadline: Instant) -> Result<Reply, Error> {
        let mut request = Some(request);
        poll_fn(|cx| self.begin(&mut request, deadline, cx)).await?.await
    }

    /// Sends a request through the layers once an instance of them is free; what is left of it ends by
    /// `deadline`. If they are not ready, their waker is that of `cx`.
    pub(super) fn begin(
        &self,
        request: &mut Option<T>,
        deadline: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Within, Error>> {
        assert_unlocked();
        // Other threads may share this lane, and a layer may call this client within its own call.
        let taken = self.0.mine().take().or_else(|| self.0.iter().find_map(ClonePool::take));
        let Some(mut taken) = taken else {
            // Every last instance is being cloned: by other threads, or further up on this thread's stack.
            if Instant::now() >= deadline {
                return Poll::Ready(Err(overdue()));
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        let Some(stack) = taken.get_mut() else { unreachable!("it was just taken") };
        let ready = stack.poll_ready(cx);
        let Some(request) = request.take() else { unreachable!("it is not polled again") };
        let answer: Answer = match ready {
            Poll::Ready(Ok(())) => stack.call(request),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::from_boxed(error))),
            Poll::Pending => match taken.detach() {
                Some(waiting) => Box::pin(waiting.oneshot(request)),
                None => unreachable!("it was just taken"),
            },
        };
        Poll::Ready(Ok(Within { answer, deadline, timer: None }))
    }
}

/// A stack's answer, or the end of its time.
pub(super) struct Within {
    answer: Answer,
    deadline: Instant,
    /// Only once the call waits where nobody else looks after its deadline.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Within {
    /// When it ends at the latest.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Within {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert_unlocked();
        let Self { answer, deadline, timer } = &mut *self;
        let (polled, is_covered) = covered::watch(|| answer.as_mut().poll(cx));
        if let Poll::Ready(answer) = polled {
            return Poll::Ready(answer.map_err(Error::from_boxed));
        }
        if is_covered {
            return Poll::Pending;
        }
        if timer.is_none() && !has_runtime() {
            return Poll::Ready(Err(no_runtime(Fate::Unknown)));
        }
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(*deadline)));
        timer.as_mut().poll(cx).map(|()| Err(overdue()))
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
