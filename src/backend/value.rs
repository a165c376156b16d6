//! An instance as the value of a key that names it: what etcd and ZooKeeper hold.

use serde_json::{Map, Value};

use crate::instance::{Health, Instance, InstanceId};

/// The instance's JSON without its id, which the key has.
pub(crate) fn encode(instance: &Instance) -> String {
    let mut value = serde_json::to_value(instance).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.remove("id");
    }
    value.to_string()
}

/// Reads what [`encode`] wrote, what others write by hand with fewer fields, or an address alone.
pub(crate) fn decode(id: &str, value: &[u8]) -> Result<Instance, String> {
    let text = std::str::from_utf8(value).map_err(|error| error.to_string())?.trim();
    let mut fields = if text.starts_with('{') {
        serde_json::from_str::<Map<String, Value>>(text).map_err(|error| error.to_string())?
    } else {
        Map::from_iter([("address".to_owned(), Value::from(text))])
    };
    fields.insert("id".to_owned(), Value::from(id));
    let instance: Instance =
        serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
    if instance.id == InstanceId::from("") { Err("an empty id".to_owned()) } else { Ok(instance) }
}

/// Whether this value is the instance as it was registered. Its health may be another: somebody has set
/// it, and until the instance has a higher epoch that stays.
pub(crate) fn is_of(instance: &Instance, value: &[u8]) -> bool {
    decode(instance.id.as_str(), value)
        .is_ok_and(|stored| Instance { health: instance.health, ..stored } == *instance)
}

/// The instance as it is written where this value stands: of the same epoch it keeps the health that is
/// there, which somebody has set.
pub(crate) fn over(instance: &Instance, stored: Option<&[u8]>) -> Instance {
    let stored = stored.and_then(|value| decode(instance.id.as_str(), value).ok());
    match stored {
        Some(stored) if stored.epoch == instance.epoch && stored.address == instance.address => {
            instance.clone().health(stored.health)
        }
        _ => instance.clone(),
    }
}

/// The value with another health; `None`: it is no instance.
pub(crate) fn with_health(id: &str, value: &[u8], health: Health) -> Option<String> {
    decode(id, value).ok().map(|stored| encode(&stored.health(health)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_that_was_set_is_no_other_instance() {
        let up = Instance::new("a", "tcp@h:1".parse().unwrap()).epoch(7).zone("z");
        let set = with_health("a", encode(&up).as_bytes(), Health::Draining).unwrap();
        assert_eq!(decode("a", set.as_bytes()).unwrap(), up.clone().health(Health::Draining));
        assert!(is_of(&up, set.as_bytes()));
        assert!(!is_of(&up.clone().epoch(8), set.as_bytes()));
        assert_eq!(over(&up, Some(set.as_bytes())).health, Health::Draining);
        assert_eq!(over(&up.clone().epoch(8), Some(set.as_bytes())).health, Health::Up);
        assert_eq!(over(&up, Some(b"nonsense")), up);
        assert!(!is_of(&up.weight(2), set.as_bytes()));
        assert_eq!(with_health("a", b"nonsense", Health::Up), None);
    }

    #[test]
    fn what_others_write_by_hand_is_read() {
        let whole = Instance::new("a", "tcp@h:1".parse().unwrap()).epoch(7).weight(3).zone("z");
        assert_eq!(decode("a", encode(&whole).as_bytes()).as_ref(), Ok(&whole));
        let plain = Instance::new("a/b", "tcp@h:1".parse().unwrap());
        assert_eq!(decode("a/b", br#" {"address":"tcp@h:1"} "#).as_ref(), Ok(&plain));
        assert_eq!(decode("a/b", b"tcp@h:1\n").as_ref(), Ok(&plain));
        let other_id = br#"{"id":"x","address":"tcp@h:1"}"#;
        assert_eq!(decode("a/b", other_id).as_ref(), Ok(&plain), "the key's id counts");
    }

    #[test]
    fn what_is_no_instance_is_an_error() {
        for value in [&b"{}"[..], b"", b"{", b"\xff", b"[]", br#"{"address":"nonsense"}"#] {
            assert!(decode("a", value).is_err(), "{value:?}");
        }
        assert!(decode("", b"tcp@h:1").is_err());
    }
}
