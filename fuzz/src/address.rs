//! Addresses and names: what is taken comes back as it was, and means one thing.

use std::net::IpAddr;
use std::str::FromStr;

use srpc::call::{Metadata, MethodName};
use srpc::{Address, ServiceName};

/// A text that may be an address, a service's name, a method's name, or a metadata key and value on
/// two lines.
pub fn address(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let dialled = Address::from_str(text);
    let bound = Address::to_bind(text);
    match (&dialled, &bound) {
        (Ok(address), bound) => {
            assert_eq!(bound.as_ref(), Ok(address), "what can be dialled can be bound");
            parts(text, address);
            assert_ne!(address.port(), Some(0));
        }
        (Err(_), Ok(address)) => {
            assert_eq!(address.port(), Some(0));
            parts(text, address);
        }
        (Err(error), Err(_)) => {
            // It is shown, and may have come from anybody.
            let shown = error.to_string();
            assert!(shown.len() <= 16 * 1024, "{} bytes of error", shown.len());
            assert!(!shown.contains(|c: char| c.is_ascii_control()), "{shown:?}");
        }
    }
    names(text);
}

fn parts(text: &str, address: &Address) {
    assert!(text.len() <= 512);
    let canonical = address.as_str();
    let again = Address::to_bind(canonical).unwrap();
    assert_eq!((again.as_str(), &again), (canonical, address), "canonical once and for all");
    assert_eq!(format!("{}@{}", address.protocol(), address.target()), canonical);
    assert!(!text.contains(|c: char| c == ',' || c.is_control() || c.is_whitespace()));
    let json = serde_json::to_string(address).unwrap();
    if address.port() != Some(0) {
        let again: Address = serde_json::from_str(&json).unwrap();
        assert_eq!(again, *address);
    }
    match (address.host(), address.port()) {
        (Some(host), Some(_)) => {
            assert!(!host.is_empty() && !host.contains(['[', ']', '@', '/']));
            let unspecified =
                host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_unspecified());
            assert_eq!(address.is_unspecified(), unspecified, "{text}");
        }
        (None, None) => assert!(matches!(address.protocol(), "unix" | "mem")),
        other => panic!("half of a host and port: {other:?}"),
    }
    if address.protocol() == "unix" {
        assert!(address.target().starts_with('/'));
        assert!(address.target().split('/').all(|part| part != ".."));
    }
}

fn names(text: &str) {
    let service = ServiceName::from_str(text);
    assert_eq!(service.is_ok(), ServiceName::is_valid(text));
    if let Ok(service) = &service {
        assert_eq!(service.as_str(), text);
        assert!(text.len() <= 128 && text.is_ascii() && !text.contains(['/', '%', '<']));
    } else if let Err(error) = &service {
        assert!(error.to_string().len() <= 16 * 1024);
    }
    match MethodName::parse(text) {
        Ok(name) => {
            assert!(text.len() <= 255);
            assert_eq!(format!("{}.{}", name.service, name.method), text);
            assert!(ServiceName::is_valid(name.service));
            assert!(MethodName::is_valid_part(name.method));
        }
        Err(error) => assert!(error.to_string().len() <= 16 * 1024),
    }
    let (key, value) = text.split_once('\n').unwrap_or((text, ""));
    let mut metadata = Metadata::default();
    metadata.insert("first", "one").unwrap();
    if metadata.insert(key, value).is_ok() {
        assert_eq!(metadata.value(key), Some(value));
        assert!(metadata.bytes() <= Metadata::MAX_BYTES);
    } else {
        assert_eq!((metadata.len(), metadata.value("first")), (1, Some("one")));
    }
}
