//! Where a body is written before anybody knows how long it will be.

use std::cell::RefCell;
use std::io::{self, Write};

use bytes::Bytes;

use super::block::LARGEST_IN_BLOCK;
use super::packed::{Packed, SMALL};
use super::pool;

/// A body from this size on is written into a buffer from the pool.
const LARGE: usize = 16 * 1024;
/// What a thread keeps between values; a larger buffer is given back.
const KEPT: usize = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A body that is being written: in place while it is small, else in a buffer that the thread keeps.
#[derive(Debug)]
pub(super) struct Packing {
    len: usize,
    bytes: [u8; SMALL],
    /// All of it, once it is not in place any more.
    spilled: Option<Vec<u8>>,
}

impl Packing {
    pub(super) fn new() -> Self {
        Self { len: 0, bytes: [0; SMALL], spilled: None }
    }

    /// A buffer to write to, for those who need one.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        self.spilled.get_or_insert_with(|| {
            // Taken out rather than borrowed: a `Serialize` impl may encode something itself.
            let mut buffer = SCRATCH.take();
            buffer.clear();
            buffer.extend_from_slice(&self.bytes[..self.len]);
            buffer
        })
    }

    /// What was written.
    pub(super) fn finish(self) -> Packed {
        let Some(mut buffer) = self.spilled else {
            return Packed::Small { len: self.len as u8, bytes: self.bytes };
        };
        let len = buffer.len();
        if len >= LARGE {
            // Its memory goes with it, uncopied; the next one will probably be as large.
            if SCRATCH.with_borrow(|scratch| scratch.capacity() == 0) {
                SCRATCH.set(pool::take());
            }
            return Packed::Shared(pool::body(buffer));
        }
        let packed = if len <= LARGEST_IN_BLOCK {
            Packed::copied(&buffer)
        } else if buffer.capacity() > 2 * len {
            // It would keep more memory than it is.
            Packed::Shared(Bytes::copy_from_slice(&buffer))
        } else {
            Packed::Shared(std::mem::replace(&mut buffer, Vec::with_capacity(len)).into())
        };
        keep(buffer);
        packed
    }

    #[cold]
    fn spill(&mut self, bytes: &[u8]) {
        if self.len + bytes.len() >= LARGE && self.spilled.is_none() {
            let mut buffer = pool::take();
            buffer.extend_from_slice(&self.bytes[..self.len]);
            self.spilled = Some(buffer);
        }
        self.buffer().extend_from_slice(bytes);
    }
}

/// Keeps a buffer for this thread's next value.
fn keep(buffer: Vec<u8>) {
    if buffer.capacity() <= KEPT {
        SCRATCH.set(buffer);
    }
}

impl Write for Packing {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.bytes.get_mut(self.len..self.len + bytes.len()) {
            Some(place) if self.spilled.is_none() => {
                place.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            _ => self.spill(bytes),
        }
        Ok(())
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_body_wherever_it_lies() {
        let lens = [0, 1, SMALL - 1, SMALL, SMALL + 1, 1000, LARGEST_IN_BLOCK + 1, 2 * KEPT];
        for len in lens {
            for step in [1, 3, SMALL, 5000] {
                let body: Vec<u8> = (0..len).map(|at| at as u8).collect();
                let mut packing = Packing::new();
                body.chunks(step).for_each(|part| packing.write_all(part).unwrap());
                let packed = packing.finish();
                assert_eq!(packed.as_slice(), body, "{len} by {step}");
                assert_eq!(matches!(packed, Packed::Small { .. }), len <= SMALL);
            }
        }
        assert!(SCRATCH.with_borrow(Vec::capacity) <= KEPT);
    }

    #[test]
    fn a_body_does_not_keep_memory_out_of_proportion() {
        let kept = || SCRATCH.with_borrow(|scratch| (scratch.as_ptr(), scratch.capacity()));
        let write = |len| {
            let mut packing = Packing::new();
            packing.buffer().resize(len, 7);
            packing.finish()
        };
        SCRATCH.set(Vec::with_capacity(KEPT));
        let before = kept();
        for len in [SMALL + 1, LARGEST_IN_BLOCK + 1, LARGE - 1] {
            let body = write(len);
            assert_ne!(body.as_slice().as_ptr(), before.0, "{len}");
            assert_eq!(kept(), before, "the thread keeps its buffer");
        }
        let body = write(KEPT / 2);
        assert_eq!(body.as_slice().as_ptr(), before.0, "what fits goes uncopied");
        let mut packing = Packing::new();
        packing.buffer().reserve(2 * KEPT);
        packing.finish();
        assert!(kept().1 <= KEPT, "more is given back");
    }
}
