//! A tracing subscriber may call this crate from any event. The subscriber is global, hence a file of its own.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

#[path = "support/reentry.rs"]
mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use async_trait::async_trait;
use srpc::backend::memory::MemoryRegistry;
use srpc::backend::static_list::StaticList;
use srpc::discovery::{Discovery, DiscoveryError, OutlierEjection, Resolved, Resolver};
use srpc::protocol::{Hello, Limits};
use srpc::registry::{Held, Lease, Registrar, Registration, Registry, RegistryError, Renewal};
use srpc::server::Concurrency;
use srpc::transport::{Memory, Transport};
use srpc::{Address, Call, Instance, Kind, Server, Service, ServiceName, Status, XClient};
use tokio::io::AsyncWriteExt;
use tokio::time::{advance, sleep};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Layer, SubscriberExt};

use support::{ends, look};

/// What the subscriber does with each event.
type Act = Arc<dyn Fn() + Send + Sync>;

static ACTS: Mutex<Vec<Act>> = Mutex::new(Vec::new());
static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

thread_local! {
    static IS_ACTING: Cell<bool> = const { Cell::new(false) };
}

/// Does with each event what a subscriber that ships events may do: makes calls, and asks for state.
struct Ships;

impl<S: tracing::Subscriber> Layer<S> for Ships {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        SEEN.lock().unwrap().insert(message.0);
        // Not with the events of its own acts.
        if IS_ACTING.replace(true) {
            return;
        }
        let acts = ACTS.lock().unwrap().clone();
        acts.iter().for_each(|act| act());
        IS_ACTING.set(false);
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// Has the subscriber do this from now on.
fn act<const N: usize>(acts: [Act; N]) {
    let former = std::mem::replace(&mut *ACTS.lock().unwrap(), acts.into());
    // Not under the lock: it may be the last handle of a client, whose end is an event.
    drop(former);
}

fn calls(client: &XClient) -> Act {
    let client = client.clone();
    Arc::new(move || look(&client))
}

fn reads(resolver: &Resolver) -> Act {
    let resolver = resolver.clone();
    Arc::new(move || {
        let _ = (resolver.snapshot(), resolver.stats());
        let mut refreshed = Box::pin(resolver.refresh());
        let _ = refreshed.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    })
}

fn updates(resolver: &Resolver) -> Act {
    let resolver = resolver.clone();
    Arc::new(move || {
        let snapshot = resolver.snapshot();
        let instances = snapshot.endpoints.iter().map(|one| one.instance().clone());
        resolver.update(instances.collect());
    })
}

fn assert_seen(messages: &[&str]) {
    let seen = SEEN.lock().unwrap();
    for message in messages {
        assert!(seen.contains(*message), "{message} is not among {seen:?}");
    }
}

/// A client of a server that shakes hands and says nothing more.
async fn client_of_a_silent_server() -> XClient {
    let network = Memory::new();
    let address: Address = "mem@silent".parse().unwrap();
    let mut listener = network.bind(&address).await.unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok(mut stream) = listener.accept().await {
            let mut hello = Vec::new();
            Hello::new(Limits::default()).encode(&mut hello);
            stream.write_all(&hello).await.unwrap();
            open.push(stream);
        }
    });
    let list = StaticList::new([Instance::at(address)]);
    XClient::builder("Foo", list).transport(Arc::new(network)).build().unwrap()
}

async fn suspicions() {
    let client = client_of_a_silent_server().await;
    act([calls(&client), reads(client.resolver()), updates(client.resolver())]);
    let call = Call::new("Foo.Echo").args(&1_u64).unwrap().timeout(Duration::from_secs(5));
    client.send(call).await.unwrap_err();
    assert_seen(&["suspect: a ping is not answered"]);
    act([]);
}

async fn ejections() {
    let network = Memory::new();
    let mut instances = Vec::new();
    for (name, is_broken) in [("mem@a", true), ("mem@b", true), ("mem@c", false)] {
        let listener = network.bind(&Address::to_bind(name).unwrap()).await.unwrap();
        instances.push(Instance::at(listener.address().clone()));
        let service = Service::new("Foo").method("Echo", move |x: u64| async move {
            match is_broken {
                true => Err(Status::new(Kind::Internal, "broken")),
                false => Ok(x),
            }
        });
        tokio::spawn(Server::new().service(service).serve(listener, std::future::pending()));
    }
    let mut ejection = OutlierEjection::default();
    // One that is ejected is too many.
    ejection.panic_below = 1.0;
    let builder = XClient::builder("Foo", StaticList::new(instances)).seed(1);
    let builder = builder.transport(Arc::new(network)).outlier_ejection(ejection);
    let client = builder.build().unwrap();
    act([calls(&client), reads(client.resolver()), updates(client.resolver())]);
    for _ in 0..100 {
        let _ = client.call::<_, u64>("Foo.Echo", &7_u64).await;
    }
    assert_seen(&["ejected", "too few are usable: ejection is ignored"]);
    act([]);
}

/// A source of four instances, which fails, and then knows of one, without proof.
#[derive(Default)]
struct Source(AtomicUsize);

