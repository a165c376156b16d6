//! A file that lists instances, and is looked at again and again.
//!
//! ```toml
//! Foo = ["tcp@10.0.0.1:7001", "tcp@10.0.0.2:7001"]
//!
//! [[Bar]]
//! address = "tcp@10.0.0.3:7001"
//! weight = 3
//! zone = "a"
//! ```
//!
//! or the same as JSON. Each service's name stands for a list of addresses, of instances, or both; an
//! instance without an `id` has its address for one.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::discovery::{
    Discovery, DiscoveryError, DiscoveryErrorKind, Resolved, Update, UpdateStream,
};
use crate::instance::{Address, DEFAULT_WEIGHT, Health, Instance, InstanceId, ServiceName};

/// The largest file that is read, in bytes.
pub const MAX_LEN: u64 = 16 * 1024 * 1024;

/// A file that lists instances by service: TOML if its name ends with `.toml`, else JSON.
///
/// It is looked at once a second, by its time, length and inode: replacing it by a rename is seen, and
/// so is a change in place. What cannot be read or parsed is an error, and clients keep the list they
/// have. So write it elsewhere and rename it: of a file that is written in place a part may be read, and
/// a part may be valid.
///
/// Its lists prove nothing: a file that was emptied by mistake looks like any other. What vanishes while
/// more than half stays is gone at once, and all else after 15 s.
#[derive(Clone, Debug)]
pub struct FileList {
    path: Arc<Path>,
    interval: Duration,
}

/// What tells a file from what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    changed: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl FileList {
    /// The list in this file, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into().into(), interval: Duration::from_secs(1) }
    }

    /// Sets how often it is looked at. Default: 1 s.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(Duration::from_millis(1));
        self
    }

    async fn read(&self, service: &ServiceName) -> Result<(Mark, Resolved), DiscoveryError> {
        let (path, service) = (Arc::clone(&self.path), service.clone());
        // A file may be on a machine far away.
        let read = spawn_blocking(move || read(&path, &service)).await;
        read.map_err(|error| DiscoveryError::unavailable(error.to_string()))?
    }

    async fn mark(&self) -> io::Result<Mark> {
        let path = Arc::clone(&self.path);
        spawn_blocking(move || Ok(Mark::of(&fs::metadata(path)?))).await?
    }
}

#[async_trait]
impl Discovery for FileList {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        Ok(self.read(service).await?.1)
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let (this, service) = (self.clone(), service.clone());
        Some(UpdateStream::fed(1, |updates| async move {
            loop {
                let seen = match this.read(&service).await {
                    Ok((mark, resolved)) => {
                        if !updates.send(Ok(Update::Set(resolved))).await {
                            return;
                        }
                        mark
                    }
                    Err(error) => {
                        updates.send(Err(error)).await;
                        return;
                    }
                };
                while this.mark().await.ok() == Some(seen) {
                    sleep(this.interval).await;
                }
            }
        }))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        let path = Arc::clone(&self.path);
        let read = spawn_blocking(move || read_all(&path)).await;
        let (_, lists) = read.map_err(|error| DiscoveryError::unavailable(error.to_string()))??;
        let offered = lists.into_iter().filter(|(_, items)| !items.is_empty());
        Ok(offered.map(|(name, _)| name).collect())
    }
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        Self { changed: metadata.modified().ok(), len: metadata.len(), inode: inode(metadata) }
    }
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> u64 {
    0
}

fn read(path: &Path, service: &ServiceName) -> Result<(Mark, Resolved), DiscoveryError> {
    let (mark, mut lists) = read_all(path)?;
    let items = lists.remove(service).unwrap_or_default();
    Ok((mark, Resolved::new(items.into_iter().map(Instance::from).collect())))
}

