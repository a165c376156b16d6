//! How arguments and results become bytes.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::packed::Packed;
use super::packing::Packing;
use crate::sync::assert_unlocked;

/// The number of a codec on the wire: 0 raw, 1 MessagePack, 2 JSON; a user's own from 128 up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodecId(pub u8);

impl CodecId {
    /// Bytes as they are.
    pub const RAW: Self = Self(0);
    /// MessagePack with field names.
    pub const MESSAGE_PACK: Self = Self(1);
    /// JSON.
    pub const JSON: Self = Self(2);
}

impl fmt::Display for CodecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RAW => f.write_str("raw"),
            Self::MESSAGE_PACK => f.write_str("MessagePack"),
            Self::JSON => f.write_str("JSON"),
            Self(id) => write!(f, "{id}"),
        }
    }
}

/// A value could not be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{codec}: {message}")]
pub struct CodecError {
    codec: CodecId,
    message: String,
}

impl CodecError {
    /// An error of this codec, with the reason in words.
    pub fn new(codec: CodecId, reason: impl fmt::Display) -> Self {
        Self { codec, message: reason.to_string() }
    }
}

/// How deep values may nest in MessagePack: as deep as serde_json lets them. Deeper ones would
/// overflow a thread's stack, which ends the process.
const MAX_DEPTH: usize = 128;

/// How arguments and results become bytes.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Codec {
    /// MessagePack with field names: compact, and tolerant of fields that were added. The default.
    #[default]
    MessagePack,
    /// JSON: for the command and for other languages.
    Json,
    /// The user's own.
    Custom(Arc<dyn CustomCodec>),
}

/// A codec of the user's own, for [`Codec::Custom`].
///
/// # Contract
/// `encode` appends to `out` and touches nothing before it. `decode` calls `visit` exactly once
/// with a deserializer over the whole of `body`, and returns what `visit` returned. Neither blocks.
pub trait CustomCodec: Send + Sync + 'static {
    /// Its number on the wire, from 128 up, the same in clients and servers.
    fn id(&self) -> CodecId;

    /// Appends `value` to `out`.
    ///
    /// # Errors
    /// If the value has no representation in this encoding.
    fn encode(
        &self,
        value: &dyn erased_serde::Serialize,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError>;

    /// Reads one value from `body`.
    ///
    /// # Errors
    /// If `body` is not this encoding, or `visit` fails.
    fn decode(
        &self,
        body: &[u8],
        visit: &mut dyn FnMut(
            &mut dyn erased_serde::Deserializer<'_>,
        ) -> Result<(), erased_serde::Error>,
    ) -> Result<(), CodecError>;
}

impl Codec {
    /// The codec of an id, if it is built in and not raw (raw bodies are not values).
    pub fn built_in(id: CodecId) -> Option<Self> {
        match id {
            CodecId::MESSAGE_PACK => Some(Self::MessagePack),
            CodecId::JSON => Some(Self::Json),
            _ => None,
        }
    }

    /// Its number on the wire.
    pub fn id(&self) -> CodecId {
        match self {
            Self::MessagePack => CodecId::MESSAGE_PACK,
            Self::Json => CodecId::JSON,
            Self::Custom(codec) => codec.id(),
        }
    }

    /// Appends `value` to `out`.
    ///
    /// # Errors
    /// If the value has no representation; `out` may then hold a part of it.
    pub fn encode<T: Serialize + ?Sized>(
        &self,
        value: &T,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        assert_unlocked();
        match self {
            Self::MessagePack => rmp_serde::encode::write_named(out, value)
                .map_err(|error| CodecError::new(self.id(), error)),
            Self::Json => {
                serde_json::to_writer(out, value).map_err(|error| CodecError::new(self.id(), error))
            }
            Self::Custom(codec) => codec.encode(&value, out),
        }
    }

    /// `value` in bytes of their own, through a buffer that each thread keeps.
    ///
    /// Values of up to 1 KiB that one thread encodes share blocks of 8 KiB: who keeps one of them for
    /// long keeps its block.
    ///
    /// # Errors
    /// If the value has no representation.
    pub fn encode_bytes<T: Serialize + ?Sized>(&self, value: &T) -> Result<Bytes, CodecError> {
        self.encode_packed(value).map(Packed::into_bytes)
    }

    /// `value` as a body; see [`encode_bytes`](Self::encode_bytes).
    pub(crate) fn encode_packed<T: Serialize + ?Sized>(
        &self,
        value: &T,
    ) -> Result<Packed, CodecError> {
        assert_unlocked();
        let mut packing = Packing::new();
        match self {
            Self::MessagePack => rmp_serde::encode::write_named(&mut packing, value)
                .map_err(|error| CodecError::new(self.id(), error))?,
            Self::Json | Self::Custom(_) => self.encode(value, packing.buffer())?,
        }
        Ok(packing.finish())
    }

    /// Reads one value from `body`.
    ///
    /// # Errors
    /// If `body` is not this encoding of a `T`.
    pub fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, CodecError> {
        assert_unlocked();
        match self {
            Self::MessagePack => {
                // Read where it lies: a reader of any other kind has a buffer of its own.
                let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
                deserializer.set_max_depth(MAX_DEPTH);
                let value = T::deserialize(&mut deserializer)
                    .map_err(|error| CodecError::new(self.id(), error))?;
                // What follows the value is an error, as it is in JSON. The reader does not tell what
                // it has left: nothing, if the next value ends before it begins.
                match IgnoredAny::deserialize(&mut deserializer) {
                    Err(rmp_serde::decode::Error::InvalidMarkerRead(error))
                        if error.kind() == io::ErrorKind::UnexpectedEof =>
                    {
                        Ok(value)
                    }
                    _ => Err(CodecError::new(self.id(), "there are bytes after the value")),
                }
            }
            Self::Json => {
                serde_json::from_slice(body).map_err(|error| CodecError::new(self.id(), error))
            }
            Self::Custom(codec) => {
                let mut value = None;
                codec.decode(body, &mut |deserializer| {
                    value = Some(erased_serde::deserialize(deserializer)?);
                    Ok(())
                })?;
                value.ok_or_else(|| CodecError::new(self.id(), "no value was read"))
            }
        }
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Codec({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_a_body_and_nothing_after_it() {
        for codec in [Codec::MessagePack, Codec::Json] {
            let mut body = Vec::new();
            codec.encode(&(7, "x"), &mut body).unwrap();
            assert_eq!(codec.decode::<(u8, String)>(&body), Ok((7, "x".to_owned())));
            body.push(0);
            assert!(codec.decode::<(u8, String)>(&body).is_err(), "{codec:?}");
            assert!(codec.decode::<(u8, String)>(&[]).is_err(), "{codec:?}");
        }
    }
}
