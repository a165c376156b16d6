//! Where an instance is reached: `tcp@127.0.0.1:7001`, `tcp@[::1]:7001`, `unix@/run/foo.sock`.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest address, in bytes.
pub(super) const MAX_LEN: usize = 512;

/// Why the unspecified address is refused where it would be dialled.
pub(crate) const UNDIALLABLE: &str = "an unspecified address, which is listened on and not dialled";

/// Protocols whose target is a name or path instead of a host and a port.
const WITHOUT_PORT: [&str; 2] = ["unix", "mem"];

/// Where an instance is reached: `protocol@host:port`, `unix@/path` or `mem@name`.
///
/// Parsed once and typed ever after; cheap to clone. A protocol that this build lacks parses all
/// the same: a registry may hold addresses that only other clients can dial.
///
/// Its text is canonical: a host in lower case, an IP address as RFC 5952 writes it, an IPv4
/// address in IPv6 as IPv4, a port without leading zeros. A host name may end in a dot, which turns
/// search lists off when it is dialled, and does not count when addresses are compared:
/// `tcp@foo.:7` equals `tcp@foo:7`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    text: Arc<str>,
    /// Where the target starts in `text`, just after the `@`.
    target: usize,
    /// 0 for protocols without a port, and in an address to bind.
    port: u16,
    has_final_dot: bool,
}

/// A text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is no address: {reason}")]
pub struct InvalidAddress {
    address: String,
    reason: &'static str,
}

impl InvalidAddress {
    /// What is wrong, in a few words.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

impl Address {
    /// Parses an address to listen on: like [`str::parse`], but port 0 (any free port) is allowed.
    pub fn to_bind(text: &str) -> Result<Self, InvalidAddress> {
        Self::parse(text, true)
    }

    /// Parses an address to dial: like [`str::parse`], but the unspecified address (`0.0.0.0`, `::`)
    /// is refused.
    pub fn to_dial(text: &str) -> Result<Self, InvalidAddress> {
        let address = Self::parse(text, false)?;
        if address.is_unspecified() {
            let address = address.text.to_string();
            return Err(InvalidAddress { address, reason: UNDIALLABLE });
        }
        Ok(address)
    }

    /// What it is compared by: its text without the final dot of its host.
    pub(crate) fn identity(&self) -> Cow<'_, str> {
        if !self.has_final_dot {
            return Cow::Borrowed(&*self.text);
        }
        let (host, port) = self.text.rsplit_once(':').unwrap_or((&*self.text, ""));
        Cow::Owned(format!("{}:{port}", host.strip_suffix('.').unwrap_or(host)))
    }

    /// The same address in memory of its own: a clone shares it, and the count of who does.
    pub(crate) fn copied(&self) -> Self {
        Self { text: Arc::from(&*self.text), ..*self }
    }

    /// The whole address as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What is spoken there: `tcp`, `unix`, `tls`, `mem`, or something this build does not know.
    pub fn protocol(&self) -> &str {
        &self.text[..self.target - 1]
    }

    /// What follows the `@`: `host:port`, a path, or a name.
    pub fn target(&self) -> &str {
        &self.text[self.target..]
    }

    /// The host without brackets; `None` for protocols without a port.
    pub fn host(&self) -> Option<&str> {
        if WITHOUT_PORT.contains(&self.protocol()) {
            return None;
        }
        let (host, _) = self.target().rsplit_once(':')?;
        Some(host.trim_start_matches('[').trim_end_matches(']'))
    }

    /// The port; `None` for protocols without one.
    pub fn port(&self) -> Option<u16> {
        self.host().map(|_| self.port)
    }

    /// Whether the host is `0.0.0.0` or `::`, however written: bound, but not dialled by others.
    pub fn is_unspecified(&self) -> bool {
        let host = self.host().and_then(|host| host.parse::<IpAddr>().ok());
        host.is_some_and(|ip| ip.is_unspecified())
    }

    /// Whether what listens there is reached from its own machine alone: no host at all (`unix`,
    /// `mem`), a loopback address, or `localhost`.
    pub fn is_local(&self) -> bool {
        match self.host() {
            None => matches!(self.protocol(), "unix" | "mem"),
            Some("localhost" | "localhost.") => true,
            Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        }
    }

