//! Which certificates the next handshake uses, and when their files are looked at again.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::pem::Reader;
use super::settings::{Dialling, Settings};
use super::{ClientTls, ServerTls, TlsError};
use crate::call::after;
use crate::sync::{Deferred, Mutex, MutexGuard, event};

/// How long a handshake waits for the look at the files that it has begun. After that it uses what
/// was read before: a file system that hangs must not cost connections.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often files were read anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsStats {
    /// How often changed files were taken over since the start.
    pub reloads: u64,
    /// How often files could not be read or used, so that the last good ones stayed in use.
    pub failed_reloads: u64,
    /// Why the last look failed; `None` if it did not.
    pub last_error: Option<String>,
}

/// The certificates in use, of both sides.
pub(super) struct Certificates {
    client: Option<Side<ClientTls>>,
    server: Option<Side<ServerTls>>,
    every: Duration,
    /// When it is time to look at the files.
    next: Mutex<Instant>,
    /// Held while files are read, on a thread for blocking work: an older look must not overtake a
    /// newer one.
    looking: Mutex<()>,
    stats: Mutex<TlsStats>,
}

impl Certificates {
    /// Reads all files for the first time.
    pub(super) fn read(
        client: Option<ClientTls>,
        server: Option<ServerTls>,
        every: Duration,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            client: client.map(Side::read).transpose()?,
            server: server.map(Side::read).transpose()?,
            every,
            next: Mutex::new(after(Instant::now(), every)),
            looking: Mutex::new(()),
            stats: Mutex::default(),
        })
    }

    pub(super) fn can_dial(&self) -> bool {
        self.client.is_some()
    }

    pub(super) fn can_listen(&self) -> bool {
        self.server.is_some()
    }

    /// What to dial with. `None`: there is nothing.
    pub(super) async fn client(self: &Arc<Self>) -> Option<Arc<Dialling>> {
        self.look_if_due().await;
        self.client.as_ref().map(|side| side.current.load_full())
    }

    /// What to listen with. `None`: there is nothing.
    pub(super) async fn server(self: &Arc<Self>) -> Option<Arc<ServerConfig>> {
        self.look_if_due().await;
        self.server.as_ref().map(|side| side.current.load_full())
    }

    /// Reads all files now.
    pub(super) async fn reload(self: &Arc<Self>) -> Result<(), TlsError> {
        *self.next.lock() = after(Instant::now(), self.every);
        let this = Arc::clone(self);
        let looked = spawn_blocking(move || {
            let mut deferred = Deferred::default();
            let looking = this.looking.lock();
            this.look(&looking, &mut deferred)
        });
        looked.await.unwrap_or_else(|error| {
            let source = io::Error::other(error);
            Err(TlsError::Unreadable { from: "what was to be read".to_owned(), source })
        })
    }

    pub(super) fn stats(&self) -> TlsStats {
        self.stats.lock().clone()
    }

    /// Whoever comes first after the interval looks, and waits a little for what it finds; the
    /// others go on with what there is.
    async fn look_if_due(self: &Arc<Self>) {
        let now = Instant::now();
        {
            let mut next = self.next.lock();
            if now < *next {
                return;
            }
            *next = after(now, self.every);
        }
        let this = Arc::clone(self);
        let looked = spawn_blocking(move || {
            let mut deferred = Deferred::default();
            // A look that still hangs is not joined by another one.
            if let Some(looking) = this.looking.try_lock() {
                // It was told and counted; the last good files stay in use.
                let _ = this.look(&looking, &mut deferred);
            }
        });
        let _ = timeout(PATIENCE, looked).await;
    }

    /// Reads both sides' files; one that is broken does not keep the other from being renewed.
    fn look(&self, _looking: &MutexGuard<'_, ()>, deferred: &mut Deferred) -> Result<(), TlsError> {
        let sides = [self.client.as_ref().map(Side::look), self.server.as_ref().map(Side::look)];
        let mut first_error = None;
        for looked in sides.into_iter().flatten() {
            match looked {
                Ok(false) => {}
                Ok(true) => {
                    deferred.push(|| event!(INFO, "certificates reloaded"));
                    self.stats.lock().reloads += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    deferred.push(move || {
                        event!(
                            WARN,
                            error = %text,
                            "certificates not reloaded: the last good ones are used"
                        );
                    });
                    self.stats.lock().failed_reloads += 1;
                    first_error.get_or_insert(error);
                }
            }
        }
        self.stats.lock().last_error = first_error.as_ref().map(TlsError::to_string);
        first_error.map_or(Ok(()), Err)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("client", &self.client.as_ref().map(|side| &side.settings))
            .field("server", &self.server.as_ref().map(|side| &side.settings))
            .finish_non_exhaustive()
    }
}

/// One side's settings, and what was read by them.
struct Side<S: Settings> {
    settings: S,
    current: ArcSwap<S::Config>,
    /// The mark of what `current` was read from.
    mark: AtomicU64,
}

impl<S: Settings> Side<S> {
    fn read(settings: S) -> Result<Self, TlsError> {
        let mut reader = Reader::default();
        let config = settings.config(&mut reader)?;
        let mark = AtomicU64::new(reader.mark());
        Ok(Self { settings, current: ArcSwap::from_pointee(config), mark })
    }

    /// Reads again; whether anything has changed.
    fn look(&self) -> Result<bool, TlsError> {
        let mut reader = Reader::default();
        let config = self.settings.config(&mut reader)?;
        let mark = reader.mark();
        let changed = self.mark.swap(mark, Relaxed) != mark;
        if changed {
            self.current.store(Arc::new(config));
        }
        Ok(changed)
    }
}
