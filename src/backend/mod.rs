//! Where instances are registered and found: one module for each kind of registry or source.

#[cfg(feature = "dns")]
pub mod dns;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "http")]
mod exchange;
#[cfg(any(feature = "etcd", feature = "file", feature = "zookeeper"))]
mod fields;
#[cfg(feature = "file")]
pub mod file;
#[cfg(any(feature = "etcd", feature = "zookeeper"))]
mod hosts;
#[cfg(feature = "http")]
pub mod http;
mod join;
#[cfg(any(feature = "etcd", feature = "zookeeper"))]
mod mass_expiry;
pub mod memory;
mod open;
pub mod static_list;
mod url;
#[cfg(any(feature = "etcd", feature = "zookeeper"))]
mod value;
pub mod wrap;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

pub use self::open::{OpenOptions, Opened, open};
pub use self::url::{InvalidUrl, masked as masked_url};
