//! Cuts frames out of what was read so far, however the bytes were split on their way.

use bytes::{Buf, Bytes, BytesMut};

use super::{HEADER_LEN, Header, Next, WireError, next_frame};
use crate::call::Packed;

/// What the buffer starts with and, when all of it was consumed, returns to.
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
/// A frame longer than this shares the memory that it was read into.
const LONG: usize = 1024;

/// The bytes that were read and not yet cut into frames.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    /// Where the next frame starts in it: what is before it was taken.
    at: usize,
    /// Bytes yet to come of a frame that is passed over.
    skip: usize,
    max_payload: u32,
    /// How much room the next read gets.
    room: usize,
    /// The last reads that brought little, in a row.
    few: u8,
    /// The memory is more than is needed, and is given back once nothing is in it.
    is_large: bool,
    /// The buffer is one of those that become spares.
    is_spare: bool,
    /// How many bytes the frame takes whose start is there; 0 if that is not known.
    wanted: usize,
    /// Buffers to be read into again, once the frames that share them are gone.
    spares: Vec<BytesMut>,
    /// Frames that have come whole, those that were passed over too.
    whole: u64,
}

/// A frame that was cut out.
#[derive(Debug)]
pub enum Cut<'a> {
    /// A frame, and what follows its header.
    Whole(Header, Payload<'a>),
    /// A call or a reply longer than the limit: its payload is passed over.
    Oversized(Header),
}

/// What follows a frame's header.
#[derive(Debug)]
pub enum Payload<'a> {
    /// A short one, where it was read: to share it would cost more than to copy it.
    Read(&'a [u8]),
    /// A long one, which shares the read's memory.
    Shared(Bytes),
}

impl Payload<'_> {
    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// What is left of it from `at` on, on its own.
    pub(crate) fn packed(self, at: usize) -> Packed {
        match self {
            Self::Read(bytes) => Packed::copied(bytes.get(at..).unwrap_or_default()),
            Self::Shared(mut bytes) => {
                bytes.advance(at.min(bytes.len()));
                Packed::Shared(bytes)
            }
        }
    }
}

/// A frame with a payload of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedFrame {
    /// A frame, and what follows its header.
    Whole(Header, Bytes),
    /// A call or a reply longer than the limit: its payload is passed over.
    Oversized(Header),
}

impl FrameReader {
    /// A reader that starts with `read`, which came behind the handshake; `max_payload` limits
    /// calls and replies.
    pub fn new(read: BytesMut, max_payload: u32) -> Self {
        Self {
            buffer: read,
            at: 0,
            skip: 0,
            max_payload,
            room: SMALL,
            few: 0,
            is_large: false,
            is_spare: false,
            wanted: 0,
            spares: Vec::new(),
            whole: 0,
        }
    }

    /// How many bytes were read and not yet cut.
    pub fn uncut(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// Where the next read goes; it has room. As much as possible: a read that finds little of it brings
    /// a part of what has come, and everything that follows is done in smaller parts.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.let_go();
        if self.is_large && self.buffer.is_empty() {
            self.give_back();
        }
        let (len, capacity) = (self.buffer.len(), self.buffer.capacity());
        let left = capacity - len;
        // A known length is reserved at once; it is within the limits.
        let is_short = self.wanted > capacity;
        if left < self.room || is_short {
            // What is there is moved to the front of its memory if that is cheap; frames that share the
            // memory keep it from being used again.
            let is_little = len <= self.room / 8;
            let needed = self.room.max(self.wanted.saturating_sub(len));
            let reclaimed = is_little && self.buffer.try_reclaim(needed);
            // A long frame's memory is there already, and is filled to its end.
            let is_long = len > LARGE && left > 0;
            if !reclaimed && (is_short || (!is_long && left < self.room / 4)) {
                self.change_buffer(needed);
            }
        }
        &mut self.buffer
    }

    /// Goes on in a buffer that nobody uses any more, or in a new one, with room for so many bytes.
    fn change_buffer(&mut self, needed: usize) {
        if self.room < LARGE || needed > LARGE || self.buffer.len() > LARGE {
            self.buffer.reserve(needed);
            self.is_spare = false;
            return;
        }
        let room = self.buffer.len() + needed;
        // The one that was used last: it is in the processor's caches.
        let free = self.spares.iter_mut().rposition(|spare| spare.try_reclaim(room));
        let mut next = match free {
            Some(at) => self.spares.remove(at),
            None => BytesMut::with_capacity(room.max(LARGE + LARGE / 4)),
        };
        next.extend_from_slice(&self.buffer);
        let mut before = std::mem::replace(&mut self.buffer, next);
        if std::mem::replace(&mut self.is_spare, true) {
            before.clear();
            if self.spares.len() == SPARES {
                self.spares.remove(0);
            }
            self.spares.push(before);
        }
    }

