//! Makes a source and a registry of a URL.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::static_list::StaticList;
use super::url::InvalidUrl;
use crate::discovery::Discovery;
use crate::registry::Registry;
use crate::transport::{Net, Transport};

/// What a URL names.
#[derive(Clone)]
#[non_exhaustive]
pub struct Opened {
    /// Where instances are found.
    pub discovery: Arc<dyn Discovery>,
    /// Where instances register; `None` for sources that are only read: DNS, a file, a list.
    pub registry: Option<Arc<dyn Registry>>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("registers", &self.registry.is_some()).finish()
    }
}

/// Opens what a URL names, with every default of [`OpenOptions`]. Nothing is connected yet.
///
/// | URL | what it is | feature |
/// |---|---|---|
/// | `static://10.0.0.1:7001,unix@/run/foo.sock` | these addresses, whatever the service | |
/// | `http://a:9999,http://b:9999`, `https://` | this crate's registry; several are replicas of each other | `http` |
/// | `etcd://a,b:2379/prefix` | etcd's members; the prefix is `/srpc` if none is named | `etcd` |
/// | `zookeeper://a,b:2181/prefix` | ZooKeeper's servers; the prefix is `/srpc` if none is named | `zookeeper` |
/// | `dns://name:7001` | every address of a name, at a port | `dns` |
/// | `dns+srv://_foo._tcp.example.org` | every target of an SRV record | `dns` |
/// | `file:///etc/services.toml` | a file, TOML or JSON | `file` |
///
/// In the names of DNS `{service}` stands for the service that is asked for.
///
/// # Errors
/// [`InvalidUrl`]: an unknown scheme, a feature that this build lacks, which is named, or what does not
/// parse.
pub fn open(url: &str) -> Result<Opened, InvalidUrl> {
    OpenOptions::new().open(url)
}

/// How a URL is opened.
#[derive(Clone)]
#[must_use]
pub struct OpenOptions {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) timeout: Duration,
    pub(super) lease_each: bool,
    #[cfg(feature = "http")]
    pub(super) token: Option<super::http::Token>,
}

impl OpenOptions {
    /// Every default.
    pub fn new() -> Self {
        Self {
            transport: Arc::new(Net::default()),
            timeout: Duration::from_secs(5),
            lease_each: false,
            #[cfg(feature = "http")]
            token: None,
        }
    }

    /// What connections to the registry over HTTP and to etcd go over. Default: real sockets.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// How long a request may take. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// For one who registers on behalf of others, each of whom is to end by himself: see
    /// `EtcdRegistryBuilder::lease_each`. Default: no.
    pub fn lease_each(mut self, each: bool) -> Self {
        self.lease_each = each;
        self
    }

