//! What may be a method's argument or result: any serde value, or bytes as they are.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, CodecError, CodecId, Packed};

/// Bytes as they are, whatever codec the call names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw(pub Bytes);

/// What a body can be decoded to: every `DeserializeOwned`, and [`Raw`].
pub trait FromBody: Sized {
    /// Reads the body; `codec` is `None` for a raw one.
    ///
    /// # Errors
    /// If the body is not an encoding of this type.
    fn from_body(codec: Option<&Codec>, body: &Bytes) -> Result<Self, CodecError>;

    /// The same, without an allocation or a count of references for a small one.
    #[doc(hidden)]
    fn from_packed(codec: Option<&Codec>, body: Packed) -> Result<Self, CodecError> {
        Self::from_body(codec, &body.into_bytes())
    }
}

/// What can be encoded as a body: every `Serialize`, and [`Raw`].
pub trait IntoBody {
    /// Makes the body; `codec` is `None` for a raw one.
    ///
    /// # Errors
    /// If the value has no such encoding.
    fn into_body(self, codec: Option<&Codec>) -> Result<Bytes, CodecError>;

    /// The same, without an allocation or a count of references for a small one.
    #[doc(hidden)]
    fn into_packed(self, codec: Option<&Codec>) -> Result<Packed, CodecError>
    where
        Self: Sized,
    {
        self.into_body(codec).map(Packed::Shared)
    }
}

impl<T: DeserializeOwned> FromBody for T {
    fn from_body(codec: Option<&Codec>, body: &Bytes) -> Result<Self, CodecError> {
        codec.ok_or_else(not_a_value)?.decode(body)
    }

    fn from_packed(codec: Option<&Codec>, body: Packed) -> Result<Self, CodecError> {
        codec.ok_or_else(not_a_value)?.decode(body.as_slice())
    }
}

impl<T: Serialize> IntoBody for T {
    fn into_body(self, codec: Option<&Codec>) -> Result<Bytes, CodecError> {
        codec.ok_or_else(not_a_value)?.encode_bytes(&self)
    }

    fn into_packed(self, codec: Option<&Codec>) -> Result<Packed, CodecError> {
        codec.ok_or_else(not_a_value)?.encode_packed(&self)
    }
}

impl FromBody for Raw {
    fn from_body(_: Option<&Codec>, body: &Bytes) -> Result<Self, CodecError> {
        Ok(Self(body.clone()))
    }
}

impl IntoBody for Raw {
    fn into_body(self, _: Option<&Codec>) -> Result<Bytes, CodecError> {
        Ok(self.0)
    }
}

fn not_a_value() -> CodecError {
    CodecError::new(CodecId::RAW, "a raw body where a value is expected")
}
