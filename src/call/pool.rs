//! Buffers of large bodies, which are written into again once their body is gone.
//!
//! New memory costs about as much as to fill it: its pages come one by one, emptied by the kernel, and
//! the allocator gives them back soon.

use bytes::Bytes;

use crate::sync::Mutex;

/// The largest buffer that is kept.
const LARGEST: usize = 256 * 1024;
/// How many bytes of buffers a process keeps in all.
const MOST: usize = 4 * 1024 * 1024;

static POOL: Mutex<Pool> = Mutex::new(Pool { buffers: Vec::new(), bytes: 0 });

/// The last one that was put in is the first to be taken out: it is in the processor's caches.
struct Pool {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// An empty buffer, with memory if there is some.
pub(super) fn take() -> Vec<u8> {
    let mut pool = POOL.lock();
    let buffer = pool.buffers.pop().unwrap_or_default();
    pool.bytes -= buffer.capacity();
    buffer
}

/// A body, whose memory goes back to the pool with its last handle. It does not keep more than four times
/// what it is.
pub(super) fn body(buffer: Vec<u8>) -> Bytes {
    if buffer.capacity() / 4 > buffer.len() {
        let body = Bytes::copy_from_slice(&buffer);
        put(buffer);
        return body;
    }
    if buffer.capacity() > LARGEST {
        return Bytes::from(buffer);
    }
    Bytes::from_owner(Pooled(buffer))
}

fn put(mut buffer: Vec<u8>) {
    buffer.clear();
    let mut pool = POOL.lock();
    if buffer.capacity() <= LARGEST && pool.bytes + buffer.capacity() <= MOST {
        pool.bytes += buffer.capacity();
        pool.buffers.push(buffer);
    }
}

struct Pooled(Vec<u8>);

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        put(std::mem::take(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since the pool is everybody's.
    #[test]
    fn memory_is_used_again_within_its_bounds() {
        let mut buffer = take();
        buffer.resize(LARGEST, 7);
        buffer.shrink_to_fit();
        let body = body(buffer);
        let copy = body.slice(10..);
        drop(body);
        assert!(copy.iter().all(|byte| *byte == 7), "a part of it keeps it all");
        drop(copy);
        let mut wide = Vec::with_capacity(LARGEST);
        wide.extend_from_slice(&[7; LARGEST / 8]);
        let memory = wide.as_ptr();
        assert_ne!(super::body(wide).as_ptr(), memory, "what is too wide for it stays behind");
        let bodies: Vec<_> = (0..100).map(|_| super::body(vec![1; LARGEST])).collect();
        drop(bodies);
        let kept: usize = (0..200).map(|_| take()).map(|buffer| buffer.capacity()).sum();
        assert!((LARGEST..=MOST).contains(&kept), "{kept}");
    }
}
