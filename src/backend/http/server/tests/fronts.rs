//! Servers in front of another registry.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::discovery::{DiscoveryError, DiscoveryErrorKind, Resolved};
use crate::instance::ServiceName;
use crate::registry::{Held, Lease, Registration, RegistryError, RegistryErrorKind, Renewal};

async fn register(server: &RegistryServer, id: &str, address: &str) -> (u16, Value) {
    let instance = instance(id, address, 1);
    let body = json!({ "service": "Foo", "ttl_ms": 10_000, "instance": instance });
    post(server, api::REGISTER, body).await
}

async fn renew(server: &RegistryServer, lease: &Value, id: &str, address: &str) -> (u16, Value) {
    let instance = instance(id, address, 1);
    let held = json!([{ "lease_id": lease, "service": "Foo", "instance": instance }]);
    post(server, api::RENEW, json!({ "held": held })).await
}

async fn foo(server: &RegistryServer, query: &str) -> (Vec<String>, String) {
    let (status, listed) = get(server, &format!("/v1/instances?service=Foo{query}")).await;
    assert_eq!(status, 200, "{listed}");
    let ids = listed["instances"].as_array().unwrap().iter();
    let ids = ids.map(|one| format!("{}:{}", one["id"].as_str().unwrap(), one["health"]));
    (ids.collect(), listed["revision"].as_str().unwrap().to_owned())
}

