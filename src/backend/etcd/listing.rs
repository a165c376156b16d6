//! Reads the list of a service, whole and as of one moment.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::api::{Blob, Int, KeyValue, Range, Ranged};
use super::failure::Failure;
use super::gateway::Gateway;
use super::keys::{Keys, end_of};
use super::marks::judge;
use crate::backend::fields::shown;
use crate::backend::value::decode;
use crate::discovery::Resolved;
use crate::instance::{Address, Instance, Precedence, ServiceName};
use crate::registry::DEFAULT_TTL;
use crate::sync::{Mutex, event};

/// How many keys are read at once: a thousand of 5 kB are more than one message takes.
const PAGE: i64 = 200;
/// The same of keys without their values.
const KEYS: i64 = 2000;

/// The list, and the revision that it is of.
pub(super) struct Listed {
    pub(super) revision: Int,
    pub(super) resolved: Resolved,
}

/// Whether the store has been replaced by an older or an empty one. A cluster that starts anew has
/// the same ids as before; only its revision tells.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Past>);

#[derive(Debug, Default)]
struct Past {
    revision: Int,
    /// When it was seen to have gone back.
    back: Option<Instant>,
}

/// For so long after a store went back its lists prove nothing: registrations come back meanwhile.
const WARMING: Duration = DEFAULT_TTL;

impl History {
    /// The newest revision that was seen.
    fn seen(&self) -> Int {
        self.0.lock().revision
    }

    /// Takes in the revision of a list, where `before` had been seen before the list was asked for: lists
    /// that were asked for at the same time may be answered in any order. True: the store went back.
    fn went_back(&self, before: Int, revision: Int, now: Instant) -> bool {
        let mut past = self.0.lock();
        let went_back = revision < before.min(past.revision);
        if went_back {
            past.back = Some(now);
            past.revision = revision;
        }
        past.revision = past.revision.max(revision);
        went_back
    }

    /// Whether lists prove nothing, as the store went back.
    fn is_warming(&self, now: Instant) -> bool {
        let back = self.0.lock().back;
        back.is_some_and(|back| now.saturating_duration_since(back) < WARMING)
    }
}

pub(super) async fn list(inner: &Inner, service: &ServiceName) -> Result<Listed, Failure> {
    let Inner { gateway, keys, history, mass_expiry, .. } = inner;
    let (prefix, before) = (keys.service(service), history.seen());
    let mut range = Range {
        key: Blob::from(prefix.as_str()),
        range_end: Some(Blob(end_of(&prefix))),
        limit: Some(Int(PAGE)),
        ..Range::default()
    };
    let mut found = Vec::new();
    let revision = loop {
        let page: Ranged = gateway.ask("/v3/kv/range", &range).await?;
        let revision = *range.revision.get_or_insert(page.header.revision);
        let last = page.kvs.last().map(|kv| kv.key.clone());
        found.extend(page.kvs);
        match last {
            Some(mut last) if page.more => {
                last.0.push(0);
                range.key = last;
            }
            _ => break revision,
        }
    };
    if history.went_back(before, revision, Instant::now()) {
        event!(
            WARN,
            before = before.0,
            now = revision.0,
            "etcd has gone back: what its lists lack is not proven gone for now"
        );
        mass_expiry.clear();
    }
    let (instances, unread) = instances(&prefix, &found);
    let suspects = mass_expiry.listed(service, &instances, revision.0, Instant::now());
    judge(inner, service, &suspects).await?;
    let now = Instant::now();
    let doubt = mass_expiry.doubt(service, now);
    let resolved = Resolved::new(instances)
        .revision(revision.0.to_string())
        .authoritative(true)
        .warming(history.is_warming(now) || doubt.is_some())
        .deregistered(doubt.unwrap_or_default())
        .complete(unread.is_empty())
        .unread(unread);
    Ok(Listed { revision, resolved })
}

