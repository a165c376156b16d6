//! A list of instances that is set by hand.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::discovery::{Discovery, DiscoveryError, Resolved, Update, UpdateStream};
use crate::instance::{Address, Instance, InvalidAddress, ServiceName};

/// A list of instances that is set by hand. Clones share it; it serves every service name.
///
/// Its answers are authoritative and complete: an instance that the list lacks is gone.
///
/// ```
/// use srpc::backend::static_list::StaticList;
///
/// let list = StaticList::parse("tcp@10.0.0.1:7001, tcp@10.0.0.2:7001")?;
/// # Ok::<(), srpc::instance::InvalidAddress>(())
/// ```
#[derive(Clone)]
pub struct StaticList {
    current: Arc<watch::Sender<Current>>,
}

struct Current {
    instances: Vec<Instance>,
    /// How often the list has been set.
    revision: u64,
}

impl StaticList {
    /// A list of these instances.
    pub fn new(instances: impl IntoIterator<Item = Instance>) -> Self {
        let current = Current { instances: instances.into_iter().collect(), revision: 1 };
        Self { current: Arc::new(watch::Sender::new(current)) }
    }

    /// A list of addresses, separated by commas. White space around them is ignored, as are empty
    /// parts; an address named twice counts once.
    ///
    /// # Errors
    /// The first part that is no address, or that nobody can dial.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        let mut seen = BTreeSet::new();
        let mut instances = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let address = Address::to_dial(part)?;
            if seen.insert(address.clone()) {
                instances.push(Instance::at(address));
            }
        }
        Ok(Self::new(instances))
    }

    /// Replaces the list, and tells everyone who watches it.
    pub fn update(&self, instances: Vec<Instance>) {
        self.current.send_modify(|current| {
            current.instances = instances;
            current.revision += 1;
        });
    }
}

#[async_trait]
impl Discovery for StaticList {
    async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
        Ok(self.current.borrow().resolved())
    }

    fn watch(&self, _: &ServiceName) -> Option<UpdateStream> {
        let mut current = self.current.subscribe();
        Some(UpdateStream::fed(1, move |sender| async move {
            loop {
                let resolved = current.borrow_and_update().resolved();
                if !sender.send(Ok(Update::Set(resolved))).await || current.changed().await.is_err()
                {
                    return;
                }
            }
        }))
    }
}

impl fmt::Debug for StaticList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Copied: a formatter is the user's, and may update the list.
        let (instances, revision) = {
            let current = self.current.borrow();
            (current.instances.clone(), current.revision)
        };
        f.debug_struct("StaticList")
            .field("instances", &instances)
            .field("revision", &revision)
            .finish()
    }
}

impl Current {
    fn resolved(&self) -> Resolved {
        let resolved = Resolved::new(self.instances.clone());
        resolved.revision(self.revision.to_string()).authoritative(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> ServiceName {
        "Foo".parse().unwrap()
    }

    fn addresses(resolved: &Resolved) -> Vec<&str> {
        resolved.instances.iter().map(|instance| instance.address.as_str()).collect()
    }

    #[tokio::test]
    async fn a_parsed_list_is_proven_and_serves_every_name() {
        let list = StaticList::parse(" tcp@a:1,,unix@/run/b.sock ,tcp@a:1,").unwrap();
        for name in ["Foo", "Bar"] {
            let resolved = list.resolve(&name.parse().unwrap()).await.unwrap();
            assert_eq!(addresses(&resolved), ["tcp@a:1", "unix@/run/b.sock"]);
            assert!(resolved.is_proven());
        }
        let empty = StaticList::parse("").unwrap().resolve(&service()).await.unwrap();
        assert!(empty.instances.is_empty() && empty.is_proven());
        assert!(StaticList::parse("tcp@a:1,b").is_err());
        assert!(StaticList::parse("tcp@a:1,tcp@0.0.0.0:1").is_err());
    }

    #[tokio::test]
    async fn an_update_reaches_watchers_of_every_clone() {
        let list = StaticList::parse("tcp@a:1").unwrap();
        let mut updates = list.clone().watch(&service()).unwrap();
        let Some(Ok(Update::Set(first))) = updates.next().await else {
            panic!("the first item is the list");
        };
        assert_eq!(addresses(&first), ["tcp@a:1"]);

        list.update(vec![Instance::at("tcp@b:2".parse().unwrap())]);
        let Some(Ok(Update::Set(second))) = updates.next().await else {
            panic!("an update is pushed");
        };
        assert_eq!(addresses(&second), ["tcp@b:2"]);
        assert_ne!(first.revision, second.revision);

        drop(list);
        assert_eq!(updates.next().await.map(|_| ()), None);
    }
}
