//! Reads a list of hosts: `host,host:port`.

use super::url::InvalidUrl;
use crate::instance::{Address, InvalidAddress};

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
    text.parse().map_err(|error: InvalidAddress| InvalidUrl::new(list, error.reason()))
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
