//! tonic over a discovery, on real sockets: TLS, Unix sockets, and requests too large to keep.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]
#![allow(clippy::disallowed_methods, reason = "other people's servers have sockets of their own")]

#[path = "../examples/greeter/mod.rs"]
mod greeter;
#[path = "support/pki.rs"]
mod pki;

use std::net::SocketAddr;
use std::sync::Arc;

use srpc::adapt::tonic::{Channels, Idempotent};
use srpc::backend::static_list::StaticList;
use srpc::discovery::Resolver;
use srpc::selector::RoundRobin;
use srpc::{Address, Instance};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request};

use self::greeter::{Greeter, Text};
use self::pki::Authority;

/// The only name in the servers' certificates, which no instance's address has.
const NAME: &str = "web.example";

fn resolver(addresses: &[String]) -> Resolver {
    let instances = addresses.iter().map(|at| Instance::at(at.parse::<Address>().unwrap()));
    let list = Arc::new(StaticList::new(instances.collect::<Vec<_>>()));
    Resolver::builder("web".parse().unwrap(), list).selector(RoundRobin::default()).build()
}

async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn text(text: &str) -> Request<Text> {
    Request::new(Text { text: text.to_owned() })
}

#[tokio::test]
async fn tonic_over_tls_checks_the_name_that_it_was_given() {
    let authority = Authority::new("an authority");
    let certificate = authority.issue(&[NAME]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let identity = Identity::from_pem(&certificate.chain, &certificate.key);
    let serving = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(Greeter::at(at))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(serving);

    // One of the two listens nowhere.
    let addresses = [format!("tls@{}", free_port().await), format!("tls@{at}")];
    let authority = Certificate::from_pem(authority.text());
    let channels = |name: &'static str| {
        let authority = authority.clone();
        let channels = Channels::connecting(resolver(&addresses), move |instance| {
            let tls = ClientTlsConfig::new().ca_certificate(authority.clone()).domain_name(name);
            let uri = format!("https://{}", instance.address.target());
            Ok(Endpoint::from_shared(uri)?.tls_config(tls)?.connect_lazy())
        });
        greeter::Client::new(channels)
    };
    for _ in 0..20 {
        assert_eq!(channels(NAME).hello(text("")).await.unwrap(), at.to_string());
    }
    let refused = channels("other.example").hello(text("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    serving.abort();
}

#[tokio::test]
async fn tonic_without_a_function_of_ones_own_dials_no_tls() {
    let addresses = [format!("tls@{}", free_port().await)];
    let mut client = greeter::Client::new(Channels::new(resolver(&addresses)));
    let refused = client.hello(text("")).await.unwrap_err();
    assert!(refused.message().contains("Channels::connecting"), "{refused}");
}

#[tokio::test]
async fn tonic_over_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("srpc-greeter-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let at = free_port().await;
    let serving = Server::builder()
        .add_service(Greeter::at(at))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let serving = tokio::spawn(serving);
    let channels = Channels::new(resolver(&[format!("unix@{}", path.display())]));
    let mut client = greeter::Client::new(channels);
    assert_eq!(client.hello(text("")).await.unwrap(), at.to_string());
    serving.abort();
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn an_idempotent_request_that_is_too_large_to_keep_is_refused() {
    let (at, serving) = Greeter::start().await.unwrap();
    let addresses = [format!("tcp@{at}")];
    let mut client = greeter::Client::new(Channels::new(resolver(&addresses)));
    let request = |bytes: usize, idempotent: bool| {
        let mut request = text(&"x".repeat(bytes));
        if idempotent {
            request.extensions_mut().insert(Idempotent);
        }
        request
    };
    // What a server takes at most is another matter: tonic's take 4 MiB, its own five bytes included.
    let most = 4 * 1024 * 1024 - 64;
    assert!(client.hello(request(most, true)).await.is_ok());
    let refused = client.hello(request(most + 64, true)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("kept"), "{refused}");
    serving.abort();
}
