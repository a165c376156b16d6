//! Host names that a registry on loopback answers to, against DNS rebinding.

use std::net::IpAddr;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Version};

use super::problem::Refusal;
use crate::transport::Listener;

/// How requests reach the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Through a server that it is mounted in, which answers for its own listener.
    Mounted,
    /// Over a Unix socket or a network in memory, where no browser connects.
    Private,
    /// Over TCP from this machine alone, which includes every page that a browser shows there.
    Loopback,
    /// From other machines too.
    Exposed,
}

impl Reach {
    pub(super) fn of(listener: &Listener) -> Self {
        if !listener.is_local() {
            Self::Exposed
        } else if listener.is_in_process() || listener.address().host().is_none() {
            Self::Private
        } else {
            Self::Loopback
        }
    }

    /// Whether others than this machine may ask.
    pub(super) fn is_exposed(self) -> bool {
        self == Self::Exposed
    }
}

/// The names that a registry on loopback answers to, beside `localhost` and IP addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    pub(super) fn allow(&mut self, host: &str) {
        self.0.push(name_of(host).to_owned());
    }

    /// Refuses a host name that a page in a browser may have been loaded by: its owner may have pointed it
    /// at this machine.
    pub(super) fn check(&self, parts: &Parts, reach: Reach) -> Result<(), Refusal> {
        if reach != Reach::Loopback {
            return Ok(());
        }
        let header = parts.headers.get(HOST).map(HeaderValue::as_bytes);
        let header = header.map(|host| String::from_utf8_lossy(host).into_owned());
        let target = parts.uri.host().map(str::to_owned);
        match header.into_iter().chain(target).find(|host| !self.allows(name_of(host))) {
            Some(host) => Err(Refusal::misdirected(&host)),
            None => Ok(()),
        }
    }

    fn allows(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.0.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

/// Refuses a request of HTTP/1.1 without a `Host`, and any with two: each may be taken for the one that counts
/// (RFC 9112, section 3.2).
pub(super) fn check_header(parts: &Parts, reach: Reach) -> Result<(), Refusal> {
    if reach == Reach::Mounted {
        return Ok(());
    }
    match parts.headers.get_all(HOST).iter().count() {
        1 => Ok(()),
        0 if parts.version < Version::HTTP_11 => Ok(()),
        0 => Err(Refusal::invalid("the header Host is missing").closing()),
        _ => Err(Refusal::invalid("the header Host is given twice").closing()),
    }
}

/// A host without its port, brackets and final dot.
fn name_of(host: &str) -> &str {
    let host = host.trim();
    if let Some((inner, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return inner;
    }
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && is_port(port) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(target: &str, hosts: &[&[u8]]) -> Parts {
        let mut request = Request::builder().uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn on_loopback_only_names_that_no_page_has_are_answered() {
        let mut hosts = Hosts::default();
        hosts.allow("Registry.Local:9999");
        for good in [
            "localhost",
            "LocalHost:1",
            "localhost.",
            "127.0.0.1",
            "127.0.0.1:9",
            "10.0.0.1:9",
            "[::1]",
            "[::1]:9",
            "registry.local",
            "REGISTRY.local.:80",
        ] {
            let asked = parts("/v1/services", &[good.as_bytes()]);
            assert!(hosts.check(&asked, Reach::Loopback).is_ok(), "{good}");
        }
        for bad in [
            &b"evil.example"[..],
            b"evil.example:9999",
            b"localhost.evil",
            b"evil.localhost",
            b"",
            b"127.0.0.1.evil",
            b"2130706433",
            b"0x7f.1",
            b"[::1",
            b"localhost:x",
            b"\xffx",
        ] {
            let asked = parts("/v1/services", &[bad]);
            let told = hosts.check(&asked, Reach::Loopback).unwrap_err();
            assert_eq!(told.status().as_u16(), 421, "{bad:?}");
            assert!(told.detail().contains("--allow-host"), "{}", told.detail());
            for other in [Reach::Mounted, Reach::Private, Reach::Exposed] {
                assert!(hosts.check(&asked, other).is_ok());
            }
        }
        let absolute = parts("http://evil.example/v1/services", &[b"localhost"]);
        assert!(hosts.check(&absolute, Reach::Loopback).is_err());
    }

    #[test]
    fn there_is_one_host_header_and_no_more() {
        let is_taken = |hosts: &[&[u8]], version: Version| {
            let mut asked = parts("/", hosts);
            asked.version = version;
            check_header(&asked, Reach::Exposed).is_ok()
        };
        assert!(is_taken(&[b"a"], Version::HTTP_11) && is_taken(&[b""], Version::HTTP_11));
        assert!(!is_taken(&[], Version::HTTP_11) && is_taken(&[], Version::HTTP_10));
        assert!(!is_taken(&[b"a", b"a"], Version::HTTP_11));
        assert!(!is_taken(&[b"a", b"b"], Version::HTTP_10));
        assert!(check_header(&parts("/", &[]), Reach::Mounted).is_ok());
    }
}
