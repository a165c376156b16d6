//! A framework for services that run as several instances: registration, discovery, selection and
//! calls.
//!
//! A server registers itself and keeps its lease alive; a client discovers the live instances,
//! selects one for each call, and calls it through whatever tower layers its user composes. The
//! three doors, [`Registry`](registry::Registry), [`Discovery`](discovery::Discovery) and
//! [`Selector`](selector::Selector), are small traits: a list set by hand, the crate's own registry
//! over HTTP or one's own code serve the same [`XClient`].
//!
//! # A server and a client
//! On a network in memory and over a registry in memory. On real sockets leave out
//! [`transport`](xclient::XClientBuilder::transport) and bind with [`Listener::bind`]; between
//! processes take `backend::http::HttpRegistry` as the registry.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use srpc::backend::memory::MemoryRegistry;
//! use srpc::registry::Registrar;
//! use srpc::transport::{Memory, Transport};
//! use srpc::{Server, Service, XClient};
//!
//! async fn sum((a, b): (i64, i64)) -> Result<i64, &'static str> {
//!     a.checked_add(b).ok_or("the sum is too large")
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let network = Memory::new();
//!     let registry = MemoryRegistry::new();
//!
//!     let server = Server::new()
//!         .service(Service::new("Foo").method("Sum", sum))
//!         .registrar(Registrar::new(Arc::new(registry.clone())));
//!     let listener = network.bind(&"mem@server".parse()?).await?;
//!     tokio::spawn(server.serve(listener, std::future::pending()));
//!
//!     let client = XClient::builder("Foo", registry).transport(Arc::new(network)).build()?;
//!     client.resolver().ready(Duration::from_secs(5)).await?;
//!     let sum: i64 = client.call("Foo.Sum", &(2, 3)).await?;
//!     assert_eq!(sum, 5);
//!     Ok(())
//! }
//! ```
//!
//! # When a call fails
//! An [`Error`] has a [`Kind`], the address of the instance, the number of the attempt, and an
//! [`Execution`], which says whether the call may have had an effect. `NotSent` and `Rejected` are
//! promises that its handler did not run. What may have run is sent again only if its caller marked
//! it as idempotent.
//!
//! # Map
//! From the top down; a module uses only those below it.
//!
//! | module | answers |
//! |---|---|
//! | [`xclient`] | how does a call find its way: layers, retry, selection, broadcast? |
//! | [`server`], [`client`] | one peer, from the callee's and from the caller's side |
//! | [`transport`] | bytes in, bytes out: TCP, Unix sockets, TLS, a network in memory |
//! | [`registry`] | how does an instance make itself known, and stay so? |
//! | [`discovery`] | which instances live, and what is known of them? |
//! | [`selector`] | which of them takes this call? |
//! | [`call`], [`error`], [`instance`], [`protocol`] | values: no I/O, no clock, no async |
//!
//! [`adapt`] gives discovery and registration to programs with an RPC of their own: tower, tonic, reqwest,
//! axum. [`backend`] holds what implements the doors, and the feature `testing` adds `testing`, the
//! conformance suite for implementations of one's own.
//!
//! # Features
//! `http` (default): the registry over HTTP. `etcd`, `zookeeper`, `dns`, `file`: the backends of these
//! names. `tonic`, `reqwest`, `discover`: the adapters that need other crates. `testing`: the conformance
//! suite. `tls`: `transport::Tls`, for encryption and for peers that prove who they are.

// The floors, from the ground up; a floor uses only the floors below it.
mod sync;

pub mod call;
pub mod error;
pub mod instance;
pub mod protocol;

pub mod discovery;
pub mod registry;
pub mod selector;

pub mod transport;

pub mod client;
pub mod server;

pub mod xclient;

pub mod backend;

pub mod adapt;

#[cfg(feature = "testing")]
pub mod testing;

/// Put it on an implementation of a trait with async methods: `#[srpc::async_trait]`.
pub use async_trait::async_trait;

pub use crate::call::{Call, Reply};
pub use crate::error::{Error, Execution, Kind, Status};
pub use crate::instance::{Address, Health, Instance, ServiceName};
pub use crate::server::{Server, Service};
pub use crate::transport::Listener;
pub use crate::xclient::XClient;

/// The README's programs, compiled as tests.
#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../README.md")]
struct Readme;
