//! The JSON API under `/v1`.

use std::time::Duration;

use http::header::{CONNECTION, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Response};
use http_body_util::Full;
use hyper::body::{Body, Bytes};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::access::Caller;
use super::api::{self, Outcome};
use super::memory::RequestMemory;
use super::problem::Refusal;
use super::query::Query;
use super::store::Store;
use super::{Shared, body, check, json as ok, json_of};
use crate::backend::memory::Owner;
use crate::instance::{Address, Health, Instance, InstanceId, ServiceName};
use crate::registry::{DEFAULT_TTL, HealthOverride, Held, Lease, Registration, Renewal};
use crate::sync::event;

/// More leases are not taken in one request: their answers would weigh too much.
const MAX_HELD: usize = 1000;

/// A shorter wait until a list should be asked for again is not told.
const MIN_RETRY_AFTER: Duration = Duration::from_millis(50);

/// How long a drain waits at most until the instance has taken it over.
const MAX_DRAIN_WAIT: Duration = Duration::from_secs(10);

/// Stands in for the address of an instance that leaves: the registry looks at the service, the
/// id, the epoch and the lease.
const LEFT: &str = "mem@left";

/// Answers a request of this caller; `stop` ends a long poll early.
pub(super) async fn answer<B: Body>(
    shared: &Shared,
    caller: &Caller,
    parts: &Parts,
    body: B,
    stop: impl Future<Output = ()>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let store = &shared.store;
    let path = parts.uri.path();
    if matches!(path, api::REGISTER | api::RENEW | api::DEREGISTER | api::DRAIN) {
        only("POST", parts)?;
        caller.may_write_something()?;
    } else if matches!(path, api::INSTANCES | api::SERVICES) {
        only("GET", parts)?;
        caller.may_read()?;
    }
    match path {
        api::REGISTER => {
            let owner = super::owner(parts, caller);
            register(store, caller, &owner, body::read(parts, body, shared).await?).await
        }
        api::RENEW => {
            let owner = super::owner(parts, caller);
            let memory = shared.memory(parts);
            renew(store, caller, &owner, body::read(parts, body, shared).await?, memory).await
        }
        api::DEREGISTER => {
            let memory = shared.memory(parts);
            deregister(store, caller, body::read(parts, body, shared).await?, memory).await
        }
        api::DRAIN => drain(store, caller, body::read(parts, body, shared).await?, stop).await,
        api::INSTANCES => instances(shared, caller, parts, stop).await,
        api::SERVICES => {
            let memory = shared.memory(parts).room().await?;
            json_of(&api::Services { services: store.services().await? }, memory)
        }
        _ => Err(Refusal::no_such_path()),
    }
}

fn only(method: &'static str, parts: &Parts) -> Result<(), Refusal> {
    if parts.method.as_str() == method {
        return Ok(());
    }
    Err(Refusal::method_not_allowed(method))
}

async fn register(
    store: &Store,
    caller: &Caller,
    owner: &Owner,
    asked: api::Register,
) -> Result<Response<Full<Bytes>>, Refusal> {
    caller.may_write(Some(&asked.service))?;
    let registration = check::registration(asked)?;
    let (lease, revision) = store.register(&registration, owner).await?;
    ok(&api::Granted {
        lease_id: lease.id,
        ttl_ms: lease.ttl.map(|ttl| ttl.as_millis() as u64),
        revision,
        registry: store.name().await,
    })
}

/// Each lease by itself: one that the caller may not touch is not looked up, and harms no other.
async fn renew(
    store: &Store,
    caller: &Caller,
    owner: &Owner,
    asked: api::Renew,
    memory: RequestMemory,
) -> Result<Response<Full<Bytes>>, Refusal> {
    few_enough(asked.held.len())?;
    let mut held = Vec::with_capacity(asked.held.len());
    let checked: Vec<Result<(), Refusal>> = asked
        .held
        .into_iter()
        .map(|lease| {
            caller.may_write(Some(&lease.service))?;
            held.push(check::held(lease)?);
            Ok(())
        })
        .collect();
    let mut renewed = store.renew(held, owner).await.into_iter();
    let results: Vec<Result<Outcome, Refusal>> = checked
        .into_iter()
        .map(|checked| {
            checked?;
            match renewed.next() {
                Some(Ok(Renewal::Renewed)) => Ok(Outcome::Renewed { word: None }),
                Some(Ok(Renewal::Overridden(word))) => Ok(Outcome::Renewed { word: Some(word) }),
                Some(Ok(Renewal::Lost)) => Err(Refusal::unknown_lease()),
                Some(Err(error)) => Err(error.into()),
                None => Err(Refusal::internal("a lease without a result")),
            }
        })
        .collect();
    json_of(&api::Renewed { results: outcomes(results)?, registry: store.name().await }, memory)
}

/// Each is answered by itself, which weighs more than what was asked.
fn few_enough(held: usize) -> Result<(), Refusal> {
    match held {
        0..=MAX_HELD => Ok(()),
        _ => Err(Refusal::invalid(format_args!("more than {MAX_HELD} leases: split them"))),
    }
}

/// What became of each; the first one's refusal if all were refused.
fn outcomes(results: Vec<Result<Outcome, Refusal>>) -> Result<Vec<Outcome>, Refusal> {
    let outcomes: Vec<Outcome> = results
        .iter()
        .map(|result| result.as_ref().map_or_else(Refusal::outcome, Outcome::clone))
        .collect();
    if results.iter().all(Result::is_err)
        && let Some(Err(first)) = results.into_iter().next()
    {
        return Err(first.with_results(outcomes));
    }
    Ok(outcomes)
}

