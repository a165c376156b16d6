//! What the fuzz targets run, and what `tests/corpus.rs` runs over their corpora.
//!
//! A target takes any bytes and panics if a promise is broken; what the bytes mean is said in its
//! file. `fuzz_targets/` has a program for each, which does nothing but call it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a promise that is broken panics")]
#![allow(unreachable_pub, reason = "a module of a test as well as a crate")]

mod address;
mod call;
mod client;
mod frame;
mod handshake;
mod registry;
mod reply;
mod server;

use std::time::Duration;

pub use self::address::address;
pub use self::call::call;
pub use self::client::client;
pub use self::frame::frame;
pub use self::handshake::handshake;
pub use self::registry::registry;
pub use self::reply::reply;
pub use self::server::server;

/// A target.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its program and of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("address", address),
    ("call", call),
    ("client", client),
    ("frame", frame),
    ("handshake", handshake),
    ("registry", registry),
    ("reply", reply),
    ("server", server),
];

/// Runs `act` on a clock that goes on when nothing else can; what takes a day of it hangs.
fn run<T>(act: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    runtime.block_on(async { tokio::time::timeout(day, act).await.expect("it hangs") })
}

/// Cuts `bytes` into reads as `how` says: of one length, or of lengths that vary.
fn reads(bytes: &[u8], how: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    let mut state = u32::from(how) | 1;
    std::iter::from_fn(move || {
        let wanted = match how {
            0 => usize::MAX,
            1..128 => usize::from(how),
            _ => {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                1 + (state >> 24) as usize
            }
        };
        let (read, after) = rest.split_at(wanted.min(rest.len()));
        rest = after;
        (!read.is_empty()).then_some(read)
    })
}
