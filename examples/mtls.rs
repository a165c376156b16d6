//! Mutual TLS everywhere: at the registry, and between a client and two servers. A handler sees who
//! calls, who shows no certificate is refused, and the servers' certificate is replaced on disk
//! while calls run.
//!
//! ```text
//! cargo run --release --features tls --example mtls
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    SanType,
};
use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::backend::static_list::StaticList;
use srpc::registry::Registrar;
use srpc::server::Context;
use srpc::transport::{ClientTls, Pem, ServerTls, Tls, Transport};
use srpc::{Address, Execution, Instance, Server, Service, XClient};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let files = Files::new()?;
    for name in ["registry", "first-foo", "bar"] {
        files.issue(name, name)?;
    }
    let url = start_registry(&files).await?;

    // Each of them listens, and registers itself, with the same certificate.
    let foo = Tls::server(files.server("first-foo")).client(files.client("first-foo")).build()?;
    let mut addresses = Vec::new();
    for _ in 0..2 {
        addresses.push(start_server(&foo, &url).await?);
    }

    let bar = Tls::client(files.client("bar")).build()?;
    let registry = HttpRegistry::builder(&url).transport(Arc::new(bar.clone())).build()?;
    let client = XClient::builder("Foo", registry).transport(Arc::new(bar.clone())).build()?;
    client.resolver().ready(PATIENCE).await?;
    let identity: Option<String> = client.call("Foo.Who", &()).await?;
    println!("a handler saw {}", identity.as_deref().unwrap_or("nobody"));
    assert_eq!(identity.as_deref(), Some("spiffe://example.org/bar"));

    let nobody = Tls::client(ClientTls::new(files.authority())).build()?;
    let refused = client_of(&nobody, &addresses)?.call::<_, Option<String>>("Foo.Who", &()).await;
    let error = refused.err().ok_or("a client without a certificate was let in")?;
    println!("without a certificate: {error}");
    assert_eq!(error.execution(), Execution::NotSent);
    assert!(error.to_string().contains("it asks for a client certificate"));

    let steady = tokio::spawn(load(move || Ok(client.clone())));
    let known = addresses.clone();
    let dialling = tokio::spawn(load(move || client_of(&bar, &known)));
    sleep(Duration::from_secs(1)).await;
    assert!(shows(&files, &addresses[0], "first-foo").await?);
    files.issue("second-foo", "first-foo")?;
    // Else they are looked at within a minute: `TlsBuilder::reload_every`.
    foo.reload().await?;
    assert!(shows(&files, &addresses[0], "second-foo").await?);
    assert!(!shows(&files, &addresses[0], "first-foo").await?);
    println!("new connections see the new certificate");

    for (name, load) in [("steady", steady), ("dialling", dialling)] {
        let (calls, failed) = load.await?;
        println!("{name}: {calls} calls, {failed} failed");
        assert!(calls > 0 && failed == 0, "a new certificate fails no call");
    }
    Ok(())
}

/// Calls one after the other for three seconds, each with what `client` gives.
async fn load(client: impl Fn() -> Result<XClient, srpc::Error>) -> (u64, u64) {
    let (mut calls, mut failed) = (0, 0);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        calls += 1;
        let answer: Result<Option<String>, _> = match client() {
            Ok(client) => client.call("Foo.Who", &()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = answer {
            failed += 1;
            eprintln!("{error}");
        }
        sleep(Duration::from_millis(1)).await;
    }
    (calls, failed)
}

/// A client that has no connection yet.
fn client_of(tls: &Tls, addresses: &[Address]) -> Result<XClient, srpc::Error> {
    let list = StaticList::new(addresses.iter().cloned().map(Instance::at));
    XClient::builder("Foo", list).transport(Arc::new(tls.clone())).build()
}

/// Whether a new connection is shown a certificate that is for this name.
async fn shows(files: &Files, address: &Address, name: &str) -> Result<bool, Box<dyn Error>> {
    let named = Tls::client(files.client("bar").server_name(name)).build()?;
    Ok(named.connect(address).await.is_ok())
}

/// Starts a registry that answers only who shows a certificate; its URL.
async fn start_registry(files: &Files) -> Result<String, Box<dyn Error>> {
    let tls = Tls::server(files.server("registry")).build()?;
    let listener = tls.bind(&Address::to_bind("tls@127.0.0.1:0")?).await?;
    let url = format!("https://{}", listener.address().target());
    let server = RegistryServer::builder().identified(true).build();
    tokio::spawn(server.serve(listener, std::future::pending()));
    Ok(url)
}

/// Starts a server that registers itself; its address.
async fn start_server(tls: &Tls, url: &str) -> Result<Address, Box<dyn Error>> {
    let listener = tls.bind(&Address::to_bind("tls@127.0.0.1:0")?).await?;
    let address = listener.address().clone();
    let registry = HttpRegistry::builder(url).transport(Arc::new(tls.clone())).build()?;
    let who = async |context: Context, (): ()| {
        Ok::<_, Infallible>(context.peer().identity.as_deref().map(str::to_owned))
    };
    let server = Server::new()
        .service(Service::new("Foo").method("Who", who))
        .registrar(Registrar::new(Arc::new(registry)));
    tokio::spawn(server.serve(listener, std::future::pending()));
    Ok(address)
}

/// A folder with an authority's certificate, and with those that it has issued and their keys. It
/// goes with the value.
struct Files {
    folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Files {
    fn new() -> Result<Self, Box<dyn Error>> {
        let folder = std::env::temp_dir().join(format!("srpc-mtls-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let mut params = params("the authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("ca.pem"), authority.pem())?;
        Ok(Self { folder, authority })
    }

    /// Writes the certificate of a service, and its key, as `<file>.pem` and `<file>.key`.
    fn issue(&self, service: &str, file: &str) -> Result<(), Box<dyn Error>> {
        let mut params = params(service);
        params.subject_alt_names = vec![
            SanType::URI(format!("spiffe://example.org/{service}").try_into()?),
            SanType::DnsName(service.try_into()?),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        fs::write(self.path(file, "pem"), certificate.pem())?;
        fs::write(self.path(file, "key"), key.serialize_pem())?;
        Ok(())
    }

    /// Who listens shows this certificate, and lets in only who shows one.
    fn server(&self, file: &str) -> ServerTls {
        let (certificate, key) = self.pair(file);
        ServerTls::new(certificate, key).client_ca(self.authority())
    }

    /// Who dials shows this certificate.
    fn client(&self, file: &str) -> ClientTls {
        let (certificate, key) = self.pair(file);
        ClientTls::new(self.authority()).certificate(certificate, key)
    }

    fn authority(&self) -> Pem {
        Pem::file(self.path("ca", "pem"))
    }

    fn pair(&self, file: &str) -> (Pem, Pem) {
        (Pem::file(self.path(file, "pem")), Pem::file(self.path(file, "key")))
    }

    fn path(&self, file: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{file}.{kind}"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // What is left is in a folder for what may be left.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
