//! A user's tower layers, boxed once.

use parking_lot::Mutex;
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceExt};

use crate::call::Reply;
use crate::error::{BoxError, Error};

pub(super) type Boxed<T> = BoxCloneService<T, Reply, BoxError>;

/// A user's layers around one of ours. A stack that is not ready is awaited within the call.
pub(super) struct Stack<T>(Mutex<Boxed<T>>);

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
        Some(Self(Mutex::new(stack)))
    }

    pub(super) async fn call(&self, request: T) -> Result<Reply, Error> {
        let stack = self.0.lock().clone();
        stack.oneshot(request).await.map_err(Error::from_boxed)
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
