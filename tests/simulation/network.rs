//! Links between hosts that talk to each other are cut, one way or both, or held up.

use super::plan::{a_cut, draw};
use super::world::{Habit, run};
use super::{judge, seeds};

#[test]
fn network() {
    seeds::each("network", 40, |seed| {
        let faults = draw(seed, 1 + (seed % 4) as usize, a_cut);
        let ledger = run(seed, &faults, [Habit::Idempotent, Habit::Careful]);
        judge::assert_none(&judge::broken(&ledger), &faults);
    });
}
