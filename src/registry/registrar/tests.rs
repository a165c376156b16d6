use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::backend::memory::MemoryRegistry;
use crate::registry::{HealthOverride, Held, Lease, Registration, RegistryErrorKind, Renewal};

const TTL: Duration = Duration::from_secs(15);
/// The longest time between two renewals, with its jitter.
const HEARTBEAT: Duration = Duration::from_millis(5_500);

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Down,
    Hanging,
    Panicking,
    /// With a payload that panics when it is dropped.
    PanickingTwice,
    Closed,
}

/// A payload that panics when it is dropped.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped, on purpose");
        }
    }
}

/// A registry that fails as it is told.
struct Faulty {
    inner: Mutex<MemoryRegistry>,
    fault: Mutex<Fault>,
    registers: AtomicU64,
}

impl Faulty {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(MemoryRegistry::new()),
            fault: Mutex::new(Fault::None),
            registers: AtomicU64::new(0),
        })
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    /// Starts again with nothing in it.
    fn restart_empty(&self) {
        *self.inner.lock() = MemoryRegistry::new();
        self.set(Fault::None);
    }

    fn inner(&self) -> MemoryRegistry {
        self.inner.lock().clone()
    }

    fn instances(&self) -> Vec<Instance> {
        self.inner().list(None).entries.into_iter().map(|entry| entry.instance).collect()
    }

    async fn pass(&self) -> Result<MemoryRegistry, RegistryError> {
        let fault = *self.fault.lock();
        match fault {
            Fault::None => Ok(self.inner()),
            Fault::Closed => Err(RegistryError::new(RegistryErrorKind::NotAllowed, "no")),
            Fault::Down => Err(RegistryError::unavailable("down")),
            Fault::Hanging => std::future::pending().await,
            Fault::Panicking => panic!("as told"),
            Fault::PanickingTwice => std::panic::panic_any(PanicsOnDrop),
        }
    }
}

#[async_trait]
impl Registry for Faulty {
    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError> {
        self.registers.fetch_add(1, Relaxed);
        self.pass().await?.register(registration).await
    }

    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        match self.pass().await {
            Ok(inner) => inner.renew(held).await,
            Err(_) => held.iter().map(|_| Err(RegistryError::unavailable("down"))).collect(),
        }
    }

    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        self.pass().await?.deregister(held).await
    }
}

fn registrar(registry: &Arc<Faulty>) -> Registrar {
    Registrar::builder(Arc::clone(registry) as Arc<dyn Registry>).seed(7).build()
}

fn foo() -> ServiceName {
    "Foo".parse().unwrap()
}

fn instance(epoch: u64) -> Instance {
    Instance::new("a", "tcp@a:1".parse().unwrap()).epoch(epoch)
}

async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[tokio::test(start_paused = true)]
async fn it_keeps_registrations_alive_without_visible_changes() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(0)).await.unwrap();
    assert!(registry.instances()[0].epoch > 1_600_000_000_000, "Unix milliseconds");
    let revision = registry.inner().list(None).revision;

    sleep(TTL * 10).await;
    assert_eq!(registry.inner().list(None).revision, revision);
    let stats = registrar.stats();
    assert_eq!((stats.registered, stats.lost, stats.errors), (1, 0, 0));
    assert!((27..=34).contains(&stats.renewed), "{} renewals in 150 s", stats.renewed);
    assert_eq!(registry.registers.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_nobody_can_dial_is_not_registered() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    let unspecified = Instance::new("a", "tcp@[::]:1".parse().unwrap());
    let error = registrar.register(foo(), unspecified).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Invalid);
    assert!(registry.instances().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_the_registry_lost_is_registered_again_at_the_next_renewal() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(3).weight(9)).await.unwrap();
    registry.restart_empty();
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(3).weight(9)]);
    assert_eq!(registrar.stats().lost, 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_minute_without_a_registry_all_are_back_within_a_heartbeat() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    for (service, address) in [("Foo", "tcp@a:1"), ("Bar", "tcp@a:1"), ("Baz", "tcp@a:2")] {
        let instance = Instance::new("a", address.parse().unwrap());
        registrar.register(service.parse().unwrap(), instance).await.unwrap();
    }
    registry.set(Fault::Down);
    sleep(Duration::from_secs(60)).await;
    let stats = registrar.stats();
    assert_eq!(stats.registered, 0);
    assert_eq!(stats.last_error.as_deref(), Some("registry unavailable: down"));
    // Three registrations, each some 5 tries at first and then one in half an interval or so.
    assert!((30..200).contains(&stats.errors), "{} errors in 60 s", stats.errors);

    registry.restart_empty();
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances().len(), 3);
    assert_eq!(registrar.stats().registered, 3);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_registry_is_told_and_tried_on() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registry.set(Fault::Down);
    let error = registrar.register(foo(), instance(1)).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unavailable);
    registry.set(Fault::None);
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(1)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_allowed_yet_is_tried_on() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registry.set(Fault::Closed);
    let error = registrar.register(foo(), instance(1)).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::NotAllowed);
    sleep(TTL).await;
    registry.set(Fault::None);
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(1)], "the token was let in meanwhile");
}

