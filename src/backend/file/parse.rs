//! Parser of instance files, TOML or JSON: an entry that is wrong harms no other.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, ValueDeserializer};

use crate::backend::fields::{self, shown};
use crate::discovery::MAX_UNREAD;
use crate::instance::{Address, Instance, InstanceId, ServiceName};

/// The fields of an instance.
const FIELDS: [&str; 8] =
    ["id", "epoch", "address", "weight", "zone", "version", "metadata", "health"];

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) services: BTreeMap<ServiceName, List>,
    /// Faults of names that are no service names: what follows them may be any service's.
    nameless: Vec<String>,
}

/// What it says of one service.
#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) instances: Vec<Instance>,
    /// Whether something else than a list follows the name, such as the table `shop` of an unquoted `shop.Cart`.
    is_no_list: bool,
    /// Line and reason of each entry that cannot be read.
    faults: Vec<String>,
}

impl List {
    pub(super) fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Whether what follows `name` is, or may be, of this service.
    fn may_be_of(&self, name: &ServiceName, service: &ServiceName) -> bool {
        let rest = service.as_str().strip_prefix(name.as_str());
        rest.is_some_and(|rest| rest.is_empty() || (self.is_no_list && rest.starts_with('.')))
    }

    fn fault(&mut self, reason: String) {
        if self.faults.len() < MAX_UNREAD {
            self.faults.push(reason);
        }
    }
}

impl Lists {
    /// What could not be read and is, or may be, this service's.
    pub(super) fn faults_of(&self, service: &ServiceName) -> Vec<String> {
        let named = self.faults(|name, list| list.may_be_of(name, service));
        named.chain(self.nameless.iter().cloned()).collect()
    }

    /// What could not be read of other services.
    pub(super) fn faults_of_others(&self, service: &ServiceName) -> Vec<String> {
        self.faults(|name, list| !list.may_be_of(name, service)).take(MAX_UNREAD).collect()
    }

    fn faults(
        &self,
        is_asked: impl Fn(&ServiceName, &List) -> bool,
    ) -> impl Iterator<Item = String> {
        let asked = self.services.iter().filter(move |&(name, list)| is_asked(name, list));
        asked.flat_map(|(name, list)| list.faults.iter().map(move |it| format!("{name}: {it}")))
    }

    /// The services that have an entry, readable or not, and the faults of names that are none.
    pub(super) fn offered(self) -> (Vec<ServiceName>, Vec<String>) {
        let has_any = |list: &List| !list.instances.is_empty() || list.has_faults();
        let offered = self.services.into_iter().filter(|(_, list)| has_any(list));
        (offered.map(|(name, _)| name).collect(), self.nameless)
    }
}

/// Parses a whole file.
///
/// # Errors
/// The line and the reason, if it does not parse or has a key twice.
pub(super) fn parse(content: Vec<u8>, is_toml: bool) -> Result<Lists, String> {
    let content = String::from_utf8(content).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line}: it is not UTF-8")
    })?;
    let text = content.strip_prefix('\u{feff}').unwrap_or(&content);
    let lines = Lines::new(text);
    let sections = if is_toml { of_toml(text, &lines)? } else { of_json(text)? };
    let mut lists = Lists::default();
    for Section { name, at, entries } in sections {
        let service = match name.parse::<ServiceName>() {
            Ok(service) => service,
            Err(error) => {
                if lists.nameless.len() < MAX_UNREAD {
                    lists.nameless.push(lines.told(at, &error.to_string()));
                }
                continue;
            }
        };
        let list = lists.services.entry(service).or_default();
        let Some(entries) = entries else {
            list.is_no_list = true;
            let reason = "it is no list (in TOML a name with a dot is written in quotes)";
            list.fault(lines.told(at, reason));
            continue;
        };
        for Entry { at, says } in entries {
            match says.instance() {
                Ok(instance) => list.instances.push(instance),
                Err((field, reason)) => list.fault(lines.told(field.unwrap_or(at), &reason)),
            }
        }
    }
    Ok(lists)
}

