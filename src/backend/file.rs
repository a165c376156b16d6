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

mod parse;

use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use self::parse::{Lists, parse};
use crate::discovery::{
    Discovery, DiscoveryError, DiscoveryErrorKind, Resolved, Update, UpdateStream,
};
use crate::instance::ServiceName;
use crate::sync::{Mutex, event};

/// The largest file that is read, in bytes.
pub const MAX_LEN: u64 = 16 * 1024 * 1024;

/// The coarsest time stamps of a file system: two changes within it may look the same.
#[cfg(unix)]
const COARSEST_CLOCK: Duration = Duration::from_secs(2);

/// A file that lists instances by service: TOML if its name ends with `.toml`, in any case, else JSON.
///
/// It is looked at once a second, by modification time, change time, length and inode, and by its content
/// for 2 s after a change or where the system has no change time: replacing it by a rename is seen, and so is
/// a change in place that keeps length and modification time.
///
/// An entry that cannot be read is left out, with a warning that names service, line and field, and the
/// service's list is incomplete. If no entry of a service can be read, that is an error, and so is a file that
/// does not parse or has a key twice: clients keep the list they have. Under a name that is no service's, what
/// follows may be any service's: each list is then incomplete, and that of a service without entries an error.
///
/// Write the file elsewhere and rename it: of a file that is written in place a part may be read, and that part
/// may be valid.
///
/// Its lists prove nothing: a file that was emptied by mistake looks like any other. What vanishes while
/// more than half stays is gone at once, and all else after 15 s.
#[derive(Clone, Debug)]
pub struct FileList {
    path: Arc<Path>,
    interval: Duration,
    /// The state of the file whose faults were logged last.
    logged: Arc<Mutex<Option<Mark>>>,
}

/// What identifies a state of a file without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    modified: Option<SystemTime>,
    len: u64,
    inode: Inode,
}

/// A file as it was read.
#[derive(Clone, Copy, Debug)]
struct Seen {
    mark: Mark,
    content_hash: u64,
    /// Whether every later change gives another mark.
    is_settled: bool,
}

impl FileList {
    /// The list in this file, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into().into(), interval: Duration::from_secs(1), logged: Arc::default() }
    }

    /// Sets how often it is looked at. Default: 1 s.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(Duration::from_millis(1));
        self
    }

    async fn read(&self, service: &ServiceName) -> Result<(Seen, Resolved), DiscoveryError> {
        let (path, service) = (Arc::clone(&self.path), service.clone());
        // A file may be on a machine far away.
        let read = spawn_blocking(move || read(&path, &service)).await;
        let (seen, resolved) =
            read.map_err(|error| DiscoveryError::unavailable(error.to_string()))??;
        // Once for each state of the file, and not for each service that is read from it.
        let is_new = self.logged.lock().replace(seen.mark) != Some(seen.mark);
        if is_new {
            for reason in &resolved.unread {
                event!(WARN, reason = &**reason, "an entry of the file cannot be read");
            }
        }
        Ok((seen, resolved))
    }

    /// The same state, looked at again; `None`: it has changed.
    async fn look(&self, seen: Seen) -> Option<Seen> {
        let path = Arc::clone(&self.path);
        spawn_blocking(move || seen.again(&path)).await.ok()?
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
                let mut seen = match this.read(&service).await {
                    Ok((seen, resolved)) => {
                        if !updates.send(Ok(Update::Set(resolved))).await {
                            return;
                        }
                        seen
                    }
                    Err(error) => {
                        updates.send(Err(error)).await;
                        return;
                    }
                };
                while let Some(again) = this.look(seen).await {
                    seen = again;
                    sleep(this.interval).await;
                }
            }
        }))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        let path = Arc::clone(&self.path);
        let read = spawn_blocking(move || services(&path)).await;
        read.map_err(|error| DiscoveryError::unavailable(error.to_string()))?
    }
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok();
        Self { modified, len: metadata.len(), inode: Inode::of(metadata) }
    }
}

