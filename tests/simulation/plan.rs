//! What is broken, and when: drawn from a seed before the run.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use turmoil::Sim;

/// When the first fault may begin: everybody is registered and listed by then.
const BEGIN: Duration = Duration::from_secs(3);
/// When everything is whole again.
pub(crate) const HEALED: Duration = Duration::from_secs(11);

pub(crate) const REGISTRY: &str = "registry";
pub(crate) const SERVERS: [&str; 3] = ["server0", "server1", "server2"];
pub(crate) const CLIENTS: [&str; 2] = ["client0", "client1"];

/// One thing that is broken for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Messages between two hosts are lost, and so is every connection that had one.
    Cut(&'static str, &'static str),
    /// The same, from the first host to the second.
    CutOneWay(&'static str, &'static str),
    /// Messages between two hosts arrive when it is over.
    Hold(&'static str, &'static str),
    /// The process is killed, and its system closes its connections.
    Kill(&'static str),
    /// The machine stops: nobody is told.
    PowerLoss(&'static str),
}

impl What {
    pub(crate) fn begin(self, sim: &mut Sim<'_>) {
        match self {
            Self::Cut(a, b) => sim.partition(a, b),
            Self::CutOneWay(a, b) => sim.partition_oneway(a, b),
            Self::Hold(a, b) => sim.hold(a, b),
            Self::Kill(host) => sim.crash(host),
            Self::PowerLoss(host) => {
                others(host).for_each(|other| sim.partition(host, other));
                sim.crash(host);
            }
        }
    }

    /// Mends the network, or starts the host anew: a registry without what it knew.
    pub(crate) fn end(self, sim: &mut Sim<'_>) {
        match self {
            Self::Cut(a, b) => sim.repair(a, b),
            Self::CutOneWay(a, b) => sim.repair_oneway(a, b),
            Self::Hold(a, b) => sim.release(a, b),
            Self::Kill(host) => sim.bounce(host),
            Self::PowerLoss(host) => {
                others(host).for_each(|other| sim.repair(host, other));
                sim.bounce(host);
            }
        }
    }

    /// The pairs of hosts that it touches; no pair is touched by two faults.
    fn links(self) -> BTreeSet<(&'static str, &'static str)> {
        let link = |a: &'static str, b: &'static str| (a.min(b), a.max(b));
        match self {
            Self::Cut(a, b) | Self::CutOneWay(a, b) | Self::Hold(a, b) => [link(a, b)].into(),
            Self::Kill(host) | Self::PowerLoss(host) => {
                others(host).map(|other| link(host, other)).collect()
            }
        }
    }
}

fn others(host: &'static str) -> impl Iterator<Item = &'static str> {
    all().filter(move |other| *other != host)
}

fn all() -> impl Iterator<Item = &'static str> {
    [REGISTRY].into_iter().chain(SERVERS).chain(CLIENTS)
}

/// Draws faults until `count` of them touch different links.
pub(crate) fn draw(
    seed: u64,
    count: usize,
    mut what: impl FnMut(&mut StdRng) -> What,
) -> Vec<Fault> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut faults: Vec<Fault> = Vec::new();
    let mut touched = BTreeSet::new();
    for _ in 0..100 {
        let what = what(&mut rng);
        let links = what.links();
        if touched.is_disjoint(&links) {
            touched.extend(links);
            let from = rng.random_range(BEGIN..HEALED - Duration::from_secs(1));
            let lasts = rng.random_range(Duration::from_millis(50)..HEALED - from);
            faults.push(Fault { from, until: from + lasts, what });
        }
        if faults.len() == count {
            break;
        }
    }
    faults
}

pub(crate) fn a_server(rng: &mut StdRng) -> &'static str {
    SERVERS[rng.random_range(0..SERVERS.len())]
}

fn a_client(rng: &mut StdRng) -> &'static str {
    CLIENTS[rng.random_range(0..CLIENTS.len())]
}

/// Some fault of the network between two hosts that talk to each other.
pub(crate) fn a_cut(rng: &mut StdRng) -> What {
    let ends = match rng.random_range(0..3) {
        0 => (a_server(rng), REGISTRY),
        1 => (a_client(rng), REGISTRY),
        _ => (a_client(rng), a_server(rng)),
    };
    cut_between(rng, ends)
}

/// Some fault of the network between the registry and another.
pub(crate) fn a_cut_of_the_registry(rng: &mut StdRng) -> What {
    let other = if rng.random() { a_server(rng) } else { a_client(rng) };
    cut_between(rng, (other, REGISTRY))
}

fn cut_between(rng: &mut StdRng, (a, b): (&'static str, &'static str)) -> What {
    match rng.random_range(0..4) {
        0 => What::Cut(a, b),
        1 => What::CutOneWay(a, b),
        2 => What::CutOneWay(b, a),
        _ => What::Hold(a, b),
    }
}

/// A host that goes and comes back.
pub(crate) fn a_crash(rng: &mut StdRng, host: &'static str) -> What {
    if rng.random() { What::Kill(host) } else { What::PowerLoss(host) }
}
