//! Which keys hold what: one for each instance, one for each address that has a holder, and one for each
//! instance that was deregistered lately.
//!
//! `/srpc/Foo/worker-1` is the instance `worker-1` of the service `Foo`; the id is all that follows the
//! service, slashes too. `/srpc/@addresses/Foo/tcp@10.0.0.7:7001` says which id holds an address, and
//! `/srpc/@deregistered/Foo/worker-1` is the mark that an instance was deregistered: no service is called
//! `@addresses` or `@deregistered`.

use crate::instance::{Address, InstanceId, ServiceName};

/// Where the keys of one prefix are.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// Starts with a slash, or is empty, and does not end with one.
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let inner = prefix.trim_matches('/');
        Self { prefix: if inner.is_empty() { String::new() } else { format!("/{inner}") } }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn instance(&self, service: &ServiceName, id: &InstanceId) -> String {
        format!("{}/{service}/{id}", self.prefix)
    }

    pub(super) fn address(&self, service: &ServiceName, address: &Address) -> String {
        format!("{}/@addresses/{service}/{}", self.prefix, address.identity())
    }

    /// The name of what is registered here: no service is called `@registry`.
    pub(super) fn name(&self) -> String {
        format!("{}/@registry", self.prefix)
    }

    /// The mark that an instance was deregistered.
    pub(super) fn mark(&self, service: &ServiceName, id: &InstanceId) -> String {
        format!("{}/@deregistered/{service}/{id}", self.prefix)
    }

    /// What all keys start with.
    pub(super) fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// What the keys of addresses start with.
    pub(super) fn addresses(&self) -> String {
        format!("{}/@addresses/", self.prefix)
    }

    /// What the keys of marks start with.
    pub(super) fn marks(&self) -> String {
        format!("{}/@deregistered/", self.prefix)
    }

    /// The name of the service that a key is of an instance of, if it is.
    pub(super) fn service_of(&self, key: &[u8]) -> Option<ServiceName> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&self.all())?;
        let (service, id) = key.split_once('/')?;
        if id.is_empty() { None } else { service.parse().ok() }
    }

    /// What the keys of a service's instances start with.
    pub(super) fn service(&self, service: &ServiceName) -> String {
        format!("{}/{service}/", self.prefix)
    }
}

/// The first key that no longer starts with a prefix that ends with a slash.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_written_in_any_way() {
        let (service, id) = ("Foo".parse().unwrap(), InstanceId::from("a/b"));
        for (prefix, key) in [
            ("/srpc", "/srpc/Foo/a/b"),
            ("srpc/", "/srpc/Foo/a/b"),
            ("/", "/Foo/a/b"),
            ("", "/Foo/a/b"),
            ("/teams/shop/", "/teams/shop/Foo/a/b"),
        ] {
            assert_eq!(Keys::new(prefix).instance(&service, &id), key);
        }
    }

    #[test]
    fn a_key_tells_its_service() {
        let keys = Keys::new("/srpc");
        let of = |key: &str| keys.service_of(key.as_bytes()).map(String::from);
        assert_eq!(of("/srpc/Foo/a/b").as_deref(), Some("Foo"));
        for none in [
            "/srpc/Foo/",
            "/srpc/Foo",
            "/srpc/@addresses/Foo/tcp@h:1",
            "/srpc/@deregistered/Foo/a",
            "/srp/Foo/a",
            "",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn a_service_ends_where_the_next_begins() {
        let prefix = Keys::new("/srpc").service(&"Foo".parse().unwrap());
        let (start, end) = (prefix.as_bytes(), end_of(&prefix));
        let inside = |key: &str| key.as_bytes() >= start && key.as_bytes() < end.as_slice();
        assert!(inside("/srpc/Foo/a") && inside("/srpc/Foo/\u{10FFFF}"));
        assert!(!inside("/srpc/Foo2/a") && !inside("/srpc/Fo/a") && !inside("/srpc/Foo-b/a"));
    }
}
