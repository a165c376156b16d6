//! One peer from the caller's side: a connection that is shared, and made again when it breaks.

mod answer;
mod batching;
mod channel;
mod connection;
mod driver;
mod exchange;
mod in_flight;
mod keeper;
mod lane;
#[cfg(all(test, srpc_loom))]
mod model;
mod outcome;
mod replies;
mod shared;
mod sync;
mod waiting;

use std::time::Duration;

use rand::RngExt;

pub(crate) use self::answer::Answer;
pub use self::channel::Channel;
pub use self::connection::Connection;
pub use self::exchange::Exchange;
pub(crate) use self::exchange::Flight;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use self::in_flight::InFlightBench;
pub(crate) use self::lane::Lanes;
use crate::protocol::Limits;

/// How connections are made, watched and limited.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionSettings {
    /// What this side takes, and keeps to; the server's limits hold as well. Default: 4 MiB a body,
    /// 1,024 calls, 8 MiB.
    pub limits: Limits,
    /// How long connecting and the handshake may take together. Default: 5 s.
    pub connect_timeout: Duration,
    /// The first wait after a failed connect; it doubles at each. Default: 50 ms.
    pub reconnect_first: Duration,
    /// The longest wait after a failed connect. Default: 10 s.
    pub reconnect_cap: Duration,
    /// How long without a byte before a ping, while calls wait. Default: 1 s.
    pub ping_busy: Duration,
    /// How long without a byte before a ping, while none waits. Default: 10 s.
    pub ping_idle: Duration,
    /// How long the answer to a ping may take. Default: 2 s.
    pub ping_timeout: Duration,
    /// How long a ping may be unanswered before the connection is closed, and the endpoint dialled
    /// anew. Default: 30 s.
    pub dead_after: Duration,
    /// How many windows of calls may wait for a place in the window. Default: 4.
    pub waiting_windows: u32,
    /// How often deadlines are looked after. Default: 10 ms.
    pub sweep: Duration,
    /// How many connections one endpoint gets. Default: 1.
    pub connections: usize,
}

impl ConnectionSettings {
    /// The wait after a failed dial before which `failures` others failed: between a tenth and the whole
    /// of a bound that doubles with each.
    fn backoff(&self, failures: u32) -> Duration {
        let bound = self.reconnect_first.saturating_mul(2_u32.saturating_pow(failures.min(16)));
        bound.min(self.reconnect_cap).mul_f64(rand::rng().random_range(0.1..=1.0))
    }
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            connect_timeout: Duration::from_secs(5),
            reconnect_first: Duration::from_millis(50),
            reconnect_cap: Duration::from_secs(10),
            ping_busy: Duration::from_secs(1),
            ping_idle: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(2),
            dead_after: Duration::from_secs(30),
            waiting_windows: 4,
            sweep: Duration::from_millis(10),
            connections: 1,
        }
    }
}
