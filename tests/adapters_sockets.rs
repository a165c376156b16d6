//! tonic and reqwest over a discovery, on real sockets: TLS, Unix sockets, and requests too large to keep.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]
#![allow(clippy::disallowed_methods, reason = "other people's servers have sockets of their own")]

#[path = "../examples/greeter/mod.rs"]
mod greeter;
#[path = "support/pki.rs"]
mod pki;

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::Method;
use srpc::adapt::reqwest::Client;
use srpc::adapt::tonic::{Channels, Idempotent};
use srpc::backend::static_list::StaticList;
use srpc::discovery::Resolver;
use srpc::selector::RoundRobin;
use srpc::{Address, Instance};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
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

/// Answers every request with 204, and tells the name that TLS asked for and the header `Host`.
async fn web(authority: &Authority) -> (SocketAddr, mpsc::Receiver<(String, String)>) {
    let certificate = authority.issue(&[NAME]);
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel(100);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            tokio::spawn(async move {
                // Who does not trust the certificate leaves.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
                let mut stream = BufReader::new(stream);
                let (mut host, mut line) = (String::new(), String::new());
                while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("host:") {
                        host = value.trim().to_owned();
                    }
                    if line.trim().is_empty() {
                        tell.send((name.clone(), host.clone())).await.unwrap();
                        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                        stream.write_all(answer).await.unwrap();
                        stream.flush().await.unwrap();
                    }
                    line.clear();
                }
            });
        }
    });
    (at, told)
}

fn reqwest_trusting(authority: &Authority, addresses: &[String]) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.text().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Client::options(resolver(addresses), NAME)
        .builder(move || reqwest::Client::builder().tls_backend_preconfigured(config.clone()))
        .build()
}

fn get(url: &str) -> reqwest::Request {
    reqwest::Request::new(Method::GET, url.parse().unwrap())
}

#[tokio::test]
async fn reqwest_over_tls_asks_each_instance_for_the_name_of_the_url() {
    let authority = Authority::new("an authority");
    let (one, mut by_one) = web(&authority).await;
    let (two, mut by_two) = web(&authority).await;
    let addresses = [format!("tls@{one}"), format!("tls@{two}")];
    let client = reqwest_trusting(&authority, &addresses);
    for _ in 0..10 {
        let response = client.execute(get(&format!("https://{NAME}/cart"))).await.unwrap();
        assert_eq!(response.status(), 204);
    }
    for told in [&mut by_one, &mut by_two] {
        for _ in 0..5 {
            assert_eq!(told.recv().await.unwrap(), (NAME.to_owned(), NAME.to_owned()));
        }
    }
    let stranger = reqwest_trusting(&Authority::new("another"), &addresses);
    let refused = stranger.execute(get(&format!("https://{NAME}/"))).await.unwrap_err();
    assert!(
        refused.to_string().contains(&one.ip().to_string()),
        "it names the instance: {refused}"
    );
    assert!(by_one.try_recv().is_err() && by_two.try_recv().is_err(), "nothing was asked");
}
