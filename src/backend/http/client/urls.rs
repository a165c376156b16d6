//! Reads the list of registry URLs: `http://a:9999/srpc/registry,http://b:9999`.

use http::Uri;

use super::super::DEFAULT_PATH;
use crate::backend::url::{InvalidUrl, masked};
use crate::instance::Address;

/// Why https:// is refused where the transport cannot do it.
const NO_TLS: &str = "https:// needs a transport that speaks TLS: \
    transport::Tls of the feature `tls`, given to HttpRegistryBuilder::transport";

/// Where one registry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// For messages: what may be a secret in it is masked.
    pub(super) url: String,
    /// What to connect to.
    pub(super) address: Address,
    /// What the `Host` header says.
    pub(super) authority: String,
    /// Where the registry is if the path is its prefix, or ends in its header contract.
    pub(super) mount: Mount,
    /// Where it is if the path is a header contract that is mounted elsewhere.
    pub(super) elsewhere: Option<Mount>,
}

/// Where a registry serves its two contracts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// What comes before `/v1`; it does not end in `/`.
    pub(super) prefix: String,
    /// Path of the header contract.
    pub(super) header_path: String,
}

impl Mount {
    fn below(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), header_path: format!("{prefix}{DEFAULT_PATH}") }
    }
}

/// At least one location, each of a protocol that the transport speaks.
pub(super) fn parse(
    urls: &str,
    speaks: impl Fn(&str) -> bool,
) -> Result<Vec<Location>, InvalidUrl> {
    split(urls).iter().map(|url| location(url.trim(), &speaks)).collect()
}

/// A comma may be part of a URL: it starts a new one only if a scheme follows.
fn split(urls: &str) -> Vec<String> {
    let mut split: Vec<String> = Vec::new();
    for part in urls.split(',') {
        match split.last_mut() {
            Some(last) if !has_scheme(part.trim()) => {
                last.push(',');
                last.push_str(part);
            }
            _ => split.push(part.to_owned()),
        }
    }
    split
}

fn has_scheme(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b))
    })
}

fn location(url: &str, speaks: impl Fn(&str) -> bool) -> Result<Location, InvalidUrl> {
    let invalid = |reason: &str| InvalidUrl::new(url, reason);
    let uri: Uri =
        url.parse().map_err(|error: http::uri::InvalidUri| invalid(&error.to_string()))?;
    let (protocol, default_port) = match uri.scheme_str() {
        Some("http") => ("tcp", "80"),
        Some("https") if speaks("tls") => ("tls", "443"),
        Some("https") => return Err(invalid(NO_TLS)),
        _ => return Err(invalid("it does not start with http:// or https://")),
    };
    let authority = uri.authority().ok_or_else(|| invalid("no host"))?;
    if authority.as_str().contains('@') {
        return Err(invalid("user information in it would not be used"));
    }
    if uri.query().is_some() {
        return Err(invalid("a query: name the registry alone"));
    }
    // `Authority::port` is silent about a port that is none.
    let (host, port) = match authority.as_str().rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority.as_str(), ""),
    };
    let dialled_port = if port.is_empty() { default_port } else { port };
    let address = Address::to_dial(&format!("{protocol}@{host}:{dialled_port}"));
    let address = address.map_err(|error| invalid(error.reason()))?;
    let authority = host_header(&address, !port.is_empty());
    let (mount, elsewhere) = mounts(uri.path());
    Ok(Location { url: masked(url), address, authority, mount, elsewhere })
}

/// Virtual hosts are named without the dot that turns search lists off, and without the usual port.
fn host_header(address: &Address, has_port: bool) -> String {
    let identity = address.identity();
    let target = identity.split_once('@').map_or(&*identity, |(_, target)| target);
    match target.rsplit_once(':') {
        Some((host, _)) if !has_port => host.to_owned(),
        _ => target.to_owned(),
    }
}

