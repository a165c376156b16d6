//! Small bodies, cut from blocks that each thread has: no allocation for each.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// The largest body that is worth to be copied into a block.
pub(super) const LARGEST_IN_BLOCK: usize = 1024;
/// What a block holds.
const BLOCK: usize = 8 * 1024;

thread_local! {
    static FREE: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// A copy of a few bytes, in what this thread's block has left. Whoever keeps it keeps the block.
pub(crate) fn in_block(bytes: &[u8]) -> Bytes {
    FREE.with_borrow_mut(|free| {
        if free.capacity() < bytes.len() {
            // The same block again, if all that was cut from it is gone.
            free.reserve(BLOCK.max(bytes.len()));
        }
        free.extend_from_slice(bytes);
        free.split().freeze()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_stays_what_it_was() {
        let kept: Vec<_> = (0..2000_u32)
            .map(|n| (n, in_block(&n.to_be_bytes().repeat(n as usize % 50))))
            .collect();
        for (n, bytes) in kept {
            assert_eq!(bytes, n.to_be_bytes().repeat(n as usize % 50));
        }
    }
}
