//! Calls, as a server reads them: head, method, and arguments in each codec.

use std::collections::BTreeMap;

use serde_json::Value;
use srpc::call::{Codec, Metadata, MethodName};
use srpc::protocol::{MethodRef, decode_call, encode_call};

/// The payload of a call frame.
pub fn call(payload: &[u8]) {
    let Ok((head, body)) = decode_call(payload) else { return };
    assert!(payload.ends_with(body));
    check_metadata(&head.metadata, payload.len());
    if let MethodRef::Name(name) | MethodRef::Define(_, name) = head.method
        && let Ok(parts) = MethodName::parse(name)
    {
        assert_eq!(format!("{}.{}", parts.service, parts.method), name);
    }
    let mut again = Vec::new();
    encode_call(&mut again, &head, body);
    assert!(again.len() <= payload.len(), "a key that is given twice is one entry");
    assert_eq!(decode_call(&again), Ok((head.clone(), body)));
    if let Some(codec) = Codec::built_in(head.codec) {
        arguments(&codec, body);
    }
}

pub(super) fn check_metadata(metadata: &Metadata, payload: usize) {
    assert!(metadata.len() <= Metadata::MAX_ENTRIES);
    assert!(metadata.bytes() <= Metadata::MAX_BYTES);
    assert!(metadata.bytes() <= payload);
    for (key, value) in metadata.iter() {
        assert!((1..=255).contains(&key.len()));
        assert_eq!(metadata.value(key), Some(value), "a key has one value");
    }
}

/// What decodes as a value of some shape comes back from its own encoding.
pub(super) fn arguments(codec: &Codec, body: &[u8]) {
    fn through<T>(codec: &Codec, body: &[u8])
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let Ok(value) = codec.decode::<T>(body) else { return };
        let again = codec.encode_bytes(&value).expect("what was decoded can be encoded");
        assert_eq!(codec.decode::<T>(&again).as_ref(), Ok(&value));
    }
    through::<(i64, i64)>(codec, body);
    through::<String>(codec, body);
    through::<Vec<u64>>(codec, body);
    through::<Option<Box<(bool, char)>>>(codec, body);
    through::<BTreeMap<String, Vec<u8>>>(codec, body);
    // Floats may come back as another one, or as null.
    let _ = codec.decode::<Value>(body);
    let _ = codec.decode::<Vec<f64>>(body);
}
