//! Links, servers and the registry are hurt in one run.

use rand::RngExt;

use super::plan::{REGISTRY, a_crash, a_cut, a_server, draw};
use super::world::{Habit, run};
use super::{judge, seeds};

#[test]
fn everything() {
    seeds::each("everything", 30, |seed| {
        let faults = draw(seed, 4, |rng| match rng.random_range(0..4) {
            0 => a_crash(rng, REGISTRY),
            1 => {
                let host = a_server(rng);
                a_crash(rng, host)
            }
            _ => a_cut(rng),
        });
        let ledger = run(seed, &faults, [Habit::Idempotent, Habit::Careful]);
        judge::assert_none(&judge::broken(&ledger), &faults);
    });
}
