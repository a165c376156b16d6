//! What a registry answers to whoever asks for everything it knows.

use std::sync::Arc;
use std::time::Duration;

use super::Protection;
use crate::instance::{Instance, InstanceId, ServiceName};

/// What is registered, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listing {
    /// Names this state of the service, or of the whole registry: `INCARNATION-N`.
    pub revision: Arc<str>,
    /// Whether the registry started so recently that instances may not have come back to it yet.
    pub warming: bool,
    /// In the list of one service that is warming: what is known to have been deregistered, and so is gone
    /// whatever else is not proven.
    pub deregistered: Vec<InstanceId>,
    /// That the registry, of all services, keeps leases that have run out. Their entries are listed
    /// like others, so a client has nothing to do. `None`: it keeps none.
    pub protection: Option<Protection>,
    /// What the source holds and could not read, in words, as in [`Resolved`](crate::discovery::Resolved).
    pub unread: Vec<Arc<str>>,
    /// Every entry, sorted by service (those without one first), then by address.
    pub entries: Vec<Entry>,
}

impl Listing {
    /// A listing of these entries, none of them kept.
    pub fn new(revision: impl Into<Arc<str>>, warming: bool, entries: Vec<Entry>) -> Self {
        Self {
            revision: revision.into(),
            warming,
            deregistered: Vec::new(),
            protection: None,
            unread: Vec::new(),
            entries,
        }
    }
}

/// One registered instance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// What it serves; `None` for what was registered by its address alone.
    pub service: Option<ServiceName>,
    /// The instance.
    pub instance: Instance,
    /// How long its lease still holds if it is not renewed: for one that is kept, how long it still
    /// is. `None`: for ever.
    pub expires_in: Option<Duration>,
}

impl Entry {
    /// An entry of this service, or of none.
    pub fn new(
        service: Option<ServiceName>,
        instance: Instance,
        expires_in: Option<Duration>,
    ) -> Self {
        Self { service, instance, expires_in }
    }
}
