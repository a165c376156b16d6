//! Why a request is refused, as `application/problem+json`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::header::{ALLOW, CONNECTION, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;

use super::api::{self, Outcome, Problem};
use super::respond;
use crate::discovery::{DiscoveryError, DiscoveryErrorKind};
use crate::registry::{RegistryError, RegistryErrorKind};
use crate::transport::ReachedCap;

/// What is said of a wrong request is bounded: its text comes from the peer.
const MAX_DETAIL: usize = 512;
/// The limit that a full registry has reached.
pub(super) const MAY_BE_REGISTERED: &str = "what may be registered";

/// A refused request.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    problem: Box<Problem>,
    header: Option<(HeaderName, &'static str)>,
    /// The rest of the request is not worth reading.
    close: bool,
    /// The limit that is reached, as the operator is told.
    limit: Option<&'static str>,
}

impl Refusal {
    fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl fmt::Display,
    ) -> Self {
        let detail: String = detail.to_string().chars().take(MAX_DETAIL).collect();
        let problem = Problem {
            kind: Cow::Borrowed(kind),
            title: Cow::Borrowed(title),
            status: status.as_u16(),
            detail,
            held_epoch: None,
            held_by: None,
            results: None,
            retry_after: None,
        };
        Self { status, problem: Box::new(problem), header: None, close: false, limit: None }
    }

    /// The body is no JSON at all.
    pub(super) fn not_json(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "urn:srpc:not-json", "The body is no JSON", detail)
    }

    /// JSON, or a query, that is not what is asked for here.
    pub(super) fn invalid(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "urn:srpc:invalid-request", "Invalid request", detail)
    }

    /// A registration that breaks a rule.
    pub(super) fn invalid_registration(detail: impl fmt::Display) -> Self {
        let kind = "urn:srpc:invalid-registration";
        Self::new(StatusCode::BAD_REQUEST, kind, "Invalid registration", detail)
    }

    pub(super) fn unreadable_body(detail: impl fmt::Display) -> Self {
        let kind = "urn:srpc:unreadable-body";
        Self::new(StatusCode::BAD_REQUEST, kind, "The body cannot be read", detail).closing()
    }

    pub(super) fn body_timeout() -> Self {
        let status = StatusCode::REQUEST_TIMEOUT;
        Self::new(status, "urn:srpc:timeout", "The body took too long", "send it at once").closing()
    }

    pub(super) fn too_large(max: usize) -> Self {
        let detail = format!("at most {max} bytes are taken");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Self::new(status, "urn:srpc:too-large", "The body is too large", detail).closing()
    }

    pub(super) fn not_json_type() -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let detail = "the content-type must be application/json";
        Self::new(status, "urn:srpc:unsupported-media-type", "Wrong content type", detail)
    }

    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let detail = format!("use {allow}");
        let refusal =
            Self::new(status, "urn:srpc:method-not-allowed", "Method not allowed", detail);
        Self { header: Some((ALLOW, allow)), ..refusal }
    }

    pub(super) fn no_such_path() -> Self {
        let detail = "the registry serves /srpc/registry and /v1";
        Self::new(StatusCode::NOT_FOUND, api::NOT_FOUND, "No such path", detail)
    }

    pub(super) fn unknown_lease() -> Self {
        let detail = "it expired, or the registry forgot it: register again";
        Self::new(StatusCode::NOT_FOUND, api::UNKNOWN_LEASE, "Unknown lease", detail)
    }

    pub(super) fn unknown_instance() -> Self {
        let detail = "no instance of this id is registered for this service";
        Self::new(StatusCode::NOT_FOUND, api::UNKNOWN_INSTANCE, "Unknown instance", detail)
    }

    /// Nobody that is known asks.
    pub(super) fn unauthorized() -> Self {
        let status = StatusCode::UNAUTHORIZED;
        let detail = "a token that is known here is needed: `Authorization: Bearer TOKEN`";
        let refusal = Self::new(status, "urn:srpc:unauthorized", "Unauthorized", detail);
        Self { header: Some((WWW_AUTHENTICATE, "Bearer realm=\"srpc\"")), ..refusal }
    }

    /// Who asks is known, and may not.
    pub(super) fn not_allowed(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::FORBIDDEN, api::NOT_ALLOWED, "Not allowed", detail)
    }

    /// The host name of the request may be one that a page in a browser was loaded by.
    pub(super) fn misdirected(host: &str) -> Self {
        let detail = format!(
            "a registry on loopback that asks nobody for a token answers to IP addresses, \
             `localhost` and the names of --allow-host (RegistryServerBuilder::allow_host), and \
             not to {host:?}"
        );
        let status = StatusCode::MISDIRECTED_REQUEST;
        Self::new(status, "urn:srpc:misdirected", "Not this host", detail).closing()
    }

    /// More than is answered: later perhaps.
    pub(super) fn too_many(limit: &'static str, wait: Duration) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self::new(status, "urn:srpc:too-many-requests", "Too many requests", limit)
            .after(wait)
            .of_limit(limit)
    }

    /// There is no slot for one more connection.
    pub(super) fn too_many_connections(cap: ReachedCap) -> Self {
        let wait = Duration::from_secs(1);
        match cap {
            ReachedCap::Host => Self::too_many(cap.reason(), wait),
            ReachedCap::Total => Self::unavailable(cap.reason()).after(wait).of_limit(cap.reason()),
        }
    }

    /// Bodies that come slowly, and answers that nobody has read yet, fill the memory that there is for them.
    pub(super) fn memory_full(wait: Duration) -> Self {
        let detail = "other requests and answers that are not read yet fill the memory for them";
        Self::unavailable(detail).after(wait).of_limit(detail)
    }

    fn unavailable(detail: impl fmt::Display) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "urn:srpc:unavailable", "Not able right now", detail)
    }

    pub(super) fn internal(detail: impl fmt::Display) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "urn:srpc:internal", "A defect of the registry", detail)
    }

    /// Adds the result of every lease of a renewal.
    pub(super) fn with_results(mut self, results: Vec<Outcome>) -> Self {
        self.problem.results = Some(results);
        self
    }

    fn after(mut self, wait: Duration) -> Self {
        self.problem.retry_after = Some(wait);
        self
    }

    fn of_limit(mut self, limit: &'static str) -> Self {
        self.limit = Some(limit);
        self
    }

    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The limit that is reached, if that is why.
    pub(super) fn limit(&self) -> Option<&'static str> {
        self.limit
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// A backend cannot do it.
    pub(super) fn is_unsupported(&self) -> bool {
        self.problem.kind == api::UNSUPPORTED
    }

    pub(super) fn detail(&self) -> &str {
        &self.problem.detail
    }

    /// What it says of one lease among many.
    pub(super) fn outcome(&self) -> Outcome {
        let kind = self.problem.kind.clone();
        if kind == api::UNKNOWN_LEASE {
            return Outcome::Lost { kind };
        }
        let detail = self.problem.detail.clone();
        let Problem { held_epoch, held_by, .. } = &*self.problem;
        Outcome::Error { kind, detail, held_epoch: *held_epoch, held_by: held_by.clone() }
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        // A problem is strings and numbers: it always serializes.
        let body = serde_json::to_vec(&self.problem).unwrap_or_default();
        let retry_after = self.retry_after_secs();
        let mut response = respond(self.status, api::PROBLEM_JSON, body);
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if self.close {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The whole answer as bytes, for a connection that is closed behind it without being served.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let body = serde_json::to_vec(&self.problem).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {}\r\ncontent-type: {}\r\ncontent-length: {}\r\nretry-after: {}\r\n\
             connection: close\r\n\r\n",
            self.status,
            api::PROBLEM_JSON,
            body.len(),
            self.retry_after_secs().unwrap_or(1),
        );
        [head.into_bytes(), body].concat()
    }

    /// Whole seconds, and never too few.
    fn retry_after_secs(&self) -> Option<u64> {
        let wait = self.problem.retry_after?;
        Some((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1))
    }
}

