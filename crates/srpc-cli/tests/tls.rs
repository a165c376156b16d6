//! TLS between processes of the command: who is let in, and what the others are told.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

#[path = "../../../tests/support/pki.rs"]
mod pki;
mod support;

use pki::{Authority, Folder};
use serde_json::json;
use support::{Ended, PATIENCE, Process, eventually, srpc};

const SUM: &str = r#"{"num1": 1, "num2": 2}"#;

/// Files of an authority, of a server at 127.0.0.1, and of a client; and of another authority.
struct Files(Folder);

impl Files {
    fn new() -> Self {
        let (folder, authority) = (Folder::new(), Authority::new("ours"));
        let file = |name: &str| folder.file(name);
        std::fs::write(file("ca.pem"), authority.text()).unwrap();
        std::fs::write(file("other.pem"), Authority::new("not ours").text()).unwrap();
        authority.issue(&["127.0.0.1"]).write(&file("server.pem"), &file("server.key"));
        let client = authority.issue(&["spiffe://example.org/client"]);
        client.write(&file("client.pem"), &file("client.key"));
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.file(name).to_str().unwrap().to_owned()
    }

    /// Starts a server that asks for certificates and shows one, also to its registry.
    fn listening(&self, args: &[&str]) -> (Process, String) {
        self.listening_with(&["server.pem", "server.key", "ca.pem"], args)
    }

    /// The same with these of certificate, key and clients' authority.
    fn listening_with(&self, own: &[&str], args: &[&str]) -> (Process, String) {
        let own: Vec<String> = own.iter().map(|name| self.path(name)).collect();
        let names = ["SRPC_TLS_CERT", "SRPC_TLS_KEY", "SRPC_TLS_CLIENT_CA"];
        let mut environment: Vec<(&str, &str)> =
            names.into_iter().zip(own.iter().map(String::as_str)).collect();
        let dialling = self.dialling("ca.pem");
        environment.extend(dialling.iter().map(|(name, value)| (*name, value.as_str())));
        let started = Process::try_listening_in(&environment, args);
        started.unwrap_or_else(|ended| panic!("{args:?}: {}", ended.stderr))
    }

