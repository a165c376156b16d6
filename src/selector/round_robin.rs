//! A policy that takes turns, by weight.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::guarded::shares;
use super::{PickContext, Picker, Selector};
use crate::discovery::EndpointSet;

/// The longest table of turns, unless 16 turns for each endpoint are more: 256 KiB.
const MAX_TURNS: usize = 65_536;
const MIN_TURNS_EACH: usize = 16;

/// Takes the endpoints in turn, each as often as its weight says, without bursts.
///
/// Unequal weights are prepared as a table of one round, in which an endpoint with n turns has one
/// in each n-th part of the round: weights 4, 2, 1 and 1 give `abacabad`. A round has as many turns
/// as the weights, divided by their greatest common divisor, add up to. If that is more than
/// 65,536, and more than 16 for each endpoint, the weights are scaled down to the larger of the two
/// and rounded, none of them to 0; an endpoint then has at most one turn in a round too many or too
/// few.
///
/// Clones share one place in the round. It starts at a random one, so that clients that start
/// together do not all call the same server first, and a new snapshot does not put it back.
///
/// A retry takes no turn. It goes to the owner of a random one, so that the calls that a failing
/// endpoint sends back at once do not all move to whoever is next.
#[derive(Clone, Debug)]
pub struct RoundRobin {
    turn: Arc<Turn>,
}

/// On cache lines of its own, since every call on every core adds to it.
#[derive(Debug)]
#[repr(align(128))]
struct Turn(AtomicUsize);

impl RoundRobin {
    /// Takes turns from a random one on.
    pub fn new() -> Self {
        Self::starting_at(rand::random::<u64>() as usize)
    }

    /// Takes turns from this one on; for tests and simulations, which must repeat themselves.
    pub fn starting_at(turn: usize) -> Self {
        Self { turn: Arc::new(Turn(AtomicUsize::new(turn))) }
    }
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self::new()
    }
}

impl Selector for RoundRobin {
    fn prepare(&self, endpoints: &Arc<EndpointSet>) -> Box<dyn Picker> {
        let shares = shares(endpoints);
        let equal = shares.windows(2).all(|pair| pair[0] == pair[1]);
        let listed = shares.first().is_some_and(|share| *share > 0);
        let round = if equal && listed {
            Round::InOrder(shares.len())
        } else {
            Round::Table(table(&shares))
        };
        Box::new(Turns { turn: Arc::clone(&self.turn), round })
    }
}

struct Turns {
    turn: Arc<Turn>,
    round: Round,
}

enum Round {
    InOrder(usize),
    Table(Box<[u32]>),
}

impl Picker for Turns {
    fn pick(&self, _: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        let turns = match &self.round {
            Round::InOrder(len) => *len,
            Round::Table(owners) => owners.len(),
        };
        if turns == 0 {
            return None;
        }
        let turn = if cx.attempt > 1 {
            cx.random_below(turns)
        } else {
            self.turn.0.fetch_add(1, Relaxed) % turns
        };
        match &self.round {
            Round::InOrder(_) => Some(turn),
            Round::Table(owners) => owners.get(turn).map(|owner| *owner as usize),
        }
    }
}

/// Whose turn it is, throughout one round.
///
/// An endpoint with n turns divides the round into n equal parts and has one turn in each. Of those
/// that are in a part without having had its turn, the one whose part ends first is next. This
/// always works out, since together they want exactly as many turns as there are (it is the
/// scheduling of periodic tasks by their earliest deadline, at full load).
fn table(shares: &[u32]) -> Box<[u32]> {
    let turns = turns_each(shares);
    let total: u64 = turns.iter().sum();
    let mut parts: Vec<(u64, u64, u32)> = Vec::with_capacity(total as usize);
    for (turns, index) in turns.iter().zip(0..) {
        let parts_of_one = (0..*turns)
            .map(|part| (part * total / turns, ((part + 1) * total).div_ceil(*turns), index));
        parts.extend(parts_of_one);
    }
    parts.sort_unstable();
    let mut parts = parts.into_iter().peekable();
    let mut begun = BinaryHeap::new();
    let mut owners = Vec::with_capacity(total as usize);
    for turn in 0..total {
        while let Some((_, end, index)) = parts.next_if(|(begin, ..)| *begin <= turn) {
            begun.push(Reverse((end, index)));
        }
        owners.extend(begun.pop().map(|Reverse((_, index))| index));
    }
    owners.into()
}

