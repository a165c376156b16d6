//! What does `srpc list` show?

use std::collections::BTreeMap;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use srpc::backend::memory::{Entry, Listing};
use srpc::discovery::{Discovery, DiscoveryErrorKind};
use srpc::instance::{Health, ServiceName};

use crate::args::{self, Shared};
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::{nearest, target};

/// Lists the instances that the registry knows. None is an empty list, not a failure.
pub(crate) async fn run(shared: &Shared, args: &args::List) -> Result<(), Exit> {
    let (urls, transport) = (shared.required_registry()?, args.dialling.transport()?);
    let (listing, discovery): (Listing, Arc<dyn Discovery>) = if target::is_http(urls) {
        let registry = target::registry(urls, shared.timeout, &args.credentials, transport)?;
        let listing = registry.list(args.service.as_ref()).await;
        (listing.map_err(|error| Exit::from(&error))?, Arc::new(registry))
    } else {
        let opened = target::open(urls, shared.timeout, &args.credentials, transport)?;
        let listing = match &args.service {
            Some(service) => of_services(&*opened.discovery, slice::from_ref(service)).await?,
            None => {
                let services =
                    opened.discovery.services().await.map_err(|error| match error.kind() {
                        DiscoveryErrorKind::Unsupported => {
                            Exit::usage(format!("name a service: {}", error.message()))
                        }
                        _ => Exit::from(&error),
                    })?;
                of_services(&*opened.discovery, &services).await?
            }
        };
        (listing, opened.discovery)
    };
    tell(&listing);
    if let Some(service) = args.service.as_ref().filter(|_| listing.entries.is_empty()) {
        let hint = nearest::service(&*discovery, service).await;
        output::note(&format!("no instance of {service} is registered{hint}"));
    }
    let rows: Vec<Row<'_>> = listing.entries.iter().map(Row::of).collect();
    match shared.output {
        Format::Json => output::print_json(&rows),
        Format::Jsonl => rows.iter().try_for_each(output::print_json),
        Format::Name => {
            rows.iter().try_for_each(|row| output::print(&output::printable(row.address)))
        }
        Format::Table | Format::Wide => output::print(&table(&rows, shared.output == Format::Wide)),
    }
}

/// Says on stderr, in every format, how far the list can be trusted.
fn tell(listing: &Listing) {
    for reason in &listing.unread {
        output::note(&format!("left out, because it cannot be read: {reason}"));
    }
    if listing.warming {
        output::note(
            "the registry is not sure that this is all: instances may still be coming back",
        );
    }
    if let Some(protection) = &listing.protection {
        output::note(&format!(
            "the registry keeps {} instances whose leases have run out, for {} s at most",
            protection.kept,
            protection.ends_in.as_secs() + 1
        ));
    }
}

/// What any source says of these services. The lists of the others stand where one cannot be read.
async fn of_services(discovery: &dyn Discovery, services: &[ServiceName]) -> Result<Listing, Exit> {
    let (mut entries, mut warming) = (Vec::new(), false);
    let mut unread: Vec<Arc<str>> = Vec::new();
    let (mut failed, mut has_answered) = (None, false);
    for service in services {
        let resolved = match discovery.resolve(service).await {
            Ok(resolved) => resolved,
            Err(error) if error.kind() == DiscoveryErrorKind::Invalid => {
                add(&mut unread, error.message().into());
                failed = Some(error);
                continue;
            }
            Err(error) => return Err(Exit::from(&error)),
        };
        has_answered = true;
        warming |= resolved.warming;
        if !resolved.complete && resolved.unread.is_empty() {
            add(&mut unread, format!("a part of the list of {service}").into());
        }
        resolved.unread.into_iter().for_each(|reason| add(&mut unread, reason));
        let entry = |instance| Entry::new(Some(service.clone()), instance, None);
        let mut of_one: Vec<Entry> = resolved.instances.into_iter().map(entry).collect();
        of_one.sort_by(|one, other| one.instance.address.cmp(&other.instance.address));
        entries.extend(of_one);
    }
    match failed {
        Some(error) if !has_answered => Err(Exit::from(&error)),
        _ => {
            let mut listing = Listing::new("", warming, entries);
            listing.unread = unread;
            Ok(listing)
        }
    }
}

/// Services of one source may share a reason.
fn add(unread: &mut Vec<Arc<str>>, reason: Arc<str>) {
    if !unread.contains(&reason) {
        unread.push(reason);
    }
}

/// One instance of one service.
#[derive(Serialize)]
struct Row<'a> {
    /// `null`: registered under no name.
    service: Option<&'a str>,
    id: &'a str,
    address: &'a str,
    health: Health,
    weight: u32,
    zone: Option<&'a str>,
    version: Option<&'a str>,
    /// `null`: never, or the registry does not say.
    expires_in_ms: Option<u64>,
    metadata: &'a BTreeMap<String, String>,
}

impl<'a> Row<'a> {
    fn of(entry: &'a Entry) -> Self {
        let instance = &entry.instance;
        Self {
            service: entry.service.as_ref().map(|service| service.as_str()),
            id: instance.id.as_str(),
            address: instance.address.as_str(),
            health: instance.health,
            weight: instance.weight,
            zone: instance.zone.as_deref(),
            version: instance.version.as_deref(),
            expires_in_ms: entry.expires_in.map(milliseconds),
            metadata: &instance.metadata,
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn table(rows: &[Row<'_>], wide: bool) -> String {
    let mut header = vec!["SERVICE", "ADDRESS", "HEALTH", "WEIGHT", "ZONE", "EXPIRES"];
    if wide {
        header.extend(["ID", "VERSION", "METADATA"]);
    }
    let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let cells = |row: &Row<'_>| {
        let mut cells = vec![
            or_dash(row.service),
            row.address.to_owned(),
            row.health.to_string(),
            row.weight.to_string(),
            or_dash(row.zone),
            row.expires_in_ms.map_or("-".to_owned(), |ms| format!("{:.1}s", ms as f64 / 1e3)),
        ];
        if wide {
            let metadata: Vec<String> =
                row.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
            cells.extend([row.id.to_owned(), or_dash(row.version), metadata.join(",")]);
        }
        cells
    };
    output::table(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}
