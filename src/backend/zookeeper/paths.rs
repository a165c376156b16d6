//! Which nodes hold what: one for each instance, one for each address that has a holder, and one for each
//! instance that was deregistered lately.
//!
//! `/srpc/Foo/worker-1` is the instance `worker-1` of the service `Foo`,
//! `/srpc/@addresses/Foo/tcp@10.0.0.7:7001` says which id holds an address, and
//! `/srpc/@deregistered/Foo/worker-1` is the mark that an instance was deregistered: no service is called
//! `@addresses` or `@deregistered`. In ids and addresses `/`, `%`, control characters and a lone `.` or `..` are written as
//! `%2F` and the like.

use std::fmt::Write;

use crate::instance::{Address, InstanceId, ServiceName};

/// Where the nodes of one prefix are.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// Starts with a slash, or is empty, and does not end with one.
    prefix: String,
}

impl Paths {
    pub(super) fn new(prefix: &str) -> Self {
        let inner = prefix.trim_matches('/');
        Self { prefix: if inner.is_empty() { String::new() } else { format!("/{inner}") } }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The parent of all services; a slash alone where there is no prefix.
    pub(super) fn all(&self) -> &str {
        if self.prefix.is_empty() { "/" } else { &self.prefix }
    }

    /// The name of what is registered here: no service is called `@registry`.
    pub(super) fn name(&self) -> String {
        format!("{}/@registry", self.prefix)
    }

    /// The parent of a service's instances.
    pub(super) fn service(&self, service: &ServiceName) -> String {
        format!("{}/{service}", self.prefix)
    }

    /// The parent of its addresses.
    pub(super) fn addresses(&self, service: &ServiceName) -> String {
        format!("{}/@addresses/{service}", self.prefix)
    }

    /// The parent of the marks that its instances were deregistered.
    pub(super) fn marks(&self, service: &ServiceName) -> String {
        format!("{}/@deregistered/{service}", self.prefix)
    }

    pub(super) fn instance(&self, service: &ServiceName, id: &InstanceId) -> String {
        format!("{}/{}", self.service(service), escaped(id.as_str()))
    }

    pub(super) fn address(&self, service: &ServiceName, address: &Address) -> String {
        format!("{}/{}", self.addresses(service), escaped(&address.identity()))
    }

    /// The mark that an instance was deregistered.
    pub(super) fn mark(&self, service: &ServiceName, id: &InstanceId) -> String {
        format!("{}/{}", self.marks(service), escaped(id.as_str()))
    }
}

fn escaped(text: &str) -> String {
    let dots = matches!(text, "." | "..");
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '/' | '%') || c.is_control() || (dots && c == '.') {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                // Writing to a string does not fail.
                let _ = write!(escaped, "%{byte:02X}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// The id that a node is named after; `None`: no id is named so.
pub(super) fn unescaped(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_node_and_comes_back() {
        for (id, name) in [
            ("worker-1", "worker-1"),
            ("unix@/run/foo.sock", "unix@%2Frun%2Ffoo.sock"),
            ("100%", "100%25"),
            ("..", "%2E%2E"),
            ("a\nb", "a%0Ab"),
            ("größe", "größe"),
        ] {
            assert_eq!(escaped(id), name);
            assert_eq!(unescaped(name).as_deref(), Some(id));
        }
        for name in ["%", "%2", "%zz", "%FF", "%+1"] {
            assert!(unescaped(name).is_none_or(|id| escaped(&id) != name), "{name}");
        }
    }
}
