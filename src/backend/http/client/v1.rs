//! The verbs of `/v1`. Each answers `None` where there is no `/v1`.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Found;
use super::api::{self, Outcome};
use super::failure::{Failure, plain};
use super::site::Site;
use crate::backend::exchange::Ask;
use crate::backend::memory::{Entry, Protection};
use crate::discovery::MAX_UNREAD;
use crate::instance::{InstanceId, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, RegistryError, RegistryErrorKind, Renewal,
};
use crate::sync::event;

pub(super) async fn register(
    site: &Site,
    registration: &Registration,
) -> Result<Option<Lease>, Failure> {
    let ask = post(
        api::REGISTER,
        &api::Register {
            service: registration.service.clone(),
            ttl_ms: millis(registration.ttl),
            instance: registration.instance.clone(),
        },
    )?
    .bulk();
    let granted = site.ask_v1::<api::Granted>(ask, Duration::ZERO).await?;
    Ok(granted.map(|granted| {
        site.is_called(granted.registry);
        Lease::new(granted.lease_id, granted.ttl_ms.map(Duration::from_millis))
    }))
}

pub(super) async fn renew(
    site: &Site,
    held: &[Held],
) -> Result<Option<Vec<Result<Renewal, RegistryError>>>, Failure> {
    let leases = held.iter().map(|held| api::HeldLease {
        lease_id: Arc::clone(&held.lease.id),
        service: held.registration.service.clone(),
        ttl_ms: millis(held.registration.ttl),
        instance: held.registration.instance.clone(),
    });
    let ask = post(api::RENEW, &api::Renew { held: leases.collect() })?;
    let outcomes = match site.ask_v1::<api::Renewed>(ask, Duration::ZERO).await {
        Ok(None) => return Ok(None),
        Ok(Some(renewed)) => {
            site.is_called(renewed.registry);
            renewed.results
        }
        // All failed: the problem is the first one's, and the results tell each one's.
        Err(Failure::Problem(mut problem)) => match problem.results.take() {
            Some(results) => results,
            None if problem.kind == api::UNKNOWN_LEASE => {
                vec![Outcome::Lost { kind: problem.kind }; held.len()]
            }
            None => return Err(Failure::Problem(problem)),
        },
        Err(failure) => return Err(failure),
    };
    if outcomes.len() != held.len() {
        let (asked, told) = (held.len(), outcomes.len());
        return Err(Failure::Nonsense(format!("{told} results for {asked} leases")));
    }
    let url = &site.location.url;
    Ok(Some(outcomes.into_iter().map(|outcome| renewal(outcome, url)).collect()))
}

pub(super) async fn deregister(site: &Site, held: &[Held]) -> Result<Option<()>, Failure> {
    let leaving = held.iter().map(|held| api::Leaving {
        lease_id: Arc::clone(&held.lease.id),
        service: held.registration.service.clone(),
        id: held.registration.instance.id.clone(),
        epoch: held.registration.instance.epoch,
    });
    let ask = post(api::DEREGISTER, &api::Deregister { held: leaving.collect() })?;
    let Some(answered) = site.ask_v1::<api::Deregistered>(ask, Duration::ZERO).await? else {
        return Ok(None);
    };
    let refused = answered.results.into_iter().find_map(|outcome| match outcome {
        Outcome::Error { kind, detail, .. } => Some((kind, detail)),
        _ => None,
    });
    match refused {
        None => Ok(Some(())),
        Some((kind, detail)) => Err(Failure::Problem(Box::new(api::Problem {
            status: if kind == api::NOT_ALLOWED { 403 } else { 500 },
            kind,
            title: "not deregistered".into(),
            detail: plain(&detail),
            held_epoch: None,
            held_by: None,
            results: None,
            retry_after: None,
        }))),
    }
}

/// False: the instance is not there.
pub(super) async fn set_health(
    site: &Site,
    service: &ServiceName,
    id: &InstanceId,
    word: &HealthOverride,
) -> Result<Option<bool>, Failure> {
    let HealthOverride { health, by, reason, duration } = word.clone();
    let word = api::Said { health, by, reason, for_ms: duration.map(millis) };
    // Whoever asks for more may wait by looking at the list.
    let drain = api::Drain { service: service.clone(), id: id.clone(), word, wait_ms: Some(0) };
    match site.ask_v1::<IgnoredAny>(post(api::DRAIN, &drain)?, Duration::ZERO).await {
        Err(Failure::Problem(problem)) if problem.kind == api::UNKNOWN_INSTANCE => Ok(Some(false)),
        answered => Ok(answered?.map(|_| true)),
    }
}

pub(super) async fn services(site: &Site) -> Result<Option<Vec<ServiceName>>, Failure> {
    let answered = site.ask_v1::<api::Services>(Ask::get(api::SERVICES), Duration::ZERO).await?;
    Ok(answered.map(|answered| answered.services))
}

/// Asks which registry answers here.
pub(super) async fn introduce(site: &Site) -> Result<Option<()>, Failure> {
    #[derive(Deserialize)]
    struct Introduced {
        #[serde(default)]
        registry: Option<Arc<str>>,
    }
    // A service that nobody has, so that the answer is short.
    let target = format!("{}?service={}", api::INSTANCES, super::seed::nobody());
    let answered = site.ask_v1::<Introduced>(Ask::get(target), Duration::ZERO).await?;
    Ok(answered.map(|introduced| site.is_called(introduced.registry)))
}

