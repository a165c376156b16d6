//! What one side of a connection takes.

use super::MAX_SKIPPED;

/// What one side of a connection takes; each tells the other in its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The largest body, in bytes. Default: 4 MiB.
    pub max_body: u32,
    /// The most calls in flight. Default: 1,024.
    pub window_calls: u32,
    /// The most bytes of bodies in flight. Default: 8 MiB.
    pub window_bytes: u32,
}

impl Limits {
    /// What every server takes, and what a client keeps to that does not wait for the answer to
    /// its handshake: 64 calls, 64 KiB a body.
    pub const LEAST: Self =
        Self { max_body: 64 * 1024, window_calls: 64, window_bytes: 64 * 64 * 1024 };

    /// The room that method, metadata and fixed fields take beside the body.
    pub const HEAD: u32 = 32 * 1024;

    /// The longest payload of a frame under these limits.
    pub fn max_payload(&self) -> u32 {
        self.max_body.saturating_add(Self::HEAD)
    }

    /// The largest body that can be allowed: a longer frame ends its connection.
    pub const LARGEST_BODY: u32 = MAX_SKIPPED - Self::HEAD;

    /// The most calls in flight that can be allowed: an id has 20 bits for its slot.
    pub const MOST_CALLS: u32 = (1 << 20) - 1;

    /// These limits, none below what every peer must take, and none beyond what the frames can say.
    #[must_use]
    pub fn clamped(self) -> Self {
        Self {
            max_body: self.max_body.clamp(Self::LEAST.max_body, Self::LARGEST_BODY),
            window_calls: self.window_calls.clamp(Self::LEAST.window_calls, Self::MOST_CALLS),
            window_bytes: self.window_bytes.max(Self::LEAST.window_bytes),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body: 4 * 1024 * 1024, window_calls: 1024, window_bytes: 8 * 1024 * 1024 }
    }
}
