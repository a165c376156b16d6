//! User code may call this crate at any time: layers, selectors, wakers, drops, functions of adapters.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

#[path = "support/reentry.rs"]
mod support;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use srpc::adapt::Balance;
use srpc::backend::static_list::StaticList;
use srpc::call::CodecId;
use srpc::client::{Connection, ConnectionSettings};
use srpc::discovery::{EndpointSet, Resolver};
use srpc::selector::{PickContext, Picker, Selector};
use srpc::transport::{Memory, Transport};
use srpc::{Address, Call, Instance, Reply, Server, Service, Status, XClient};
use tokio::time::{Instant, sleep};
use tower::util::BoxCloneService;
use tower::{Layer, Service as TowerService, service_fn};

use support::{ends, look};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Reply, BoxError>> + Send>>;

async fn network() -> (Memory, StaticList) {
    let network = Memory::new();
    let listener = network.bind(&Address::to_bind("mem@foo").unwrap()).await.unwrap();
    let list = StaticList::new([Instance::at(listener.address().clone())]);
    let service = Service::new("Foo").method("Echo", async |x: u64| Ok::<_, Status>(x));
    tokio::spawn(Server::new().service(service).serve(listener, std::future::pending()));
    (network, list)
}

/// Where a layer calls its client.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Ready,
    Call,
    Clone,
    Drop,
}

/// A layer that calls the client that it is a layer of.
struct Calls<S> {
    inner: S,
    at: At,
    client: Arc<OnceLock<XClient>>,
    /// Its own calls do not call in turn.
    within: Arc<AtomicBool>,
    reached: Arc<AtomicUsize>,
    /// An instance that was waited for is dropped with its call.
    was_waited_for: bool,
}

impl<S> Calls<S> {
    fn reach(&self, at: At) {
        if at == self.at
            && let Some(client) = self.client.get()
            && !self.within.swap(true, SeqCst)
        {
            self.reached.fetch_add(1, SeqCst);
            look(client);
            self.within.store(false, SeqCst);
        }
    }
}

impl<S: Clone> Clone for Calls<S> {
    fn clone(&self) -> Self {
        self.reach(At::Clone);
        Self {
            inner: self.inner.clone(),
            at: self.at,
            client: Arc::clone(&self.client),
            within: Arc::clone(&self.within),
            reached: Arc::clone(&self.reached),
            was_waited_for: false,
        }
    }
}

impl<S> Drop for Calls<S> {
    fn drop(&mut self) {
        self.reach(At::Drop);
    }
}

impl<S> TowerService<Call> for Calls<S>
where
    S: TowerService<Call, Response = Reply> + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.reach(At::Ready);
        if self.at == At::Drop && !self.was_waited_for {
            self.was_waited_for = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, call: Call) -> Answer {
        self.reach(At::Call);
        let answer = self.inner.call(call);
        Box::pin(async move { answer.await.map_err(Into::into) })
    }
}

struct CallsLayer(At, Arc<OnceLock<XClient>>, Arc<AtomicUsize>);

impl<S> Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        let Self(at, client, reached) = self;
        Calls {
            inner,
            at: *at,
            client: Arc::clone(client),
            within: Arc::default(),
            reached: Arc::clone(reached),
            was_waited_for: false,
        }
    }
}

#[test]
fn a_layer_may_call_its_client_wherever_it_is() {
    for at in [At::Ready, At::Call, At::Clone, At::Drop] {
        ends(async move {
            let (network, list) = network().await;
            let cell: Arc<OnceLock<XClient>> = Arc::default();
            let builder = XClient::builder("Foo", list).transport(Arc::new(network));
            let reached: Arc<AtomicUsize> = Arc::default();
            let layer = CallsLayer(at, Arc::clone(&cell), Arc::clone(&reached));
            let client = builder.layer(layer).build().unwrap();
            let _ = cell.set(client.clone());
            for _ in 0..100 {
                assert_eq!(client.call::<_, u64>("Foo.Echo", &7_u64).await.unwrap(), 7);
            }
            assert!(reached.load(SeqCst) > 0, "the layer called {at:?}");
        });
    }
}

/// A policy whose `prepare` sets the list by hand once.
struct Updates(Arc<OnceLock<Resolver>>, AtomicBool);

struct First;

