//! Handshakes: each prefix of the bytes says the same as the whole, and what is taken is allowed.

use srpc::protocol::{Hello, Limits, decode_hello, hello_len};

/// The first bytes of either side.
pub fn handshake(bytes: &[u8]) {
    // The longest handshake, and a little more.
    let bytes = &bytes[..bytes.len().min(1100)];
    let whole = hello_len(bytes);
    for end in 0..bytes.len() {
        match (hello_len(&bytes[..end]), &whole) {
            (Ok(None), _) => assert!(end < 6, "six bytes tell the length"),
            (told, whole) => assert_eq!(&told, whole, "after {end} bytes"),
        }
    }
    let decoded = decode_hello(bytes);
    let Ok(Some(len)) = whole else {
        assert!(decoded.is_err());
        return;
    };
    assert!((24..=6 + 1024).contains(&len));
    if bytes.len() < len {
        assert!(decoded.is_err(), "half a handshake");
        return;
    }
    assert_eq!(decode_hello(&bytes[..len]), decoded, "what follows is not looked at");
    let Ok(hello) = decoded else { return };
    let (least, limits) = (Limits::LEAST, hello.limits);
    assert!(limits.max_body >= least.max_body);
    assert!(limits.window_calls >= least.window_calls);
    assert!(limits.window_bytes >= least.window_bytes);
    let clamped = limits.clamped();
    assert_eq!(clamped.clamped(), clamped);
    assert!(clamped.max_payload() <= srpc::protocol::MAX_SKIPPED);
    let speaks = (hello.min_version..=hello.max_version).contains(&srpc::protocol::VERSION);
    assert_eq!(hello.check_version().is_ok(), speaks);
    let mut again = Vec::new();
    hello.encode(&mut again);
    assert_eq!(decode_hello(&again), Ok::<Hello, _>(hello));
    assert_eq!(again[6..], bytes[6..24], "the fields of version 1 have one encoding");
}
