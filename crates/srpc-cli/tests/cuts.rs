//! Which calls fail, and when is it noticed, if the network between two machines is cut?
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{PATIENCE, Process, binary, eventually, srpc};

/// What the servers ask for, and how late a registry may notice.
const TTL: Duration = Duration::from_secs(3);
const SWEEP: Duration = Duration::from_millis(500);
/// For commands to run and lists to be asked for.
const SLACK: Duration = Duration::from_secs(1);
/// How many calls are in flight at most.
const IN_FLIGHT: u64 = 16;
const SERVERS: usize = 3;

/// The machines, by the last number of their addresses.
const REGISTRY: u8 = 1;
const CLIENT: u8 = 2;
const FIRST_SERVER: u8 = 11;

/// Runs `ip`.
fn try_ip(arguments: &str) -> bool {
    let mut ip = Command::new("ip");
    ip.args(arguments.split_whitespace()).stderr(Stdio::null()).status().unwrap().success()
}

fn ip(arguments: &str) {
    assert!(try_ip(arguments), "ip {arguments}");
}

/// Machines, each with an address in one network, joined by a bridge that is nobody's. Dropping it
/// takes it down.
struct Network {
    name: String,
    machines: Vec<u8>,
}

impl Network {
    fn start(machines: impl IntoIterator<Item = u8>) -> Self {
        let name = format!("srpc{}", std::process::id());
        let mut network = Self { name, machines: Vec::new() };
        let hub = network.hub();
        ip(&format!("netns add {hub}"));
        ip(&format!("-n {hub} link add hub type bridge"));
        ip(&format!("-n {hub} link set hub up"));
        for machine in machines {
            network.machines.push(machine);
            let space = network.space(machine);
            ip(&format!("netns add {space}"));
            ip(&format!("-n {hub} link add m{machine} type veth peer name eth0 netns {space}"));
            ip(&format!("-n {space} addr add {}/24 dev eth0", address(machine)));
            ip(&format!("-n {space} link set lo up"));
            ip(&format!("-n {space} link set eth0 up"));
            ip(&format!("-n {hub} link set m{machine} up"));
            network.plug(machine);
        }
        network
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    fn space(&self, machine: u8) -> String {
        format!("{}-{machine}", self.name)
    }

    /// Takes a machine's cable out: nobody learns of it.
    fn unplug(&self, machine: u8) {
        ip(&format!("-n {} link set m{machine} nomaster", self.hub()));
    }

    fn plug(&self, machine: u8) {
        ip(&format!("-n {} link set m{machine} master hub", self.hub()));
    }

    /// From now on nothing that one machine sends to another arrives; the other way it does.
    fn cut(&self, from: u8, to: u8) {
        let (space, to) = (self.space(from), address(to));
        ip(&format!(
            "-n {space} neigh replace {to} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"
        ));
    }

    fn mend(&self, from: u8, to: u8) {
        ip(&format!("-n {} neigh del {} dev eth0", self.space(from), address(to)));
    }

    /// Starts `srpc` on a machine.
    fn run(&self, machine: u8, arguments: &[&str]) -> Process {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(machine)]).arg(binary()).args(arguments);
        Process::run(&mut command, Stdio::null())
    }

    fn listed(&self, registry: &str) -> Vec<String> {
        let list = ["list", "Foo", "--registry", registry, "-o", "name"];
        let list = self.run(CLIENT, &list).finish();
        assert_eq!(list.code(), 0, "{}", list.stderr);
        list.stdout.lines().map(str::to_owned).collect()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for machine in &self.machines {
            try_ip(&format!("netns del {}", self.space(*machine)));
        }
        try_ip(&format!("netns del {}", self.hub()));
    }
}

fn address(machine: u8) -> String {
    format!("10.77.0.{machine}")
}

/// A registry and three servers, each on a machine of its own.
struct Cluster {
    // Before the network: the processes end first.
    servers: Vec<(Process, String)>,
    _registry: Process,
    url: String,
    network: Network,
}