/// The list; with `after`, once it differs from that revision or that wait is over.
pub(super) async fn list(
    site: &Site,
    service: Option<&ServiceName>,
    after: Option<(&str, Duration)>,
) -> Result<Option<Found>, Failure> {
    let mut target = api::INSTANCES.to_owned();
    if let Some(service) = service {
        // A service's name needs no escape.
        target.push_str("?service=");
        target.push_str(service.as_str());
    }
    let mut longer = Duration::ZERO;
    if let Some((revision, wait)) = after {
        longer = wait;
        target.push_str("&revision=");
        escape(revision, &mut target);
        // Writing to a string does not fail.
        let _ = write!(target, "&wait={}ms", wait.as_millis());
    }
    let answered = site.ask_v1_hinted::<Answered>(Ask::get(target), longer).await?;
    let Some((mut answered, again)) = answered else { return Ok(None) };
    site.is_called(answered.registry.take());
    Ok(Some(Found { again, ..answered.found()? }))
}

/// The answer to `GET /v1/instances`, as far as it is understood.
#[derive(Deserialize)]
struct Answered {
    revision: Arc<str>,
    #[serde(default)]
    registry: Option<Arc<str>>,
    #[serde(default)]
    warming: bool,
    #[serde(default)]
    deregistered: Vec<InstanceId>,
    #[serde(default)]
    protection: Option<api::Protection>,
    /// What the registry could not read of its backend. A list stands without it.
    #[serde(default)]
    unread: Value,
    instances: Vec<Item>,
}

/// A newer registry may list what this build cannot read: the rest of the list stands.
#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Known(Box<api::Listed>),
    Unknown(IgnoredAny),
}

impl Answered {
    fn found(self) -> Result<Found, Failure> {
        let listed = self.instances.len();
        let known = self.instances.into_iter().filter_map(|item| match item {
            Item::Known(known) => Some(*known),
            Item::Unknown(IgnoredAny) => None,
        });
        let entries: Vec<Entry> = known
            .map(|known| Entry {
                service: known.service,
                instance: known.instance,
                expires_in: known.expires_in_ms.map(Duration::from_millis),
            })
            .collect();
        let skipped = listed - entries.len();
        if skipped > 0 {
            if entries.is_empty() {
                return Err(Failure::Nonsense(format!("none of {listed} instances is readable")));
            }
            event!(WARN, skipped, "instances in the registry's list cannot be read");
        }
        let told = self.unread.as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut unread: Vec<Arc<str>> =
            told.take(MAX_UNREAD).map(|text| plain(text).into()).collect();
        if skipped > 0 {
            unread.push(format!("{skipped} of {listed} instances in the registry's list").into());
        }
        Ok(Found {
            revision: Some(self.revision),
            warming: self.warming,
            deregistered: self.deregistered,
            protection: self.protection.map(|protection| Protection {
                kept: protection.kept,
                ends_in: Duration::from_millis(protection.ends_in_ms),
            }),
            complete: skipped == 0,
            unread,
            entries,
            again: None,
        })
    }
}

fn renewal(outcome: Outcome, url: &str) -> Result<Renewal, RegistryError> {
    match outcome {
        Outcome::Renewed { word: None } => Ok(Renewal::Renewed),
        Outcome::Renewed { word: Some(word) } => Ok(Renewal::Overridden(word)),
        Outcome::Deregistered => {
            Err(RegistryError::unavailable("what was to be renewed was deregistered"))
        }
        Outcome::Lost { .. } => Ok(Renewal::Lost),
        Outcome::Error { kind, detail, held_epoch, held_by } => {
            let kind = match (&*kind, held_epoch) {
                (api::STALE_EPOCH, held) => {
                    RegistryErrorKind::StaleEpoch { held: held.unwrap_or(u64::MAX) }
                }
                (api::SUPERSEDED, held) => {
                    RegistryErrorKind::Superseded { held: held.unwrap_or(u64::MAX) }
                }
                (api::NOT_ALLOWED, _) => RegistryErrorKind::NotAllowed,
                (api::FULL, _) => RegistryErrorKind::Full,
                ("urn:srpc:invalid-registration" | "urn:srpc:invalid-request", _) => {
                    RegistryErrorKind::Invalid
                }
                _ => RegistryErrorKind::Unavailable,
            };
            // What is behind a registry may be named in it, and the registry itself is not.
            let error = RegistryError::new(kind, format!("{url}: {}", plain(&detail)));
            Err(held_by.into_iter().fold(error, RegistryError::held_by))
        }
    }
}

fn post(path: &str, body: &impl Serialize) -> Result<Ask, Failure> {
    let body = serde_json::to_vec(body)
        .map_err(|error| Failure::Nonsense(format!("this cannot be asked: {error}")))?;
    Ok(Ask::post(path).json(body))
}

/// At least 1: 0 is no lease.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn escape(text: &str, target: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            target.push(char::from(byte));
        } else {
            let _ = write!(target, "%{byte:02X}");
        }
    }
}
