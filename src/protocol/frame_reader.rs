//! Cuts frames out of what was read so far, however the bytes were split on their way.

use bytes::{Buf, Bytes, BytesMut};

use super::read_buffer::ReadBuffer;
use super::{HEADER_LEN, Header, Next, WireError, next_frame};
use crate::call::Packed;

/// A frame longer than this shares the memory that it was read into.
const LONG: usize = 1024;

/// The bytes that were read and not yet cut into frames.
#[derive(Debug)]
pub struct FrameReader {
    buffer: ReadBuffer,
    /// Where the next frame starts in it: what is before it was taken.
    at: usize,
    /// Bytes yet to come of a frame that is passed over.
    skip: usize,
    max_payload: u32,
    /// How many bytes the frame takes whose start is there; 0 if that is not known.
    wanted: usize,
    /// The frame whose start is there is to be passed over.
    is_refused: bool,
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
        let buffer = ReadBuffer::new(read);
        Self { buffer, at: 0, skip: 0, max_payload, wanted: 0, is_refused: false, whole: 0 }
    }

    /// How many bytes were read and not yet cut.
    pub fn uncut(&self) -> usize {
        self.buffer.as_slice().len() - self.at
    }

    /// Where the next read goes; it has room.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.let_go();
        self.buffer.with_room(self.wanted)
    }

    /// Tells how many bytes the last read brought; reads that fill their room get more of it.
    pub fn was_read(&mut self, bytes: usize) {
        self.buffer.was_read(bytes);
    }

    /// Whether so much memory is held that a connection which rests should give it back.
    pub fn holds_much(&self) -> bool {
        self.buffer.holds_much()
    }

    /// The spare buffers.
    #[cfg(test)]
    pub(super) fn spares(&self) -> &[BytesMut] {
        self.buffer.spares()
    }

    /// Gives back what memory it can: nothing comes.
    pub fn shrink(&mut self) {
        self.let_go();
        self.buffer.shrink();
    }

    /// Whether the start of a frame has come and its end has not.
    pub fn is_within_frame(&self) -> bool {
        self.buffer.as_slice().len() > self.at || self.skip > 0
    }

    /// How many frames have come whole, those that were passed over too.
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// How many bytes the frame takes whose start has come, its header included; 0 if that is not known.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Passes over the frame whose header has come: a call is cut as one that is longer than the limit.
    pub(crate) fn refuse_next(&mut self) {
        self.is_refused = true;
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
                let passed = self.skip.min(self.buffer.as_slice().len() - self.at);
                self.at += passed;
                self.skip -= passed;
                if self.skip > 0 {
                    self.let_go();
                    return Ok(None);
                }
                self.whole += 1;
            }
            let max_payload = if self.is_refused { 0 } else { self.max_payload };
            self.is_refused = false;
            match next_frame(&self.buffer.as_slice()[self.at..], max_payload)? {
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
                    let payload = self.buffer.as_slice().get(payload).unwrap_or_default();
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
        let mut frame = self.buffer.split_to(whole);
        frame.advance(HEADER_LEN);
        frame
    }

    /// Forgets what was taken.
    fn let_go(&mut self) {
        self.buffer.advance(std::mem::take(&mut self.at));
    }
}
