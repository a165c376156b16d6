//! Discovery and registration for programs with an RPC of their own.
//!
//! | of | what | feature |
//! |---|---|---|
//! | any tower client | [`Balance`]: picks an endpoint for each request, and another if nothing was sent | |
//! | tower's balancer | [`Changes`]: endpoints that come and go, a `tower::discover::Discover` | `discover` |
//! | tonic | `tonic::Channels`: a drop-in for `Channel` | `tonic` |
//! | reqwest | `reqwest::Client`: picks for each request | `reqwest` |
//! | axum, and any server that stops when told | [`Registered`]: registers once it listens, and drains in order | |

mod balance;
#[cfg(feature = "discover")]
mod changes;
mod failover;
mod pool;
mod registered;
#[cfg(feature = "reqwest")]
pub mod reqwest;
#[cfg(any(feature = "reqwest", feature = "tonic"))]
mod sent;
#[cfg(feature = "tonic")]
pub mod tonic;

pub use self::balance::{Balance, BalanceBuilder, NoInstance};
#[cfg(feature = "discover")]
pub use self::changes::Changes;
pub use self::failover::{Failover, Once, ToOthers};
pub use self::registered::{Registered, Stopped};
