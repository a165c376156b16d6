//! What does the command print, and with what does it exit?
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]

mod support;

use std::path::Path;
use std::time::Duration;

use support::{PATIENCE, Process, closed_port, eventually, listed, srpc, srpc_reading, wait_for};

/// A registry and a server of `Foo`.
struct Running {
    registry: Process,
    url: String,
    server: Process,
    address: String,
}

impl Running {
    fn start() -> Self {
        let (registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
        let (server, address) = Process::listening(&[
            "serve",
            "--service",
            "Foo",
            "--registry",
            &url,
            "--bind",
            "127.0.0.1:0",
            "--zone",
            "z1",
            "--weight",
            "3",
            "--meta",
            "team=a=b",
            "--drain-delay",
            "0",
        ]);
        wait_for(&url, "Foo", 1);
        Self { registry, url, server, address }
    }
}

fn port_of(address: &str) -> u16 {
    let (_, port) = address.rsplit_once(':').unwrap();
    port.parse().unwrap()
}

#[test]
fn servers_say_where_they_listen_and_drain_when_told() {
    let Running { registry, url, server, address } = Running::start();
    let host =
        url.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.strip_suffix("/srpc/registry"));
    assert_ne!(host.unwrap().parse::<u16>().unwrap(), 0, "{url}");
    assert!(address.starts_with("tcp@127.0.0.1:"), "{address}");
    assert_ne!(port_of(&address), 0, "{address}");

    server.signal("TERM");
    let server = server.finish();
    assert_eq!(server.code(), 0, "{}", server.stderr);
    assert_eq!(server.stdout, format!("listening on {address}\n"));
    assert_eq!(listed(&url, "Foo"), Vec::<String>::new());

    registry.signal("INT");
    let registry = registry.finish();
    assert_eq!(registry.code(), 0, "{}", registry.stderr);
    assert_eq!(registry.stdout, format!("listening on {url}\n"));
}

