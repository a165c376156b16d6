//! A source whose last good list is on disk.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::follow::apply;
use crate::discovery::{
    Discovery, DiscoveryError, DiscoveryErrorKind, Resolved, Update, UpdateStream,
};
use crate::instance::{Instance, ServiceName};
use crate::sync::{Mutex, event};

/// A source whose last good list is kept in a folder, a file for each service, and answers in its place
/// while the source has not answered this process yet.
///
/// What comes from disk proves nothing, and counts as incomplete. Once the source has answered, its
/// failures are failures: whoever asks has a list by then. Empty lists are not kept. A list that cannot
/// be written is a warning, and one that cannot be read is none.
#[derive(Clone, Debug)]
pub struct Cached<D> {
    source: D,
    shelf: Arc<Shelf>,
}

#[derive(Debug)]
struct Shelf {
    folder: PathBuf,
    max_age: Duration,
    /// The services of which the source has answered.
    answered: Mutex<HashSet<ServiceName>>,
}

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct Kept {
    saved_unix_ms: u64,
    instances: Vec<Instance>,
}

impl<D> Cached<D> {
    /// `source`, whose lists are kept in this folder, which is made if it is not there.
    pub fn new(source: D, folder: impl Into<PathBuf>) -> Self {
        let shelf = Shelf {
            folder: folder.into(),
            max_age: Duration::from_secs(24 * 60 * 60),
            answered: Mutex::default(),
        };
        Self { source, shelf: Arc::new(shelf) }
    }

    /// Sets how old a list may be that is still used, by the clock on the wall. Default: 24 h.
    #[must_use]
    pub fn max_age(self, max_age: Duration) -> Self {
        let folder = self.shelf.folder.clone();
        let shelf = Shelf { folder, max_age, answered: Mutex::default() };
        Self { source: self.source, shelf: Arc::new(shelf) }
    }
}

#[async_trait]
impl<D: Discovery> Discovery for Cached<D> {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        match self.source.resolve(service).await {
            Ok(resolved) => {
                self.shelf.save(service, &resolved.instances).await;
                Ok(resolved)
            }
            Err(error) => self.shelf.instead(service).await.ok_or(error),
        }
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let mut watch = self.source.watch(service)?;
        let (shelf, service) = (Arc::clone(&self.shelf), service.clone());
        Some(UpdateStream::fed(1, |updates| async move {
            let mut list = Resolved::default();
            while let Some(item) = watch.next().await {
                match &item {
                    Ok(update) => {
                        apply(&mut list, update.clone());
                        shelf.save(&service, &list.instances).await;
                    }
                    // One that cannot be watched is asked.
                    Err(error) if error.kind() == DiscoveryErrorKind::Unsupported => {}
                    Err(_) => {
                        if let Some(kept) = shelf.instead(&service).await
                            && !updates.send(Ok(Update::Set(kept))).await
                        {
                            return;
                        }
                    }
                }
                if !updates.send(item).await {
                    return;
                }
            }
        }))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        self.source.services().await
    }
}

impl Shelf {
    async fn save(&self, service: &ServiceName, instances: &[Instance]) {
        self.answered.lock().insert(service.clone());
        if instances.is_empty() {
            return;
        }
        let saved_unix_ms = millis(SystemTime::now());
        let kept = Kept { saved_unix_ms, instances: instances.to_vec() };
        let (folder, path) = (self.folder.clone(), self.path(service));
        let saved = spawn_blocking(move || save(&folder, &path, &kept)).await;
        if let Ok(Err(error)) = saved {
            event!(WARN, %service, %error, "the list of instances is not kept on disk");
        }
    }

    /// The list from disk, as long as the source has not answered.
    async fn instead(&self, service: &ServiceName) -> Option<Resolved> {
        if self.answered.lock().contains(service) {
            return None;
        }
        let path = self.path(service);
        let kept = spawn_blocking(move || read(&path)).await.ok()?.ok()?;
        let age = millis(SystemTime::now()).saturating_sub(kept.saved_unix_ms);
        if u128::from(age) > self.max_age.as_millis() {
            return None;
        }
        event!(WARN, %service, age_ms = age, "the source does not answer: its list is from disk");
        Some(Resolved::new(kept.instances).complete(false))
    }

    fn path(&self, service: &ServiceName) -> PathBuf {
        // No service's name contains a slash, or starts with a dot.
        self.folder.join(format!("{service}.json"))
    }
}

/// A list that is half written never has the name of one.
fn save(folder: &Path, path: &Path, kept: &Kept) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let unique = format!("{}.{:016x}", std::process::id(), rand::random::<u64>());
    let written = path.with_extension(unique);
    let renamed =
        fs::write(&written, serde_json::to_vec(kept)?).and_then(|()| fs::rename(&written, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&written);
    }
    renamed
}

fn read(path: &Path) -> io::Result<Kept> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::static_list::StaticList;

    struct Down;

    #[async_trait]
    impl Discovery for Down {
        async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
            Err(DiscoveryError::unavailable("down"))
        }
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("srpc-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_start_while_the_source_is_down_has_the_last_list() {
        let folder = Folder::new("cached");
        let service: ServiceName = "Foo".parse().unwrap();
        let before = Cached::new(StaticList::parse("tcp@a:1").unwrap(), &folder.0);
        let known = before.resolve(&service).await.unwrap();

        let after = Cached::new(Down, &folder.0);
        let resolved = after.resolve(&service).await.unwrap();
        assert_eq!(resolved.instances, known.instances);
        assert!(!resolved.complete && !resolved.is_proven());
        assert!(after.resolve(&"Bar".parse().unwrap()).await.is_err(), "nothing was kept of it");
        let old = Cached::new(Down, &folder.0).max_age(Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(old.resolve(&service).await.is_err(), "it is too old");

        fs::write(folder.0.join("Foo.json"), "{").unwrap();
        assert!(Cached::new(Down, &folder.0).resolve(&service).await.is_err());
    }
}
