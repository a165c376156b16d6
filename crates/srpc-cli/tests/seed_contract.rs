//! Does the registry keep the contract of one header, as curl sees it?
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::Process;

/// What a registry answered to curl.
struct Answer {
    status: u16,
    /// The header `Srpc-servers`; `None` if it is missing.
    servers: Option<String>,
}

impl Answer {
    fn addresses(&self) -> Vec<&str> {
        let servers = self.servers.as_deref().unwrap_or_default();
        servers.split(',').filter(|address| !address.is_empty()).collect()
    }
}

fn curl(args: &[&str]) -> Answer {
    let output = Command::new("curl")
        .args(["-sS", "--noproxy", "*", "--max-time", "10", "-o", "/dev/null", "-D", "-"])
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("curl is needed and does not run: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let errors = String::from_utf8_lossy(&output.stderr);
    let status = status.unwrap_or_else(|| panic!("curl {args:?}: no status line: {errors}"));
    let servers = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("srpc-servers").then(|| value.trim().to_owned())
    });
    Answer { status, servers }
}

fn post(url: &str, servers: &str) -> u16 {
    curl(&["-X", "POST", "-H", &format!("Srpc-servers: {servers}"), url]).status
}

fn registry(ttl: &str) -> (Process, String) {
    let (registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0", "--ttl", ttl]);
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    assert!(url.ends_with("/srpc/registry"), "{url}");
    (registry, url)
}

#[test]
#[ignore = "needs curl"]
fn what_is_posted_is_listed_sorted_until_its_time_is_over() {
    const TTL: Duration = Duration::from_secs(2);
    const GONE_BY: Duration = Duration::from_secs(3);
    let (_registry, url) = registry("2s");
    assert_eq!(curl(&[&url]).addresses(), Vec::<&str>::new());

    let before = Instant::now();
    assert_eq!(post(&url, "tcp@b:2"), 200);
    assert_eq!(post(&url, "tcp@a:1"), 200);
    let after = Instant::now();
    let answer = curl(&[&url]);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.servers.as_deref(), Some("tcp@a:1,tcp@b:2"));

    loop {
        let asked = Instant::now();
        let answer = curl(&[&url]);
        assert_eq!(answer.status, 200);
        let listed = answer.addresses();
        // `b` came first; while less than the TTL has passed since, nothing may be missing.
        if before.elapsed() < TTL {
            assert_eq!(listed, ["tcp@a:1", "tcp@b:2"]);
        }
        if listed.is_empty() {
            break;
        }
        assert!(asked.duration_since(after) < GONE_BY, "still listed: {listed:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs curl"]
fn a_renewal_keeps_an_address_listed() {
    const TTL: Duration = Duration::from_secs(2);
    let (_registry, url) = registry("2s");
    let first = Instant::now();
    let mut renewed = first;
    assert_eq!(post(&url, "tcp@a:1"), 200);
    while first.elapsed() < TTL * 2 {
        let listed = curl(&[&url]).addresses().join(",");
        // A machine that stood still for longer has let the lease run out by itself.
        if renewed.elapsed() < TTL {
            assert_eq!(listed, "tcp@a:1");
        }
        std::thread::sleep(Duration::from_millis(300));
        renewed = Instant::now();
        assert_eq!(post(&url, "tcp@a:1"), 200);
    }
}

#[test]
#[ignore = "needs curl"]
fn other_requests_are_refused_with_their_status() {
    let (_registry, url) = registry("5m");
    assert_eq!(curl(&["-X", "POST", &url]).status, 500);
    // A header that ends in `;` is sent without a value.
    assert_eq!(curl(&["-X", "POST", "-H", "Srpc-servers;", &url]).status, 500);
    assert_eq!(curl(&["-X", "PUT", &url]).status, 405);
    assert_eq!(curl(&["-X", "DELETE", &url]).status, 405);
    assert_eq!(curl(&["-I", &url]).status, 405);
}

#[test]
#[ignore = "needs curl"]
fn what_is_no_address_changes_nothing() {
    let (_registry, url) = registry("5m");
    assert_eq!(post(&url, "tcp@good:1"), 200);
    for wrong in [
        "tcp@a:1,tcp@b:2",
        "nonsense",
        "tcp@a",
        "tcp@a:0",
        "tcp@a:65536",
        "tcp@:1",
        "@a:1",
        "tcp@user@a:1",
        "tcp@a\t:1",
        "tcp@a\u{1}:1",
    ] {
        assert_eq!(post(&url, wrong), 400, "{wrong:?}");
        assert_eq!(curl(&[&url]).addresses(), ["tcp@good:1"], "{wrong:?}");
    }
}

#[test]
#[ignore = "needs curl"]
fn a_service_name_narrows_the_list() {
    let (_registry, url) = registry("5m");
    let (server, name) = ("Srpc-servers: tcp@bar:1", "Srpc-service: Bar");
    assert_eq!(curl(&["-X", "POST", "-H", server, "-H", name, &url]).status, 200);
    assert_eq!(post(&url, "tcp@any:1"), 200);
    assert_eq!(curl(&[&url]).addresses(), ["tcp@any:1", "tcp@bar:1"]);
    assert_eq!(curl(&[&format!("{url}?service=Bar")]).addresses(), ["tcp@bar:1"]);
    assert_eq!(curl(&[&format!("{url}?service=Foo")]).addresses(), Vec::<&str>::new());
}

#[test]
#[ignore = "needs curl"]
fn with_ttl_0_nothing_posted_expires() {
    let (_registry, url) = registry("0");
    assert_eq!(post(&url, "tcp@a:1"), 200);
    // Several sweeps; that it is longer than any TTL could only be shown by waiting for ever.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_eq!(curl(&[&url]).addresses(), ["tcp@a:1"]);
        std::thread::sleep(Duration::from_millis(200));
    }
}
