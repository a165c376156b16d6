//! What a careless caller, a client that does not read, a handler that blocks or panics, or a runtime that
//! ends costs the others.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::call::{Codec, CodecId};
use srpc::client::{Connection, ConnectionSettings};
use srpc::discovery::{Discovery, DiscoveryError, Resolved, SnapshotStatus};
use srpc::protocol::{CallHead, FrameType, Hello, Limits, MethodRef, encode_call, encode_frame};
use srpc::server::{
    Answered, Asked, Handler, HandlerFuture, Method, Outcome, ServerSettings, State,
};
use srpc::transport::{Memory, Transport};
use srpc::{
    Address, Call, Execution, Instance, Kind, Listener, Server, Service, ServiceName, Status,
    XClient,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn foo(started: &Arc<AtomicUsize>) -> Service {
    let started = Arc::clone(started);
    Service::new("Foo")
        .method("Sleep", async |ms: u64| {
            sleep(Duration::from_millis(ms)).await;
            Ok::<_, Status>(ms)
        })
        .method("Large", move |(): ()| {
            started.fetch_add(1, SeqCst);
            async { Ok::<_, Status>("x".repeat(1 << 20)) }
        })
}

async fn serve(server: Server) -> (Memory, Address) {
    let network = Memory::new();
    let listener = network.bind(&Address::to_bind("mem@foo").unwrap()).await.unwrap();
    let address = listener.address().clone();
    tokio::spawn(server.serve(listener, std::future::pending()));
    (network, address)
}

fn client(network: &Memory, addresses: &[&Address]) -> XClient {
    let list = StaticList::new(addresses.iter().map(|a| Instance::at((*a).clone())));
    XClient::builder("Foo", list).transport(Arc::new(network.clone())).seed(1).build().unwrap()
}

fn call(ms: u64) -> Call {
    Call::new("Foo.Sleep").args(&ms).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_stops_polling_holds_up_the_line_only_to_its_deadline() {
    let server = Server::new().service(foo(&Arc::default())).window_calls(64);
    let (network, address) = serve(server).await;
    let stream = network.connect(&address).await.unwrap();
    let settings = ConnectionSettings::default();
    let connection = Connection::open(stream, settings, None).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let long = call(100);
    let window: Vec<_> = (0..64)
        .map(|_| {
            let (connection, long) = (connection.clone(), long.clone());
            tokio::spawn(async move { connection.exchange(&long, deadline).await })
        })
        .collect();
    while connection.in_flight() < 64 {
        sleep(Duration::from_millis(1)).await;
    }
    let short = call(1);
    let careless_deadline = Instant::now() + Duration::from_secs(1);
    let mut careless = pin!(connection.exchange(&short, careless_deadline));
    assert!(careless.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    for call in window {
        call.await.unwrap().unwrap();
    }
    // In line behind the careless one, which is never polled again until its deadline has come.
    connection.exchange(&short, deadline).await.unwrap();
    assert!(Instant::now() < careless_deadline + Duration::from_millis(100));
    let error = careless.await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::DeadlineExceeded, Execution::NotSent));
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_cancels_does_not_cost_the_next_calls() {
    let server = Server::new().service(foo(&Arc::default())).window_calls(64);
    let (network, address) = serve(server).await;
    let client = client(&network, &[&address]);
    for _ in 0..20 {
        let burst: Vec<_> = (0..64)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.send(call(60_000)).await })
            })
            .collect();
        sleep(Duration::from_millis(5)).await;
        burst.iter().for_each(tokio::task::JoinHandle::abort);
        let next: Vec<_> = (0..64)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.send(call(1)).await })
            })
            .collect();
        for call in next {
            call.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_not_read_either() {
    let started = Arc::new(AtomicUsize::new(0));
    let (network, address) = serve(Server::new().service(foo(&started))).await;
    let other = client(&network, &[&address]);
    // Until it is polled in the connection's task. Handlers that have tasks may start for a whole window.
    for _ in 0..40 {
        other.call::<_, String>("Foo.Large", &()).await.unwrap();
    }
    started.store(0, SeqCst);
    let mut stream = network.connect(&address).await.unwrap();
    let mut bytes = Vec::new();
    Hello::new(Limits::default()).encode(&mut bytes);
    for id in 1..=600 {
        let head = CallHead {
            method: MethodRef::Name("Foo.Large"),
            codec: CodecId::JSON,
            remaining_ms: 10_000,
            metadata: srpc::call::Metadata::default(),
        };
        encode_frame(&mut bytes, FrameType::Call, 0, id, |out| encode_call(out, &head, b"null"));
    }
    // All of it in one piece, and not a byte of the 600 MiB of replies is read.
    stream.write_all(&bytes).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    let most = started.load(SeqCst);
    assert!((9..=40).contains(&most), "{most} replies of 1 MiB were made");
    assert_eq!(other.call::<_, u64>("Foo.Sleep", &1).await.unwrap(), 1);
}

#[test]
fn a_runtime_that_ends_takes_no_other_runtimes_calls_with_it() {
    let (first, second) = (runtime(), runtime());
    let server = runtime();
    let listener = server.block_on(Listener::bind("tcp@127.0.0.1:0")).unwrap();
    let address = listener.address().clone();
    let serving = Server::new().service(foo(&Arc::default()));
    server.spawn(serving.serve(listener, std::future::pending()));
    let client = second
        .block_on(async { XClient::new("Foo", StaticList::new([Instance::at(address)])).unwrap() });
    let dialled = client.clone();
    first.block_on(async move { dialled.send(call(1)).await }).unwrap();
    drop(first);
    second.block_on(async {
        let answer = timeout(PATIENCE, client.send(call(1))).await;
        // The connection died with its runtime: the call makes another one.
        assert!(answer.unwrap().is_ok());
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn endless_durations_are_far_ahead_and_no_panic() {
    let server = Server::new().service(foo(&Arc::default())).idle_timeout(Duration::MAX);
    let (network, address) = serve(server).await;
    let list = StaticList::new([Instance::at(address)]);
    let mut settings = ConnectionSettings::default();
    settings.ping_idle = Duration::MAX;
    settings.dead_after = Duration::MAX;
    let client = XClient::builder("Foo", list)
        .transport(Arc::new(network))
        .deadline(Duration::MAX)
        .attempt_timeout(Duration::MAX)
        .connection(settings)
        .build()
        .unwrap();
    for _ in 0..3 {
        let call = call(1).timeout(Duration::MAX);
        client.send(call).await.unwrap();
        sleep(Duration::from_secs(60)).await;
    }
}

/// Accepts in memory and never answers a handshake.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_swallows_connections_fails_no_call() {
    let (network, live) = serve(Server::new().service(foo(&Arc::default()))).await;
    let mut hole = network.bind(&Address::to_bind("mem@hole").unwrap()).await.unwrap();
    let swallowed = hole.address().clone();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok(stream) = hole.accept().await {
            held.push(stream);
        }
    });
    let client = client(&network, &[&live, &swallowed]);
    let mut slowest = Duration::ZERO;
    let mut slow = 0;
    for _ in 0..2000 {
        let started = Instant::now();
        client.send(call(5)).await.unwrap();
        slow += u32::from(started.elapsed() > Duration::from_secs(1));
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest <= Duration::from_millis(5200), "{slowest:?}");
    assert!(slow <= 8, "{slow} calls waited for a dial");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_with_a_leg_that_panics_is_no_success() {
    let (network, address) = serve(Server::new().service(foo(&Arc::default()))).await;
    let list = StaticList::new([Instance::at(address)]);
    let client = XClient::builder("Foo", list)
        .transport(Arc::new(network))
        .layer(tower::util::MapRequestLayer::new(|_: Call| -> Call { panic!("on purpose") }))
        .build()
        .unwrap();
    let legs = tokio::spawn(async move { client.broadcast::<_, u64>("Foo.Sleep", &1).await });
    assert!(legs.await.unwrap_err().is_panic());
}

/// Panics when it is dropped.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped, on purpose");
        }
    }
}