impl Cluster {
    fn start() -> Self {
        let servers = (0..SERVERS as u8).map(|number| FIRST_SERVER + number);
        let network = Network::start([REGISTRY, CLIENT].into_iter().chain(servers.clone()));
        let bind = |machine| format!("{}:0", address(machine));
        let mut registry = vec!["registry", "--bind"];
        let at = bind(REGISTRY);
        registry.push(&at);
        // Where it is not on loopback, and knows nobody's name.
        if srpc(&["registry", "--help"]).stdout.contains("--insecure") {
            registry.push("--insecure");
        }
        let mut registry = network.run(REGISTRY, &registry);
        let url = registry.address();
        let servers: Vec<_> = servers
            .map(|machine| {
                let bind = bind(machine);
                let serve = ["serve", "--bind", &bind, "--registry", &url, "--ttl", "3s"];
                let mut server = network.run(machine, &serve);
                let address = server.address();
                (server, address)
            })
            .collect();
        let cluster = Self { servers, _registry: registry, url, network };
        cluster.until_listed(SERVERS, PATIENCE);
        cluster
    }

    /// Waits until this many servers are listed, and tells how long that took.
    fn until_listed(&self, servers: usize, limit: Duration) -> Duration {
        let started = Instant::now();
        eventually(limit, &format!("{servers} servers are listed"), || {
            self.network.listed(&self.url).len() == servers
        });
        started.elapsed()
    }

    /// Starts a load of eight seconds and lets it run for two.
    fn load(&self) -> Process {
        let call = ["bench", "Foo", "Sum", r#"{"num1":1,"num2":2}"#, "-o", "json"];
        let how = ["-z", "8s", "-c", "16", "--rate", "200", "--registry", &self.url];
        let bench = self.network.run(CLIENT, &[&call[..], &how[..]].concat());
        std::thread::sleep(Duration::from_secs(2));
        bench
    }

    /// The summary of a load; all servers had a share of it.
    fn summary(&self, name: &str, bench: Process) -> Value {
        let ended = bench.finish();
        assert_eq!(ended.code(), 0, "{name}: {}", ended.stderr);
        let summary = ended.json();
        let count = |key: &str| summary[key].as_u64().unwrap();
        println!(
            "figure cut_{name} calls={} failed={} by={} max_ms={}",
            count("calls"),
            count("failed"),
            summary["failed_by_execution"],
            count("max_us") / 1000
        );
        for (_, address) in &self.servers {
            assert!(summary["per_instance"][address].as_u64() > Some(0), "{name}: {summary}");
        }
        summary
    }
}

/// Each worker may have had one call under way when the cut came, or have sent it before that was
/// found; nobody makes a second such call. Calls to the others do not fail.
fn only_those_in_flight_failed(name: &str, summary: &Value) {
    let failed = summary["failed"].as_u64().unwrap();
    assert!(failed <= IN_FLIGHT, "{name}: {failed} failed: {summary}");
    for (class, count) in summary["failed_by_execution"].as_object().unwrap() {
        assert_eq!(class, "maybe_executed", "{name}: {count}: {summary}");
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn a_server_that_is_cut_off_is_found_and_costs_the_others_nothing() {
    let cluster = Cluster::start();
    let network = &cluster.network;
    let [one, two, three] = [0, 1, 2].map(|number| FIRST_SERVER + number);

    // From everybody: the registry and the client find it by themselves.
    let bench = cluster.load();
    network.unplug(one);
    let gone = cluster.until_listed(SERVERS - 1, TTL + SWEEP + SLACK);
    println!("figure cut_off found_by_registry_ms={}", gone.as_millis());
    only_those_in_flight_failed("both_ways", &cluster.summary("both_ways", bench));
    network.plug(one);
    let back = cluster.until_listed(SERVERS, PATIENCE);
    println!("figure cut_mended listed_again_ms={}", back.as_millis());

    // From the registry alone: its lease ends, and it serves whom it serves.
    let bench = cluster.load();
    network.cut(two, REGISTRY);
    network.cut(REGISTRY, two);
    let gone = cluster.until_listed(SERVERS - 1, TTL + SWEEP + SLACK);
    println!("figure cut_from_registry found_ms={}", gone.as_millis());
    network.mend(two, REGISTRY);
    network.mend(REGISTRY, two);
    let summary = cluster.summary("from_registry", bench);
    assert_eq!(summary["failed"], 0, "{summary}");
    cluster.until_listed(SERVERS, PATIENCE);

    // From the client alone, one way and the other: it is listed all the time.
    for (name, from, to) in [("to_server", CLIENT, three), ("to_client", three, CLIENT)] {
        let bench = cluster.load();
        network.cut(from, to);
        only_those_in_flight_failed(name, &cluster.summary(name, bench));
        network.mend(from, to);
        assert_eq!(network.listed(&cluster.url).len(), SERVERS);
    }
}