async fn deregister(
    store: &Store,
    caller: &Caller,
    asked: api::Deregister,
    memory: RequestMemory,
) -> Result<Response<Full<Bytes>>, Refusal> {
    few_enough(asked.held.len())?;
    let left = LEFT.parse::<Address>().map_err(Refusal::internal)?;
    let mut held = Vec::with_capacity(asked.held.len());
    let results: Vec<Result<Outcome, Refusal>> = asked
        .held
        .into_iter()
        .map(|leaving| {
            caller.may_write(Some(&leaving.service))?;
            let instance = Instance::new(leaving.id, left.clone()).epoch(leaving.epoch);
            let registration = Registration::new(leaving.service, instance);
            held.push(Held { registration, lease: Lease::new(leaving.lease_id, None) });
            Ok(Outcome::Deregistered)
        })
        .collect();
    store.deregister(&held).await?;
    if results.iter().all(Result::is_ok) {
        return ok(&json!({}));
    }
    json_of(&api::Deregistered { results: outcomes(results)? }, memory)
}

async fn drain(
    store: &Store,
    caller: &Caller,
    asked: api::Drain,
    stop: impl Future<Output = ()>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    caller.may_write(Some(&asked.service))?;
    let word = check::health_override(asked.word, caller.name())?;
    let (service, id) = (&asked.service, &asked.id);
    let before = store.list(Some(service)).await?;
    let known = before.entries.into_iter().find(|entry| entry.instance.id == *id);
    if !store.set_health(service, id, &word).await? {
        return Err(Refusal::unknown_instance());
    }
    let HealthOverride { health, by, reason, duration } = &word;
    event!(
        INFO,
        service = %asked.service,
        id = ?asked.id.as_str(),
        health = health.as_str(),
        by = by.as_deref(),
        reason = reason.as_deref(),
        ?duration,
        "an operator set the health of an instance"
    );
    let epoch = known.as_ref().map_or(0, |entry| entry.instance.epoch);
    let left = known.and_then(|entry| entry.expires_in).unwrap_or(DEFAULT_TTL);
    // It renews at a third of its lease.
    let longest = asked.wait_ms.map_or(left / 2, Duration::from_millis).min(MAX_DRAIN_WAIT);
    let taken_over = tokio::select! {
        taken = timeout(longest, taken_over(store, service, id, epoch, &word)) => {
            taken.unwrap_or(Ok(false))?
        }
        () = stop => false,
    };
    ok(&json!({ "taken_over": taken_over }))
}

/// Waits until the instance says itself what an operator said of it. False: it is gone.
async fn taken_over(
    store: &Store,
    service: &ServiceName,
    id: &InstanceId,
    epoch: u64,
    word: &HealthOverride,
) -> Result<bool, Refusal> {
    loop {
        let listing = store.list(Some(service)).await?;
        let mut instances = listing.entries.into_iter().map(|entry| entry.instance);
        let Some(instance) = instances.find(|instance| instance.id == *id) else {
            return Ok(false);
        };
        let is_newer = instance.epoch > epoch;
        // What was taken back before the instance had heard of it leaves nothing to wait for.
        let is_up = word.health == Health::Up && instance.health == Health::Up;
        if is_up || (is_newer && word.is_taken_over_by(instance.health)) {
            return Ok(true);
        }
        store.changed(service, &listing.revision).await?;
    }
}

async fn instances(
    shared: &Shared,
    caller: &Caller,
    parts: &Parts,
    stop: impl Future<Output = ()>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let store = &shared.store;
    let host = super::host(parts);
    let mut polls_enough = false;
    let query = Query::parse(&parts.uri).map_err(Refusal::invalid)?;
    let service = query.service().map_err(Refusal::invalid)?;
    let revision = query.one("revision").map_err(Refusal::invalid)?;
    let wait = query.wait().map_err(Refusal::invalid)?;
    match (&service, revision, wait) {
        (None, _, Some(_)) => {
            return Err(Refusal::invalid("wait needs a service: a long poll is for one of them"));
        }
        (Some(service), Some(revision), Some(wait)) => {
            let places = shared.poll(&host, caller.name());
            polls_enough = places.is_none();
            // Answered at once, whoever holds too many: it is slower news, and no failure.
            let wait = if polls_enough { Duration::ZERO } else { wait };
            if !wait.is_zero() {
                tokio::select! {
                    changed = store.changed(service, revision) => changed?,
                    () = tokio::time::sleep(wait) => {}
                    () = stop => {}
                }
            }
        }
        // Who knows no revision yet has nothing to wait for.
        _ => {}
    }
    let memory = shared.memory(parts).room().await?;
    let listing = store.list(service.as_ref()).await?;
    let instances = listing
        .entries
        .into_iter()
        .map(|entry| api::Listed {
            service: entry.service,
            instance: entry.instance,
            expires_in_ms: entry.expires_in.map(|left| left.as_millis() as u64),
        })
        .collect();
    let protection = listing.protection.map(|protection| api::Protection {
        kept: protection.kept,
        ends_in_ms: protection.ends_in.as_millis() as u64,
    });
    let listed = api::Instances {
        service,
        revision: listing.revision,
        registry: store.name().await,
        warming: listing.warming,
        deregistered: listing.deregistered,
        protecting: protection.is_some(),
        protection,
        unread: listing.unread,
        instances,
    };
    let is_of_service = listed.service.is_some();
    let mut answer = json_of(&listed, memory)?;
    let headers = answer.headers_mut();
    if is_of_service {
        // Of each one: who was answered a first list or a poll that was held asks again, too.
        let wait = shared.list_pacer.take_turn(&host, Instant::now());
        if polls_enough || wait > MIN_RETRY_AFTER {
            headers.insert(RETRY_AFTER, (wait.as_secs() + 1).into());
        }
    }
    if polls_enough {
        // What renews needs connections too.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(answer)
}
