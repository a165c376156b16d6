//! What goes over the wire, defined once for the server and the client.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::instance::{Health, Instance, InstanceId, ServiceName};
use crate::registry::{DEFAULT_TTL, HealthOverride};

/// The seed's contract: one address in a request, all of them in an answer.
pub(super) const SERVERS: &str = "srpc-servers";
/// Our addition to it: the service that a registration is for.
pub(super) const SERVICE: &str = "srpc-service";

pub(super) const REGISTER: &str = "/v1/register";
pub(super) const RENEW: &str = "/v1/renew";
pub(super) const DEREGISTER: &str = "/v1/deregister";
pub(super) const DRAIN: &str = "/v1/drain";
pub(super) const INSTANCES: &str = "/v1/instances";
pub(super) const SERVICES: &str = "/v1/services";

pub(super) const JSON: &str = "application/json";
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

pub(super) const UNKNOWN_LEASE: &str = "urn:srpc:unknown-lease";
pub(super) const STALE_EPOCH: &str = "urn:srpc:stale-epoch";
pub(super) const SUPERSEDED: &str = "urn:srpc:superseded";
pub(super) const NOT_ALLOWED: &str = "urn:srpc:not-allowed";
pub(super) const FULL: &str = "urn:srpc:full";
pub(super) const UNKNOWN_INSTANCE: &str = "urn:srpc:unknown-instance";
pub(super) const UNSUPPORTED: &str = "urn:srpc:unsupported";
pub(super) const NOT_FOUND: &str = "urn:srpc:not-found";

/// The longest that a server holds a long poll, in milliseconds.
pub(super) const MAX_WAIT_MS: u64 = 60_000;

/// `POST /v1/register`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Register {
    pub(super) service: ServiceName,
    #[serde(default = "default_ttl_ms")]
    pub(super) ttl_ms: u64,
    pub(super) instance: Instance,
}

/// The answer to a registration.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Granted {
    pub(super) lease_id: Arc<str>,
    /// Missing: it never expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ttl_ms: Option<u64>,
    /// Missing: the registry has it from elsewhere, which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<Arc<str>>,
    /// Missing: it has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) registry: Option<Arc<str>>,
}

/// `POST /v1/renew`
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Renew {
    pub(super) held: Vec<HeldLease>,
}

/// One registration with its lease and its full state.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HeldLease {
    pub(super) lease_id: Arc<str>,
    pub(super) service: ServiceName,
    #[serde(default = "default_ttl_ms")]
    pub(super) ttl_ms: u64,
    pub(super) instance: Instance,
}

/// The answer to a renewal: one result for each of `held`, in order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Renewed {
    pub(super) results: Vec<Outcome>,
    /// As in [`Granted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) registry: Option<Arc<str>>,
}

/// What became of one lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub(super) enum Outcome {
    Renewed {
        /// What an operator said of the instance, until the instance says it itself.
        #[serde(default, rename = "override", skip_serializing_if = "Option::is_none")]
        word: Option<HealthOverride>,
    },
    Deregistered,
    Lost {
        #[serde(rename = "type")]
        kind: Cow<'static, str>,
    },
    Error {
        #[serde(rename = "type")]
        kind: Cow<'static, str>,
        detail: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held_epoch: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held_by: Option<InstanceId>,
    },
}

/// `POST /v1/deregister`
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Deregister {
    pub(super) held: Vec<Leaving>,
}

/// The answer to a deregistration.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Deregistered {
    /// One for each of `held`, in order; empty where all went well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) results: Vec<Outcome>,
}

/// One registration to be taken back.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Leaving {
    pub(super) lease_id: Arc<str>,
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    /// A newer registration of the same id stays.
    #[serde(default = "any_epoch")]
    pub(super) epoch: u64,
}

/// `POST /v1/drain`
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Drain {
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    #[serde(flatten)]
    pub(super) word: Said,
    /// How long to wait for the instance to take it over; missing: half of what is left of its lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) wait_ms: Option<u64>,
}

/// What an operator says; the health is `draining` if it is missing.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Said {
    #[serde(default = "draining")]
    pub(super) health: Health,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) for_ms: Option<u64>,
}

/// The answer to `GET /v1/instances`.
#[derive(Debug, Serialize)]
pub(super) struct Instances {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<ServiceName>,
    pub(super) revision: Arc<str>,
    /// As in [`Granted`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) registry: Option<Arc<str>>,
    pub(super) warming: bool,
    /// Missing: nothing is known of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) deregistered: Vec<InstanceId>,
    pub(super) protecting: bool,
    /// Missing: it protects none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) protection: Option<Protection>,
    /// What the backend holds and could not be read, in words; missing: nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unread: Vec<Arc<str>>,
    pub(super) instances: Vec<Listed>,
}

/// What the registry keeps though it has run out.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Protection {
    pub(super) kept: usize,
    pub(super) ends_in_ms: u64,
}

/// One instance of a list.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listed {
    /// Missing: it registered under no name, by the seed's contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<ServiceName>,
    #[serde(flatten)]
    pub(super) instance: Instance,
    /// Missing: it never expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_in_ms: Option<u64>,
}

/// The answer to `GET /v1/services`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Services {
    pub(super) services: Vec<ServiceName>,
}

/// An error (RFC 9457).
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Problem {
    #[serde(rename = "type", default)]
    pub(super) kind: Cow<'static, str>,
    #[serde(default)]
    pub(super) title: Cow<'static, str>,
    #[serde(default)]
    pub(super) status: u16,
    #[serde(default)]
    pub(super) detail: String,
    /// The epoch that the registry holds, where the type is `urn:srpc:stale-epoch` or
    /// `urn:srpc:superseded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) held_epoch: Option<u64>,
    /// The instance that holds the address, where the type is `urn:srpc:superseded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) held_by: Option<InstanceId>,
    /// The result of each lease, where a renewal failed for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) results: Option<Vec<Outcome>>,
    /// The header `Retry-After`.
    #[serde(skip)]
    pub(super) retry_after: Option<Duration>,
}

fn default_ttl_ms() -> u64 {
    // The default is a constant of seconds.
    DEFAULT_TTL.as_millis() as u64
}

fn any_epoch() -> u64 {
    u64::MAX
}

fn draining() -> Health {
    Health::Draining
}
