//! What is registered stays true when processes and registries are replaced.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{PATIENCE, Process, closed_port, eventually, srpc, wait_for};

const SERVE: [&str; 4] = ["serve", "--bind", "127.0.0.1:0", "--registry"];

/// Id and health of each instance that is listed; `None` while no registry answers.
fn instances(registry: &str, service: &str) -> Option<Vec<(String, String)>> {
    let list = srpc(&["list", service, "--registry", registry, "-o", "json"]);
    let text = |instance: &Value, field: &str| instance[field].as_str().unwrap().to_owned();
    (list.code() == 0).then(|| {
        let listed = list.json();
        let listed = listed.as_array().unwrap();
        listed.iter().map(|one| (text(one, "id"), text(one, "health"))).collect()
    })
}

/// A registry at a port of its own choice, which it may be started at again.
fn registry_at(port: u16) -> (Process, String) {
    let bind = format!("127.0.0.1:{port}");
    let mut started = None;
    eventually(PATIENCE, "the registry's port is free", || {
        started = Process::try_listening(&["registry", "--bind", &bind]).ok();
        started.is_some()
    });
    started.unwrap()
}

fn post(port: u16, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_process_that_took_an_address_over_keeps_it_while_the_old_one_drains() {
    let (_registry, registry) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
    let shared = format!("tcp@127.0.0.1:{}", closed_port());
    let serve = [&SERVE[..], &[&registry, "--advertise", &shared]].concat();
    let (old, _) = Process::listening(&serve);
    wait_for(&registry, "Foo", 1);
    let first = instances(&registry, "Foo").unwrap().remove(0).0;
    let (_new, _) = Process::listening(&serve);
    let id = || instances(&registry, "Foo").and_then(|mut all| all.pop()).map(|(id, _)| id);
    eventually(PATIENCE, "the newer one holds the address", || id().is_some_and(|id| id != first));
    let second = id().unwrap();

    old.signal("TERM");
    let mut draining = Some(old);
    let until = Instant::now() + PATIENCE;
    // Until the old one has deregistered and ended.
    while draining.is_some() {
        assert!(Instant::now() < until, "the old one has not ended");
        assert_eq!(instances(&registry, "Foo").unwrap(), [(second.clone(), "up".to_owned())]);
        if draining.as_mut().is_some_and(|old| !old.is_running()) {
            assert_eq!(draining.take().unwrap().finish().code(), 0);
        }
    }
    assert_eq!(instances(&registry, "Foo").unwrap(), [(second, "up".to_owned())]);
}

#[test]
fn a_drain_outlives_the_registry_and_the_lease() {
    let port = closed_port();
    let (process, registry) = registry_at(port);
    let (server, _) = Process::listening(&[&SERVE[..], &[&registry, "--ttl", "3s"]].concat());
    wait_for(&registry, "Foo", 1);
    let id = instances(&registry, "Foo").unwrap().remove(0).0;
    let drain = format!(r#"{{"service":"Foo","id":"{id}","by":"ops","reason":"kernel"}}"#);
    let answer = post(port, "/v1/drain", &drain);
    assert!(answer.contains(r#"{"taken_over":true}"#), "{answer}");

    process.kill();
    let (_registry, registry) = registry_at(port);
    let drained = Some(vec![(id.clone(), "draining".to_owned())]);
    wait_for(&registry, "Foo", 1);
    assert_eq!(instances(&registry, "Foo"), drained, "after a restart of the registry");

    server.signal("STOP");
    eventually(PATIENCE, "its lease runs out", || {
        instances(&registry, "Foo").is_some_and(|all| all.is_empty())
    });
    server.signal("CONT");
    wait_for(&registry, "Foo", 1);
    assert_eq!(instances(&registry, "Foo"), drained, "after its lease was lost");

    let answer = post(port, "/v1/drain", &drain.replace("\"by\"", "\"health\":\"up\",\"by\""));
    assert!(answer.contains(r#"{"taken_over":true}"#), "{answer}");
    assert_eq!(instances(&registry, "Foo"), Some(vec![(id, "up".to_owned())]));
}

#[test]
fn a_new_client_finds_its_servers_though_one_of_two_registries_came_back_empty() {
    let ports = [closed_port(), closed_port()];
    let [(first, one), (_second, two)] = ports.map(registry_at);
    let both = format!("{one},{two}");
    let _servers =
        [(); 2].map(|()| Process::listening(&[&SERVE[..], &[&both, "--ttl", "3s"]].concat()));
    for url in [&one, &two] {
        wait_for(url, "Foo", 2);
    }
    let called = |when: &str| {
        let sum = ["call", "Foo", "Sum", r#"{"num1": 1, "num2": 2}"#, "--registry", &both];
        let called = srpc(&sum);
        assert_eq!((called.code(), called.stdout.trim()), (0, "3"), "{when}: {}", called.stderr);
    };
    called("before");
    first.kill();
    for _ in 0..4 {
        called("one is away");
    }
    let (_first, _) = registry_at(ports[0]);
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        called("one has come back empty");
    }
    wait_for(&one, "Foo", 2);
}
