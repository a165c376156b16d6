//! What does TARGET mean, and by which list of instances is it reached?

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use srpc::backend::http::HttpRegistry;
use srpc::backend::static_list::StaticList;
use srpc::backend::{OpenOptions, Opened, masked_url};
use srpc::call::MethodName;
use srpc::discovery::{Discovery, Resolver, SnapshotStatus};
use srpc::instance::{InvalidServiceName, ServiceName};
use srpc::selector::ConsistentHash;
use srpc::transport::Transport;
use tokio::time::{Instant, timeout_at};

use crate::args::Shared;
use crate::credentials::Credentials;
use crate::exit::Exit;
use crate::{nearest, tls};

/// The limit of a registry request where `--timeout` is the call's.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(5);
/// How addresses are written, for those who write them otherwise.
const ADDRESSES: &str = "an address is written tcp@host:port, tls@host:port or unix@/path";
/// More than any service takes; what is read of an argument ends there.
const LARGEST_ARGUMENT: u64 = 64 * 1024 * 1024;

/// What a call is aimed at.
pub(crate) struct Target {
    service: ServiceName,
    /// The method's full name.
    method: String,
    discovery: Arc<dyn Discovery>,
    /// What calls go over.
    transport: Arc<dyn Transport>,
}

impl Target {
    /// Reads TARGET, an address if it contains an `@` and else a service's name, and METHOD, which
    /// needs no service if TARGET names it.
    pub(crate) fn parse(
        shared: &Shared,
        credentials: &Credentials,
        transport: Arc<dyn Transport>,
        target: &str,
        method: &str,
    ) -> Result<Self, Exit> {
        // In an address `://` may only be a part of a path.
        if target.split_once("://").is_some_and(|(scheme, _)| !scheme.contains('@')) {
            let url = masked_url(target);
            return Err(usage(format!("{url} is a URL: a registry is given with --registry")));
        }
        if target.contains('@') {
            let list = StaticList::parse(target)
                .map_err(|error| usage(format!("{error}; {ADDRESSES}")))?;
            tls::check(&transport, target)?;
            let service = MethodName::parse(method).map_err(usage)?.service;
            return Ok(Self {
                service: service.parse().map_err(usage)?,
                method: method.to_owned(),
                discovery: Arc::new(list),
                transport,
            });
        }
        let service = target.parse::<ServiceName>();
        let service = service.map_err(|error| no_service_name(target, &error))?;
        let method = if MethodName::is_valid_part(method) {
            format!("{service}.{method}")
        } else {
            method.to_owned()
        };
        MethodName::parse(&method).map_err(usage)?;
        let urls = shared.required_registry()?;
        let opened = open(urls, REGISTRY_TIMEOUT, credentials, Arc::clone(&transport))?;
        Ok(Self { service, method, discovery: opened.discovery, transport })
    }

    /// The method's full name.
    pub(crate) fn method(&self) -> &str {
        &self.method
    }

    /// What calls go over.
    pub(crate) fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.transport)
    }

    /// The list of instances, kept up to date; `by_hash_key` chooses among them by the call's key.
    pub(crate) fn resolver(&self, by_hash_key: bool) -> Resolver {
        let transport = self.transport();
        let builder = Resolver::builder(self.service.clone(), Arc::clone(&self.discovery))
            .speaks(move |protocol| transport.speaks(protocol));
        if by_hash_key {
            builder.selector(ConsistentHash::default()).build()
        } else {
            builder.build()
        }
    }

    /// Waits until `deadline` for the first list, and then up to `patience` for an instance on it; says why
    /// there is none to call, and which service may be meant.
    pub(crate) async fn first_instance(
        &self,
        resolver: &Resolver,
        deadline: Instant,
        patience: Duration,
    ) -> Result<(), Exit> {
        match first_instance(resolver, deadline, patience).await {
            Err(exit) if exit.is_no_service() => {
                let hint = nearest::service(&*self.discovery, &self.service).await;
                Err(Exit::no_service(format!("{}{hint}", exit.message())))
            }
            known => known,
        }
    }
}

