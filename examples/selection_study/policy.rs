//! The ways to choose that are compared.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use srpc::discovery::EndpointSet;
use srpc::selector::{P2c, PickContext, Random, RoundRobin, Selector, from_fn};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Random,
    RoundRobin,
    /// The one of two with fewer calls of this client's own.
    TwoChoices,
    /// The one of two with the lower latency times calls of this client's own, as Finagle has it.
    PeakEwma,
    /// The default policy: servers say with each reply how busy they are.
    Reported,
    /// The same where each client knows only ten of the servers.
    Subset,
    /// The one of two with less to do, if both could be asked for each call and would answer at once.
    Asked,
    /// Whoever is the least busy of all now, which nobody can know.
    Oracle,
}

impl Policy {
    pub(crate) const ALL: [Self; 8] = [
        Self::Random,
        Self::RoundRobin,
        Self::TwoChoices,
        Self::PeakEwma,
        Self::Reported,
        Self::Subset,
        Self::Asked,
        Self::Oracle,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round robin",
            Self::TwoChoices => "two choices, own calls",
            Self::PeakEwma => "two choices, Peak-EWMA",
            Self::Reported => "two choices, reported load (P2c)",
            Self::Subset => "P2c in subsets of 10",
            Self::Asked => "two choices, both asked",
            Self::Oracle => "the least busy (oracle)",
        }
    }

    pub(crate) fn color(self) -> &'static str {
        match self {
            Self::Random => "#8c8c8c",
            Self::RoundRobin => "#c17d11",
            Self::TwoChoices => "#3465a4",
            Self::PeakEwma => "#75507b",
            Self::Reported => "#cc0000",
            Self::Subset => "#f57900",
            Self::Asked => "#06989a",
            Self::Oracle => "#4e9a06",
        }
    }

    /// For one client. `busy` is what each server has to do now, in the order of their addresses.
    pub(crate) fn selector(self, seed: u64, busy: &Arc<[AtomicU32]>) -> Arc<dyn Selector> {
        match self {
            Self::Random => Arc::new(Random::new()),
            Self::RoundRobin => Arc::new(RoundRobin::starting_at(seed as usize)),
            Self::TwoChoices => Arc::new(from_fn(fewer_own_calls)),
            Self::PeakEwma => Arc::new(from_fn(peak_ewma)),
            Self::Reported | Self::Subset => Arc::new(P2c::new()),
            Self::Asked => {
                let busy = Arc::clone(busy);
                Arc::new(from_fn(move |_, cx| less_busy(&busy, cx)))
            }
            Self::Oracle => {
                let busy = Arc::clone(busy);
                Arc::new(from_fn(move |_, cx| least_busy(&busy, cx)))
            }
        }
    }

    /// Whether servers say how busy they are.
    pub(crate) fn hears(self) -> bool {
        matches!(self, Self::Reported | Self::Subset)
    }
}

/// What users may write who want nothing else: the better of two by one's own calls in flight.
fn fewer_own_calls(endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
    let one = cx.random_below(endpoints.len());
    let other = cx.random_below(endpoints.len());
    let calls = |index| Some(endpoints.at(index)?.stats().in_flight());
    Some(if calls(other)? < calls(one)? { other } else { one })
}

/// By the decaying peak of latencies that every endpoint's statistics have.
fn peak_ewma(endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
    let one = cx.random_below(endpoints.len());
    let other = cx.random_below(endpoints.len());
    let cost = |index| {
        let stats = endpoints.at(index)?.stats();
        let latency = stats.latency().unwrap_or_default().as_secs_f64();
        Some(latency * f64::from(stats.in_flight() + 1))
    };
    Some(if cost(other)? < cost(one)? { other } else { one })
}

fn less_busy(busy: &[AtomicU32], cx: &PickContext<'_>) -> Option<usize> {
    let (one, other) = (cx.random_below(busy.len()), cx.random_below(busy.len()));
    let calls = |index: usize| busy[index].load(Relaxed);
    Some(if calls(other) < calls(one) { other } else { one })
}

/// Of equals the first from a random one on.
fn least_busy(busy: &[AtomicU32], cx: &PickContext<'_>) -> Option<usize> {
    let start = cx.random_below(busy.len());
    let order = (start..busy.len()).chain(0..start);
    order.min_by_key(|index| busy[*index].load(Relaxed))
}