/// Line numbers of a text, counted when the first is needed.
struct Lines<'a> {
    text: &'a str,
    ends: OnceCell<Vec<usize>>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, ends: OnceCell::new() }
    }

    fn told(&self, at: usize, reason: &str) -> String {
        let ends = self.ends.get_or_init(|| self.text.match_indices('\n').map(|it| it.0).collect());
        format!("line {}: {reason}", ends.partition_point(|end| *end < at) + 1)
    }
}

/// A name, where it is, and its entries.
struct Section {
    name: String,
    at: usize,
    /// `None`: no list.
    entries: Option<Vec<Entry>>,
}

struct Entry {
    at: usize,
    says: Says,
}

enum Says {
    Address(String),
    Fields(Vec<Field>),
    Other,
}

struct Field {
    name: String,
    at: usize,
    value: Result<Value, String>,
}

impl Says {
    /// The instance, or why it is none; with the place of the field that is wrong, if it is one.
    fn instance(self) -> Result<Instance, (Option<usize>, String)> {
        let given = match self {
            Self::Address(text) => {
                let address = text.parse::<Address>().map_err(|error| (None, error.to_string()))?;
                return Ok(Instance::at(address));
            }
            Self::Fields(fields) => fields,
            Self::Other => {
                let reason = "it is neither an address in quotes nor an instance";
                return Err((None, reason.to_owned()));
            }
        };
        let mut fields = Map::new();
        let mut places = BTreeMap::new();
        for Field { name, at, value } in given {
            if !FIELDS.contains(&name.as_str()) {
                let known = FIELDS.join(", ");
                let reason = format!("{}: no such field; there are {known}", shown(&name));
                return Err((Some(at), reason));
            }
            let value = value.map_err(|reason| (Some(at), format!("{name}: {reason}")))?;
            places.insert(name.clone(), at);
            // `null` is a field that is not set.
            if !value.is_null() {
                fields.insert(name, value);
            }
        }
        let has_id = fields.contains_key("id");
        if !has_id {
            fields.insert("id".to_owned(), Value::from("-"));
        }
        let place = |name: &str| places.get(name).copied();
        let mut instance = fields::instance(fields)
            .map_err(|wrong| (wrong.name.as_deref().and_then(place), wrong.to_string()))?;
        if instance.metadata.contains_key("") {
            return Err((place("metadata"), "metadata: an empty key".to_owned()));
        }
        if !has_id {
            instance.id = InstanceId::from(instance.address.as_str());
        }
        Ok(instance)
    }
}

fn of_toml(text: &str, lines: &Lines<'_>) -> Result<Vec<Section>, String> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(text.len(), |span| span.start);
        lines.told(at, error.message())
    })?;
    let section = |(name, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
        let entries = match value.get_ref() {
            DeValue::Array(items) => Some(items.iter().map(toml_entry).collect()),
            _ => None,
        };
        Section { name: text_of(name), at: name.span().start, entries }
    };
    Ok(table.get_ref().iter().map(section).collect())
}

fn text_of(name: &Spanned<DeString<'_>>) -> String {
    name.get_ref().to_string()
}

fn toml_entry(item: &Spanned<DeValue<'_>>) -> Entry {
    let says = match item.get_ref() {
        DeValue::String(text) => Says::Address(text.to_string()),
        DeValue::Table(table) => Says::Fields(
            table
                .iter()
                .map(|(name, value)| Field {
                    name: text_of(name),
                    at: name.span().start,
                    value: toml_value(value),
                })
                .collect(),
        ),
        _ => Says::Other,
    };
    Entry { at: item.span().start, says }
}

