//! How an outcome becomes a reply frame.

use super::context::Answered;
use super::handler::{Failure, Outcome};
use crate::call::{Metadata, Packed};
use crate::error::{Fate, Kind, cut};
use crate::protocol::{
    FrameType, LARGE_BODY, Outbox, ReplyHead, encode_frame, encode_frame_before, encode_reply,
};

/// Why a result is dropped whose reply would exceed the server's memory.
pub(super) const NO_MEMORY_FOR_RESULT: &str =
    "the result was dropped: the server holds too many bytes that its clients do not read";

pub(super) fn no_memory() -> Failure {
    Failure::rejected(
        Kind::ResourceExhausted,
        "the server holds too many bytes to read this call's body",
    )
}

pub(super) fn too_large(max_body: u32) -> Failure {
    Failure::rejected(
        Kind::ResourceExhausted,
        format!("the body is larger than the {max_body} bytes that this server takes"),
    )
}

pub(super) fn expired() -> Failure {
    Failure::rejected(Kind::DeadlineExceeded, "the deadline passed before the call was started")
}

/// Whether a reply's body is written from where it lies: then it must go into an outbox.
pub(super) fn is_large(outcome: &Outcome) -> bool {
    outcome.as_ref().is_ok_and(|response| response.body.len() >= LARGE_BODY)
}

/// Puts a reply into an outbox. The outcome stays with the caller, who drops it under no lock: its body may be the
/// user's.
pub(super) fn send_reply(
    outbox: &mut Outbox,
    id: u64,
    outcome: &Outcome,
    load: u32,
    max_reply: usize,
) {
    match outcome {
        Ok(Answered { body: Packed::Shared(body), metadata })
            if body.len() >= LARGE_BODY && body.len() <= max_reply =>
        {
            let head = ReplyHead { status: Ok(()), load, metadata: metadata.clone() };
            outbox.append_before(body, |out| {
                let rest = body.len();
                encode_frame_before(out, FrameType::Reply, 0, id, rest, |out| {
                    encode_reply(out, &head, &[]);
                });
            });
        }
        _ => {
            outbox.append(|out| put_reply(out, id, outcome, load, max_reply));
        }
    }
}

/// Appends a reply, its body copied.
pub(super) fn put_reply(
    out: &mut Vec<u8>,
    id: u64,
    outcome: &Outcome,
    load: u32,
    max_reply: usize,
) {
    let oversized: Outcome;
    let outcome = match outcome {
        Ok(response) if response.body.len() > max_reply => {
            oversized = Err(Failure::new(
                Kind::ResourceExhausted,
                Fate::Failed,
                "the result is larger than the client takes",
            ));
            &oversized
        }
        outcome => outcome,
    };
    encode_frame(out, FrameType::Reply, 0, id, |out| match outcome {
        Ok(Answered { body, metadata }) => {
            let head = ReplyHead { status: Ok(()), load, metadata: metadata.clone() };
            encode_reply(out, &head, body.as_slice());
        }
        Err(failure) => {
            let head = ReplyHead {
                status: Err((failure.kind, failure.execution)),
                load,
                metadata: Metadata::default(),
            };
            encode_reply(out, &head, cut(&failure.message).as_bytes());
        }
    });
}
