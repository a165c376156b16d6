//! The memory that a connection is read into.

use bytes::{Buf, Bytes, BytesMut};

/// What a buffer starts with and, when little comes, returns to.
const SMALL: usize = 4 * 1024;
/// What it grows to when reads fill it: at 4 KiB, messages of 1 KiB cost three times the CPU.
const LARGE: usize = 256 * 1024;
/// After so many reads in a row that brought less than an eighth of their room, the next get less of it.
const FEW: u8 = 64;
/// After so many of them no spare buffers are kept.
const SPARED: u8 = 8;
/// How many buffers are kept beside the one that is read into, while frames that were cut from them are in
/// use: new memory costs as much as to fill it.
const SPARES: usize = 5;

/// The bytes that were read and not yet taken, and room for more. As much as possible: a read that finds
/// little of it brings a part of what has come, and everything that follows is done in smaller parts.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    bytes: BytesMut,
    /// How much room the next read gets.
    room: usize,
    /// The last reads that brought little, in a row.
    few: u8,
    /// Its memory is to be given back once nothing is in it.
    is_outgrown: bool,
    /// Its memory is as large as that of a spare, and becomes one.
    becomes_spare: bool,
    /// Buffers to be read into again, once the frames that share them are gone; the one that was used last
    /// is the last.
    spares: Vec<BytesMut>,
}

impl ReadBuffer {
    /// A buffer with what was read before.
    pub(super) fn new(bytes: BytesMut) -> Self {
        Self {
            bytes,
            room: SMALL,
            few: 0,
            is_outgrown: false,
            becomes_spare: false,
            spares: Vec::new(),
        }
    }

