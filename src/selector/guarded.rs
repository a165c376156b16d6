//! What every policy must respect, so that none has to: the framework's guard around a picker.

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::cell::Cell;

use super::{PickContext, Picker};
#[cfg(doc)]
use crate::discovery::EndpointStats;
use crate::discovery::{Endpoint, EndpointSet};
use crate::instance::Health;
use crate::sync::assert_unlocked;

/// How often a picker is asked for one attempt.
const ASKS: u32 = 3;

/// Asks `picker` for an endpoint of `set`, and answers in its place if no answer of it stands.
///
/// An answer stands if the endpoint is usable ([`Endpoint::is_usable`]), was not tried for this
/// call before, and has a weight; one of weight 0 stands only while no other is usable. An endpoint
/// in its slow start ([`EndpointStats::slow_start`]) stands as often as its share says. The picker
/// is asked three times at most, and no more once it answers `None`. Then a random endpoint, by
/// weight, of the first of these groups that has any is taken:
///
/// 1. usable and not tried,
/// 2. not tried, and doubtful,
/// 3. usable, though tried,
/// 4. not tried, and ejected or waiting to reconnect,
/// 5. all others that are ready.
///
/// Random, and not the next in order: the calls meant for one dead endpoint must not all move to
/// its neighbour. A weight of 0 comes last in its group, and counts nothing at all while another
/// endpoint is usable. What is draining or unready is never taken: `None` if nothing else is there.
pub fn guarded_pick(picker: &dyn Picker, set: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
    assert_unlocked();
    let draw = &Cell::new(None);
    for _ in 0..ASKS {
        let Some(index) = picker.pick(set, cx) else { break };
        if let Some(endpoint) = set.at(index)
            && is_open(endpoint, cx)
            && (endpoint.instance().weight > 0 || !weighted_is_usable(set, cx))
            && takes_its_turn(endpoint, cx, draw)
        {
            return Some(index);
        }
    }
    instead(set, cx)
}

/// Whether an endpoint is usable and was not tried for this call before.
#[inline]
pub(super) fn is_open(endpoint: &Endpoint, cx: &PickContext<'_>) -> bool {
    endpoint.is_usable(cx.now) && !was_tried(endpoint, cx)
}

/// Whether an endpoint that comes back slowly takes this call, for which one number was drawn: asked
/// three times, it would be as good as thrice its share.
fn takes_its_turn(endpoint: &Endpoint, cx: &PickContext<'_>, draw: &Cell<Option<u64>>) -> bool {
    endpoint.stats().slow_start(cx.now).is_none_or(|share| {
        let draw = draw.get().unwrap_or_else(|| {
            let drawn = cx.random() >> 11;
            draw.set(Some(drawn));
            drawn
        });
        (draw as f64) < share * (1_u64 << 53) as f64
    })
}

/// Each endpoint's share as the policies' tables count it: its weight, and 0 if the snapshot itself
/// rules it out (not up, or doubtful). If all that remain have weight 0, each counts 1.
///
/// Ejection and the like are left to the guard: they change without a new snapshot.
pub(super) fn shares(set: &EndpointSet) -> Vec<u32> {
    let is_listed =
        |endpoint: &Endpoint| endpoint.instance().health == Health::Up && !endpoint.is_doubtful();
    let has_weight = |endpoint: &Endpoint| endpoint.instance().weight > 0;
    let by_weight = set.iter().any(|endpoint| is_listed(endpoint) && has_weight(endpoint));
    set.iter()
        .map(|endpoint| match is_listed(endpoint) {
            true if by_weight => endpoint.instance().weight,
            true => 1,
            false => 0,
        })
        .collect()
}

#[cold]
fn instead(set: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
    let by_weight = weighted_is_usable(set, cx);
    let mut best = None;
    let mut chosen = None;
    let mut total = 0;
    for (index, endpoint) in set.iter().enumerate() {
        let weight = endpoint.instance().weight;
        if !endpoint.is_ready() || (weight == 0 && by_weight) {
            continue;
        }
        let rank = (Group::of(endpoint, cx), weight == 0);
        if best.is_none_or(|best| rank < best) {
            best = Some(rank);
            total = 0;
        } else if best != Some(rank) {
            continue;
        }
        // One pass and no memory (reservoir sampling): each takes the place of the one before it
        // with the probability that makes the last one standing a choice by weight.
        let slow = endpoint.stats().slow_start(cx.now).unwrap_or(1.0);
        let share = (f64::from(weight.max(1)) * slow * 1024.0) as u64;
        total += share;
        if cx.random() % total < share {
            chosen = Some(index);
        }
    }
    chosen
}

/// How willingly a ready endpoint is taken when no answer stood, the most willingly first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Open,
    Doubtful,
    Tried,
    /// Ejected, or waiting to reconnect.
    Suspect,
    Rest,
}

impl Group {
    fn of(endpoint: &Endpoint, cx: &PickContext<'_>) -> Self {
        let suspect = endpoint.stats().is_ejected() || endpoint.stats().in_backoff(cx.now);
        match (was_tried(endpoint, cx), suspect, endpoint.is_doubtful()) {
            (false, false, false) => Self::Open,
            (false, false, true) => Self::Doubtful,
            (true, false, false) => Self::Tried,
            (false, true, _) => Self::Suspect,
            (true, _, _) => Self::Rest,
        }
    }
}

fn was_tried(endpoint: &Endpoint, cx: &PickContext<'_>) -> bool {
    cx.tried.iter().any(|tried| tried.is(endpoint))
}

#[cold]
fn weighted_is_usable(set: &EndpointSet, cx: &PickContext<'_>) -> bool {
    set.iter().any(|endpoint| endpoint.instance().weight > 0 && endpoint.is_usable(cx.now))
}
