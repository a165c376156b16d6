//! Follows a service by long polls at each registry.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::failure::{Failure, Failures};
use super::replicas::{Doors, first, patience, union};
use super::site::Site;
use super::{Found, Inner};
use crate::call::until;
use crate::discovery::{DiscoveryError, DiscoveryErrorKind, Resolved, Update, UpdateSender};
use crate::instance::ServiceName;

/// The least time between two polls: a service that starts in a hundred copies is told in few
/// answers, and a registry that does not hold its polls is not asked in a loop.
const PACE: Duration = Duration::from_millis(50);
const IDLE_PACE: Duration = Duration::from_secs(1);
/// How long a poll is held while the list proves nothing: its proof comes without a new revision.
const WARMING_POLL: Duration = Duration::from_secs(5);
/// How long a registry is left alone that failed while others answer.
const AWAY_PACE: Duration = Duration::from_secs(1);
/// The longest pause between two polls that a registry can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// How often a registry without `/v1` is asked while others are watched.
const LIST_PACE: Duration = Duration::from_secs(10);

/// One registry, as far as it is followed.
struct Followed<'a> {
    doors: Doors<'a>,
    list: Option<Found>,
    failure: Option<Failure>,
    lacks_v1: bool,
    poll: Pin<Box<dyn Future<Output = Polled> + Send + 'a>>,
}

/// When it was asked, and the list; `None`: there is no `/v1` to poll.
type Polled = (Instant, Result<Option<Found>, Failure>);

/// Sends the list at first and after each change, until nobody listens or no registry answers.
pub(super) async fn feed(inner: Arc<Inner>, service: ServiceName, updates: UpdateSender) {
    let (inner, service) = (&*inner, &service);
    let registries = inner.replicas.known_registries().await;
    let partition = partition(&registries);
    let mut followed: Vec<Followed<'_>> = registries
        .into_iter()
        .map(|doors| {
            let poll = Box::pin(poll(inner, doors.clone(), service, None, Instant::now()));
            Followed { doors, list: None, failure: None, lacks_v1: false, poll }
        })
        .collect();
    // Until when the first list waits for registries that have not answered yet.
    let mut patient_until: Option<Instant> = None;
    let mut sent: Option<Resolved> = None;
    loop {
        let event = tokio::select! {
            biased;
            event = poll_fn(|cx| any(&mut followed, cx)) => Some(event),
            () = until(patient_until), if sent.is_none() && patient_until.is_some() => None,
        };
        if let Some((at, polled)) = event {
            follow(inner, &mut followed[at], service, polled, &mut patient_until);
        }
        if followed.iter().all(|one| one.list.is_none()) {
            let have_all_failed = followed.iter().all(|one| one.failure.is_some() || one.lacks_v1);
            if have_all_failed {
                updates.send(Err(nothing(inner, followed))).await;
                return;
            }
            continue;
        }
        let has_answered = |one: &Followed<'_>| one.list.is_some() || one.failure.is_some();
        let is_patient = patient_until.is_some_and(|end| end > Instant::now());
        if sent.is_none() && is_patient && !followed.iter().all(has_answered) {
            continue;
        }
        let lists: Vec<&Found> = followed.iter().filter_map(|one| one.list.as_ref()).collect();
        let resolved = union(&lists, inner.replicas.have_all_listed()).resolved();
        let is_news = sent.as_ref().is_none_or(|sent| match &resolved.revision {
            Some(_) => {
                (&sent.revision, sent.warming, sent.complete)
                    != (&resolved.revision, resolved.warming, resolved.complete)
            }
            None => *sent != resolved,
        });
        if is_news {
            sent = Some(resolved.clone());
            if !updates.send(Ok(Update::Set(resolved))).await {
                return;
            }
        }
        // Two URLs turned out to lead to one registry, or to two: it is watched anew.
        if self::partition(&inner.replicas.registries()) != partition {
            return;
        }
    }
}

