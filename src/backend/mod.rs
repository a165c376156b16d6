//! Where instances are registered and found: one module for each kind of registry or source.

#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "http")]
mod exchange;
#[cfg(feature = "http")]
pub mod http;
pub mod memory;
pub mod static_list;
mod url;

pub use self::url::InvalidUrl;