    /// What was read and not yet taken.
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the first bytes out.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
    }

    /// Takes the first bytes out, without copying them.
    pub(super) fn split_to(&mut self, bytes: usize) -> Bytes {
        let taken = self.bytes.split_to(bytes).freeze();
        if bytes > LARGE {
            // What is left would keep the memory of all of it, and use it again.
            self.bytes = BytesMut::from(&*self.bytes);
            self.becomes_spare = false;
        }
        taken
    }

    /// Where the next read goes. There is room for all of the first `wanted` bytes, if so many are known to
    /// come.
    pub(super) fn with_room(&mut self, wanted: usize) -> &mut BytesMut {
        if self.is_outgrown && self.bytes.is_empty() {
            self.give_back();
        }
        let (len, capacity) = (self.bytes.len(), self.bytes.capacity());
        let left = capacity - len;
        let is_short = wanted > capacity;
        if left < self.room || is_short {
            // What is there is moved to the front of its memory if that is cheap; frames that share the
            // memory keep it from being used again.
            let is_little = len <= self.room / 8;
            let needed = self.room.max(wanted.saturating_sub(len));
            let reclaimed = is_little && self.bytes.try_reclaim(needed);
            // A long frame's memory is there already, and is filled to its end.
            let is_long = len > LARGE && left > 0;
            if !reclaimed && (is_short || (!is_long && left < self.room / 4)) {
                self.change(needed);
            }
        }
        &mut self.bytes
    }

    /// Goes on in memory that nobody uses any more, or in new one, with room for so many bytes.
    fn change(&mut self, needed: usize) {
        if self.room < LARGE || needed > LARGE || self.bytes.len() > LARGE {
            self.bytes.reserve(needed);
            self.becomes_spare = false;
            return;
        }
        let room = self.bytes.len() + needed;
        // The one that was used last: it is in the processor's caches.
        let free = self.spares.iter_mut().rposition(|spare| spare.try_reclaim(room));
        let mut next = match free {
            Some(at) => self.spares.remove(at),
            None => BytesMut::with_capacity(room.max(LARGE + LARGE / 4)),
        };
        next.extend_from_slice(&self.bytes);
        let mut before = std::mem::replace(&mut self.bytes, next);
        if std::mem::replace(&mut self.becomes_spare, true) {
            before.clear();
            if self.spares.len() == SPARES {
                self.spares.remove(0);
            }
            self.spares.push(before);
        }
    }

    /// Tells how many bytes the last read brought; reads that fill their room get more of it.
    pub(super) fn was_read(&mut self, bytes: usize) {
        if self.bytes.len() == self.bytes.capacity() {
            self.room = (self.room * 4).min(LARGE);
            self.few = 0;
        } else if bytes >= self.room / 8 || self.room == SMALL {
            self.few = 0;
        } else {
            self.few += 1;
            if self.few == SPARED {
                self.spares = Vec::new();
            }
            if self.few == FEW {
                self.room = (self.room / 4).max(SMALL);
                (self.few, self.is_outgrown) = (0, true);
            }
        }
    }

    /// Whether so much memory is held that a connection which rests should give it back.
    pub(super) fn holds_much(&self) -> bool {
        self.room > 4 * SMALL || self.bytes.capacity() > 16 * SMALL || !self.spares.is_empty()
    }

    /// Gives back what memory it can: nothing comes.
    pub(super) fn shrink(&mut self) {
        self.spares = Vec::new();
        self.room = SMALL;
        match self.bytes.is_empty() {
            true => self.give_back(),
            false => self.is_outgrown = true,
        }
    }

    #[cfg(test)]
    pub(super) fn spares(&self) -> &[BytesMut] {
        &self.spares
    }

    fn give_back(&mut self) {
        self.spares = Vec::new();
        self.bytes = BytesMut::new();
        (self.is_outgrown, self.becomes_spare) = (false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FrameReader, FrameType, HEADER_LEN, OwnedFrame, encode_frame};

    fn frame(len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        encode_frame(&mut out, FrameType::Reply, 0, 1, |out| out.resize(HEADER_LEN + len, 7));
        out
    }

    fn reader() -> FrameReader {
        FrameReader::new(BytesMut::new(), 1 << 20)
    }

    /// One read, which brings as much of `bytes` as it has room for.
    fn read(reader: &mut FrameReader, bytes: &mut &[u8]) {
        let buffer = reader.buffer();
        let (now, later) = bytes.split_at(bytes.len().min(buffer.capacity() - buffer.len()));
        buffer.extend_from_slice(now);
        *bytes = later;
        reader.was_read(now.len());
    }

    /// Every frame that a stream of `bytes` holds.
    fn frames(reader: &mut FrameReader, mut bytes: &[u8]) -> Vec<OwnedFrame> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            read(reader, &mut bytes);
            while let Some(frame) = reader.next_frame().unwrap() {
                frames.push(frame);
            }
        }
        frames
    }

    #[test]
    fn every_read_has_all_its_room() {
        let (mut reader, some) = (reader(), frame(30));
        for _ in 0..1000 {
            let buffer = reader.buffer();
            assert!(buffer.capacity() - buffer.len() >= SMALL);
            assert_eq!(frames(&mut reader, &some).len(), 1);
            // The start of another, which is moved to the front.
            read(&mut reader, &mut &some[..20]);
            assert!(reader.next_frame().unwrap().is_none());
            read(&mut reader, &mut &some[20..]);
            assert!(reader.next_frame().unwrap().is_some());
        }
        assert!(reader.buffer().capacity() <= 2 * SMALL);
    }

    #[test]
    fn room_grows_with_what_comes_and_is_given_back() {
        let mut reader = reader();
        let many = frame(30).repeat(20_000);
        assert_eq!(frames(&mut reader, &many).len(), 20_000);
        assert!(reader.buffer().capacity() >= LARGE);
        for _ in 0..4 * usize::from(FEW) {
            assert_eq!(frames(&mut reader, &frame(30)).len(), 1);
        }
        let left = reader.buffer().capacity();
        assert!(left <= 2 * SMALL, "{left} bytes");
    }

    #[test]
    fn a_long_frame_has_all_its_memory_at_once_and_leaves_none() {
        let (mut reader, long) = (reader(), frame(900_000));
        read(&mut reader, &mut &long[..100]);
        assert!(reader.next_frame().unwrap().is_none());
        assert!(reader.buffer().capacity() >= long.len());
        let memory = reader.buffer().as_ptr();
        read(&mut reader, &mut &long[100..800_000]);
        assert!(reader.next_frame().unwrap().is_none());
        assert_eq!(reader.buffer().as_ptr(), memory, "it is not moved");
        drop(frames(&mut reader, &long[800_000..]));
        assert_eq!(frames(&mut reader, &frame(30)).len(), 1);
        assert!(reader.buffer().capacity() <= LARGE);
    }

    #[test]
    fn memory_is_read_into_again_once_its_frames_are_gone() {
        let (mut reader, some) = (reader(), frame(100_000).repeat(3));
        for _ in 0..100 {
            // They lie in several buffers, and are all held meanwhile.
            let held = frames(&mut reader, &some.repeat(3));
            assert_eq!(held.len(), 9);
            // Each buffer that could not be used again would stay, until there are no more places.
            assert!((1..SPARES).contains(&reader.spares().len()), "{}", reader.spares().len());
        }
        let held = frames(&mut reader, &some.repeat(10));
        assert!(!reader.spares().is_empty());
        assert!(reader.spares().len() <= SPARES);
        assert!(
            held.iter()
                .all(|it| matches!(it, OwnedFrame::Whole(_, body) if body.iter().all(|b| *b == 7)))
        );
        reader.shrink();
        assert!(!reader.holds_much());
        assert!(reader.buffer().capacity() <= 2 * SMALL);
        let held = frames(&mut reader, &some.repeat(10));
        for _ in 0..SPARED {
            assert_eq!(frames(&mut reader, &frame(30)).len(), 1);
        }
        assert!(reader.spares().is_empty(), "small ones came");
        drop(held);
    }
}
