//! Which calls fail when a registry or a server goes away under load?
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

mod support;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use srpc::backend::http::HttpRegistry;
use srpc::backend::static_list::StaticList;
use srpc::call::{Codec, Raw};
use srpc::registry::Registrar;
use srpc::{Call, Listener, Server, Service, Status, XClient};
#[cfg(target_os = "linux")]
use support::proc::wake_ups;
use support::{Ended, PATIENCE, Process, binary, eventually, listed, wait_for};

/// Each loads the machine: they take turns.
static TURN: Mutex<()> = Mutex::new(());

const SERVERS: usize = 3;
const IN_FLIGHT: u64 = 16;

/// A registry, three servers and a client under load.
struct Cluster {
    registry: Option<Process>,
    url: String,
    servers: Vec<(Process, String)>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    fn start() -> Self {
        Self::of(SERVERS, "3s")
    }

    /// A registry and this many servers that ask for this lease.
    fn of(servers: usize, ttl: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
        let servers: Vec<_> = (0..servers).map(|_| Self::server(&url, ttl)).collect();
        wait_for(&url, "Foo", servers.len());
        Self { registry: Some(registry), url, servers, _turn: turn }
    }

    fn server(url: &str, ttl: &str) -> (Process, String) {
        Process::listening(&["serve", "--registry", url, "--bind", "127.0.0.1:0", "--ttl", ttl])
    }

