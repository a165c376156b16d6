//! Which seeds a scenario runs, and what is said of one that fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs a scenario for each of so many seeds, or for the one that `SRPC_SEED` names.
pub(crate) fn each(scenario: &str, seeds: u64, run: impl Fn(u64)) {
    let one = std::env::var("SRPC_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in one.map_or(0..seeds, |seed: u64| seed..seed + 1) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!(
                "seed {seed} of {scenario} failed; it is repeated by\n    \
                 SRPC_SEED={seed} cargo test --test simulation {scenario}"
            );
            resume_unwind(panic);
        }
    }
}
