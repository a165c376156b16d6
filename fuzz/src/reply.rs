//! Replies, as a client reads them: head, class, and result in each codec.

use srpc::call::{Codec, CodecId, Reply};
use srpc::error::Execution;
use srpc::protocol::{decode_reply, encode_reply};

/// The payload of a reply frame.
pub fn reply(payload: &[u8]) {
    let Ok((head, body)) = decode_reply(payload) else { return };
    assert!(payload.ends_with(body));
    super::call::check_metadata(&head.metadata, payload.len());
    if let Err((_, execution)) = head.status {
        assert_ne!(execution, Execution::NotSent, "a server that answers has the call");
    }
    let mut again = Vec::new();
    encode_reply(&mut again, &head, body);
    assert!(again.len() <= payload.len(), "a key that is given twice is one entry");
    assert_eq!(decode_reply(&again), Ok((head, body)));
    for codec in [Codec::MessagePack, Codec::Json] {
        super::call::arguments(&codec, body);
        let result = Reply::new(codec.id(), body.to_vec()).decode::<u64>();
        assert!(result.is_ok_and(|_| !body.is_empty()) || codec.decode::<u64>(body).is_err());
    }
    assert!(Reply::new(CodecId::RAW, body.to_vec()).decode::<u64>().is_err());
}
