//! Which calls fail when a registry or a server goes away under load?
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use support::{Ended, PATIENCE, Process, eventually, listed, wait_for};

/// Each loads the machine: they take turns.
static TURN: Mutex<()> = Mutex::new(());

const SERVERS: usize = 3;
const IN_FLIGHT: u64 = 16;
/// A third of the lease that the servers ask for.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A registry, three servers and a client under load.
struct Cluster {
    registry: Option<Process>,
    url: String,
    servers: Vec<(Process, String)>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    fn start() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
        let serve = ["serve", "--registry", &url, "--bind", "127.0.0.1:0", "--ttl", "3s"];
        let servers: Vec<_> = (0..SERVERS).map(|_| Process::listening(&serve)).collect();
        wait_for(&url, "Foo", SERVERS);
        Self { registry: Some(registry), url, servers, _turn: turn }
    }

    /// Starts a load of 16 calls in flight, each of 20 ms, and lets it run for a second.
    fn load(&self, duration: Duration) -> Process {
        let duration = format!("{}s", duration.as_secs());
        let call = ["bench", "Foo", "Sleep", r#"{"num1":0.02}"#, "-c", "16", "-o", "json"];
        let how = ["-z", &duration, "--registry", &self.url];
        let mut bench = Process::start(&[&call[..], &how[..]].concat());
        std::thread::sleep(Duration::from_secs(1));
        assert!(bench.is_running(), "{}", bench.finish().stderr);
        bench
    }

    fn kill_registry(&mut self) {
        self.registry.take().unwrap().kill();
    }

    /// Starts a registry that knows nothing on the port of the one before.
    fn restart_registry(&mut self) {
        let bind = self.url.trim_start_matches("http://").trim_end_matches("/srpc/registry");
        let bind = bind.to_owned();
        let mut started = None;
        eventually(PATIENCE, "the registry's port can be bound again", || {
            started = Process::try_listening(&["registry", "--bind", &bind]).ok();
            started.is_some()
        });
        let (registry, url) = started.unwrap();
        assert_eq!(url, self.url);
        self.registry = Some(registry);
    }
}

/// The summary of a bench, which must have ended well and counted every call.
fn summary(bench: Process, limit: Duration) -> (serde_json::Value, Ended) {
    let ended = bench.finish_within(limit + PATIENCE);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let summary = ended.json();
    let count = |key: &str| summary[key].as_u64().unwrap();
    assert_eq!(count("ok") + count("failed"), count("calls"), "{summary}");
    assert!(count("ok") > 0, "{summary}");
    (summary, ended)
}

fn answered_by(summary: &serde_json::Value, address: &str) -> u64 {
    summary["per_instance"][address].as_u64().unwrap_or(0)
}

fn no_call_fails_while_the_registry_is_away(away: Duration) {
    let duration = away + Duration::from_secs(8);
    let mut cluster = Cluster::start();
    let bench = cluster.load(duration);

    cluster.kill_registry();
    std::thread::sleep(away);
    cluster.restart_registry();
    let restarted = Instant::now();
    let limit = HEARTBEAT + Duration::from_secs(1);
    eventually(limit, "the list is complete again", || listed(&cluster.url, "Foo").len() == 3);
    println!("complete {:?} after the restart", restarted.elapsed());

    let (summary, ended) = summary(bench, duration);
    assert_eq!(summary["failed"], 0, "{summary} {}", ended.stderr);
    for (_, address) in &cluster.servers {
        assert!(answered_by(&summary, address) > 0, "{address} was left out: {summary}");
    }
}

#[test]
fn a_registry_that_is_away_for_8_s_and_comes_back_empty() {
    no_call_fails_while_the_registry_is_away(Duration::from_secs(8));
}

#[test]
#[ignore = "takes 45 s"]
fn a_registry_that_is_away_for_30_s_and_comes_back_empty() {
    no_call_fails_while_the_registry_is_away(Duration::from_secs(30));
}

#[test]
fn a_server_that_drains_fails_no_call_and_exits_0() {
    let duration = Duration::from_secs(8);
    let mut cluster = Cluster::start();
    let bench = cluster.load(duration);

    let (leaving, address) = cluster.servers.remove(0);
    leaving.signal("TERM");
    let left = leaving.finish();
    assert_eq!(left.code(), 0, "{}", left.stderr);
    let rest: Vec<&str> = cluster.servers.iter().map(|(_, address)| address.as_str()).collect();
    let list = listed(&cluster.url, "Foo");
    assert!(!list.contains(&address), "{address} has drained and is listed: {list:?}");
    assert_eq!(list.len(), rest.len(), "{list:?}");

    let (summary, ended) = summary(bench, duration);
    assert_eq!(summary["failed"], 0, "{summary} {}", ended.stderr);
    assert!(answered_by(&summary, &address) > 0, "{summary}");
    for address in rest {
        assert!(answered_by(&summary, address) > 0, "{summary}");
    }
}

#[test]
fn a_server_that_is_killed_fails_only_what_it_had_in_flight() {
    let duration = Duration::from_secs(8);
    let mut cluster = Cluster::start();
    let bench = cluster.load(duration);

    let (killed, address) = cluster.servers.remove(0);
    killed.kill();
    // Its lease runs out; nobody else's does.
    wait_for(&cluster.url, "Foo", SERVERS - 1);

    let (summary, ended) = summary(bench, duration);
    let failed = summary["failed"].as_u64().unwrap();
    assert!(failed <= IN_FLIGHT, "{summary} {}", ended.stderr);
    let maybe_executed = summary["failed_by_execution"]["maybe_executed"].as_u64().unwrap_or(0);
    assert_eq!(maybe_executed, failed, "{summary} {}", ended.stderr);
    assert!(answered_by(&summary, &address) > 0, "{summary}");
}