impl Seen {
    fn new(metadata: &Metadata, now: SystemTime, content: &[u8]) -> Self {
        let inode = Inode::of(metadata);
        let is_settled = inode.is_settled(now);
        Self { mark: Mark::of(metadata), content_hash: hash(content), is_settled }
    }

    /// The same, looked at again; `None`: it has changed, or cannot be looked at.
    fn again(self, path: &Path) -> Option<Self> {
        let (now, metadata) = (SystemTime::now(), fs::metadata(path).ok()?);
        if Mark::of(&metadata) != self.mark {
            return None;
        }
        if self.is_settled {
            return Some(self);
        }
        let seen = Self::new(&metadata, now, &content(path).ok()?);
        (seen.content_hash == self.content_hash).then_some(seen)
    }
}

/// The identity of a file, and when its content or metadata changed last.
#[cfg(unix)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
    /// The change time in seconds and nanoseconds since 1970, which no program can set.
    changed: (i64, i64),
}

#[cfg(unix)]
impl Inode {
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Self { device: metadata.dev(), number: metadata.ino(), changed }
    }

    fn is_settled(self, now: SystemTime) -> bool {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let age = i128::from(since.as_secs()) - i128::from(self.changed.0);
        age > i128::from(COARSEST_CLOCK.as_secs())
    }
}

/// There is no inode and no change time here: the content is compared.
#[cfg(not(unix))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inode;

#[cfg(not(unix))]
impl Inode {
    fn of(_: &Metadata) -> Self {
        Self
    }

    fn is_settled(self, _: SystemTime) -> bool {
        false
    }
}

fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}

/// A service's list, and what of the file could not be read: first what may be this service's.
fn read(path: &Path, service: &ServiceName) -> Result<(Seen, Resolved), DiscoveryError> {
    let (seen, mut lists) = read_all(path)?;
    let located = |faults: Vec<String>| -> Vec<String> {
        faults.into_iter().map(|fault| format!("{}: {fault}", path.display())).collect()
    };
    let (ours, others) =
        (located(lists.faults_of(service)), located(lists.faults_of_others(service)));
    let list = lists.services.remove(service);
    let is_unknown = match &list {
        Some(list) => list.instances.is_empty() && list.has_faults(),
        // A name that is none may be this one, misspelt.
        None => !ours.is_empty(),
    };
    if is_unknown {
        return Err(DiscoveryError::new(DiscoveryErrorKind::Invalid, ours.join("; ")));
    }
    let instances = list.unwrap_or_default().instances;
    let resolved = Resolved::new(instances).complete(ours.is_empty());
    Ok((seen, resolved.unread(ours.into_iter().chain(others))))
}

/// The services of which there is an entry, readable or not.
fn services(path: &Path) -> Result<Vec<ServiceName>, DiscoveryError> {
    let (_, lists) = read_all(path)?;
    let (services, nameless) = lists.offered();
    if services.is_empty() && !nameless.is_empty() {
        return Err(invalid(path, nameless.join("; ")));
    }
    Ok(services)
}

fn read_all(path: &Path) -> Result<(Seen, Lists), DiscoveryError> {
    // Before the content: a change in between is then seen at the next look.
    let now = SystemTime::now();
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, error))?;
    if !metadata.is_file() {
        return Err(invalid(path, "it is no file"));
    }
    let content = content(path)?;
    let seen = Seen::new(&metadata, now, &content);
    let is_toml = path.extension().is_some_and(|name| name.eq_ignore_ascii_case("toml"));
    Ok((seen, parse(content, is_toml).map_err(|reason| invalid(path, reason))?))
}

fn content(path: &Path) -> Result<Vec<u8>, DiscoveryError> {
    let mut content = Vec::new();
    let file = fs::File::open(path).map_err(|error| unreadable(path, error))?;
    file.take(MAX_LEN + 1).read_to_end(&mut content).map_err(|error| unreadable(path, error))?;
    if content.len() as u64 > MAX_LEN {
        return Err(invalid(path, format!("more than {MAX_LEN} bytes")));
    }
    Ok(content)
}

