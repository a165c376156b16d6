//! Follows a service by long polls.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::site::Site;
use crate::call::until;
use crate::discovery::{DiscoveryError, DiscoveryErrorKind, Update, UpdateSender};
use crate::instance::ServiceName;

/// The least time between two polls: a service that starts in a hundred copies is told in few
/// answers, and a registry that does not hold its polls is not asked in a loop.
const PACE: Duration = Duration::from_millis(50);
const IDLE_PACE: Duration = Duration::from_secs(1);
/// How long a poll is held while the list proves nothing: its proof comes without a new revision.
const WARMING_POLL: Duration = Duration::from_secs(5);

/// Sends the list at first and after each change, until nobody listens or a poll fails.
pub(super) async fn feed(inner: Arc<Inner>, service: ServiceName, updates: UpdateSender) {
    let mut seen: Option<(Arc<str>, bool)> = None;
    loop {
        let asked = Instant::now();
        let after = seen.as_ref().map(|(revision, warming)| {
            let wait = if *warming { WARMING_POLL } else { inner.long_poll };
            (&**revision, wait.min(inner.long_poll))
        });
        let found = inner.first(|site| Box::pin(site.changes(&service, after))).await;
        let resolved = match found {
            Ok(Some(found)) => inner.resolved(found),
            Ok(None) => {
                let reason = "the registry has no /v1 to watch";
                // One that had it is more likely to be covered for a moment than replaced: it is
                // watched again soon.
                let kind = match inner.sites.iter().any(Site::has_spoken_v1) {
                    true => DiscoveryErrorKind::Unavailable,
                    false => DiscoveryErrorKind::Unsupported,
                };
                let error = DiscoveryError::new(kind, reason);
                updates.send(Err(error)).await;
                return;
            }
            Err(failure) => {
                updates.send(Err(failure.into())).await;
                return;
            }
        };
        let now = resolved.revision.clone().map(|revision| (revision, resolved.warming));
        let is_news = now != seen;
        seen = now;
        if is_news && !updates.send(Ok(Update::Set(resolved))).await {
            return;
        }
        let pace = if is_news { PACE } else { IDLE_PACE.min(inner.long_poll) };
        until(Some(asked + pace)).await;
    }
}
