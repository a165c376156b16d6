//! Who holds how much of a registry, and may they hold more?

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use super::group::GroupName;
use crate::instance::{Instance, ServiceName};
use crate::registry::{RegistryError, RegistryErrorKind};

/// What a slot, its queue item and its two map entries take besides their texts, roughly.
const SLOT: usize = 512;
/// The same of one entry of metadata.
const PAIR: usize = 64;
/// When it is worth asking a full registry again: leases run out meanwhile.
const RETRY_IN: Duration = Duration::from_secs(5);

/// On whose account an instance is registered; by default on nobody's.
#[derive(Clone, Debug, Default)]
pub(in crate::backend) struct Owner {
    /// Where it came from; empty: not known, and not counted.
    pub(in crate::backend) host: Arc<str>,
    /// The name of the token it was registered with.
    pub(in crate::backend) token: Option<Arc<str>>,
}

impl Owner {
    /// The token's name, else the host; `None`: neither is known.
    pub(in crate::backend) fn text(&self) -> Option<Arc<str>> {
        let host = || (!self.host.is_empty()).then(|| Arc::clone(&self.host));
        self.token.clone().or_else(host)
    }
}

/// What a registry holds at most.
#[derive(Clone, Debug)]
pub(in crate::backend) struct Quota {
    pub(super) instances: usize,
    pub(super) per_host: usize,
    pub(super) per_token: usize,
    pub(super) bytes: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self { instances: 100_000, per_host: 10_000, per_token: 10_000, bytes: 256 * 1024 * 1024 }
    }
}

/// What is held, and on whose account.
pub(in crate::backend) struct Ledger {
    quota: Quota,
    instances: usize,
    bytes: usize,
    by_host: HashMap<Arc<str>, usize>,
    by_token: HashMap<Arc<str>, usize>,
}

/// What one instance takes.
#[derive(Debug)]
pub(in crate::backend) struct Account {
    owner: Owner,
    bytes: usize,
}

impl Ledger {
    pub(in crate::backend) fn new(quota: Quota) -> Self {
        Self { quota, instances: 0, bytes: 0, by_host: HashMap::new(), by_token: HashMap::new() }
    }

    /// Takes one more instance in, in the place of what its address frees, if it does.
    pub(in crate::backend) fn open(
        &mut self,
        owner: &Owner,
        bytes: usize,
        freed: Option<&Account>,
    ) -> Result<Account, RegistryError> {
        let Quota { instances, per_host, per_token, bytes: max_bytes } = self.quota;
        let freed_by = |is_same: &dyn Fn(&Owner) -> bool| {
            usize::from(freed.is_some_and(|freed| is_same(&freed.owner)))
        };
        if self.instances - freed_by(&|_| true) >= instances {
            return Err(full(format!("it holds {instances} instances")));
        }
        let of_host = self.by_host.get(&owner.host).copied().unwrap_or(0);
        if of_host - freed_by(&|freed| freed.host == owner.host).min(of_host) >= per_host {
            return Err(full(format!("it holds {per_host} instances of this address")));
        }
        if let Some(token) = &owner.token {
            let of_token = self.by_token.get(token).copied().unwrap_or(0);
            let freed = freed_by(&|freed| freed.token.as_ref() == Some(token)).min(of_token);
            if of_token - freed >= per_token {
                return Err(full(format!("it holds {per_token} instances of this token")));
            }
        }
        if self.bytes - freed.map_or(0, |freed| freed.bytes) + bytes > max_bytes {
            return Err(full(format!("it holds {max_bytes} bytes")));
        }
        self.instances += 1;
        self.bytes += bytes;
        if !owner.host.is_empty() {
            *self.by_host.entry(Arc::clone(&owner.host)).or_default() += 1;
        }
        if let Some(token) = &owner.token {
            *self.by_token.entry(Arc::clone(token)).or_default() += 1;
        }
        Ok(Account { owner: owner.clone(), bytes })
    }

    /// Lets an instance take more, or less. What does not grow is never refused.
    pub(super) fn resize(
        &mut self,
        account: &mut Account,
        bytes: usize,
    ) -> Result<(), RegistryError> {
        let rest = self.bytes - account.bytes;
        let max = self.quota.bytes;
        if bytes > account.bytes && rest + bytes > max {
            return Err(full(format!("it holds {max} bytes: the instance stays as it was")));
        }
        self.bytes = rest + bytes;
        account.bytes = bytes;
        Ok(())
    }