    /// Whether so much memory is held that a connection which rests should give it back.
    pub fn is_large(&self) -> bool {
        let most = 4 * SMALL;
        self.room > most || self.buffer.capacity() > 4 * most || !self.spares.is_empty()
    }

    /// Gives back what memory it can: nothing comes.
    pub fn shrink(&mut self) {
        self.spares = Vec::new();
        self.room = SMALL;
        self.let_go();
        match self.buffer.is_empty() {
            true => self.give_back(),
            false => self.is_large = true,
        }
    }

    fn give_back(&mut self) {
        self.spares = Vec::new();
        self.buffer = BytesMut::new();
        (self.is_large, self.is_spare) = (false, false);
    }

    /// Tells how many bytes the last read brought; reads that fill their room get more of it.
    pub fn was_read(&mut self, bytes: usize) {
        if self.buffer.len() == self.buffer.capacity() {
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
                (self.few, self.is_large) = (0, true);
            }
        }
    }

    /// Whether the start of a frame has come and its end has not.
    pub fn is_within_frame(&self) -> bool {
        self.buffer.len() > self.at || self.skip > 0
    }

    /// How many frames have come whole, those that were passed over too.
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// The next frame, with a payload of its own; `None`: more bytes are needed.
    ///
    /// # Errors
    /// As [`cut`](Self::cut).
    pub fn next_frame(&mut self) -> Result<Option<OwnedFrame>, WireError> {
        Ok(self.cut()?.map(|cut| match cut {
            Cut::Whole(header, payload) => {
                OwnedFrame::Whole(header, payload.packed(0).into_bytes())
            }
            Cut::Oversized(header) => OwnedFrame::Oversized(header),
        }))
    }

    /// The next frame; `None`: more bytes are needed.
    ///
    /// # Errors
    /// If the bytes break a rule; the connection cannot go on then.
    pub fn cut(&mut self) -> Result<Option<Cut<'_>>, WireError> {
        self.wanted = 0;
        loop {
            if self.skip > 0 {
                let passed = self.skip.min(self.buffer.len() - self.at);
                self.at += passed;
                self.skip -= passed;
                if self.skip > 0 {
                    self.let_go();
                    return Ok(None);
                }
                self.whole += 1;
            }
            match next_frame(&self.buffer[self.at..], self.max_payload)? {
                Next::More(whole) => {
                    self.let_go();
                    self.wanted = whole;
                    return Ok(None);
                }
                Next::Frame(frame, whole) => {
                    let header = frame.header;
                    self.whole += 1;
                    if whole > LONG {
                        return Ok(Some(Cut::Whole(header, Payload::Shared(self.split(whole)))));
                    }
                    let payload = self.at + HEADER_LEN..self.at + whole;
                    self.at += whole;
                    let payload = self.buffer.get(payload).unwrap_or_default();
                    return Ok(Some(Cut::Whole(header, Payload::Read(payload))));
                }
                Next::Skip(header, whole) => {
                    self.skip = whole;
                    if let Some(header) = header {
                        return Ok(Some(Cut::Oversized(header)));
                    }
                }
            }
        }
    }

    /// Splits the payload of the next frame off.
    fn split(&mut self, whole: usize) -> Bytes {
        self.let_go();
        let mut frame = self.buffer.split_to(whole).freeze();
        if whole > LARGE {
            // What is left would keep the memory of the whole frame, and use it again.
            self.buffer = BytesMut::from(&*self.buffer);
            self.is_spare = false;
        }
        frame.advance(HEADER_LEN);
        frame
    }

    /// Forgets what was taken.
    fn let_go(&mut self) {
        self.buffer.advance(std::mem::take(&mut self.at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FrameType, encode_frame};

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
        drop(frames(&mut reader, &some.repeat(3)));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..100 {
            let held = frames(&mut reader, &some);
            assert_eq!(held.len(), 3);
            seen.insert(reader.buffer().as_ptr() as usize / LARGE);
        }
        assert!(seen.len() <= 2 * SPARES, "{} places", seen.len());
        let held = frames(&mut reader, &some.repeat(10));
        assert!(!reader.spares.is_empty());
        assert!(reader.spares.len() <= SPARES);
        assert!(
            held.iter()
                .all(|it| matches!(it, OwnedFrame::Whole(_, body) if body.iter().all(|b| *b == 7)))
        );
        reader.shrink();
        assert!(!reader.is_large());
        assert!(reader.buffer().capacity() <= 2 * SMALL);
        let held = frames(&mut reader, &some.repeat(10));
        for _ in 0..SPARED {
            assert_eq!(frames(&mut reader, &frame(30)).len(), 1);
        }
        assert!(reader.spares.is_empty(), "small ones came");
        drop(held);
    }
}