#[tokio::test(start_paused = true)]
async fn an_empty_metadata_key_is_refused_before_the_registry_is_asked() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    let error = registrar.register(foo(), instance(1).meta("", "x")).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Invalid);
    sleep(TTL).await;
    assert_eq!((registry.registers.load(Relaxed), registrar.stats().registered), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_not_kept() {
    let registry = Faulty::new();
    let door = Arc::clone(&registry) as Arc<dyn Registry>;
    let registrar = Registrar::builder(door).ttl(Duration::ZERO).build();
    let error = registrar.register(foo(), instance(1)).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Invalid);
    sleep(TTL).await;
    assert_eq!(registry.registers.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_or_panics_is_a_failure() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registry.set(Fault::Hanging);
    let started = Instant::now();
    let error = registrar.register(foo(), instance(1)).await.unwrap_err();
    assert_eq!(error.message(), "no answer within 5s");
    assert!(started.elapsed() >= Duration::from_secs(5));

    registry.set(Fault::Panicking);
    sleep(TTL).await;
    assert!(registrar.stats().errors > 2);
    registry.set(Fault::PanickingTwice);
    let before = registrar.stats().errors;
    sleep(TTL).await;
    assert!(registrar.stats().errors > before + 1, "its task lives and tries on");
    registry.set(Fault::None);
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(1)]);

    registry.set(Fault::PanickingTwice);
    registrar.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_registration_of_the_id_supersedes_it() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(5)).await.unwrap();
    let newer = Registration::new(foo(), instance(6).weight(9)).ttl(TTL * 4);
    registry.inner().register(&newer).await.unwrap();

    sleep(HEARTBEAT).await;
    let stats = registrar.stats();
    assert_eq!((stats.registered, stats.superseded), (0, 1));
    sleep(TTL).await;
    assert_eq!(registry.instances(), [instance(6).weight(9)]);
    registrar.close().await;
    assert_eq!(registry.instances().len(), 1, "the other's registration is not taken back");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_went_back_is_got_over_once() {
    let registry = Faulty::new();
    let earlier = Registration::new(foo(), instance(1_000));
    registry.inner().register(&earlier).await.unwrap();

    let first = registrar(&registry);
    first.register(foo(), instance(500)).await.unwrap();
    assert_eq!(registry.instances(), [instance(1_001)]);
    assert_eq!(first.stats().superseded, 0);

    let newer = Registration::new(foo(), instance(2_000));
    registry.inner().register(&newer).await.unwrap();
    first.set_health(Health::Unready);
    sleep(HEARTBEAT).await;
    assert_eq!(first.stats().superseded, 1);
    assert_eq!(registry.instances(), [instance(2_000)]);
}

fn drained() -> HealthOverride {
    HealthOverride::new(Health::Draining).by("ops").reason("kernel")
}

fn set(registry: &Faulty, word: HealthOverride) {
    assert!(registry.inner().set_health(&foo(), &"a".into(), word));
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_set_holds_whatever_becomes_of_the_registry() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(5)).await.unwrap();
    set(&registry, drained());
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(6).health(Health::Draining)]);
    assert_eq!(registrar.stats().overrides, [(foo(), drained())]);

    // Empty again; and then the lease is lost.
    registry.restart_empty();
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(6).health(Health::Draining)]);
    registry.set(Fault::Down);
    sleep(TTL * 2).await;
    registry.set(Fault::None);
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(6).health(Health::Draining)]);

    // What the process says of itself is kept apart.
    registrar.set_health(Health::Unready);
    registrar.set_health(Health::Up);
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(6).health(Health::Draining)]);

    registrar.set_health(Health::Unready);
    set(&registry, Health::Up.into());
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(7).health(Health::Unready)]);
    registrar.set_health(Health::Up);
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(8)]);
    assert!(registrar.stats().overrides.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_operators_word_ends_with_its_time_though_the_registry_forgot_it() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(5)).await.unwrap();
    set(&registry, drained().lasting(Duration::from_secs(60)));
    sleep(HEARTBEAT).await;
    registry.restart_empty();
    sleep(Duration::from_secs(40)).await;
    assert_eq!(registry.instances(), [instance(6).health(Health::Draining)]);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(registry.instances(), [instance(7)]);
}

