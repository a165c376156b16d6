//! Servers of others that examples and tests run: started on free ports, ended with the value.

#![allow(dead_code, reason = "each example uses one of them")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a program that fails fails its user")]
#![allow(clippy::disallowed_methods, reason = "a server of names has sockets of its own")]

#[cfg(feature = "etcd")]
pub(crate) mod etcd;
pub(crate) mod program;
#[cfg(feature = "dns")]
pub(crate) mod zone;
#[cfg(feature = "zookeeper")]
pub(crate) mod zookeeper;
