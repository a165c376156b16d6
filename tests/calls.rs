//! One call, end to end, over the in-memory transport: forms of handlers, failures, cancel, drain.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::call::{Codec, CodecId, Raw};
use srpc::server::{Context, State};
use srpc::transport::{Memory, Transport};
use srpc::{Address, Call, Error, Execution, Instance, Kind, Server, Service, Status, XClient};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// A server on a network in memory, and a client of it.
struct Scene {
    client: XClient,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Scene {
    async fn of(server: Server) -> Self {
        let network = Memory::new();
        let listener = network.bind(&Address::to_bind("tcp@a:0").unwrap()).await.unwrap();
        let list = StaticList::new([Instance::at(listener.address().clone())]);
        let client =
            XClient::builder("Foo", list).transport(Arc::new(network)).seed(1).build().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(server.serve(listener, async {
            stopped.await.ok();
        }));
        Self { client, stop: Some(stop), server }
    }
}

/// Counts handlers that started and those that ended or were dropped.
#[derive(Default)]
struct Counts {
    started: AtomicUsize,
    over: AtomicUsize,
}

struct Running(Arc<Counts>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.over.fetch_add(1, SeqCst);
    }
}

fn sleeper(counts: &Arc<Counts>) -> Service<Counts> {
    Service::with_state("Foo", Arc::clone(counts)).method(
        "Sleep",
        async |counts: State<Counts>, seconds: f64| {
            counts.0.started.fetch_add(1, SeqCst);
            let _running = Running(Arc::clone(&counts.0));
            sleep(Duration::from_secs_f64(seconds)).await;
            Ok::<_, Status>(seconds)
        },
    )
}

#[tokio::test(start_paused = true)]
async fn handlers_take_arguments_context_and_state() {
    let foo = Service::with_state("Foo", 40_i64)
        .method("Sum", async |(a, b): (i64, i64)| Ok::<_, Status>(a + b))
        .method("Who", async |context: Context, (): ()| {
            Ok::<_, Status>(context.metadata().value("who").map(str::to_owned))
        })
        .method("Add", async |state: State<i64>, n: i64| Ok::<_, Status>(*state + n))
        .method("All", async |state: State<i64>, context: Context, n: i64| {
            Ok::<_, Status>((context.method().to_owned(), *state + n, context.is_idempotent()))
        })
        .method("Echo", async |bytes: Raw| Ok::<_, Status>(bytes));
    let scene = Scene::of(Server::new().service(foo)).await;
    let client = scene.client.clone();
    assert_eq!(client.call::<_, i64>("Foo.Sum", &(1, 2)).await.unwrap(), 3);
    assert_eq!(client.call::<_, i64>("Foo.Add", &2).await.unwrap(), 42);
    let call = Call::new("Foo.Who").args(&()).unwrap().metadata("who", "me").unwrap();
    let who: Option<String> = client.send(call).await.unwrap().decode().unwrap();
    assert_eq!(who.as_deref(), Some("me"));
    let call = Call::new("Foo.All").args(&1).unwrap().idempotent(true);
    let all: (String, i64, bool) = client.send(call).await.unwrap().decode().unwrap();
    assert_eq!(all, ("Foo.All".to_owned(), 41, true));
    let json = Call::new("Foo.Sum").args_in(&Codec::Json, &(1, 2)).unwrap();
    assert_eq!(client.send(json).await.unwrap().body, "3");
    let raw = Call::new("Foo.Echo").body(CodecId::RAW, "bytes");
    assert_eq!(client.send(raw).await.unwrap().body, "bytes");
}

#[tokio::test(start_paused = true)]
async fn a_call_without_arguments_reaches_a_method_without_arguments() {
    let foo = Service::new("Foo")
        .method("Ping", async |(): ()| Ok::<_, Status>(7_u64))
        .method("Who", async |context: Context, (): ()| Ok::<_, Status>(context.is_idempotent()))
        .method("Maybe", async |n: Option<u64>| Ok::<_, Status>(n))
        .method("Echo", async |bytes: Raw| Ok::<_, Status>(bytes));
    let scene = Scene::of(Server::new().service(foo)).await;
    let client = scene.client.clone();
    let ping = || Call::new("Foo.Ping");
    assert_eq!(ping().body, Call::new("Foo.Ping").args(&()).unwrap().body);
    assert_eq!(client.send(ping()).await.unwrap().decode::<u64>().unwrap(), 7);
    client.send(ping().notify(true)).await.unwrap();
    assert_eq!(client.broadcast_call(ping()).await.unwrap().decode::<u64>().unwrap(), 7);
    assert_eq!(client.fork_call(ping()).await.unwrap().decode::<u64>().unwrap(), 7);
    for (_, answer) in client.gather_call(ping()).await.unwrap() {
        assert_eq!(answer.unwrap().decode::<u64>().unwrap(), 7);
    }
    let who = client.send(Call::new("Foo.Who").idempotent(true)).await.unwrap();
    assert!(who.decode::<bool>().unwrap());
    let none = client.send(Call::new("Foo.Maybe")).await.unwrap();
    assert_eq!(none.decode::<Option<u64>>().unwrap(), None);
    let empty = client.send(Call::new("Foo.Echo").body(CodecId::RAW, "")).await.unwrap();
    assert_eq!((empty.codec, empty.body.len()), (CodecId::RAW, 0));
}

