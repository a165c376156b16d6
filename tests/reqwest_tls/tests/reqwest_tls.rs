//! reqwest with TLS, over a discovery: the name that is asked for, and whom it trusts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]
#![allow(clippy::disallowed_methods, reason = "other people's servers have sockets of their own")]

#[path = "../../support/pki.rs"]
mod pki;

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::Method;
use srpc::adapt::reqwest::Client;
use srpc::backend::static_list::StaticList;
use srpc::discovery::Resolver;
use srpc::selector::RoundRobin;
use srpc::{Address, Instance};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

use self::pki::Authority;

/// The only name in the servers' certificates, which no instance's address has.
const NAME: &str = "web.example";

/// Requests to two servers; both get some.
const REQUESTS: usize = 10;

struct Web {
    at: SocketAddr,
    /// Of each request, the name that TLS asked for and the header `Host`.
    asked: mpsc::Receiver<(String, String)>,
}

/// Answers every request with 204.
async fn web(authority: &Authority) -> Web {
    let certificate = authority.issue(&[NAME]);
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (tell, asked) = mpsc::channel(100);
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
    Web { at, asked }
}

/// Who trusts this authority alone.
fn trusting(authority: &Authority, servers: &[&Web]) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.text().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let addresses = servers.iter().map(|web| format!("tls@{}", web.at).parse::<Address>());
    let instances = addresses.map(|address| Instance::at(address.unwrap()));
    let list = Arc::new(StaticList::new(instances.collect::<Vec<_>>()));
    let resolver =
        Resolver::builder("web".parse().unwrap(), list).selector(RoundRobin::default()).build();
    Client::options(resolver, NAME)
        .builder(move || reqwest::Client::builder().tls_backend_preconfigured(config.clone()))
        .build()
}

fn get(url: &str) -> reqwest::Request {
    reqwest::Request::new(Method::GET, url.parse().unwrap())
}

#[tokio::test]
async fn each_instance_is_asked_for_the_name_of_the_url() {
    let authority = Authority::new("an authority");
    let (mut one, mut two) = (web(&authority).await, web(&authority).await);
    let client = trusting(&authority, &[&one, &two]);
    for _ in 0..REQUESTS {
        let response = client.execute(get(&format!("https://{NAME}/cart"))).await.unwrap();
        assert_eq!(response.status(), 204);
    }
    for web in [&mut one, &mut two] {
        for _ in 0..REQUESTS / 2 {
            assert_eq!(web.asked.recv().await.unwrap(), (NAME.to_owned(), NAME.to_owned()));
        }
    }
}

#[tokio::test]
async fn a_port_in_the_url_does_not_count() {
    let authority = Authority::new("an authority");
    let mut web = web(&authority).await;
    let client = trusting(&authority, &[&web]);
    let response = client.execute(get(&format!("https://{NAME}:8443/"))).await.unwrap();
    assert_eq!(response.status(), 204);
    assert_eq!(web.asked.recv().await.unwrap(), (NAME.to_owned(), NAME.to_owned()));
}

#[tokio::test]
async fn a_strangers_certificate_is_refused_before_anything_is_asked() {
    let mut web = web(&Authority::new("a stranger")).await;
    let client = trusting(&Authority::new("an authority"), &[&web]);
    let refused = client.execute(get(&format!("https://{NAME}/"))).await.unwrap_err();
    let said = refused.to_string();
    assert!(said.contains(&web.at.to_string()), "it names the instance: {said}");
    assert!(web.asked.try_recv().is_err(), "nothing was asked");
}

#[tokio::test]
async fn a_url_of_another_host_is_refused_before_anything_is_asked() {
    let authority = Authority::new("an authority");
    let mut web = web(&authority).await;
    let client = trusting(&authority, &[&web]);
    let refused = client.execute(get("https://elsewhere.example/")).await.unwrap_err();
    assert!(refused.to_string().contains("elsewhere.example"), "{refused}");
    assert!(web.asked.try_recv().is_err(), "nothing was asked");
}