/// The turns of each endpoint in one round, of which there is a bounded number.
fn turns_each(shares: &[u32]) -> Vec<u64> {
    let divisor = shares.iter().fold(0, |divisor, share| gcd(divisor, *share)).max(1);
    let turns = shares.iter().map(|share| u64::from(share / divisor));
    let total: u64 = turns.clone().sum();
    let most = MAX_TURNS.max(shares.len() * MIN_TURNS_EACH) as u64;
    if total <= most {
        return turns.collect();
    }
    turns.map(|turns| ((turns * most + total / 2) / total).max(turns.min(1))).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Health;
    use crate::selector::guarded::fixture::{counts, cx, endpoint, set};
    use crate::selector::guarded_pick;

    /// The first `len` turns of a round.
    fn turns(weights: &[u32], len: usize) -> Vec<usize> {
        let set = set(weights);
        let picker = RoundRobin::starting_at(0).prepare(&set);
        let cx = cx(1);
        (0..len).map(|_| picker.pick(&set, &cx).unwrap()).collect()
    }

    #[test]
    fn equal_weights_go_in_order() {
        assert_eq!(turns(&[1, 1, 1], 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(turns(&[4, 4], 4), [0, 1, 0, 1]);
        assert_eq!(turns(&[0, 0], 4), [0, 1, 0, 1]);
    }

    #[test]
    fn turns_follow_the_weights_without_bursts() {
        let twice = turns(&[4, 2, 1, 1], 16);
        assert_eq!(twice[..8], [0, 1, 0, 2, 0, 1, 0, 3]);
        assert_eq!(twice[..8], twice[8..]);
        assert_eq!(turns(&[30, 10, 20], 6), [0, 2, 0, 1, 0, 2]);
        // One heavy endpoint among a hundred light ones has every second turn, more or less.
        let mut weights = vec![1; 100];
        weights.push(100);
        let turns = turns(&weights, 200);
        assert!(turns.chunks(2).all(|pair| pair.contains(&100)));
    }

    #[test]
    fn each_turn_lies_in_its_part_of_the_round() {
        let mut uneven: Vec<u32> = (1..60).step_by(2).collect();
        uneven.push(uneven.iter().sum());
        for weights in [(1..=20).collect(), vec![5, 1, 1], vec![7, 3], vec![0, 13, 8, 1, 1], uneven]
        {
            let round: u32 = weights.iter().sum();
            let turns = turns(&weights, round as usize);
            for (index, weight) in weights.iter().enumerate() {
                let mine = (0..round).filter(|turn| turns[*turn as usize] == index);
                assert_eq!(mine.clone().count(), *weight as usize);
                for (part, turn) in (0..).zip(mine) {
                    assert!(part * round < (turn + 1) * weight, "{index}: {turn} is early");
                    assert!(turn * weight < (part + 1) * round, "{index}: {turn} is late");
                }
            }
        }
    }

    #[test]
    fn weight_0_has_no_turn() {
        assert_eq!(turns(&[0, 1, 0, 1], 4), [1, 3, 1, 3]);
    }

    #[test]
    fn what_is_not_up_has_no_turn() {
        let first = endpoint(1, 1);
        let first = first.with_instance(first.instance().clone().health(Health::Draining));
        let set = Arc::new(EndpointSet::new(vec![first.clone(), endpoint(2, 1), endpoint(3, 1)]));
        let picker = RoundRobin::new().prepare(&set);
        assert_eq!(counts(&*picker, &set, 10), [0, 5, 5]);
        let set = Arc::new(EndpointSet::new(vec![first]));
        assert_eq!(RoundRobin::new().prepare(&set).pick(&set, &cx(1)), None);
        let set = Arc::new(EndpointSet::default());
        assert_eq!(RoundRobin::new().prepare(&set).pick(&set, &cx(1)), None);
    }

    #[test]
    fn the_table_is_bounded() {
        assert_eq!(turns_each(&[u32::MAX, 1, 0]), [65_536, 1, 0]);
        assert_eq!(turns_each(&[2_000_003, 1_000_000, 1_000_003]), [32_768, 16_384, 16_384]);
        assert_eq!(turns_each(&[u32::MAX, u32::MAX]), [1, 1]);
        let weights: Vec<u32> = (0..10_000).map(|index| 1 + index * 7).collect();
        let turns = turns_each(&weights);
        assert!(turns.iter().all(|turns| *turns > 0));
        let total: u64 = turns.iter().sum();
        assert!(total <= 16 * 10_000 + 10_000, "{total}");
        assert_eq!(table(&weights).len() as u64, total);
    }

    #[test]
    fn a_new_snapshot_does_not_start_anew() {
        let selector = RoundRobin::starting_at(0);
        let cx = cx(1);
        for expected in [0, 1, 2, 0] {
            let set = set(&[1, 1, 1]);
            assert_eq!(selector.prepare(&set).pick(&set, &cx), Some(expected));
        }
    }

    #[test]
    fn selectors_start_at_different_places() {
        let set = set(&[1; 100]);
        let cx = cx(1);
        let first = |_| RoundRobin::new().prepare(&set).pick(&set, &cx);
        let mut firsts: Vec<Option<usize>> = (0..64).map(first).collect();
        firsts.dedup();
        assert!(firsts.len() > 1);
    }

    #[test]
    fn a_retry_takes_no_turn() {
        let set = set(&[1, 1, 1]);
        let picker = RoundRobin::starting_at(0).prepare(&set);
        assert_eq!(guarded_pick(&*picker, &set, &cx(1)), Some(0));
        let tried = [set.at(0).unwrap().clone()];
        let retry = cx(2).retry(2, &tried);
        let mut moved = [0; 3];
        for _ in 0..1_000 {
            moved[guarded_pick(&*picker, &set, &retry).unwrap()] += 1;
        }
        assert!(moved[0] == 0 && moved[1] > 400 && moved[2] > 400, "{moved:?}");
        assert_eq!(guarded_pick(&*picker, &set, &cx(1)), Some(1));
    }

    #[test]
    fn the_last_turn_of_all_is_followed_by_another() {
        let set = set(&[1, 1, 1]);
        let picker = RoundRobin::starting_at(usize::MAX).prepare(&set);
        assert_eq!(counts(&*picker, &set, 4).iter().sum::<usize>(), 4);
    }
}
