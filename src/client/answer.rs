//! A reply between the connection that read it and the call that takes it.

use crate::call::{CodecId, Metadata, Packed, Reply};

/// A reply that waits for its call.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Packed,
    metadata: Metadata,
    load: u32,
}

impl Answer {
    pub(super) fn new(body: Packed, metadata: Metadata, load: u32) -> Self {
        Self { body, metadata, load }
    }

    /// What its server had in flight.
    pub(super) fn load(&self) -> u32 {
        self.load
    }

    /// The encoded result.
    pub(crate) fn body(&self) -> &[u8] {
        self.body.as_slice()
    }

    /// The reply to a call in this codec.
    pub(crate) fn into_reply(self, codec: CodecId) -> Reply {
        let Self { body, metadata, load } = self;
        Reply { codec, body: body.into_bytes(), metadata, load, from: None }
    }
}