/// Every service of which there is a key.
pub(super) async fn services(gateway: &Gateway, keys: &Keys) -> Result<Vec<ServiceName>, Failure> {
    let (all, addresses, marks) = (keys.all(), keys.addresses(), keys.marks());
    let mut services = BTreeSet::new();
    // Before the keys of addresses, between those and the marks, and behind both.
    for (from, to) in [
        (all.clone().into_bytes(), addresses.clone().into_bytes()),
        (end_of(&addresses), marks.clone().into_bytes()),
        (end_of(&marks), end_of(&all)),
    ] {
        let mut range = Range {
            key: Blob(from),
            range_end: Some(Blob(to)),
            limit: Some(Int(KEYS)),
            keys_only: true,
            ..Range::default()
        };
        loop {
            let page: Ranged = gateway.ask("/v3/kv/range", &range).await?;
            services.extend(page.kvs.iter().filter_map(|kv| keys.service_of(&kv.key.0)));
            match page.kvs.into_iter().next_back() {
                Some(mut last) if page.more => {
                    last.key.0.push(0);
                    range.key = last.key;
                }
                _ => break,
            }
        }
    }
    Ok(services.into_iter().collect())
}

/// The instance of one key, or why its value is none, which is logged too.
pub(super) fn instance(prefix: &str, kv: &KeyValue) -> Result<Instance, String> {
    let key = String::from_utf8_lossy(&kv.key.0);
    let id = key.strip_prefix(prefix).ok_or_else(|| "not below its service".to_owned());
    id.and_then(|id| decode(id, &kv.value.0)).map_err(|reason| {
        let key = shown(&key);
        event!(WARN, key, reason, "a key's value is no instance");
        format!("{key}: {reason}")
    })
}

/// Of an address that two keys name the one that takes precedence has it, and of equal ones the one that was
/// put later: those who write with `etcdctl` do not look.
fn instances(prefix: &str, kvs: &[KeyValue]) -> (Vec<Instance>, Vec<String>) {
    let mut holders: HashMap<Address, ((Precedence, Int), Instance)> = HashMap::new();
    let mut unread = Vec::new();
    for kv in kvs {
        let instance = match instance(prefix, kv) {
            Ok(instance) => instance,
            Err(reason) => {
                unread.push(reason);
                continue;
            }
        };
        let rank = (instance.precedence(), kv.mod_revision);
        match holders.entry(instance.address.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert((rank, instance));
            }
            Entry::Occupied(mut held) if held.get().0 < rank => {
                held.insert((rank, instance));
            }
            Entry::Occupied(_) => {}
        }
    }
    (holders.into_values().map(|(_, instance)| instance).collect(), unread)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, value: &str, revision: i64) -> KeyValue {
        let (key, value) = (Blob::from(key), Blob::from(value));
        KeyValue { key, value, mod_revision: Int(revision), lease: Int(0) }
    }

    #[test]
    fn of_two_at_an_address_the_later_has_it() {
        let kvs = [
            kv("/srpc/Foo/a", "tcp@h:1", 5),
            kv("/srpc/Foo/b", "tcp@h:1", 9),
            kv("/srpc/Foo/c", "tcp@h:1", 7),
            kv("/srpc/Foo/d", "tcp@h:2", 1),
            kv("/srpc/Foo/e", "nonsense", 8),
            kv("/srpc/Foo/f", r#"{"address":"tcp@h:2","epoch":9,"health":"draining"}"#, 20),
        ];
        let (mut instances, unread) = instances("/srpc/Foo/", &kvs);
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        let ids: Vec<_> = instances.iter().map(|instance| instance.id.as_str()).collect();
        assert_eq!((ids.as_slice(), unread.len()), (&["b", "d"][..], 1));
        assert!(unread[0].starts_with("/srpc/Foo/e: address: "), "{}", unread[0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_went_back_proves_nothing_for_a_lease() {
        let (history, now) = (History::default(), Instant::now());
        assert!(!history.went_back(Int(0), Int(100), now));
        assert!(!history.went_back(Int(100), Int(102), now));
        assert!(!history.went_back(Int(100), Int(101), now), "asked before the one at 102 came");
        assert_eq!((history.seen(), history.is_warming(now)), (Int(102), false));
        assert!(history.went_back(Int(102), Int(2), now));
        assert!(!history.went_back(Int(2), Int(300), now + WARMING / 2));
        assert!(history.is_warming(now + WARMING / 2) && !history.is_warming(now + WARMING));
    }
}
