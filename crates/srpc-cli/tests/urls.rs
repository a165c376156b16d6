//! Does the command take every kind of URL where it takes a registry?
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]

mod support;

use std::fs;

use support::{Process, closed_port, srpc};

const SUM: [&str; 4] = ["call", "Foo", "Sum", r#"{"num1": 1, "num2": 2}"#];

fn sum(registry: &str) -> support::Ended {
    srpc(&[&SUM[..], &["--registry", registry]].concat())
}

#[test]
fn a_list_and_a_file_are_sources() {
    let (_server, address) = Process::listening(&["serve", "--bind", "127.0.0.1:0"]);
    let called = sum(&format!("static://{address}"));
    assert_eq!((called.code(), called.stdout.trim()), (0, "3"), "{}", called.stderr);

    let file = std::env::temp_dir().join(format!("srpc-urls-{}.toml", std::process::id()));
    fs::write(&file, format!("Foo = [{{ address = \"{address}\", zone = \"a\" }}]")).unwrap();
    let url = format!("file://{}", file.display());
    let called = sum(&url);
    assert_eq!((called.code(), called.stdout.trim()), (0, "3"), "{}", called.stderr);
    let listed = srpc(&["list", "Foo", "--registry", &url, "-o", "json"]).json();
    assert_eq!((&listed[0]["zone"], &listed[0]["address"]), (&"a".into(), &(*address).into()));
    let served = srpc(&["serve", "--registry", &url]);
    assert_eq!(served.code(), 2);
    assert!(served.stderr.contains("is only read"), "{}", served.stderr);
    let all = srpc(&["list", "--registry", &url, "-o", "json"]).json();
    assert_eq!((&all[0]["service"], all.as_array().unwrap().len()), (&"Foo".into(), 1));
    let unnamed = srpc(&["list", "--registry", &format!("static://{address}")]);
    assert_eq!(unnamed.code(), 2);
    assert!(unnamed.stderr.contains("name a service"), "{}", unnamed.stderr);
    fs::remove_file(&file).unwrap();
    let gone = sum(&url);
    assert_eq!(gone.code(), 3, "{}", gone.stderr);
}

#[test]
fn what_is_unknown_lacking_or_away_says_so() {
    for (url, code, said) in [
        ("consul://a", 2, "an unknown scheme: it is one of static://"),
        ("10.0.0.1:9999", 2, "no scheme"),
        ("etcd://", 2, "an empty host"),
    ] {
        let called = sum(url);
        assert_eq!(called.code(), code, "{url}: {}", called.stderr);
        assert!(called.stderr.contains(said), "{url}: {}", called.stderr);
    }
    let away = sum(&format!("etcd://127.0.0.1:{}", closed_port()));
    assert_eq!(away.code(), 3, "{}", away.stderr);
}

#[test]
fn a_list_says_on_stderr_what_it_could_not_read() {
    for (name, content, said, code) in [
        ("a.toml", r#"Foo = [{ address = "tcp@h:1", weigth = 3 }]"#, "Foo: line 1: weigth", 3),
        (
            "b.toml",
            r#"Foo = ["tcp@h:1", { address = "tcp@i:2", weight = -1 }]"#,
            "line 1: weight",
            0,
        ),
        (
            "c.json",
            r#"{"Foo": ["tcp@h:1"], "Bar": [{"adress": "tcp@i:2"}]}"#,
            "Bar: line 1: adress",
            0,
        ),
        ("d.TOML", "Foo = [\"tcp@h:1\"]\nFoo = []", "line 2: ", 3),
    ] {
        let file = std::env::temp_dir().join(format!("srpc-unread-{}-{name}", std::process::id()));
        fs::write(&file, content).unwrap();
        let url = format!("file://{}", file.display());
        for format in ["table", "json", "jsonl", "name", "wide"] {
            let listed = srpc(&["list", "Foo", "--registry", &url, "-o", format]);
            assert!(listed.stderr.contains(said), "{name}: {}", listed.stderr);
            assert_eq!(listed.code(), code, "{name}: {}", listed.stderr);
        }
        let all = srpc(&["list", "--registry", &url]);
        assert!(all.stderr.contains(said), "{name}: {}", all.stderr);
        assert_eq!(all.code(), code, "{name}: {}", all.stderr);
        fs::remove_file(&file).unwrap();
    }
}
