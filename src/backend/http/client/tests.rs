//! The client, against our server, the seed's, and worse ones.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::backend::http::RegistryServer;
use crate::backend::memory::MemoryRegistry;
use crate::discovery::{DiscoveryErrorKind, Resolver, Update};
use crate::instance::{Address, Health, Instance};
use crate::registry::{DEFAULT_TTL, RegistryErrorKind};
use crate::transport::{Memory, Stream};

const URL: &str = "http://one:9999/srpc/registry";
const BOTH: &str = "http://one:9999/srpc/registry,http://two:9999/srpc/registry";

fn client(net: &Memory, urls: &str) -> HttpRegistry {
    HttpRegistry::builder(urls).transport(Arc::new(net.clone())).build().unwrap()
}

async fn start(net: &Memory, host: &str, server: RegistryServer) -> JoinHandle<()> {
    let address: Address = format!("tcp@{host}:9999").parse().unwrap();
    let listener = net.bind(&address).await.unwrap();
    tokio::spawn(async move { server.serve(listener, pending()).await.unwrap() })
}

/// Ends a server so that its address is free again.
async fn end(serving: JoinHandle<()>) {
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
}

/// Answers every request with what `answer` makes of its head, and closes.
async fn scripted(
    net: &Memory,
    host: &str,
    answer: impl Fn(&str) -> String + Send + 'static,
) -> JoinHandle<()> {
    let address: Address = format!("tcp@{host}:9999").parse().unwrap();
    let mut listener = net.bind(&address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let mut stream = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.unwrap() == 0 {
                    break;
                }
            }
            let answer = answer(&String::from_utf8_lossy(&head));
            if answer == HANG {
                tokio::spawn(async move {
                    let _stream = stream;
                    pending::<()>().await;
                });
            } else {
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
}

const HANG: &str = "hang";

fn http(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

/// The seed's registry, written by hand: no expiry, no `/v1`.
async fn seed(net: &Memory, host: &str) -> (Arc<Mutex<BTreeSet<String>>>, JoinHandle<()>) {
    let servers: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let state = Arc::clone(&servers);
    let serving = scripted(net, host, move |head| {
        let mut servers = servers.lock();
        let sent = head.lines().find_map(|line| line.strip_prefix("srpc-servers: "));
        match (head, sent) {
            (head, Some(address)) if head.starts_with("POST /srpc/registry ") => {
                servers.insert(address.to_owned());
                http("200 OK", "", "")
            }
            (head, None) if head.starts_with("GET /srpc/registry ") => {
                let list = servers.iter().cloned().collect::<Vec<_>>().join(",");
                http("200 OK", &format!("Srpc-Servers: {list}\r\n"), "")
            }
            _ => http("404 Not Found", "content-type: text/plain\r\n", "404 page not found\n"),
        }
    })
    .await;
    (state, serving)
}

fn foo() -> ServiceName {
    "Foo".parse().unwrap()
}

fn registration(id: &str, address: &str, epoch: u64) -> Registration {
    let instance =
        Instance::new(id, address.parse().unwrap()).epoch(epoch).zone("z").meta("k", "v");
    Registration::new(foo(), instance)
}

fn held(registration: &Registration, lease: &Lease) -> Held {
    Held { registration: registration.clone(), lease: lease.clone() }
}

fn addresses(resolved: &Resolved) -> Vec<&str> {
    resolved.instances.iter().map(|instance| instance.address.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_registration_is_found_renewed_and_taken_back() {
    let net = Memory::new();
    let _serving = start(&net, "one", RegistryServer::new()).await;
    let registry = client(&net, URL);
    let one = registration("one", "tcp@a:1", 7);
    let lease = registry.register(&one).await.unwrap();
    assert_eq!(lease.ttl, Some(DEFAULT_TTL));

    let found = registry.resolve(&foo()).await.unwrap();
    assert_eq!(found.instances, std::slice::from_ref(&one.instance));
    assert!(found.complete && found.warming && found.revision.is_some());

    let held_one = held(&one, &lease);
    for _ in 0..4 {
        sleep(Duration::from_secs(10)).await;
        let renewed = registry.renew(std::slice::from_ref(&held_one)).await;
        assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    }
    assert!(registry.resolve(&foo()).await.unwrap().is_proven(), "no longer warming");

    let older = registration("one", "tcp@a:1", 6);
    let error = registry.register(&older).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::StaleEpoch { held: 7 });
    let stale = registry.renew(&[held(&older, &lease)]).await;
    let stale = stale[0].as_ref().unwrap_err();
    assert_eq!(stale.kind(), RegistryErrorKind::StaleEpoch { held: 7 });
    let invalid = registration("two", "tcp@0.0.0.0:1", 1);
    let error = registry.register(&invalid).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Invalid);
    assert!(error.message().contains("--advertise"), "{error}");

    let listed = registry.list(None).await.unwrap();
    assert_eq!(listed.entries[0].service, Some(foo()));
    assert!(listed.entries[0].expires_in.is_some());

    registry.deregister(std::slice::from_ref(&held_one)).await.unwrap();
    assert_eq!(registry.resolve(&foo()).await.unwrap().instances, []);
    let lost = registry.renew(&[held_one]).await;
    assert!(matches!(lost[..], [Ok(Renewal::Lost)]), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_renewed_expires() {
    let net = Memory::new();
    let _serving = start(&net, "one", RegistryServer::new()).await;
    let registry = client(&net, URL);
    registry.register(&registration("one", "tcp@a:1", 1)).await.unwrap();
    sleep(Duration::from_secs(14)).await;
    assert_eq!(registry.resolve(&foo()).await.unwrap().instances.len(), 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(registry.resolve(&foo()).await.unwrap().instances, []);
}

#[tokio::test(start_paused = true)]
async fn many_leases_are_renewed_in_several_requests() {
    let net = Memory::new();
    let server = RegistryServer::new();
    let state = server.registry().unwrap().clone();
    let _serving = start(&net, "one", server).await;
    let registry = client(&net, URL);
    let mut all = Vec::new();
    for number in 0..1201 {
        let one = registration(&format!("i{number}"), &format!("tcp@a:{}", number + 1), 1);
        let lease = match number {
            777 => Lease::new("another", None),
            _ => state.register(&one).await.unwrap(),
        };
        all.push(held(&one, &lease));
    }
    assert_eq!(batches(&all).iter().map(|batch| batch.len()).max(), Some(BATCH));
    let renewed = registry.renew(&all).await;
    assert_eq!(renewed.len(), 1201);
    for (number, renewed) in renewed.iter().enumerate() {
        let expected = if number == 777 { Renewal::Lost } else { Renewal::Renewed };
        assert_eq!(*renewed.as_ref().unwrap(), expected, "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_weighs_much_is_split_by_its_weight() {
    let mut heavy = registration("one", "tcp@a:1", 1);
    heavy.instance = heavy.instance.meta("x", "\"".repeat(8000));
    let heavy = vec![held(&heavy, &Lease::new("l", None)); 50];
    let batches = batches(&heavy);
    assert_eq!(batches.iter().map(|batch| batch.len()).sum::<usize>(), 50);
    assert!(batches.len() > 1 && batches.iter().all(|batch| batch.len() < 20));
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_each_change_when_it_happens() {
    let net = Memory::new();
    let server = RegistryServer::new();
    let state = server.registry().unwrap().clone();
    let serving = start(&net, "one", server).await;
    let registry = client(&net, URL);
    let mut updates = registry.watch(&foo()).unwrap();
    let Some(Ok(Update::Set(first))) = updates.next().await else { panic!("no list") };
    assert_eq!((first.instances.len(), first.warming), (0, true));

    // Nothing but the end of the warm-up is told meanwhile.
    let Some(Ok(Update::Set(warm))) = updates.next().await else { panic!("no list") };
    assert!(warm.is_proven() && warm.revision == first.revision);
    let quiet = tokio::time::timeout(Duration::from_secs(100), updates.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");

    let one = registration("one", "tcp@a:1", 1);
    let lease = state.register(&one).await.unwrap();
    let registered = Instant::now();
    let Some(Ok(Update::Set(found))) = updates.next().await else { panic!("no list") };
    assert_eq!(addresses(&found), ["tcp@a:1"]);
    assert!(registered.elapsed() < Duration::from_millis(100), "{:?}", registered.elapsed());

    state.set_health(&foo(), &one.instance.id, Health::Draining);
    let Some(Ok(Update::Set(found))) = updates.next().await else { panic!("no list") };
    assert_eq!(found.instances[0].health, Health::Draining);
    state.deregister(&[held(&one, &lease)]).await.unwrap();
    let Some(Ok(Update::Set(found))) = updates.next().await else { panic!("no list") };
    assert_eq!((found.instances.len(), found.is_proven()), (0, true));

    end(serving).await;
    let Some(Err(error)) = updates.next().await else { panic!("no error") };
    assert_eq!(error.kind(), DiscoveryErrorKind::Unavailable);
    assert!(updates.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn without_v1_the_seeds_contract_serves() {
    let net = Memory::new();
    let (state, serving) = seed(&net, "one").await;
    let registry = client(&net, URL);
    assert_eq!(registry.resolve(&foo()).await.unwrap().instances, []);
    let one = registration("one", "tcp@a:1", 1);
    let lease = registry.register(&one).await.unwrap();
    assert_eq!(lease, Lease::new("", None));
    state.lock().insert(" tcp@b:2 ,, tcp@a:1".to_owned());

    for service in ["Foo", "Bar"] {
        let found = registry.resolve(&service.parse().unwrap()).await.unwrap();
        assert_eq!(addresses(&found), ["tcp@a:1", "tcp@b:2"]);
        assert!(found.complete && !found.is_proven());
    }
    let Some(Err(error)) = registry.watch(&foo()).unwrap().next().await else { panic!() };
    assert_eq!(error.kind(), DiscoveryErrorKind::Unsupported);

    state.lock().clear();
    let renewed = registry.renew(&[held(&one, &lease)]).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    assert_eq!(state.lock().len(), 1);
    registry.deregister(&[held(&one, &lease)]).await.unwrap();

    state.lock().insert("nonsense".to_owned());
    let found = registry.resolve(&foo()).await.unwrap();
    assert_eq!((addresses(&found), found.complete), (vec!["tcp@a:1"], false));

    // The registry is replaced by one that speaks `/v1`.
    end(serving).await;
    let _serving = start(&net, "one", RegistryServer::new()).await;
    let lease = registry.register(&one).await.unwrap();
    assert!(!lease.id.is_empty());
    assert!(registry.resolve(&foo()).await.unwrap().revision.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_finds_out_that_v1_has_come() {
    let net = Memory::new();
    let (_, serving) = seed(&net, "one").await;
    let registry = client(&net, URL);
    let one = registration("one", "tcp@a:1", 1);
    let lease = registry.register(&one).await.unwrap();
    end(serving).await;
    let _serving = start(&net, "one", RegistryServer::new()).await;
    let renewed = registry.renew(&[held(&one, &lease)]).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    sleep(Duration::from_secs(61)).await;
    let renewed = registry.renew(&[held(&one, &lease)]).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Lost)]), "{renewed:?}");
}

#[tokio::test(start_paused = true)]
async fn no_answer_that_is_none_becomes_a_list() {
    let page = http("200 OK", "content-type: text/html\r\n", "<html>Welcome</html>");
    let json = "content-type: application/json\r\n";
    let problem = "content-type: application/problem+json\r\n";
    let answers = [
        http("500 Internal Server Error", "", ""),
        http("502 Bad Gateway", "content-type: text/html\r\n", "<html>"),
        http("503 Service Unavailable", problem, "{\"type\":\"urn:srpc:unavailable\"}"),
        http("404 Not Found", "", "nothing here at all"),
        http("404 Not Found", problem, "{\"type\":\"urn:srpc:not-found\"}"),
        http("404 Not Found", problem, "<html>"),
        http("401 Unauthorized", "", ""),
        http("301 Moved Permanently", "location: http://two:9999/\r\n", ""),
        page,
        http("200 OK", "", ""),
        http("200 OK", json, "[]"),
        http("200 OK", json, "null"),
        http("200 OK", json, "{}"),
        http("200 OK", json, "{\"instances\":[]}"),
        http("200 OK", json, "{\"revision\":\"a-1\"}"),
        http("200 OK", json, "{\"revision\":\"a-1\",\"instances\":{}}"),
        http("200 OK", json, "{\"revision\":\"a-1\",\"instances\":[{}]}"),
        http("200 OK", json, "{\"revision\":\"a-1\",\"instances\":["),
        http("200 OK", json, &format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))),
        http("200 OK", "srpc-servers: nonsense\r\n", ""),
        http("204 No Content", "", ""),
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\n".to_owned(),
        "SSH-2.0-OpenSSH_9.6\r\n\r\n".to_owned(),
        "\0\0\0".to_owned(),
        String::new(),
        HANG.to_owned(),
    ];
    for answer in answers {
        let net = Memory::new();
        let shown = answer.chars().take(120).collect::<String>();
        let serving = scripted(&net, "one", move |_| answer.clone()).await;
        let registry = client(&net, URL);
        let start = Instant::now();
        let error = registry.resolve(&foo()).await.expect_err(&shown);
        assert!(start.elapsed() <= Duration::from_secs(10), "{shown:?}: {error}");
        registry.list(None).await.expect_err(&shown);
        let mut updates = client(&net, URL).watch(&foo()).unwrap();
        while let Some(update) = updates.next().await {
            update.expect_err(&shown);
        }
        let one = registration("one", "tcp@a:1", 1);
        let renewed = registry.renew(&[held(&one, &Lease::new("l", None))]).await;
        assert_eq!(renewed.len(), 1, "{shown:?}");
        end(serving).await;
    }
    let nobody = client(&Memory::new(), URL);
    let error = nobody.resolve(&foo()).await.unwrap_err();
    assert_eq!(error.kind(), DiscoveryErrorKind::Unavailable);
    assert!(error.to_string().contains("http://one:9999"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_a_newer_registry_adds_is_passed_over() {
    let net = Memory::new();
    let body = r#"{"revision":"a-1","more":{},"instances":[
        {"id":"1","address":"tcp@a:1","service":"Foo","epoch":18446744073709551615,"mood":"good"},
        {"id":"2","address":"tcp@b:1","health":"dancing"}]}"#;
    let answer = http("200 OK", "content-type: application/json\r\n", body);
    let _serving = scripted(&net, "one", move |_| answer.clone()).await;
    let found = client(&net, URL).resolve(&foo()).await.unwrap();
    assert_eq!((addresses(&found), found.complete), (vec!["tcp@a:1"], false));
    assert_eq!(found.instances[0].epoch, u64::MAX);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_proves_nothing_tells_what_was_deregistered() {
    let net = Memory::new();
    let body = r#"{"revision":"a-1","warming":true,"deregistered":["1"],"instances":[]}"#;
    let answer = http("200 OK", "content-type: application/json\r\n", body);
    let _serving = scripted(&net, "one", move |_| answer.clone()).await;
    let registry = client(&net, URL);
    let found = registry.resolve(&foo()).await.unwrap();
    let deregistered = vec![InstanceId::from("1")];
    assert!(found.warming);
    assert_eq!(found.deregistered, deregistered);
    assert_eq!(registry.list(Some(&foo())).await.unwrap().deregistered, deregistered);
}

/// Two registries of their own, past their warm-up, and what they hold.
async fn two(net: &Memory) -> ([JoinHandle<()>; 2], [MemoryRegistry; 2]) {
    let servers = [RegistryServer::new(), RegistryServer::new()];
    let states = servers.each_ref().map(|server| server.registry().unwrap().clone());
    let [first, second] = servers;
    let serving = [start(net, "one", first).await, start(net, "two", second).await];
    sleep(Duration::from_secs(60)).await;
    (serving, states)
}

/// A registry that accepts connections and never answers.
async fn hanging(net: &Memory, address: &str) -> JoinHandle<()> {
    let mut listener = net.bind(&Address::to_bind(address).unwrap()).await.unwrap();
    tokio::spawn(async move {
        let mut streams = Vec::new();
        while let Ok(stream) = listener.accept().await {
            streams.push(stream);
        }
    })
}

fn ids(state: &MemoryRegistry) -> Vec<String> {
    let entries = state.list(Some(&foo())).entries;
    entries.iter().map(|entry| entry.instance.id.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn each_of_several_registries_holds_a_lease_and_either_may_come_back_empty() {
    let net = Memory::new();
    let ([first, _second], states) = two(&net).await;
    let registry = client(&net, BOTH);
    let one = registration("one", "tcp@a:1", 2);
    let lease = registry.register(&one).await.unwrap();
    let held = [held(&one, &lease)];
    assert_eq!(states.each_ref().map(ids), [["one"], ["one"]]);
    assert!(registry.resolve(&foo()).await.unwrap().is_proven());

    // One is away: the other knows all, and proves it.
    end(first).await;
    let renewed = registry.renew(&held).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    let found = client(&net, BOTH).resolve(&foo()).await.unwrap();
    assert_eq!((addresses(&found), found.complete), (vec!["tcp@a:1"], false));
    assert!(registry.resolve(&foo()).await.unwrap().is_proven());

    // It is back and empty: it hides nobody, and is given what the other has.
    let server = RegistryServer::new();
    let state = server.registry().unwrap().clone();
    let _first = start(&net, "one", server).await;
    for registry in [&registry, &client(&net, BOTH)] {
        let found = registry.resolve(&foo()).await.unwrap();
        assert_eq!((addresses(&found), found.warming), (vec!["tcp@a:1"], false));
    }
    let renewed = registry.renew(&held).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    assert_eq!((ids(&state), ids(&states[1])), (vec!["one".to_owned()], vec!["one".to_owned()]));

    // Lost at all of them it is lost, and nothing is registered by a renewal.
    sleep(Duration::from_secs(60)).await;
    let renewed = registry.renew(&held).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Lost)]), "{renewed:?}");
    assert!(ids(&state).is_empty() && ids(&states[1]).is_empty());

    let lease = registry.register(&one).await.unwrap();
    registry.deregister(&[self::held(&one, &lease)]).await.unwrap();
    assert!(ids(&state).is_empty() && ids(&states[1]).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_superseded_at_one_registry_is_given_up() {
    let net = Memory::new();
    let (_serving, states) = two(&net).await;
    let registry = client(&net, BOTH);
    let one = registration("one", "tcp@a:1", 2);
    let lease = registry.register(&one).await.unwrap();
    states[1].register(&registration("two", "tcp@a:1", 3)).await.unwrap();
    let renewed = registry.renew(&[held(&one, &lease)]).await;
    let superseded = RegistryErrorKind::Superseded { held: 3 };
    let [Err(error)] = &renewed[..] else { panic!("{renewed:?}") };
    assert_eq!(error.kind(), superseded);
    assert!(ids(&states[0]).is_empty(), "it is given up at the other registry too");
    assert_eq!(registry.register(&one).await.unwrap_err().kind(), superseded);
    assert!(ids(&states[0]).is_empty(), "what one registry grants meanwhile is taken back");
    assert_eq!(ids(&states[1]), ["two"]);
    // At one address the newer one is listed, whichever registry says so.
    let found = registry.resolve(&foo()).await.unwrap();
    assert_eq!(found.instances[0].id.as_str(), "two");
}

#[tokio::test(start_paused = true)]
async fn what_was_granted_before_is_given_up_by_who_is_superseded_and_granted_nothing() {
    let net = Memory::new();
    let full = RegistryServer::builder().max_registered_bytes(2_000).build();
    let _full = start(&net, "one", full.clone()).await;
    let other = RegistryServer::new();
    let state = other.registry().unwrap().clone();
    let _other = start(&net, "two", other).await;
    let registry = client(&net, BOTH);
    let mut one = registration("one", "tcp@a:1", 2);
    registry.register(&one).await.unwrap();
    assert_eq!(ids(full.registry().unwrap()), ["one"]);
    state.register(&registration("two", "tcp@a:1", 4)).await.unwrap();
    one.instance.epoch = 3;
    one.instance.metadata.insert("heavy".to_owned(), "x".repeat(2_000));
    let error = registry.register(&one).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Superseded { held: 4 });
    assert!(ids(full.registry().unwrap()).is_empty(), "its lease would list it a while longer");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_hangs_does_not_hold_up_what_is_given_up() {
    let net = Memory::new();
    let (_serving, states) = two(&net).await;
    let third = start(&net, "three", RegistryServer::new()).await;
    let registry = client(&net, &format!("{BOTH},http://three:9999/srpc/registry"));
    let one = registration("one", "tcp@a:1", 2);
    let lease = registry.register(&one).await.unwrap();
    end(third).await;
    let _hanging = hanging(&net, "tcp@three:9999").await;
    states[1].register(&registration("two", "tcp@a:1", 3)).await.unwrap();
    let begun = Instant::now();
    let renewed = registry.renew(&[held(&one, &lease)]).await;
    let [Err(error)] = &renewed[..] else { panic!("{renewed:?}") };
    assert_eq!(error.kind(), RegistryErrorKind::Superseded { held: 3 });
    assert!(ids(&states[0]).is_empty());
    // 2 s for the renewal that hangs, and a quarter for the deregistration that hangs.
    assert!(begun.elapsed() <= Duration::from_millis(2_300), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_drain_at_one_registry_reaches_the_instance_and_both() {
    let net = Memory::new();
    let (_serving, states) = two(&net).await;
    let registry = Arc::new(client(&net, BOTH));
    let registrar = crate::registry::Registrar::new(registry.clone());
    let one = registration("one", "tcp@a:1", 2);
    registrar.register(foo(), one.instance).await.unwrap();
    states[0].set_health(&foo(), &"one".into(), Health::Draining);
    let found = registry.resolve(&foo()).await.unwrap();
    assert_eq!(found.instances[0].health, Health::Draining, "draining beats up");
    sleep(Duration::from_secs(6)).await;
    let health = |state: &MemoryRegistry| state.list(Some(&foo())).entries[0].instance.health;
    assert_eq!(states.each_ref().map(health), [Health::Draining; 2]);
    // And back, at the other one.
    states[1].set_health(&foo(), &"one".into(), Health::Up);
    sleep(Duration::from_secs(12)).await;
    assert_eq!(states.each_ref().map(health), [Health::Up; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_refuses_counts_as_away() {
    let net = Memory::new();
    let refusal = http("401 Unauthorized", "", "who are you?");
    let _first = scripted(&net, "one", move |_| refusal.clone()).await;
    let server = RegistryServer::new();
    let state = server.registry().unwrap().clone();
    let _second = start(&net, "two", server).await;
    let registry = client(&net, BOTH);
    let one = registration("one", "tcp@a:1", 2);
    let lease = registry.register(&one).await.unwrap();
    assert_eq!(ids(&state), ["one"]);
    let renewed = registry.renew(&[held(&one, &lease)]).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@a:1"]);
    let alone = client(&net, URL).resolve(&foo()).await.unwrap_err();
    assert_eq!(alone.kind(), crate::discovery::DiscoveryErrorKind::NotAllowed);
}

#[tokio::test(start_paused = true)]
async fn two_urls_with_one_name_are_one_registry() {
    let net = Memory::new();
    let backend = MemoryRegistry::new();
    let front = || {
        let backend = Arc::new(backend.clone());
        RegistryServer::builder().backend(backend.clone(), backend).build()
    };
    let first = start(&net, "one", front()).await;
    let _second = start(&net, "two", front()).await;
    let registry = client(&net, BOTH);
    let one = registration("one", "tcp@a:1", 2);
    let lease = registry.register(&one).await.unwrap();
    let registries = registry.inner.replicas.registries();
    assert_eq!(registries.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    // The one is killed, and the other goes on with the same lease.
    end(first).await;
    let renewed = registry.renew(&[held(&one, &lease)]).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@a:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_first_list_waits_for_a_registry_that_hangs_no_longer_than_it_must() {
    let net = Memory::new();
    let _hanging = hanging(&net, "tcp@one:9999").await;
    let server = RegistryServer::new();
    server.registry().unwrap().register(&registration("one", "tcp@a:1", 2)).await.unwrap();
    let _second = start(&net, "two", server).await;
    let begun = Instant::now();
    let registry = client(&net, BOTH);
    let mut updates = registry.watch(&foo()).unwrap();
    let Some(Ok(Update::Set(found))) = updates.next().await else { panic!("no list") };
    assert_eq!((addresses(&found), found.complete), (vec!["tcp@a:1"], false));
    // 2 s for its name, and 2 s for its list, since the one that answers warms up.
    assert!(begun.elapsed() <= Duration::from_millis(4_100), "{:?}", begun.elapsed());
}

/// Something in front of a healthy registry answers one request in its place.
#[tokio::test(start_paused = true)]
async fn one_stray_answer_does_not_mix_services() {
    let net = Memory::new();
    let server = RegistryServer::new();
    let state = server.registry().unwrap().clone();
    let mut bar = registration("two", "tcp@b:2", 1);
    bar.service = "Bar".parse().unwrap();
    state.register(&registration("one", "tcp@a:1", 1)).await.unwrap();
    state.register(&bar).await.unwrap();
    let serving = start(&net, "one", server.clone()).await;
    let registry = client(&net, URL);
    assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@a:1"]);
    end(serving).await;
    let stray = scripted(&net, "one", |_| http("404 Not Found", "", "default backend")).await;
    let error = registry.resolve(&foo()).await.unwrap_err();
    assert_eq!(error.kind(), crate::discovery::DiscoveryErrorKind::Unavailable, "{error}");
    stray.abort();
    let _ = stray.await;
    let _serving = start(&net, "one", server).await;
    assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@a:1"]);
}

/// A proxy shows a page, or knows no such path, for a moment.
#[tokio::test(start_paused = true)]
async fn what_covers_a_registry_for_a_moment_does_not_unteach_it_v1() {
    let page = http("200 OK", "content-type: text/html\r\n", "<html>Welcome</html>");
    for stray in [page, http("404 Not Found", "", "default backend")] {
        let net = Memory::new();
        let server = RegistryServer::new();
        let serving = start(&net, "one", server.clone()).await;
        let registry = client(&net, URL);
        let lease = registry.register(&registration("one", "tcp@a:1", 1)).await.unwrap();
        let is_page = stray.contains("Welcome");
        end(serving).await;

        let covering = scripted(&net, "one", move |_| stray.clone()).await;
        let mut updates = registry.watch(&foo()).unwrap();
        let error = updates.next().await.unwrap().unwrap_err();
        assert_ne!(error.kind(), DiscoveryErrorKind::Unsupported, "{error}");
        let one = registration("one", "tcp@a:1", 1);
        let renewed = registry.renew(&[held(&one, &lease)]).await;
        assert!(matches!(renewed[..], [Err(_)]), "{renewed:?}");
        covering.abort();
        let _ = covering.await;

        let _serving = start(&net, "one", server).await;
        let found = registry.resolve(&foo()).await.unwrap();
        assert_eq!(addresses(&found), ["tcp@a:1"]);
        // The contract of one header has no revisions.
        assert_eq!(found.revision.is_some(), is_page, "{found:?}");
    }
}

/// Another web server has taken the first one's place.
#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_no_registrys_leads_to_the_next() {
    let net = Memory::new();
    let _first = scripted(&net, "one", |_| http("404 Not Found", "", "default backend")).await;
    let server = RegistryServer::new();
    let state = server.registry().unwrap().clone();
    let _second = start(&net, "two", server).await;
    let registry = client(&net, BOTH);
    registry.register(&registration("one", "tcp@a:1", 1)).await.unwrap();
    assert_eq!(state.services(), [foo()]);
}

/// The seed's contract knows no health: whoever takes no calls must not be listed anew.
#[tokio::test(start_paused = true)]
async fn without_v1_a_draining_instance_is_not_posted() {
    let net = Memory::new();
    let (servers, _serving) = seed(&net, "one").await;
    let registry = client(&net, URL);
    let mut one = registration("one", "tcp@a:1", 1);
    let lease = registry.register(&one).await.unwrap();
    assert_eq!(std::mem::take(&mut *servers.lock()).len(), 1);
    one.instance.health = crate::instance::Health::Draining;
    registry.register(&one).await.unwrap();
    let renewed = registry.renew(&[held(&one, &lease)]).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    assert!(servers.lock().is_empty());
}

/// The first accepts and never answers; the caller's limit is that of a request.
#[tokio::test(start_paused = true)]
async fn a_registry_that_hangs_does_not_keep_its_callers_from_the_next() {
    let net = Memory::new();
    let hanging = hanging(&net, "tcp@one:9999").await;
    let server = RegistryServer::new();
    let state = server.registry().unwrap().clone();
    let _second = start(&net, "two", server).await;
    let registry = Arc::new(client(&net, BOTH));
    let registrar = crate::registry::Registrar::new(registry.clone());
    let one = registration("one", "tcp@a:1", 2);
    registrar.register(one.service.clone(), one.instance.clone()).await.unwrap();
    assert_eq!(state.services(), [foo()]);
    assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@a:1"]);
    registrar.close().await;
    assert_eq!(state.services(), []);
    hanging.abort();
}

#[tokio::test(start_paused = true)]
async fn a_watch_follows_every_registry() {
    let net = Memory::new();
    let ([first, _second], states) = two(&net).await;
    let registry = client(&net, BOTH);
    let mut updates = registry.watch(&foo()).unwrap();
    let next = async |updates: &mut UpdateStream| match updates.next().await {
        Some(Ok(Update::Set(found))) => found,
        other => panic!("no list but {other:?}"),
    };
    assert_eq!(addresses(&next(&mut updates).await), [""; 0]);
    states[1].register(&registration("one", "tcp@a:1", 2)).await.unwrap();
    assert_eq!(addresses(&next(&mut updates).await), ["tcp@a:1"]);
    states[0].register(&registration("two", "tcp@b:1", 2)).await.unwrap();
    assert_eq!(addresses(&next(&mut updates).await), ["tcp@a:1", "tcp@b:1"]);
    // What the one that is away alone had is gone; the rest is followed on.
    end(first).await;
    assert_eq!(addresses(&next(&mut updates).await), ["tcp@a:1"]);
    states[1].register(&registration("three", "tcp@c:1", 2)).await.unwrap();
    assert_eq!(addresses(&next(&mut updates).await), ["tcp@a:1", "tcp@c:1"]);
}

#[tokio::test(start_paused = true)]
async fn connections_are_used_again_and_replaced_when_broken() {
    let net = Memory::new();
    let opened = Arc::new(AtomicUsize::new(0));
    let serving = start(&net, "one", RegistryServer::new()).await;
    let counting = Counting { net: net.clone(), opened: Arc::clone(&opened) };
    let registry = HttpRegistry::builder(URL).transport(Arc::new(counting)).build().unwrap();
    for _ in 0..3 {
        registry.resolve(&foo()).await.unwrap();
    }
    assert_eq!(opened.load(Relaxed), 1);
    end(serving).await;
    let _serving = start(&net, "one", RegistryServer::new()).await;
    registry.resolve(&foo()).await.unwrap();
    assert_eq!(opened.load(Relaxed), 2);
    sleep(Duration::from_secs(6)).await;
    registry.resolve(&foo()).await.unwrap();
    assert_eq!(opened.load(Relaxed), 3, "it waited too long");
}

#[tokio::test(start_paused = true)]
async fn a_process_with_many_registrations_uses_four_connections_at_most() {
    let net = Memory::new();
    let server = RegistryServer::new();
    let _serving = start(&net, "one", server.clone()).await;
    let opened = Arc::new(AtomicUsize::new(0));
    let counting = Counting { net: net.clone(), opened: Arc::clone(&opened) };
    let registry = HttpRegistry::builder(URL).transport(Arc::new(counting)).build().unwrap();
    let registrar = crate::registry::Registrar::new(Arc::new(registry));
    let registering: Vec<_> = (1..=400_u16)
        .map(|n| {
            let registrar = registrar.clone();
            let address = format!("tcp@a:{n}").parse().unwrap();
            let instance = Instance::new(n.to_string(), address);
            tokio::spawn(async move { registrar.register(foo(), instance).await })
        })
        .collect();
    for registered in registering {
        registered.await.unwrap().unwrap();
    }
    assert!(opened.load(Relaxed) <= 4, "{} connections", opened.load(Relaxed));
    assert_eq!(server.registry().unwrap().list(None).entries.len(), 400);
}

/// All registrations hang: a list and a renewal come through.
#[tokio::test(start_paused = true)]
async fn registrations_leave_connections_to_lists_and_renewals() {
    let net = Memory::new();
    let address: Address = "tcp@one:9999".parse().unwrap();
    let mut listener = net.bind(&address).await.unwrap();
    let _serving = tokio::spawn(async move {
        loop {
            let mut stream = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = [0; 64];
                let read = stream.read(&mut head).await.unwrap();
                if !head[..read].starts_with(b"POST /v1/register") {
                    let status = http("503 Service Unavailable", "connection: close\r\n", "");
                    stream.write_all(status.as_bytes()).await.unwrap();
                    return;
                }
                pending::<()>().await;
            });
        }
    });
    let registry = client(&net, URL);
    for n in 1..=10 {
        let (registry, one) = (registry.clone(), registration("one", "tcp@a:1", n));
        tokio::spawn(async move { registry.register(&one).await });
    }
    sleep(Duration::from_millis(10)).await;
    let start = Instant::now();
    assert!(registry.list(None).await.is_err());
    let one = registration("one", "tcp@a:1", 1);
    assert!(registry.renew(&[held(&one, &Lease::new("l", None))]).await[0].is_err());
    assert!(start.elapsed() < Duration::from_secs(1), "they wait for nobody");
}

struct Counting {
    net: Memory,
    opened: Arc<AtomicUsize>,
}

#[async_trait]
impl Transport for Counting {
    fn speaks(&self, protocol: &str) -> bool {
        self.net.speaks(protocol)
    }

    async fn connect(&self, address: &Address) -> std::io::Result<crate::transport::Stream> {
        self.opened.fetch_add(1, Relaxed);
        self.net.connect(address).await
    }

    async fn bind(&self, address: &Address) -> std::io::Result<crate::transport::Listener> {
        self.net.bind(address).await
    }
}

const TOKEN: &str = "0123456789abcdef-shop";

fn with_token(net: &Memory, urls: &str, token: &str) -> HttpRegistry {
    let builder = HttpRegistry::builder(urls).token(token.parse().unwrap());
    assert!(!format!("{builder:?}").contains(token));
    builder.transport(Arc::new(net.clone())).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_token_is_shown_and_a_wrong_one_is_not_allowed() {
    let net = Memory::new();
    let tokens = format!("shop read,write:Foo {TOKEN}").parse().unwrap();
    let server = RegistryServer::builder().tokens(tokens).build();
    let _serving = start(&net, "one", server).await;
    let one = registration("one", "tcp@a:1", 1);
    let registry = with_token(&net, URL, TOKEN);
    let lease = registry.register(&one).await.unwrap();
    assert_eq!(registry.resolve(&foo()).await.unwrap().instances.len(), 1);
    let mut other = one.clone();
    other.service = "Bar".parse().unwrap();
    let error = registry.register(&other).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::NotAllowed);
    assert!(error.message().contains("write:Bar") && error.message().contains(URL), "{error}");
    let both = [held(&one, &lease), held(&other, &lease)];
    let renewed = registry.renew(&both).await;
    assert!(matches!(renewed[0], Ok(Renewal::Renewed)));
    assert_eq!(renewed[1].as_ref().unwrap_err().kind(), RegistryErrorKind::NotAllowed);
    let left = registry.deregister(&both).await.unwrap_err();
    assert_eq!(left.kind(), RegistryErrorKind::NotAllowed);
    assert!(registry.resolve(&foo()).await.unwrap().instances.is_empty());

    for registry in [client(&net, URL), with_token(&net, URL, "another-0123456789")] {
        let error = registry.register(&one).await.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::NotAllowed);
        assert!(error.message().contains(URL), "{error}");
        let renewed = registry.renew(&both[..1]).await;
        assert_eq!(renewed[0].as_ref().unwrap_err().kind(), RegistryErrorKind::NotAllowed);
        let error = registry.resolve(&foo()).await.unwrap_err();
        assert_eq!(error.kind(), DiscoveryErrorKind::NotAllowed);
        let mut watch = registry.watch(&foo()).unwrap();
        let error = watch.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), DiscoveryErrorKind::NotAllowed);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_let_in_does_not_try_the_seeds_path() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let net = Memory::new();
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let log = Arc::clone(&asked);
        let serving = scripted(&net, "one", move |head| {
            log.lock().push(head.lines().next().unwrap_or_default().to_owned());
            http(status, "content-type: text/html\r\nconnection: close\r\n", "<html>")
        })
        .await;
        let registry = with_token(&net, URL, TOKEN);
        let error = registry.register(&registration("one", "tcp@a:1", 1)).await.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::NotAllowed);
        let error = registry.resolve(&foo()).await.unwrap_err();
        assert_eq!(error.kind(), DiscoveryErrorKind::NotAllowed);
        end(serving).await;
    }
    assert!(asked.lock().iter().all(|line| line.contains(" /v1/")), "{:?}", *asked.lock());
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_asked_too_often_is_left_alone_as_long_as_it_says() {
    let net = Memory::new();
    let times = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&times);
    let problem =
        r#"{"type":"urn:srpc:too-many-requests","title":"Too many requests","status":429}"#;
    let headers =
        "content-type: application/problem+json\r\nretry-after: 3\r\nconnection: close\r\n";
    let serving = scripted(&net, "one", move |_| {
        log.lock().push(Instant::now());
        http("429 Too Many Requests", headers, problem)
    })
    .await;
    let registry = client(&net, URL);
    let one = registration("one", "tcp@a:1", 1);
    let error = registry.register(&one).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unavailable);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    times.lock().clear();

    let registrar = crate::registry::Registrar::new(Arc::new(registry));
    let refused = registrar.register(foo(), one.instance.clone()).await;
    assert_eq!(refused.unwrap_err().kind(), RegistryErrorKind::Unavailable);
    sleep(Duration::from_secs(600)).await;
    let pauses: Vec<f64> =
        times.lock().windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect();
    assert!(
        pauses.len() > 60 && pauses.iter().all(|pause| (3.0..=8.1).contains(pause)),
        "{pauses:?}"
    );
    end(serving).await;
    let server = RegistryServer::new();
    let _serving = start(&net, "one", server.clone()).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(server.registry().unwrap().list(None).entries.len(), 1, "it never gives up");
}

#[tokio::test(start_paused = true)]
async fn a_full_registry_is_asked_again() {
    let net = Memory::new();
    let one = RegistryServer::builder().max_instances(1).build();
    let _one = start(&net, "one", one.clone()).await;
    let registry = client(&net, URL);
    let first = registration("first", "tcp@a:1", 1);
    let lease = registry.register(&first).await.unwrap();
    let second = registration("second", "tcp@a:2", 1);
    let error = registry.register(&second).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Full);
    assert!(error.retry_after().is_some());

    let registrar = crate::registry::Registrar::new(Arc::new(registry.clone()));
    assert!(registrar.register(foo(), second.instance.clone()).await.is_err());
    for _ in 0..6 {
        sleep(Duration::from_secs(5)).await;
        let renewed = registry.renew(&[held(&first, &lease)]).await;
        assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    }
    registry.deregister(&[held(&first, &lease)]).await.unwrap();
    sleep(Duration::from_secs(11)).await;
    let listed = one.registry().unwrap().list(None).entries;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].instance.id, second.instance.id);
}

#[tokio::test(start_paused = true)]
async fn what_a_full_registry_has_no_room_for_is_at_the_other() {
    let net = Memory::new();
    let one = RegistryServer::builder().max_instances(1).build();
    let _one = start(&net, "one", one.clone()).await;
    let _two = start(&net, "two", RegistryServer::new()).await;
    let registry = client(&net, BOTH);
    let leases = [registration("first", "tcp@a:1", 1), registration("second", "tcp@a:2", 1)];
    let mut held = Vec::new();
    for registration in &leases {
        held.push(self::held(registration, &registry.register(registration).await.unwrap()));
    }
    assert_eq!(ids(one.registry().unwrap()), ["first"]);
    assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@a:1", "tcp@a:2"]);
    // It follows once there is room.
    registry.deregister(&held[..1]).await.unwrap();
    let renewed = registry.renew(&held[1..]).await;
    assert!(matches!(renewed[..], [Ok(Renewal::Renewed)]), "{renewed:?}");
    assert_eq!(ids(one.registry().unwrap()), ["second"]);
}

#[tokio::test(start_paused = true)]
async fn a_registry_restarted_empty_takes_nobody_from_a_resolver() {
    let net = Memory::new();
    let serving = start(&net, "one", RegistryServer::new()).await;
    let registry = client(&net, URL);
    let all = [("one", "tcp@a:1"), ("two", "tcp@a:2"), ("three", "tcp@a:3")];
    for (id, address) in all {
        registry.register(&registration(id, address, 1)).await.unwrap();
    }
    let resolver = Resolver::new(foo(), Arc::new(registry.clone()));
    let known = || async {
        resolver.refresh().await.unwrap();
        resolver.snapshot().endpoints.len()
    };
    assert_eq!(known().await, 3);

    end(serving).await;
    let _serving = start(&net, "one", RegistryServer::new()).await;
    let empty = registry.resolve(&foo()).await.unwrap();
    assert!(empty.instances.is_empty() && empty.warming);
    assert_eq!(known().await, 3, "what a warming list lacks is kept");
    for round in 1..=12 {
        sleep(Duration::from_secs(5)).await;
        // The third never comes back.
        for (id, address) in &all[..2] {
            registry.register(&registration(id, address, 1)).await.unwrap();
        }
        let warming = registry.resolve(&foo()).await.unwrap().warming;
        assert_eq!(warming, round < 3, "after {} s", round * 5);
        assert_eq!(known().await, if warming { 3 } else { 2 }, "after {} s", round * 5);
    }
}

/// What a gateway does to what it passes on.
#[derive(Clone, Copy, Default)]
struct Gateway {
    blocks_v1: bool,
    drops_service: bool,
}

/// Serves what is at `tcp@behind:9999` below `/reg`, and pages in all other places.
async fn gateway(net: &Memory, how: Gateway) -> JoinHandle<()> {
    let mut listener = net.bind(&"tcp@one:9999".parse().unwrap()).await.unwrap();
    let net = net.clone();
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            // A client that leaves in the middle gets no answer.
            let _ = pass(&net, stream, how).await;
        }
    })
}

async fn pass(net: &Memory, mut stream: Stream, how: Gateway) -> std::io::Result<()> {
    let mut read = Vec::new();
    let (head, length) = loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&read).into_owned();
        let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        break (head.to_owned(), length.map_or(0, |length| length.parse::<usize>().unwrap()));
    };
    while read.len() < head.len() + 4 + length {
        stream.read_buf(&mut read).await?;
    }
    let (first, headers) = head.split_once("\r\n").unwrap();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let path =
        target.strip_prefix("/reg").filter(|path| !(how.blocks_v1 && path.starts_with("/v1")));
    let Some(path) = path else {
        let page = "content-type: text/html\r\nconnection: close\r\n";
        return stream.write_all(http("404 Not Found", page, "<html>").as_bytes()).await;
    };
    let mut behind = net.connect(&"tcp@behind:9999".parse().unwrap()).await?;
    let asked = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n\r\n");
    behind.write_all(asked.as_bytes()).await?;
    behind.write_all(&read[head.len() + 4..]).await?;
    let mut answer = String::new();
    behind.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let kept = head.lines().filter(|line| !(how.drops_service && line.starts_with("srpc-service")));
    let head = kept.collect::<Vec<_>>().join("\r\n");
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

/// Registers Foo at `tcp@a:1` and Bar at `tcp@b:2`.
async fn foo_and_bar(server: &RegistryServer) {
    let state = server.registry().unwrap();
    state.register(&registration("one", "tcp@a:1", 1)).await.unwrap();
    let mut bar = registration("two", "tcp@b:2", 1);
    bar.service = service("Bar");
    state.register(&bar).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_path_prefix_is_kept() {
    for path in ["/reg/srpc/registry", "/reg/srpc/registry/", "/reg", "/reg/"] {
        let net = Memory::new();
        let server = RegistryServer::new();
        foo_and_bar(&server).await;
        let _behind = start(&net, "behind", server.clone()).await;
        let _gateway = gateway(&net, Gateway::default()).await;
        let registry = client(&net, &format!("http://one:9999{path}"));
        let found = registry.resolve(&foo()).await.unwrap();
        assert_eq!(addresses(&found), ["tcp@a:1"], "{path}");
        assert!(found.revision.is_some(), "{path}: by /v1");
        let three = registration("three", "tcp@c:3", 1);
        assert!(!registry.register(&three).await.unwrap().id.is_empty(), "{path}");
        registry.post("tcp@d:4").await.unwrap();
        assert_eq!(server.registry().unwrap().list(None).entries.len(), 4, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_v1_is_blocked_no_service_sees_anothers_instances() {
    for path in ["/reg/srpc/registry", "/reg"] {
        for drops_service in [false, true] {
            let net = Memory::new();
            let server = RegistryServer::new();
            foo_and_bar(&server).await;
            let _behind = start(&net, "behind", server).await;
            let _gateway = gateway(&net, Gateway { blocks_v1: true, drops_service }).await;
            let registry = client(&net, &format!("http://one:9999{path}"));
            for (name, expected) in [("Foo", &["tcp@a:1"][..]), ("Bar", &["tcp@b:2"]), ("No", &[])]
            {
                let found = registry.resolve(&service(name)).await.unwrap();
                assert_eq!(addresses(&found), expected, "{name} {path} {drops_service}");
            }
            assert_eq!(registry.list(None).await.unwrap().entries.len(), 2);
        }
    }
}

/// A registry of another team is at the root, and the one below `/reg` is not there for a moment.
#[tokio::test(start_paused = true)]
async fn a_registry_at_the_root_does_not_stand_in_for_one_below() {
    let net = Memory::new();
    let root = r#"{"revision":"r-1","instances":[{"id":"x","address":"tcp@x:1","service":"Foo"}]}"#;
    let _root = scripted(&net, "one", move |head| match head.split(' ').nth(1) {
        Some(target) if target.starts_with("/v1/") => {
            http("200 OK", "content-type: application/json\r\nconnection: close\r\n", root)
        }
        Some(target) if target.starts_with("/reg/") => {
            http("503 Service Unavailable", "connection: close\r\n", "")
        }
        _ => http("404 Not Found", "connection: close\r\n", ""),
    })
    .await;
    for path in ["/reg/srpc/registry", "/reg"] {
        let registry = client(&net, &format!("http://one:9999{path}"));
        let error = registry.resolve(&foo()).await.unwrap_err();
        assert_eq!(error.kind(), DiscoveryErrorKind::Unavailable, "{path}: {error}");
    }
    // A header contract that is mounted elsewhere has its `/v1` at the root.
    let registry = client(&net, "http://one:9999/my/list");
    assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@x:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_header_contract_is_found_where_it_is_mounted() {
    let net = Memory::new();
    let _serving = scripted(&net, "one", |head| match head.split(' ').nth(1) {
        Some("/my/list") => http("200 OK", "srpc-servers: tcp@a:1\r\nconnection: close\r\n", ""),
        _ => http("404 Not Found", "connection: close\r\n", ""),
    })
    .await;
    let registry = client(&net, "http://one:9999/my/list");
    assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@a:1"]);
    registry.post("tcp@b:2").await.unwrap();
}

/// Something in the way answers with a list of all, or of another service.
#[tokio::test(start_paused = true)]
async fn a_list_that_was_not_asked_for_is_not_believed() {
    for headers in ["srpc-servers: tcp@b:2\r\n", "srpc-servers: tcp@b:2\r\nsrpc-service: Bar\r\n"] {
        let net = Memory::new();
        let server = RegistryServer::new();
        foo_and_bar(&server).await;
        let serving = start(&net, "one", server).await;
        let registry = client(&net, URL);
        assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@a:1"]);
        end(serving).await;
        let _stray = scripted(&net, "one", move |head| match head.contains(" /v1/") {
            true => http("404 Not Found", "connection: close\r\n", ""),
            false => http("200 OK", &format!("{headers}connection: close\r\n"), ""),
        })
        .await;
        registry.resolve(&foo()).await.unwrap_err();
    }
}

/// A registry at the root refuses everything for a moment, whatever the path: that tells nothing of
/// where it is.
#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_settle_where_a_registry_is() {
    for (status, kind) in [
        ("401 Unauthorized", "urn:srpc:unauthorized"),
        ("429 Too Many Requests", "urn:srpc:too-many-requests"),
        ("503 Service Unavailable", "urn:srpc:unavailable"),
    ] {
        let net = Memory::new();
        let problem = format!(r#"{{"type":"{kind}"}}"#);
        let headers = "content-type: application/problem+json\r\nconnection: close\r\n";
        let refusing = scripted(&net, "one", move |_| http(status, headers, &problem)).await;
        let registry = client(&net, "http://one:9999/my/list");
        registry.resolve(&foo()).await.expect_err(status);
        end(refusing).await;
        let server = RegistryServer::new();
        foo_and_bar(&server).await;
        let _serving = start(&net, "one", server).await;
        assert_eq!(addresses(&registry.resolve(&foo()).await.unwrap()), ["tcp@a:1"], "{status}");
    }
}

/// `multi` is a registry that hangs and one that works.
struct Multi(Memory);

#[async_trait]
impl Transport for Multi {
    fn speaks(&self, protocol: &str) -> bool {
        self.0.speaks(protocol)
    }

    async fn connect(&self, address: &Address) -> std::io::Result<Stream> {
        self.0.connect(address).await
    }

    async fn resolve(&self, _: &Address) -> std::io::Result<Vec<Address>> {
        Ok(["tcp@one:9999", "tcp@two:9999"].map(|place| place.parse().unwrap()).into())
    }

    async fn bind(&self, address: &Address) -> std::io::Result<crate::transport::Listener> {
        self.0.bind(address).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_of_a_registry_that_does_not_answer_is_dialled_last() {
    let net = Memory::new();
    let _hanging = net.bind(&"tcp@one:9999".parse().unwrap()).await.unwrap();
    let _two = start(&net, "two", RegistryServer::new()).await;
    let builder = HttpRegistry::builder("http://multi:9999");
    let registry = builder.transport(Arc::new(Multi(net))).build().unwrap();
    registry.resolve(&foo()).await.expect_err("the first takes connections and says nothing");
    let start = Instant::now();
    for _ in 0..3 {
        registry.resolve(&foo()).await.unwrap();
        sleep(Duration::from_secs(6)).await;
    }
    assert!(start.elapsed() < Duration::from_secs(19), "{:?}", start.elapsed());
}
