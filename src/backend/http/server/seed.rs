//! The contract of one header, as the seed's servers and clients speak it.

use std::collections::BTreeSet;

use http::header::{ALLOW, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;

use super::access::Caller;
use super::memory::RequestMemory;
use super::problem::{MAY_BE_REGISTERED, Refusal};
use super::query::Query;
use super::store::Store;
use super::{Shared, api, respond};
use crate::instance::{Address, Health, ServiceName};

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers a request of this caller.
///
/// # Errors
/// What is not of this contract: the caller may not, there is no memory for its answer, or a backend does
/// not answer.
pub(super) async fn answer(
    shared: &Shared,
    caller: &Caller,
    parts: &Parts,
) -> Result<Response<Full<Bytes>>, Refusal> {
    match parts.method {
        Method::GET => {
            caller.may_read()?;
            list(&shared.store, parts, shared.memory(parts).room().await?).await
        }
        Method::POST => {
            caller.may_write_something()?;
            register(shared, caller, parts).await
        }
        _ => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
            Ok(response)
        }
    }
}

async fn register(
    shared: &Shared,
    caller: &Caller,
    parts: &Parts,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let headers = &parts.headers;
    let service = service(headers);
    if let Ok(service) = &service {
        caller.may_write(service.as_ref())?;
    }
    let mut addresses = headers.get_all(api::SERVERS).iter();
    let address = addresses.next().map(HeaderValue::as_bytes).unwrap_or_default();
    if address.is_empty() {
        // What the contract says, though the fault is the client's.
        let reason = "the header Srpc-servers is missing or empty";
        return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, reason));
    }
    if addresses.next().is_some() {
        return Ok(text(StatusCode::BAD_REQUEST, "register one address at a time"));
    }
    let (address, service) = match (parsed(address), service) {
        (Ok(address), Ok(service)) => (address, service),
        (Err(reason), _) | (_, Err(reason)) => {
            return Ok(text(StatusCode::BAD_REQUEST, &reason));
        }
    };
    let owner = super::owner(parts, caller);
    if !shared.store.register_address(service.as_ref(), &address, &owner).await? {
        shared.refusals.count(MAY_BE_REGISTERED, &owner.host);
        let mut full = text(StatusCode::SERVICE_UNAVAILABLE, "the registry is full");
        full.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        return Ok(full);
    }
    Ok(text(StatusCode::OK, ""))
}

fn parsed(address: &[u8]) -> Result<Address, String> {
    utf8(address)?.parse::<Address>().map_err(|error| error.to_string())
}

fn service(headers: &HeaderMap) -> Result<Option<ServiceName>, String> {
    let mut names = headers.get_all(api::SERVICE).iter();
    let Some(name) = names.next() else { return Ok(None) };
    if names.next().is_some() {
        return Err("the header Srpc-service is given twice".to_owned());
    }
    let name = utf8(name.as_bytes())?.parse::<ServiceName>();
    name.map(Some).map_err(|error| format!("Srpc-service: {error}"))
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a header is not UTF-8".to_owned())
}

async fn list(
    store: &Store,
    parts: &Parts,
    memory: RequestMemory,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let service = match Query::parse(&parts.uri).and_then(|query| query.service()) {
        Ok(service) => service,
        Err(reason) => return Ok(text(StatusCode::BAD_REQUEST, &reason)),
    };
    let listing = store.list(service.as_ref()).await?;
    // One address may serve several services. Who is not up is left out: a client of this contract
    // has no other way to learn it.
    let addresses: BTreeSet<&Address> = listing
        .entries
        .iter()
        .filter(|entry| entry.instance.health == Health::Up)
        .map(|entry| &entry.instance.address)
        .collect();
    let (mut header, mut body) = (String::new(), String::new());
    for address in addresses {
        if !header.is_empty() {
            header.push(',');
        }
        header.push_str(address.as_str());
        body.push_str(address.as_str());
        body.push('\n');
    }
    let Ok(header) = HeaderValue::from_str(&header) else {
        return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, "an address does not fit a header"));
    };
    // Twice: the header says the same.
    let mut response = respond(StatusCode::OK, TEXT, memory.bytes(body.into_bytes(), 2));
    response.headers_mut().insert(api::SERVERS, header);
    if let Some(Ok(service)) = service.map(|service| HeaderValue::from_str(service.as_str())) {
        // Tells a client that the list was filtered: an original registry ignores the query.
        response.headers_mut().insert(api::SERVICE, service);
    }
    Ok(response)
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, TEXT, body.to_owned())
}