fn unreadable(path: &Path, error: io::Error) -> DiscoveryError {
    DiscoveryError::unavailable(format!("{}: {error}", path.display())).because(error)
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> DiscoveryError {
    let message = format!("{}: {reason}", path.display());
    DiscoveryError::new(DiscoveryErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Instance;

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
    async fn what_is_no_list_names_the_file_and_the_line() {
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
            let message = error.message();
            assert!(message.contains(name) && message.contains("line 1"), "{error}");
        }
        let error = FileList::new("/nowhere/at.all").resolve(&service()).await.unwrap_err();
        assert_eq!(error.kind(), DiscoveryErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn a_bad_entry_makes_its_services_list_incomplete_and_no_others() {
        let toml = "\u{feff}Foo = [\"tcp@a:1\"]\n\
            \"shop.Cart\" = [\"tcp@a:1\", \"nonsense\", { address = \"tcp@b:2\", wieght = 3 }, 7]";
        let json = "\u{feff}{\"Foo\": [\"tcp@a:1\"],\n\
            \"shop.Cart\": [\"tcp@a:1\", \"nonsense\", {\"address\": \"tcp@b:2\", \"wieght\": 3}, 7]}";
        for (name, content) in [("partial.TOML", toml), ("partial.json", json)] {
            let file = Written::new(name, content);
            let list = FileList::new(&file.0);
            let ours = list.resolve(&service()).await.unwrap();
            assert_eq!(ours.instances, [Instance::at("tcp@a:1".parse().unwrap())], "{name}");
            assert!(!ours.complete, "{name}");
            let other = list.resolve(&"Foo".parse().unwrap()).await.unwrap();
            assert_eq!((other.instances.len(), other.complete), (1, true), "{name}");
            for resolved in [ours, other] {
                let told = resolved.unread.join("\n");
                assert_eq!(resolved.unread.len(), 3, "{told}");
                assert!(told.contains("shop.Cart: line 2: wieght: "), "{told}");
            }
            assert_eq!(list.services().await.unwrap().len(), 2, "{name}");
        }
    }

    /// Writes in place, and sets the time of the last change back.
    fn overwrite(file: &Written, content: &str) {
        fs::write(&file.0, content).unwrap();
        let file = fs::File::options().write(true).open(&file.0).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_keeps_length_time_and_inode_is_told() {
        let file = Written::new("kept.toml", "");
        overwrite(&file, "\"shop.Cart\" = [\"tcp@a:1\"]");
        let mut updates = FileList::new(&file.0).watch(&service()).unwrap();
        let Some(Ok(Update::Set(before))) = updates.next().await else { panic!("a list") };
        overwrite(&file, "\"shop.Cart\" = [\"tcp@b:2\"]");
        let next = tokio::time::timeout(Duration::from_secs(3), updates.next());
        let Ok(Some(Ok(Update::Set(after)))) = next.await else { panic!("no list in 3 s") };
        assert_ne!(before.instances, after.instances);
    }

    #[cfg(unix)]
    #[test]
    fn the_change_time_alone_tells_of_a_change_and_so_does_the_content() {
        let file = Written::new("ctime.toml", "");
        overwrite(&file, "A = []");
        let (before, _) = read_all(&file.0).unwrap();
        let settled = Seen { is_settled: true, ..before };
        assert!(settled.again(&file.0).is_some());
        // The clock of the file system goes by ticks of some milliseconds.
        let is_seen = |_| {
            overwrite(&file, "B = []");
            settled.again(&file.0).is_none()
        };
        assert!((0..100_000).any(is_seen));

        let (after, _) = read_all(&file.0).unwrap();
        let fresh = Seen { is_settled: false, ..after };
        assert!(fresh.again(&file.0).is_some());
        let within_a_tick = Seen { content_hash: before.content_hash, ..fresh };
        assert!(within_a_tick.again(&file.0).is_none());
    }
}
