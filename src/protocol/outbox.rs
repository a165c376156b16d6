//! What waits to be written to a connection, with a place in the stream for each byte.

use super::void_frame;

/// Frames that wait for the writer.
///
/// Every byte of a connection's outgoing stream has a position, so that it can be told of each
/// frame whether none, some or all of it has been taken by the socket.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// The position of `bytes[0]`.
    start: u64,
}

/// A frame's place in the stream: from its first byte to just after its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The position of its first byte.
    pub start: u64,
    /// The position just after its last byte.
    pub end: u64,
}

impl Outbox {
    /// Appends whatever `fill` writes, and tells its place.
    pub fn append(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Place {
        let start = self.end();
        fill(&mut self.bytes);
        Place { start, end: self.end() }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Hands all that waits to the writer; `spare`, emptied, takes its place.
    pub fn take(&mut self, spare: &mut Vec<u8>) {
        spare.clear();
        self.start = self.end();
        std::mem::swap(&mut self.bytes, spare);
    }

    /// Takes a frame back, if the writer does not have it yet: it becomes one that is passed over.
    pub fn withdraw(&mut self, place: Place) -> bool {
        let Some(start) = place.start.checked_sub(self.start) else { return false };
        void_frame(&mut self.bytes, start as usize);
        true
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FrameType, Next, encode_frame, next_frame};

    #[test]
    fn a_frame_can_be_withdrawn_until_the_writer_has_it() {
        let mut outbox = Outbox::default();
        let mut spare = Vec::new();
        let call = |out: &mut Vec<u8>| encode_frame(out, FrameType::Call, 0, 7, |_| ());
        let first = outbox.append(call);
        outbox.take(&mut spare);
        assert!(!outbox.withdraw(first));
        let second = outbox.append(call);
        assert_eq!(second.start, first.end);
        assert!(outbox.withdraw(second));
        outbox.take(&mut spare);
        assert_eq!(next_frame(&spare, 100), Ok(Next::Skip(None, spare.len())));
    }
}
