//! What waits to be written to a connection, with a place in the stream for each byte.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::void_frame;

/// A body from this size on is written from where it lies; a smaller one is copied behind its head.
pub const LARGE_BODY: usize = 4 * 1024;

/// Frames that wait for the writer.
///
/// Every byte of a connection's outgoing stream has a position, so that it can be told of each
/// frame whether none, some or all of it has been taken by the socket.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// Bodies that are not among `bytes`, with how many of those come before them.
    bodies: VecDeque<(usize, Bytes)>,
    /// The bytes of those bodies.
    beside: usize,
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

/// What a writer has taken out, and not yet handed to the socket.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    bodies: VecDeque<(usize, Bytes)>,
    /// How many of `bytes` are written.
    at: usize,
    left: usize,
}

impl Outbox {
    /// Appends whatever `fill` writes, and tells its place.
    pub fn append(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Place {
        let start = self.end();
        fill(&mut self.bytes);
        Place { start, end: self.end() }
    }

    /// Appends whatever `fill` writes, and `body` behind it, which is not copied.
    pub fn append_before(&mut self, body: &Bytes, fill: impl FnOnce(&mut Vec<u8>)) -> Place {
        let start = self.end();
        fill(&mut self.bytes);
        self.beside += body.len();
        self.bodies.push_back((self.bytes.len(), body.clone()));
        Place { start, end: self.end() }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.beside
    }

    /// How many of the bytes that wait were copied here.
    pub fn copied(&self) -> usize {
        self.bytes.len()
    }

    /// Hands all that waits to the writer, whose last batch must be written.
    pub fn take(&mut self, batch: &mut Batch) {
        self.start = self.end();
        batch.bytes.clear();
        batch.bodies.clear();
        (batch.at, batch.left) = (0, self.len());
        self.beside = 0;
        std::mem::swap(&mut self.bytes, &mut batch.bytes);
        std::mem::swap(&mut self.bodies, &mut batch.bodies);
    }

    /// Takes a frame back, if the writer does not have it yet: it becomes one that is passed over.
    pub fn withdraw(&mut self, place: Place) -> bool {
        let Some(start) = place.start.checked_sub(self.start) else { return false };
        let mut start = start as usize;
        for (at, body) in &self.bodies {
            // Counted in `bytes` alone, the frame starts earlier by every body before it.
            if start < at + body.len() {
                break;
            }
            start -= body.len();
        }
        void_frame(&mut self.bytes, start);
        true
    }

    fn end(&self) -> u64 {
        self.start + self.len() as u64
    }
}

impl Batch {
    /// How many bytes are to be written.
    pub fn len(&self) -> usize {
        self.left
    }

    /// Whether all is written.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Gives its memory back if it is more than a batch usually needs.
    pub fn shrink(&mut self, usual: usize) {
        if self.bytes.capacity() > usual {
            self.bytes = Vec::new();
        }
    }

    /// What is to be written next, in as many of `slices` as it takes; how many those are.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut at = self.at;
        let mut used = 0;
        let ends = self.bodies.iter().map(|(end, body)| (*end, &**body));
        for (end, body) in ends.chain([(self.bytes.len(), &[][..])]) {
            for part in [&self.bytes[at..end], body] {
                if !part.is_empty() && used < slices.len() {
                    slices[used] = IoSlice::new(part);
                    used += 1;
                }
            }
            if used == slices.len() {
                break;
            }
            at = end;
        }
        used
    }

    /// So many bytes more were written.
    pub fn advance(&mut self, mut written: usize) {
        self.left = self.left.saturating_sub(written);
        while written > 0 {
            let next = self.bodies.front_mut();
            let end = next.as_ref().map_or(self.bytes.len(), |(end, _)| *end);
            if self.at < end {
                let step = written.min(end - self.at);
                self.at += step;
                written -= step;
                continue;
            }
            let Some((_, body)) = next else { return };
            let step = written.min(body.len());
            body.advance(step);
            written -= step;
            if body.is_empty() {
                self.bodies.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        FrameType, HEADER_LEN, Next, encode_frame, encode_frame_before, next_frame,
    };

    /// What a writer sees whose socket takes at most `step` bytes at a time.
    fn written(batch: &mut Batch, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let used = batch.slices(&mut slices);
            let all: Vec<u8> =
                slices[..used].iter().flat_map(|part| part.iter().copied()).collect();
            assert!(!all.is_empty());
            let taken = step.min(all.len());
            out.extend_from_slice(&all[..taken]);
            batch.advance(taken);
        }
        out
    }

    #[test]
    fn a_frame_can_be_withdrawn_until_the_writer_has_it() {
        let mut outbox = Outbox::default();
        let mut batch = Batch::default();
        let call = |out: &mut Vec<u8>| encode_frame(out, FrameType::Call, 0, 7, |_| ());
        let first = outbox.append(call);
        outbox.take(&mut batch);
        assert!(!outbox.withdraw(first));
        let second = outbox.append(call);
        assert_eq!(second.start, first.end);
        assert!(outbox.withdraw(second));
        outbox.take(&mut batch);
        let bytes = written(&mut batch, usize::MAX);
        assert_eq!(next_frame(&bytes, 100), Ok(Next::Skip(None, bytes.len())));
    }

    #[test]
    fn bodies_that_are_not_copied_stand_where_they_belong() {
        for step in [1, 2, 7, 100, usize::MAX] {
            for withdrawn in 0..7 {
                let mut outbox = Outbox::default();
                let mut places = Vec::new();
                for id in 0..7_u64 {
                    let body = Bytes::from(vec![id as u8; 10 * id as usize]);
                    places.push(if id % 3 == 0 {
                        outbox.append(|out| {
                            encode_frame(out, FrameType::Call, 0, id + 1, |out| {
                                out.extend_from_slice(&body);
                            });
                        })
                    } else {
                        outbox.append_before(&body, |out| {
                            let rest = body.len();
                            encode_frame_before(out, FrameType::Call, 0, id + 1, rest, |_| ());
                        })
                    });
                }
                assert_eq!(places[6].end, outbox.len() as u64);
                assert!(outbox.withdraw(places[withdrawn]));
                let mut batch = Batch::default();
                outbox.take(&mut batch);
                assert_eq!(batch.len() as u64, places[6].end);
                let bytes = written(&mut batch, step);
                let mut at = 0;
                for id in 0..7_u64 {
                    assert_eq!(at as u64, places[id as usize].start);
                    let whole = HEADER_LEN + 10 * id as usize;
                    match next_frame(&bytes[at..], 1000).unwrap() {
                        Next::Skip(None, len) => assert_eq!((id as usize, len), (withdrawn, whole)),
                        Next::Frame(frame, len) => {
                            assert_eq!((frame.header.id, len), (id + 1, whole));
                            assert!(frame.payload.iter().all(|byte| u64::from(*byte) == id));
                        }
                        other => panic!("{other:?}"),
                    }
                    at += whole;
                }
                assert_eq!(at, bytes.len());
            }
        }
    }
}
