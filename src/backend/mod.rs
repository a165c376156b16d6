//! Where instances are registered and found: one module for each kind of registry or source.

#[cfg(feature = "http")]
pub mod http;
pub mod memory;
pub mod static_list;
