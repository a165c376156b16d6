//! Cases: what a watch pushes, and that it is never silently dead.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::scene::{RECOVERY, Scene, instance};
use super::{Capability, Harness, LeftOut, Outcome};
use crate::discovery::{DiscoveryError, DiscoveryErrorKind, Update, UpdateStream};
use crate::instance::{Instance, InstanceId};

/// How long a watch that ended is left alone before it is opened again.
const PAUSE: Duration = Duration::from_millis(100);

/// The first item of a watch is the whole list, be it empty.
pub async fn watch_first_is_set(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("watch_first_is_set", harness);
    // A watch's first item is checked wherever one is opened.
    let empty = Watching::open(&mut scene).await?;
    if scene.has(Capability::Names) && !empty.seen.is_empty() {
        scene.fails("the first item of an unknown service's watch is an empty Set");
    }
    drop(empty);
    for n in 0..2 {
        scene.put(&instance(n)).await?;
    }
    scene.sees("what is put is seen", &[instance(0), instance(1)]).await;
    let watching = Watching::open(&mut scene).await?;
    if watching.seen.len() != 2 {
        scene.fails(format_args!("the first Set has all instances: {:?}", watching.seen));
    }
    scene.clear().await;
    Ok(())
}

/// Whatever joins, changes or leaves is told within the granularity.
pub async fn watch_sees_changes(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("watch_sees_changes", harness);
    scene.put(&instance(0)).await?;
    scene.sees("what is put is seen", &[instance(0)]).await;
    let mut watching = Watching::open(&mut scene).await?;
    let within = scene.granularity();
    let (first, second) = (instance(0), instance(1));

    scene.put(&second).await?;
    let both = |seen: &Seen| shows(seen, &first).is_some() && shows(seen, &second).is_some();
    watching.until(&scene, "a watch tells who joins", within, both).await;
    if scene.has(Capability::FullState) {
        scene.put(&instance(1).epoch(2).weight(9)).await?;
        let heavier = |seen: &Seen| shows(seen, &second).is_some_and(|one| one.weight == 9);
        watching.until(&scene, "a watch tells what changes", within, heavier).await;
    }
    scene.remove(&first).await?;
    let one = |seen: &Seen| seen.len() == 1 && shows(seen, &second).is_some();
    watching.until(&scene, "a watch tells who leaves", within, one).await;
    drop(watching);
    scene.clear().await;
    Ok(())
}

/// After the source was away and lost everything, the whole list comes again: on the same watch, or
/// on a new one after that has ended.
pub async fn watch_gap(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("watch_gap", harness);
    scene.put(&instance(0)).await?;
    scene.sees("what is put is seen", &[instance(0)]).await;
    let mut watching = Watching::open(&mut scene).await?;
    scene.kill().await?;
    scene.restart_empty().await;
    let new = instance(1);
    scene.put(&new).await?;
    let promise = "after a gap the list is set again, without what was lost";
    let replaced = |seen: &Seen| seen.len() == 1 && shows(seen, &new).is_some();
    watching.until(&scene, promise, RECOVERY, replaced).await;
    drop(watching);
    scene.clear().await;
    Ok(())
}

type Seen = BTreeMap<InstanceId, Instance>;

/// The instance at this one's address: a source may keep no ids.
fn shows<'a>(seen: &'a Seen, instance: &Instance) -> Option<&'a Instance> {
    seen.values().find(|one| one.address == instance.address)
}

/// A watch, and the list that its updates have made.
struct Watching {
    stream: UpdateStream,
    /// No item has come yet.
    fresh: bool,
    seen: Seen,
}

/// What came of waiting for an item.
enum Item {
    Update(Update),
    /// The watch is over, with an error or without.
    Ended(Option<DiscoveryError>),
    /// Nothing came in the time given.
    Late,
}

impl Watching {
    /// Opens a watch and takes its first item.
    async fn open(scene: &mut Scene<'_>) -> Result<Self, LeftOut> {
        let Some(stream) = scene.discovery().watch(scene.service()) else {
            return Err(scene.leave_out("the source has no watch: it is polled").await);
        };
        let mut watching = Self { stream, fresh: true, seen: Seen::new() };
        let within = scene.granularity().max(Duration::from_secs(1));
        match watching.next(scene, within).await {
            Item::Update(update) => watching.apply(scene, update),
            Item::Ended(Some(error)) if error.kind() == DiscoveryErrorKind::Unsupported => {
                return Err(scene.leave_out("the source cannot watch for now: it is polled").await);
            }
            Item::Ended(error) => {
                scene.fails(format_args!("a watch begins with a Set, not its end: {error:?}"));
            }
            Item::Late => scene.fails(format_args!("a watch begins with a Set within {within:?}")),
        }
        Ok(watching)
    }

    /// Takes items until the list they make is as promised; a watch that ends is opened again.
    async fn until(
        &mut self,
        scene: &Scene<'_>,
        promise: &str,
        within: Duration,
        holds: impl Fn(&Seen) -> bool + Send,
    ) {
        let end = Instant::now() + within;
        while !holds(&self.seen) {
            match self.next(scene, end.saturating_duration_since(Instant::now())).await {
                Item::Update(update) => self.apply(scene, update),
                Item::Late => {
                    scene.fails(format_args!("{promise}; by now it told {:?}", self.seen));
                }
                Item::Ended(_) => {
                    scene.advance(PAUSE).await;
                    match scene.discovery().watch(scene.service()) {
                        Some(stream) => self.stream = stream,
                        None => scene.fails("a source that has a watch has it again"),
                    }
                    self.fresh = true;
                }
            }
        }
    }

    async fn next(&mut self, scene: &Scene<'_>, within: Duration) -> Item {
        tokio::select! {
            biased;
            item = self.stream.next() => match item {
                Some(Ok(update)) => Item::Update(update),
                Some(Err(error)) => Item::Ended(Some(error)),
                None => Item::Ended(None),
            },
            () = scene.advance(within) => Item::Late,
        }
    }

    fn apply(&mut self, scene: &Scene<'_>, update: Update) {
        if self.fresh && !matches!(update, Update::Set(_)) {
            scene.fails(format_args!("the first item of a watch is a Set, not {update:?}"));
        }
        self.fresh = false;
        match update {
            Update::Set(resolved) => {
                self.seen = resolved.instances.into_iter().map(|i| (i.id.clone(), i)).collect();
            }
            Update::Upsert(instances) => {
                self.seen.extend(instances.into_iter().map(|i| (i.id.clone(), i)));
            }
            Update::Remove(ids) => self.seen.retain(|id, _| !ids.contains(id)),
            Update::Gone => self.seen.clear(),
        }
    }
}