#[tokio::test(start_paused = true)]
async fn each_failure_has_its_kind_and_class() {
    let foo = Service::new("Foo")
        .method("Fail", async |(): ()| Err::<(), _>(Status::new(Kind::NotFound, "no such thing")))
        .method("Text", async |(): ()| Err::<(), _>("plain text"))
        .method("Panic", async |(): ()| -> Result<(), String> { panic!("on purpose") })
        .method("Sum", async |(a, b): (i64, i64)| Ok::<_, Status>(a + b));
    let scene = Scene::of(Server::new().service(foo)).await;
    let client = scene.client.clone();
    let fail = async |method: &'static str| -> Error {
        client.call::<_, ()>(method, &()).await.unwrap_err()
    };
    let cases = [
        ("Foo.Fail", Kind::NotFound, Execution::Executed, "no such thing"),
        ("Foo.Text", Kind::Unknown, Execution::Executed, "plain text"),
        ("Foo.Panic", Kind::Internal, Execution::Executed, "on purpose"),
        ("Foo.None", Kind::Unimplemented, Execution::Rejected, "Foo.None"),
        ("Foo.Sum", Kind::InvalidArgument, Execution::Rejected, "arguments"),
        ("nonsense", Kind::InvalidArgument, Execution::NotSent, "nonsense"),
    ];
    for (method, kind, execution, text) in cases {
        let error = fail(method).await;
        assert_eq!((error.kind(), error.execution()), (kind, execution), "{method}: {error}");
        assert!(error.message().contains(text), "{method}: {error}");
        assert_eq!(error.endpoint().unwrap().as_str(), "tcp@a:10000");
    }
    // One connection served all of them, and lives.
    assert_eq!(client.call::<_, i64>("Foo.Sum", &(1, 2)).await.unwrap(), 3);
    let wrong = client.call::<_, String>("Foo.Sum", &(1, 2)).await.unwrap_err();
    assert_eq!((wrong.kind(), wrong.execution()), (Kind::Internal, Execution::Executed));
    let unknown = Call::new("Foo.Sum").body(CodecId(99), "x");
    let unknown = client.send(unknown).await.unwrap_err();
    assert_eq!(unknown.execution(), Execution::Rejected);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_call_drops_its_handler() {
    let counts = Arc::new(Counts::default());
    let scene = Scene::of(Server::new().service(sleeper(&counts))).await;
    let client = scene.client.clone();
    let mut calls = Vec::new();
    for _ in 0..100 {
        let client = client.clone();
        calls.push(tokio::spawn(async move { client.call::<_, f64>("Foo.Sleep", &9.0).await }));
    }
    while counts.started.load(SeqCst) < 100 {
        sleep(Duration::from_millis(1)).await;
    }
    let dropped = Instant::now();
    calls.iter().for_each(JoinHandle::abort);
    while counts.over.load(SeqCst) < 100 {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(dropped.elapsed() < Duration::from_secs(1), "{:?}", dropped.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_on_both_sides() {
    let counts = Arc::new(Counts::default());
    let scene = Scene::of(Server::new().service(sleeper(&counts))).await;
    let client = scene.client.clone();
    let started = Instant::now();
    let call = Call::new("Foo.Sleep").args(&60.0).unwrap().timeout(Duration::from_secs(2));
    let error = client.send(call).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(error.execution(), Execution::MaybeExecuted);
    assert!((2000..2050).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    while counts.over.load(SeqCst) < 1 {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(started.elapsed() < Duration::from_millis(2100));
    // A reply at the deadline is too late.
    let call = Call::new("Foo.Sleep").args(&2.0).unwrap().timeout(Duration::from_secs(2));
    let error = client.send(call).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    // The default is ten seconds.
    let started = Instant::now();
    let error = client.call::<_, f64>("Foo.Sleep", &60.0).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(started.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_calls_end_and_takes_no_new_ones() {
    let counts = Arc::new(Counts::default());
    let mut scene = Scene::of(Server::new().service(sleeper(&counts))).await;
    let client = scene.client.clone();
    let long = tokio::spawn(async move { client.call::<_, f64>("Foo.Sleep", &5.0).await });
    while counts.started.load(SeqCst) < 1 {
        sleep(Duration::from_millis(1)).await;
    }
    let stopped = Instant::now();
    scene.stop.take().unwrap().send(()).unwrap();
    sleep(Duration::from_millis(100)).await;
    let refused = scene.client.call::<_, f64>("Foo.Sleep", &0.0).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
    assert!(refused.execution() <= Execution::Rejected, "{refused}");
    assert_eq!(long.await.unwrap().unwrap(), 5.0);
    scene.server.await.unwrap().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(6), "{:?}", stopped.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_grace_cuts_what_does_not_end() {
    let counts = Arc::new(Counts::default());
    let server = Server::new().service(sleeper(&counts)).grace(Duration::from_secs(3));
    let mut scene = Scene::of(server).await;
    let client = scene.client.clone();
    let long = tokio::spawn(async move { client.call::<_, f64>("Foo.Sleep", &9.0).await });
    while counts.started.load(SeqCst) < 1 {
        sleep(Duration::from_millis(1)).await;
    }
    let stopped = Instant::now();
    scene.stop.take().unwrap().send(()).unwrap();
    let cut = long.await.unwrap().unwrap_err();
    assert_eq!(cut.execution(), Execution::MaybeExecuted, "{cut}");
    scene.server.await.unwrap().unwrap();
    assert!((3..5).contains(&stopped.elapsed().as_secs()), "{:?}", stopped.elapsed());
    assert_eq!(counts.over.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_window_wait_in_line() {
    let counts = Arc::new(Counts::default());
    let server = Server::new().service(sleeper(&counts)).window_calls(64);
    let scene = Scene::of(server).await;
    let client = scene.client.clone();
    let started = Instant::now();
    let mut calls = Vec::new();
    for _ in 0..(64 * 5) {
        let client = client.clone();
        calls.push(tokio::spawn(async move { client.call::<_, f64>("Foo.Sleep", &1.0).await }));
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(started.elapsed().as_secs(), 5);
    // Four windows may wait; one call more is told so, and was not sent.
    let mut calls = Vec::new();
    for _ in 0..(64 * 5 + 1) {
        let client = client.clone();
        calls.push(tokio::spawn(async move {
            let call = Call::new("Foo.Sleep").args(&1.0)?.timeout(Duration::from_secs(20));
            client.send(call).await
        }));
    }
    let mut refused = 0;
    for call in calls {
        if let Err(error) = call.await.unwrap() {
            assert_eq!(error.kind(), Kind::ResourceExhausted, "{error}");
            assert_eq!(error.execution(), Execution::NotSent, "{error}");
            refused += 1;
        }
    }
    assert!(refused <= 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_too_large_fails_its_call_alone() {
    let foo = Service::new("Foo")
        .method("Echo", async |bytes: Raw| Ok::<_, Status>(bytes))
        .method("Large", async |(): ()| Ok::<_, Status>("x".repeat(5 << 20)));
    let scene = Scene::of(Server::new().service(foo)).await;
    let client = scene.client.clone();
    let large = Call::new("Foo.Echo").body(CodecId::RAW, vec![0; (4 << 20) + 1]);
    let error = client.send(large).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert_eq!(error.execution(), Execution::NotSent);
    let full = Call::new("Foo.Echo").body(CodecId::RAW, vec![7; 4 << 20]);
    assert_eq!(client.send(full).await.unwrap().body.len(), 4 << 20);
    let error = client.call::<_, String>("Foo.Large", &()).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::ResourceExhausted, Execution::Executed));
}

#[tokio::test(start_paused = true)]
async fn notify_returns_when_the_handler_has_started() {
    let counts = Arc::new(Counts::default());
    let scene = Scene::of(Server::new().service(sleeper(&counts))).await;
    let client = scene.client.clone();
    let started = Instant::now();
    client.notify("Foo.Sleep", &5.0).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!((counts.started.load(SeqCst), counts.over.load(SeqCst)), (1, 0));
    while counts.over.load(SeqCst) == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(started.elapsed() >= Duration::from_secs(5));
    let error = client.notify("Foo.None", &()).await.unwrap_err();
    assert_eq!(error.execution(), Execution::Rejected);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_what_is_in_flight() {
    let counts = Arc::new(Counts::default());
    let scene = Scene::of(Server::new().service(sleeper(&counts))).await;
    let client = scene.client.clone();
    let other = client.clone();
    let call = tokio::spawn(async move { other.call::<_, f64>("Foo.Sleep", &5.0).await });
    while counts.started.load(SeqCst) < 1 {
        sleep(Duration::from_millis(1)).await;
    }
    client.close().await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.execution(), Execution::MaybeExecuted, "{error}");
    let error = client.call::<_, f64>("Foo.Sleep", &5.0).await.unwrap_err();
    assert_eq!(error.execution(), Execution::NotSent, "{error}");
}

/// Longer than replies wait, by far, in milliseconds.
const LONG: u64 = 20;

/// A server on a thread of its own, for handlers that hold it up, and a client of it.
struct Apart {
    client: XClient,
    stop: oneshot::Sender<()>,
    server: thread::JoinHandle<std::io::Result<()>>,
}

impl Apart {
    async fn of<S: Send + Sync + 'static>(foo: Service<S>) -> Self {
        let network = Memory::new();
        let listener = network.bind(&Address::to_bind("tcp@a:0").unwrap()).await.unwrap();
        let list = StaticList::new([Instance::at(listener.address().clone())]);
        let client = XClient::builder("Foo", list).transport(Arc::new(network)).build().unwrap();
        let (stop, stopped) = oneshot::channel();
        let foo = foo.method("Ready", async |(): ()| Ok::<_, Status>(())).method(
            "Busy",
            async |ms: u64| {
                if ms > 0 {
                    thread::sleep(Duration::from_millis(ms));
                }
                Ok::<_, Status>(format!("{:?}", tokio::task::try_id()))
            },
        );
        let server = thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(Server::new().service(foo).serve(listener, async {
                stopped.await.ok();
            }))
        });
        // Connected: what is called now at once is written at once, and read at once.
        client.call::<_, ()>("Foo.Ready", &()).await.unwrap();
        let scene = Self { client, stop, server };
        // Until it is polled by the connection's own task: then one task answers one call after another.
        while scene.busy(0).await != scene.busy(0).await {}
        scene
    }

    /// Holds the connection's task up for so long. Tells by which task.
    async fn busy(&self, ms: u64) -> String {
        self.client.call("Foo.Busy", &ms).await.unwrap()
    }

    async fn end(self) {
        self.client.close().await;
        self.stop.send(()).unwrap();
        self.server.join().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_reply_does_not_wait_long_for_the_calls_that_were_read_with_it() {
    let (release, released) = mpsc::channel::<()>();
    let foo = Service::with_state("Foo", Mutex::new(released)).method(
        "Stuck",
        async |released: State<Mutex<mpsc::Receiver<()>>>, (): ()| {
            let released = released.lock().unwrap();
            Ok::<_, Status>(released.recv_timeout(Duration::from_secs(9)).is_ok())
        },
    );
    let scene = Apart::of(foo).await;
    let busy = async {
        scene.busy(LONG).await;
        release.send(()).unwrap();
    };
    let ((), released) = tokio::join!(busy, scene.client.call::<_, bool>("Foo.Stuck", &()));
    assert!(released.unwrap(), "the reply came after the call that was read with it");
    scene.end().await;
}

#[tokio::test]
async fn a_call_whose_time_went_by_behind_one_that_was_read_with_it_is_not_started() {
    let started = Arc::new(AtomicUsize::new(0));
    let foo = Service::with_state("Foo", Arc::clone(&started)).method(
        "Count",
        async |started: State<AtomicUsize>, (): ()| {
            started.fetch_add(1, SeqCst);
            Ok::<_, Status>(())
        },
    );
    let scene = Apart::of(foo).await;
    let count = Call::new("Foo.Count").args(&()).unwrap().timeout(Duration::from_millis(5));
    let (_, count) = tokio::join!(scene.busy(LONG), scene.client.send(count));
    assert_eq!(count.unwrap_err().kind(), Kind::DeadlineExceeded);
    scene.client.call::<_, ()>("Foo.Ready", &()).await.unwrap();
    assert_eq!(started.load(SeqCst), 0);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_fresh_clients_first_call_waits_for_no_timer() {
    let foo = Service::new("Foo").method("Sum", async |(a, b): (i64, i64)| Ok::<_, Status>(a + b));
    // Between two ticks of tokio's timers: one that is due lasts until the next.
    tokio::time::advance(Duration::from_micros(300)).await;
    let scene = Scene::of(Server::new().service(foo)).await;
    let begun = Instant::now();
    assert_eq!(scene.client.call::<_, i64>("Foo.Sum", &(1, 2)).await.unwrap(), 3);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}
