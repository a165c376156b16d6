//! A user's tower layers, boxed once.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceExt};

use super::{covered, overdue};
use crate::call::Reply;
use crate::client::Lanes;
use crate::error::{BoxError, Error};
use crate::sync::Mutex;

pub(super) type Boxed<T> = BoxCloneService<T, Reply, BoxError>;
type Answer = Pin<Box<dyn Future<Output = Result<Reply, BoxError>> + Send>>;

/// A user's layers around one of ours. A stack that is not ready is awaited within the call.
///
/// Why is there an instance for each thread? To clone a boxed stack for every call costs more than
/// all else in it. A call takes its thread's instance if that is ready at once; if not, the call takes
/// it along, with whatever place in a line it has, and leaves a fresh clone.
pub(super) struct Stack<T>(Lanes<Mutex<Boxed<T>>>);

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
        Some(Self(Lanes::new(|| Mutex::new(stack.clone()))))
    }

    /// Sends a request through the layers. It ends by `deadline`, wherever in them it is then.
    pub(super) async fn call(&self, request: T, deadline: Instant) -> Result<Reply, Error> {
        let mut request = Some(request);
        let begun = poll_fn(|cx| {
            Poll::Ready(request.take().map(|request| self.begin(request, deadline, cx)))
        });
        match begun.await {
            Some(within) => within?.await,
            None => unreachable!("it is polled once"),
        }
    }

    /// Sends a request through the layers; what is left of it ends by `deadline`. If they are not ready,
    /// their waker is that of `cx`.
    pub(super) fn begin(
        &self,
        request: T,
        deadline: Instant,
        cx: &mut Context<'_>,
    ) -> Result<Within, Error> {
        // Two threads with one lane: whoever comes second clones, from another lane if one is free.
        // The lock is held while layers' `poll_ready` and `call` run, and over no await: a layer that
        // polls this client's calls within its own `call` would wait for itself.
        let answer = match self.0.mine().try_lock() {
            None => Box::pin(self.clone_any().oneshot(request)),
            Some(mut stack) => match stack.poll_ready(cx) {
                Poll::Ready(Ok(())) => stack.call(request),
                Poll::Ready(Err(error)) => return Err(Error::from_boxed(error)),
                Poll::Pending => {
                    let fresh = stack.clone();
                    let waiting = std::mem::replace(&mut *stack, fresh);
                    Box::pin(waiting.oneshot(request))
                }
            },
        };
        Ok(Within { answer, deadline, timer: None })
    }

    #[cold]
    fn clone_any(&self) -> Boxed<T> {
        let free = self.0.iter().find_map(Mutex::try_lock);
        free.unwrap_or_else(|| self.0.mine().lock()).clone()
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
        let Self { answer, deadline, timer } = &mut *self;
        let (polled, is_covered) = covered::watch(|| answer.as_mut().poll(cx));
        if let Poll::Ready(answer) = polled {
            return Poll::Ready(answer.map_err(Error::from_boxed));
        }
        if is_covered {
            return Poll::Pending;
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
