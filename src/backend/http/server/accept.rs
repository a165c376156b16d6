//! Accepts connections and owns them until the last one is closed.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Limits;
use super::problem::Refusal;
use super::stall::WriteTimeout;
use super::usage::{Activity, Usage};
use crate::error::Panic;
use crate::sync::event;
use crate::transport::{
    Budget, ConnectionSlot, ConnectionSlots, Entered, Listener, ReachedCap, Refusals, Stream,
    close_stuck_connections, is_out_of_files,
};

/// The largest head of a request, in bytes.
const MAX_HEADER: usize = 32 * 1024;
/// The largest read buffer of a connection, in bytes.
const MAX_BUFFER: usize = 64 * 1024;
/// The pause after a failed accept, doubled with each further failure.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long a refused connection that is told why may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection that is evicted may still take for a request that came meanwhile.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);
/// How often refusals that are not logged yet are looked for.
const LOG_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Serves `listener` until `shutdown` ends and its connections with it. At most `max_refusing` refused
/// connections are told why at once; more are closed. `budget` is what their requests and answers may hold.
pub(super) async fn run<H, F>(
    mut listener: Listener,
    shutdown: impl Future<Output = ()>,
    limits: &Limits,
    max_refusing: usize,
    refusals: Arc<Refusals>,
    budget: Arc<Budget>,
    handle: H,
) where
    H: Fn(Request<Incoming>, Stopping) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let (stop, stopping) = watch::channel(false);
    let stopping = Stopping(stopping);
    let slots = ConnectionSlots::new(limits.max_connections, limits.max_connections_per_host);
    let mut closing = pin!(close_stuck_connections(&budget, &slots, &refusals));
    let refusing = Refusing {
        refusals: Arc::clone(&refusals),
        permits: Arc::new(Semaphore::new(max_refusing)),
    };
    let mut log_check = interval(LOG_CHECK_INTERVAL);
    log_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connections = JoinSet::new();
    let mut pause = MIN_PAUSE;
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            _ = log_check.tick() => {
                refusing.refusals.log_due();
                continue;
            }
            () = &mut closing => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                pause = MIN_PAUSE;
                let host = stream.peer().account();
                let (limits, handle) = (limits.clone(), handle.clone());
                let (stopping, refusing) = (stopping.clone(), refusing.clone());
                match slots.enter_or_wait(&host, Usage::new(&host)) {
                    Entered::Now(slot) => {
                        connections.spawn(connection(stream, slot, limits, handle, stopping));
                    }
                    Entered::Later(waiting) => {
                        connections.spawn(async move {
                            match waiting.slot().await {
                                Ok(slot) => {
                                    connection(stream, slot, limits, handle, stopping).await
                                }
                                Err(cap) => {
                                    if let Some(permit) = refusing.begin(&host, cap) {
                                        refuse(stream, cap, permit).await;
                                    }
                                }
                            }
                        });
                    }
                    Entered::Refused(cap) => {
                        if let Some(permit) = refusing.begin(&host, cap) {
                            connections.spawn(refuse(stream, cap, permit));
                        }
                    }
                }
            }
            Err(error) if is_of_one_connection(&error) => {
                event!(DEBUG, %error, "a connection ended before it was accepted");
            }
            Err(error) if is_out_of_files(&error) && slots.evict_one() => {
                refusing.refusals.count("too many open files", &Arc::from(""));
                // Until the file is closed.
                tokio::time::sleep(MIN_PAUSE).await;
            }
            Err(error) => {
                event!(WARN, %error, ?pause, "accepting failed");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(limits.grace, drained).await.is_err() {
        event!(WARN, connections = connections.len(), "cut: the grace is over");
    }
    connections.shutdown().await;
}

/// Tells a request that the server is stopping.
#[derive(Clone)]
pub(super) struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// Ends once the server stops. Dropping it is safe.
    pub(super) async fn wait(mut self) {
        // An error means that the server is gone, which is no reason to wait longer.
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }
}

async fn connection<H, F>(
    stream: Stream,
    slot: ConnectionSlot<Usage>,
    limits: Limits,
    handle: H,
    stopping: Stopping,
) where
    H: Fn(Request<Incoming>, Stopping) -> F,
    F: Future<Output = Response<Full<Bytes>>>,
{
    // The slot is given back when the connection ends, however it ends.
    let usage = Arc::clone(slot.connection());
    // It may have waited until now.
    usage.begin(Activity::Opening);
    let host = Arc::clone(&stream.peer().host);
    // A handshake of TLS counts as a header does: whoever is slow at it costs his own place alone.
    let established = tokio::select! {
        established = tokio::time::timeout(limits.header_timeout, stream.establish()) => established,
        // Nothing was asked yet.
        () = stopping.clone().wait() => return,
        () = usage.evicted.notified() => return,
    };
    let stream = match established {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            event!(DEBUG, host = &*host, %error, "no connection was established");
            return;
        }
        Err(_) => return,
    };
    let peer = stream.peer().clone();
    let service = service_fn(|mut request: Request<Incoming>| {
        let usage = Arc::clone(slot.connection());
        usage.begin(Activity::Working);
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(Arc::clone(&usage));
        let answer = handle(request, stopping.clone());
        let slot = &slot;
        async move {
            let mut answer = answer.await;
            if slot.is_nearly_full() {
                // Told beforehand it costs nobody a request, as closing an idle connection may.
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            usage.begin(Activity::Sending);
            Ok::<_, Infallible>(answer)
        }
    });
    let stream = WriteTimeout::new(stream, limits.write_timeout, Arc::clone(&usage));
    let connection = http1::Builder::new()
        // Without a timer the header timeout would be silently dead.
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(MAX_HEADER)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.clone().wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = usage.evicted.notified() => {
            if usage.is_stuck() || usage.lingers() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            // A request that came at the same moment is still answered.
            match timeout(EVICTION_TIMEOUT, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        event!(DEBUG, ?peer, %error, "connection ended");
    }
}

/// What connections are refused with.
#[derive(Clone)]
struct Refusing {
    refusals: Arc<Refusals>,
    /// One for each refused connection that is told why.
    permits: Arc<Semaphore>,
}

impl Refusing {
    /// Counts a refused connection. `None`: it is closed, since too many are being told why.
    fn begin(&self, host: &Arc<str>, cap: ReachedCap) -> Option<OwnedSemaphorePermit> {
        self.refusals.count(cap.reason(), host);
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }
}

/// Answers the first request of a refused connection with the reason, and closes it.
async fn refuse(stream: Stream, cap: ReachedCap, permit: OwnedSemaphorePermit) {
    let _permit = permit;
    let answered = async {
        let mut stream = stream.establish().await?;
        let mut rest = vec![0; 4096];
        // A client that has asked nothing yet would take an answer for one to its next request.
        if stream.read(&mut rest).await? == 0 {
            return Ok(());
        }
        stream.write_all(&Refusal::too_many_connections(cap).into_bytes()).await?;
        stream.flush().await?;
        stream.shutdown().await?;
        // Unread bytes would reset the connection and destroy the answer.
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whoever is slower is closed, and after an error nobody waits.
    let _ = timeout(REFUSAL_TIMEOUT, answered).await;
}

fn report(ended: Result<(), JoinError>) {
    if let Some(panic) = ended.err().and_then(Panic::of_task) {
        event!(ERROR, panic = panic.text(), "a request panicked: its connection is closed");
    }
}

/// Whether an accept failed because of its connection alone, so that the next may follow at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}
