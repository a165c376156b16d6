//! tower's own layers, and a user's, around a client and around a handler: they do what they say.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::error::{BoxError, Fate};
use srpc::server::Failure;
use srpc::transport::{Memory, Transport};
use srpc::xclient::{Attempt, Retry, XClientBuilder};
use srpc::{
    Address, Call, Error, Execution, Instance, Kind, Reply, Server, Service, Status, XClient,
};
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep};
use tower::buffer::BufferLayer;
use tower::filter::FilterLayer;
use tower::layer::layer_fn;
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::retry::RetryLayer;
use tower::timeout::TimeoutLayer;
use tower::util::BoxCloneService;
use tower::{Layer, Service as TowerService, ServiceBuilder, ServiceExt, service_fn};

/// The most handlers that ran at once, and how many ran in all.
#[derive(Default)]
struct Seen {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
}

fn service(seen: &Arc<Seen>) -> Service<Seen> {
    Service::with_state("Foo", Arc::clone(seen)).method(
        "Sleep",
        async |seen: srpc::server::State<Seen>, ms: u64| {
            seen.most.fetch_max(seen.now.fetch_add(1, SeqCst) + 1, SeqCst);
            seen.all.fetch_add(1, SeqCst);
            sleep(Duration::from_millis(ms)).await;
            seen.now.fetch_sub(1, SeqCst);
            Ok::<_, Status>(ms)
        },
    )
}

async fn builder(service: Service<Seen>) -> XClientBuilder {
    let network = Memory::new();
    let listener = network.bind(&Address::to_bind("mem@foo").unwrap()).await.unwrap();
    let list = StaticList::new([Instance::at(listener.address().clone())]);
    tokio::spawn(Server::new().service(service).serve(listener, std::future::pending()));
    XClient::builder("Foo", list).transport(Arc::new(network)).seed(1)
}

async fn all_at_once(client: &XClient, calls: usize, ms: u64) -> Vec<Result<u64, Error>> {
    let calls: Vec<_> = (0..calls)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call::<_, u64>("Foo.Sleep", &ms).await })
        })
        .collect();
    let mut results = Vec::new();
    for call in calls {
        results.push(call.await.unwrap());
    }
    results
}

#[tokio::test(start_paused = true)]
async fn towers_timeout_ends_a_call() {
    let client = builder(service(&Arc::default())).await;
    let client = client.layer(TimeoutLayer::new(Duration::from_millis(300))).build().unwrap();
    assert_eq!(client.call::<_, u64>("Foo.Sleep", &100).await.unwrap(), 100);
    let started = Instant::now();
    let error = client.call::<_, u64>("Foo.Sleep", &1000).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
    assert_eq!(error.execution(), Execution::MaybeExecuted);
    assert_eq!(started.elapsed().as_millis() / 10, 30);
}

#[tokio::test(start_paused = true)]
async fn towers_concurrency_limit_holds() {
    let seen = Arc::new(Seen::default());
    let client = builder(service(&seen)).await;
    let client = client.layer(ConcurrencyLimitLayer::new(3)).build().unwrap();
    let started = Instant::now();
    let results = all_at_once(&client, 9, 100).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(seen.most.load(SeqCst), 3);
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    // Waiting for the limit is part of the call, and so is its deadline.
    let slow = client.clone();
    let hog: Vec<_> = (0..3)
        .map(|_| {
            let slow = slow.clone();
            tokio::spawn(async move { slow.call::<_, u64>("Foo.Sleep", &5000).await })
        })
        .collect();
    sleep(Duration::from_millis(10)).await;
    let started = Instant::now();
    let call = Call::new("Foo.Sleep").args(&1).unwrap().timeout(Duration::from_millis(200));
    let error = client.send(call).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(started.elapsed().as_millis(), 200);
    hog.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_in_a_layer_ends_by_its_deadline_and_leaves_its_place() {
    let seen = Arc::default();
    let limited = builder(service(&seen)).await.layer(ConcurrencyLimitLayer::new(1));
    let client = limited.deadline(Duration::from_millis(100)).build().unwrap();
    let long = tokio::spawn({
        let client = client.clone();
        let call = Call::new("Foo.Sleep").args(&1000_u64).unwrap().timeout(Duration::from_secs(2));
        async move { client.send(call).await }
    });
    while seen.now.load(SeqCst) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    // Nobody below the layers looks after these: they never get there.
    let started = Instant::now();
    for result in all_at_once(&client, 5, 1).await {
        assert_eq!(result.unwrap_err().kind(), Kind::DeadlineExceeded);
    }
    let took = started.elapsed();
    assert!((90..150).contains(&took.as_millis()), "{took:?}");
    long.await.unwrap().unwrap();
    // Whoever gave up has left no permit behind that nobody gives back.
    for round in 0..3 {
        for result in all_at_once(&client, 20, 1).await {
            assert_eq!(result.unwrap(), 1, "round {round}");
        }
    }
    assert_eq!((seen.most.load(SeqCst), seen.all.load(SeqCst)), (1, 61));
}

#[tokio::test(start_paused = true)]
async fn towers_buffer_passes_calls_and_errors_on() {
    let seen = Arc::new(Seen::default());
    let client = builder(service(&seen)).await.layer(BufferLayer::new(16)).build().unwrap();
    let results = all_at_once(&client, 50, 10).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let error = client.call::<_, u64>("Foo.None", &1).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Unimplemented, Execution::Rejected));
}

