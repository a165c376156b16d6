//! Discovery for programs with an RPC of their own, without any network.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use srpc::adapt::{Balance, Failover, NoInstance, Registered, ToOthers};
use srpc::backend::memory::MemoryRegistry;
use srpc::backend::static_list::StaticList;
use srpc::discovery::{Discovery, Endpoint, Resolver};
use srpc::error::BoxError;
use srpc::instance::Health;
use srpc::registry::Registrar;
use srpc::selector::RoundRobin;
use srpc::{Address, Instance, ServiceName};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tower::{Service, ServiceExt, service_fn};

fn service() -> ServiceName {
    "web".parse().unwrap()
}

fn resolver(list: &StaticList) -> Resolver {
    let builder = Resolver::builder(service(), Arc::new(list.clone()));
    builder.selector(RoundRobin::default()).build()
}

/// Answers with its endpoint's address, unless that is one of these: then nothing is sent.
fn answering(
    refusing: &'static [&'static str],
) -> impl Fn(&Endpoint) -> tower::util::BoxCloneService<&'static str, Address, io::Error>
+ Send
+ Sync
+ 'static {
    move |endpoint| {
        let address = endpoint.instance().address.clone();
        tower::util::BoxCloneService::new(service_fn(move |_: &'static str| {
            let address = address.clone();
            async move {
                match refusing.contains(&address.as_str()) {
                    true => Err(io::ErrorKind::ConnectionRefused.into()),
                    false => Ok(address),
                }
            }
        }))
    }
}

fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let error: Option<&io::Error> = error.downcast_ref();
    error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[tokio::test(start_paused = true)]
async fn each_request_picks_and_an_empty_list_fails_at_once() {
    let list = StaticList::parse("tcp@a:1,tcp@b:1").unwrap();
    let mut balance = Balance::new(resolver(&list), answering(&[]));
    let mut counts = [0, 0];
    for _ in 0..100 {
        let by = balance.ready().await.unwrap().call("hello").await.unwrap();
        counts[usize::from(by.as_str() == "tcp@b:1")] += 1;
    }
    assert_eq!(counts, [50, 50]);

    list.update(Vec::new());
    balance.resolver().changed(balance.resolver().snapshot().generation).await;
    let start = Instant::now();
    let error: BoxError = balance.call("hello").await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::ZERO);
    let none: &NoInstance = error.downcast_ref().unwrap();
    assert_eq!(none.service(), &service());
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_goes_to_another_and_the_dead_one_is_left_alone() {
    let list = StaticList::parse("tcp@a:1,tcp@b:1,tcp@c:1").unwrap();
    let failover = ToOthers::if_not_sent(is_refused);
    let refusing = answering(&["tcp@a:1", "tcp@c:1"]);
    let balance = Balance::builder(resolver(&list), refusing).failover(failover).build();
    for _ in 0..100 {
        let by = balance.clone().call("hello").await.unwrap();
        assert_eq!(by.as_str(), "tcp@b:1");
    }
    let snapshot = balance.resolver().snapshot();
    let failed = snapshot.endpoints.iter().map(|endpoint| endpoint.stats().failed()).sum::<u64>();
    assert!((1..=2).contains(&failed), "each is tried once, and then left alone: {failed}");

    let alone = Balance::new(resolver(&list), answering(&["tcp@a:1", "tcp@b:1", "tcp@c:1"]));
    assert!(alone.clone().call("hello").await.is_err(), "by default nothing is sent again");
}

/// Says that whatever fails may be made twice.
struct Idempotent;

