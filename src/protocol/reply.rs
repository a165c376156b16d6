//! What a reply frame carries.

use super::WireError;
use super::wire::{Fields, put_entries};
use crate::call::Metadata;
use crate::error::{Execution, Kind};

/// What a reply frame carries before its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyHead {
    /// `Ok`: the body is the result. `Err`: the body is the error's text, of this kind and class.
    pub status: Result<(), (Kind, Execution)>,
    /// The calls that the server has in flight.
    pub load: u32,
    /// What travels beside the body.
    pub metadata: Metadata,
}

/// Appends a reply's payload.
pub fn encode_reply(out: &mut Vec<u8>, head: &ReplyHead, body: &[u8]) {
    let (status, class) = match head.status {
        Ok(()) => (0, 0),
        Err((kind, Execution::Executed)) => (kind.code(), 0),
        // A server that answers has the call; `NotSent` can only be meant as "not started".
        Err((kind, Execution::Rejected | Execution::NotSent)) => (kind.code(), 1),
        Err((kind, Execution::MaybeExecuted)) => (kind.code(), 2),
    };
    // In one piece: each write of its own would ask again whether there is room.
    let [a, b, c, d] = head.load.to_be_bytes();
    out.extend_from_slice(&[status, class, a, b, c, d, head.metadata.len() as u8]);
    put_entries(out, &head.metadata);
    out.extend_from_slice(body);
}

/// Reads a reply's payload: its head, and the body after it.
///
/// # Errors
/// If the payload breaks a rule; the connection cannot go on then.
pub fn decode_reply(payload: &[u8]) -> Result<(ReplyHead, &[u8]), WireError> {
    let mut fields = Fields(payload);
    let status = match (fields.u8()?, fields.u8()?) {
        (0, 0) => Ok(()),
        (0, _) => return Err(WireError::Value("the class of a success")),
        (code, 0) => Err((Kind::from_code(code), Execution::Executed)),
        (code, 1) => Err((Kind::from_code(code), Execution::Rejected)),
        (code, 2) => Err((Kind::from_code(code), Execution::MaybeExecuted)),
        _ => return Err(WireError::Value("a reply's class")),
    };
    let head = ReplyHead { status, load: fields.u32()?, metadata: fields.metadata()? };
    Ok((head, fields.0))
}
