//! The way to one endpoint: connections that are dialled when needed and replaced when broken.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::Release};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{AbortHandle, coop};
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{Closer, ConnectionCell};
use super::outcome::outcome;
use super::{Connection, ConnectionSettings};
use crate::call::{Call, Reply, after, has_runtime, no_runtime};
use crate::discovery::{Endpoint, Outcome};
use crate::error::{Error, Execution, Fate, Kind};
use crate::sync::{Mutex, assert_unlocked, event};
use crate::transport::{Transport, dial};

/// The way to one endpoint, shared by all calls to it: one connection, or as many as set.
///
/// A connection is dialled by the first call that needs it, one dial at a time. After a failed one
/// the next waits, and until then calls fail at once without having been sent.
pub struct Channel {
    inner: Arc<Inner>,
    next: AtomicUsize,
}

struct Inner {
    endpoint: Endpoint,
    transport: Arc<dyn Transport>,
    settings: ConnectionSettings,
    lines: Vec<Line>,
    /// Counts connections that took the place of another.
    replaced: Arc<AtomicU64>,
    /// Checked and set under each line's lock: a dial that ends later leaves nothing behind.
    closed: AtomicBool,
}

/// One connection's place.
#[derive(Default)]
struct Line {
    /// Read without the lock, set under it.
    connection: ConnectionCell,
    dial: Mutex<Option<Dial>>,
    /// Those that lost this place while they were silent, and have calls left.
    silent: Mutex<Vec<Closer>>,
}

/// A dial in flight, or the last one.
struct Dial {
    /// `None` until it ended.
    result: watch::Receiver<Option<Result<Connection, Arc<str>>>>,
    task: AbortHandle,
}

impl Channel {
    /// A way to `endpoint`, not yet dialled.
    pub fn new(
        endpoint: Endpoint,
        transport: Arc<dyn Transport>,
        settings: ConnectionSettings,
    ) -> Self {
        Self::counting(endpoint, transport, settings, Arc::default())
    }

    /// The same; each connection that takes the place of another is counted.
    pub(crate) fn counting(
        endpoint: Endpoint,
        transport: Arc<dyn Transport>,
        settings: ConnectionSettings,
        replaced: Arc<AtomicU64>,
    ) -> Self {
        let lines = (0..settings.connections.max(1)).map(|_| Line::default()).collect();
        let inner = Arc::new(Inner {
            endpoint,
            transport,
            settings,
            lines,
            replaced,
            closed: AtomicBool::new(false),
        });
        Self { inner, next: AtomicUsize::new(0) }
    }

    /// The endpoint it leads to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Sends a call that must be answered before `deadline`, dialling first if need be. It counts in
    /// the endpoint's statistics.
    ///
    /// Dropping the future sends a cancel; a dial goes on for the others that wait for it.
    ///
    /// # Errors
    /// Of every class; an endpoint that cannot be reached is `Unavailable`, not sent.
    pub async fn exchange(&self, call: &Call, deadline: Instant) -> Result<Reply, Error> {
        let answer = self.exchange_at(call, Instant::now(), deadline).await;
        if answer.is_err() {
            // A loop of calls that fail at once lets other tasks run.
            coop::consume_budget().await;
        }
        answer
    }

    /// [`exchange`](Self::exchange) at a time that was read already. What is rare has a box of its
    /// own, so that its room is not carried by every call.
    pub(crate) async fn exchange_at(
        &self,
        call: &Call,
        now: Instant,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let at = self.line();
        let Some(connection) = self.standing(at) else {
            return Box::pin(self.exchange_over_new(at, call, deadline)).await;
        };
        match connection.exchange_at(call, now, deadline).await {
            // Its server drained the connection, for being idle perhaps, or another took its place, before
            // the call was sent.
            Err(error) if error.execution() == Execution::NotSent && connection.is_leaving() => {
                Box::pin(self.exchange_over_new(at, call, deadline)).await
            }
            answer => answer,
        }
    }

    /// How many connections there are at most.
    pub(crate) fn lines(&self) -> usize {
        self.inner.lines.len()
    }

    /// The connection that stands at a place, if one does.
    pub(crate) fn standing(&self, at: usize) -> Option<Connection> {
        self.inner.lines.get(at)?.connection.open()
    }

    /// Sends a call over a connection that is dialled first, unless one stands by now.
    pub(crate) async fn exchange_over_new(
        &self,
        at: usize,
        call: &Call,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let connection = self.counted_connection(at, deadline).await?;
        match connection.exchange(call, deadline).await {
            // A new one may be drained as well; once more, and not for ever.
            Err(error) if error.execution() == Execution::NotSent && connection.is_leaving() => {
                self.counted_connection(at, deadline).await?.exchange(call, deadline).await
            }
            answer => answer,
        }
    }

