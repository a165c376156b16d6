//! Servers are killed or lose their power, up to all of them at once, and come back.

use super::plan::{Fault, a_crash, a_server, draw};
use super::world::{Habit, run};
use super::{judge, seeds};

#[test]
fn servers() {
    seeds::each("servers", 30, |seed| {
        let faults = faults(seed);
        let ledger = run(seed, &faults, [Habit::Idempotent, Habit::Careful]);
        judge::assert_none(&judge::broken(&ledger), &faults);
    });
}

pub(crate) fn faults(seed: u64) -> Vec<Fault> {
    draw(seed, 1 + (seed % 3) as usize, |rng| {
        let host = a_server(rng);
        a_crash(rng, host)
    })
}