impl Failover<&'static str> for Idempotent {
    type Kept = &'static str;

    fn keep(&self, request: &'static str) -> (&'static str, &'static str) {
        (request, request)
    }

    fn again(
        &self,
        kept: &'static str,
        _: &(dyn std::error::Error + 'static),
    ) -> Option<&'static str> {
        Some(kept)
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_again_draws_on_the_services_budget() {
    let list = StaticList::parse("tcp@a:1,tcp@b:1,tcp@c:1").unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let balance = |name: &str, has_own: bool| {
        let sent = Arc::clone(&sent);
        let make = move |_: &Endpoint| {
            let sent = Arc::clone(&sent);
            service_fn(move |_: &'static str| {
                sent.fetch_add(1, Relaxed);
                async { Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionReset)) }
            })
        };
        // A service of its own: other tests' requests would fill the budget.
        let resolver = Resolver::new(name.parse().unwrap(), Arc::new(list.clone()));
        let builder = Balance::builder(resolver, make).failover(Idempotent);
        if has_own { builder.budget(0.0, 0).build() } else { builder.build() }
    };
    // Two of a service share: a fifth of the requests, and ten a second, of ten seconds at once.
    let both = [balance("budgeted", false), balance("budgeted", false)];
    for _ in 0..500 {
        for one in &both {
            one.clone().call("hello").await.unwrap_err();
        }
    }
    let made = sent.swap(0, Relaxed);
    assert!((1_200..=1_310).contains(&made), "{made}");
    balance("alone", true).call("hello").await.unwrap_err();
    assert_eq!(sent.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_request_dials_and_its_time_is_no_latency() {
    let list = StaticList::parse("tcp@a:1,tcp@b:1").unwrap();
    let make = |_: &Endpoint| {
        let requests = Arc::new(AtomicUsize::new(0));
        service_fn(move |_: &'static str| {
            let is_first = requests.fetch_add(1, Relaxed) == 0;
            async move {
                sleep(Duration::from_millis(if is_first { 500 } else { 1 })).await;
                Ok::<_, io::Error>(())
            }
        })
    };
    let mut balance = Balance::new(Resolver::new(service(), Arc::new(list)), make);
    for _ in 0..200 {
        balance.call("hello").await.unwrap();
    }
    let snapshot = balance.resolver().snapshot();
    for endpoint in &*snapshot.endpoints {
        let (requests, latency) = (endpoint.stats().succeeded(), endpoint.stats().latency());
        assert!((60..=140).contains(&requests), "{requests}");
        assert!(latency.is_some_and(|latency| latency < Duration::from_millis(5)), "{latency:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_never_answers_is_waited_for_as_long_as_was_said() {
    struct Silent;

    #[async_trait::async_trait]
    impl Discovery for Silent {
        async fn resolve(
            &self,
            _: &ServiceName,
        ) -> Result<srpc::discovery::Resolved, srpc::discovery::DiscoveryError> {
            std::future::pending().await
        }
    }

    let resolver = Resolver::new(service(), Arc::new(Silent));
    let patience = Duration::from_millis(300);
    let mut balance = Balance::builder(resolver, answering(&[])).patience(patience).build();
    let start = Instant::now();
    let error = balance.call("hello").await.unwrap_err();
    assert_eq!(start.elapsed(), patience);
    assert!(error.to_string().contains("no list yet"), "{error}");
}

/// tower's own balancer over the same endpoints.
#[tokio::test(start_paused = true)]
async fn towers_balancer_sees_endpoints_come_and_go() {
    use srpc::adapt::Changes;
    use tower::balance::p2c::Balance as P2c;
    use tower::load::Constant;

    let list = StaticList::parse("tcp@a:1,tcp@b:1").unwrap();
    let make = answering(&[]);
    let changes = Changes::new(resolver(&list), move |endpoint| Constant::new(make(endpoint), 0));
    let mut balance = P2c::new(changes);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let balance = balance.ready().await.unwrap();
        seen.insert(balance.call("hello").await.unwrap().to_string());
    }
    assert_eq!(seen.len(), 2);
    let instance = |at: &str| Instance::at(at.parse().unwrap());
    list.update(vec![instance("tcp@a:1").health(Health::Draining), instance("tcp@c:1")]);
    sleep(Duration::from_millis(1)).await;
    for _ in 0..100 {
        let balance = balance.ready().await.unwrap();
        assert_eq!(balance.call("hello").await.unwrap().as_str(), "tcp@c:1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_is_registered_while_it_serves_and_drains_in_order() {
    let registry = MemoryRegistry::new();
    let registrar = Registrar::new(Arc::new(registry.clone()));
    let (tell, told) = oneshot::channel::<()>();
    let (steps, at) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
    let seen = Arc::clone(&steps);
    let instance = Instance::at("tcp@10.0.0.7:80".parse().unwrap());
    let serving = tokio::spawn(async move {
        let shutdown = async { told.await.unwrap() };
        let server = Registered::new(registrar, service(), instance);
        let served = server.serve(shutdown, |stopped| async move {
            stopped.await;
            seen.lock().push(("told to stop", at.elapsed()));
            sleep(Duration::from_secs(3)).await;
            seen.lock().push(("last request ended", at.elapsed()));
            "done"
        });
        served.await
    });
    let health = || async {
        let resolved = registry.resolve(&service()).await.unwrap();
        resolved.instances.first().map(|instance| instance.health)
    };
    sleep(Duration::from_secs(1)).await;
    assert_eq!(health().await, Some(Health::Up));
    tell.send(()).unwrap();
    sleep(Duration::from_millis(1500)).await;
    assert_eq!((health().await, steps.lock().len()), (Some(Health::Draining), 0));
    assert_eq!(serving.await.unwrap(), Some("done"));
    assert_eq!(health().await, None);
    let expected = [("told to stop", 3), ("last request ended", 6)];
    assert_eq!(*steps.lock(), expected.map(|(step, s)| (step, Duration::from_secs(s))));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_end_is_cut_and_one_that_ends_is_deregistered() {
    for hangs in [true, false] {
        let registry = MemoryRegistry::new();
        let registrar = Registrar::new(Arc::new(registry.clone()));
        let instance = Instance::at("tcp@10.0.0.7:80".parse().unwrap());
        let dropped = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&dropped);
        let server = Registered::new(registrar, service(), instance).grace(Duration::from_secs(5));
        let shutdown = sleep(if hangs { Duration::from_secs(1) } else { Duration::MAX / 4 });
        let served = server.serve(shutdown, |_| async move {
            let _end = Counted(count);
            sleep(if hangs { Duration::MAX / 4 } else { Duration::from_secs(1) }).await;
        });
        let start = Instant::now();
        let ended = timeout(Duration::from_secs(60), served).await.unwrap();
        let expected = if hangs { (None, 8) } else { (Some(()), 1) };
        assert_eq!((ended, start.elapsed().as_secs()), expected);
        assert_eq!(dropped.load(Relaxed), 1);
        assert!(registry.resolve(&service()).await.unwrap().instances.is_empty());
    }
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}
