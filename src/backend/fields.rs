//! Instances from JSON fields, with the field that is wrong.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::instance::Instance;

/// How many characters of a foreign text are shown.
const MAX_SHOWN_CHARS: usize = 256;

/// Why these fields are no instance.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WrongField {
    /// `None`: no field is wrong by itself; one may be missing.
    pub(crate) name: Option<String>,
    pub(crate) reason: String,
}

impl fmt::Display for WrongField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}: {}", shown(name), self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// The instance that these fields describe. Unknown fields are ignored.
pub(crate) fn instance(fields: Map<String, Value>) -> Result<Instance, WrongField> {
    let fields = Value::Object(fields);
    let error = match Instance::deserialize(&fields) {
        Ok(instance) if instance.id.as_str().is_empty() => {
            return Err(WrongField { name: Some("id".to_owned()), reason: "empty".to_owned() });
        }
        Ok(instance) => return Ok(instance),
        Err(error) => error,
    };
    let mut all = fields.as_object().into_iter().flatten();
    let name = all.find(|(name, value)| is_wrong(name, value)).map(|(name, _)| name.clone());
    Err(WrongField { name, reason: shown(&error.to_string()) })
}

/// Whether a field is wrong by itself: the error of serde does not name it.
fn is_wrong(name: &str, value: &Value) -> bool {
    let mut one = Map::new();
    one.insert("id".to_owned(), Value::from("any"));
    one.insert("address".to_owned(), Value::from("mem@any"));
    one.insert(name.to_owned(), value.clone());
    Instance::deserialize(&Value::Object(one)).is_err()
}

/// The start of a foreign text, which may be long.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(fields: Value) -> String {
        let Value::Object(fields) = fields else { panic!("an object") };
        instance(fields).unwrap_err().to_string()
    }

    #[test]
    fn the_field_that_is_wrong_is_named() {
        for (fields, told) in [
            (json!({ "id": "a", "address": "h:1" }), "address: \"h:1\" is no address"),
            (json!({ "id": "a", "address": "tcp@h:1", "weight": "3" }), "weight: "),
            (json!({ "id": "a", "address": "tcp@h:1", "metadata": { "k": 1 } }), "metadata: "),
            (json!({ "id": "a", "address": "tcp@h:1", "health": "on" }), "health: "),
            (json!({ "id": "", "address": "tcp@h:1" }), "id: empty"),
            (json!({ "id": "a" }), "missing field `address`"),
        ] {
            let reason = wrong(fields);
            assert!(reason.starts_with(told), "{told}: {reason}");
        }
        let long = wrong(json!({ "id": "a", "address": "tcp@h:1", "weight": "x".repeat(9999) }));
        assert!(long.len() < 400, "{}", long.len());
    }
}