impl From<&DiscoveryError> for Refusal {
    fn from(error: &DiscoveryError) -> Self {
        let kind = match error.kind() {
            DiscoveryErrorKind::Unsupported => RegistryErrorKind::Unsupported,
            // Whatever the backend says of this registry is not the fault of those who ask it.
            _ => RegistryErrorKind::Unavailable,
        };
        RegistryError::new(kind, error.message()).into()
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        let detail = error.message();
        match error.kind() {
            RegistryErrorKind::Unavailable => Self::unavailable(detail),
            RegistryErrorKind::StaleEpoch { held } => {
                let mut refusal =
                    Self::new(StatusCode::CONFLICT, api::STALE_EPOCH, "Stale epoch", detail);
                refusal.problem.held_epoch = Some(held);
                refusal
            }
            RegistryErrorKind::Superseded { held } => {
                let mut refusal =
                    Self::new(StatusCode::CONFLICT, api::SUPERSEDED, "Superseded", detail);
                refusal.problem.held_epoch = Some(held);
                refusal.problem.held_by = error.holder().cloned();
                refusal
            }
            RegistryErrorKind::Invalid => Self::invalid_registration(detail),
            RegistryErrorKind::NotAllowed => Self::not_allowed(detail),
            RegistryErrorKind::Unsupported => {
                let status = StatusCode::NOT_IMPLEMENTED;
                Self::new(status, api::UNSUPPORTED, "Not supported", detail)
            }
            RegistryErrorKind::Full => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                Self::new(status, api::FULL, "No room", detail)
                    .after(error.retry_after().unwrap_or(Duration::from_secs(1)))
                    .of_limit(MAY_BE_REGISTERED)
            }
        }
    }
}
