//! Is `srpc registry --backend` the registry that another one keeps?
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

mod support;

use std::time::{Duration, Instant};

use support::{PATIENCE, Process, closed_port, eventually, srpc};

const FRONT: [&str; 4] = ["registry", "--bind", "127.0.0.1:0", "--backend"];

fn front(backend: &str) -> (Process, String) {
    Process::listening(&[&FRONT[..], &[backend]].concat())
}

#[test]
fn servers_and_callers_use_different_fronts_and_one_is_killed() {
    let (_registry, backend) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
    let (mut one, first) = front(&backend);
    let (_two, second) = front(&backend);
    let serve = ["serve", "--bind", "127.0.0.1:0", "--ttl", "6s", "--registry"];
    let both = format!("{first},{second}");
    let (_server, address) = Process::listening(&[&serve[..], &[&both]].concat());

    for url in [&backend, &first, &second] {
        eventually(PATIENCE, "it is listed everywhere", || {
            let listed = srpc(&["list", "--registry", url, "-o", "name"]);
            listed.code() == 0 && listed.stdout.trim() == address
        });
    }
    one.signal("KILL");
    eventually(PATIENCE, "it is killed", || !one.is_running());
    // Longer than the lease: the other front renews it.
    let sum = ["call", "Foo", "Sum", r#"{"num1": 1, "num2": 2}"#, "--registry", &second];
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        let called = srpc(&sum);
        assert_eq!((called.code(), called.stdout.trim()), (0, "3"), "{}", called.stderr);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_cannot_be_a_backend_says_so() {
    for (more, said) in [
        (&["static://a:1"][..], "is only read"),
        (&["consul://a"], "an unknown scheme"),
        (&["http://a:1", "--ttl", "0"], "nothing lives for ever"),
    ] {
        let ended = srpc(&[&FRONT[..], more].concat());
        assert_eq!(ended.code(), 2, "{}", ended.stderr);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
    let asked = srpc(&["registry", "--bind", "127.0.0.1:0", "--registry", "etcd://a:1"]);
    assert_eq!(asked.code(), 2, "{}", asked.stderr);
    assert!(asked.stderr.contains("give --backend etcd://a:1"), "{}", asked.stderr);
    // One that is away is an answer, and no reason not to start.
    let away = format!("http://127.0.0.1:{}/srpc/registry", closed_port());
    let (_front, url) = front(&away);
    let listed = srpc(&["list", "Foo", "--registry", &url]);
    assert_eq!(listed.code(), 3, "{}", listed.stderr);
    assert!(listed.stderr.contains("503"), "{}", listed.stderr);
}
