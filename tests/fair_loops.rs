//! A loop of calls that end without having waited lets the other tasks of its thread run.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use srpc::adapt::{Balance, ToOthers};
use srpc::backend::static_list::StaticList;
use srpc::client::{Channel, ConnectionSettings};
use srpc::discovery::{Endpoint, Resolver};
use srpc::error::{BoxError, Fate};
use srpc::transport::Memory;
use srpc::xclient::{Attempt, XClientBuilder};
use srpc::{Call, Error, Kind, Reply, XClient};
use tokio::time::{Duration, Instant};
use tower::filter::FilterLayer;
use tower::layer::layer_fn;
use tower::util::BoxCloneService;
use tower::{Service, service_fn};

/// More than a task's budget, and longer than any task should have to wait.
const CALLS: usize = 5_000;

/// Whether another task of this thread runs within a loop.
async fn lets_others_run(mut call: impl AsyncFnMut()) -> bool {
    let ran = Arc::new(AtomicBool::new(false));
    let other = Arc::clone(&ran);
    tokio::spawn(async move { other.store(true, SeqCst) });
    for _ in 0..CALLS {
        call().await;
        if ran.load(SeqCst) {
            return true;
        }
    }
    false
}

/// A client of these instances. Nobody listens at any of them.
fn builder(list: &str) -> XClientBuilder {
    let list = StaticList::parse(list).unwrap();
    XClient::builder("Foo", list).transport(Arc::new(Memory::new()))
}

struct Unencodable;

impl Serialize for Unencodable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("on purpose"))
    }
}

/// Asserts that a loop of this expression, whose value is a failure, lets others run.
macro_rules! assert_fair {
    ($call:expr) => {
        let is_fair = lets_others_run(async || {
            $call.await.unwrap_err();
        });
        assert!(is_fair.await, "{}", stringify!($call));
    };
}

#[tokio::test(start_paused = true)]
async fn calls() {
    let client = builder("").build().unwrap();
    client.resolver().listed().await;
    let call = || Call::new("Foo.Sum");
    assert_fair!(client.send(call()));
    assert_fair!(client.call::<_, u8>("Foo.Sum", &1));
    assert_fair!(client.notify("Foo.Sum", &1));
    assert_fair!(client.broadcast_call(call()));
    assert_fair!(client.gather_call(call()));
    assert_fair!(client.fork_call(call()));
    let late = || call().deadline(Instant::now() - Duration::from_secs(1));
    assert_fair!(client.send(late()));
    let bad = Unencodable;
    assert_fair!(client.call::<_, u8>("Foo.Sum", &bad));
    assert_fair!(client.notify("Foo.Sum", &bad));
    assert_fair!(client.broadcast::<_, u8>("Foo.Sum", &bad));
    assert_fair!(client.gather::<_, u8>("Foo.Sum", &bad));
    assert_fair!(client.fork::<_, u8>("Foo.Sum", &bad));
    client.close().await;
    assert_fair!(client.send(call()));
}

#[tokio::test(start_paused = true)]
async fn calls_of_a_channel() {
    let client = builder("mem@foo").build().unwrap();
    client.resolver().listed().await;
    let endpoint = client.resolver().snapshot().endpoints.iter().next().unwrap().clone();
    let channel = Channel::new(endpoint, Arc::new(Memory::new()), ConnectionSettings::default());
    channel.close();
    let call = Call::new("Foo.Sum");
    assert_fair!(channel.exchange(&call, Instant::now() + Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn attempts_of_one_call() {
    const ENDPOINTS: u32 = 300;
    let list: Vec<_> = (0..ENDPOINTS).map(|n| format!("mem@s{n}")).collect();
    let made = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&made);
    let failing = layer_fn(move |_: BoxCloneService<Attempt, Reply, BoxError>| {
        let counted = Arc::clone(&counted);
        service_fn(move |_: Attempt| {
            counted.fetch_add(1, SeqCst);
            async {
                let error = Error::new(Kind::Unavailable, Fate::NoConnection, "on purpose");
                Err::<Reply, BoxError>(error.into())
            }
        })
    });
    let client = builder(&list.join(",")).attempt_layer(failing).build().unwrap();
    client.resolver().listed().await;
    let other = tokio::spawn(async move { made.load(SeqCst) });
    let error = client.send(Call::new("Foo.Sum")).await.unwrap_err();
    assert!(error.attempt() >= ENDPOINTS, "{error}");
    let ran_after = other.await.unwrap();
    assert!(ran_after < ENDPOINTS, "after {ran_after} attempts");
}

#[tokio::test(start_paused = true)]
async fn layers_that_refuse_or_answer_themselves() {
    let refusing = FilterLayer::new(|_: Call| Err::<Call, BoxError>("switched off".into()));
    let client = builder("").layer(refusing).build().unwrap();
    assert_fair!(client.send(Call::new("Foo.Sum")));
    let caching = layer_fn(|_: BoxCloneService<Call, Reply, BoxError>| {
        service_fn(|call: Call| async move { Ok::<_, BoxError>(Reply::new(call.codec, call.body)) })
    });
    let client = builder("").layer(caching).build().unwrap();
    let answered = lets_others_run(async || {
        client.send(Call::new("Foo.Sum")).await.unwrap();
    });
    assert!(answered.await, "a cache that answers at once");
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_balancer() {
    let resolver = |list: &str| {
        let list = StaticList::parse(list).unwrap();
        Resolver::new("web".parse().unwrap(), Arc::new(list))
    };
    let refusing = |_: &Endpoint| {
        service_fn(|(): ()| async {
            Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionRefused))
        })
    };
    let empty = Balance::new(resolver(""), refusing);
    empty.resolver().listed().await;
    assert_fair!(empty.clone().call(()));
    let was_not_sent = |_: &(dyn std::error::Error + 'static)| true;
    let failing = Balance::builder(resolver("tcp@a:1,tcp@b:1"), refusing);
    let failing = failing.failover(ToOthers::if_not_sent(was_not_sent)).build();
    failing.resolver().listed().await;
    assert_fair!(failing.clone().call(()));
}
