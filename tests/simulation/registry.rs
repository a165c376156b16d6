//! Nothing but the registry is hurt: it is restarted empty, loses its power, or is cut off.

use rand::RngExt;

use super::plan::{REGISTRY, a_crash, a_cut_of_the_registry, draw};
use super::world::{Habit, run};
use super::{judge, seeds};

#[test]
fn registry() {
    seeds::each("registry", 30, |seed| {
        let faults = draw(seed, 1 + (seed % 4) as usize, |rng| {
            if rng.random() { a_crash(rng, REGISTRY) } else { a_cut_of_the_registry(rng) }
        });
        let ledger = run(seed, &faults, [Habit::Idempotent, Habit::Careful]);
        judge::assert_none(&judge::broken_by_the_registry(&ledger), &faults);
    });
}