/// A TOML value as JSON, which has neither dates nor infinite numbers.
fn toml_value(value: &Spanned<DeValue<'_>>) -> Result<Value, String> {
    if matches!(value.get_ref(), DeValue::Datetime(_)) {
        return Err("no field is a date".to_owned());
    }
    match Value::deserialize(ValueDeserializer::from(value.clone())) {
        Ok(Value::Null) => Err("no field is infinite".to_owned()),
        Ok(value) => Ok(value),
        Err(error) => Err(shown(error.message())),
    }
}

fn of_json(text: &str) -> Result<Vec<Section>, String> {
    // Entries are parsed one by one below: faults of the whole file, doubled keys among them, come first.
    serde_json::from_str::<OnceEach>(text).map_err(refused)?;
    let Members(services) = serde_json::from_str(text).map_err(refused)?;
    let place = |raw: &RawValue| raw.get().as_ptr().addr() - text.as_ptr().addr();
    let entry = |raw: &RawValue| Entry { at: place(raw), says: json_entry(raw, &place) };
    let section = |(name, value): (String, &RawValue)| {
        let items = serde_json::from_str::<Vec<&RawValue>>(value.get()).ok();
        let entries = items.map(|items| items.into_iter().map(entry).collect());
        Section { name, at: place(value), entries }
    };
    Ok(services.into_iter().map(section).collect())
}

fn json_entry(raw: &RawValue, place: &dyn Fn(&RawValue) -> usize) -> Says {
    let field = |(name, value): (String, &RawValue)| Field {
        name,
        at: place(value),
        value: serde_json::from_str(value.get()).map_err(|error| shown(&error.to_string())),
    };
    if let Ok(Members(fields)) = serde_json::from_str(raw.get()) {
        return Says::Fields(fields.into_iter().map(field).collect());
    }
    serde_json::from_str(raw.get()).map_or(Says::Other, Says::Address)
}

/// An error with its line first, as for TOML.
fn refused(error: serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(&*text, |(reason, _)| reason);
    format!("line {}: {reason}", error.line().max(1))
}

/// The members of an object as they are written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Any JSON in which no object has a key twice.
struct OnceEach;

impl<'de> Deserialize<'de> for OnceEach {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = OnceEach;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_bool<E>(self, _: bool) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_i64<E>(self, _: i64) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_u64<E>(self, _: u64) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_f64<E>(self, _: f64) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_str<E>(self, _: &str) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OnceEach, A::Error> {
                while seq.next_element::<OnceEach>()?.is_some() {}
                Ok(OnceEach)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OnceEach, A::Error> {
                let mut keys = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if keys.contains(&key) {
                        let key = shown(&key);
                        return Err(de::Error::custom(format_args!(
                            "the key {key:?} is there twice"
                        )));
                    }
                    keys.insert(key);
                    map.next_value::<OnceEach>()?;
                }
                Ok(OnceEach)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(text: &str, is_toml: bool) -> Result<Lists, String> {
        parse(text.as_bytes().to_vec(), is_toml)
    }

    #[test]
    fn what_is_wrong_has_a_service_a_line_and_a_field_and_harms_no_other() {
        let toml = "Foo = [\n  \"tcp@a:1\",\n  \"h:1\",\n  { address = \"tcp@b:2\",\n    weigth = 3 },\n]\n\
            Bar = [{ address = \"tcp@h:1\", weight = -1 }, 7]\nBaz = \"tcp@c:3\"\n\n\
            [[Qux]]\naddress = \"tcp@d:4\"\nmetadata = { a = 1 }\n\n[[Qux]]\naddress = \"tcp@e\"\n";
        let json = r#"{"Foo": [
            "tcp@a:1",
            "h:1",
            {"address": "tcp@b:2",
                "weigth": 3}
            ],
            "Bar": [{"address": "tcp@h:1", "weight": -1}, 7],
            "Baz": "tcp@c:3",

