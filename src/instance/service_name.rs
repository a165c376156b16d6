//! The name of what is offered, such as `Foo` or `shop.Cart`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name of a service, in bytes.
pub(super) const MAX_LEN: usize = 128;

/// The name of a service: 1 to 128 of `[A-Za-z0-9_.-]`, starting with a letter. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(Arc<str>);

/// A text is not the name of a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no service name: 1 to {MAX_LEN} of [A-Za-z0-9_.-], starting with a letter")]
pub struct InvalidServiceName {
    name: String,
}

impl ServiceName {
    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The longest name, in bytes.
    pub const MAX_LEN: usize = MAX_LEN;

    /// Whether `name` may name a service.
    pub fn is_valid(name: &str) -> bool {
        name.len() <= MAX_LEN
            && name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    }
}

impl FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if Self::is_valid(name) {
            return Ok(Self(name.into()));
        }
        // What is shown of a wrong name is bounded: it may come from a hostile peer.
        Err(InvalidServiceName { name: name.chars().take(MAX_LEN).collect() })
    }
}

impl TryFrom<&str> for ServiceName {
    type Error = InvalidServiceName;

    fn try_from(name: &str) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl TryFrom<String> for ServiceName {
    type Error = InvalidServiceName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl TryFrom<&ServiceName> for ServiceName {
    type Error = InvalidServiceName;

    fn try_from(name: &ServiceName) -> Result<Self, Self::Error> {
        Ok(name.clone())
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["F", "Foo", "shop.Cart", "a-b_c.9", &"x".repeat(128)] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        for bad in ["", "9a", ".a", "a/b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }
}