    fn parse(text: &str, to_bind: bool) -> Result<Self, InvalidAddress> {
        let invalid = |reason| InvalidAddress {
            // What is shown of a wrong address is bounded: it may come from a hostile peer.
            address: text.chars().take(MAX_LEN).collect(),
            reason,
        };
        if text.len() > MAX_LEN {
            return Err(invalid("longer than 512 bytes"));
        }
        if text.chars().any(|c| c == ',' || c.is_control() || c.is_whitespace()) {
            return Err(invalid("a comma, white space or control character"));
        }
        let (protocol, target) = text.split_once('@').ok_or_else(|| invalid("no `protocol@`"))?;
        if !is_protocol(protocol) {
            return Err(invalid("the protocol is not [a-z][a-z0-9+.-]*"));
        }
        let as_written = || (Arc::<str>::from(text), 0_u16, false);
        let (canonical, port, has_final_dot) = match protocol {
            "unix" => check_path(target).map(|()| as_written()),
            "mem" if target.is_empty() => Err("an empty name"),
            "mem" => Ok(as_written()),
            _ => host_and_port(target, to_bind).map(|(host, port)| {
                let canonical = Arc::<str>::from(format!("{protocol}@{host}:{port}"));
                (canonical, port, host.ends_with('.'))
            }),
        }
        .map_err(invalid)?;
        Ok(Self { text: canonical, target: protocol.len() + 1, port, has_final_dot })
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        if self.has_final_dot == other.has_final_dot {
            return self.text == other.text;
        }
        self.identity() == other.identity()
    }
}

impl Eq for Address {}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Address {
    fn cmp(&self, other: &Self) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, false)
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<&str> for Address {
    type Error = InvalidAddress;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.as_str().to_owned()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_protocol(protocol: &str) -> bool {
    protocol.starts_with(|c: char| c.is_ascii_lowercase())
        && protocol.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'.' | b'-')
        })
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("the path is not absolute");
    }
    if path.split('/').any(|part| part == "..") {
        return Err("the path contains `..`");
    }
    Ok(())
}

/// The canonical host, in brackets if it is IPv6, and the port.
fn host_and_port(target: &str, to_bind: bool) -> Result<(String, u16), &'static str> {
    let (host, port) = target.rsplit_once(':').ok_or("no port")?;
    let host = canonical_host(host)?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err("the port is no number");
    }
    match port.parse::<u16>() {
        Ok(0) if to_bind => Ok((host, 0)),
        Ok(0) => Err("port 0"),
        Ok(port) => Ok((host, port)),
        Err(_) => Err("a port above 65535"),
    }
}

fn canonical_host(host: &str) -> Result<String, &'static str> {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or("an unclosed `[`")?;
        let ip = inner.parse::<Ipv6Addr>().map_err(|_| "no IPv6 address between the brackets")?;
        return Ok(match ip.to_canonical() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        });
    }
    if host.is_empty() {
        return Err("an empty host");
    }
    if host.contains('@') {
        return Err("user information");
    }
    if host.contains(':') {
        return Err("an IPv6 host without brackets");
    }
    if !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
        return Err("a character that no host name has");
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.split('.').any(str::is_empty) {
        return Err("an empty label in the host");
    }
    if let Ok(ip) = name.parse::<Ipv4Addr>() {
        return Ok(ip.to_string());
    }
    if ends_in_number(name) {
        return Err("a host that ends in a number, and is no IP address");
    }
    Ok(host.to_ascii_lowercase())
}