/// A method whose future panics when it is dropped.
struct Leaves;

impl Method<(), ()> for Leaves {
    fn into_handler(self, _: Arc<()>) -> Arc<dyn Handler> {
        Arc::new(|_: Asked, _: Option<Codec>| -> HandlerFuture { Box::pin(Leaving(PanicsOnDrop)) })
    }
}

struct Leaving(#[allow(dead_code, reason = "its drop is what matters")] PanicsOnDrop);

impl Future for Leaving {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Outcome> {
        Poll::Ready(Ok(Answered::default()))
    }
}

/// Twenty calls of the same connection are in flight while `disturb` runs, and all of them succeed.
async fn beside(client: &XClient, disturb: impl Future<Output = ()>) {
    client.send(call(1)).await.unwrap();
    let others: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(call(1000)).await })
        })
        .collect();
    sleep(Duration::from_millis(10)).await;
    disturb.await;
    for other in others {
        other.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_whose_payload_panics_costs_one_call() {
    let panics = async |(): ()| -> Result<(), Status> { std::panic::panic_any(PanicsOnDrop) };
    let later = async |(): ()| -> Result<(), Status> {
        sleep(Duration::from_millis(1)).await;
        std::panic::panic_any(PanicsOnDrop)
    };
    let service = foo(&Arc::default()).method("Panic", panics).method("Later", later);
    let (network, address) = serve(Server::new().service(service)).await;
    let client = client(&network, &[&address]);
    beside(&client, async {
        for method in ["Foo.Panic", "Foo.Later"] {
            // The first 32 in tasks, the others in the connection's task.
            for _ in 0..40 {
                let error = client.call::<_, ()>(method, &()).await.unwrap_err();
                let told = (error.kind(), error.execution());
                assert_eq!(told, (Kind::Internal, Execution::Executed));
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_handlers_future_that_panics_when_it_is_dropped_costs_no_call() {
    let service = foo(&Arc::default()).method("Leaves", Leaves);
    let (network, address) = serve(Server::new().service(service)).await;
    let client = client(&network, &[&address]);
    beside(&client, async {
        // The first 32 in tasks, the others in the connection's task.
        for _ in 0..40 {
            client.send(Call::new("Foo.Leaves").args(&()).unwrap()).await.unwrap();
        }
    })
    .await;
}

#[cfg(unix)]
#[test]
fn a_unix_bind_fails_at_once_if_the_accept_queue_of_the_listener_is_full() {
    let path = std::env::temp_dir().join(format!("srpc-full-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let owners = runtime();
    let _entered = owners.enter();
    let socket = tokio::net::UnixSocket::new_stream().unwrap();
    socket.bind(&path).unwrap();
    let owner = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = owners.block_on(tokio::net::UnixStream::connect(&path)) {
        queued.push(stream);
    }
    let (told, tells) = mpsc::channel();
    let address = format!("unix@{}", path.display());
    // In a thread: a bind that blocks must not block the test.
    let binding = address.clone();
    std::thread::spawn(move || {
        let bound = runtime().block_on(Listener::bind(&binding));
        told.send(bound.err().map(|error| error.kind()))
    });
    let bound = tells.recv_timeout(PATIENCE);
    assert_eq!(bound, Ok(Some(std::io::ErrorKind::AddrInUse)));
    drop((owner, queued));
    // Nobody listens on the file that is left: it is replaced.
    owners.block_on(Listener::bind(&address)).unwrap();
}

/// A source whose list the test changes.
#[derive(Clone, Default)]
struct Source(Arc<Mutex<Vec<Instance>>>);

#[async_trait::async_trait]
impl Discovery for Source {
    async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
        Ok(Resolved::new(self.0.lock().unwrap().clone()).authoritative(true))
    }
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// The result of a future's first poll, outside of any runtime.
fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// The error of a future that fails at its first poll, outside of any runtime.
fn fails_at_once<T, E>(future: impl Future<Output = Result<T, E>>) -> E {
    match poll_once(future) {
        Poll::Ready(Err(error)) => error,
        Poll::Ready(Ok(_)) => panic!("it succeeded"),
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn a_client_goes_on_after_the_runtime_it_was_made_in() {
    let (network, source) = (Memory::new(), Source::default());
    let nobody = Instance::at("mem@nobody".parse().unwrap());
    source.0.lock().unwrap().push(nobody.clone());
    let (first, second) = (paused(), paused());
    let client = first.block_on(async {
        let client = XClient::builder("Foo", source.clone());
        let client = client.transport(Arc::new(network.clone())).build().unwrap();
        client.resolver().ready(Duration::from_secs(2)).await.unwrap();
        client
    });
    let resolver = client.resolver().clone();
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
    drop(first);
    let snapshot = resolver.snapshot();
    assert!(matches!(snapshot.status, SnapshotStatus::Stale { .. }), "{snapshot:?}");
    assert!(snapshot.last_error.as_ref().unwrap().message().contains("runtime"));
    resolver.update(vec![nobody]);
    assert_ne!(resolver.snapshot().status, SnapshotStatus::Ready, "nobody refreshes it");
    assert!(fails_at_once(resolver.refresh()).message().contains("runtime"));
    let error = fails_at_once(client.send(call(1)));
    assert!(error.message().contains("runtime"), "{error}");
    assert_eq!((error.kind(), error.execution()), (Kind::Internal, Execution::NotSent));
    let error = fails_at_once(client.broadcast::<_, u64>("Foo.Sleep", &1));
    assert!(error.message().contains("runtime"), "{error}");

    second.block_on(async {
        let listener = network.bind(&Address::to_bind("mem@foo").unwrap()).await.unwrap();
        *source.0.lock().unwrap() = vec![Instance::at(listener.address().clone())];
        let serving = Server::new().service(foo(&Arc::default()));
        tokio::spawn(serving.serve(listener, std::future::pending()));
        resolver.refresh().await.unwrap();
        client.send(call(1)).await.unwrap();
        assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
        assert_eq!(resolver.stats().restarts, 1);
    });
}

#[test]
fn a_client_made_outside_of_a_runtime_starts_with_its_first_call() {
    let client = XClient::builder("Foo", Source::default());
    let client = client.transport(Arc::new(Memory::new())).build().unwrap();
    let error = fails_at_once(client.send(call(1)));
    assert!(error.message().contains("runtime"), "{error}");
    assert_eq!(error.execution(), Execution::NotSent);
    paused().block_on(async {
        let error = client.send(call(1)).await.unwrap_err();
        assert!(error.message().ends_with("no instance is known"), "{error}");
    });
}

#[test]
fn a_call_through_a_layer_that_waits_fails_outside_of_a_runtime() {
    let client = XClient::builder("Foo", Source::default())
        .transport(Arc::new(Memory::new()))
        .layer(tower::layer::layer_fn(Waits))
        .build()
        .unwrap();
    let error = fails_at_once(client.send(call(1)));
    assert!(error.message().contains("runtime"), "{error}");
}

/// A layer's service whose calls never end.
#[derive(Clone)]
struct Waits<S>(S);

impl<S: tower::Service<Call>> tower::Service<Call> for Waits<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::future::Pending<Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, _: Call) -> Self::Future {
        std::future::pending()
    }
}

/// Blocks the thread of one call at a time until the call is released.
struct Gate {
    /// A permit for each call that has begun to block.
    blocked: Semaphore,
    release: mpsc::Sender<()>,
    released: Mutex<mpsc::Receiver<()>>,
}

impl Gate {
    fn new() -> Arc<Self> {
        let (release, released) = mpsc::channel();
        Arc::new(Self { blocked: Semaphore::new(0), release, released: Mutex::new(released) })
    }

    /// Blocks. The result: whether it was released, and did not time out.
    fn block(&self) -> Result<bool, Status> {
        self.blocked.add_permits(1);
        Ok(self.released.lock().unwrap().recv_timeout(PATIENCE).is_ok())
    }
}

/// Makes calls of `Foo.Block` beside twenty others of its connection. How many of those are answered while
/// it blocks.
async fn answered_beside(service: Service, gate: &Gate, times: usize) -> usize {
    let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
    let list = StaticList::new([Instance::at(listener.address().clone())]);
    tokio::spawn(Server::new().service(service).serve(listener, std::future::pending()));
    let client = XClient::builder("Foo", list).deadline(PATIENCE * 2).build().unwrap();
    let mut answered = 0;
    for _ in 0..times {
        let blocking = client.clone();
        let blocking =
            tokio::spawn(async move { blocking.call::<_, bool>("Foo.Block", &()).await });
        timeout(PATIENCE, gate.blocked.acquire()).await.unwrap().unwrap().forget();
        let others: Vec<_> = (0..20)
            .map(|_| {
                let (client, call) = (client.clone(), call(1).timeout(PATIENCE / 3));
                tokio::spawn(async move { client.send(call).await.is_ok() })
            })
            .collect();
        for other in others {
            answered += usize::from(other.await.unwrap());
        }
        gate.release.send(()).unwrap();
        assert!(blocking.await.unwrap().unwrap(), "it was not released");
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_method_that_blocks_costs_no_other_call() {
    let gate = Gate::new();
    let block = || {
        let gate = Arc::clone(&gate);
        move |(): ()| gate.block()
    };
    let block_in_place = || {
        let gate = Arc::clone(&gate);
        move |(): ()| {
            let gate = Arc::clone(&gate);
            async move { tokio::task::block_in_place(|| gate.block()) }
        }
    };
    let foo = || foo(&Arc::default());
    let unmarked = foo().method("Block", block_in_place());
    assert_eq!(answered_beside(unmarked, &gate, 3).await, 60);
    let in_task = foo().method_in_task("Block", block_in_place());
    let layered = in_task.layer(tower::layer::util::Identity::new());
    assert_eq!(answered_beside(layered, &gate, 1).await, 20);
    let blocking = foo().blocking_method("Block", block());
    assert_eq!(answered_beside(blocking, &gate, 3).await, 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_blocking_call_over_the_same_connection_ends_each_time() {
    let cell = Arc::new(std::sync::OnceLock::<XClient>::new());
    let foo = Service::with_state("Foo", Arc::clone(&cell))
        .method("Nested", async |client: State<std::sync::OnceLock<XClient>>, x: u64| {
            let client = client.get().unwrap().clone();
            tokio::task::block_in_place(|| {
                let call = async { client.call::<_, u64>("Foo.Echo", &x).await };
                tokio::runtime::Handle::current().block_on(call).map_err(|e| e.to_string())
            })
        })
        .method("Echo", async |x: u64| Ok::<_, Status>(x));
    let (network, address) = serve(Server::new().service(foo)).await;
    let client = client(&network, &[&address]);
    assert!(cell.set(client.clone()).is_ok());
    for x in 0..200 {
        // In memory a call may take less than what counts as short: time alone does not find it.
        let nested = timeout(PATIENCE, client.call::<_, u64>("Foo.Nested", &x));
        assert_eq!(nested.await.unwrap().unwrap(), x);
    }
}

#[tokio::test(start_paused = true)]
async fn a_blocking_method_takes_what_others_take_and_ends_as_they_do() {
    let foo = Service::with_state("Foo", 40_u64)
        .blocking_method("Add", |state: State<u64>, x: u64| Ok::<_, Status>(*state + x))
        .blocking_method("Who", |context: srpc::server::Context, (): ()| {
            Ok::<_, Status>(context.method().to_owned())
        })
        .blocking_method("All", |state: State<u64>, context: srpc::server::Context, x: u64| {
            Ok::<_, Status>((*state + x, srpc::call::inherited() == Some(context.deadline())))
        })
        .blocking_method("Panic", |(): ()| -> Result<(), Status> { panic!("on purpose") });
    let (network, address) = serve(Server::new().service(foo)).await;
    let client = client(&network, &[&address]);
    assert_eq!(client.call::<_, u64>("Foo.Add", &2).await.unwrap(), 42);
    assert_eq!(client.call::<_, String>("Foo.Who", &()).await.unwrap(), "Foo.Who");
    assert_eq!(client.call::<_, (u64, bool)>("Foo.All", &2).await.unwrap(), (42, true));
    let error = client.call::<_, ()>("Foo.Panic", &()).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Internal, Execution::Executed));
    assert!(error.message().contains("on purpose"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_client_beyond_its_hosts_cap_is_told_which() {
    let server = Server::new().service(foo(&Arc::default())).max_connections_per_host(1);
    let (network, address) = serve(server).await;
    let first = client(&network, &[&address]);
    let busy = tokio::spawn(async move { first.call::<_, u64>("Foo.Sleep", &9_000_u64).await });
    sleep(Duration::from_millis(10)).await;
    let second = client(&network, &[&address]);
    let error = second.call::<_, u64>("Foo.Sleep", &1_u64).await.unwrap_err();
    assert!(error.to_string().contains("too many connections from this host"), "{error}");
    assert_eq!((error.kind(), error.execution()), (Kind::Unavailable, Execution::NotSent));
    assert_eq!(busy.await.unwrap().unwrap(), 9_000);
}

/// Connections that send this and then nothing fill a host's cap: one more is served, and the one that has
/// a call at work ends it.
async fn fill_a_cap(silent: &[u8]) {
    let server = Server::new().service(foo(&Arc::default())).max_connections_per_host(10);
    let (network, address) = serve(server).await;
    let used = client(&network, &[&address]);
    let busy = tokio::spawn(async move { used.call::<_, u64>("Foo.Sleep", &9_000_u64).await });
    sleep(Duration::from_millis(10)).await;
    let mut crowd = Vec::new();
    for _ in 0..30 {
        let mut stream = network.connect(&address).await.unwrap();
        // What is refused may be closed by now.
        let _ = stream.write_all(silent).await;
        crowd.push(stream);
    }
    let started = Instant::now();
    let late = client(&network, &[&address]);
    while late.call::<_, u64>("Foo.Sleep", &1_u64).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(5), "no connection is evicted");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(busy.await.unwrap().unwrap(), 9_000);
}

#[tokio::test(start_paused = true)]
async fn silent_connections_at_a_full_cap_keep_nobody_out() {
    let mut hello = Vec::new();
    Hello::new(Limits::default()).encode(&mut hello);
    let half_frame = [&hello[..], &[0, 0, 0, 90, FrameType::Call as u8]].concat();
    for silent in [&[][..], &hello[..7], &hello[..], &half_frame[..]] {
        fill_a_cap(silent).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_evicted_connection_costs_its_client_no_call() {
    let server = Server::new().service(foo(&Arc::default())).max_connections_per_host(1);
    let (network, address) = serve(server).await;
    let clients = [client(&network, &[&address]), client(&network, &[&address])];
    for _ in 0..4 {
        for client in &clients {
            assert_eq!(client.call::<_, u64>("Foo.Sleep", &1_u64).await.unwrap(), 1);
            sleep(Duration::from_secs(3)).await;
        }
    }
}

/// A server whose connections may hold 32 MiB together, 8 MiB of one host.
fn server_of_32_mib() -> Server {
    let mut settings = ServerSettings::default();
    settings.max_bytes_in_flight = 32 << 20;
    let service =
        foo(&Arc::default()).method("Size", async |text: String| Ok::<_, Status>(text.len()));
    Server::new().service(service).settings(settings)
}

/// A handshake and these calls of one method.
fn calls_of(method: &'static str, body: &[u8], calls: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Hello::new(Limits::default()).encode(&mut bytes);
    for id in 1..=calls {
        let head = CallHead {
            method: MethodRef::Name(method),
            codec: CodecId::JSON,
            remaining_ms: 30_000,
            metadata: srpc::call::Metadata::default(),
        };
        encode_frame(&mut bytes, FrameType::Call, 0, id, |out| encode_call(out, &head, body));
    }
    bytes
}

/// A call that needs memory of the server is served within 5 s, whatever the others hold; one that needs
/// little is served at once.
async fn is_served(network: &Memory, address: &Address, method: &'static str, body: &str) {
    let started = Instant::now();
    assert_eq!(client(network, &[address]).call::<_, u64>("Foo.Sleep", &1_u64).await.unwrap(), 1);
    assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
    loop {
        // A new one each time: failures of before do not count.
        let client = client(network, &[address]);
        let answered = match method {
            "Foo.Size" => client.call::<_, usize>(method, &body).await.map(drop),
            _ => client.call::<_, String>(method, &()).await.map(drop),
        };
        if answered.is_ok() {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{answered:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn half_read_bodies_are_bounded_over_all_connections() {
    let (network, address) = serve(server_of_32_mib()).await;
    let mut bytes = calls_of("Foo.Size", &vec![b'7'; 4 << 20], 1);
    bytes.truncate(bytes.len() - 90);
    let bytes = Arc::new(bytes);
    let held: Vec<_> = (0..40)
        .map(|_| {
            let (network, address) = (network.clone(), address.clone());
            let bytes = Arc::clone(&bytes);
            tokio::spawn(async move {
                let mut stream = network.connect(&address).await.unwrap();
                // What the server has no memory for is not read, and what it closes not written.
                let _ = stream.write_all(&bytes).await;
                let mut read = Vec::new();
                let _ = stream.read_to_end(&mut read).await;
                read
            })
        })
        .collect();
    sleep(Duration::from_millis(100)).await;
    is_served(&network, &address, "Foo.Size", &"x".repeat(1 << 20)).await;
    sleep(Duration::from_secs(3)).await;
    let mut hello = Vec::new();
    Hello::new(Limits::default()).encode(&mut hello);
    let mut closed = 0;
    for one in held {
        if one.is_finished() {
            let read = one.await.unwrap();
            let frame = read.get(hello.len() + 4).copied();
            assert_eq!(
                frame,
                Some(FrameType::Drain as u8),
                "the call was not started, and is told so"
            );
            closed += 1;
        }
    }
    assert!((6..=30).contains(&closed), "{closed} of 40 were closed");
}

#[tokio::test(start_paused = true)]
async fn unread_replies_are_bounded_over_all_connections() {
    let (network, address) = serve(server_of_32_mib()).await;
    let bytes = calls_of("Foo.Large", b"null", 8);
    let mut unread = Vec::new();
    for _ in 0..40 {
        let mut stream = network.connect(&address).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        unread.push(stream);
    }
    sleep(Duration::from_millis(100)).await;
    is_served(&network, &address, "Foo.Large", "").await;
    sleep(Duration::from_secs(3)).await;
    let mut closed = 0;
    for stream in &mut unread {
        closed += usize::from(stream.write_all(&[0]).await.is_err());
    }
    assert!(closed >= 2, "{closed} of 40 were closed");
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_that_makes_progress_is_not_closed_for_memory() {
    let (network, address) = serve(server_of_32_mib()).await;
    let mut held = Vec::new();
    // Three bodies, more than a host's share, at 64 KiB in half a second each.
    for _ in 0..3 {
        let mut stream = network.connect(&address).await.unwrap();
        held.push(tokio::spawn(async move {
            let body = format!("\"{}\"", "x".repeat(3 << 20));
            for part in calls_of("Foo.Size", body.as_bytes(), 1).chunks(64 << 10) {
                stream.write_all(part).await.unwrap();
                sleep(Duration::from_millis(500)).await;
            }
            let mut reply = [0; 64];
            stream.read(&mut reply).await.unwrap()
        }));
    }
    for one in held {
        assert!(one.await.unwrap() > 0);
    }
}
