//! Accepts connections and owns them until the last one is closed.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use super::Limits;
use super::meter::{Meter, Share};
use super::stall::WriteTimeout;
use crate::error::Panic;
use crate::sync::event;
use crate::transport::{Listener, Stream};

/// The largest head of a request, in bytes.
const MAX_HEADER: usize = 32 * 1024;
/// The largest read buffer of a connection, in bytes.
const MAX_BUFFER: usize = 64 * 1024;
/// The pause after a failed accept, doubled with each further failure.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Serves `listener` until `shutdown` ends and its connections with it.
pub(super) async fn run<H, F>(
    mut listener: Listener,
    shutdown: impl Future<Output = ()>,
    limits: &Limits,
    handle: H,
) where
    H: Fn(Request<Incoming>, Stopping) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let (stop, stopping) = watch::channel(false);
    let stopping = Stopping(stopping);
    let slots = Meter::new(limits.max_connections, limits.max_connections_per_host);
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
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                pause = MIN_PAUSE;
                let Some(slot) = slots.take(&stream.peer().account()) else {
                    event!(DEBUG, peer = ?stream.peer(), "connection refused: too many");
                    continue;
                };
                let (limits, handle) = (limits.clone(), handle.clone());
                connections.spawn(connection(stream, slot, limits, handle, stopping.clone()));
            }
            Err(error) if is_of_one_connection(&error) => {
                event!(DEBUG, %error, "a connection ended before it was accepted");
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
    slot: Share,
    limits: Limits,
    handle: H,
    stopping: Stopping,
) where
    H: Fn(Request<Incoming>, Stopping) -> F,
    F: Future<Output = Response<Full<Bytes>>>,
{
    // Given back when the connection ends, however it ends.
    let _slot = slot;
    let host = Arc::clone(&stream.peer().host);
    // A handshake of TLS counts as a header does: whoever is slow at it costs his own place alone.
    let established = tokio::select! {
        established = tokio::time::timeout(limits.header_timeout, stream.establish()) => established,
        // Nothing was asked yet.
        () = stopping.clone().wait() => return,
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
        request.extensions_mut().insert(peer.clone());
        let answer = handle(request, stopping.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(WriteTimeout::new(stream, limits.write_timeout));
    let connection = http1::Builder::new()
        // Without a timer the header timeout would be silently dead.
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(MAX_HEADER)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.clone().wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        event!(DEBUG, ?peer, %error, "connection ended");
    }
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