fn beside(epoch: u64) -> Instance {
    Instance::new("b", instance(0).address).epoch(epoch)
}

#[tokio::test(start_paused = true)]
async fn a_displaced_process_stays_out_until_the_other_is_gone() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(1_000)).await.unwrap();
    let newer = Registration::new(foo(), beside(2_000)).ttl(TTL);
    let lease = registry.inner().register(&newer).await.unwrap();

    // It renews, learns that its lease is lost, asks once, and from then on once a TTL.
    sleep(HEARTBEAT).await;
    let asked = registry.registers.load(Relaxed);
    for _ in 0..4 {
        sleep(TTL / 3).await;
        let held = Held { registration: newer.clone(), lease: lease.clone() };
        registry.inner().renew(&[held]).await;
        assert_eq!(registry.instances(), [beside(2_000)]);
    }
    let stats = registrar.stats();
    assert_eq!((stats.registered, stats.superseded), (0, 1), "told once");
    assert!((1..=2).contains(&(registry.registers.load(Relaxed) - asked)));

    // The other's lease runs out.
    sleep(TTL * 2 + HEARTBEAT).await;
    assert_eq!(registry.instances(), [instance(1_000)]);
    assert_eq!(registrar.stats().registered, 1);
    registrar.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_clock_is_behind_gets_its_address_once() {
    let registry = Faulty::new();
    let older = Registration::new(foo(), beside(2_000)).ttl(TTL);
    registry.inner().register(&older).await.unwrap();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(1_000)).await.unwrap();
    assert_eq!(registry.instances(), [instance(2_001)]);

    let newest = Registration::new(foo(), beside(3_000)).ttl(TTL);
    registry.inner().register(&newest).await.unwrap();
    sleep(HEARTBEAT).await;
    assert_eq!(registry.instances(), [beside(3_000)], "not a second time");
    assert_eq!(registrar.stats().superseded, 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_unready_takes_its_address_once_it_is_up() {
    let registry = Faulty::new();
    let older = Registration::new(foo(), beside(1_000)).ttl(TTL * 10);
    registry.inner().register(&older).await.unwrap();
    let registrar = registrar(&registry);
    registrar.set_health(Health::Unready);
    let error = registrar.register(foo(), instance(2_000)).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Superseded { held: 1_000 });
    sleep(TTL * 3).await;
    assert_eq!(registry.instances(), [beside(1_000)]);
    registrar.set_health(Health::Up);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(registry.instances(), [instance(2_001)]);
    assert_eq!(registrar.stats().registered, 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_drains_after_it_was_displaced_ends() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(1_000)).await.unwrap();
    let newer = Registration::new(foo(), beside(2_000)).ttl(TTL * 10);
    registry.inner().register(&newer).await.unwrap();
    registrar.drain().await;
    assert_eq!(registry.instances(), [beside(2_000)]);
    let asked = registry.registers.load(Relaxed);
    sleep(TTL * 3).await;
    assert_eq!(registry.registers.load(Relaxed), asked, "nothing is asked for any more");
    registrar.close().await;
    assert_eq!(registry.instances(), [beside(2_000)], "the successor is not taken back");
}