    /// Starts a load of 16 calls in flight, each of 20 ms, and lets it run for a second once it has
    /// reached every server.
    fn load(&self, duration: Duration) -> Process {
        let duration = format!("{}s", duration.as_secs());
        let call = ["bench", "Foo", "Sleep", r#"{"num1":0.02}"#, "-c", "16", "-o", "json"];
        let how = ["-z", &duration, "--registry", &self.url];
        let mut bench = Process::start(&[&call[..], &how[..]].concat());
        self.until_loaded();
        std::thread::sleep(Duration::from_secs(1));
        assert!(bench.is_running(), "{}", bench.finish().stderr);
        bench
    }

    /// Waits until every server has calls in flight beside the one that asks.
    fn until_loaded(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (_, address) in &self.servers {
            eventually(PATIENCE, "the load has reached the server", || {
                runtime.block_on(async {
                    let client = XClient::new("Foo", StaticList::parse(address).unwrap()).unwrap();
                    let call = Call::new("Foo.Echo").args_in(&Codec::Json, &1).unwrap();
                    client.send(call).await.unwrap().load > 1
                })
            });
        }
    }

    /// Starts a load of short calls on a schedule.
    fn steady(&self, seconds: u64, concurrency: &str, rate: &str) -> Process {
        let duration = format!("{seconds}s");
        let call = ["bench", "Foo", "Sum", r#"{"num1":1,"num2":2}"#, "-o", "json"];
        let how = ["-c", concurrency, "--rate", rate, "-z", &duration, "--registry", &self.url];
        Process::start(&[&call[..], &how[..]].concat())
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
    wait_for(&cluster.url, "Foo", SERVERS);
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
    // On a busy machine another one's lease may just have run out.
    eventually(PATIENCE, "all others are listed", || {
        let list = listed(&cluster.url, "Foo");
        assert!(!list.contains(&address), "{address} has drained and is listed: {list:?}");
        list.len() == rest.len()
    });

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

/// Waits until a server is called again, and tells how long that took.
#[cfg(target_os = "linux")]
fn until_called(server: &Process, limit: Duration) -> Duration {
    /// More than heartbeats and pings wake it in a second: it is trusted step by step, and the
    /// policy need not prefer it.
    const CALLED: u64 = 12;
    let started = Instant::now();
    // What it finds waiting is done at once.
    std::thread::sleep(Duration::from_millis(500));
    let mut looks = vec![wake_ups(server.id())];
    eventually(limit, "it gets calls again", || {
        std::thread::sleep(Duration::from_millis(100));
        looks.push(wake_ups(server.id()));
        let before = looks[looks.len().saturating_sub(11)];
        wake_ups(server.id()) - before >= CALLED
    });
    started.elapsed()
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes 40 s"]
fn a_server_that_is_stopped_for_15_s_fails_2_percent_at_most() {
    const RATE: u64 = 300;
    let cluster = Cluster::of(2, "15s");
    let bench = cluster.steady(34, "8", &RATE.to_string());
    std::thread::sleep(Duration::from_secs(3));
    let (stopped, address) = &cluster.servers[0];
    stopped.signal("STOP");
    std::thread::sleep(Duration::from_secs(15));
    stopped.signal("CONT");
    let back = until_called(stopped, Duration::from_secs(10));

    let (summary, ended) = summary(bench, Duration::from_secs(34));
    let [calls, failed] = ["calls", "failed"].map(|key| summary[key].as_u64().unwrap());
    let percent = failed as f64 * 100.0 / calls as f64;
    println!(
        "figure stopped_15s calls={calls} failed={failed} percent={percent:.2} back_ms={}",
        back.as_millis()
    );
    assert!(percent <= 2.0, "{summary} {}", ended.stderr);
    assert!(answered_by(&summary, address) > 0, "{summary}");
    // On a schedule, so that calls which are late are made all the same.
    assert!(calls >= 33 * RATE, "{summary}");
}

#[test]
#[ignore = "takes 30 s"]
fn a_rolling_restart_in_three_rounds_fails_no_call() {
    const ROUNDS: usize = 3;
    let mut cluster = Cluster::start();
    let mut bench = cluster.steady(26, "64", "1000");
    std::thread::sleep(Duration::from_secs(1));
    let mut slowest = Duration::ZERO;
    for _ in 0..ROUNDS * SERVERS {
        let started = Instant::now();
        let (leaving, _) = cluster.servers.remove(0);
        leaving.signal("TERM");
        let left = leaving.finish();
        assert_eq!(left.code(), 0, "{}", left.stderr);
        cluster.servers.push(Cluster::server(&cluster.url, "3s"));
        wait_for(&cluster.url, "Foo", SERVERS);
        slowest = slowest.max(started.elapsed());
    }
    assert!(bench.is_running(), "the load ended before the restarts did");
    let (summary, ended) = summary(bench, Duration::from_secs(26));
    let [calls, failed] = ["calls", "failed"].map(|key| summary[key].as_u64().unwrap());
    println!(
        "figure rolling_restart restarts={} calls={calls} failed={failed} max_us={} slowest_ms={}",
        ROUNDS * SERVERS,
        summary["max_us"],
        slowest.as_millis()
    );
    assert_eq!(failed, 0, "{summary} {}", ended.stderr);
    assert!(calls >= 25_000, "{summary}");
    for (_, address) in &cluster.servers {
        assert!(answered_by(&summary, address) > 0, "{address} was left out: {summary}");
    }
}

/// Fails if a registry does not list all servers, for ten seconds; how often it was asked.
fn all_stay_listed(url: &str, servers: usize) -> u32 {
    for second in 0..=10 {
        let list = listed(url, "Foo");
        assert_eq!(list.len(), servers, "after {second} s: {list:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
    11
}

#[test]
#[ignore = "takes 50 s"]
fn a_registry_that_is_stopped_for_30_s_expires_nobody() {
    let cluster = Cluster::of(SERVERS, "5s");
    let bench = cluster.steady(44, "16", "200");
    let registry = cluster.registry.as_ref().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    registry.signal("STOP");
    std::thread::sleep(Duration::from_secs(30));
    registry.signal("CONT");
    let looks = all_stay_listed(&cluster.url, SERVERS);
    let (summary, ended) = summary(bench, Duration::from_secs(44));
    let [calls, failed] = ["calls", "failed"].map(|key| summary[key].as_u64().unwrap());
    println!("figure registry_stopped_30s expired=0 looks={looks} calls={calls} failed={failed}");
    assert_eq!(failed, 0, "{summary} {}", ended.stderr);
}

/// A library that puts the wall clock, and no other, ahead by an hour while a file is there.
#[cfg(target_os = "linux")]
const JUMP: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    const char *jumped = getenv("JUMPED");
    if (failed == 0 && clock == CLOCK_REALTIME && jumped && access(jumped, F_OK) == 0)
        now->tv_sec += 3600;
    return (int)failed;
}
"#;

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs cc"]
fn a_wall_clock_that_jumps_an_hour_expires_nobody() {
    use std::process::{Command, Stdio};
    use std::time::SystemTime;

    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let name = format!("jump-{}", std::process::id());
    let [source, library, jumped] =
        ["c", "so", "now"].map(|kind| folder.join(format!("{name}.{kind}")));
    std::fs::write(&source, JUMP).unwrap();
    let cc = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(cc.unwrap().success());
    let start = |args: &[&str]| {
        let mut command = Command::new(binary());
        command.args(args).env("LD_PRELOAD", &library).env("JUMPED", &jumped);
        let mut process = Process::run(&mut command, Stdio::null());
        let address = process.address();
        (process, address)
    };
    let (_registry, url) = start(&["registry", "--bind", "127.0.0.1:0"]);
    let serve = ["serve", "--registry", &url, "--bind", "127.0.0.1:0", "--ttl", "5s"];
    let _servers: Vec<_> = (0..SERVERS).map(|_| start(&serve)).collect();
    wait_for(&url, "Foo", SERVERS);

    std::fs::write(&jumped, "").unwrap();
    let mut looks = all_stay_listed(&url, SERVERS);
    // Proof that the clock has jumped: an epoch is the time of the wall.
    let (_newest, address) = start(&serve);
    wait_for(&url, "Foo", SERVERS + 1);
    let epoch = epoch_at(&url, &address);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
    assert!(epoch > now + 3_500_000, "{epoch}, now {now}");
    std::fs::remove_file(&jumped).unwrap();
    looks += all_stay_listed(&url, SERVERS + 1);
    println!("figure wall_clock_jump seconds=3600 expired=0 looks={looks}");
    for file in [source, library] {
        std::fs::remove_file(file).unwrap();
    }
}

/// The epoch that a registry tells of the instance at an address.
#[cfg(target_os = "linux")]
fn epoch_at(url: &str, address: &str) -> u64 {
    use std::io::{Read, Write};
    let at = url.trim_start_matches("http://").trim_end_matches("/srpc/registry");
    let mut stream = std::net::TcpStream::connect(at).unwrap();
    let get =
        "GET /v1/instances?service=Foo HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
    stream.write_all(get.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let list: serde_json::Value = serde_json::from_str(body).unwrap();
    let mut instances = list["instances"].as_array().unwrap().iter();
    let found = instances.find(|instance| instance["address"] == address);
    let epoch = found.and_then(|instance| instance["epoch"].as_u64());
    epoch.unwrap_or_else(|| panic!("{address}: {body}"))
}

#[test]
fn a_broadcast_tells_of_each_instance_what_became_of_it() {
    let cluster = Cluster::of(SERVERS, "15s");
    let [(_, well), (dead, gone), (stopped, asleep)] = &cluster.servers[..] else { panic!() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let serve = |service: Service| {
        let registry = HttpRegistry::new(&cluster.url).unwrap();
        let registrar = Registrar::builder(Arc::new(registry)).build();
        runtime.block_on(async {
            let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
            let address = listener.address().to_string();
            let server = Server::new().service(service).registrar(registrar);
            tokio::spawn(server.serve(listener, std::future::pending()));
            address
        })
    };
    let panicking = serve(Service::new("Foo").method("Sum", async |_: Raw| panics()));
    let slow = serve(Service::new("Foo").method("Sum", async |_: Raw| {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok::<i64, Status>(3)
    }));
    wait_for(&cluster.url, "Foo", SERVERS + 2);
    dead.signal("KILL");
    stopped.signal("STOP");

    let call = ["call", "Foo", "Sum", r#"{"num1":1,"num2":2}"#, "--broadcast", "-o", "json"];
    // Half of it is for dialling.
    let how = ["--timeout", "6s", "--registry", &cluster.url];
    let ended = Process::start(&[&call[..], &how[..]].concat()).finish();
    stopped.signal("CONT");
    assert_ne!(ended.code(), 0, "{}", ended.stdout);
    let legs = ended.json();
    assert_eq!(legs.as_array().unwrap().len(), SERVERS + 2, "{legs}");
    let leg = |address: &str| {
        let mut all = legs.as_array().unwrap().iter();
        all.find(|leg| leg["address"] == address).unwrap_or_else(|| panic!("{address}: {legs}"))
    };
    assert_eq!((&leg(well)["ok"], &leg(well)["reply"]), (&true.into(), &3.into()), "{legs}");
    for (address, kind, execution) in [
        (gone, "unavailable", "not_sent"),
        (&panicking, "internal", "executed"),
        (&slow, "deadline_exceeded", "maybe_executed"),
        // It accepts connections, and no more.
        (asleep, "unavailable", "not_sent"),
    ] {
        let leg = leg(address);
        assert_eq!(leg["ok"], false, "{legs}");
        assert_eq!(
            (&leg["error"]["kind"], &leg["error"]["execution"]),
            (&kind.into(), &execution.into()),
            "{legs}"
        );
    }
    println!("figure broadcast legs={} ok=1 failed={}", SERVERS + 2, SERVERS + 1);
}

fn panics() -> Result<i64, Status> {
    panic!("on purpose")
}
