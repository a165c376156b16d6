//! What a resolver knows at one moment.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::discovery::{DiscoveryError, DiscoveryErrorKind, EndpointSet};
use crate::instance::ServiceName;
use crate::selector::{PickContext, Picker, guarded_pick};

/// An immutable list of endpoints with the picker prepared for it: the two never come apart.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The endpoints, sorted by address. The same set is shared by all snapshots between which
    /// nothing of it changed.
    pub endpoints: Arc<EndpointSet>,
    /// How far the list can be relied on.
    pub status: SnapshotStatus,
    /// The source's name for the state it last answered with; `None` if it has none, or if a change
    /// came since.
    pub revision: Option<Arc<str>>,
    /// Rises by one with every change of the set; 0 until the first.
    pub generation: u64,
    /// When the last good answer came; before the first, when the resolver was made.
    pub updated_at: Instant,
    /// How many instances are left out because this build lacks their protocol.
    pub skipped: usize,
    /// What went wrong since the last good answer.
    pub last_error: Option<Arc<DiscoveryError>>,
    pub(super) picker: Arc<dyn Picker>,
}

/// How far a snapshot's list can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotStatus {
    /// The source has not answered yet.
    Pending,
    /// The source's last answer, or a list set by hand.
    Ready,
    /// The last good list, served while the source fails, or while there is no runtime for the
    /// resolver's task.
    Stale {
        /// When that began after the last good answer.
        since: Instant,
    },
    /// The source says that the service is gone.
    Gone,
    /// No list yet, and the source fails, or there is no runtime for the resolver's task.
    Failed,
}

impl Snapshot {
    /// Chooses an endpoint: an index into [`endpoints`](Self::endpoints), or `None` if there is
    /// none to offer.
    pub fn pick(&self, cx: &PickContext<'_>) -> Option<usize> {
        guarded_pick(&*self.picker, &self.endpoints, cx)
    }

    /// How long ago the last good answer came.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.updated_at)
    }

    /// The error of one who waited in vain for an instance.
    pub(super) fn nobody(&self, service: &ServiceName, waited: Duration) -> DiscoveryError {
        let kind = match &self.last_error {
            Some(error) => error.kind(),
            None => DiscoveryErrorKind::Unavailable,
        };
        let reason = match (&self.last_error, self.status) {
            (Some(error), _) => error.message().to_owned(),
            (None, _) if self.skipped > 0 => {
                let skipped = self.skipped;
                format!("this build lacks the protocols of all {skipped} that are listed")
            }
            (None, SnapshotStatus::Pending) => "the source has not answered yet".to_owned(),
            (None, SnapshotStatus::Gone) => "the source says that the service is gone".to_owned(),
            (None, _) => "the source lists none".to_owned(),
        };
        DiscoveryError::new(kind, format!("no instance of {service} after {waited:?}: {reason}"))
    }
}

impl SnapshotStatus {
    /// The status once the source fails, or nobody asks it, `now`.
    pub(super) fn failed(self, now: Instant) -> Self {
        match self {
            Self::Pending | Self::Failed => Self::Failed,
            Self::Stale { since } => Self::Stale { since },
            Self::Ready | Self::Gone => Self::Stale { since: now },
        }
    }

    /// Whether there is a list, be it stale or empty.
    pub fn is_listed(self) -> bool {
        !matches!(self, Self::Pending | Self::Failed)
    }
}