    fn dialling(&self, authority: &str) -> [(&'static str, String); 3] {
        [
            ("SRPC_TLS_CA", self.path(authority)),
            ("SRPC_TLS_CLIENT_CERT", self.path("client.pem")),
            ("SRPC_TLS_CLIENT_KEY", self.path("client.key")),
        ]
    }

    /// Runs `srpc` to its end with a client's certificate, and this authority to check servers by.
    fn srpc_trusting(&self, authority: &str, args: &[&str]) -> Ended {
        let environment = self.dialling(authority);
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        Process::start_in(&environment, args).finish()
    }

    /// Runs `srpc` to its end with a client's certificate.
    fn srpc(&self, args: &[&str]) -> Ended {
        self.srpc_trusting("ca.pem", args)
    }

    /// A registry and a server that has registered there; the URL of the one and the address of the
    /// other.
    fn system(&self) -> ([Process; 2], String, String) {
        let (registry, url) = self.listening(&["registry", "--bind", "127.0.0.1:0"]);
        let serve = ["serve", "--bind", "tls@127.0.0.1:0", "--registry", &url];
        let (server, address) = self.listening(&serve);
        eventually(PATIENCE, "the server is listed", || {
            let list = self.srpc(&["list", "Foo", "--registry", &url, "-o", "name"]);
            assert_eq!(list.code(), 0, "{}", list.stderr);
            list.stdout.trim() == address
        });
        ([registry, server], url, address)
    }
}

#[track_caller]
fn refused(ended: &Ended, code: i32, why: &str) {
    assert_eq!((ended.code(), &*ended.stdout), (code, ""), "{}", ended.stderr);
    assert!(ended.stderr.contains(why), "{}", ended.stderr);
}

#[test]
fn a_registry_a_server_and_clients_prove_who_they_are() {
    let files = Files::new();
    let (_running, url, address) = files.system();
    assert!(url.starts_with("https://127.0.0.1:") && url.ends_with("/srpc/registry"), "{url}");
    assert!(address.starts_with("tls@127.0.0.1:"), "{address}");

    let call = files.srpc(&["call", "Foo", "Sum", SUM, "--registry", &url]);
    assert_eq!((call.code(), call.stdout.trim()), (0, "3"), "{}", call.stderr);
    let call = files.srpc(&["call", &address, "Foo.Echo", r#""hi""#]);
    assert_eq!((call.code(), call.stdout.trim()), (0, r#""hi""#), "{}", call.stderr);
    let bench = ["bench", "Foo", "Sum", SUM, "--registry", &url, "-n", "500", "-o", "json"];
    let bench = files.srpc(&bench);
    assert_eq!(bench.code(), 0, "{}", bench.stderr);
    let summary = bench.json();
    assert_eq!((&summary["ok"], &summary["failed"]), (&json!(500), &json!(0)), "{summary}");
    assert_eq!(summary["per_instance"][&address], json!(500), "{summary}");
}

#[test]
fn who_shows_no_certificate_is_told_so() {
    let files = Files::new();
    let (_running, url, address) = files.system();
    let authority = files.path("ca.pem");
    let why = "it asks for a client certificate";
    refused(&srpc(&["list", "--registry", &url, "--tls-ca", &authority]), 3, why);
    refused(&srpc(&["call", &address, "Foo.Sum", SUM, "--tls-ca", &authority]), 5, why);
}

#[test]
fn who_trusts_another_authority_sends_nothing() {
    let files = Files::new();
    let (_running, url, address) = files.system();
    let why = "no authority that is trusted here has signed it";
    refused(&files.srpc_trusting("other.pem", &["list", "--registry", &url]), 3, why);
    refused(&files.srpc_trusting("other.pem", &["call", &address, "Foo.Sum", SUM]), 5, why);
}

#[test]
fn a_registry_that_asks_for_certificates_may_be_reached_by_others() {
    let files = Files::new();
    let (_registry, url) = files.listening(&["registry", "--bind", "0.0.0.0:0"]);
    let url = url.replace("0.0.0.0", "127.0.0.1");
    assert_eq!(files.srpc(&["list", "--registry", &url]).code(), 0);

    // Encryption alone tells nobody apart.
    let (certificate, key) = (files.path("server.pem"), files.path("server.key"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    let exposed = srpc(&[&["registry", "--bind", "0.0.0.0:0"][..], &tls].concat());
    refused(&exposed, 2, "nobody would have to show a token");
    let args = ["registry", "--bind", "127.0.0.1:0"];
    let (_local, url) = files.listening_with(&["server.pem", "server.key"], &args);
    assert_eq!(srpc(&["list", "--registry", &url, "--tls-ca", &files.path("ca.pem")]).code(), 0);
}

#[test]
fn what_is_missing_is_named() {
    let files = Files::new();
    let (certificate, key) = (files.path("server.pem"), files.path("server.key"));
    let lacks = "give --tls-ca FILE";
    refused(&srpc(&["list", "--registry", "https://127.0.0.1:1"]), 2, lacks);
    refused(&srpc(&["call", "tls@127.0.0.1:1", "Foo.Sum", SUM]), 2, lacks);
    let lacks = "give --tls-cert FILE and --tls-key FILE";
    refused(&srpc(&["serve", "--bind", "tls@127.0.0.1:0"]), 2, lacks);
    refused(&srpc(&["serve", "--tls-cert", &certificate]), 2, "--tls-key <FILE>");
    let (own, of_its) = (["--tls-client-cert", &certificate], ["--tls-client-key", &key]);
    let call = ["call", "tls@127.0.0.1:1", "Foo.Sum", SUM];
    refused(&srpc(&[&call[..], &own, &of_its].concat()), 2, "--tls-ca <FILE>");
    let socket = files.path("socket");
    let bind = format!("unix@{socket}");
    let args = ["serve", "--bind", &bind, "--tls-cert", &certificate, "--tls-key", &key];
    refused(&srpc(&args), 2, "a certificate is for tls@host:port");

    let missing = ["registry", "--tls-cert", &certificate, "--tls-key", "/nowhere/key.pem"];
    refused(&srpc(&missing), 2, "/nowhere/key.pem cannot be read");
    let swapped = ["registry", "--tls-cert", &key, "--tls-key", &certificate];
    refused(&srpc(&swapped), 2, "server.key holds no certificate");
}