            "Qux": [
            {"address": "tcp@d:4",
                "metadata": {"a": 1}},

            {
            "address": "tcp@e"}]}"#;
        for (text, is_toml) in [(toml, true), (json, false)] {
            let lists = lists(text, is_toml).unwrap();
            let faults = |name: &str| lists.faults_of(&name.parse().unwrap());
            let has = |name: &str, at: usize, words: &[&str]| {
                let fault = &faults(name)[at];
                assert!(words.iter().all(|word| fault.contains(word)), "{fault}: {words:?}");
            };
            let foo = &lists.services[&"Foo".parse::<ServiceName>().unwrap()];
            assert_eq!(foo.instances, [Instance::at("tcp@a:1".parse().unwrap())]);
            has("Foo", 0, &["Foo: line 3: ", "\"h:1\""]);
            has("Foo", 1, &["Foo: line 5: weigth: ", "zone"]);
            has("Bar", 0, &["Bar: line 7: weight: ", "-1"]);
            has("Bar", 1, &["Bar: line 7: ", "neither"]);
            has("Baz", 0, &["Baz: line 8: ", "no list"]);
            has("Qux", 0, &["Qux: line 12: metadata: "]);
            has("Qux", 1, &["Qux: line 15: address: ", "no port"]);
        }
    }

    #[test]
    fn both_formats_refuse_alike_and_name_the_line() {
        for (text, is_toml, told) in [
            ("Foo = [\n", true, "line "),
            ("{\n\"Foo\": [", false, "line 2: "),
            ("Foo = []\nFoo = []", true, "line 2: duplicate key"),
            ("{\"Foo\": [],\n\"Foo\": []}", false, "line 2: the key \"Foo\" is there twice"),
            ("Foo = [{ address = \"tcp@a:1\", address = \"tcp@b:1\" }]", true, "line 1: "),
            (r#"{"Foo": [{"address": "tcp@a:1", "address": "tcp@b:1"}]}"#, false, "line 1: "),
            (
                r#"{"Foo": [{"address": "tcp@a:1", "metadata": {"a": "1", "a": "2"}}]}"#,
                false,
                "line 1: ",
            ),
            ("[]", false, "line 1: "),
            ("", false, "line 1: "),
        ] {
            let error = lists(text, is_toml).unwrap_err();
            assert!(error.starts_with(told), "{text}: {error}");
        }
        let error = parse(b"\n\n\xff".to_vec(), true).unwrap_err();
        assert_eq!(error, "line 3: it is not UTF-8");
    }

    #[test]
    fn a_mark_of_the_byte_order_is_passed_over() {
        for (text, is_toml) in
            [("\u{feff}Foo = [\"tcp@a:1\"]", true), ("\u{feff}{\"Foo\": [\"tcp@a:1\"]}", false)]
        {
            let lists = lists(text, is_toml).unwrap();
            assert_eq!(lists.services[&"Foo".parse::<ServiceName>().unwrap()].instances.len(), 1);
        }
    }

    #[test]
    fn a_name_that_is_none_may_be_anybodys() {
        let lists = lists("\"shop Cart\" = [\"tcp@a:1\"]\nFoo = [\"tcp@a:1\"]", true).unwrap();
        let told = lists.faults_of(&"Bar".parse().unwrap());
        assert!(told[0].starts_with("line 1: \"shop Cart\" is no service name"), "{told:?}");
        let (offered, nameless) = lists.offered();
        assert_eq!((offered.len(), nameless.len()), (1, 1));
    }

    #[test]
    fn a_name_with_a_dot_and_no_quotes_is_told() {
        let lists = lists("[[shop.Cart]]\naddress = \"tcp@a:1\"", true).unwrap();
        for (name, is_told) in [("shop.Cart", true), ("shop", true), ("shopping", false)] {
            let told = lists.faults_of(&name.parse().unwrap());
            assert_eq!(told.iter().any(|it| it.contains("in quotes")), is_told, "{name}: {told:?}");
        }
    }
}
