//! What etcd's JSON gateway takes and answers, as far as it is used here: the messages of its `rpc.proto`,
//! with bytes in base64, 64-bit numbers as strings, and what has its default value left out.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes, in base64.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Blob(pub(super) Vec<u8>);

impl From<&str> for Blob {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(&*text).map(Self).map_err(de::Error::custom)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// A 64-bit number: a string, or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Int(pub(super) i64);

impl Serialize for Int {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Int;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of 64 bits, or its digits")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Int, E> {
                text.parse().map(Int).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Int, E> {
                Ok(Int(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Int, E> {
                i64::try_from(number).map(Int).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Number)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    pub(super) revision: Int,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    pub(super) key: Blob,
    pub(super) value: Blob,
    pub(super) mod_revision: Int,
    pub(super) lease: Int,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Range {
    pub(super) key: Blob,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_end: Option<Blob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<Int>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<Int>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) count_only: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) keys_only: bool,
}

impl Range {
    pub(super) fn one(key: &str) -> Self {
        Self { key: key.into(), ..Self::default() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ranged {
    pub(super) header: Header,
    pub(super) kvs: Vec<KeyValue>,
    pub(super) more: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Put {
    pub(super) key: Blob,
    pub(super) value: Blob,
    pub(super) lease: Int,
}

#[derive(Debug, Serialize)]
pub(super) struct Delete {
    pub(super) key: Blob,
}

/// What must hold of a key.
#[derive(Debug, Serialize)]
pub(super) struct Compare {
    key: Blob,
    result: &'static str,
    target: &'static str,
    #[serde(flatten)]
    of: Of,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Of {
    ModRevision(Int),
    Lease(Int),
    Value(Blob),
}

impl Compare {
    /// It was last changed at this revision; 0: it is not there.
    pub(super) fn revision(key: &str, revision: Int) -> Self {
        Self::equal(key, "MOD", Of::ModRevision(revision))
    }

    pub(super) fn lease(key: &str, lease: Int) -> Self {
        Self::equal(key, "LEASE", Of::Lease(lease))
    }

    pub(super) fn value(key: &str, value: &str) -> Self {
        Self::equal(key, "VALUE", Of::Value(value.into()))
    }

    fn equal(key: &str, target: &'static str, of: Of) -> Self {
        Self { key: key.into(), result: "EQUAL", target, of }
    }
}

#[derive(Debug, Serialize)]
pub(super) enum Op {
    #[serde(rename = "request_range")]
    Range(Range),
    #[serde(rename = "request_put")]
    Put(Put),
    #[serde(rename = "request_delete_range")]
    Delete(Delete),
    #[serde(rename = "request_txn")]
    Txn(Txn),
}

/// What is done if all of `compare` holds, and what else.
#[derive(Debug, Default, Serialize)]
pub(super) struct Txn {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) compare: Vec<Compare>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) success: Vec<Op>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) failure: Vec<Op>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Txned {
    pub(super) succeeded: bool,
    responses: Vec<Response>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Response {
    response_range: Option<Ranged>,
}

impl Txned {
    /// What the ranges among its operations found, one key each.
    pub(super) fn found(self) -> Vec<Option<KeyValue>> {
        let ranges = self.responses.into_iter().filter_map(|response| response.response_range);
        ranges.map(|ranged| ranged.kvs.into_iter().next()).collect()
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Grant {
    #[serde(rename = "TTL")]
    pub(super) ttl: Int,
}

#[derive(Debug, Serialize)]
pub(super) struct LeaseId {
    #[serde(rename = "ID")]
    pub(super) id: Int,
}

#[derive(Debug, Serialize)]
pub(super) struct LeaseKeys {
    #[serde(rename = "ID")]
    pub(super) id: Int,
    pub(super) keys: bool,
}

/// What a lease keeps.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LeaseTime {
    pub(super) keys: Vec<Blob>,
}

/// A lease as it was granted or kept alive. A TTL of 0: it is not there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Leased {
    #[serde(rename = "ID")]
    pub(super) id: Int,
    #[serde(rename = "TTL")]
    pub(super) ttl: Int,
}

/// An item of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<Refusal>,
}

/// An error, which different versions tell in different fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    #[serde(alias = "grpc_code")]
    pub(super) code: u32,
    pub(super) message: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Watch {
    pub(super) create_request: WatchFrom,
}

#[derive(Debug, Serialize)]
pub(super) struct WatchFrom {
    pub(super) key: Blob,
    pub(super) range_end: Blob,
    pub(super) start_revision: Int,
    pub(super) fragment: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Watched {
    pub(super) header: Header,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) cancel_reason: String,
    pub(super) compact_revision: Int,
    pub(super) events: Vec<Event>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    /// `DELETE`; left out for a put.
    pub(super) r#type: String,
    pub(super) kv: KeyValue,
}

#[derive(Serialize)]
pub(super) struct Authenticate<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

#[derive(Debug, Deserialize)]
pub(super) struct Authenticated {
    pub(super) token: String,
}

/// An answer in which nothing is looked at.
#[derive(Debug, Deserialize)]
pub(super) struct Done {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_written_as_the_gateway_reads_it() {
        let txn = Txn {
            compare: vec![Compare::revision("/a", Int(7)), Compare::value("/b", "x")],
            success: vec![Op::Put(Put { key: "/a".into(), value: "v".into(), lease: Int(9) })],
            failure: vec![Op::Range(Range::one("/a"))],
        };
        let expected = serde_json::json!({
            "compare": [
                {"key": "L2E=", "result": "EQUAL", "target": "MOD", "mod_revision": "7"},
                {"key": "L2I=", "result": "EQUAL", "target": "VALUE", "value": "eA=="},
            ],
            "success": [{"request_put": {"key": "L2E=", "value": "dg==", "lease": "9"}}],
            "failure": [{"request_range": {"key": "L2E="}}],
        });
        assert_eq!(serde_json::to_value(txn).unwrap(), expected);
    }

    #[test]
    fn numbers_are_read_as_digits_as_numbers_and_left_out() {
        let read = |json| serde_json::from_str::<Leased>(json).unwrap();
        assert_eq!(read(r#"{"ID":"7587848947239","TTL":"6"}"#).id, Int(7587848947239));
        assert_eq!((read(r#"{"ID":5}"#).id, read(r#"{"ID":5}"#).ttl), (Int(5), Int(0)));
        assert!(serde_json::from_str::<Leased>(r#"{"ID":"x"}"#).is_err());
    }
}
