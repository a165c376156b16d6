//! What happened, as everybody tells it: which calls were made, what came of them, which ran where.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use srpc::{Execution, Kind};

/// One ledger for all hosts of a run. It lies outside of the simulation, so that crashes spare it.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) calls: BTreeMap<u64, Call>,
    /// By call, the hosts whose handlers started it, in order.
    pub(crate) executed: BTreeMap<u64, Vec<&'static str>>,
    /// When a client saw no instance at all after it had seen some.
    pub(crate) empty: Vec<(&'static str, Duration)>,
    /// What was not there when it had to be, after everything was whole again.
    pub(crate) not_healed: Vec<String>,
    /// The hosts whose last look was made.
    pub(crate) looked: Vec<&'static str>,
    trace: DefaultHasher,
}

/// One call, as its client sees it.
pub(crate) struct Call {
    pub(crate) client: &'static str,
    pub(crate) idempotent: bool,
    pub(crate) sent: Duration,
    /// How long it took and what came of it; `None`: it never ended.
    pub(crate) outcome: Option<(Duration, Outcome)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Right,
    /// A reply that belongs to another call.
    Wrong,
    Failed(Kind, Execution, String),
}

impl Ledger {
    pub(crate) fn sent(&mut self, id: u64, client: &'static str, idempotent: bool, sent: Duration) {
        self.note(("sent", id, sent));
        self.calls.insert(id, Call { client, idempotent, sent, outcome: None });
    }

    pub(crate) fn ended(&mut self, id: u64, took: Duration, outcome: Outcome) {
        self.note(("ended", id, took, &outcome));
        self.calls.get_mut(&id).unwrap().outcome = Some((took, outcome));
    }

    pub(crate) fn ran(&mut self, id: u64, server: &'static str, at: Duration) {
        self.note(("ran", id, server, at));
        self.executed.entry(id).or_default().push(server);
    }

    pub(crate) fn executions(&self, id: u64) -> usize {
        self.executed.get(&id).map_or(0, Vec::len)
    }

    pub(crate) fn failed(&self) -> impl Iterator<Item = (u64, &Call, &Outcome)> {
        self.calls.iter().filter_map(|(id, call)| match &call.outcome {
            Some((_, outcome @ Outcome::Failed(..))) => Some((*id, call, outcome)),
            _ => None,
        })
    }

    /// A number for everything that happened, in its order.
    pub(crate) fn digest(&self) -> u64 {
        self.trace.finish()
    }

    fn note(&mut self, event: impl Hash) {
        event.hash(&mut self.trace);
    }
}

/// What the handler answers to a call: no other call has the same.
pub(crate) fn answer(id: u64) -> u64 {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
}
