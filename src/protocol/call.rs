//! What a call frame carries.

use super::WireError;
use super::wire::{Fields, put_metadata};
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

/// Appends a call's payload. The method's name must not be longer than 255 bytes.
pub fn encode_call(out: &mut Vec<u8>, head: &CallHead<'_>, body: &[u8]) {
    let name = match head.method {
        MethodRef::Name(name) => {
            out.push(0);
            Some(name)
        }
        MethodRef::Define(number, name) => {
            out.extend_from_slice(&[1, number]);
            Some(name)
        }
        MethodRef::Number(number) => {
            out.extend_from_slice(&[2, number]);
            None
        }
    };
    if let Some(name) = name {
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
    }
    out.push(head.codec.0);
    out.extend_from_slice(&head.remaining_ms.to_be_bytes());
    put_metadata(out, &head.metadata);
    out.extend_from_slice(body);
}

/// Reads a call's payload: its head, and the body after it.
///
/// # Errors
/// If the payload breaks a rule; the connection cannot go on then.
pub fn decode_call(payload: &[u8]) -> Result<(CallHead<'_>, &[u8]), WireError> {
    let mut fields = Fields(payload);
    let method = match fields.u8()? {
        0 => MethodRef::Name(name(&mut fields)?),
        1 => MethodRef::Define(fields.u8()?, name(&mut fields)?),
        2 => MethodRef::Number(fields.u8()?),
        _ => return Err(WireError::Value("how a call names its method")),
    };
    let head = CallHead {
        method,
        codec: CodecId(fields.u8()?),
        remaining_ms: fields.u32()?,
        metadata: fields.metadata()?,
    };
    Ok((head, fields.0))
}

fn name<'a>(fields: &mut Fields<'a>) -> Result<&'a str, WireError> {
    let len = fields.u8()?.into();
    fields.text(len)
}
