//! The own zone first, and others when it is full.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::{PickContext, Picker, Selector};
use crate::discovery::{Endpoint, EndpointSet};

/// Attempts in flight at an endpoint of the own zone from which on a call may leave the zone.
const SPILL_AT: u32 = 32;

/// Picks among the endpoints of the client's own zone, by another policy, and among all of them when the
/// zone is full or down.
///
/// A call leaves the zone if the endpoint that the policy picks there cannot be used, or has 32 attempts of
/// this process in flight already ([`spill_at`](Self::spill_at)) while the one picked among all has fewer. A
/// client without a zone, or in one without endpoints, picks among all.
///
/// ```
/// use srpc::selector::{P2c, ZoneFirst};
///
/// let selector = ZoneFirst::new(P2c::new()).spill_at(100);
/// ```
pub struct ZoneFirst<S> {
    within: S,
    spill_at: u32,
}

impl<S> ZoneFirst<S> {
    /// `within` picks, in the zone and among all.
    pub fn new(within: S) -> Self {
        Self { within, spill_at: SPILL_AT }
    }

    /// Sets how many attempts of this process an endpoint of the zone has in flight before calls leave it.
    /// Default: 32.
    #[must_use]
    pub fn spill_at(mut self, attempts: u32) -> Self {
        self.spill_at = attempts;
        self
    }
}

impl<S: Selector> Selector for ZoneFirst<S> {
    fn prepare(&self, endpoints: &Arc<EndpointSet>) -> Box<dyn Picker> {
        let mut members: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, endpoint) in endpoints.iter().enumerate() {
            if let Some(zone) = &endpoint.instance().zone {
                members.entry(zone.clone()).or_default().push(at);
            }
        }
        let zones = members.into_iter().map(|(name, places)| {
            let inside = places.iter().filter_map(|at| endpoints.at(*at)).cloned().collect();
            let endpoints = Arc::new(EndpointSet::new(inside));
            let picker = self.within.prepare(&endpoints);
            (name, Zone { places, endpoints, picker })
        });
        Box::new(Prepared {
            zones: zones.collect(),
            all: self.within.prepare(endpoints),
            spill_at: self.spill_at,
        })
    }
}

struct Prepared {
    zones: HashMap<String, Zone>,
    all: Box<dyn Picker>,
    spill_at: u32,
}

struct Zone {
    /// Where its endpoints are in the whole set.
    places: Vec<usize>,
    endpoints: Arc<EndpointSet>,
    picker: Box<dyn Picker>,
}

impl Picker for Prepared {
    fn pick(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        let zone = cx.zone.and_then(|name| self.zones.get(name));
        let near = zone.and_then(|zone| {
            zone.picker.pick(&zone.endpoints, cx).and_then(|at| zone.places.get(at).copied())
        });
        let usable = |endpoint: &&Endpoint| {
            endpoint.is_usable(cx.now)
                && endpoint.instance().weight > 0
                && !cx.tried.iter().any(|tried| tried.is(endpoint))
        };
        let load = |at: Option<usize>| {
            at.and_then(|at| endpoints.at(at)).filter(usable).map(|one| one.stats().in_flight())
        };
        let near_load = load(near);
        if near_load.is_some_and(|load| load < self.spill_at) {
            return near;
        }
        let far = self.all.pick(endpoints, cx);
        match (near_load, load(far)) {
            (Some(near_load), Some(far_load)) if far_load < near_load => far,
            (Some(_), _) => near,
            (None, _) => far,
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for ZoneFirst<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZoneFirst")
            .field("within", &self.within)
            .field("spill_at", &self.spill_at)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::time::Instant;

    use super::*;
    use crate::instance::{Health, Instance};
    use crate::selector::{P2c, guarded_pick};

    fn set(zones: &[&str]) -> Arc<EndpointSet> {
        let endpoint = |(n, zone): (usize, &&str)| {
            let address = format!("tcp@10.0.0.{}:1", n + 1).parse().unwrap();
            Endpoint::new(Instance::at(address).zone(*zone), Instant::now())
        };
        Arc::new(EndpointSet::new(zones.iter().enumerate().map(endpoint).collect()))
    }

    fn picks(set: &Arc<EndpointSet>, zone: Option<&str>, spill_at: u32) -> BTreeMap<usize, u32> {
        let picker = ZoneFirst::new(P2c).spill_at(spill_at).prepare(set);
        let mut picks = BTreeMap::new();
        for seed in 0..1000 {
            let cx = PickContext::new(Instant::now(), seed).zone(zone);
            *picks.entry(guarded_pick(&*picker, set, &cx).unwrap()).or_default() += 1;
        }
        picks
    }

    #[tokio::test(start_paused = true)]
    async fn the_own_zone_takes_all_calls_while_it_has_room() {
        let set = set(&["a", "b", "a", "b"]);
        assert_eq!(picks(&set, Some("a"), 32).into_keys().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(picks(&set, Some("b"), 32).into_keys().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(picks(&set, Some("c"), 32).len(), 4);
        assert_eq!(picks(&set, None, 32).len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_zone_spills_over_to_who_has_less_to_do() {
        let set = set(&["a", "b", "a", "b"]);
        let busy: Vec<_> = [0, 0, 0, 2, 2, 2, 1]
            .map(|at: usize| set.at(at).unwrap().start(Instant::now()))
            .into_iter()
            .collect();
        assert_eq!(picks(&set, Some("a"), 4).into_keys().collect::<Vec<_>>(), [0, 2]);
        let spilt = picks(&set, Some("a"), 3);
        assert!(spilt.contains_key(&1) && spilt.contains_key(&3), "{spilt:?}");
        drop(busy);
        assert_eq!(picks(&set, Some("a"), 3).into_keys().collect::<Vec<_>>(), [0, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_zone_that_is_down_is_left() {
        let down = |(n, zone): (usize, &str)| {
            let address = format!("tcp@10.0.0.{}:1", n + 1).parse().unwrap();
            let health = if zone == "a" { Health::Draining } else { Health::Up };
            let instance = Instance::at(address).zone(zone).health(health);
            Endpoint::new(instance, Instant::now())
        };
        let endpoints = ["a", "b", "a", "b"].into_iter().enumerate().map(down).collect();
        let set = Arc::new(EndpointSet::new(endpoints));
        assert_eq!(picks(&set, Some("a"), 32).into_keys().collect::<Vec<_>>(), [1, 3]);
    }
}
