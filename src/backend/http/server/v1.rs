//! The JSON API under `/v1`.

use http::Response;
use http::request::Parts;
use http_body_util::Full;
use hyper::body::{Body, Bytes};
use serde_json::json;

use super::api::{self, Outcome};
use super::problem::Refusal;
use super::query::Query;
use super::{Limits, body, check, json as ok};
use crate::backend::memory::MemoryRegistry;
use crate::instance::{Address, Instance};
use crate::registry::{Held, Lease, Registration, Registry, Renewal};

/// Stands in for the address of an instance that leaves: the registry looks at the service, the
/// id, the epoch and the lease.
const LEFT: &str = "mem@left";

/// Answers a request; `stop` ends a long poll early.
pub(super) async fn answer<B: Body>(
    registry: &MemoryRegistry,
    limits: &Limits,
    parts: &Parts,
    body: B,
    stop: impl Future<Output = ()>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    match parts.uri.path() {
        api::REGISTER => {
            only("POST", parts)?;
            register(registry, body::read(parts, body, limits).await?).await
        }
        api::RENEW => {
            only("POST", parts)?;
            renew(registry, body::read(parts, body, limits).await?).await
        }
        api::DEREGISTER => {
            only("POST", parts)?;
            deregister(registry, body::read(parts, body, limits).await?).await
        }
        api::DRAIN => {
            only("POST", parts)?;
            drain(registry, body::read(parts, body, limits).await?)
        }
        api::INSTANCES => {
            only("GET", parts)?;
            instances(registry, parts, stop).await
        }
        api::SERVICES => {
            only("GET", parts)?;
            ok(&api::Services { services: registry.services() })
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
    registry: &MemoryRegistry,
    asked: api::Register,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let registration = check::registration(asked)?;
    let lease = registry.register(&registration).await?;
    let revision = registry.revision(&registration.service);
    ok(&api::Granted {
        lease_id: lease.id,
        ttl_ms: lease.ttl.map(|ttl| ttl.as_millis() as u64),
        revision,
    })
}

async fn renew(
    registry: &MemoryRegistry,
    asked: api::Renew,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let mut held = Vec::with_capacity(asked.held.len());
    let checked: Vec<Result<(), Refusal>> = asked
        .held
        .into_iter()
        .map(|lease| check::held(lease).map(|lease| held.push(lease)))
        .collect();
    let mut renewed = registry.renew(&held).await.into_iter();
    let results: Vec<Result<(), Refusal>> = checked
        .into_iter()
        .map(|checked| {
            checked?;
            match renewed.next() {
                Some(Ok(Renewal::Renewed)) => Ok(()),
                Some(Ok(Renewal::Lost)) => Err(Refusal::unknown_lease()),
                Some(Err(error)) => Err(error.into()),
                None => Err(Refusal::internal("a lease without a result")),
            }
        })
        .collect();
    let outcomes: Vec<Outcome> = results
        .iter()
        .map(|result| result.as_ref().map_or_else(Refusal::outcome, |()| Outcome::Renewed))
        .collect();
    if results.iter().all(Result::is_err)
        && let Some(Err(first)) = results.into_iter().next()
    {
        return Err(first.with_results(outcomes));
    }
    ok(&api::Renewed { results: outcomes })
}

async fn deregister(
    registry: &MemoryRegistry,
    asked: api::Deregister,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let left = LEFT.parse::<Address>().map_err(Refusal::internal)?;
    let held: Vec<Held> = asked
        .held
        .into_iter()
        .map(|leaving| {
            let instance = Instance::new(leaving.id, left.clone()).epoch(leaving.epoch);
            let registration = Registration::new(leaving.service, instance);
            Held { registration, lease: Lease::new(leaving.lease_id, None) }
        })
        .collect();
    registry.deregister(&held).await?;
    ok(&json!({}))
}

fn drain(registry: &MemoryRegistry, asked: api::Drain) -> Result<Response<Full<Bytes>>, Refusal> {
    if !registry.set_health(&asked.service, &asked.id, asked.health) {
        return Err(Refusal::unknown_instance());
    }
    ok(&json!({}))
}

async fn instances(
    registry: &MemoryRegistry,
    parts: &Parts,
    stop: impl Future<Output = ()>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let query = Query::parse(&parts.uri).map_err(Refusal::invalid)?;
    let service = query.service().map_err(Refusal::invalid)?;
    let revision = query.one("revision").map_err(Refusal::invalid)?;
    let wait = query.wait().map_err(Refusal::invalid)?;
    match (&service, revision, wait) {
        (None, _, Some(_)) => {
            return Err(Refusal::invalid("wait needs a service: a long poll is for one of them"));
        }
        (Some(service), Some(revision), Some(wait)) => {
            tokio::select! {
                () = registry.changed(service, revision) => {}
                () = tokio::time::sleep(wait) => {}
                () = stop => {}
            }
        }
        // Who knows no revision yet has nothing to wait for.
        _ => {}
    }
    let listing = registry.list(service.as_ref());
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
    ok(&api::Instances {
        service,
        revision: listing.revision,
        warming: listing.warming,
        protecting: protection.is_some(),
        protection,
        instances,
    })
}
