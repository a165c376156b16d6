//! A policy that leaves the choice to chance, by weight.

use std::sync::Arc;

use super::guarded::shares;
use super::{PickContext, Picker, Selector};
use crate::discovery::EndpointSet;

/// Takes a random endpoint, each with a probability in proportion to its weight.
///
/// A choice takes the same time whatever the number of endpoints: unequal weights are prepared as
/// an alias table (Walker; Vose 1991) of 16 bytes an endpoint.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Random;

impl Random {
    /// The policy; there is nothing to set.
    pub fn new() -> Self {
        Self
    }
}

impl Selector for Random {
    fn prepare(&self, endpoints: &Arc<EndpointSet>) -> Box<dyn Picker> {
        let shares = shares(endpoints);
        if shares.iter().all(|share| *share == 0) {
            return Box::new(Aliases { slots: Box::default() });
        }
        match Aliases::of(&shares) {
            Some(aliases) => Box::new(aliases),
            None => Box::new(Uniform),
        }
    }
}

struct Uniform;

impl Picker for Uniform {
    fn pick(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        (!endpoints.is_empty()).then(|| cx.random_below(endpoints.len()))
    }
}

/// As many equal slots as there are endpoints, each shared by at most two of them.
pub(super) struct Aliases {
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy)]
struct Slot {
    /// Of 2^64 random numbers, how many leave the slot to its own endpoint.
    own: u64,
    /// Who has the rest of the slot.
    alias: u32,
}

impl Aliases {
    /// The table of these shares; `None` if all are equal.
    pub(super) fn of(shares: &[u32]) -> Option<Self> {
        let is_even = shares.windows(2).all(|pair| pair[0] == pair[1]);
        (!is_even).then(|| Self::new(shares))
    }

    /// A random index, by its share.
    pub(super) fn draw(&self, cx: &PickContext<'_>) -> Option<usize> {
        let index = cx.random_below(self.slots.len());
        let slot = self.slots.get(index)?;
        Some(if cx.random() < slot.own { index } else { slot.alias as usize })
    }

    /// At least one share must not be 0.
    fn new(shares: &[u32]) -> Self {
        let total: u64 = shares.iter().map(|share| u64::from(*share)).sum();
        // What is left of each endpoint's share, in units of which each slot takes `total`.
        let mut left: Vec<u64> =
            shares.iter().map(|share| u64::from(*share) * shares.len() as u64).collect();
        let (mut under, mut over): (Vec<usize>, Vec<usize>) =
            (0..shares.len()).partition(|index| left[*index] < total);
        let mut slots: Vec<Slot> =
            (0..shares.len()).map(|index| Slot { own: u64::MAX, alias: index as u32 }).collect();
        // Whoever cannot fill his slot has it filled up by one who has more than a slot. The units
        // are whole numbers, so that the last slot is exactly full and nobody is left over.
        while let (Some(short), Some(rich)) = (under.pop(), over.last().copied()) {
            let own = (u128::from(left[short]) << 64) / u128::from(total);
            slots[short] = Slot { own: own as u64, alias: rich as u32 };
            left[rich] -= total - left[short];
            if left[rich] < total {
                over.pop();
                under.push(rich);
            }
        }
        Self { slots: slots.into() }
    }
}

impl Picker for Aliases {
    fn pick(&self, _: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        self.draw(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Health;
    use crate::selector::guarded::fixture::{assert_near, counts, cx, endpoint, set};

    fn picked(weights: &[u32], picks: usize) -> Vec<usize> {
        let set = set(weights);
        counts(&*Random.prepare(&set), &set, picks)
    }

    #[test]
    fn equal_weights_have_equal_shares() {
        for count in picked(&[3; 10], 100_000) {
            assert_near(count, 10_000, 4);
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let counts = picked(&[1, 0, 2, 7, 10], 200_000);
        assert_eq!(counts[1], 0);
        for (count, expected) in [(0, 10_000), (2, 20_000), (3, 70_000), (4, 100_000)] {
            assert_near(counts[count], expected, 3);
        }
    }

    #[test]
    fn many_different_weights_have_their_shares() {
        let weights: Vec<u32> = (1..=100).collect();
        let counts = picked(&weights, 505_000);
        for (count, weight) in counts.iter().zip(weights).skip(10) {
            assert_near(*count, 100 * weight as usize, 15);
        }
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let counts = picked(&[u32::MAX, u32::MAX, 1, u32::MAX - 1], 30_000);
        assert_eq!(counts[2], 0);
        for index in [0, 1, 3] {
            assert_near(counts[index], 10_000, 4);
        }
    }

    #[test]
    fn weight_0_everywhere_is_equal() {
        for count in picked(&[0, 0], 10_000) {
            assert_near(count, 5_000, 4);
        }
    }

    #[test]
    fn what_is_not_up_has_no_share() {
        let draining = endpoint(1, 1);
        let draining = draining.with_instance(draining.instance().clone().health(Health::Draining));
        let set = Arc::new(EndpointSet::new(vec![draining.clone(), endpoint(2, 1)]));
        assert_eq!(counts(&*Random.prepare(&set), &set, 100), [0, 100]);
        let set = Arc::new(EndpointSet::new(vec![draining]));
        assert_eq!(Random.prepare(&set).pick(&set, &cx(1)), None);
        let set = Arc::new(EndpointSet::default());
        assert_eq!(Random.prepare(&set).pick(&set, &cx(1)), None);
    }
}