fn read_all(path: &Path) -> Result<(Mark, BTreeMap<ServiceName, Vec<Item>>), DiscoveryError> {
    let unreadable = |error: io::Error| {
        DiscoveryError::unavailable(format!("{}: {error}", path.display())).because(error)
    };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(invalid(path, "it is no file"));
    }
    let mark = Mark::of(&metadata);
    let mut text = String::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_LEN + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_LEN {
        return Err(invalid(path, format!("more than {MAX_LEN} bytes")));
    }
    let lists: BTreeMap<String, Vec<Item>> = match path.extension() {
        Some(extension) if extension == "toml" => {
            toml::from_str(&text).map_err(|error| invalid(path, error.message()))?
        }
        _ => serde_json::from_str(&text).map_err(|error| invalid(path, error))?,
    };
    let mut named = BTreeMap::new();
    for (name, items) in lists {
        let name = name.parse::<ServiceName>().map_err(|error| invalid(path, error))?;
        named.insert(name, items);
    }
    Ok((mark, named))
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> DiscoveryError {
    let message = format!("{}: {reason}", path.display());
    DiscoveryError::new(DiscoveryErrorKind::Invalid, message)
}

/// An address, or an instance.
#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Address(Address),
    Instance(Written),
}

/// An instance as it is written by hand.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: Option<InstanceId>,
    address: Address,
    #[serde(default)]
    epoch: u64,
    weight: Option<u32>,
    zone: Option<String>,
    version: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    health: Health,
}

impl From<Item> for Instance {
    fn from(item: Item) -> Self {
        match item {
            Item::Address(address) => Self::at(address),
            Item::Instance(written) => {
                let id = written.id.unwrap_or_else(|| written.address.as_str().into());
                let mut instance = Self::new(id, written.address)
                    .epoch(written.epoch)
                    .weight(written.weight.unwrap_or(DEFAULT_WEIGHT))
                    .health(written.health);
                instance.zone = written.zone;
                instance.version = written.version;
                instance.metadata = written.metadata;
                instance
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this name and content, removed with the value.
    struct Written(PathBuf);

    impl Written {
        fn new(name: &str, content: &str) -> Self {
            let path = std::env::temp_dir().join(format!("srpc-{}-{name}", std::process::id()));
            fs::write(&path, content).unwrap();
            Self(path)
        }
    }

    impl Drop for Written {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn service() -> ServiceName {
        "shop.Cart".parse().unwrap()
    }

    #[tokio::test]
    async fn toml_and_json_say_the_same() {
        let toml = Written::new(
            "same.toml",
            "Foo = []\n\"shop.Cart\" = [\"tcp@a:1\", { address = \"tcp@b:2\", weight = 3, id = \"x\" }]",
        );
        let json = Written::new(
            "same.json",
            r#"{"shop.Cart": ["tcp@a:1", {"address": "tcp@b:2", "weight": 3, "id": "x"}]}"#,
        );
        let expected = [
            Instance::at("tcp@a:1".parse().unwrap()),
            Instance::new("x", "tcp@b:2".parse().unwrap()).weight(3),
        ];
        for file in [&toml, &json] {
            let resolved = FileList::new(&file.0).resolve(&service()).await.unwrap();
            assert_eq!(resolved.instances, expected);
            assert!(!resolved.is_proven());
        }
    }

    #[tokio::test]
    async fn what_is_no_list_names_the_file() {
        for (name, content) in [
            ("broken.toml", "Foo = ["),
            ("broken.json", "{"),
            ("no-address.json", r#"{"shop.Cart": ["a:1"]}"#),
            ("no-name.json", r#"{"shop Cart": []}"#),
            ("misspelt.json", r#"{"shop.Cart": [{"address": "tcp@a:1", "wieght": 3}]}"#),
        ] {
            let file = Written::new(name, content);
            let error = FileList::new(&file.0).resolve(&service()).await.unwrap_err();
            assert_eq!(error.kind(), DiscoveryErrorKind::Invalid, "{name}");
            assert!(error.message().contains(name), "{error}");
        }
        let error = FileList::new("/nowhere/at.all").resolve(&service()).await.unwrap_err();
        assert_eq!(error.kind(), DiscoveryErrorKind::Unavailable);
    }
}
