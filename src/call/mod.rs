//! One request of a user and the answer to it.

mod block;
mod body;
mod codec;
mod inherited;
mod layer_scope;
mod metadata;
mod method;
mod packed;
mod packing;
mod pool;
mod race;
mod runtime;
mod time;
mod watched;

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

pub use self::body::{FromBody, IntoBody, Raw};
pub use self::codec::{Codec, CodecError, CodecId, CustomCodec};
pub(crate) use self::inherited::enter;
pub use self::inherited::{inherited, within};
pub(crate) use self::layer_scope::{LayerScope, PassedOn};
pub use self::metadata::{InvalidMetadata, Metadata};
pub use self::method::{InvalidMethod, MethodName};
pub(crate) use self::packed::BodyRef;
#[doc(hidden)]
pub use self::packed::Packed;
pub(crate) use self::race::Racer;
pub(crate) use self::runtime::{NO_RUNTIME, has_runtime, no_runtime};
pub(crate) use self::time::{Moment, Stamp, after, until};
pub(crate) use self::watched::{call_begins, watch_calls};
use crate::error::{Error, Fate, Kind};
use crate::instance::Address;

/// One request of a user: a method, its encoded arguments, and how it is to be made.
///
/// Cheap to clone (the body is shared), so that a retry really retries.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Call {
    /// The method's full name, such as `Foo.Sum`.
    pub method: Cow<'static, str>,
    /// How `body` is encoded, and how the reply is to be.
    pub codec: CodecId,
    /// The encoded arguments.
    pub body: Bytes,
    /// What travels beside the arguments. Default: empty.
    pub metadata: Metadata,
    /// When the call must be over, all attempts included. Default: set by the client, 10 s ahead.
    pub deadline: Option<Instant>,
    /// How long the call may take from when it is made; the earlier of this and `deadline` holds.
    pub timeout: Option<Duration>,
    /// How long one attempt may take. Default: the client's, which is none.
    pub attempt_timeout: Option<Duration>,
    /// Whether a second execution does no harm. Default: no.
    pub idempotent: bool,
    /// What consistent hashing hashes. Default: none.
    pub hash_key: Option<u64>,
    /// The one instance that the call is for: no other is tried. Default: any.
    pub only: Option<Address>,
    /// Whether an empty acknowledgement that the handler has started is answer enough. Default: no.
    pub notify: bool,
    /// Set while this is one of several copies under way.
    pub(crate) racer: Option<Racer>,
    /// Set while the call is within a stack of layers.
    pub(crate) scope: Option<LayerScope>,
}

impl Call {
    /// A call of `method` without arguments: its body is `()` in MessagePack, and the reply comes in
    /// MessagePack. [`body`](Self::body) sets an empty raw body.
    pub fn new(method: impl Into<Cow<'static, str>>) -> Self {
        Self {
            method: method.into(),
            codec: CodecId::MESSAGE_PACK,
            body: Bytes::from_static(UNIT_IN_MESSAGE_PACK),
            metadata: Metadata::default(),
            deadline: None,
            timeout: None,
            attempt_timeout: None,
            idempotent: false,
            hash_key: None,
            only: None,
            notify: false,
            racer: None,
            scope: None,
        }
    }

    /// Sets the arguments, encoded as MessagePack.
    ///
    /// # Errors
    /// `InvalidArgument`, not sent, if the value cannot be encoded.
    pub fn args<A: Serialize + ?Sized>(self, args: &A) -> Result<Self, Error> {
        self.args_in(&Codec::MessagePack, args)
    }

    /// Sets the arguments, encoded by `codec`; the reply will come in the same encoding.
    ///
    /// # Errors
    /// `InvalidArgument`, not sent, if the value cannot be encoded.
    pub fn args_in<A: Serialize + ?Sized>(
        mut self,
        codec: &Codec,
        args: &A,
    ) -> Result<Self, Error> {
        self.body = codec.encode_bytes(args).map_err(|error| not_encodable(&error))?;
        self.codec = codec.id();
        Ok(self)
    }

    /// Sets a body that is encoded already.
    #[must_use]
    pub fn body(mut self, codec: CodecId, body: impl Into<Bytes>) -> Self {
        self.codec = codec;
        self.body = body.into();
        self
    }

    /// Adds an entry of metadata.
    ///
    /// # Errors
    /// `InvalidArgument`, not sent, beyond 64 entries or 8 KiB.
    pub fn metadata(
        mut self,
        key: impl Into<String>,
        value: impl Into<String>,
    ) -> Result<Self, Error> {
        self.metadata.insert(key, value).map_err(|error| {
            Error::new(Kind::InvalidArgument, Fate::NotEncodable, error.to_string())
        })?;
        Ok(self)
    }

