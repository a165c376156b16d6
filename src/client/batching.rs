//! When a batch is large enough to be written, although others may still be about to append.
//!
//! One write for all that are in flight would make client and server take turns: one waits while the
//! other works. Batches of a quarter keep both at work; of much fewer than twenty calls, the
//! writes cost a part of what that gains. Of very many calls a half is work enough for either side, and
//! each wakes the other half as often. Measured in `docs/PERFORMANCE.md`.

use crate::protocol::Outbox;

/// The least and the most calls that make a batch large.
const LEAST: usize = 20;
const MOST: usize = 256;
/// From so many calls in flight on, a batch is half of them.
const VERY_MANY: usize = 200;
/// A batch with so many bytes that were copied into it is large, however few calls they are.
const COPIED: usize = 64 * 1024;
/// So is one with a quarter of the bytes in flight, from the least to the most.
const LEAST_BYTES: usize = 64 * 1024;
const MOST_BYTES: usize = 512 * 1024;

/// What has been appended since the last batch, and how many calls there are to append.
#[derive(Debug, Default)]
pub(super) struct Batching {
    /// Calls since the writer last took the outbox.
    appended: usize,
    /// The most calls in flight of late: while replies come in, fewer are.
    crowd: usize,
    /// The most bytes in flight of late.
    bytes: usize,
}

impl Batching {
    /// A call was appended to what waits in `outbox`. Whether the batch is large now, with so many calls
    /// and bytes of bodies in flight.
    pub(super) fn appended(&mut self, calls: usize, bytes: usize, outbox: &Outbox) -> bool {
        self.appended += 1;
        self.crowd = self.crowd.max(calls);
        self.bytes = self.bytes.max(bytes);
        self.is_large(outbox)
    }

    /// Whether the batch is large.
    pub(super) fn is_large(&self, outbox: &Outbox) -> bool {
        let part = if self.crowd < VERY_MANY { 4 } else { 2 };
        self.appended >= (self.crowd / part).clamp(LEAST, MOST)
            || outbox.copied() >= COPIED
            || outbox.len() >= (self.bytes / 4).clamp(LEAST_BYTES, MOST_BYTES)
    }

    /// How many calls were appended since the writer last took the outbox.
    pub(super) fn count(&self) -> usize {
        self.appended
    }

    /// The writer took the batch.
    pub(super) fn taken(&mut self) {
        self.appended = 0;
        self.crowd -= self.crowd / 8;
        self.bytes -= self.bytes / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many calls make a batch large while so many are in flight.
    fn large(batching: &mut Batching, in_flight: usize) -> usize {
        let none = Outbox::default();
        batching.taken();
        (1..).find(|_| batching.appended(in_flight, 0, &none)).unwrap_or_default()
    }

    #[test]
    fn a_quarter_of_those_in_flight_is_a_large_batch_and_of_very_many_a_half() {
        let expected =
            [(1, 20), (64, 20), (100, 25), (199, 49), (200, 100), (400, 200), (5000, 256)];
        for (in_flight, expected) in expected {
            assert_eq!(large(&mut Batching::default(), in_flight), expected, "{in_flight}");
        }
    }

    #[test]
    fn few_calls_of_many_bytes_are_a_large_batch() {
        let is_large = |bytes, outbox: &Outbox| Batching::default().appended(1, bytes, outbox);
        let mut copied = Outbox::default();
        copied.append(|out| out.resize(COPIED - 1, 0));
        assert!(!is_large(usize::MAX, &copied));
        copied.append(|out| out.push(0));
        assert!(is_large(usize::MAX, &copied));
        let (few, many) = (LEAST_BYTES, MOST_BYTES);
        for (in_flight, expected) in
            [(0, few), (8 * few, 2 * few), (4 * many, many), (99 * many, many)]
        {
            let mut beside = Outbox::default();
            beside.append_before(&vec![0; expected - 2].into(), |out| out.push(0));
            assert!(!is_large(in_flight, &beside), "{in_flight}");
            beside.append(|out| out.push(0));
            assert!(is_large(in_flight, &beside), "{in_flight}");
        }
    }

    #[test]
    fn a_crowd_is_remembered_for_some_batches() {
        let mut batching = Batching::default();
        assert_eq!(large(&mut batching, 400), 200);
        assert_eq!(large(&mut batching, 10), 175);
        for _ in 0..40 {
            large(&mut batching, 10);
        }
        assert_eq!(large(&mut batching, 10), 20);
    }
}
