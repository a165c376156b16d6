//! A framework for services that run as several instances: registration, discovery, selection and
//! calls.
//!
//! A server registers itself and keeps its lease alive; a client discovers the live instances,
//! selects one for each call, and calls it through whatever tower layers its user composes.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

// The floors, from the ground up; a floor uses only the floors below it.
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

#[cfg(feature = "testing")]
pub mod testing;

pub use crate::call::{Call, Reply};
pub use crate::error::{Error, Execution, Kind, Status};
pub use crate::instance::{Address, Health, Instance, ServiceName};
pub use crate::server::{Server, Service};
pub use crate::transport::Listener;
pub use crate::xclient::XClient;
