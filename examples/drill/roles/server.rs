//! One of the servers: writes into its ledger what it executes.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use srpc::backend::http::HttpRegistry;
use srpc::registry::Registrar;
use srpc::server::{Failure, Request, State};
use srpc::transport::{Accept, Peer, Stream};
use srpc::{Kind, Listener, Service, Status};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tower::filter::FilterLayer;

use super::orders::orders;
use super::{REGISTRY_TIMEOUT, SERVICE, TTL};
use crate::clock::Clock;
use crate::ledger::{CallId, Ledger};

/// How long a handler works.
const WORK: Duration = Duration::from_millis(5);
/// How long a draining server goes on accepting, shortened like the lease.
const DRAIN_DELAY: Duration = Duration::from_millis(300);

/// A server to be run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) registry: String,
    pub(crate) bind: String,
    pub(crate) ledger: PathBuf,
}

/// What a server answers instead of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandlerError {
    Internal,
    Unknown,
}

impl HandlerError {
    const ALL: [Self; 2] = [Self::Internal, Self::Unknown];

    /// Its name as an order.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Internal => Kind::Internal,
            Self::Unknown => Kind::Unknown,
        }
    }
}

struct Desk {
    ledger: Ledger,
    clock: Clock,
    /// Whether calls are refused before their handlers.
    refusing: AtomicBool,
    /// What every handler answers instead of a result.
    error: Mutex<Option<HandlerError>>,
    /// Handlers of `Drill.Hold` at work.
    held: AtomicUsize,
}

impl Server {
    pub(super) async fn run(self, clock: Clock) -> Result<(), Box<dyn Error>> {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut orders = orders();
        let desk = Arc::new(Desk {
            ledger: Ledger::create(&self.ledger)?,
            clock,
            refusing: AtomicBool::new(false),
            error: Mutex::new(None),
            held: AtomicUsize::new(0),
        });
        let gatekeeper = Arc::clone(&desk);
        let service = Service::with_state(SERVICE, Arc::clone(&desk))
            .method("Work", work)
            .method("Hold", hold)
            .layer(FilterLayer::new(move |request: Request| gatekeeper.admit(request)));

        let listener = listen(&self.bind)?;
        println!("listening {}", listener.address());
        let registry = HttpRegistry::builder(&self.registry).timeout(REGISTRY_TIMEOUT).build()?;
        let registrar = Registrar::builder(Arc::new(registry))
            .ttl(TTL)
            .request_timeout(REGISTRY_TIMEOUT)
            .build();
        let server = srpc::Server::new()
            .service(service)
            .registrar(registrar.clone())
            .drain_delay(DRAIN_DELAY)
            .serve(listener, async move {
                terminated.recv().await;
            });
        let listening = async {
            while registrar.stats().registered == 0 {
                sleep(Duration::from_millis(5)).await;
            }
            println!("registered");
            while let Some(order) = orders.recv().await {
                match order.words.as_str() {
                    "refuse" => desk.refusing.store(true, Relaxed),
                    "serve" => {
                        desk.refusing.store(false, Relaxed);
                        desk.answer_with(None);
                    }
                    "health" => {
                        order.answer(&health(&registrar));
                        continue;
                    }
                    "held" => {}
                    other => match HandlerError::ALL.iter().find(|it| it.name() == other) {
                        Some(error) => desk.answer_with(Some(*error)),
                        None => tracing::error!(other, "unknown order"),
                    },
                }
                order.answer(&desk.held.load(Relaxed).to_string());
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            served = server => Ok(served?),
            () = listening => Ok(()),
        }
    }
}

/// Binds an address that another server may hold: the system divides new connections between the two.
fn listen(bind: &str) -> Result<Listener, Box<dyn Error>> {
    let asked: SocketAddr = bind.trim_start_matches("tcp@").parse()?;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(asked)?;
    let listener = socket.listen(1024)?;
    let address = format!("tcp@{}", listener.local_addr()?).parse()?;
    Ok(Listener::new(Shared(listener), address))
}

/// A listener at a port that several processes may bind.
struct Shared(TcpListener);

#[srpc::async_trait]
impl Accept for Shared {
    async fn accept(&mut self) -> io::Result<Stream> {
        let (stream, peer) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok(Stream::new(stream, Peer::new(peer.ip().to_string())))
    }
}

/// What an operator says of this server, as far as its registrar has heard: `up` if nothing.
fn health(registrar: &Registrar) -> String {
    let overrides = registrar.stats().overrides;
    overrides.first().map_or("up".to_owned(), |(_, said)| said.health.to_string())
}

impl Desk {
    fn answer_with(&self, error: Option<HandlerError>) {
        *self.error.lock() = error;
    }

    fn admit(&self, request: Request) -> Result<Request, Failure> {
        if self.refusing.load(Relaxed) {
            self.ledger.line(format_args!("r {}", self.clock.now()));
            return Err(Failure::rejected(Kind::Unavailable, "the drill says so"));
        }
        Ok(request)
    }
}

/// Writes down that it was called, works, and answers.
async fn work(State(desk): State<Desk>, id: CallId) -> Result<u64, Status> {
    desk.ledger.line(format_args!("x {} {} {}", id.client, id.n, desk.clock.now()));
    sleep(WORK).await;
    let error = *desk.error.lock();
    match error {
        Some(error) => Err(Status::new(error.kind(), "the drill says so")),
        None => Ok(id.answer()),
    }
}

/// Works until its caller leaves.
async fn hold(State(desk): State<Desk>, _: ()) -> Result<(), Status> {
    struct Held(Arc<Desk>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.held.fetch_sub(1, Relaxed);
        }
    }
    desk.held.fetch_add(1, Relaxed);
    let _held = Held(desk);
    std::future::pending().await
}
