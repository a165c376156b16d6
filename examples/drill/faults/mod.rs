//! What is broken, what must hold meanwhile, and when it was broken.

mod abandon;
mod cut;
mod drain;
mod erring;
mod kill;
mod operator_drain;
mod registry;
mod stop;
mod takeover;
mod unavailable;

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::Fallible;
use crate::cluster::{Cluster, SERVERS};
use crate::roles::{Answering, HandlerError};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Calm,
    Kill,
    Stop,
    RegistryKill,
    RegistryStop,
    RegistryAnswers(Answering),
    CutRegistry,
    CutClients,
    CutRequests,
    CutReplies,
    Drain,
    Takeover,
    OperatorDrain,
    OneRegistry,
    /// One server answers every call with an error of this kind.
    Erring(HandlerError),
    Unavailable,
    Abandon,
}

/// Which calls may fail while something is broken. Idempotent ones may only if they are answered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tolerated {
    Nothing,
    /// Calls that are not idempotent and were in flight on what was broken.
    InFlight,
    /// Calls that what was broken has executed and answered with an error.
    Answered,
    /// All calls, by being rejected.
    Rejected,
}

impl Kind {
    pub(crate) const ALL: [Self; 22] = [
        Self::Calm,
        Self::Kill,
        Self::Stop,
        Self::RegistryKill,
        Self::RegistryStop,
        Self::RegistryAnswers(Answering::Error500),
        Self::RegistryAnswers(Answering::Garbage),
        Self::RegistryAnswers(Answering::Nobody),
        Self::RegistryAnswers(Answering::Html),
        Self::RegistryAnswers(Answering::Hanging),
        Self::CutRegistry,
        Self::CutClients,
        Self::CutRequests,
        Self::CutReplies,
        Self::Drain,
        Self::Takeover,
        Self::OperatorDrain,
        Self::OneRegistry,
        Self::Erring(HandlerError::Internal),
        Self::Erring(HandlerError::Unknown),
        Self::Unavailable,
        Self::Abandon,
    ];

