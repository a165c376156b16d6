//! What the URLs of all backends have in common.

use crate::instance::Address;

/// A text is not the URL of a registry or a source, or of one that this build lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no registry URL: {reason}")]
pub struct InvalidUrl {
    url: String,
    reason: String,
}

impl InvalidUrl {
    pub(crate) fn new(url: &str, reason: impl Into<String>) -> Self {
        Self { url: shown(url), reason: reason.into() }
    }

    /// What is wrong, in a few words.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// A comma may be part of a URL: it starts a new one only if a scheme follows.
pub(crate) fn split(urls: &str) -> Vec<String> {
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

/// Reads `host,host:port`, where a host without a port has this one.
pub(crate) fn hosts(list: &str, protocol: &str, port: u16) -> Result<Vec<Address>, InvalidUrl> {
    list.split(',').map(|host| address(list, host.trim(), protocol, port)).collect()
}

fn address(list: &str, host: &str, protocol: &str, port: u16) -> Result<Address, InvalidUrl> {
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let text = match has_port {
        true => format!("{protocol}@{host}"),
        false => format!("{protocol}@{host}:{port}"),
    };
    text.parse()
        .map_err(|error: crate::instance::InvalidAddress| InvalidUrl::new(list, error.reason()))
}

/// The URL without a password that it may contain.
fn shown(url: &str) -> String {
    match (url.rsplit_once('@'), url.split_once("://")) {
        // There an `@` is a part of every address.
        (Some(_), Some(("static", _))) | (None, _) => url.to_owned(),
        (Some((_, host)), Some((scheme, _))) => format!("{scheme}://***@{host}"),
        (Some((_, host)), None) => format!("***@{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_a_port_of_their_own_or_the_usual_one() {
        let hosts = hosts("a, b:7,[::1],[::1]:7", "tcp", 2379).unwrap();
        let told: Vec<_> = hosts.iter().map(Address::as_str).collect();
        assert_eq!(told, ["tcp@a:2379", "tcp@b:7", "tcp@[::1]:2379", "tcp@[::1]:7"]);
    }

    #[test]
    fn what_is_no_host_says_why() {
        for (list, reason) in
            [("", "an empty host"), ("a,,b", "an empty host"), ("a:x", "no number")]
        {
            let error = hosts(list, "tcp", 1).unwrap_err();
            assert!(error.reason().contains(reason), "{error}");
        }
    }
}