#[test]
fn a_second_signal_does_not_wait_for_the_drain() {
    let (_registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
    let serve = ["serve", "--registry", &url, "--bind", "127.0.0.1:0", "--drain-delay", "1h"];
    let (server, address) = Process::listening(&serve);
    wait_for(&url, "Foo", 1);
    server.signal("TERM");
    // Two signals of which neither was seen yet would be one.
    eventually(PATIENCE, "the server drains", || {
        let list = srpc(&["list", "Foo", "--registry", &url, "-o", "json"]);
        list.json()[0]["health"] == "draining"
    });
    let call = srpc(&["call", &address, "Foo.Echo", "1"]);
    assert_eq!(call.code(), 0, "it still takes calls: {}", call.stderr);
    server.signal("TERM");
    assert_eq!(server.finish().code(), 130);
}

#[test]
fn json_output_parses_for_every_subcommand() {
    let (mut registry, _) = started_for_json(&["registry", "--bind", "127.0.0.1:0", "-o", "json"]);
    assert!(registry.is_running());
    let (mut server, _) = started_for_json(&["serve", "--bind", "127.0.0.1:0", "-o", "json"]);
    assert!(server.is_running());

    let running = Running::start();
    let (url, address) = (running.url.as_str(), running.address.as_str());
    let list = srpc(&["list", "--registry", url, "-o", "json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    let instance = &list[0];
    assert_eq!(instance["service"], "Foo");
    assert_eq!(instance["address"], address);
    assert_eq!(instance["health"], "up");
    assert_eq!(instance["weight"], 3);
    assert_eq!(instance["zone"], "z1");
    assert_eq!(instance["metadata"]["team"], "a=b");
    assert!(instance["id"].is_string() && instance["version"].is_string(), "{instance}");
    let expires = instance["expires_in_ms"].as_u64().unwrap();
    assert!((1..=15_000).contains(&expires), "{instance}");
    let nobody = srpc(&["list", "Nobody", "--registry", url, "-o", "json"]);
    assert_eq!((nobody.code(), nobody.stdout.trim()), (0, "[]"));
    assert!(nobody.stderr.contains("no instance of Nobody is registered"), "{}", nobody.stderr);
    let lower = srpc(&["list", "foo", "--registry", url, "-o", "json"]);
    assert!(lower.stderr.contains("did you mean \"Foo\"?"), "{}", lower.stderr);
    let lower = srpc(&["call", "foo", "Sum", "1", "--registry", url, "--timeout", "5s"]);
    assert!(lower.stderr.contains("did you mean \"Foo\"?"), "{}", lower.stderr);

    let sum = r#"{"num1":1,"num2":2}"#;
    let call = srpc(&["call", "Foo", "Foo.Sum", sum, "--registry", url, "-o", "json"]);
    assert_eq!((call.code(), call.json()), (0, serde_json::json!(3)), "{}", call.stderr);

    let broadcast =
        srpc(&["call", "Foo", "Sum", sum, "--broadcast", "--registry", url, "-o", "json"]);
    let outcomes = serde_json::json!([{"address": address, "ok": true, "reply": 3}]);
    assert_eq!((broadcast.code(), broadcast.json()), (0, outcomes), "{}", broadcast.stderr);

    let bench = srpc(&["bench", "Foo", "Sum", sum, "--registry", url, "-o", "json"]);
    assert_eq!(bench.code(), 0, "{}", bench.stderr);
    let summary = bench.json();
    assert_eq!(summary["calls"], 200, "{summary}");
    assert_eq!(summary["ok"], 200, "{summary} {}", bench.stderr);
    assert_eq!(summary["failed"], 0);
    assert_eq!(summary["failed_by_kind"], serde_json::json!({}));
    assert_eq!(summary["failed_by_execution"], serde_json::json!({}));
    assert_eq!(summary["per_instance"], serde_json::json!({ address: 200 }));
    for key in ["seconds", "calls_per_s", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"] {
        assert!(summary[key].as_f64().unwrap() > 0.0, "{key}: {summary}");
    }
}

fn started_for_json(args: &[&str]) -> (Process, serde_json::Value) {
    let mut process = Process::start(args);
    let line = process.line().expect("a first line");
    let first: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(first["listening"].is_string(), "{line}");
    (process, first)
}

#[test]
fn a_broadcast_shows_what_became_of_each_instance() {
    let (_one, first) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let (_two, second) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let gone = format!("tcp@127.0.0.1:{}", closed_port());
    let all = format!("{first},{second},{gone}");
    let call =
        srpc(&["call", &all, "Foo.Sum", r#"{"num1":1,"num2":2}"#, "--broadcast", "-o", "json"]);
    assert_ne!(call.code(), 0, "one instance is not there");
    let legs = call.json();
    assert_eq!(legs.as_array().unwrap().len(), 3, "{legs}");
    for address in [&first, &second] {
        assert_eq!(leg(&legs, address)["reply"], 3, "{legs}");
    }
    assert_eq!(leg(&legs, &gone)["ok"], false, "{legs}");
    assert_eq!(leg(&legs, &gone)["error"]["execution"], "not_sent", "{legs}");

    let table = srpc(&["call", &all, "Foo.Sum", r#"{"num1":1,"num2":2}"#, "--broadcast"]);
    assert_eq!(table.stdout.lines().count(), 4, "{}", table.stdout);
}

/// The outcome at one address.
fn leg<'a>(legs: &'a serde_json::Value, address: &str) -> &'a serde_json::Value {
    let mut all = legs.as_array().unwrap().iter();
    all.find(|leg| leg["address"] == address).unwrap_or_else(|| panic!("{address}: {legs}"))
}

#[test]
fn arguments_and_replies_are_as_they_were_written() {
    let (_server, address) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let echo = |argument: &str| srpc(&["call", &address, "Foo.Echo", argument]);
    let odd = r#"{"z":123456789012345678901234567890,"a":[null,"ä"]}"#;
    assert_eq!(echo(odd).stdout, format!("{odd}\n"));
    assert_eq!(echo("-5").stdout, "-5\n");

    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("argument.json");
    std::fs::write(&path, "[1, 2]\n").unwrap();
    assert_eq!(echo(&format!("@{}", path.display())).stdout, "[1, 2]\n");
    let stdin = srpc_reading("\"typed\"", &["call", &address, "Foo.Echo", "-"]);
    assert_eq!(stdin.stdout, "\"typed\"\n", "{}", stdin.stderr);
}

#[test]
fn a_command_that_is_not_understood_exits_2() {
    let (_server, address) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let commands: &[&[&str]] = &[
        &[],
        &["no-such-command"],
        &["list"],
        &["list", "9", "--registry", "http://127.0.0.1:1/srpc/registry"],
        &["list", "--registry", "nonsense"],
        &["call", "Foo", "Sum", "1"],
        &["call", &address, "Sum", "1"],
        &["call", &address, "Foo.Echo", "{"],
        &["call", &address, "Foo.Echo", "@/no/such/file"],
        &["call", "tcp@nowhere", "Foo.Echo", "1"],
        &["call", &address, "Foo.Echo", "1", "--timeout", "5"],
        &["call", &address, "Foo.Echo", "1", "--meta", "novalue"],
        &["call", &address, "Foo.Echo", "1", "-o", "xml"],
        &["bench", &address, "Foo.Echo", "1", "-n", "0"],
        &["registry", "--bind", "127.0.0.1"],
        &["registry", "--log", "srpc=loud"],
        &["serve", "--bind", "0.0.0.0:0", "--registry", "http://127.0.0.1:1/srpc/registry"],
    ];
    for args in commands {
        let ended = srpc(args);
        assert_eq!(ended.code(), 2, "{args:?}: {} {}", ended.stdout, ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
    }
}

#[test]
fn a_failure_is_json_where_json_is_asked_for() {
    let (_server, address) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let (_registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
    let gone = format!("http://127.0.0.1:{}", closed_port());
    let commands: &[(&[&str], i32, &str)] = &[
        (&["lst"], 2, "did you mean \"list\""),
        (&["list", "--regsitry", &url], 2, "did you mean \"--registry\""),
        (&["list", "--registry", &gone], 3, "127.0.0.1"),
        (&["call", "Nobody", "Sum", "1", "--registry", &url], 4, "no instance of Nobody"),
        (&["call", "127.0.0.1:1", "Foo.Sum", "1"], 2, "tcp@127.0.0.1:1"),
        (&["call", "/run/x.sock", "Foo.Sum", "1"], 2, "unix@/run/x.sock"),
        (&["call", "http://u:secret@a", "Foo.Sum", "1"], 2, "http://***@a is a URL"),
        (&["call", &address, "Bar.Sum", "1"], 76, "no service"),
        (&["call", &address, "Foo.Smu", "1"], 76, "did you mean \"Foo.Sum\""),
        (&["call", &address, "Foo.Fail", "null"], 66, "failed, as asked"),
    ];
    for (args, code, said) in commands {
        for format in ["json", "jsonl"] {
            let ended = srpc(&[*args, &["-o", format]].concat());
            assert_eq!(ended.code(), *code, "{args:?}: {}", ended.stderr);
            let error = &ended.json()["error"];
            assert_eq!(error["exit_code"], *code, "{args:?}: {error}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(said), "{args:?}: {message}");
            assert!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
        }
        assert_eq!(srpc(args).stdout, "", "{args:?}");
    }
    let failed = srpc(&["call", &address, "Foo.Fail", "null", "-o", "json"]).json();
    let error = &failed["error"];
    assert_eq!((&error["kind"], &error["execution"]), (&"unknown".into(), &"executed".into()));
    // After data there is nothing more.
    let leg = ["call", &address, "Foo.Fail", "null", "--broadcast", "-o", "json"];
    assert_eq!(srpc(&leg).json()[0]["ok"], false);
    let upper = srpc(&["list", "--registry", &url.replace("http", "HTTP"), "-o", "json"]);
    assert_eq!((upper.code(), upper.stdout.trim()), (0, "[]"), "{}", upper.stderr);
}

#[test]
fn a_bench_says_which_instance_failed() {
    let (_server, address) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let closed = format!("tcp@127.0.0.1:{}", closed_port());
    let both = format!("{address},{closed}");
    let sum = r#"{"num1":1,"num2":2}"#;
    let ended = srpc(&["bench", &both, "Foo.Sum", sum, "-o", "json"]);
    let summary = ended.json();
    assert_eq!(summary["failed"], 0, "{summary} {}", ended.stderr);
    assert_eq!(summary["failed_per_instance"], serde_json::json!({}), "{summary}");
    let attempts = &summary["failed_attempts_per_instance"];
    assert!(attempts[&closed].as_u64().is_some_and(|count| count > 0), "{summary}");
    assert_eq!(attempts[&address], serde_json::Value::Null, "{summary}");
}

#[test]
fn a_registry_that_is_not_there_exits_3() {
    let url = format!("http://127.0.0.1:{}/srpc/registry", closed_port());
    for args in [&["list"][..], &["call", "Foo", "Sum", "1"], &["bench", "Foo", "Sum", "1"]] {
        let ended = srpc(&[args, &["--registry", &url, "--timeout", "2s"]].concat());
        assert_eq!(ended.code(), 3, "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
    }
}

#[test]
fn a_service_that_nobody_offers_exits_4() {
    let (_registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
    for command in ["call", "bench"] {
        let ended = srpc(&[command, "Nobody", "Sum", "1", "--registry", &url, "--timeout", "3s"]);
        assert_eq!(ended.code(), 4, "{command}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{command}");
    }
}

#[test]
fn an_instance_that_is_not_there_exits_5() {
    let address = format!("tcp@127.0.0.1:{}", closed_port());
    let ended = srpc(&["call", &address, "Foo.Sum", "1"]);
    assert_eq!(ended.code(), 5, "{}", ended.stderr);
}

#[test]
fn a_deadline_that_passes_exits_6_and_a_services_status_64_more() {
    let (_server, address) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let call = |method: &str, argument: &str| {
        srpc(&["call", &address, method, argument, "--timeout", "4s"])
    };
    for (method, argument, code) in [
        ("Foo.Sleep", r#"{"num1":60}"#, 6),
        ("Foo.Fail", "null", 64 + 2),
        ("Foo.Fail", r#"{"code":5,"message":"nothing there"}"#, 64 + 5),
        ("Foo.Panic", "null", 64 + 13),
        ("Foo.Sum", r#"{"num1":9223372036854775807,"num2":1}"#, 64 + 11),
    ] {
        let ended = call(method, argument);
        assert_eq!(ended.code(), code, "{method} {argument}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{method} {argument}");
    }
    let ended = call("Foo.Fail", r#"{"message":"nothing there"}"#);
    assert!(ended.stderr.contains("nothing there"), "{}", ended.stderr);
    assert_eq!(call("Foo.Sleep", r#"{"num1":0.01}"#).stdout, "0.01\n");
}

#[test]
fn a_bench_that_is_interrupted_prints_its_summary_and_exits_130() {
    let (_server, address) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let call = ["bench", &address, "Foo.Sum", r#"{"num1":1,"num2":2}"#];
    let args = [&call[..], &["-z", "1h", "-c", "2", "-o", "json"]].concat();
    for seconds in [2, 6, 20] {
        let bench = Process::start(&args);
        std::thread::sleep(Duration::from_secs(seconds));
        bench.signal("INT");
        let ended = bench.finish();
        // A signal before it is under way ends it like any other program: it gets more time then.
        if ended.code() == 130 && ended.json()["ok"].as_u64() > Some(0) {
            assert_eq!(ended.json()["failed"], 0, "{}", ended.stderr);
            return;
        }
    }
    panic!("no bench was interrupted amid its calls");
}

#[test]
fn a_bench_counts_what_fails_and_exits_0() {
    let (_server, address) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let args = ["bench", &address, "Foo.Fail", r#"{"code":9}"#, "-n", "50", "--rate", "1k"];
    let ended = srpc(&[&args[..], &["-o", "json"]].concat());
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let summary = ended.json();
    assert_eq!(summary["calls"], 50, "{summary}");
    assert_eq!(summary["failed"], 50, "{summary}");
    assert_eq!(summary["failed_by_kind"], serde_json::json!({"failed_precondition": 50}));
    assert_eq!(summary["failed_by_execution"], serde_json::json!({"executed": 50}));
    assert_eq!(summary["per_instance"], serde_json::json!({ &address: 0 }));
    for key in ["failed_per_instance", "failed_attempts_per_instance"] {
        assert_eq!(summary[key], serde_json::json!({ &address: 50 }), "{key}");
    }
    assert!(ended.stderr.contains("failed, as asked"), "{}", ended.stderr);
}

#[test]
fn a_list_follows_a_server_that_is_gone() {
    let (_registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
    let serve = ["serve", "--registry", &url, "--bind", "127.0.0.1:0", "--ttl", "1s"];
    let (server, address) = Process::listening(&serve);
    eventually(PATIENCE, "the server is listed", || listed(&url, "Foo") == [&*address]);
    server.kill();
    eventually(PATIENCE, "its lease ends", || listed(&url, "Foo").is_empty());
}

#[test]
fn what_peers_say_steers_no_terminal() {
    let odd = "\u{9b}2J\u{202e}\u{200b}\u{2028}\u{e0041}";
    let steers = |c: char| odd.contains(c) && !c.is_ascii();
    let is_inert = |text: &str| !text.contains(steers);
    let (_registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
    let meta = format!("k{odd}=v{odd}");
    let serve = ["serve", "--bind", "127.0.0.1:0", "--registry", &url, "--meta", &meta];
    let (_server, address) = Process::listening(&serve);
    wait_for(&url, "Foo", 1);
    let argument = format!("{{\"a{odd}\":\r\n\"{odd}\"}}");
    for format in ["table", "wide", "json", "jsonl", "name"] {
        let list = srpc(&["list", "Foo", "--registry", &url, "-o", format]);
        assert!(is_inert(&list.stdout) && is_inert(&list.stderr), "{format}: {:?}", list.stdout);
        let call = srpc(&["call", &address, "Foo.Echo", &argument, "-o", format]);
        assert!(is_inert(&call.stdout), "{format}: {:?}", call.stdout);
        assert_eq!(call.stdout.lines().count(), 1, "{format}: {:?}", call.stdout);
        let said: serde_json::Value = serde_json::from_str(&argument).unwrap();
        assert_eq!(call.json(), said, "{format}");
        let legs = srpc(&["call", &address, "Foo.Echo", &argument, "--broadcast", "-o", format]);
        assert!(is_inert(&legs.stdout), "{format}: {:?}", legs.stdout);
        let failed = format!("{{\"message\":\"{odd}\"}}");
        let failed = srpc(&["call", &address, "Foo.Fail", &failed, "-o", format]);
        assert!(is_inert(&failed.stdout) && is_inert(&failed.stderr), "{:?}", failed.stderr);
    }
    let list = srpc(&["list", "Foo", "--registry", &url, "-o", "json"]);
    assert!(list.stdout.contains("\\u202e"), "{}", list.stdout);
    assert_eq!(list.json()[0]["metadata"][format!("k{odd}")], format!("v{odd}"));
}
