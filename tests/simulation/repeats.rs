//! What is the same in two runs of a seed?

use super::world::{Habit, run};
use super::{plan, servers};

#[test]
fn a_seed_repeats() {
    for seed in 0..3 {
        let faults = servers::faults(seed);
        assert_eq!(faults, servers::faults(seed));
        let habits = [Habit::Idempotent, Habit::Careful];
        let digests = [run(seed, &faults, habits).digest(), run(seed, &faults, habits).digest()];
        eprintln!("{seed}: {digests:?} {}", plan::HEALED.as_secs());
    }
}