impl Selector for Updates {
    fn prepare(&self, _: &Arc<EndpointSet>) -> Box<dyn Picker> {
        if let Some(resolver) = self.0.get()
            && !self.1.swap(true, SeqCst)
        {
            resolver.update(vec![Instance::at("tcp@10.0.0.9:1".parse().unwrap())]);
        }
        Box::new(First)
    }
}

impl Picker for First {
    fn pick(&self, endpoints: &EndpointSet, _: &PickContext<'_>) -> Option<usize> {
        (!endpoints.is_empty()).then_some(0)
    }
}

#[test]
fn a_selector_may_set_the_list_that_it_is_prepared_for() {
    ends(async {
        let list = StaticList::parse("tcp@10.0.0.1:1").unwrap();
        let cell: Arc<OnceLock<Resolver>> = Arc::default();
        let selector = Updates(Arc::clone(&cell), AtomicBool::new(false));
        let service = "Foo".parse().unwrap();
        let resolver = Resolver::builder(service, Arc::new(list)).selector(selector).build();
        resolver.first().await;
        let _ = cell.set(resolver.clone());
        resolver.update(vec![Instance::at("tcp@10.0.0.2:1".parse().unwrap())]);
        let snapshot = resolver.snapshot();
        let first = snapshot.endpoints.at(0).unwrap().instance().address.to_string();
        assert_eq!(first, "tcp@10.0.0.9:1", "the one that was set last");
        assert_eq!(snapshot.generation, 2, "the other one was never shown");
    });
}

/// A waker that calls the client when it is woken or dropped.
struct Calling(XClient, AtomicUsize);

impl Wake for Calling {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, SeqCst);
        look(&self.0);
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        look(&self.0);
    }
}

#[test]
fn a_waker_may_call_the_client_that_wakes_or_drops_it() {
    ends(async {
        let (network, list) = network().await;
        let client = XClient::builder("Foo", list).transport(Arc::new(network)).build().unwrap();
        client.call::<_, u64>("Foo.Echo", &7_u64).await.unwrap();
        let call = Call::new("Foo.Echo").args(&1_u64).unwrap();
        let mut sent = Box::pin(client.send(call));
        // Each poll replaces the waker of the one before, which is then its last handle.
        for _ in 0..3 {
            let waker = Waker::from(Arc::new(Calling(client.clone(), AtomicUsize::new(0))));
            assert!(sent.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let last = Arc::new(Calling(client.clone(), AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&last));
        assert!(sent.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        while last.1.load(SeqCst) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(sent.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    });
}

/// A body whose drop asks the connection that it was sent on.
struct Owner(Vec<u8>, Connection);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.1.in_flight();
    }
}

#[test]
fn a_body_may_ask_the_connection_that_drops_it() {
    ends(async {
        let (network, _list) = network().await;
        let stream = network.connect(&"mem@foo".parse().unwrap()).await.unwrap();
        let settings = ConnectionSettings::default();
        let connection = Connection::open(stream, settings, None).await.unwrap();
        let body = Bytes::from_owner(Owner(vec![0; 64 * 1024], connection.clone()));
        let call = Call::new("Foo.Echo").body(CodecId::RAW, body);
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut sent = Box::pin(connection.exchange(&call, deadline));
        assert!(sent.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        // The writer has not had its turn: what is left of the body is in the outbox alone.
        drop(sent);
        drop(call);
        connection.close();
    });
}

type Echo = BoxCloneService<u64, u64, BoxError>;

#[test]
fn a_make_function_may_use_the_balance_that_it_makes_for() {
    ends(async {
        let list = StaticList::parse("tcp@10.0.0.1:1").unwrap();
        let resolver = Resolver::new("Foo".parse().unwrap(), Arc::new(list));
        let cell: Arc<OnceLock<Balance<Echo>>> = Arc::default();
        let (known, within) = (Arc::clone(&cell), AtomicBool::new(false));
        let mut balance = Balance::new(resolver, move |_| {
            if let Some(balance) = known.get()
                && !within.swap(true, SeqCst)
            {
                let mut request = balance.clone().call(1_u64);
                let _ = request.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            }
            Echo::new(service_fn(|x: u64| async move { Ok::<_, BoxError>(x) }))
        });
        let _ = cell.set(balance.clone());
        assert_eq!(balance.call(7_u64).await.unwrap(), 7);
    });
}