/// Whether the last label is a number, so that a host is an IPv4 address or none (the rule of
/// WHATWG's URL standard): resolvers read `0x7f.1` and `010.0.0.1` each in its own way.
pub(crate) fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last.strip_prefix("0x").or_else(|| last.strip_prefix("0X")) {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;

    #[test]
    fn what_others_reach_is_told_apart() {
        for (address, local) in [
            ("tcp@127.0.0.1:1", true),
            ("tcp@127.9.9.9:1", true),
            ("tcp@[::1]:1", true),
            ("tcp@localhost:1", true),
            ("unix@/run/registry.sock", true),
            ("mem@registry", true),
            ("tcp@0.0.0.0:1", false),
            ("tcp@[::]:1", false),
            ("tcp@[::ffff:127.0.0.1]:1", true),
            ("tcp@LocalHost.:1", true),
            ("tcp@10.0.0.7:1", false),
            ("tcp@example.org:1", false),
            ("tcp@localhost.example.org:1", false),
        ] {
            assert_eq!(address.parse::<Address>().unwrap().is_local(), local, "{address}");
        }
    }

    #[test]
    fn parts_of_an_address() {
        let v4: Address = "tcp@127.0.0.1:7001".parse().unwrap();
        assert_eq!((v4.protocol(), v4.host(), v4.port()), ("tcp", Some("127.0.0.1"), Some(7001)));
        let v6: Address = "tcp@[::1]:7001".parse().unwrap();
        assert_eq!((v6.host(), v6.port(), v6.is_unspecified()), (Some("::1"), Some(7001), false));
        for any in ["tcp@0.0.0.0:1", "tcp@[::]:1", "tcp@[0:0::0]:1", "tcp@[::ffff:0.0.0.0]:1"] {
            assert!(any.parse::<Address>().unwrap().is_unspecified(), "{any}");
        }
        let unix: Address = "unix@/run/foo.sock".parse().unwrap();
        assert_eq!((unix.host(), unix.port(), unix.target()), (None, None, "/run/foo.sock"));
        let unknown: Address = "quic@example.org:1".parse().unwrap();
        assert_eq!(unknown.protocol(), "quic");
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, reason) in [
            ("nonsense", "no `protocol@`"),
            ("@a:1", "the protocol is not [a-z][a-z0-9+.-]*"),
            ("tcp@", "no port"),
            ("tcp@:1", "an empty host"),
            ("tcp@a", "no port"),
            ("tcp@a:", "the port is no number"),
            ("tcp@a:0", "port 0"),
            ("tcp@a:65536", "a port above 65535"),
            ("tcp@a:+1", "the port is no number"),
            ("tcp@u@a:1", "user information"),
            ("tcp@::1:1", "an IPv6 host without brackets"),
            ("tcp@[::1:1", "an unclosed `[`"),
            ("tcp@a:1,tcp@b:2", "a comma, white space or control character"),
            ("tcp@a\n:1", "a comma, white space or control character"),
            ("tcp@a/b:1", "a character that no host name has"),
            ("tcp@0:1", "a host that ends in a number, and is no IP address"),
            ("tcp@0x0:1", "a host that ends in a number, and is no IP address"),
            ("tcp@000.0.0.0:1", "a host that ends in a number, and is no IP address"),
            ("tcp@0.0:1", "a host that ends in a number, and is no IP address"),
            ("tcp@127.1:1", "a host that ends in a number, and is no IP address"),
            ("tcp@10.0.0.010:1", "a host that ends in a number, and is no IP address"),
            ("tcp@host.0X7F.:1", "a host that ends in a number, and is no IP address"),
            ("tcp@host.0x:1", "a host that ends in a number, and is no IP address"),
            ("tcp@256.0.0.1:1", "a host that ends in a number, and is no IP address"),
            ("tcp@.:1", "an empty label in the host"),
            ("tcp@a..b:1", "an empty label in the host"),
            ("tcp@a..:1", "an empty label in the host"),
            ("unix@rel", "the path is not absolute"),
            ("unix@/a/../b", "the path contains `..`"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap_err().reason(), reason, "{text:?}");
        }
        assert_eq!(Address::to_bind("tcp@127.0.0.1:0").unwrap().port(), Some(0));
    }

    #[test]
    fn writings_of_one_address_are_equal() {
        let hasher = RandomState::new();
        for (canonical, others) in [
            ("tcp@host:7", &["tcp@Host:7", "tcp@HOST:007", "tcp@host.:7", "tcp@Host.:7"][..]),
            ("tcp@[::1]:7", &["tcp@[0:0::1]:7", "tcp@[0000:0::1]:7", "tcp@[::0.0.0.1]:7"]),
            ("tcp@[2001:db8::a]:7", &["tcp@[2001:DB8:0:0::A]:7"]),
            (
                "tcp@10.0.0.1:7",
                &[
                    "tcp@10.0.0.1:07",
                    "tcp@[::ffff:10.0.0.1]:7",
                    "tcp@[::FFFF:a00:1]:7",
                    "tcp@10.0.0.1.:7",
                ],
            ),
            ("tls@a-b_c.example:443", &["tls@A-b_C.Example:443", "tls@a-b_c.example.:0443"]),
        ] {
            let one: Address = canonical.parse().unwrap();
            assert_eq!(one.as_str(), canonical);
            for other in others {
                let other: Address = other.parse().unwrap();
                assert_eq!(other, one, "{other}");
                assert_eq!(one.cmp(&other), Ordering::Equal, "{other}");
                assert_eq!(hasher.hash_one(&other), hasher.hash_one(&one), "{other}");
                assert_eq!(other.identity(), canonical);
                assert_eq!(other.as_str().parse::<Address>().unwrap().as_str(), other.as_str());
            }
        }
        let dotted: Address = "tcp@Host.:7".parse().unwrap();
        assert_eq!((dotted.as_str(), dotted.host()), ("tcp@host.:7", Some("host.")));
        let (a, b): (Address, Address) =
            ("tcp@host.:7".parse().unwrap(), "tcp@host.x:7".parse().unwrap());
        assert_ne!(a, b);
        // What is no host and port is as it was written.
        for text in ["unix@/run/Foo.sock", "mem@Name."] {
            assert_eq!(text.parse::<Address>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn the_unspecified_address_is_bound_and_not_dialled() {
        for any in [
            "tcp@0.0.0.0:1",
            "tcp@0.0.0.0.:1",
            "tcp@[::]:1",
            "tcp@[0:0::0]:1",
            "tcp@[::ffff:0.0.0.0]:1",
        ] {
            assert!(Address::to_bind(any).unwrap().is_unspecified(), "{any}");
            assert_eq!(Address::to_dial(any).unwrap_err().reason(), UNDIALLABLE, "{any}");
        }
        assert!(Address::to_dial("tcp@127.0.0.1:1").is_ok());
    }
}