    /// Sets when the call must be over. Default: set by the client, 10 s ahead.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets how long the call may take from when it is made. Default: the client's, which is 10 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how long one attempt may take. Default: the client's, which is none.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Says whether a second execution does no harm, so that the call may be sent again when it is
    /// not known whether it was executed. Default: false.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// Sets what consistent hashing hashes. Default: none.
    #[must_use]
    pub fn hash_key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.hash_key = Some(hash_of(key.as_ref()));
        self
    }

    /// Names the one instance that the call is for: no other is tried. Default: any.
    #[must_use]
    pub fn only(mut self, address: Address) -> Self {
        self.only = Some(address);
        self
    }

    /// What a connection is told of it, its body apart.
    pub(crate) fn terms(&self) -> Terms<'_> {
        Terms {
            method: &self.method,
            codec: self.codec,
            metadata: &self.metadata,
            idempotent: self.idempotent,
            notify: self.notify,
        }
    }

    /// By when an attempt must be over that is made now.
    pub(crate) fn attempt_until(&self, now: Instant, deadline: Instant) -> Instant {
        match self.attempt_timeout {
            Some(timeout) => deadline.min(after(now, timeout)),
            None => deadline,
        }
    }

    /// Says whether an empty acknowledgement that the handler has started is answer enough.
    /// Default: false.
    #[must_use]
    pub fn notify(mut self, notify: bool) -> Self {
        self.notify = notify;
        self
    }
}

/// The encoding of `()`: nil.
const UNIT_IN_MESSAGE_PACK: &[u8] = &[0xc0];

/// What a connection is told of a call, its body and deadline apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(crate) method: &'a Cow<'static, str>,
    pub(crate) codec: CodecId,
    pub(crate) metadata: &'a Metadata,
    pub(crate) idempotent: bool,
    pub(crate) notify: bool,
}

/// The answer to a call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reply {
    /// How `body` is encoded: as the call's was.
    pub codec: CodecId,
    /// The encoded result.
    pub body: Bytes,
    /// What travels beside the result.
    pub metadata: Metadata,
    /// The calls in flight at the server when it answered.
    pub load: u32,
    /// Who answered, and at which attempt.
    pub(crate) from: Option<(Address, u32)>,
}

impl Reply {
    /// A reply with this body.
    pub fn new(codec: CodecId, body: impl Into<Bytes>) -> Self {
        Self { codec, body: body.into(), metadata: Metadata::default(), load: 0, from: None }
    }

    /// The address of the instance that answered.
    pub fn endpoint(&self) -> Option<&Address> {
        self.from.as_ref().map(|(address, _)| address)
    }

    /// The result, decoded by the codec that the reply names.
    ///
    /// # Errors
    /// `Internal`, executed, if the body does not decode; also if the codec is the user's own, for
    /// which [`decode_with`](Self::decode_with) serves.
    pub fn decode<R: DeserializeOwned>(&self) -> Result<R, Error> {
        match Codec::built_in(self.codec) {
            Some(codec) => self.decode_with(&codec),
            None => Err(self.undecodable(format!("its codec {} is not built in", self.codec))),
        }
    }

    /// The result, decoded by `codec`.
    ///
    /// # Errors
    /// `Internal`, executed, if the body does not decode.
    pub fn decode_with<R: DeserializeOwned>(&self, codec: &Codec) -> Result<R, Error> {
        codec.decode(&self.body).map_err(|error| self.undecodable(error.to_string()))
    }

    fn undecodable(&self, why: String) -> Error {
        let error = undecodable(&why);
        match &self.from {
            Some((address, attempt)) => error.at(address).on_attempt(*attempt),
            None => error,
        }
    }
}

/// Arguments cannot be encoded.
pub(crate) fn not_encodable(error: &CodecError) -> Error {
    Error::new(Kind::InvalidArgument, Fate::NotEncodable, error.to_string())
}

/// A reply does not decode, and why.
pub(crate) fn undecodable(why: &str) -> Error {
    Error::new(Kind::Internal, Fate::Undecodable, format!("the reply: {why}"))
}

/// FNV-1a with a final avalanche: stable across builds and machines, unlike `std`'s hasher, so that
/// two clients of different builds send one key to the same instance.
pub(crate) fn hash_of(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}