#[tokio::test(start_paused = true)]
async fn two_over_one_registry_agree() {
    let backend = MemoryRegistry::new();
    let (one, two) = (front(&backend).build(), front(&backend).build());
    assert!(one.registry().is_none());
    let (status, granted) = register(&one, "a", "tcp@a:1").await;
    assert_eq!((status, &granted["ttl_ms"]), (200, &json!(10_000)));
    assert_eq!(foo(&two, "").await.0, [r#"a:"up""#]);
    assert_eq!(foo(&one, "").await, foo(&two, "").await, "the revision, too");

    // A lease of the one is renewed by the other.
    for _ in 0..4 {
        sleep(Duration::from_secs(8)).await;
        let (_, renewed) = renew(&two, &granted["lease_id"], "a", "tcp@a:1").await;
        assert_eq!(renewed["results"][0]["status"], "renewed");
    }

    // A long poll at the one is answered by what happens at the other, and not before.
    let (_, revision) = foo(&one, "").await;
    let polling = tokio::spawn({
        let two = two.clone();
        async move { foo(&two, &format!("&revision={revision}&wait=30s")).await }
    });
    let start = Instant::now();
    sleep(Duration::from_secs(1)).await;
    let drain = json!({ "service": "Foo", "id": "a", "wait_ms": 0 });
    assert_eq!(post(&one, api::DRAIN, drain).await.0, 200);
    assert_eq!(polling.await.unwrap().0, [r#"a:"draining""#]);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let unknown = json!({ "service": "Foo", "id": "b" });
    assert_eq!(post(&two, api::DRAIN, unknown).await.1["type"], api::UNKNOWN_INSTANCE);

    // One that nothing happens to is held for as long as it says.
    let (_, revision) = foo(&one, "").await;
    let start = Instant::now();
    foo(&one, &format!("&revision={revision}&wait=2s")).await;
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());

    assert_eq!(get(&two, api::SERVICES).await.1["services"], json!(["Foo"]));
    let leaving = json!({ "lease_id": granted["lease_id"], "service": "Foo", "id": "a" });
    assert_eq!(post(&two, api::DEREGISTER, json!({ "held": [leaving] })).await.0, 200);
    assert!(foo(&one, "").await.0.is_empty());
    assert_eq!(get(&one, api::SERVICES).await.1["services"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn addresses_are_kept_by_posts_at_any_of_them() {
    let backend = MemoryRegistry::new();
    let fronts = [0; 2].map(|_| front(&backend).ttl(Some(Duration::from_secs(20))).build());
    let beat = async |at: usize, address: &str| {
        let servers = [("srpc-servers", address)];
        assert_eq!(ask(&fronts[at % 2], "POST", SEED, &servers, "").await.0, 200);
    };
    for at in 0..7 {
        beat(at, "tcp@a:1").await;
        sleep(Duration::from_secs(8)).await;
        for front in &fronts {
            assert_eq!(seed_list(front, "").await, "tcp@a:1");
        }
    }
    let (_, all) = get(&fronts[0], api::INSTANCES).await;
    assert_eq!(all["instances"][0]["service"], Value::Null);
    assert_eq!(get(&fronts[0], api::SERVICES).await.1["services"], json!([]));
    sleep(Duration::from_secs(20)).await;
    assert_eq!(seed_list(&fronts[1], "").await, "");

    // One that an instance holds is that instance's.
    assert_eq!(register(&fronts[0], "a", "tcp@a:1").await.0, 200);
    beat(1, "tcp@a:1").await;
    let (_, all) = get(&fronts[1], api::INSTANCES).await;
    assert_eq!(all["instances"].as_array().unwrap().len(), 1);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(seed_list(&fronts[1], "").await, "", "it is not renewed for it");
}

#[tokio::test(start_paused = true)]
async fn caps_count_what_came_through_it_until_it_ends() {
    let server = front(&MemoryRegistry::new()).max_instances(2).build();
    let (_, granted) = register(&server, "a", "tcp@a:1").await;
    assert_eq!(register(&server, "b", "tcp@b:1").await.0, 200);
    assert_eq!(register(&server, "c", "tcp@c:1").await.1["type"], api::FULL);
    assert_eq!(register(&server, "b", "tcp@b:1").await.0, 200, "what is there may stay");
    let servers = [("srpc-servers", "tcp@c:1")];
    assert_eq!(ask(&server, "POST", SEED, &servers, "").await.0, 503);
    sleep(Duration::from_secs(8)).await;
    renew(&server, &granted["lease_id"], "a", "tcp@a:1").await;
    sleep(Duration::from_secs(8)).await;
    assert_eq!(register(&server, "c", "tcp@c:1").await.0, 200, "b has ended");
    assert_eq!(register(&server, "d", "tcp@d:1").await.1["type"], api::FULL, "a has not");
    let leaving = json!({ "lease_id": granted["lease_id"], "service": "Foo", "id": "a" });
    post(&server, api::DEREGISTER, json!({ "held": [leaving] })).await;
    assert_eq!(register(&server, "d", "tcp@d:1").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_given_back_by_who_holds_the_lease_alone() {
    let server = front(&MemoryRegistry::new()).max_instances(1).build();
    let (_, granted) = register(&server, "a", "tcp@a:1").await;
    let leave = async |lease: &Value| {
        let leaving = json!({ "lease_id": lease, "service": "Foo", "id": "a" });
        assert_eq!(post(&server, api::DEREGISTER, json!({ "held": [leaving] })).await.0, 200);
    };
    leave(&json!("another")).await;
    let (_, lost) = renew(&server, &json!("another"), "a", "tcp@a:1").await;
    assert_eq!(lost["type"], api::UNKNOWN_LEASE);
    assert_eq!(register(&server, "b", "tcp@b:1").await.1["type"], api::FULL);
    leave(&granted["lease_id"]).await;
    assert_eq!(register(&server, "b", "tcp@b:1").await.0, 200);

    // What another one granted counts as soon as it is renewed here, and until it is taken back here.
    let backend = MemoryRegistry::new();
    let [one, two] = [0; 2].map(|_| front(&backend).max_instances(1).build());
    let (_, granted) = register(&one, "a", "tcp@a:1").await;
    renew(&two, &granted["lease_id"], "a", "tcp@a:1").await;
    assert_eq!(register(&two, "b", "tcp@b:1").await.1["type"], api::FULL);
    let leaving = json!({ "lease_id": granted["lease_id"], "service": "Foo", "id": "a" });
    post(&two, api::DEREGISTER, json!({ "held": [leaving] })).await;
    assert_eq!(register(&two, "b", "tcp@b:1").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_has_the_address_for_its_id_is_no_mere_address() {
    let server = front(&MemoryRegistry::new()).build();
    let instance = json!({ "id": "tcp@a:1", "address": "tcp@a:1", "epoch": 3, "weight": 5 });
    let body = json!({ "service": "Foo", "ttl_ms": 10_000, "instance": instance });
    assert_eq!(post(&server, api::REGISTER, body).await.0, 200);
    for headers in [
        &[("srpc-servers", "tcp@a:1"), ("srpc-service", "Foo")][..],
        &[("srpc-servers", "tcp@a:1")],
    ] {
        assert_eq!(ask(&server, "POST", SEED, headers, "").await.0, 200);
    }
    let (_, all) = get(&server, api::INSTANCES).await;
    let all = all["instances"].as_array().unwrap();
    assert_eq!((all.len(), &all[0]["weight"]), (1, &json!(5)));
}

#[tokio::test(start_paused = true)]
async fn no_more_services_are_watched_than_may_be() {
    let server = front(&MemoryRegistry::new()).max_backend_watches(1).build();
    let (_, revision) = foo(&server, "").await;
    let poll = async |service: &str, wait: u64| {
        let start = Instant::now();
        let query = format!("/v1/instances?service={service}&revision={revision}&wait={wait}s");
        assert_eq!(get(&server, &query).await.0, 200);
        start.elapsed().as_secs()
    };
    let (foo, bar) = tokio::join!(poll("Foo", 5), async {
        sleep(Duration::from_secs(1)).await;
        poll("Bar", 5).await
    });
    assert_eq!((foo, bar), (5, 0));
    assert_eq!(poll("Bar", 5).await, 5, "nobody waits for Foo any more");
    // Whoever has nothing to wait for takes no place.
    let (bar, others) = tokio::join!(poll("Bar", 5), async {
        sleep(Duration::from_secs(1)).await;
        for query in ["revision=x&wait=30s", &format!("revision={revision}&wait=0s")] {
            get(&server, &format!("/v1/instances?service=Baz&{query}")).await;
        }
        poll("Bar", 2).await
    });
    assert_eq!((bar, others), (5, 2));
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

/// Fails as it is told, and counts.
#[derive(Default)]
struct Moody {
    asked: AtomicUsize,
    fails: Option<DiscoveryErrorKind>,
    hangs: bool,
    /// With a payload that panics when it is dropped.
    panics: bool,
    unsure: bool,
}

#[async_trait]
impl Discovery for Moody {
    async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
        self.asked.fetch_add(1, Relaxed);
        if self.hangs {
            pending::<()>().await;
        }
        if self.panics {
            std::panic::panic_any(PanicsOnDrop);
        }
        sleep(Duration::from_millis(10)).await;
        match self.fails {
            Some(kind) => Err(DiscoveryError::new(kind, "a mood")),
            None => {
                let unread = self.unsure.then_some("/srpc/Foo/b: weight: no number");
                let deregistered = if self.unsure { vec!["gone".into()] } else { Vec::new() };
                let resolved = Resolved::new(Vec::new()).authoritative(true);
                Ok(resolved.complete(!self.unsure).unread(unread).deregistered(deregistered))
            }
        }
    }
}

#[async_trait]
impl Registry for Moody {
    async fn register(&self, _: &Registration) -> Result<Lease, RegistryError> {
        if self.hangs {
            pending::<()>().await;
        }
        Err(RegistryError::new(RegistryErrorKind::NotAllowed, "a mood"))
    }

    async fn renew(&self, _: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        Vec::new()
    }

    async fn deregister(&self, _: &[Held]) -> Result<(), RegistryError> {
        Err(RegistryError::unavailable("a mood"))
    }
}

fn moody(moody: Moody) -> (RegistryServer, Arc<Moody>) {
    let moody = Arc::new(moody);
    let server = RegistryServer::builder().backend(moody.clone(), moody.clone());
    (server.build(), moody)
}

#[tokio::test(start_paused = true)]
async fn who_wants_the_same_list_shares_a_request() {
    let (server, backend) = moody(Moody::default());
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let server = server.clone();
        asking.spawn(async move { foo(&server, "").await });
    }
    asking.join_all().await;
    let asked = backend.asked.load(Relaxed);
    assert!((1..=2).contains(&asked), "{asked} requests");
    // One that comes later does not get what was read before.
    foo(&server, "").await;
    assert_eq!(backend.asked.load(Relaxed), asked + 1);
}

/// Those who wait for a list get it though the one who asked for it first has left.
#[tokio::test(start_paused = true)]
async fn a_reading_is_nobodys_own() {
    let (server, backend) = moody(Moody::default());
    let leaving = tokio::time::timeout(Duration::from_millis(5), foo(&server, ""));
    let (left, listed) = tokio::join!(leaving, foo(&server, ""));
    assert!(left.is_err() && listed.0.is_empty());
    assert_eq!(backend.asked.load(Relaxed), 1, "it was not begun anew");
}

#[tokio::test(start_paused = true)]
async fn no_more_lists_are_read_at_once_than_may_be() {
    let took = async |requests: usize| {
        let backend = Arc::new(Moody::default());
        let server = RegistryServer::builder().backend(backend.clone(), backend);
        let server = server.max_backend_requests(requests).build();
        let start = Instant::now();
        tokio::join!(foo(&server, ""), get(&server, "/v1/instances?service=Bar"));
        start.elapsed().as_millis()
    };
    assert_eq!((took(2).await, took(1).await), (10, 20), "a list takes 10 ms");
}

#[tokio::test(start_paused = true)]
async fn what_the_backend_lacks_or_refuses_is_told_as_such() {
    for kind in [DiscoveryErrorKind::Unavailable, DiscoveryErrorKind::NotAllowed] {
        let (server, _) = moody(Moody { fails: Some(kind), ..Moody::default() });
        assert_eq!(get(&server, "/v1/instances?service=Foo").await.0, 503, "{kind:?}");
        let poll = "/v1/instances?service=Foo&revision=x&wait=30s";
        assert_eq!(get(&server, poll).await.0, 503, "{kind:?}");
        assert_eq!(ask(&server, "GET", &format!("{SEED}?service=Foo"), &[], "").await.0, 503);
    }
    let (server, _) = moody(Moody::default());
    assert_eq!(get(&server, api::SERVICES).await.1["type"], api::UNSUPPORTED);
    assert_eq!(get(&server, api::INSTANCES).await.1["status"], 501);
    let drain = json!({ "service": "Foo", "id": "a" });
    assert_eq!(post(&server, api::DRAIN, drain).await.1["type"], api::UNSUPPORTED);
    // The one who asks may; it is the front that may not.
    assert_eq!(register(&server, "a", "tcp@a:1").await.0, 503);
    assert_eq!(renew(&server, &json!("l"), "a", "tcp@a:1").await.0, 503);
    let leaving = json!({ "lease_id": "l", "service": "Foo", "id": "a" });
    assert_eq!(post(&server, api::DEREGISTER, json!({ "held": [leaving] })).await.0, 503);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_hangs_is_left_after_a_while() {
    let (server, _) = moody(Moody { hangs: true, ..Moody::default() });
    let start = Instant::now();
    assert_eq!(get(&server, "/v1/instances?service=Foo").await.0, 503);
    assert_eq!(register(&server, "a", "tcp@a:1").await.0, 503);
    assert_eq!(start.elapsed(), Duration::from_secs(20), "10 s each");
}

#[tokio::test(start_paused = true)]
async fn a_list_of_which_the_backend_is_unsure_proves_nothing() {
    for unsure in [false, true] {
        let (server, _) = moody(Moody { unsure, ..Moody::default() });
        let list = async || get(&server, "/v1/instances?service=Foo").await.1;
        assert_eq!(list().await["warming"], true, "it may have been started with its backend");
        sleep(Duration::from_secs(15)).await;
        let list = list().await;
        assert_eq!(list["warming"], unsure);
        let unread = unsure.then(|| json!(["/srpc/Foo/b: weight: no number"]));
        assert_eq!(list.get("unread"), unread.as_ref());
        let deregistered = unsure.then(|| json!(["gone"]));
        assert_eq!(
            list.get("deregistered"),
            deregistered.as_ref(),
            "what it is sure of is passed on"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_whose_panic_panics_is_answered_for() {
    let (server, _) = moody(Moody { panics: true, ..Moody::default() });
    for _ in 0..2 {
        assert_eq!(get(&server, "/v1/instances?service=Foo").await.0, 503);
    }
}
