//! What a call frame carries.

use super::WireError;
use super::wire::{Fields, put_entries, text};
use crate::call::{CodecId, Metadata};

/// How a call names its method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodRef<'a> {
    /// By its full name.
    Name(&'a str),
    /// By its full name, to be remembered under a number for the rest of the connection.
    Define(u8, &'a str),
    /// By a number given before.
    Number(u8),
}

/// What a call frame carries before its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallHead<'a> {
    /// The method.
    pub method: MethodRef<'a>,
    /// How the body is encoded.
    pub codec: CodecId,
    /// How long the caller still waits, in milliseconds. 0: no longer.
    pub remaining_ms: u32,
    /// What travels beside the body.
    pub metadata: Metadata,
}

/// How a call names its method, on the wire.
const NAME: u8 = 0;
const DEFINE: u8 = 1;
const NUMBER: u8 = 2;

/// A method that was called before by the same name, or how a call names it.
pub(crate) enum Named<'a> {
    Known(usize),
    Anew(MethodRef<'a>),
}

/// What follows the method in a call frame.
pub(crate) struct CallRest<'a> {
    pub(crate) codec: CodecId,
    pub(crate) remaining_ms: u32,
    pub(crate) metadata: Metadata,
    pub(crate) body: &'a [u8],
}

/// Appends a call's payload. The method's name must not be longer than 255 bytes.
pub fn encode_call(out: &mut Vec<u8>, head: &CallHead<'_>, body: &[u8]) {
    match head.method {
        MethodRef::Name(name) => {
            out.extend_from_slice(&[NAME, name.len() as u8]);
            out.extend_from_slice(name.as_bytes());
        }
        MethodRef::Define(number, name) => {
            out.extend_from_slice(&[DEFINE, number, name.len() as u8]);
            out.extend_from_slice(name.as_bytes());
        }
        MethodRef::Number(number) => out.extend_from_slice(&[NUMBER, number]),
    }
    // In one piece: each write of its own would ask again whether there is room.
    let [a, b, c, d] = head.remaining_ms.to_be_bytes();
    out.extend_from_slice(&[head.codec.0, a, b, c, d, head.metadata.len() as u8]);
    put_entries(out, &head.metadata);
    out.extend_from_slice(body);
}

/// Reads a call's payload: its head, and the body after it.
///
/// # Errors
/// If the payload breaks a rule; the connection cannot go on then.
pub fn decode_call(payload: &[u8]) -> Result<(CallHead<'_>, &[u8]), WireError> {
    let mut fields = Fields(payload);
    let method = match fields.u8()? {
        NAME => MethodRef::Name(name(&mut fields)?),
        how => numbered(how, &mut fields)?,
    };
    let CallRest { codec, remaining_ms, metadata, body } = rest(fields)?;
    Ok((CallHead { method, codec, remaining_ms, metadata }, body))
}

/// Reads a call's payload. A method that is called by one of the names that are `known` is told by its
/// place among them: to look at its bytes is less than to read them as text.
pub(crate) fn decode_call_of<'a, 'k>(
    payload: &'a [u8],
    known: impl IntoIterator<Item = &'k str>,
) -> Result<(Named<'a>, CallRest<'a>), WireError> {
    let mut fields = Fields(payload);
    let method = match fields.u8()? {
        NAME => {
            let len = fields.u8()?.into();
            let name = fields.bytes(len)?;
            match known.into_iter().position(|known| known.as_bytes() == name) {
                Some(at) => Named::Known(at),
                None => Named::Anew(MethodRef::Name(text(name)?)),
            }
        }
        how => Named::Anew(numbered(how, &mut fields)?),
    };
    Ok((method, rest(fields)?))
}

fn numbered<'a>(how: u8, fields: &mut Fields<'a>) -> Result<MethodRef<'a>, WireError> {
    match how {
        DEFINE => Ok(MethodRef::Define(fields.u8()?, name(fields)?)),
        NUMBER => Ok(MethodRef::Number(fields.u8()?)),
        _ => Err(WireError::Value("how a call names its method")),
    }
}

fn rest(mut fields: Fields<'_>) -> Result<CallRest<'_>, WireError> {
    let (codec, remaining_ms) = (CodecId(fields.u8()?), fields.u32()?);
    let metadata = fields.metadata()?;
    Ok(CallRest { codec, remaining_ms, metadata, body: fields.0 })
}

fn name<'a>(fields: &mut Fields<'a>) -> Result<&'a str, WireError> {
    let len = fields.u8()?.into();
    fields.text(len)
}
