//! A client that sends again whatever became of a call: the judge must find what it did.

use super::world::{Habit, run};
use super::{judge, servers};

#[test]
fn a_blind_retry_is_found() {
    let doubled: usize = (0..6)
        .map(|seed| {
            let ledger = run(seed, &servers::faults(seed), [Habit::Idempotent, Habit::Blind]);
            let broken = judge::broken(&ledger);
            broken.iter().filter(|what| what.starts_with("executed more than once")).count()
        })
        .sum();
    assert!(doubled > 0, "calls were sent again blindly, and no double execution was found");
}