    /// What is shown to a registry over HTTP. Default: none.
    #[cfg(feature = "http")]
    pub fn token(mut self, token: super::http::Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Opens what a URL names: see [`open`].
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(&self, url: &str) -> Result<Opened, InvalidUrl> {
        let Some((scheme, rest)) = url.trim().split_once("://") else {
            return Err(InvalidUrl::new(url, format!("no scheme: it is one of {SCHEMES}")));
        };
        let rest = Rest { url, rest };
        match scheme.to_ascii_lowercase().as_str() {
            "static" => list(rest),
            "http" | "https" => schemes::http(rest, self),
            "etcd" => schemes::etcd(rest, self),
            "zookeeper" => schemes::zookeeper(rest, self),
            "dns" => schemes::dns(rest, self),
            "dns+srv" => schemes::dns_srv(rest, self),
            "file" => schemes::file(rest),
            _ => Err(InvalidUrl::new(url, format!("an unknown scheme: it is one of {SCHEMES}"))),
        }
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

const SCHEMES: &str =
    "static://, http://, https://, etcd://, zookeeper://, dns://, dns+srv:// and file://";

/// A URL, and what follows its scheme.
#[derive(Clone, Copy)]
struct Rest<'a> {
    url: &'a str,
    rest: &'a str,
}

fn list(Rest { url, rest }: Rest<'_>) -> Result<Opened, InvalidUrl> {
    let with_protocol = |part: &str| match part.contains('@') {
        true => part.to_owned(),
        false => format!("tcp@{part}"),
    };
    let parts = rest.split(',').map(str::trim).filter(|part| !part.is_empty());
    let parts: Vec<String> = parts.map(with_protocol).collect();
    let list = StaticList::parse(&parts.join(","));
    let list = list.map_err(|error| InvalidUrl::new(url, error.reason()))?;
    Ok(Opened { discovery: Arc::new(list), registry: None })
}

/// One function for each scheme, or one that says which feature has it.
mod schemes {
    use super::*;

    #[cfg(not(all(
        feature = "http",
        feature = "etcd",
        feature = "zookeeper",
        feature = "dns",
        feature = "file"
    )))]
    fn lacks(url: &str, feature: &str) -> Result<Opened, InvalidUrl> {
        Err(InvalidUrl::new(url, format!("this build lacks the feature `{feature}`")))
    }

    /// What is both.
    #[cfg(any(feature = "http", feature = "etcd", feature = "zookeeper"))]
    fn both<T: Discovery + Registry + Clone>(both: T) -> Opened {
        Opened { discovery: Arc::new(both.clone()), registry: Some(Arc::new(both)) }
    }

    /// `hosts/prefix`, where the prefix may be missing.
    #[cfg(any(feature = "etcd", feature = "zookeeper"))]
    fn hosts_and_prefix<'a>(rest: Rest<'a>) -> Result<(&'a str, Option<&'a str>), InvalidUrl> {
        if rest.rest.contains(['?', '#', '@']) {
            return Err(InvalidUrl::new(rest.url, "it is hosts and a prefix, and nothing else"));
        }
        Ok(match rest.rest.split_once('/') {
            Some((hosts, prefix)) if !prefix.trim_matches('/').is_empty() => (hosts, Some(prefix)),
            Some((hosts, _)) => (hosts, None),
            None => (rest.rest, None),
        })
    }

    #[cfg(feature = "http")]
    pub(super) fn http(rest: Rest<'_>, options: &OpenOptions) -> Result<Opened, InvalidUrl> {
        let mut builder = crate::backend::http::HttpRegistry::builder(rest.url)
            .transport(Arc::clone(&options.transport))
            .timeout(options.timeout);
        if let Some(token) = &options.token {
            builder = builder.token(token.clone());
        }
        Ok(both(builder.build()?))
    }

    #[cfg(not(feature = "http"))]
    pub(super) fn http(rest: Rest<'_>, _: &OpenOptions) -> Result<Opened, InvalidUrl> {
        lacks(rest.url, "http")
    }

    #[cfg(feature = "etcd")]
    pub(super) fn etcd(rest: Rest<'_>, options: &OpenOptions) -> Result<Opened, InvalidUrl> {
        use crate::backend::etcd::{DEFAULT_PREFIX, EtcdRegistry};
        let (hosts, prefix) = hosts_and_prefix(rest)?;
        let builder = EtcdRegistry::builder(hosts)
            .prefix(prefix.unwrap_or(DEFAULT_PREFIX))
            .transport(Arc::clone(&options.transport))
            .lease_each(options.lease_each)
            .timeout(options.timeout);
        Ok(both(builder.build().map_err(|error| InvalidUrl::new(rest.url, error.reason()))?))
    }

    #[cfg(not(feature = "etcd"))]
    pub(super) fn etcd(rest: Rest<'_>, _: &OpenOptions) -> Result<Opened, InvalidUrl> {
        lacks(rest.url, "etcd")
    }

    #[cfg(feature = "zookeeper")]
    pub(super) fn zookeeper(rest: Rest<'_>, options: &OpenOptions) -> Result<Opened, InvalidUrl> {
        use crate::backend::zookeeper::{DEFAULT_PREFIX, ZooKeeperRegistry};
        let (hosts, prefix) = hosts_and_prefix(rest)?;
        let builder = ZooKeeperRegistry::builder(hosts)
            .prefix(prefix.unwrap_or(DEFAULT_PREFIX))
            .timeout(options.timeout);
        Ok(both(builder.build().map_err(|error| InvalidUrl::new(rest.url, error.reason()))?))
    }

    #[cfg(not(feature = "zookeeper"))]
    pub(super) fn zookeeper(rest: Rest<'_>, _: &OpenOptions) -> Result<Opened, InvalidUrl> {
        lacks(rest.url, "zookeeper")
    }

    #[cfg(feature = "dns")]
    pub(super) fn dns(rest: Rest<'_>, options: &OpenOptions) -> Result<Opened, InvalidUrl> {
        let (name, server) = name_and_server(rest)?;
        let (name, port) = name
            .rsplit_once(':')
            .and_then(|(name, port)| {
                // `u16::from_str` would take a sign.
                let is_number = port.bytes().all(|b| b.is_ascii_digit());
                Some((name, port.parse().ok().filter(|port| is_number && *port > 0)?))
            })
            .ok_or_else(|| InvalidUrl::new(rest.url, "it is a name and a port, `name:7001`"))?;
        source(rest, crate::backend::dns::Dns::addresses(name, port), server, options)
    }

    #[cfg(feature = "dns")]
    pub(super) fn dns_srv(rest: Rest<'_>, options: &OpenOptions) -> Result<Opened, InvalidUrl> {
        let (name, server) = name_and_server(rest)?;
        source(rest, crate::backend::dns::Dns::srv(name), server, options)
    }

    #[cfg(feature = "dns")]
    fn source(
        rest: Rest<'_>,
        builder: crate::backend::dns::DnsBuilder,
        server: Option<std::net::SocketAddr>,
        options: &OpenOptions,
    ) -> Result<Opened, InvalidUrl> {
        let mut builder = builder.timeout(options.timeout);
        if let Some(server) = server {
            builder = builder.server(server);
        }
        let dns = builder.build().map_err(|error| InvalidUrl::new(rest.url, error.reason()))?;
        Ok(Opened { discovery: Arc::new(dns), registry: None })
    }

    /// `name?server=10.0.0.53:53`, where the server may be missing.
    #[cfg(feature = "dns")]
    fn name_and_server<'a>(
        Rest { url, rest }: Rest<'a>,
    ) -> Result<(&'a str, Option<std::net::SocketAddr>), InvalidUrl> {
        let Some((name, query)) = rest.split_once('?') else { return Ok((rest, None)) };
        let server = query.strip_prefix("server=").and_then(|server| server.parse().ok());
        let server = server
            .filter(|server: &std::net::SocketAddr| !server.ip().to_canonical().is_unspecified());
        let server = server.ok_or_else(|| {
            InvalidUrl::new(url, "after `?` there is `server=IP:PORT` or nothing")
        })?;
        Ok((name, Some(server)))
    }

    #[cfg(not(feature = "dns"))]
    pub(super) fn dns(rest: Rest<'_>, _: &OpenOptions) -> Result<Opened, InvalidUrl> {
        lacks(rest.url, "dns")
    }

    #[cfg(not(feature = "dns"))]
    pub(super) fn dns_srv(rest: Rest<'_>, _: &OpenOptions) -> Result<Opened, InvalidUrl> {
        lacks(rest.url, "dns")
    }

    #[cfg(feature = "file")]
    pub(super) fn file(Rest { url, rest }: Rest<'_>) -> Result<Opened, InvalidUrl> {
        if rest.is_empty() {
            return Err(InvalidUrl::new(url, "no path"));
        }
        let list = crate::backend::file::FileList::new(rest);
        Ok(Opened { discovery: Arc::new(list), registry: None })
    }

    #[cfg(not(feature = "file"))]
    pub(super) fn file(rest: Rest<'_>) -> Result<Opened, InvalidUrl> {
        lacks(rest.url, "file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_is_opened_and_only_read() {
        let opened = open("STATIC://10.0.0.1:7001, unix@/run/foo.sock").unwrap();
        assert!(opened.registry.is_none());
        let resolved = opened.discovery.resolve(&"Foo".parse().unwrap()).await.unwrap();
        let at: Vec<_> = resolved.instances.iter().map(|one| one.address.as_str()).collect();
        assert_eq!(at, ["tcp@10.0.0.1:7001", "unix@/run/foo.sock"]);
    }

    #[tokio::test]
    async fn schemes_are_read_in_any_case() {
        assert!(open("Static://10.0.0.1:7001").unwrap().registry.is_none());
        #[cfg(feature = "http")]
        assert!(open("HTTP://a:9999,Http://b:9999").unwrap().registry.is_some());
        #[cfg(feature = "etcd")]
        assert!(open("ETCD://a").unwrap().registry.is_some());
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        for (url, reason) in [
            ("", "no scheme"),
            ("etcd:/x", "no scheme"),
            ("consul://a", "an unknown scheme: it is one of static://"),
            ("static://a", "no port"),
            ("static://a:0", "port 0"),
            ("static://0.0.0.0:1", "unspecified"),
            ("static://0:1", "ends in a number"),
        ] {
            let error = open(url).unwrap_err();
            assert!(error.reason().contains(reason), "{url:?}: {error}");
        }
    }

    #[cfg(not(feature = "etcd"))]
    #[test]
    fn a_feature_that_is_off_is_named() {
        let error = open("etcd://a").unwrap_err();
        assert!(error.reason().contains("`etcd`"), "{error}");
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn hosts_and_a_prefix_are_told_apart() {
        for url in ["etcd://a", "etcd://a,b:7/", "etcd://[::1]:7,b/teams/shop"] {
            assert!(open(url).unwrap().registry.is_some(), "{url}");
        }
        for url in ["etcd://", "etcd://a,,b", "etcd://a:x", "etcd://u@a", "etcd://a?x=1"] {
            assert!(open(url).is_err(), "{url}");
        }
    }
}
