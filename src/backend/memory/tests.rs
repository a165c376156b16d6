use super::*;
use crate::instance::Health;
use crate::instance::Instance;

const TTL: Duration = Duration::from_secs(10);
const SWEEP: Duration = Duration::from_millis(500);

fn service() -> ServiceName {
    "Foo".parse().unwrap()
}

fn registration(id: &str, address: &str) -> Registration {
    let instance = Instance::new(id, address.parse().unwrap()).epoch(1);
    Registration::new(service(), instance).ttl(TTL)
}

async fn next(updates: &mut UpdateStream) -> Resolved {
    match updates.next().await {
        Some(Ok(Update::Set(resolved))) => resolved,
        other => panic!("no list but {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn renewed_it_lives_for_ten_ttls() {
    let registry = MemoryRegistry::new();
    let registration = registration("a", "tcp@a:1");
    let lease = registry.register(&registration).await.unwrap();
    let held = [Held { registration, lease }];
    let revision = registry.list(Some(&service())).revision;
    for _ in 0..30 {
        tokio::time::sleep(TTL / 3).await;
        let answers = registry.renew(&held).await;
        assert!(matches!(answers[..], [Ok(Renewal::Renewed)]));
    }
    assert_eq!(registry.list(Some(&service())).revision, revision);
    registry.deregister(&held).await.unwrap();
    assert!(registry.resolve(&service()).await.unwrap().instances.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_the_end_within_a_sweep_of_the_ttl() {
    let registry = MemoryRegistry::new();
    let mut updates = registry.watch(&service()).unwrap();
    assert!(next(&mut updates).await.instances.is_empty());
    // Between two sweeps, so that the TTL does not end with one.
    tokio::time::sleep(SWEEP / 4).await;
    registry.register(&registration("a", "tcp@a:1")).await.unwrap();
    let registered = Instant::now();
    assert_eq!(next(&mut updates).await.instances.len(), 1);

    let gone = next(&mut updates).await;
    assert!(gone.instances.is_empty() && gone.is_proven());
    let lived = registered.elapsed();
    // The runtime's timers have a grain of 1 ms.
    assert!(lived > TTL && lived <= TTL + SWEEP + Duration::from_millis(1), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_each_change_of_its_service_alone() {
    let registry = MemoryRegistry::new();
    let mut updates = registry.watch(&service()).unwrap();
    let empty = next(&mut updates).await;

    registry.register_address(None, &"tcp@x:1".parse().unwrap());
    registry.register(&registration("b", "tcp@b:1")).await.unwrap();
    registry.register(&registration("a", "tcp@a:1")).await.unwrap();
    let both = next(&mut updates).await;
    let addresses: Vec<&str> = both.instances.iter().map(|i| i.address.as_str()).collect();
    assert_eq!(addresses, ["tcp@a:1", "tcp@b:1"], "two changes, one list");
    assert_ne!(both.revision, empty.revision);

    registry.register_address(None, &"tcp@y:1".parse().unwrap());
    let quiet = tokio::time::timeout(TTL / 2, updates.next()).await;
    assert!(quiet.is_err(), "what is not of the service is not told");

    assert!(registry.set_health(&service(), &"a".into(), Health::Draining));
    assert_eq!(next(&mut updates).await.instances[0].health, Health::Draining);
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_the_process_evicts_nobody() {
    let registry = MemoryRegistry::new();
    registry.register(&registration("a", "tcp@a:1")).await.unwrap();
    tokio::time::sleep(TTL / 2).await;
    tokio::time::advance(Duration::from_secs(30)).await;
    let entries = registry.list(Some(&service())).entries;
    assert_eq!(entries.len(), 1);
    let left = entries[0].expires_in.unwrap();
    assert!(left > TTL / 2 - SWEEP * 2 && left <= TTL / 2 + SWEEP, "{left:?}");

    tokio::time::sleep(TTL).await;
    assert!(registry.list(Some(&service())).entries.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_returns_at_a_change_or_for_another_incarnation() {
    let registry = MemoryRegistry::new();
    let revision = registry.list(Some(&service())).revision;
    registry.changed(&service(), "0000000000000000-7").await;

    let started = Instant::now();
    let waiting = registry.clone();
    let register = async {
        tokio::time::sleep(TTL).await;
        registry.register(&registration("a", "tcp@a:1")).await.unwrap();
    };
    let service = service();
    tokio::join!(waiting.changed(&service, &revision), register);
    assert!(started.elapsed() >= TTL);
    assert_ne!(registry.list(Some(&service)).revision, revision);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_warm_up_is_told() {
    let registry = MemoryRegistry::builder().warming(true).build();
    let mut updates = registry.watch(&service()).unwrap();
    assert!(next(&mut updates).await.warming);
    assert!(next(&mut updates).await.is_proven());
}

#[tokio::test(start_paused = true)]
async fn the_sweep_ends_with_the_last_clone() {
    let registry = MemoryRegistry::new();
    registry.register(&registration("a", "tcp@a:1")).await.unwrap();
    let sweeper = registry.shared.sweeper.lock().as_ref().unwrap().clone();
    let clone = registry.clone();
    drop(registry);
    tokio::time::sleep(SWEEP * 3).await;
    assert!(!sweeper.is_finished());
    drop(clone);
    tokio::time::sleep(SWEEP).await;
    assert!(sweeper.is_finished());
}

#[test]
fn it_works_without_a_runtime() {
    let registry = MemoryRegistry::builder().default_ttl(None).build();
    assert!(registry.register_address(Some(&service()), &"tcp@a:1".parse().unwrap()));
    assert_eq!(registry.services(), [service()]);
    let other = MemoryRegistry::default();
    assert_ne!(other.list(None).revision, registry.list(None).revision);
}

#[test]
fn an_expiry_is_told_after_the_runtime_of_the_sweep_has_ended() {
    let paused = || {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    };
    let (first, second) = (paused(), paused());
    let (registry, service) = (MemoryRegistry::new(), service());
    first.block_on(async {
        registry.register(&registration("a", "tcp@a:1")).await.unwrap();
        // The sweep begins.
        tokio::task::yield_now().await;
    });
    let revision = registry.revision(&service);
    let mut changed = Box::pin(registry.changed(&service, &revision));
    second.block_on(std::future::poll_fn(|cx| {
        assert!(changed.as_mut().poll(cx).is_pending());
        std::task::Poll::Ready(())
    }));
    drop(first);
    second.block_on(async { tokio::time::timeout(TTL * 2, changed).await }).unwrap();
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_is_told_what_becomes_of_each_registration() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .without_time()
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let registry = MemoryRegistry::new();
    let first = registration("first", "tcp@a:1");
    let lease = registry.register(&first).await.unwrap();
    let mut newer = first.clone();
    newer.instance.epoch += 1;
    let held = [Held { registration: newer.clone(), lease }];
    assert!(registry.renew(&held).await[0].is_ok());
    assert!(registry.renew(&held).await[0].is_ok());
    let mut second = registration("second", "tcp@a:1");
    second.instance.epoch = newer.instance.epoch;
    let lease = registry.register(&second).await.unwrap();
    registry.deregister(&[Held { registration: second, lease }]).await.unwrap();
    registry.register(&registration("third", "tcp@a:3")).await.unwrap();
    tokio::time::sleep(2 * TTL).await;

    let told = String::from_utf8(log.0.lock().clone()).unwrap();
    let expected = [
        ("registered", "first"),
        ("changed", "first"),
        ("replaced", "first"),
        ("registered", "second"),
        ("deregistered", "second"),
        ("registered", "third"),
        ("lease expired", "third"),
    ];
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("memory::event")).collect();
    assert_eq!(lines.len(), expected.len(), "{told}");
    for (line, (what, id)) in lines.iter().zip(expected) {
        assert!(line.contains(&format!(": {what}")), "{what}: {line}");
        assert!(line.contains(&format!("id=\"{id}\"")), "{id}: {line}");
    }
}
