//! A named set of methods.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tower::Layer;
use tower::Service as TowerService;

use super::context::{Request, Response};
use super::handler::{BlockingMethod, Handler, InTask, Layered, Method, MethodService};
use crate::call::{Codec, MethodName};
use crate::error::BoxError;
use crate::instance::{InvalidServiceName, ServiceName};

/// A named set of methods, each an async function.
///
/// ```
/// # use srpc::Service;
/// async fn sum((a, b): (i64, i64)) -> Result<i64, &'static str> {
///     a.checked_add(b).ok_or("too large")
/// }
///
/// let foo = Service::new("Foo").method("Sum", sum);
/// ```
pub struct Service<S = ()> {
    name: String,
    state: Arc<S>,
    codecs: Arc<Vec<Codec>>,
    methods: BTreeMap<String, Arc<dyn Handler>>,
}

impl Service {
    /// A service without state.
    pub fn new(name: impl Into<String>) -> Self {
        Self::with_state(name, ())
    }
}

impl<S: Send + Sync + 'static> Service<S> {
    /// A service whose methods share `state`: they take it as a `State<S>`.
    pub fn with_state(name: impl Into<String>, state: impl Into<Arc<S>>) -> Self {
        Self {
            name: name.into(),
            state: state.into(),
            codecs: Arc::default(),
            methods: BTreeMap::new(),
        }
    }

    /// Adds a method: an async function of its arguments, before them a `Context` if it wants one,
    /// and before that a `State<S>`. A method of the same name is replaced.
    #[must_use]
    pub fn method<Form>(mut self, name: impl Into<String>, function: impl Method<S, Form>) -> Self {
        self.methods.insert(name.into(), function.into_handler(Arc::clone(&self.state)));
        self
    }

    /// Adds a method whose calls always have tasks of their own: the task of their connection never polls
    /// one. It is for a method that now and then blocks its thread or computes for long. Without this mark
    /// a server finds out by itself, as `docs/DESIGN.md` says. A task that blocks still takes a thread of
    /// the runtime; [`blocking_method`](Self::blocking_method) takes one of the blocking pool.
    #[must_use]
    pub fn method_in_task<Form>(
        mut self,
        name: impl Into<String>,
        function: impl Method<S, Form>,
    ) -> Self {
        let handler = function.into_handler(Arc::clone(&self.state));
        self.methods.insert(name.into(), Arc::new(InTask(handler)));
        self
    }

    /// Adds a method that blocks: a function that is not async. It runs on the runtime's blocking pool.
    /// Calls that it makes by `Handle::block_on` end by its caller's deadline, as in other handlers. It is
    /// not started once that has passed. Once it runs, it cannot be stopped: if its caller leaves, it keeps
    /// its thread, of which the pool has 512 by default.
    ///
    /// ```
    /// # use srpc::Service;
    /// let files = Service::new("Files").blocking_method("Size", |path: String| {
    ///     std::fs::metadata(path).map(|file| file.len()).map_err(|error| error.to_string())
    /// });
    /// ```
    #[must_use]
    pub fn blocking_method<Form>(
        mut self,
        name: impl Into<String>,
        function: impl BlockingMethod<S, Form>,
    ) -> Self {
        self.methods.insert(name.into(), function.into_handler(Arc::clone(&self.state)));
        self
    }

    /// Adds a codec of one's own; calls before this one are not affected. Default: MessagePack,
    /// JSON and raw bodies.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        Arc::make_mut(&mut self.codecs).push(codec);
        self
    }

    /// Wraps every method added so far in a tower layer.
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<MethodService>,
        L::Service: TowerService<Request, Response = Response> + Clone + Send + Sync + 'static,
        <L::Service as TowerService<Request>>::Error: Into<BoxError> + Send,
        <L::Service as TowerService<Request>>::Future: Send,
    {
        for handler in self.methods.values_mut() {
            let method =
                MethodService { handler: Arc::clone(handler), codecs: Arc::clone(&self.codecs) };
            let in_task = handler.runs_in_task();
            *handler = Arc::new(Layered { stack: layer.layer(method), in_task });
        }
        self
    }

    /// The parts that a server takes, checked.
    pub(super) fn into_parts(self) -> Result<Parts, InvalidService> {
        let name: ServiceName = self.name.parse()?;
        for method in self.methods.keys() {
            if !MethodName::is_valid_part(method) {
                return Err(InvalidService::Method(method.clone()));
            }
        }
        Ok(Parts { name, methods: self.methods, codecs: self.codecs })
    }
}

/// A service without its state's type.
pub(super) struct Parts {
    pub(super) name: ServiceName,
    pub(super) methods: BTreeMap<String, Arc<dyn Handler>>,
    pub(super) codecs: Arc<Vec<Codec>>,
}

/// A service cannot be offered under its names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidService {
    /// The service's name breaks the rule.
    #[error(transparent)]
    Name(#[from] InvalidServiceName),
    /// A method's name breaks the rule.
    #[error("{0:?} is no method name: 1 to 126 of [A-Za-z0-9_-]")]
    Method(String),
}

impl<S> fmt::Debug for Service<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("methods", &self.methods.keys())
            .finish()
    }
}
