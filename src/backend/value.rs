//! An instance as the value of a key that names it: what etcd and ZooKeeper hold.

use serde_json::{Map, Value};

use super::fields;
use crate::instance::{Health, Instance};
use crate::registry::{HealthOverride, Renewal};

/// What a key holds: the instance as it registered itself, and an operator's word, if it has not taken that over.
struct Stored {
    instance: Instance,
    word: Option<HealthOverride>,
}

/// The member of the JSON that holds the operator's word.
const OVERRIDE: &str = "override";

impl Stored {
    fn decode(id: &str, value: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(value).map_err(|error| error.to_string())?.trim();
        let mut fields = if text.starts_with('{') {
            serde_json::from_str::<Map<String, Value>>(text).map_err(|error| error.to_string())?
        } else {
            Map::from_iter([("address".to_owned(), Value::from(text))])
        };
        let word = fields.remove(OVERRIDE).map(serde_json::from_value).transpose();
        let word = word.map_err(|error| format!("{OVERRIDE}: {error}"))?;
        fields.insert("id".to_owned(), Value::from(id));
        let instance = fields::instance(fields).map_err(|wrong| wrong.to_string())?;
        Ok(Self { instance, word })
    }

    fn encode(&self) -> String {
        let mut value = serde_json::to_value(&self.instance).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.remove("id");
            if let Some(word) = &self.word {
                let word = serde_json::to_value(word).unwrap_or_default();
                fields.insert(OVERRIDE.to_owned(), word);
            }
        }
        value.to_string()
    }

    /// As it is listed: its health is the worse of its own and of the operator's word.
    fn listed(self) -> Instance {
        let said = self.word.map_or(Health::Up, |word| word.health);
        let health = self.instance.health.worse_of(said);
        self.instance.health(health)
    }
}

/// The instance's JSON without its id, which the key has.
#[cfg(any(test, feature = "zookeeper"))]
pub(crate) fn encode(instance: &Instance) -> String {
    Stored { instance: instance.clone(), word: None }.encode()
}

/// Reads what [`encode`] and [`with_health`] wrote, what others write by hand with fewer fields, or an
/// address alone: the instance as it is listed.
pub(crate) fn decode(id: &str, value: &[u8]) -> Result<Instance, String> {
    Stored::decode(id, value).map(Stored::listed)
}

/// What an operator says of a registered instance, if this value is that instance as it was registered.
///
/// A value whose health alone was changed by hand is an operator's word too.
pub(crate) fn renewal(instance: &Instance, value: &[u8]) -> Option<Renewal> {
    let Stored { instance: stored, word } = Stored::decode(instance.id.as_str(), value).ok()?;
    let by_hand = stored.health;
    if stored.health(instance.health) != *instance {
        return None;
    }
    let by_hand = (by_hand != instance.health).then(|| HealthOverride::new(by_hand));
    Some(word.or(by_hand).map_or(Renewal::Renewed, Renewal::Overridden))
}

/// The value of an instance that registers where this one stands: an operator's word stays until a newer
/// state has taken it over.
pub(crate) fn encode_over(instance: &Instance, stored: Option<&[u8]>) -> String {
    let stored = stored.and_then(|value| Stored::decode(instance.id.as_str(), value).ok());
    let written = match stored {
        Some(stored)
            if stored.instance.epoch == instance.epoch
                && stored.instance.address == instance.address =>
        {
            let health = stored.instance.health;
            Stored { instance: instance.clone().health(health), ..stored }
        }
        Some(Stored { word, .. }) => {
            let word = word.filter(|word| !word.is_taken_over_by(instance.health));
            Stored { instance: instance.clone(), word }
        }
        None => Stored { instance: instance.clone(), word: None },
    };
    written.encode()
}

/// The value with what an operator says of the instance; `None`: it is no instance.
pub(crate) fn with_health(id: &str, value: &[u8], word: &HealthOverride) -> Option<String> {
    let stored = Stored::decode(id, value).ok()?;
    let is_needed =
        word.health != Health::Up || stored.word.is_some() || stored.instance.health != Health::Up;
    Some(Stored { word: is_needed.then(|| word.clone()), ..stored }.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(value: &str) -> Health {
        decode("a", value.as_bytes()).unwrap().health
    }

    #[test]
    fn an_operators_word_stays_until_a_newer_state_has_taken_it_over() {
        let up = Instance::new("a", "tcp@h:1".parse().unwrap()).epoch(7).zone("z");
        let drained = HealthOverride::new(Health::Draining).by("ops");
        let set = with_health("a", encode(&up).as_bytes(), &drained).unwrap();
        assert_eq!(decode("a", set.as_bytes()).unwrap(), up.clone().health(Health::Draining));
        let told = Some(Renewal::Overridden(drained.clone()));
        assert_eq!(renewal(&up, set.as_bytes()), told);
        assert_eq!(renewal(&up.clone().epoch(8), set.as_bytes()), None);
        assert_eq!(renewal(&up.clone().weight(2), set.as_bytes()), None);

        // The same state again, and a newer one that does not know of it.
        for epoch in [7, 8] {
            let again = encode_over(&up.clone().epoch(epoch), Some(set.as_bytes()));
            assert_eq!(listed(&again), Health::Draining, "{epoch}");
        }
        let taken = up.clone().epoch(8).health(Health::Draining);
        let taken_over = encode_over(&taken, Some(set.as_bytes()));
        assert_eq!(renewal(&taken, taken_over.as_bytes()), Some(Renewal::Renewed));

        // Taken back: the instance is told, and listed as it says until it has heard.
        let back = with_health("a", taken_over.as_bytes(), &Health::Up.into()).unwrap();
        assert_eq!(listed(&back), Health::Draining);
        let told = Some(Renewal::Overridden(Health::Up.into()));
        assert_eq!(renewal(&taken, back.as_bytes()), told);
        let next = up.clone().epoch(9);
        let next_value = encode_over(&next, Some(back.as_bytes()));
        assert_eq!(renewal(&next, next_value.as_bytes()), Some(Renewal::Renewed));
        assert_eq!(listed(&next_value), Health::Up);

        assert_eq!(encode_over(&up, Some(b"nonsense")), encode(&up));
        assert_eq!(with_health("a", b"nonsense", &drained), None);
    }

    #[test]
    fn a_health_that_was_changed_by_hand_is_an_operators_word() {
        let up = Instance::new("a", "tcp@h:1".parse().unwrap()).epoch(7);
        let by_hand = encode(&up.clone().health(Health::Unready));
        let told = Some(Renewal::Overridden(Health::Unready.into()));
        assert_eq!(renewal(&up, by_hand.as_bytes()), told);
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
