//! The contract of one header, as the seed's servers and clients speak it.

use std::collections::BTreeSet;

use http::header::ALLOW;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;

use super::query::Query;
use super::{api, respond};
use crate::backend::memory::MemoryRegistry;
use crate::instance::{Address, Health, ServiceName};

const TEXT: &str = "text/plain; charset=utf-8";

pub(super) fn answer(registry: &MemoryRegistry, parts: &Parts) -> Response<Full<Bytes>> {
    match parts.method {
        Method::GET => list(registry, parts),
        Method::POST => register(registry, &parts.headers),
        _ => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
            response
        }
    }
}

fn register(registry: &MemoryRegistry, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let mut addresses = headers.get_all(api::SERVERS).iter();
    let address = addresses.next().map(HeaderValue::as_bytes).unwrap_or_default();
    if address.is_empty() {
        // What the contract says, though the fault is the client's.
        let reason = "the header Srpc-servers is missing or empty";
        return text(StatusCode::INTERNAL_SERVER_ERROR, reason);
    }
    if addresses.next().is_some() {
        return text(StatusCode::BAD_REQUEST, "register one address at a time");
    }
    let (address, service) = match (parsed(address), service(headers)) {
        (Ok(address), Ok(service)) => (address, service),
        (Err(reason), _) | (_, Err(reason)) => return text(StatusCode::BAD_REQUEST, &reason),
    };
    if !registry.register_address(service.as_ref(), &address) {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the registry is full");
    }
    text(StatusCode::OK, "")
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

fn list(registry: &MemoryRegistry, parts: &Parts) -> Response<Full<Bytes>> {
    let service = match Query::parse(&parts.uri).and_then(|query| query.service()) {
        Ok(service) => service,
        Err(reason) => return text(StatusCode::BAD_REQUEST, &reason),
    };
    let listing = registry.list(service.as_ref());
    // One address may serve several services. Who is not up is left out: a client of this contract
    // has no other way to learn it.
    let addresses: BTreeSet<&str> = listing
        .entries
        .iter()
        .filter(|entry| entry.instance.health == Health::Up)
        .map(|entry| entry.instance.address.as_str())
        .collect();
    let (mut header, mut body) = (String::new(), String::new());
    for address in addresses {
        if !header.is_empty() {
            header.push(',');
        }
        header.push_str(address);
        body.push_str(address);
        body.push('\n');
    }
    let Ok(header) = HeaderValue::from_str(&header) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "an address does not fit a header");
    };
    let mut response = text(StatusCode::OK, &body);
    response.headers_mut().insert(api::SERVERS, header);
    response
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, TEXT, body.to_owned())
}
