//! Follows a service by watches that fire once and are set again.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use zookeeper_client::{Client, Error, EventType, OneshotWatcher, SessionState, Stat};

use super::Inner;
use super::failure::Failure;
use super::listing::read;
use crate::call::until;
use crate::discovery::{Update, UpdateSender};
use crate::instance::ServiceName;

/// The least time between two lists: a service that starts in a hundred copies is told in few of them.
const PACE: Duration = Duration::from_millis(20);
/// How long a watch outlives its connection. Until then it is set again by itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// How soon the list is read again while it proves nothing.
const WARMING_LIST: Duration = Duration::from_secs(5);

/// Sends the list at first and after each change, until nobody listens or the session is lost.
pub(super) async fn feed(inner: Arc<Inner>, service: ServiceName, updates: UpdateSender) {
    if let Err(failure) = follow(&inner, &service, &updates).await {
        updates.send(Err(failure.into())).await;
    }
}

async fn follow(
    inner: &Inner,
    service: &ServiceName,
    updates: &UpdateSender,
) -> Result<(), Failure> {
    let client = inner.looking.client(inner.timeout).await?;
    let folder = inner.paths.service(service);
    loop {
        let asked = Instant::now();
        let listed = async {
            let (children, watcher) = watched(&client, &folder).await?;
            let resolved = read(inner, &client, service, children).await?;
            Ok::<_, Failure>((resolved, watcher))
        };
        let listed = timeout(inner.timeout, listed).await;
        let (resolved, watcher) = listed.map_err(|_| Failure::late(inner.timeout))??;
        let again = resolved.warming.then(|| Instant::now() + WARMING_LIST);
        if !updates.send(Ok(Update::Set(resolved))).await {
            return Ok(());
        }
        // Polled in place: dropping it takes the watch back.
        let changed = pin!(watcher.changed());
        tokio::select! {
            event = changed => if event.event_type == EventType::Session {
                return Err(Failure::Unavailable("the session with ZooKeeper has ended".to_owned()));
            },
            () = cut_off(&client) => {
                return Err(Failure::Unavailable("the connection to ZooKeeper is lost".to_owned()));
            }
            () = until(again) => {}
        }
        until(Some(asked + PACE)).await;
    }
}

/// The children with a watch on them; `None` with a watch on their parent, which is not there.
async fn watched(
    client: &Client,
    folder: &str,
) -> Result<(Option<(Vec<String>, Stat)>, OneshotWatcher), Failure> {
    loop {
        match client.get_and_watch_children(folder).await {
            Ok((names, stat, watcher)) => return Ok((Some((names, stat)), watcher)),
            Err(Error::NoNode) => {}
            Err(error) => return Err(error.into()),
        }
        // Else it was made just now.
        if let (None, watcher) = client.check_and_watch_stat(folder).await? {
            return Ok((None, watcher));
        }
    }
}

/// Ends once the client has been disconnected for a while: a watch is silent until then.
async fn cut_off(client: &Client) {
    let mut states = client.state_watcher();
    let mut state = states.peek_state();
    loop {
        if state.is_terminated() {
            return;
        }
        if state != SessionState::SyncConnected {
            tokio::select! {
                changed = states.changed() => state = changed,
                () = sleep(PATIENCE) => return,
            }
            continue;
        }
        state = states.changed().await;
    }
}