    /// A connection for a call, which counts as in flight while it waits for it.
    async fn counted_connection(&self, at: usize, deadline: Instant) -> Result<Connection, Error> {
        let endpoint = &self.inner.endpoint;
        let waiting = endpoint.count(Instant::now()).until(deadline);
        let connection = self.connection_of(at, deadline, false).await;
        let ended = match &connection {
            // From here on the exchange counts it.
            Ok(_) => Outcome::Abandoned,
            Err(error) => outcome(error, endpoint),
        };
        waiting.end(ended, Instant::now());
        connection
    }

    /// Waits until the endpoint answers a ping, dialling first if need be, for at most until
    /// `deadline`.
    ///
    /// # Errors
    /// `Unavailable`, not sent, if it does not.
    pub async fn ping(&self, deadline: Instant) -> Result<(), Error> {
        if !has_runtime() {
            return Err(no_runtime(Fate::NoConnection));
        }
        let suspect = |line: &Line| line.connection.load().filter(Connection::is_suspect);
        let is_suspect = |line: &Line| suspect(line).is_some();
        let at = self.inner.lines.iter().position(is_suspect).unwrap_or_else(|| self.line());
        let suspect = suspect(&self.inner.lines[at]);
        let answered = async {
            match suspect {
                // A network that was cut may take long to resend what was lost: a new connection
                // stands sooner, and takes the place of this one.
                Some(silent) => tokio::select! {
                    // If it ends, for another has its place by now, the new one is what counts.
                    Ok(()) = silent.ping() => Ok(()),
                    replaced = self.inner.replace(at) => replaced.map_err(|why| why.to_string()),
                },
                None => {
                    let connection = self.connection_of(at, deadline, true).await;
                    let connection = connection.map_err(|error| error.message().to_owned())?;
                    connection.ping().await.map_err(|error| error.to_string())
                }
            }
        };
        match timeout_at(deadline, answered).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(no_connection(&format!("no answer to a ping: {why}"))),
            Err(_) => Err(no_connection("no answer to a ping in time")),
        }
    }

    /// Closes all connections: what is in flight fails by its class.
    pub fn close(&self) {
        self.inner.closed.store(true, Relaxed);
        for line in &self.inner.lines {
            let mut dial = line.dial.lock();
            let last = dial.take();
            let connection = line.connection.replace(None);
            let silent = std::mem::take(&mut *line.silent.lock());
            drop(dial);
            // Under no lock: a connection that ends wakes its callers.
            if let Some(last) = last {
                last.task.abort();
            }
            if let Some(connection) = connection {
                connection.close();
            }
            silent.iter().for_each(Closer::close);
        }
    }

    /// Whose turn it is.
    pub(crate) fn line(&self) -> usize {
        match self.inner.lines.len() {
            1 => 0,
            n => self.next.fetch_add(1, Relaxed) % n,
        }
    }

    /// `is_probe`: it waits for a dial under way, whoever started it.
    async fn connection_of(
        &self,
        at: usize,
        deadline: Instant,
        is_probe: bool,
    ) -> Result<Connection, Error> {
        let (mut result, former) = {
            let line = &self.inner.lines[at];
            let mut last = line.dial.lock();
            if let Some(connection) = line.connection.open() {
                return Ok(connection);
            }
            if self.inner.closed.load(Relaxed) {
                return Err(no_connection("the client is closed"));
            }
            if !has_runtime() {
                return Err(no_runtime(Fate::NoConnection));
            }
            let (stats, now) = (self.inner.endpoint.stats(), Instant::now());
            let has_failed = stats.connect_failures() > 0;
            // A newer registration is dialled at once, whatever the dial of the older one waits for.
            let is_renewed = has_failed && stats.take_renewal();
            match &*last {
                // Only the call that dials again waits for it: the others have better to do.
                Some(dial) if dial.is_running() && has_failed && !is_renewed && !is_probe => {
                    return Err(no_connection("still trying to reconnect after a failure"));
                }
                Some(dial) if dial.is_running() && !is_renewed => (dial.result.clone(), None),
                _ => {
                    let is_early = stats.in_backoff(now);
                    if is_early && !is_renewed {
                        let why = last.as_ref().and_then(Dial::failure);
                        let why = why.or_else(|| line.connection.load()?.end());
                        let why = why.unwrap_or_default();
                        return Err(no_connection(&format!("waiting to reconnect: {why}")));
                    }
                    if has_failed && !is_early {
                        stats.put_off(after(now, self.inner.settings.connect_timeout));
                    }
                    let dial = Inner::dial(&self.inner, at, is_early);
                    (dial.result.clone(), last.replace(dial))
                }
            }
        };
        // Under no lock: a dial may hold the last handle of a connection, whose drop wakes callers.
        if let Some(former) = former {
            former.task.abort();
        }
        // Bound to a name: the guard of the watched value must go before the result.
        let patience = patience(deadline);
        let dialled = timeout_at(patience, result.wait_for(Option::is_some)).await;
        match dialled {
            Err(_) if patience < deadline => Err(no_connection("not connected in time")),
            Err(_) => Err(Error::new(
                Kind::DeadlineExceeded,
                Fate::NeverWritten,
                "deadline exceeded while connecting",
            )),
            Ok(Err(_)) if self.inner.closed.load(Relaxed) => {
                Err(no_connection("the client was closed"))
            }
            Ok(Err(_)) => Err(no_connection("the dial was given up, or its runtime has ended")),
            Ok(Ok(dialled)) => match &*dialled {
                Some(Ok(connection)) => Ok(connection.clone()),
                Some(Err(why)) => Err(no_connection(why)),
                None => Err(no_connection("the dial did not end")),
            },
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Dialling tasks hold `inner`, not the channel; connections end with their last call.
        for line in &self.inner.lines {
            let dial = line.dial.lock().take();
            // Under no lock: a dial may hold the last handle of a connection, whose drop wakes callers.
            if let Some(dial) = dial {
                dial.task.abort();
            }
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("address", &self.endpoint().instance().address).finish()
    }
}

impl Dial {
    /// Why it failed, if it did.
    fn failure(&self) -> Option<String> {
        match &*self.result.borrow() {
            Some(Err(why)) => Some(why.to_string()),
            _ => None,
        }
    }

    fn is_running(&self) -> bool {
        self.result.borrow().is_none() && self.result.has_changed().is_ok()
    }
}

impl Inner {
    /// `is_early`: a newer registration earned this dial, and its failure leaves the backoff as it is.
    fn dial(this: &Arc<Self>, at: usize, is_early: bool) -> Dial {
        let (done, result) = watch::channel(None);
        let inner = Arc::clone(this);
        let task = tokio::spawn(async move {
            let dialled = inner.connect().await;
            match &dialled {
                Ok(connection) => {
                    let line = &inner.lines[at];
                    let setting = line.dial.lock();
                    let is_closed = inner.closed.load(Relaxed);
                    let former = if is_closed { None } else { inner.set(at, connection) };
                    connection.stands(is_early);
                    drop(setting);
                    if is_closed {
                        connection.close();
                    }
                    // Under no lock: it may be the last handle.
                    drop(former);
                }
                Err(why) => {
                    let (stats, now) = (inner.endpoint.stats(), Instant::now());
                    if !(is_early && stats.in_backoff(now)) {
                        let wait = inner.settings.backoff(stats.connect_failures());
                        stats.connect_failed(after(now, wait));
                    }
                    event!(
                        DEBUG,
                        endpoint = %inner.endpoint.instance().address, why = &**why, is_early,
                        "cannot connect"
                    );
                }
            }
            // Nobody waits any more if this fails.
            let _ = done.send(Some(dialled));
        });
        Dial { result, task: task.abort_handle() }
    }

    /// Puts a connection into its place, whose lock is held, and takes out what was there.
    fn set(&self, at: usize, connection: &Connection) -> Option<Connection> {
        let before = self.lines[at].connection.replace(Some(connection));
        if let Some(before) = &before {
            // First: whoever sees the count sees that this one is no longer of use.
            before.retire();
            self.replaced.fetch_add(1, Release);
        }
        before
    }

    /// Puts a new connection in the place of a silent one, whose calls it keeps.
    async fn replace(&self, at: usize) -> Result<(), Arc<str>> {
        let fresh = self.connect().await?;
        let line = &self.lines[at];
        let setting = line.dial.lock();
        if self.closed.load(Relaxed) {
            drop(setting);
            fresh.close();
            return Err("the client was closed".into());
        }
        let silent = self.set(at, &fresh);
        let mut others = line.silent.lock();
        others.retain(|other| !other.is_gone());
        others.extend(silent.as_ref().map(Connection::closer));
        drop(others);
        drop(setting);
        fresh.stands(false);
        if let Some(silent) = silent {
            silent.replaced();
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, Arc<str>> {
        let address = &self.endpoint.instance().address;
        // A place that takes connections and shakes no hands is no better than one that takes none.
        let open = |_, stream| {
            Connection::open(stream, self.settings.clone(), Some(self.endpoint.clone()))
        };
        let connecting = async {
            assert_unlocked();
            let places = self.transport.resolve(address).await?;
            dial(&*self.transport, address, places, open).await
        };
        match timeout(self.settings.connect_timeout, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(format!("cannot connect: {error}").into()),
            Err(_) => {
                Err(format!("no connection within {:?}", self.settings.connect_timeout).into())
            }
        }
    }
}

/// How long a call waits for a dial: half of its time if that is long, so that another endpoint can
/// still be asked.
fn patience(deadline: Instant) -> Instant {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    if left > Duration::from_secs(1) { now + left / 2 } else { deadline }
}

fn no_connection(why: &str) -> Error {
    Error::new(Kind::Unavailable, Fate::NoConnection, why.to_owned())
}