#[async_trait]
impl Discovery for Source {
    async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let instances = |count: usize| {
            let address = |host| format!("tcp@10.0.0.{host}:1").parse().unwrap();
            Resolved::new((1..=count).map(|host| Instance::at(address(host))).collect())
        };
        match self.0.load(SeqCst) {
            0 => Ok(instances(4).authoritative(true)),
            1 => Err(DiscoveryError::unavailable("told to")),
            _ => Ok(instances(1)),
        }
    }
}

async fn lists() {
    let source = Arc::new(Source::default());
    let discovery: Arc<dyn Discovery> = source.clone();
    let resolver = Resolver::builder("Foo".parse().unwrap(), discovery).build();
    resolver.first().await;
    act([reads(&resolver)]);
    source.0.store(1, SeqCst);
    resolver.refresh().await.unwrap_err();
    assert_seen(&["the list of instances is stale"]);
    source.0.store(2, SeqCst);
    sleep(Duration::from_secs(1)).await;
    assert_seen(&[
        "the list of instances is fresh again",
        "an answer lost instances without proof: they are kept for now, picked last",
    ]);
    act([reads(&resolver), updates(&resolver)]);
    source.0.store(1, SeqCst);
    resolver.refresh().await.unwrap_err();
    act([]);
}

const UP: usize = 0;
const DOWN: usize = 1;
const FORGETFUL: usize = 2;

/// A registry that does as it is told.
#[derive(Clone, Default)]
struct Switched {
    inner: MemoryRegistry,
    mode: Arc<AtomicUsize>,
}

#[async_trait]
impl Registry for Switched {
    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError> {
        match self.mode.load(SeqCst) {
            DOWN => Err(RegistryError::unavailable("told to")),
            _ => self.inner.register(registration).await,
        }
    }

    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        match self.mode.load(SeqCst) {
            UP => self.inner.renew(held).await,
            DOWN => held.iter().map(|_| Err(RegistryError::unavailable("told to"))).collect(),
            _ => held.iter().map(|_| Ok(Renewal::Lost)).collect(),
        }
    }

    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        self.inner.deregister(held).await
    }
}

async fn registrations() {
    let registry = Switched::default();
    let registrar = Registrar::new(Arc::new(registry.clone()));
    let (asked, listed) = (registrar.clone(), registry.inner.clone());
    let stats: Act = Arc::new(move || _ = asked.stats());
    let list: Act = Arc::new(move || _ = listed.list(None));
    act([stats, list]);
    let instance = Instance::at("tcp@10.0.0.1:1".parse().unwrap());
    registrar.register("Foo".parse().unwrap(), instance).await.unwrap();
    for mode in [DOWN, UP, FORGETFUL, UP] {
        registry.mode.store(mode, SeqCst);
        // Longer than the interval of renewals, a third of the TTL.
        sleep(Duration::from_secs(6)).await;
    }
    registrar.close().await;
    assert_seen(&[
        "registered",
        "registry unreachable: trying on",
        "registry reachable again",
        "lease lost: registering again",
        "deregistered",
    ]);
    act([]);
}

async fn leases() {
    let registry = MemoryRegistry::new();
    let listed = registry.clone();
    act([Arc::new(move || _ = listed.list(None))]);
    let instance = Instance::at("tcp@10.0.0.1:1".parse().unwrap());
    let registration = Registration::new("Foo".parse().unwrap(), instance);
    registry.register(&registration.ttl(Duration::from_secs(1))).await.unwrap();
    // Once the sweep runs.
    sleep(Duration::from_millis(600)).await;
    advance(Duration::from_secs(60)).await;
    sleep(Duration::from_secs(5)).await;
    assert!(registry.list(None).entries.is_empty());
    assert_seen(&["the sweep came late: every lease is extended by as much", "lease expired"]);
    act([]);
}

async fn refusals() {
    let network = Memory::new();
    let listener = network.bind(&Address::to_bind("mem@foo").unwrap()).await.unwrap();
    let list = StaticList::new([Instance::at(listener.address().clone())]);
    let service = Service::new("Foo").method("Echo", async |x: u64| {
        sleep(Duration::from_millis(100)).await;
        Ok::<_, Status>(x)
    });
    let server = Server::new().service(service).concurrency(Concurrency::Fixed(1));
    let stats = server.stats();
    tokio::spawn(server.serve(listener, std::future::pending()));
    let client = XClient::builder("Foo", list).transport(Arc::new(network)).build().unwrap();
    act([calls(&client), Arc::new(move || _ = format!("{stats:?}"))]);
    let call = || client.call::<_, u64>("Foo.Echo", &7_u64);
    let _ = tokio::join!(call(), call(), call());
    assert_seen(&["calls are turned away: the limit of calls at work is reached"]);
    act([]);
}

#[test]
fn a_subscriber_may_call_from_any_event() {
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Ships)).unwrap();
    ends(suspicions());
    ends(ejections());
    ends(lists());
    ends(registrations());
    ends(leases());
    ends(refusals());
}