/// `/reg/srpc/registry` names the prefix `/reg`. Any other path is either a prefix itself, or the
/// path of a header contract.
fn mounts(path: &str) -> (Mount, Option<Mount>) {
    let trimmed = path.trim_end_matches('/');
    match trimmed.strip_suffix(DEFAULT_PATH) {
        Some(prefix) => (Mount::below(prefix.trim_end_matches('/')), None),
        None if trimmed.is_empty() => (Mount::below(""), None),
        None => {
            let elsewhere = Mount { prefix: String::new(), header_path: path.to_owned() };
            (Mount::below(trimmed), Some(elsewhere))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_where_a_scheme_follows() {
        let urls =
            "http://a:1/srpc/registry, http://[::1]/x,y,http://b.c,https://d,https://[::1]:7";
        let locations = parse(urls, |_| true).unwrap();
        let told: Vec<_> = locations
            .iter()
            .map(|it| (it.address.as_str(), it.authority.as_str(), it.mount.prefix.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("tcp@a:1", "a:1", ""),
                ("tcp@[::1]:80", "[::1]", "/x,y"),
                ("tcp@b.c:80", "b.c", ""),
                ("tls@d:443", "d", ""),
                ("tls@[::1]:7", "[::1]:7", ""),
            ]
        );
    }

    #[test]
    fn a_host_is_dialled_as_written_and_named_by_its_identity() {
        for (url, address, host_header) in [
            ("http://A.Example.:080/x", "tcp@a.example.:80", "a.example:80"),
            ("http://a:", "tcp@a:80", "a"),
            ("HTTPS://a./", "tls@a.:443", "a"),
            ("https://[::FFFF:10.0.0.1]", "tls@10.0.0.1:443", "10.0.0.1"),
        ] {
            let location = parse(url, |_| true).unwrap().remove(0);
            assert_eq!(location.address.as_str(), address, "{url}");
            assert_eq!(location.authority, host_header, "{url}");
        }
    }

    #[test]
    fn a_path_is_a_prefix_or_a_header_contract() {
        for (path, prefix, header_path, elsewhere) in [
            ("", "", "/srpc/registry", None),
            ("/", "", "/srpc/registry", None),
            ("/srpc/registry", "", "/srpc/registry", None),
            ("/srpc/registry/", "", "/srpc/registry", None),
            ("/reg/srpc/registry", "/reg", "/reg/srpc/registry", None),
            ("/a/b/srpc/registry/", "/a/b", "/a/b/srpc/registry", None),
            ("/reg", "/reg", "/reg/srpc/registry", Some("/reg")),
            ("/reg/", "/reg", "/reg/srpc/registry", Some("/reg/")),
            ("/x/a", "/x/a", "/x/a/srpc/registry", Some("/x/a")),
            (
                "/xsrpc/registry",
                "/xsrpc/registry",
                "/xsrpc/registry/srpc/registry",
                Some("/xsrpc/registry"),
            ),
        ] {
            let location = parse(&format!("http://a{path}"), |_| true).unwrap().remove(0);
            assert_eq!(location.mount.prefix, prefix, "{path:?}");
            assert_eq!(location.mount.header_path, header_path, "{path:?}");
            let other = location.elsewhere.as_ref();
            assert_eq!(other.map(|other| other.header_path.as_str()), elsewhere, "{path:?}");
            assert!(other.is_none_or(|other| other.prefix.is_empty()), "{path:?}");
        }
    }

    #[test]
    fn what_is_no_url_says_why() {
        for (url, reason) in [
            ("", "empty string"),
            ("a:1", "it does not start with http:// or https://"),
            ("/srpc/registry", "it does not start with http://"),
            ("ftp://a", "it does not start with http://"),
            ("https://a:1/srpc/registry", NO_TLS),
            ("http://a:0", "port 0"),
            ("http://a:65536", "a port above 65535"),
            ("http://0.0.0.0:9999", "unspecified"),
            ("http://[::]:1", "unspecified"),
            ("http://0:9999", "ends in a number"),
            ("http://u:secret@a", "user information in it would not be used"),
            ("http://a/?x=secret", "a query: name the registry alone"),
            ("http://a:1,https://b", "the feature `tls`"),
        ] {
            let error = parse(url, |protocol| protocol == "tcp").unwrap_err();
            assert!(error.reason().contains(reason), "{url:?}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let fragment = parse("http://a/#secret", |_| true).unwrap();
        assert_eq!(
            (&*fragment[0].url, &*fragment[0].mount.header_path),
            ("http://a/#***", DEFAULT_PATH)
        );
    }
}
