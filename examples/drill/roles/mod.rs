//! What this program is when the drill starts it again: a registry, a server or a client.

mod client;
mod orders;
mod registry;
mod server;

use std::error::Error;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::Level;

pub(crate) use self::client::Client;
pub(crate) use self::registry::{Answering, Registry};
pub(crate) use self::server::{HandlerError, Server};
use crate::clock::Clock;

/// The first argument of a process of the drill; the second one is its [`Role`], as JSON.
pub(crate) const WORD: &str = "--role";
/// What the servers offer.
pub(crate) const SERVICE: &str = "Drill";
/// How long a lease is: a tenth or so of the default, since faults last seconds here.
pub(crate) const TTL: Duration = Duration::from_secs(2);
/// How long servers and clients wait for the registry, shortened like the lease.
pub(crate) const REGISTRY_TIMEOUT: Duration = Duration::from_secs(1);

/// What a process of the drill is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    Registry(Registry),
    Server(Server),
    Client(Client),
}

/// Plays a role until it is over. `zero` is when the drill began, in microseconds of Unix time.
pub(crate) fn play(role: &str, zero: &str) -> Result<(), Box<dyn Error>> {
    let role: Role = serde_json::from_str(role)?;
    let clock = Clock::since(zero.parse()?);
    tracing_subscriber::fmt()
        .with_max_level(Level::WARN)
        .with_timer(clock)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match role {
            Role::Registry(registry) => registry.run().await,
            Role::Server(server) => server.run(clock).await,
            Role::Client(client) => client.run(clock).await,
        }
    })
}
