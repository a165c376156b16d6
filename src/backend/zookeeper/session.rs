//! A session with ZooKeeper, and the next one if it is lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use zookeeper_client::{Client, SessionState};

use super::failure::Failure;
use crate::sync::Mutex;

/// How long a session that is disconnected is waited for, once a new one cannot be had at once.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Session {
    /// `host:port,host:port`.
    servers: String,
    /// How long the server keeps it while it hears nothing.
    timeout: Duration,
    /// How long one server may take to let it in.
    share: Duration,
    current: Mutex<Option<Connected>>,
    /// One attempt to connect at a time.
    connecting: Semaphore,
}

/// A client, and whether its runtime has ended: its session ends with that, but its state stays as it
/// was.
#[derive(Clone)]
struct Connected {
    client: Client,
    probe: Arc<RuntimeProbe>,
}

/// A task that does nothing and ends with its runtime.
struct RuntimeProbe(AbortHandle);

impl Connected {
    fn new(client: Client) -> Self {
        let task = tokio::spawn(std::future::pending::<()>());
        Self { client, probe: Arc::new(RuntimeProbe(task.abort_handle())) }
    }

    fn is_over(&self) -> bool {
        self.client.state().is_terminated() || self.probe.0.is_finished()
    }
}

impl Drop for RuntimeProbe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    pub(super) fn new(servers: String, timeout: Duration, share: Duration) -> Self {
        Self { servers, timeout, share, current: Mutex::new(None), connecting: Semaphore::new(1) }
    }

    /// A client that is connected, within `limit`.
    ///
    /// One that is disconnected comes back by itself if its server does, with its session and its nodes.
    /// A server that came back without what it had never takes it back, which the client finds out only
    /// after its session's time. So a new session is tried meanwhile, and whichever stands first is used.
    pub(super) async fn client(&self, limit: Duration) -> Result<Client, Failure> {
        if let Some(client) = self.connected() {
            return Ok(client);
        }
        timeout(limit, self.connect()).await.map_err(|_| Failure::late(limit))?
    }

    /// Ends the session, and with it the nodes that it keeps.
    pub(super) fn close(&self) {
        let ended = self.current.lock().take();
        // Under no lock: a client has a task and events of its own.
        drop(ended);
    }

    fn connected(&self) -> Option<Client> {
        let current = self.current.lock();
        let stands =
            |it: &&Connected| !it.is_over() && it.client.state() == SessionState::SyncConnected;
        current.as_ref().filter(stands).map(|it| it.client.clone())
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let _one = self.connecting.acquire().await;
        if let Some(client) = self.connected() {
            return Ok(client);
        }
        let current = self.current.lock().clone();
        let current = current.filter(|it| !it.is_over()).map(|it| it.client);
        let connector = Client::connector()
            .with_session_timeout(self.timeout)
            // More than half of the session's would not count.
            .with_connection_timeout(self.share.min(self.timeout / 2))
            .with_fail_eagerly();
        let fresh = tokio::select! {
            biased;
            client = back(current.clone()) => return Ok(client),
            fresh = connector.connect(&self.servers) => fresh,
        };
        match fresh {
            Ok(client) => {
                let former = self.current.lock().replace(Connected::new(client.clone()));
                drop(former);
                Ok(client)
            }
            Err(error) => timeout(PATIENCE, back(current)).await.map_err(|_| error.into()),
        }
    }
}

/// The client once it is connected again; never, if that is over.
async fn back(client: Option<Client>) -> Client {
    let Some(client) = client else { return std::future::pending().await };
    let mut states = client.state_watcher();
    let mut state = states.peek_state();
    while state != SessionState::SyncConnected {
        if state.is_terminated() {
            return std::future::pending().await;
        }
        state = states.changed().await;
    }
    client
}
