//! When a batch is large enough to be written, although others may still be about to append.
//!
//! One write for all that are in flight would make client and server take turns: one waits while the
//! other works. Batches of a quarter keep both at work; of much fewer than twenty calls, the
//! writes cost a part of what that gains. Measured in `docs/PERFORMANCE.md`.

/// The least and the most calls that make a batch large.
const LEAST: usize = 20;
const MOST: usize = 256;
/// A batch with more bytes than this is large, however few calls they are.
const LARGE: usize = 64 * 1024;

/// What has been appended since the last batch, and how many calls there are to append.
#[derive(Debug, Default)]
pub(super) struct Batching {
    /// Calls since the writer last took the outbox.
    appended: usize,
    /// The most calls in flight of late: while replies come in, fewer are.
    crowd: usize,
}

impl Batching {
    /// A call was appended. Whether the batch is large now, with so many calls in flight and bytes that
    /// wait.
    pub(super) fn appended(&mut self, in_flight: usize, bytes: usize) -> bool {
        self.appended += 1;
        self.crowd = self.crowd.max(in_flight);
        self.is_large(bytes)
    }

    /// Whether the batch is large, with so many bytes that wait.
    pub(super) fn is_large(&self, bytes: usize) -> bool {
        self.appended >= (self.crowd / 4).clamp(LEAST, MOST) || bytes >= LARGE
    }

    /// How many calls were appended since the writer last took the outbox.
    pub(super) fn count(&self) -> usize {
        self.appended
    }

    /// The writer took the batch.
    pub(super) fn taken(&mut self) {
        self.appended = 0;
        self.crowd -= self.crowd / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many calls make a batch large while so many are in flight.
    fn large(batching: &mut Batching, in_flight: usize) -> usize {
        batching.taken();
        (1..).find(|_| batching.appended(in_flight, 0)).unwrap_or_default()
    }

    #[test]
    fn a_quarter_of_those_in_flight_is_a_large_batch() {
        for (in_flight, expected) in [(1, 20), (64, 20), (100, 25), (512, 128), (5000, 256)] {
            assert_eq!(large(&mut Batching::default(), in_flight), expected, "{in_flight}");
        }
        assert!(Batching::default().appended(1, LARGE), "few calls of many bytes");
    }

    #[test]
    fn a_crowd_is_remembered_for_some_batches() {
        let mut batching = Batching::default();
        assert_eq!(large(&mut batching, 800), 200);
        assert_eq!(large(&mut batching, 10), 175);
        for _ in 0..40 {
            large(&mut batching, 10);
        }
        assert_eq!(large(&mut batching, 10), 20);
    }
}