#[tokio::test(start_paused = true)]
async fn layers_stand_around_a_client_too() {
    let seen = Arc::new(Seen::default());
    let client = builder(service(&seen)).await.build().unwrap();
    let mut stack = ServiceBuilder::new()
        .layer(BufferLayer::new(8))
        .layer(ConcurrencyLimitLayer::new(2))
        .layer(TimeoutLayer::new(Duration::from_secs(1)))
        .service(client);
    let call = Call::new("Foo.Sleep").args(&7).unwrap();
    let reply = stack.ready().await.unwrap().call(call).await.unwrap();
    assert_eq!(reply.decode::<u64>().unwrap(), 7);
    let call = Call::new("Foo.Sleep").args(&2000).unwrap();
    let error = stack.ready().await.unwrap().call(call).await.unwrap_err();
    assert_eq!(Error::from_boxed(error).kind(), Kind::DeadlineExceeded);
}

/// A user's own attempt layer: counts attempts by endpoint, and fails the first of each call.
#[derive(Clone)]
struct Flaky {
    attempts: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct FlakyService<S> {
    inner: S,
    attempts: Arc<AtomicUsize>,
}

impl<S> Layer<S> for Flaky {
    type Service = FlakyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FlakyService { inner, attempts: Arc::clone(&self.attempts) }
    }
}

