//! When was the process told to stop?

use std::io;

use tokio::sync::oneshot;

use crate::exit::Exit;
use crate::output;

/// SIGTERM and Ctrl-C. From its making on they no longer end the process by themselves.
#[derive(Debug)]
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes the signals over.
    pub(crate) fn new() -> Result<Self, Exit> {
        Self::install().map_err(|error| Exit::failed(format!("cannot wait for signals: {error}")))
    }

    #[cfg(unix)]
    fn install() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(not(unix))]
    fn install() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Returns at the next signal. Dropping the future loses none.
    #[cfg(unix)]
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Returns at the next signal. Dropping the future loses none.
    #[cfg(not(unix))]
    pub(crate) async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a signal to wait for, nobody tells it to stop.
            std::future::pending::<()>().await;
        }
    }
}

/// Serves until a first signal, which makes it drain; a second one ends it at once.
pub(crate) async fn serve_until_told<F, Fut>(mut signals: Signals, serve: F) -> Result<(), Exit>
where
    F: FnOnce(oneshot::Receiver<()>) -> Fut,
    Fut: Future<Output = io::Result<()>>,
{
    let (stop, stopped) = oneshot::channel();
    let serving = serve(stopped);
    tokio::pin!(serving);
    let failed = |error: io::Error| Exit::failed(format!("serving failed: {error}"));
    tokio::select! {
        ended = &mut serving => return ended.map_err(failed),
        () = signals.next() => {}
    }
    output::note("draining; a second signal ends it at once");
    // Nobody listens if serving has just ended, and then there is nothing to stop.
    let _ = stop.send(());
    tokio::select! {
        ended = &mut serving => ended.map_err(failed),
        () = signals.next() => Err(Exit::interrupted()),
    }
}
