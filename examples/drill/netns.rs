//! A network of the drill's own, in which packets can be made to vanish.
//!
//! Every process has a network namespace, with a cable to one more that routes between them. There
//! a rule makes packets from one process to another vanish without a word, in one direction or in
//! both, as a broken switch would. The machine's own network is not touched.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
const PREFIX: &str = "srpc-drill-";

/// The namespaces of one drill. Dropping it deletes them.
#[derive(Debug)]
pub(crate) struct Network {
    pid: u32,
    hosts: Vec<usize>,
    /// What vanishes now, as the rules say it.
    cuts: Vec<[String; 2]>,
}

impl Network {
    /// Makes a namespace for each host, numbered from 1 to 254. An error says why it cannot.
    pub(crate) fn make(hosts: &[usize]) -> Result<Self, String> {
        sweep();
        let mut network = Self { pid: std::process::id(), hosts: Vec::new(), cuts: Vec::new() };
        let hub = network.namespace(0);
        ip(&["netns", "add", &hub])?;
        for &host in hosts {
            let (namespace, cable) = (network.namespace(host), format!("host{host}"));
            ip(&["netns", "add", &namespace])?;
            network.hosts.push(host);
            let pair = ["link", "add", "eth0", "netns", &namespace];
            ip(&[&pair[..], &["type", "veth", "peer", "name", &cable, "netns", &hub]].concat())?;
            let (near, far) = (network.host(host), format!("10.9.{host}.1"));
            ip(&["-n", &namespace, "addr", "add", &format!("{near}/24"), "dev", "eth0"])?;
            ip(&["-n", &hub, "addr", "add", &format!("{far}/24"), "dev", &cable])?;
            ip(&["-n", &namespace, "link", "set", "dev", "lo", "up"])?;
            ip(&["-n", &namespace, "link", "set", "dev", "eth0", "up"])?;
            ip(&["-n", &hub, "link", "set", "dev", &cable, "up"])?;
            ip(&["-n", &namespace, "route", "add", "default", "via", &far])?;
        }
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        ip(&["netns", "exec", &hub, "sh", "-c", forward])?;
        // What cannot be tried here would fail in the middle of a drill.
        if let [one, .., other] = hosts {
            network.cut(*one, *other)?;
            network.heal()?;
        }
        Ok(network)
    }

    pub(crate) fn namespace(&self, host: usize) -> String {
        name(self.pid, host)
    }

    /// The address of a host.
    pub(crate) fn host(&self, host: usize) -> String {
        format!("10.9.{host}.2")
    }

    /// Makes what one host sends to another vanish.
    pub(crate) fn cut(&mut self, from: usize, to: usize) -> Result<(), String> {
        let cut = [format!("{}/32", self.host(from)), format!("{}/32", self.host(to))];
        self.rule("add", &cut)?;
        self.cuts.push(cut);
        Ok(())
    }

    /// Lets everything through again.
    pub(crate) fn heal(&mut self) -> Result<(), String> {
        while let Some(cut) = self.cuts.pop() {
            self.rule("del", &cut)?;
        }
        Ok(())
    }

    fn rule(&self, verb: &str, [from, to]: &[String; 2]) -> Result<(), String> {
        ip(&["-n", &self.namespace(0), "rule", verb, "blackhole", "from", from, "to", to])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts.iter().chain([&0]) {
            // The next drill tries again.
            let _ = ip(&["netns", "del", &self.namespace(*host)]);
        }
    }
}

fn name(pid: u32, host: usize) -> String {
    format!("{PREFIX}{pid}-{host}")
}

/// Deletes what drills left behind that were killed.
fn sweep() {
    let Ok(names) = fs::read_dir(NAMES) else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        if let Some((pid, _)) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

/// Runs `ip`, which answers at once or is killed.
fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("timeout")
        .args(["-s", "KILL", "10", "ip"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", args.join(" "), why.lines().next().unwrap_or("failed")))
}
