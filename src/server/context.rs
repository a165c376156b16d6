//! What a handler may know of the call beside its arguments.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::call::{CodecId, LayerScope, Metadata, Packed};
use crate::transport::Peer;

/// What a handler may know of the call beside its arguments. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    pub(super) origin: Arc<Origin>,
    pub(super) deadline: Instant,
    pub(super) metadata: Metadata,
    pub(super) idempotent: bool,
}

/// What is the same for all calls of one method on one connection.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) method: Arc<str>,
    pub(super) peer: Arc<Peer>,
}

impl Context {
    /// The method's full name, such as `Foo.Sum`.
    pub fn method(&self) -> &str {
        &self.origin.method
    }

    /// When the caller stops waiting: the handler is dropped then.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What travels beside the arguments.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Who calls.
    pub fn peer(&self) -> &Peer {
        &self.origin.peer
    }

    /// Whether the caller says that a second execution does no harm.
    pub fn is_idempotent(&self) -> bool {
        self.idempotent
    }
}

/// A call as a handler, and a tower layer around it, sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// What there is beside the arguments.
    pub context: Context,
    /// How the arguments are encoded.
    pub codec: CodecId,
    /// The encoded arguments.
    pub body: Bytes,
    /// Set while the request is within a stack of layers.
    pub(super) scope: Option<LayerScope>,
}

/// What a handler, and a tower layer around it, answers with.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Response {
    /// The encoded result, in the request's codec.
    pub body: Bytes,
    /// What travels beside the result.
    pub metadata: Metadata,
}

impl Response {
    /// A response with this body, already encoded in the request's codec.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), metadata: Metadata::default() }
    }
}

/// A call as it comes from the connection; see [`Request`].
#[derive(Debug)]
pub struct Asked {
    pub(super) context: Context,
    pub(super) codec: CodecId,
    pub(super) body: Packed,
}

impl From<Request> for Asked {
    fn from(request: Request) -> Self {
        let Request { context, codec, body, .. } = request;
        Self { context, codec, body: Packed::Shared(body) }
    }
}

impl From<Asked> for Request {
    fn from(asked: Asked) -> Self {
        let Asked { context, codec, body } = asked;
        Self { context, codec, body: body.into_bytes(), scope: None }
    }
}

/// What a handler answered, as it goes to the connection; see [`Response`].
#[derive(Debug)]
pub struct Answered {
    pub(super) body: Packed,
    pub(super) metadata: Metadata,
}

impl Answered {
    /// With this body and no metadata.
    pub(super) fn new(body: Packed) -> Self {
        Self { body, metadata: Metadata::default() }
    }
}

impl Default for Answered {
    fn default() -> Self {
        Self::from(Response::default())
    }
}

impl From<Response> for Answered {
    fn from(response: Response) -> Self {
        let Response { body, metadata } = response;
        Self { body: Packed::Shared(body), metadata }
    }
}

impl From<Answered> for Response {
    fn from(answered: Answered) -> Self {
        let Answered { body, metadata } = answered;
        Self { body: body.into_bytes(), metadata }
    }
}

/// The state that a service's methods share, as a handler's first parameter.
#[derive(Debug)]
pub struct State<S: ?Sized>(pub Arc<S>);

impl<S: ?Sized> Clone for State<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: ?Sized> Deref for State<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}