#[tokio::test(start_paused = true)]
async fn draining_is_seen_and_closing_deregisters() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(5)).await.unwrap();
    registrar.drain().await;
    assert_eq!(registry.instances(), [instance(6).health(Health::Draining)]);
    registrar.drain().await;
    assert_eq!(registry.instances()[0].epoch, 6, "no news, no higher epoch");

    let other = Instance::new("b", "tcp@b:1".parse().unwrap());
    registrar.register(foo(), other).await.unwrap();
    assert_eq!(registry.instances()[1].health, Health::Draining, "said of the whole process");

    registrar.close().await;
    assert!(registry.instances().is_empty());
    let error = registrar.register(foo(), instance(9)).await.unwrap_err();
    assert_eq!(error.message(), "the registrar is closed");
    sleep(TTL).await;
    assert!(registry.instances().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_hangs_delays_neither_drain_nor_close_beyond_5_s() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(1)).await.unwrap();
    registry.set(Fault::Hanging);
    sleep(HEARTBEAT).await;

    // The runtime's timers have a grain of 1 ms.
    let most = Duration::from_millis(5_001);
    let started = Instant::now();
    registrar.drain().await;
    assert!(started.elapsed() <= most, "{:?}", started.elapsed());
    let started = Instant::now();
    registrar.close().await;
    assert!(started.elapsed() <= most, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_registration_of_a_held_id_is_its_new_state() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    registrar.register(foo(), instance(5)).await.unwrap();
    registrar.register(foo(), instance(0).weight(0)).await.unwrap();
    let found = registry.instances();
    assert_eq!((found.len(), found[0].weight), (1, 0));
    assert!(found[0].epoch > 5);
    assert_eq!(registrar.stats().registered, 1);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_clone() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    let clone = registrar.clone();
    clone.register(foo(), instance(1)).await.unwrap();
    drop(clone);
    sleep(TTL * 2).await;
    assert_eq!(registry.instances().len(), 1);
    drop(registrar);
    sleep(TTL + Duration::from_secs(1)).await;
    assert!(registry.instances().is_empty(), "not deregistered, but no longer renewed");
}

#[test]
fn renewals_come_at_a_third_of_the_lease() {
    let cases = [(Some(Duration::from_secs(3)), 1_000), (None, 5_000)];
    for (granted, interval) in cases {
        for seed in 0..50 {
            let now = Instant::now();
            let mut book = Book::new(TTL, StdRng::seed_from_u64(seed));
            let _asker = book.add(foo(), instance(1), now).unwrap();
            let jobs = book.due(now);
            book.answered(&jobs[0].sent, vec![Ok(Good::Lease(Lease::new("", granted)))], now);
            let (next, _) = book.next_due();
            let wait = next.unwrap() - now;
            let interval = Duration::from_millis(interval);
            assert!(wait >= interval * 9 / 10 && wait <= interval * 11 / 10, "{wait:?}");
        }
    }
}

#[test]
fn backoff_doubles_up_to_the_renewal_interval() {
    let mut now = Instant::now();
    let mut book = Book::new(TTL, StdRng::seed_from_u64(1));
    let _asker = book.add(foo(), instance(1), now).unwrap();
    let mut waits = Vec::new();
    for failure in 0..40_u32 {
        let jobs = book.due(now);
        assert_eq!(jobs.len(), 1);
        assert!(book.due(now).is_empty(), "one request at a time");
        book.answered(&jobs[0].sent, vec![Err(RegistryError::unavailable("down"))], now);
        let next = book.next_due().0.unwrap();
        let most = Duration::from_millis(100 << failure.min(10)).min(TTL / 3);
        assert!(next - now <= most, "{:?} after failure {failure}", next - now);
        waits.push(next - now);
        now = next;
    }
    assert!(waits.iter().any(|wait| *wait > Duration::from_secs(3)), "it does grow");
}

#[test]
fn registrations_go_on_after_the_runtime_they_were_made_on() {
    let paused = || {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    };
    let (first, second) = (paused(), paused());
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    first.block_on(registrar.register(foo(), instance(1))).unwrap();
    drop(first);
    let stats = registrar.stats();
    assert_eq!(stats.registered, 0, "nobody renews it");
    assert!(stats.last_error.unwrap().contains("runtime"));
    second.block_on(async {
        registrar.set_health(Health::Up);
        sleep(TTL * 3).await;
        assert_eq!(registry.instances(), [instance(1)]);
        assert_eq!(registrar.stats().registered, 1);
    });
}

#[test]
fn outside_of_a_runtime_it_fails_and_does_not_panic() {
    let registry = Faulty::new();
    let registrar = registrar(&registry);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let registered = std::pin::pin!(registrar.register(foo(), instance(1))).poll(&mut cx);
    let std::task::Poll::Ready(Err(error)) = registered else { panic!("{registered:?}") };
    assert_eq!(error.kind(), RegistryErrorKind::Invalid);
    registrar.set_health(Health::Unready);
    assert!(std::pin::pin!(registrar.drain()).poll(&mut cx).is_ready());
    assert!(std::pin::pin!(registrar.close()).poll(&mut cx).is_ready());
}