    /// Its name in the table and for `--faults`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::RegistryKill => "registry-kill",
            Self::RegistryStop => "registry-stop",
            Self::RegistryAnswers(Answering::Registry) => "registry",
            Self::RegistryAnswers(Answering::Error500) => "registry-500",
            Self::RegistryAnswers(Answering::Garbage) => "registry-garbage",
            Self::RegistryAnswers(Answering::Nobody) => "registry-empty",
            Self::RegistryAnswers(Answering::Html) => "registry-html",
            Self::RegistryAnswers(Answering::Hanging) => "registry-hang",
            Self::CutRegistry => "cut-registry",
            Self::CutClients => "cut-clients",
            Self::CutRequests => "cut-requests",
            Self::CutReplies => "cut-replies",
            Self::Drain => "drain",
            Self::Takeover => "takeover",
            Self::OperatorDrain => "operator-drain",
            Self::OneRegistry => "one-registry",
            Self::Erring(HandlerError::Internal) => "erring-internal",
            Self::Erring(HandlerError::Unknown) => "erring-unknown",
            Self::Unavailable => "unavailable",
            Self::Abandon => "abandon",
        }
    }

    /// Whether packets must vanish for it.
    pub(crate) fn needs_network(self) -> bool {
        matches!(self, Self::CutRegistry | Self::CutClients | Self::CutRequests | Self::CutReplies)
    }

    /// Whether one registry must be left when another is away.
    pub(crate) fn needs_two_registries(self) -> bool {
        self == Self::OneRegistry
    }

    /// What it takes at the most, recovery included, where all is well.
    pub(crate) fn typical(self) -> Duration {
        Duration::from_millis(match self {
            Self::Calm => 1_000,
            Self::Unavailable | Self::Abandon => 2_500,
            Self::Kill | Self::RegistryKill | Self::RegistryStop | Self::RegistryAnswers(_) => {
                5_000
            }
            Self::CutRegistry
            | Self::Drain
            | Self::Takeover
            | Self::OperatorDrain
            | Self::OneRegistry
            | Self::Erring(_) => 7_000,
            Self::Stop | Self::CutClients | Self::CutRequests | Self::CutReplies => 9_000,
        })
    }

    pub(crate) fn tolerated(self) -> Tolerated {
        match self {
            Self::Kill | Self::Stop | Self::CutClients | Self::CutRequests | Self::CutReplies => {
                Tolerated::InFlight
            }
            Self::Erring(_) => Tolerated::Answered,
            Self::Unavailable => Tolerated::Rejected,
            _ => Tolerated::Nothing,
        }
    }

    /// Breaks it, waits, and mends it. What comes of it is the judge's to find.
    pub(crate) async fn inject(
        self,
        cluster: &mut Cluster,
        rng: &mut StdRng,
        window: &mut Window,
    ) -> Fallible<()> {
        match self {
            Self::Calm => {
                sleep(Duration::from_millis(800)).await;
                Ok(())
            }
            Self::Kill => kill::inject(cluster, rng, window).await,
            Self::Stop => stop::inject(cluster, rng, window).await,
            Self::RegistryKill => registry::kill(cluster, window).await,
            Self::RegistryStop => registry::stop(cluster, window).await,
            Self::RegistryAnswers(it) => registry::answer(cluster, rng, window, it).await,
            Self::CutRegistry => cut::from_registry(cluster, rng, window).await,
            Self::CutClients => cut::from_clients(cluster, rng, window, true, true).await,
            Self::CutRequests => cut::from_clients(cluster, rng, window, true, false).await,
            Self::CutReplies => cut::from_clients(cluster, rng, window, false, true).await,
            Self::Drain => drain::inject(cluster, rng, window).await,
            Self::Takeover => takeover::inject(cluster, rng, window).await,
            Self::OperatorDrain => operator_drain::inject(cluster, rng, window).await,
            Self::OneRegistry => registry::kill_one(cluster, rng, window).await,
            Self::Erring(it) => erring::inject(cluster, rng, window, it).await,
            Self::Unavailable => unavailable::inject(cluster, window).await,
            Self::Abandon => abandon::inject(cluster, rng, window).await,
        }
    }
}

/// The time in which one thing was broken, recovery included.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) kind: Kind,
    /// By the drill's clock, like all times here.
    pub(crate) from: u64,
    pub(crate) until: u64,
    /// Where calls may have failed, as `host:port`.
    pub(crate) victims: Vec<String>,
    /// When no server at all answered calls.
    pub(crate) unserved: Option<(u64, u64)>,
    /// When a server answered every call with an error.
    pub(crate) erring: Option<(u64, u64)>,
    /// Calls that were made beside those in the ledgers.
    pub(crate) beside: u64,
    /// How long after it was mended everybody knew and used every server again, in microseconds.
    pub(crate) whole_after: Option<u64>,
    /// What was done, in words.
    pub(crate) done: String,
    /// What did not hold, as far as it was seen at once.
    pub(crate) broken: Vec<String>,
}

impl Window {
    pub(crate) fn new(kind: Kind, from: u64) -> Self {
        Self {
            kind,
            from,
            until: from,
            victims: Vec::new(),
            unserved: None,
            erring: None,
            beside: 0,
            whole_after: None,
            done: String::new(),
            broken: Vec::new(),
        }
    }

    /// Chooses a server to be broken.
    fn victim(&mut self, cluster: &mut Cluster, rng: &mut StdRng, how: &str) -> Fallible<usize> {
        let slot = rng.random_range(0..SERVERS);
        let server = cluster.server(slot)?;
        self.done = format!("{how} {} at {}", server.child.name, server.address);
        self.victims.push(server.address.clone());
        Ok(slot)
    }
}