/// Takes in what a registry answered, and polls it again.
fn follow<'a>(
    inner: &'a Inner,
    one: &mut Followed<'a>,
    service: &'a ServiceName,
    (asked, polled): Polled,
    patient_until: &mut Option<Instant>,
) {
    let at = match polled {
        Ok(Some(found)) => {
            one.doors.iter().for_each(|door| door.has_listed());
            let is_news = one.list.as_ref().is_none_or(|list| !list.is_same(&found));
            // Up to a quarter longer: clients that were told at one time do not ask at one time.
            let again = found.again.unwrap_or_default().min(MAX_RETRY_AFTER);
            let again = again.mul_f64(1.0 + rand::random::<f64>() / 4.0);
            let end = Instant::now() + patience(&found);
            *patient_until = Some(patient_until.map_or(end, |until| until.min(end)));
            (one.list, one.failure) = (Some(found), None);
            let idle = if one.lacks_v1 { LIST_PACE } else { IDLE_PACE.min(inner.long_poll) };
            let pace = if is_news && !one.lacks_v1 { PACE } else { idle };
            (asked + pace).max(Instant::now() + again)
        }
        Ok(None) => {
            one.lacks_v1 = true;
            // While others are watched its list is asked for.
            asked
        }
        Err(failure) => {
            one.list = None;
            one.failure = Some(failure);
            Instant::now() + AWAY_PACE
        }
    };
    let seen = one.list.as_ref().and_then(|list| Some((list.revision.clone()?, list.warming)));
    let doors = one.doors.clone();
    one.poll = match one.lacks_v1 {
        true => Box::pin(async move {
            until(Some(at)).await;
            let asked = Instant::now();
            let listed = first(&doors, |site| Box::pin(site.list(Some(service)))).await;
            (asked, listed.map(|(_, found)| Some(found)))
        }),
        false => Box::pin(poll(inner, doors, service, seen, at)),
    };
}

/// One long poll of a registry, which begins at a moment.
async fn poll<'a>(
    inner: &'a Inner,
    doors: Doors<'a>,
    service: &'a ServiceName,
    seen: Option<(Arc<str>, bool)>,
    at: Instant,
) -> Polled {
    until(Some(at)).await;
    let asked = Instant::now();
    let after = seen.as_ref().map(|(revision, warming)| {
        let wait = if *warming { WARMING_POLL } else { inner.long_poll };
        (Arc::clone(revision), wait.min(inner.long_poll))
    });
    let changes = |site: &'a Site| {
        let after = after.clone();
        Box::pin(async move {
            let after = after.as_ref().map(|(revision, wait)| (&**revision, *wait));
            site.changes(service, after).await
        }) as _
    };
    (asked, first(&doors, changes).await.map(|(_, found)| found))
}

/// Why no registry has a list.
fn nothing(inner: &Inner, followed: Vec<Followed<'_>>) -> DiscoveryError {
    if followed.iter().any(|one| one.lacks_v1) {
        // One that had it is more likely to be covered for a moment than replaced: it is watched again
        // soon.
        let kind = match inner.replicas.sites.iter().any(Site::has_spoken_v1) {
            true => DiscoveryErrorKind::Unavailable,
            false => DiscoveryErrorKind::Unsupported,
        };
        return DiscoveryError::new(kind, "the registry has no /v1 to watch");
    }
    let mut failures = Failures::default();
    followed.into_iter().filter_map(|one| one.failure).for_each(|one| failures.keep(one));
    failures.into_one().into()
}

/// Which URLs lead to one registry.
fn partition(registries: &[Doors<'_>]) -> Vec<Vec<usize>> {
    let indexes = |doors: &Doors<'_>| {
        let mut indexes: Vec<usize> = doors.iter().map(|door| door.index).collect();
        indexes.sort_unstable();
        indexes
    };
    registries.iter().map(indexes).collect()
}

/// The next answer of any registry, with its place.
fn any(followed: &mut [Followed<'_>], cx: &mut std::task::Context<'_>) -> Poll<(usize, Polled)> {
    for (at, one) in followed.iter_mut().enumerate() {
        if let Poll::Ready(polled) = one.poll.as_mut().poll(cx) {
            return Poll::Ready((at, polled));
        }
    }
    Poll::Pending
}
