//! How an outcome becomes a reply frame.

use super::handler::{Failure, Outcome};
use crate::call::Metadata;
use crate::error::{Fate, Kind};
use crate::protocol::{FrameType, ReplyHead, encode_frame, encode_reply};

/// The longest error text that travels, in bytes.
const MAX_TEXT: usize = 4 * 1024;

pub(super) fn too_large(max_body: u32) -> Failure {
    Failure::rejected(
        Kind::ResourceExhausted,
        format!("the body is larger than the {max_body} bytes that this server takes"),
    )
}

pub(super) fn expired() -> Failure {
    Failure::rejected(Kind::DeadlineExceeded, "the deadline passed before the call was started")
}

pub(super) fn put_reply(out: &mut Vec<u8>, id: u64, outcome: Outcome, load: u32, max_reply: usize) {
    let outcome = outcome.and_then(|response| {
        if response.body.len() > max_reply {
            return Err(Failure::new(
                Kind::ResourceExhausted,
                Fate::Failed,
                "the result is larger than the client takes",
            ));
        }
        Ok(response)
    });
    encode_frame(out, FrameType::Reply, 0, id, |out| match &outcome {
        Ok(response) => {
            let metadata = response.metadata.clone();
            encode_reply(out, &ReplyHead { status: Ok(()), load, metadata }, &response.body);
        }
        Err(failure) => {
            let head = ReplyHead {
                status: Err((failure.kind, failure.execution)),
                load,
                metadata: Metadata::default(),
            };
            let text = &failure.message;
            // Half a character at the end is replaced by whoever reads it.
            let end = text.len().min(MAX_TEXT);
            encode_reply(out, &head, &text.as_bytes()[..end]);
        }
    });
}
