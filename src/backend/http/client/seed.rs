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
use crate::sync::event;

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
    let mount = site.mount().await?;
    let mut ask = Ask::post(&*mount.header_path).header(api::SERVERS, header(address)?).bulk();
    if let Some(service) = service {
        ask = ask.header(api::SERVICE, header(service.as_str())?);
    }
    succeeded(&site.ask(&ask, Duration::ZERO).await?)?;
    site.answered_at(mount);
    Ok(())
}

/// A service name that nobody has: what is listed under it shows that nothing is filtered.
pub(super) fn nobody() -> String {
    // Random: a cache on the way has no answer for it.
    format!("srpc.nobody-{:016x}", rand::random::<u64>())
}

/// The list. It has no revision, so that it proves nothing.
///
/// A list of one service is believed if its header names that service, or if a name that nobody has
/// is answered by an empty list: gateways drop headers. A registry that filters nothing lists all
/// under every name. One that has spoken `/v1` filters: a list of all comes from something in its
/// way.
pub(super) async fn list(site: &Site, service: Option<&ServiceName>) -> Result<Found, Failure> {
    let Some(service) = service else { return found(&get(site, None).await?) };
    let answer = match get(site, Some(service.as_str())).await {
        Err(Failure::Problem(problem))
            if !site.has_spoken_v1() && matches!(problem.status, 400 | 404 | 405) =>
        {
            // One that answers for a name that nobody has takes queries, and refused this one alone.
            if !site.is_unfiltered() && get(site, Some(&nobody())).await.is_ok() {
                return Err(Failure::Problem(problem));
            }
            let listed = found(&get(site, None).await?)?;
            site.filters_nothing();
            return Ok(listed);
        }
        answer => answer?,
    };
    let listed = found(&answer)?;
    match answer.headers.get(api::SERVICE).map(HeaderValue::as_bytes) {
        Some(named) if named == service.as_str().as_bytes() => return Ok(listed.of(service)),
        Some(_) => return Err(Failure::Nonsense(format!("not the list of {service}"))),
        None if listed.entries.is_empty() || site.is_unfiltered() => return Ok(listed),
        None => {}
    }
    if found(&get(site, Some(&nobody())).await?)?.entries.is_empty() {
        return Ok(listed.of(service));
    }
    if site.has_spoken_v1() {
        return Err(Failure::unavailable("a list of all services, of a registry that had /v1"));
    }
    site.filters_nothing();
    Ok(listed)
}

async fn get(site: &Site, service: Option<&str>) -> Result<Answer, Failure> {
    let mount = site.mount().await?;
    let path = &mount.header_path;
    let target = match service {
        Some(service) => format!("{path}?service={service}"),
        None => path.clone(),
    };
    let answer = site.ask(&Ask::get(target), Duration::ZERO).await?;
    succeeded(&answer)?;
    if answer.headers.contains_key(api::SERVERS) {
        site.answered_at(mount);
    }
    Ok(answer)
}

/// What an answer lists, of no service.
fn found(answer: &Answer) -> Result<Found, Failure> {
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
                    event!(WARN, %error, "the registry lists what is no address");
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
        deregistered: Vec::new(),
        protection: None,
        complete: unread.is_empty(),
        unread,
        entries: entries.collect(),
        again: None,
    })
}

impl Found {
    /// The same, all of it of one service.
    fn of(mut self, service: &ServiceName) -> Self {
        for entry in &mut self.entries {
            entry.service = Some(service.clone());
        }
        self
    }
}

pub(super) fn succeeded(answer: &Answer) -> Result<(), Failure> {
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
