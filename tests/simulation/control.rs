//! A client that sends again whatever became of a call: the judge must find what it did.

use super::judge;
use super::plan::{CLIENTS, Fault, What, a_server, draw};
use super::world::{Habit, run};

#[test]
fn a_blind_retry_is_found() {
    let found: usize = (0..4).map(|seed| doubled(seed, Habit::Blind)).sum();
    assert!(found > 0, "calls were sent again blindly, and no double execution was found");
    assert_eq!((0..4).map(|seed| doubled(seed, Habit::Careful)).sum::<usize>(), 0);
}

fn doubled(seed: u64, habit: Habit) -> usize {
    let ledger = run(seed, &replies_lost(seed), [Habit::Idempotent, habit]);
    let broken = judge::broken(&ledger);
    broken.iter().filter(|what| what.starts_with("executed more than once")).count()
}

/// Calls arrive, and their replies do not.
fn replies_lost(seed: u64) -> Vec<Fault> {
    draw(seed, 3, |rng| What::CutOneWay(a_server(rng), CLIENTS[1]))
}
