//! Requests to the registry: each gets a clear answer, and one that is refused changes nothing.

use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use srpc::backend::http::RegistryServer;
use srpc::backend::memory::{Entry, MemoryRegistry};
use srpc::{Address, ServiceName};

/// Requests, each after a byte that says which, and ended by a byte `ff`, which is in no JSON:
///
/// | byte | request | what follows |
/// |---|---|---|
/// | `r` | `POST /v1/register` | the body |
/// | `n` | `POST /v1/renew` | the body |
/// | `x` | `POST /v1/deregister` | the body |
/// | `d` | `POST /v1/drain` | the body |
/// | `i` | `GET /v1/instances?` | the query |
/// | `s` | `POST /srpc/registry` | the header `Srpc-servers`, and `Srpc-service` behind a line feed |
/// | `l` | `GET /srpc/registry?` | the query |
/// | `p` | `POST` | the path |
///
/// `$LEASE` in a body is the lease that was granted last.
pub fn registry(input: &[u8]) {
    super::run(async {
        // Unbounded tables would hide an entry that another one has driven out.
        let registry = MemoryRegistry::builder().max_instances(16).build();
        let server = RegistryServer::builder().registry(registry.clone()).build();
        let mut lease = Arc::<str>::from("none");
        for request in input.split(|byte| *byte == 0xff).take(16) {
            let [which, rest @ ..] = request else { continue };
            let Some(request) = made(*which, rest, &lease) else { continue };
            let before = entries(&registry);
            let response = server.handle(request).await;
            if let Some(granted) = check(*which, response, &registry, &before).await {
                lease = granted;
            }
        }
    });
}

fn made(which: u8, rest: &[u8], lease: &str) -> Option<Request<Full<Bytes>>> {
    let query = || std::str::from_utf8(rest).ok();
    let (method, target) = match which {
        b'r' => ("POST", "/v1/register".to_owned()),
        b'n' => ("POST", "/v1/renew".to_owned()),
        b'x' => ("POST", "/v1/deregister".to_owned()),
        b'd' => ("POST", "/v1/drain".to_owned()),
        b'i' => ("GET", format!("/v1/instances?{}", query()?)),
        b's' => ("POST", "/srpc/registry".to_owned()),
        b'l' => ("GET", format!("/srpc/registry?{}", query()?)),
        b'p' => ("POST", query()?.to_owned()),
        _ => return None,
    };
    let mut request = Request::builder().method(method).uri(target);
    request = request.header("content-type", "application/json");
    let mut body = Vec::new();
    if which == b's' {
        let (address, service) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        request = request.header("srpc-servers", address);
        if let Some(service) = service {
            request = request.header("srpc-service", service);
        }
    } else if method == "POST" {
        body = match std::str::from_utf8(rest) {
            Ok(text) => text.replace("$LEASE", lease).into_bytes(),
            Err(_) => rest.to_vec(),
        };
    }
    request.body(Full::new(body.into())).ok()
}

/// What the registry holds, without how long it still does.
fn entries(registry: &MemoryRegistry) -> Vec<Entry> {
    let mut entries = registry.list(None).entries;
    entries.iter_mut().for_each(|entry| entry.expires_in = None);
    entries
}

/// The lease, if one was granted.
async fn check(
    which: u8,
    response: Response<Full<Bytes>>,
    registry: &MemoryRegistry,
    before: &[Entry],
) -> Option<Arc<str>> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let status = parts.status.as_u16();
    let text = std::str::from_utf8(&body).expect("an answer is text");
    let after = entries(registry);
    assert!(after.len() <= 16);
    for entry in &after {
        check_entry(entry, which == b's');
    }
    if status != 200 {
        assert_eq!(after, before, "what is refused changes nothing");
    }
    let content_type = parts.headers["content-type"].to_str().unwrap();
    if content_type.starts_with("text/plain") {
        // The contract of one header.
        assert!(matches!(status, 200 | 400 | 405 | 500 | 503), "{status}: {text}");
        return None;
    }
    let answer: Value = serde_json::from_slice(&body).expect("an answer is JSON");
    if status != 200 {
        assert_eq!(content_type, "application/problem+json");
        assert_eq!(answer["status"], status);
        assert!(matches!(status, 400 | 404 | 405 | 409 | 413 | 415), "{status}: {text}");
        // A defect is 500; what is said of one thing that was sent is bounded.
        let detail = answer["detail"].as_str().expect("a problem has a detail");
        assert!(detail.len() < 8 * 1024, "{} bytes of detail", detail.len());
        return None;
    }
    assert_eq!(content_type, "application/json");
    answer["lease_id"].as_str().map(Arc::from)
}

/// What is stored can be shown and dialled.
fn check_entry(entry: &Entry, by_header: bool) {
    let instance = &entry.instance;
    let address = instance.address.as_str();
    assert_eq!(Address::from_str(address).as_ref(), Ok(&instance.address));
    if let Some(service) = &entry.service {
        assert!(ServiceName::is_valid(service.as_str()));
    }
    let id = instance.id.as_str();
    assert!(!id.is_empty() && id.len() <= 512 && !id.contains(char::is_control), "{id:?}");
    for text in [&instance.zone, &instance.version].into_iter().flatten() {
        assert!(text.len() <= 128 && !text.contains(char::is_control), "{text:?}");
    }
    assert!(instance.metadata.len() <= 64);
    if !by_header && entry.service.is_some() && id != address {
        assert!(!instance.address.is_unspecified(), "nobody can dial {address}");
    }
}