/// Why a target is neither a service's name nor an address, and how an address is written.
fn no_service_name(target: &str, error: &InvalidServiceName) -> Exit {
    let protocol = if target.starts_with('/') { "unix@" } else { "tcp@" };
    let written = format!("{protocol}{}", target.replace(',', &format!(",{protocol}")));
    if StaticList::parse(&written).is_ok() {
        let why = format!("{target:?} is an address, which is written {written} (tls@ for TLS)");
        return Exit::usage(why);
    }
    Exit::usage(format!("{error}; {ADDRESSES}"))
}

/// What a URL of any kind names.
pub(crate) fn open(
    urls: &str,
    timeout: Duration,
    credentials: &Credentials,
    transport: Arc<dyn Transport>,
) -> Result<Opened, Exit> {
    tls::check(&transport, urls)?;
    let mut options = OpenOptions::new().timeout(timeout).transport(transport);
    if let Some(token) = credentials.token()? {
        options = options.token(token);
    }
    options.open(urls).map_err(usage)
}

/// Whether a URL names the registry over HTTP, which tells more than others.
pub(crate) fn is_http(urls: &str) -> bool {
    let scheme = urls.trim_start().split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    matches!(scheme.as_deref(), Some("http" | "https"))
}

/// The client of a registry over HTTP.
pub(crate) fn registry(
    urls: &str,
    timeout: Duration,
    credentials: &Credentials,
    transport: Arc<dyn Transport>,
) -> Result<HttpRegistry, Exit> {
    tls::check(&transport, urls)?;
    let mut builder = HttpRegistry::builder(urls).timeout(timeout).transport(transport);
    if let Some(token) = credentials.token()? {
        builder = builder.token(token);
    }
    builder.build().map_err(usage)
}

/// Waits until `deadline` for the first list, and then up to `patience` for an instance on it;
/// tells why there is none to call.
async fn first_instance(
    resolver: &Resolver,
    deadline: Instant,
    patience: Duration,
) -> Result<(), Exit> {
    // What ended the waiting, here and below, is seen in the snapshot.
    let _ = timeout_at(deadline, resolver.first()).await;
    match usable(resolver) {
        Err(exit) if exit.is_no_service() => {}
        known => return known,
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let _ = resolver.ready(left.min(patience)).await;
    usable(resolver)
}

/// Whether the list as it is now has an instance to call.
fn usable(resolver: &Resolver) -> Result<(), Exit> {
    let service = resolver.service();
    let snapshot = resolver.snapshot();
    if snapshot.endpoints.iter().any(|endpoint| endpoint.is_ready()) {
        return Ok(());
    }
    if !snapshot.endpoints.is_empty() {
        return Err(Exit::no_instance(format!("no instance of {service} takes calls")));
    }
    if snapshot.skipped > 0 {
        return Err(Exit::no_instance(format!(
            "the {} instances of {service} speak protocols that this command does not: for tls@, \
             {}",
            snapshot.skipped,
            tls::LACKS_AUTHORITY
        )));
    }
    let stats = resolver.stats();
    let answered = match snapshot.status {
        SnapshotStatus::Pending => stats.resolved > 0 || stats.updates > 0,
        SnapshotStatus::Failed => false,
        _ => true,
    };
    if answered {
        return Err(Exit::no_service(format!("no instance of {service} is registered")));
    }
    Err(match &snapshot.last_error {
        Some(error) => Exit::from(&**error),
        None => Exit::registry("the registry has not answered in time"),
    })
}

/// Reads the argument of a call: JSON, `@file`, or `-` for standard input.
pub(crate) fn argument(text: &str) -> Result<Box<RawValue>, Exit> {
    let json = match text.strip_prefix('@') {
        Some(path) => {
            let file = File::open(path).map_err(|error| usage(format!("{path}: {error}")))?;
            read(file).map_err(|error| usage(format!("{path}: {error}")))?
        }
        None if text == "-" => {
            read(io::stdin().lock()).map_err(|error| usage(format!("standard input: {error}")))?
        }
        None => text.to_owned(),
    };
    serde_json::from_str(&json).map_err(|error| usage(format!("the argument is no JSON: {error}")))
}

fn read(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(LARGEST_ARGUMENT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_ARGUMENT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "larger than 64 MiB"));
    }
    Ok(text)
}

fn usage(error: impl std::fmt::Display) -> Exit {
    Exit::usage(error.to_string())
}