    /// Lets an instance take what it takes, be there room for it or not.
    #[cfg(feature = "http")]
    pub(in crate::backend) fn resize_to(&mut self, account: &mut Account, bytes: usize) {
        self.bytes = self.bytes - account.bytes + bytes;
        account.bytes = bytes;
    }

    #[cfg(test)]
    pub(super) fn instances(&self) -> usize {
        self.instances
    }

    pub(in crate::backend) fn close(&mut self, account: &Account) {
        self.instances -= 1;
        self.bytes -= account.bytes;
        less(&mut self.by_host, Some(&account.owner.host));
        less(&mut self.by_token, account.owner.token.as_ref());
    }
}

/// What an instance takes, in bytes: no allocator tells it exactly.
pub(in crate::backend) fn weight(group: &GroupName, instance: &Instance) -> usize {
    let texts = [&instance.zone, &instance.version].into_iter().flatten();
    let metadata = instance.metadata.iter();
    SLOT + group.as_ref().map_or(0, |service: &ServiceName| service.as_str().len())
        + instance.id.as_str().len()
        + instance.address.as_str().len()
        + texts.map(String::len).sum::<usize>()
        + metadata.map(|(key, value)| PAIR + key.len() + value.len()).sum::<usize>()
}

fn less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: Option<&K>) {
    if let Some(key) = key
        && let Some(count) = counts.get_mut(key)
    {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn full(why: String) -> RegistryError {
    let message = format!("the registry is full: {why}");
    RegistryError::new(RegistryErrorKind::Full, message).retry_in(Some(RETRY_IN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(host: &str, token: &str) -> Owner {
        Owner { host: host.into(), token: (!token.is_empty()).then(|| token.into()) }
    }

    fn ledger() -> Ledger {
        Ledger::new(Quota { instances: 5, per_host: 3, per_token: 2, bytes: 1000 })
    }

    fn refused(result: Result<Account, RegistryError>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Full);
        assert!(error.retry_after().is_some());
        error.message().to_owned()
    }

    #[test]
    fn every_cap_is_its_own() {
        let mut ledger = ledger();
        let one = ledger.open(&owner("a", "t"), 10, None).unwrap();
        ledger.open(&owner("a", "t"), 10, None).unwrap();
        assert!(refused(ledger.open(&owner("b", "t"), 10, None)).contains("of this token"));
        ledger.open(&owner("a", ""), 10, None).unwrap();
        assert!(refused(ledger.open(&owner("a", "u"), 10, None)).contains("of this address"));
        ledger.open(&owner("", "u"), 10, None).unwrap();
        assert!(refused(ledger.open(&owner("b", "u"), 961, None)).contains("1000 bytes"));
        ledger.open(&owner("b", "u"), 960, None).unwrap();
        assert!(refused(ledger.open(&owner("c", ""), 1, None)).contains("5 instances"));
        // Who takes another's place takes no more room, unless it is on another account.
        let again = ledger.open(&owner("a", "t"), 10, Some(&one)).unwrap();
        ledger.close(&one);
        assert!(refused(ledger.open(&owner("b", "u"), 10, Some(&again))).contains("of this token"));
        ledger.close(&again);
        assert!(ledger.open(&owner("c", "t"), 10, None).is_ok());
    }

    #[test]
    fn what_does_not_grow_is_never_refused_and_nothing_is_left() {
        let mut ledger = ledger();
        let mut one = ledger.open(&owner("a", "t"), 900, None).unwrap();
        let two = ledger.open(&owner("a", "t"), 100, None).unwrap();
        assert!(ledger.resize(&mut one, 901).is_err());
        ledger.resize(&mut one, 900).unwrap();
        ledger.resize(&mut one, 100).unwrap();
        ledger.resize(&mut one, 900).unwrap();
        ledger.close(&one);
        ledger.close(&two);
        assert_eq!((ledger.instances, ledger.bytes), (0, 0));
        assert!(ledger.by_host.is_empty() && ledger.by_token.is_empty());
    }
}
