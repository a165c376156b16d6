//! What a server allows and how long it waits.

use std::time::Duration;

use super::limit::Concurrency;
use crate::protocol::Limits;

/// What a server allows and how long it waits.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerSettings {
    /// What one connection may send. Default: 4 MiB a body, 1,024 calls, 8 MiB in flight.
    pub limits: Limits,
    /// How many calls may be at work at once, over all connections. Default: unlimited.
    pub concurrency: Concurrency,
    /// The most connections; fewer where the process's limit of open files is lower. One more takes the place
    /// of an idle one, or is refused. Default: 10,000.
    pub max_connections: usize,
    /// The same for one host, loopback too. Default: 256.
    pub max_connections_per_host: usize,
    /// The most bytes that all connections may hold: bodies in flight, read or half read, and replies that
    /// are not read. What a connection holds below 16 KiB is not counted. Default: 256 MiB.
    pub max_bytes_in_flight: usize,
    /// What one host may hold of them before its connections that make no progress are closed, those that
    /// hold most for longest first. It refuses nothing. `None`: a quarter. Default: `None`.
    pub max_bytes_in_flight_per_host: Option<usize>,
    /// How long the handshake may take. Default: 5 s.
    pub handshake_timeout: Duration,
    /// How long a frame may take from its first byte to its last, and how long a client may take
    /// nothing of what is written to it. Default: 30 s.
    pub frame_timeout: Duration,
    /// How long a connection may be without calls. Default: 5 min.
    pub idle_timeout: Duration,
    /// How long a draining server goes on accepting, so that its clients learn of it, where it is
    /// registered; without a registrar it does not wait. Default: 2 s.
    pub drain_delay: Duration,
    /// How long calls in flight get to end when a server drains. Default: 10 s.
    pub grace: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            concurrency: Concurrency::default(),
            max_connections: 10_000,
            max_connections_per_host: 256,
            max_bytes_in_flight: 256 * 1024 * 1024,
            max_bytes_in_flight_per_host: None,
            handshake_timeout: Duration::from_secs(5),
            frame_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(300),
            drain_delay: Duration::from_secs(2),
            grace: Duration::from_secs(10),
        }
    }
}
