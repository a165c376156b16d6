//! The lock, the counter and the signal that a connection's parts share: the real ones, or loom's
//! where the model checks them.

#[cfg(not(all(test, srpc_loom)))]
pub(super) use {
    crate::sync::{Mutex, MutexGuard},
    std::sync::atomic::AtomicU64,
    tokio::sync::Notify,
};

#[cfg(all(test, srpc_loom))]
pub(super) use super::model::sync::{AtomicU64, Mutex, MutexGuard, Notify};