impl<S> TowerService<Attempt> for FlakyService<S>
where
    S: TowerService<Attempt, Response = Reply> + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        assert_eq!(attempt.endpoint.instance().address.as_str(), "mem@foo");
        self.attempts.fetch_add(1, SeqCst);
        if attempt.number == 1 {
            let refused = Error::new(Kind::Unavailable, Fate::NoConnection, "flaky");
            return Box::pin(async move { Err(refused.into()) });
        }
        let answer = self.inner.call(attempt);
        Box::pin(async move { answer.await.map_err(Into::into) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_users_attempt_layer_sees_every_attempt() {
    let (seen, attempts) = (Arc::new(Seen::default()), Arc::new(AtomicUsize::new(0)));
    let layer = Flaky { attempts: Arc::clone(&attempts) };
    let client = builder(service(&seen)).await.attempt_layer(layer).build().unwrap();
    for _ in 0..10 {
        assert_eq!(client.call::<_, u64>("Foo.Sleep", &1).await.unwrap(), 1);
    }
    assert_eq!((attempts.load(SeqCst), seen.all.load(SeqCst)), (20, 10));
}

#[tokio::test(start_paused = true)]
async fn our_retry_policy_works_under_towers_retry_layer() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(Seen::default());
    let client = builder(service(&seen)).await.attempts(1).build().unwrap();
    let counted = Arc::clone(&attempts);
    let flaky = service_fn(move |call: Call| {
        let first = counted.fetch_add(1, SeqCst) == 0;
        let client = client.clone();
        async move {
            if first {
                return Err(Error::new(Kind::Unavailable, Fate::ConnectionLost, "lost"));
            }
            client.send(call).await
        }
    });
    let mut stack = RetryLayer::new(Retry::new(3)).layer(flaky);
    let call = Call::new("Foo.Sleep").args(&1).unwrap();
    let error = stack.ready().await.unwrap().call(call.clone()).await.unwrap_err();
    assert_eq!(error.execution(), Execution::MaybeExecuted, "not marked idempotent: not again");
    attempts.store(0, SeqCst);
    let reply = stack.ready().await.unwrap().call(call.idempotent(true)).await.unwrap();
    assert_eq!(reply.decode::<u64>().unwrap(), 1);
    assert_eq!((attempts.load(SeqCst), seen.all.load(SeqCst)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn layers_fit_around_handlers() {
    let seen = Arc::new(Seen::default());
    let guard = FilterLayer::new(|request: srpc::server::Request| {
        match request.context.metadata().value("token") {
            Some("secret") => Ok(request),
            _ => Err(Failure::rejected(Kind::PermissionDenied, "no token")),
        }
    });
    let limited = service(&seen).layer(TimeoutLayer::new(Duration::from_millis(50))).layer(guard);
    let client = builder(limited).await.build().unwrap();
    let error = client.call::<_, u64>("Foo.Sleep", &1).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::PermissionDenied, Execution::Rejected));
    assert_eq!(seen.all.load(SeqCst), 0);
    let call =
        |ms: u64| Call::new("Foo.Sleep").args(&ms).unwrap().metadata("token", "secret").unwrap();
    assert_eq!(client.send(call(1)).await.unwrap().decode::<u64>().unwrap(), 1);
    let error = client.send(call(1000)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
    assert_eq!(error.execution(), Execution::MaybeExecuted);
}

type Inner<T> = BoxCloneService<T, Reply, BoxError>;
type Answer = Pin<Box<dyn Future<Output = Result<Reply, BoxError>> + Send>>;

/// A layer made of a function of the service that it wraps and a request.
fn with<T: 'static>(
    function: impl Fn(Inner<T>, T) -> Answer + Clone + Send + 'static,
) -> impl Layer<
    Inner<T>,
    Service = impl TowerService<T, Response = Reply, Error = BoxError, Future = Answer>
              + Clone
              + Send
              + 'static,
> + Send
+ 'static {
    layer_fn(move |inner: Inner<T>| {
        let function = function.clone();
        service_fn(move |request: T| function(inner.clone(), request))
    })
}

const LIMIT: Duration = Duration::from_millis(300);

/// A call that takes longer than any other here, and whose own timeout allows it.
fn slow() -> Call {
    Call::new("Foo.Sleep").args(&5000_u64).unwrap().timeout(Duration::from_secs(9))
}

fn assert_on_time(what: &str, took: Duration) {
    assert!((290..=320).contains(&took.as_millis()), "{what}: {took:?}");
}

/// Polls a future once, with this waker.
fn poll_by(waker: &Waker, future: &mut Answer) {
    let _ = future.as_mut().poll(&mut Context::from_waker(waker));
}

async fn once(future: &mut Answer) {
    poll_fn(|cx| {
        poll_by(cx.waker(), future);
        Poll::Ready(())
    })
    .await;
}

type CallLayer = fn(Inner<Call>, Call) -> Answer;

/// What layers may do to a call that has 300 ms, with the milliseconds that the call itself takes.
const CALL_LAYERS: [(&str, u64, CallLayer); 9] = [
    ("a call of its own first", 1, |mut inner, call| {
        Box::pin(async move {
            inner.call(slow()).await?;
            inner.call(call).await
        })
    }),
    ("a shadow call beside", 1, |mut inner, call| {
        let mut other = inner.clone();
        Box::pin(async move {
            let (answer, shadow) = tokio::join!(inner.call(call), other.call(slow()));
            shadow?;
            answer
        })
    }),
    ("the deadline moved", 5000, |mut inner, mut call| {
        call.deadline = Some(Instant::now() + Duration::from_secs(5));
        inner.call(call)
    }),
    ("the deadline cleared", 5000, |mut inner, mut call| {
        call.deadline = None;
        inner.call(call)
    }),
    ("retries for ever", 5000, |mut inner, mut call| {
        call.attempt_timeout = Some(Duration::from_millis(40));
        Box::pin(async move {
            loop {
                if let Ok(reply) = inner.call(call.clone()).await {
                    return Ok(reply);
                }
                sleep(Duration::from_millis(25)).await;
            }
        })
    }),
    ("polled with a waker that wakes nobody", 5000, |mut inner, call| {
        Box::pin(async move {
            let mut answer = inner.call(call);
            poll_by(Waker::noop(), &mut answer);
            sleep(Duration::from_secs(5)).await;
            answer.await
        })
    }),
    ("polled twice and dropped", 5000, |mut inner, call| {
        Box::pin(async move {
            let mut answer = inner.call(call);
            once(&mut answer).await;
            once(&mut answer).await;
            drop(answer);
            sleep(Duration::from_secs(5)).await;
            Err("nobody waits for this".into())
        })
    }),
    ("moved to a task", 5000, |mut inner, call| {
        Box::pin(async move {
            let mut answer = inner.call(call);
            once(&mut answer).await;
            tokio::spawn(answer);
            sleep(Duration::from_secs(5)).await;
            Err("nobody waits for this".into())
        })
    }),
    ("a late answer of its own", 1, |_, call| {
        Box::pin(async move {
            sleep(Duration::from_secs(5)).await;
            Ok(Reply::new(call.codec, call.body))
        })
    }),
];

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_call_whatever_its_layers_do() {
    for (what, ms, layer) in CALL_LAYERS {
        let client = builder(service(&Arc::default())).await.layer(with(layer)).deadline(LIMIT);
        let client = client.build().unwrap();
        let started = Instant::now();
        let error = client.call::<_, u64>("Foo.Sleep", &ms).await.unwrap_err();
        assert_on_time(what, started.elapsed());
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{what}: {error}");
    }
}

type AttemptLayer = fn(Inner<Attempt>, Attempt) -> Answer;

const ATTEMPT_LAYERS: [(&str, AttemptLayer); 5] = [
    ("the deadline moved", |mut inner, mut attempt| {
        attempt.call.deadline = Some(Instant::now() + Duration::from_secs(9));
        inner.call(attempt)
    }),
    ("the deadline cleared", |mut inner, mut attempt| {
        attempt.call.deadline = None;
        inner.call(attempt)
    }),
    ("another call", |mut inner, mut attempt| {
        attempt.call = slow();
        inner.call(attempt)
    }),
    ("another call in a task", |mut inner, mut attempt| {
        attempt.call = slow();
        Box::pin(async move { tokio::spawn(async move { inner.call(attempt).await }).await? })
    }),
    ("waits itself", |mut inner, attempt| {
        Box::pin(async move {
            sleep(Duration::from_secs(5)).await;
            inner.call(attempt).await
        })
    }),
];

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_an_attempt_whatever_its_layers_do() {
    for (what, layer) in ATTEMPT_LAYERS {
        let client = builder(service(&Arc::default())).await.attempt_layer(with(layer));
        let client = client.deadline(LIMIT).build().unwrap();
        let started = Instant::now();
        let error = client.call::<_, u64>("Foo.Sleep", &5000).await.unwrap_err();
        assert_on_time(what, started.elapsed());
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{what}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_in_a_task_that_a_layer_spawned_end_by_the_same_deadline() {
    let ended = Arc::<Mutex<Vec<Duration>>>::default();
    let noted = Arc::clone(&ended);
    let layer = with(move |mut inner: Inner<Call>, call: Call| -> Answer {
        let mut later = call.clone();
        later.deadline = None;
        later.timeout = Some(Duration::from_secs(9));
        for call in [later, slow()] {
            let (mut inner, noted, started) = (inner.clone(), Arc::clone(&noted), Instant::now());
            tokio::spawn(async move {
                let _ = inner.ready().await.unwrap().call(call).await;
                noted.lock().unwrap().push(started.elapsed());
            });
        }
        inner.call(call)
    });
    let client = builder(service(&Arc::default())).await.layer(layer).deadline(LIMIT);
    let client = client.build().unwrap();
    // Twice: what the first call left in the layers does not hold for the second.
    for calls in [2, 4] {
        let error = client.call::<_, u64>("Foo.Sleep", &5000).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        sleep(Duration::from_millis(50)).await;
        let ended = ended.lock().unwrap().clone();
        assert_eq!(ended.len(), calls, "{ended:?}");
        ended.iter().for_each(|took| assert_on_time("in a task", *took));
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_another_client_within_a_layer_end_by_the_same_deadline() {
    let other = builder(service(&Arc::default())).await.build().unwrap();
    let layer = with(move |mut inner: Inner<Call>, call: Call| -> Answer {
        let other = other.clone();
        Box::pin(async move {
            other.send(slow()).await?;
            inner.call(call).await
        })
    });
    let client = builder(service(&Arc::default())).await.layer(layer).deadline(LIMIT);
    let client = client.build().unwrap();
    let started = Instant::now();
    let error = client.call::<_, u64>("Foo.Sleep", &1).await.unwrap_err();
    assert_on_time("another client", started.elapsed());
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
    assert_eq!(error.execution(), Execution::NotSent, "the call itself was not passed on");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_layer_that_never_waits() {
    let layer = with(|mut inner: Inner<Call>, call: Call| -> Answer {
        Box::pin(async move {
            for _ in 0..100_000 {
                let _ = inner.call(call.clone()).await;
            }
            Err("it was not ended".into())
        })
    });
    let client = builder(service(&Arc::default())).await.layer(layer).deadline(LIMIT);
    let client = client.build().unwrap();
    client.close().await;
    let busy = tokio::spawn(async move { client.call::<_, u64>("Foo.Sleep", &1).await });
    yield_now().await;
    advance(LIMIT * 2).await;
    let error = busy.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
}

/// The error of a call through this layer.
async fn error_through<L>(layer: L) -> Error
where
    L: Layer<Inner<Call>> + Send + 'static,
    L::Service: TowerService<Call, Response = Reply> + Clone + Send + 'static,
    <L::Service as TowerService<Call>>::Error: Into<BoxError>,
    <L::Service as TowerService<Call>>::Future: Send,
{
    let client = builder(service(&Arc::default())).await.layer(layer).build().unwrap();
    client.call::<_, u64>("Foo.Sleep", &1).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_never_passed_on_is_not_sent_and_says_why() {
    let switched_off = |_: Call| Err::<Call, BoxError>("the feature is switched off".into());
    let error = error_through(FilterLayer::new(switched_off)).await;
    assert_eq!((error.kind(), error.execution()), (Kind::Unknown, Execution::NotSent));
    assert!(error.to_string().contains("switched off"), "{error}");

    let not_you = |_: Call| Err::<Call, _>(Error::refused(Kind::PermissionDenied, "not you"));
    let error = error_through(FilterLayer::new(not_you)).await;
    assert_eq!((error.kind(), error.execution()), (Kind::PermissionDenied, Execution::NotSent));
    assert!(!error.may_be_sent_again(true));

    let never_polled = with(|mut inner: Inner<Call>, call: Call| -> Answer {
        let answer = inner.call(call);
        Box::pin(async move {
            drop(answer);
            Err("too many".into())
        })
    });
    let error = error_through(never_polled).await;
    assert_eq!(error.execution(), Execution::NotSent, "{error}");

    let shed = ServiceBuilder::new()
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .into_inner();
    let client = builder(service(&Arc::default())).await.layer(shed).build().unwrap();
    let mut results = all_at_once(&client, 2, 100).await;
    results.sort_by_key(Result::is_err);
    let error = results.pop().unwrap().unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::ResourceExhausted, Execution::NotSent));

    // Its time passes while it waits for the limit.
    let limited = builder(service(&Arc::default())).await.layer(ConcurrencyLimitLayer::new(1));
    let client = limited.deadline(LIMIT).build().unwrap();
    let long = Call::new("Foo.Sleep").args(&900_u64).unwrap().timeout(Duration::from_secs(2));
    let (long, late) = tokio::join!(client.send(long), client.call::<_, u64>("Foo.Sleep", &1));
    long.unwrap();
    let error = late.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::DeadlineExceeded, Execution::NotSent));
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_passed_on_may_have_been_executed() {
    let layers: [(&str, CallLayer); 6] = [
        ("refuses the reply", |mut inner, call| {
            Box::pin(async move {
                inner.call(call).await?;
                Err(Error::refused(Kind::PermissionDenied, "not this reply").into())
            })
        }),
        ("makes another call afterwards, which is not sent", |mut inner, call| {
            Box::pin(async move {
                inner.call(call).await?;
                Err(Error::new(Kind::Unavailable, Fate::NoConnection, "no audit").into())
            })
        }),
        ("does not wait for it", |mut inner, call| {
            Box::pin(async move {
                let mut answer = inner.call(call);
                once(&mut answer).await;
                Err(Error::refused(Kind::Unavailable, "too slow").into())
            })
        }),
        ("builds the call anew", |mut inner, call| {
            Box::pin(async move {
                let anew = Call::new(call.method.clone()).body(call.codec, call.body.clone());
                inner.call(anew).await?;
                Err("out of order".into())
            })
        }),
        ("passes it on in a task", |mut inner, call| {
            Box::pin(async move {
                tokio::spawn(async move { inner.call(call).await }).await??;
                Err("out of order".into())
            })
        }),
        ("builds the call anew in a task", |mut inner, call| {
            Box::pin(async move {
                let anew = Call::new(call.method.clone()).body(call.codec, call.body.clone());
                tokio::spawn(async move { inner.call(anew).await }).await??;
                Err("out of order".into())
            })
        }),
    ];
    for (what, layer) in layers {
        let error = error_through(with(layer)).await;
        assert_eq!(error.execution(), Execution::MaybeExecuted, "{what}: {error}");
        assert!(!error.may_be_sent_again(false), "{what}: {error}");
    }
    let seen = Arc::new(Seen::default());
    let other = builder(service(&seen)).await.build().unwrap();
    let layer = with(move |_: Inner<Call>, call: Call| -> Answer {
        let other = other.clone();
        Box::pin(async move {
            other.send(call).await?;
            Err("out of order".into())
        })
    });
    let error = error_through(layer).await;
    assert_eq!(error.execution(), Execution::MaybeExecuted, "through another client: {error}");
    assert_eq!(seen.all.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_told_as_not_sent_is_not_sent_later() {
    let seen = Arc::new(Seen::default());
    let layer = with(|mut inner: Inner<Call>, call: Call| -> Answer {
        tokio::spawn(async move {
            sleep(Duration::from_millis(10)).await;
            let _ = inner.call(call).await;
        });
        Box::pin(async { Err("refused".into()) })
    });
    let client = builder(service(&seen)).await.layer(layer).build().unwrap();
    let error = client.call::<_, u64>("Foo.Sleep", &1).await.unwrap_err();
    assert_eq!(error.execution(), Execution::NotSent);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(seen.all.load(SeqCst), 0);
}

#[test]
fn a_buffer_whose_runtime_has_ended_is_told() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let client = first.block_on(async {
        let client = builder(service(&Arc::default())).await;
        client.layer(BufferLayer::<Call>::new(8)).build().unwrap()
    });
    drop(first);
    let error = second.block_on(client.call::<_, u64>("Foo.Sleep", &1)).unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Unavailable, Execution::NotSent));
    assert!(error.message().contains("closed"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_layers_refusal_is_tried_again_by_its_kind() {
    for (kind, attempts) in [(Kind::Unavailable, 3), (Kind::PermissionDenied, 1)] {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let layer = with(move |_: Inner<Attempt>, _: Attempt| -> Answer {
            counted.fetch_add(1, SeqCst);
            Box::pin(async move { Err(Error::refused(kind, "not now").into()) })
        });
        let client = builder(service(&Arc::default())).await.attempt_layer(layer);
        let client = client.retry(Retry::new(3).budget(1.0, 100)).build().unwrap();
        let error = client.call::<_, u64>("Foo.Sleep", &1).await.unwrap_err();
        assert_eq!((error.kind(), error.execution()), (kind, Execution::NotSent), "{error}");
        assert_eq!(made.load(SeqCst), attempts);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_services_layer_never_passed_on_is_rejected() {
    let seen = Arc::new(Seen::default());
    let shed = ServiceBuilder::new()
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .into_inner();
    let client = builder(service(&seen).layer(shed)).await.attempts(1).build().unwrap();
    let mut results = all_at_once(&client, 2, 100).await;
    results.sort_by_key(Result::is_err);
    let error = results.pop().unwrap().unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::ResourceExhausted, Execution::Rejected));
    assert_eq!(seen.all.load(SeqCst), 1);

    type Request = srpc::server::Request;
    let switched_off = |_: Request| Err::<Request, BoxError>("switched off".into());
    let switched_off = FilterLayer::new(switched_off);
    let client = builder(service(&seen).layer(switched_off)).await.build().unwrap();
    let error = client.call::<_, u64>("Foo.Sleep", &1).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Unknown, Execution::Rejected));
    assert!(error.message().contains("switched off"), "{error}");
    assert_eq!(seen.all.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_services_layer_passed_on_is_not_rejected() {
    let spoiling = layer_fn(|inner: srpc::server::MethodService| {
        service_fn(move |request: srpc::server::Request| {
            let mut inner = inner.clone();
            async move {
                inner.call(request).await?;
                let late = Failure::rejected(Kind::Unavailable, "too late for that");
                Err::<srpc::server::Response, BoxError>(late.into())
            }
        })
    });
    let seen = Arc::new(Seen::default());
    let client = builder(service(&seen).layer(spoiling)).await.build().unwrap();
    let error = client.call::<_, u64>("Foo.Sleep", &1).await.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Unavailable, Execution::MaybeExecuted));
    assert_eq!(seen.all.load(SeqCst), 1, "it is not sent again");
}
