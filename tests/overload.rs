//! What does a server that gets three times the calls it can answer still answer, and how soon does
//! it turn away the rest?

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::call::{CodecId, Metadata};
use srpc::protocol::{CallHead, FrameType, Hello, Limits, MethodRef, encode_call, encode_frame};
use srpc::selector::RoundRobin;
use srpc::server::{Adaptive, Concurrency, ServerStats};
use srpc::transport::{Memory, Transport};
use srpc::{Address, Call, Error, Execution, Instance, Kind, Server, Service, Status, XClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

const HANDLING: Duration = Duration::from_millis(10);
/// How many handlers the tested resource serves at once: 2,000 calls a second.
const PLACES: usize = 20;
const CAPACITY: f64 = 2000.0;

/// `Foo.Sleep` takes 10 ms; `Foo.Pool` takes as long, once it has a place; `Foo.Hold` takes the
/// milliseconds that it is given.
fn foo() -> Service {
    let pool = Arc::new(Semaphore::new(PLACES));
    Service::new("Foo")
        .method("Sleep", async |(): ()| {
            sleep(HANDLING).await;
            Ok::<_, Status>(())
        })
        .method("Pool", move |(): ()| {
            let pool = Arc::clone(&pool);
            async move {
                let _place = pool.acquire().await;
                sleep(HANDLING).await;
                Ok::<_, Status>(())
            }
        })
        .method("Hold", async |ms: u64| {
            sleep(Duration::from_millis(ms)).await;
            Ok::<_, Status>(())
        })
        .method("Panic", async |(): ()| -> Result<(), Status> { panic!("as asked") })
}

struct Scene {
    network: Memory,
    addresses: Vec<Address>,
    stats: Vec<ServerStats>,
}

impl Scene {
    async fn new(limits: &[Concurrency]) -> Self {
        let network = Memory::new();
        let (mut addresses, mut stats) = (Vec::new(), Vec::new());
        for (number, limit) in limits.iter().enumerate() {
            let address = Address::to_bind(&format!("mem@foo{number}")).unwrap();
            let listener = network.bind(&address).await.unwrap();
            let server = Server::new().service(foo()).concurrency(limit.clone());
            addresses.push(listener.address().clone());
            stats.push(server.stats());
            tokio::spawn(server.serve(listener, pending()));
        }
        Self { network, addresses, stats }
    }

    fn client(&self, attempts: u32) -> XClient {
        let list = StaticList::new(self.addresses.iter().map(|a| Instance::at(a.clone())));
        XClient::builder("Foo", list)
            .transport(Arc::new(self.network.clone()))
            .connections_per_endpoint(4)
            .attempts(attempts)
            // Not by load: the full server is asked like any other.
            .selector(RoundRobin::new())
            .seed(1)
            .build()
            .unwrap()
    }
}

/// What came of the calls of a while.
#[derive(Debug, Default)]
struct Came {
    /// Answered, a second.
    goodput: f64,
    rejected: u64,
    /// Failed in another way.
    failed: u64,
    answers: Vec<Duration>,
    rejections: Vec<Duration>,
}

fn quantile(times: &mut [Duration], q: f64) -> Duration {
    times.sort();
    let at = (times.len() as f64 * q) as usize;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Calls on a schedule, however many of them have been answered.
async fn offer(client: &XClient, call: &Call, rate: u64, lasting: Duration) -> Came {
    let mut calls: JoinSet<(Duration, Result<(), Error>)> = JoinSet::new();
    let mut ticks = interval(Duration::from_millis(1));
    let started = Instant::now();
    let mut made = 0;
    while started.elapsed() < lasting {
        ticks.tick().await;
        let due = started.elapsed().as_micros() as u64 * rate / 1_000_000;
        while made < due {
            made += 1;
            let (client, call) = (client.clone(), call.clone());
            calls.spawn(async move {
                let made = Instant::now();
                let answer = client.send(call).await;
                (made.elapsed(), answer.map(drop))
            });
        }
    }
    let mut came = Came::default();
    while let Some(ended) = calls.join_next().await {
        match ended.unwrap() {
            (took, Ok(())) => came.answers.push(took),
            (took, Err(error)) if error.execution() == Execution::Rejected => {
                assert_eq!(error.kind(), Kind::ResourceExhausted, "{error}");
                came.rejected += 1;
                came.rejections.push(took);
            }
            (_, Err(_)) => came.failed += 1,
        }
    }
    came.goodput = came.answers.len() as f64 / lasting.as_secs_f64();
    came
}

fn call(method: &'static str) -> Call {
    Call::new(method).args(&()).unwrap().timeout(Duration::from_millis(200))
}

fn report(what: &str, peak: f64, came: &mut Came) {
    println!(
        "figure overload limit={what} goodput_share={:.2} reject_p99_ms={:.1} answer_p99_ms={:.1} \
         rejected={} failed={}",
        came.goodput / peak,
        quantile(&mut came.rejections, 0.99).as_secs_f64() * 1000.0,
        quantile(&mut came.answers, 0.99).as_secs_f64() * 1000.0,
        came.rejected,
        came.failed,
    );
}

#[tokio::test(start_paused = true)]
async fn behind_a_fixed_limit_three_times_the_load_is_answered_as_at_the_peak() {
    let scene = Scene::new(&[Concurrency::Fixed(PLACES)]).await;
    let client = scene.client(1);
    let mut came = offer(&client, &call("Foo.Sleep"), 6000, Duration::from_secs(3)).await;
    report("fixed", CAPACITY, &mut came);
    assert!(came.goodput >= 0.8 * CAPACITY, "{}", came.goodput);
    assert_eq!(came.failed, 0);
    assert!(quantile(&mut came.rejections, 1.0) <= Duration::from_millis(50));
    assert_eq!(scene.stats[0].rejected(), came.rejected);
    assert_eq!((scene.stats[0].in_flight(), scene.stats[0].limit()), (0, Some(PLACES)));
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_keeps_the_goodput_that_is_lost_without_one() {
    let scene = Scene::new(&[Concurrency::adaptive()]).await;
    let client = scene.client(1);
    let pool = call("Foo.Pool");
    let peak = offer(&client, &pool, 1900, Duration::from_secs(3)).await.goodput;
    assert!(peak >= 0.9 * CAPACITY, "{peak}");
    let mut came = offer(&client, &pool, 6000, Duration::from_secs(6)).await;
    report("adaptive", peak, &mut came);
    assert!(came.goodput >= 0.8 * peak, "{}", came.goodput);
    assert_eq!(came.failed, 0, "nothing that was taken runs into its deadline");
    assert!(quantile(&mut came.rejections, 1.0) <= Duration::from_millis(50));
    assert!(quantile(&mut came.answers, 0.99) <= 10 * HANDLING);
    let limit = scene.stats[0].limit().unwrap();
    assert!((PLACES..=4 * PLACES).contains(&limit), "{limit}");

    let scene = Scene::new(&[Concurrency::Unlimited]).await;
    let client = scene.client(1);
    let mut without = offer(&client, &pool, 6000, Duration::from_secs(2)).await;
    report("none", peak, &mut without);
    assert!(without.goodput < 0.5 * peak, "{}", without.goodput);
    assert_eq!((scene.stats[0].rejected(), scene.stats[0].limit()), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_overloaded_from_its_first_call_finds_its_limit() {
    let scene = Scene::new(&[Adaptive::new().initial(1000).into()]).await;
    let client = scene.client(1);
    offer(&client, &call("Foo.Pool"), 6000, Duration::from_secs(10)).await;
    let mut came = offer(&client, &call("Foo.Pool"), 6000, Duration::from_secs(3)).await;
    report("adaptive-from-above", CAPACITY, &mut came);
    assert!(came.goodput >= 0.8 * CAPACITY, "{}", came.goodput);
    assert!(quantile(&mut came.answers, 0.99) <= 10 * HANDLING);
}

#[tokio::test(start_paused = true)]
async fn what_is_turned_away_is_not_started_and_goes_elsewhere() {
    let scene = Scene::new(&[Concurrency::Fixed(1), Concurrency::Unlimited]).await;
    let client = scene.client(3);
    let hold = Call::new("Foo.Hold").args(&60_000_u64).unwrap().only(scene.addresses[0].clone());
    let holding = tokio::spawn({
        let (client, hold) = (client.clone(), hold.clone().timeout(Duration::from_secs(90)));
        async move { client.send(hold).await }
    });
    while scene.stats[0].in_flight() < 1 {
        sleep(Duration::from_millis(1)).await;
    }
    let error = client.send(hold).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::ResourceExhausted, Execution::Rejected));
    for _ in 0..20 {
        client.call::<_, ()>("Foo.Sleep", &()).await.unwrap();
    }
    assert!(scene.stats[0].rejected() > 1, "some came to the full one first");
    holding.await.unwrap().unwrap();
    assert_eq!(scene.stats[0].in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn every_way_to_end_gives_the_place_back() {
    let scene = Scene::new(&[Concurrency::Fixed(1)]).await;
    let client = scene.client(1);
    let hold = |ms: u64| Call::new("Foo.Hold").args(&ms).unwrap();
    for _ in 0..3 {
        // A result, a panic, a deadline, a caller that leaves, a notify.
        client.send(hold(5)).await.unwrap();
        client.send(call("Foo.Panic")).await.unwrap_err();
        let late = client.send(hold(1000).timeout(Duration::from_millis(50))).await.unwrap_err();
        assert_eq!(late.kind(), Kind::DeadlineExceeded);
        sleep(Duration::from_millis(50)).await;
        timeout(Duration::from_millis(50), client.send(hold(1000))).await.unwrap_err();
        sleep(Duration::from_millis(50)).await;
        client.send(hold(100).notify(true)).await.unwrap();
        // Acknowledged, but at work: its place is taken.
        let error = client.send(hold(1)).await.unwrap_err();
        assert_eq!(error.execution(), Execution::Rejected);
        sleep(Duration::from_millis(200)).await;
        assert_eq!(scene.stats[0].in_flight(), 0);
    }
}

/// On the machine's clock: the first handler blocks its connection for longer than the second call
/// has.
#[tokio::test]
async fn what_expires_while_it_waits_to_be_taken_in_is_not_started() {
    let started = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&started);
    let service = Service::new("Foo")
        .method("Block", async |(): ()| {
            std::thread::sleep(Duration::from_millis(60));
            Ok::<_, Status>(())
        })
        .method("Count", move |(): ()| {
            counted.fetch_add(1, SeqCst);
            async { Ok::<_, Status>(()) }
        });
    let network = Memory::new();
    let listener = network.bind(&Address::to_bind("mem@foo").unwrap()).await.unwrap();
    let address = listener.address().clone();
    tokio::spawn(Server::new().service(service).serve(listener, pending()));

    let mut bytes = Vec::new();
    Hello::new(Limits::default()).encode(&mut bytes);
    for (id, method, remaining_ms) in [(1, "Foo.Block", 10_000), (2, "Foo.Count", 20)] {
        let head = CallHead {
            method: MethodRef::Name(method),
            codec: CodecId::JSON,
            remaining_ms,
            metadata: Metadata::default(),
        };
        encode_frame(&mut bytes, FrameType::Call, 0, id, |out| encode_call(out, &head, b"null"));
    }
    let mut stream = network.connect(&address).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let said = "the deadline passed before the call was started";
    let read = async {
        while !String::from_utf8_lossy(&answer).contains(said) {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "closed: {answer:?}");
        }
    };
    timeout(Duration::from_secs(60), read).await.unwrap();
    assert_eq!(started.load(SeqCst), 0);
}
