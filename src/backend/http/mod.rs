//! The registry over HTTP: its server, and the client that is a `Registry` and a `Discovery`.
//!
//! Two APIs stand side by side on one port. `/srpc/registry` is the contract of one header that
//! older servers and clients speak; `/v1` is JSON with leases, epochs, metadata and long polls.
//! `docs/REGISTRY_API.md` specifies both, so that a client can be written from it alone.
//!
//! ```no_run
//! use srpc::backend::http::{HttpRegistry, RegistryServer};
//! use srpc::{Listener, XClient};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = Listener::bind("tcp@127.0.0.1:9999").await?;
//! let registry = tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));
//!
//! let discovery = HttpRegistry::new("http://127.0.0.1:9999/srpc/registry")?;
//! let client = XClient::new("Foo", discovery)?;
//! # drop((registry, client));
//! # Ok(())
//! # }
//! ```

mod api;
mod client;
mod heartbeat;
mod server;
mod token;

pub use self::client::{HttpRegistry, HttpRegistryBuilder};
pub use self::heartbeat::heartbeat;
pub use self::server::{InvalidTokens, RegistryServer, RegistryServerBuilder, Tokens, Unprotected};
pub use self::token::{InvalidToken, Token};
pub use super::url::InvalidUrl;

/// Where the contract of one header is served, and what a URL without a path means.
pub const DEFAULT_PATH: &str = "/srpc/registry";
