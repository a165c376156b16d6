//! The seed's contract, as a client of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::Found;
use super::api;
use super::failure::Failure;
use super::site::Site;
use crate::backend::exchange::{Answer, Ask};
use crate::backend::memory::Entry;
use crate::discovery::MAX_UNREAD;
use crate::instance::{Address, Instance, ServiceName};

/// Registers or renews an address.
pub(super) async fn post(
    site: &Site,
    service: Option<&ServiceName>,
    address: &str,
) -> Result<(), Failure> {
    let header = |text: &str| {
        HeaderValue::from_str(text)
            .map_err(|_| Failure::Nonsense(format!("{text:?} does not fit a header")))
    };
    let mut ask = Ask::post(&*site.location.path).header(api::SERVERS, header(address)?);
    if let Some(service) = service {
        ask = ask.header(api::SERVICE, header(service.as_str())?);
    }
    succeeded(&site.ask(&ask, Duration::ZERO).await?)
}

/// The list. It has no revision, so that it proves nothing.
///
/// The service is named only to a registry that has spoken `/v1` before, which was out of reach for
/// a moment: it must not list other services' instances. To any other the question stays as plain
/// as the seed's.
pub(super) async fn list(site: &Site, service: Option<&ServiceName>) -> Result<Found, Failure> {
    let target = match service {
        Some(service) if site.has_spoken_v1() => {
            format!("{}?service={service}", site.location.path)
        }
        _ => site.location.path.to_string(),
    };
    let answer = site.ask(&Ask::get(&*target), Duration::ZERO).await?;
    succeeded(&answer)?;
    let mut lines = answer.headers.get_all(api::SERVERS).iter().peekable();
    if lines.peek().is_none() {
        let reason = "an answer without the header Srpc-servers, which is not an empty list";
        return Err(Failure::Nonsense(reason.to_owned()));
    }
    let mut addresses = BTreeSet::new();
    let mut unread: Vec<Arc<str>> = Vec::new();
    for line in lines {
        let line = String::from_utf8_lossy(line.as_bytes());
        for text in line.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            match text.parse::<Address>() {
                Ok(address) => {
                    addresses.insert(address);
                }
                Err(error) => {
                    tracing::warn!(%error, "the registry lists what is no address");
                    unread.push(error.to_string().into());
                }
            }
        }
    }
    if !unread.is_empty() && addresses.is_empty() {
        return Err(Failure::Nonsense("a list without one address that is one".to_owned()));
    }
    let entries = addresses.into_iter().map(|address| Entry {
        service: None,
        instance: Instance::at(address),
        expires_in: None,
    });
    unread.truncate(MAX_UNREAD);
    Ok(Found {
        revision: None,
        warming: false,
        protection: None,
        complete: unread.is_empty(),
        unread,
        entries: entries.collect(),
    })
}

fn succeeded(answer: &Answer) -> Result<(), Failure> {
    let status = answer.status;
    if status.is_success() {
        // The contract sends no pages: one comes from something that stands in the way.
        if answer.content_type().eq_ignore_ascii_case("text/html") {
            return Err(Failure::Nonsense("a page of HTML".to_owned()));
        }
        return Ok(());
    }
    if status.is_client_error() {
        return Err(Failure::refused(answer));
    }
    Err(Failure::unavailable(format!("status {status}")))
}
