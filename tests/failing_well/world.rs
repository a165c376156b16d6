//! Servers in memory that can be told how to behave, and a count of what they executed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use srpc::backend::static_list::StaticList;
use srpc::server::Failure;
use srpc::transport::{Accept, Io, Listener, Memory, Stream, Transport};
use srpc::xclient::XClientBuilder;
use srpc::{Address, Instance, Kind, Server, Service, Status, XClient};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// How a server treats its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Answers after so long.
    Answer(Duration),
    /// Starts the handler and never answers; pings are answered.
    Hang,
    /// Refuses before the handler starts.
    Refuse(Kind),
    /// The service itself fails.
    Fail(Kind),
}

/// A few servers of `Foo.Do`, which answers with the number of the server.
pub(crate) struct World {
    service: &'static str,
    network: Memory,
    pub(crate) servers: Vec<Running>,
}

/// One of them.
pub(crate) struct Running {
    pub(crate) address: Address,
    pub(crate) behaviour: Arc<Behaviour>,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) serving: JoinHandle<io::Result<()>>,
}

/// How a server behaves, and what it has done.
pub(crate) struct Behaviour {
    mode: Mutex<Mode>,
    /// Handlers that were started.
    pub(crate) started: AtomicU64,
    /// Handlers that were dropped before their end.
    pub(crate) dropped: AtomicU64,
    pub(crate) running: AtomicUsize,
    ice: Arc<Ice>,
}

impl World {
    pub(crate) async fn of(servers: usize) -> Self {
        Self::named("Foo", servers).await
    }

    /// With a name of its own for the service, whose budget it then has alone.
    pub(crate) async fn named(service: &'static str, servers: usize) -> Self {
        let mut world = Self { service, network: Memory::new(), servers: Vec::new() };
        for _ in 0..servers {
            world.add(|server| server).await;
        }
        world
    }

    /// Starts another server.
    pub(crate) async fn add(&mut self, settings: impl FnOnce(Server) -> Server) -> usize {
        let number = self.servers.len();
        let running = self.start(number, settings).await;
        self.servers.push(running);
        number
    }

    async fn start(&self, number: usize, settings: impl FnOnce(Server) -> Server) -> Running {
        let behaviour = Arc::new(Behaviour {
            mode: Mutex::new(Mode::Answer(Duration::from_millis(1))),
            started: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            ice: Arc::default(),
        });
        let address = Address::to_bind(&format!("mem@s{number}")).unwrap();
        let listener = self.network.bind(&address).await.unwrap();
        let address = listener.address().clone();
        let listener = Listener::new(
            Freezing { inner: listener, ice: Arc::clone(&behaviour.ice) },
            address.clone(),
        );
        let (stop, stopped) = oneshot::channel();
        let server = settings(Server::new().service(service(self.service, number, &behaviour)));
        let serving = tokio::spawn(server.serve(listener, async {
            let _ = stopped.await;
        }));
        Running { address, behaviour, stop: Some(stop), serving }
    }

    pub(crate) fn network(&self) -> Arc<Memory> {
        Arc::new(self.network.clone())
    }

    pub(crate) fn list(&self) -> StaticList {
        StaticList::new(self.servers.iter().map(|server| Instance::at(server.address.clone())))
    }

    pub(crate) fn client(&self) -> XClientBuilder {
        XClient::builder(self.service, self.list()).transport(self.network()).seed(1)
    }

    pub(crate) fn at(&self, server: usize) -> &Running {
        &self.servers[server]
    }

    pub(crate) fn mode(&self, server: usize, mode: Mode) {
        *self.at(server).behaviour.mode.lock() = mode;
    }

    /// Stops the process, as a signal would: its sockets take and give nothing.
    pub(crate) fn freeze(&self, server: usize) {
        self.at(server).behaviour.ice.frozen.store(true, SeqCst);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self, server: usize) {
        let ice = &self.at(server).behaviour.ice;
        ice.frozen.store(false, SeqCst);
        ice.wakers.lock().drain(..).for_each(Waker::wake);
    }

    /// Drains it, as SIGTERM does.
    pub(crate) fn drain(&mut self, server: usize) {
        if let Some(stop) = self.servers[server].stop.take() {
            let _ = stop.send(());
        }
    }

    /// Starts a server anew at the address of one that has ended.
    pub(crate) async fn restart(&mut self, server: usize) {
        let running = self.start(server, |server| server).await;
        self.servers[server] = running;
    }

    pub(crate) fn started(&self) -> Vec<u64> {
        self.servers.iter().map(|server| server.behaviour.started.load(SeqCst)).collect()
    }
}

fn service(name: &str, number: usize, behaviour: &Arc<Behaviour>) -> Service {
    let behaviour = Arc::clone(behaviour);
    let refusing = Arc::clone(&behaviour);
    let answer = move |(): ()| {
        let behaviour = Arc::clone(&behaviour);
        async move {
            behaviour.started.fetch_add(1, SeqCst);
            behaviour.running.fetch_add(1, SeqCst);
            let mut work = Work { behaviour: Arc::clone(&behaviour), done: false };
            let mode = *behaviour.mode.lock();
            let answer = match mode {
                Mode::Answer(time) => {
                    sleep(time).await;
                    Ok(number)
                }
                Mode::Hang => std::future::pending().await,
                Mode::Refuse(_) => Ok(number),
                Mode::Fail(kind) => {
                    sleep(Duration::from_millis(1)).await;
                    Err(Status::new(kind, "not here"))
                }
            };
            work.done = true;
            answer
        }
    };
    Service::new(name).method("Do", answer).layer(tower::filter::FilterLayer::new(
        move |request: srpc::server::Request| match *refusing.mode.lock() {
            Mode::Refuse(kind) => Err(Failure::rejected(kind, "not now")),
            _ => Ok(request),
        },
    ))
}

struct Work {
    behaviour: Arc<Behaviour>,
    done: bool,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.behaviour.running.fetch_sub(1, SeqCst);
        self.behaviour.dropped.fetch_add(u64::from(!self.done), SeqCst);
    }
}

/// Whether a process is stopped, and who waits for it to go on.
#[derive(Default)]
struct Ice {
    frozen: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Ice {
    /// Whether the caller has to wait, of which it will be told.
    fn holds(&self, cx: &Context<'_>) -> bool {
        let frozen = self.frozen.load(SeqCst);
        if frozen {
            self.wakers.lock().push(cx.waker().clone());
        }
        frozen
    }
}

struct Freezing {
    inner: Listener,
    ice: Arc<Ice>,
}

#[async_trait]
impl Accept for Freezing {
    async fn accept(&mut self) -> io::Result<Stream> {
        let stream = self.inner.accept().await?;
        let peer = stream.peer().clone();
        Ok(Stream::new(Frozen { stream, ice: Arc::clone(&self.ice) }, peer))
    }
}

struct Frozen<S> {
    stream: S,
    ice: Arc<Ice>,
}

impl<S: Io> AsyncRead for Frozen<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ice.holds(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: Io> AsyncWrite for Frozen<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.ice.holds(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
