//! Reads a list of hosts: `host,host:port`.

use super::url::InvalidUrl;
use crate::instance::Address;

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
    Address::to_dial(&text).map_err(|error| InvalidUrl::new(list, error.reason()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_a_port_of_their_own_or_the_usual_one() {
        for (list, expected) in [
            ("a, b:7,[::1],[::1]:7", ["tcp@a:2379", "tcp@b:7", "tcp@[::1]:2379", "tcp@[::1]:7"]),
            ("A,b.:07,[0::1],a:1", ["tcp@a:2379", "tcp@b.:7", "tcp@[::1]:2379", "tcp@a:1"]),
        ] {
            let hosts = hosts(list, "tcp", 2379).unwrap();
            let told: Vec<_> = hosts.iter().map(Address::as_str).collect();
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn what_is_no_host_says_why() {
        for (list, reason) in [
            ("", "an empty host"),
            ("a,,b", "an empty host"),
            ("a:x", "no number"),
            ("0", "ends in a number"),
            ("0.0.0.0", "unspecified"),
        ] {
            let error = hosts(list, "tcp", 1).unwrap_err();
            assert!(error.reason().contains(reason), "{error}");
        }
    }
}
