//! tower's own layers, and a user's, around a client and around a handler: they do what they say.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::server::Failure;
use srpc::transport::{Memory, Transport};
use srpc::xclient::{Attempt, Retry, XClientBuilder};
use srpc::{Address, Call, Error, Execution, Instance, Kind, Server, Service, Status, XClient};
use tokio::time::{Instant, sleep};
use tower::buffer::BufferLayer;
use tower::limit::ConcurrencyLimitLayer;
use tower::retry::RetryLayer;
use tower::timeout::TimeoutLayer;
use tower::{Layer, Service as TowerService, ServiceBuilder, ServiceExt};

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
    S: TowerService<Attempt, Response = srpc::Reply> + Send + 'static,
    S::Error: Into<srpc::error::BoxError>,
    S::Future: Send + 'static,
{
    type Response = srpc::Reply;
    type Error = srpc::error::BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<srpc::Reply, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        assert_eq!(attempt.endpoint.instance().address.as_str(), "mem@foo");
        self.attempts.fetch_add(1, SeqCst);
        if attempt.number == 1 {
            let refused = Error::new(Kind::Unavailable, srpc::error::Fate::NoConnection, "flaky");
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
    let flaky = tower::service_fn(move |call: Call| {
        let first = counted.fetch_add(1, SeqCst) == 0;
        let client = client.clone();
        async move {
            if first {
                return Err(Error::new(
                    Kind::Unavailable,
                    srpc::error::Fate::ConnectionLost,
                    "lost",
                ));
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
    let guard = tower::filter::FilterLayer::new(|request: srpc::server::Request| {
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
