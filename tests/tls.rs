//! TLS: who is let in and as whom, what a wrong peer is told, and how certificates are replaced.

#![cfg(all(feature = "tls", feature = "http"))]
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

#[path = "support/pki.rs"]
mod pki;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::backend::static_list::StaticList;
use srpc::call::Call;
use srpc::discovery::{Discovery, Update};
use srpc::registry::Registrar;
use srpc::server::Context;
use srpc::transport::{
    ClientTls, Listener, Memory, Net, Pem, ServerTls, Stream, Tls, TlsError, Transport,
};
use srpc::{Address, Error, Execution, Instance, Kind, Server, Service, Status, XClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use self::pki::{Authority, Certificate, Folder};

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who calls, as the handler sees it.
fn who() -> Server {
    let who = Service::new("Foo").method("Who", async |context: Context, (): ()| {
        Ok::<_, Status>(context.peer().identity.as_deref().map(str::to_owned))
    });
    Server::new().service(who)
}

/// A server, at the address where it listens. Dropping it ends it.
struct Serving {
    address: Address,
    task: JoinHandle<io::Result<()>>,
}

impl Serving {
    async fn on(transport: &impl Transport, address: &str) -> Self {
        Self::of(transport, address, who()).await
    }

    async fn of(transport: &impl Transport, address: &str, server: Server) -> Self {
        let listener = transport.bind(&Address::to_bind(address).unwrap()).await.unwrap();
        let address = listener.address().clone();
        Self { address, task: tokio::spawn(server.serve(listener, std::future::pending())) }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn server_tls(certificate: &Certificate) -> ServerTls {
    let (chain, key) = certificate.pems();
    ServerTls::new(chain, key)
}

fn server(certificate: &Certificate) -> Tls {
    Tls::server(server_tls(certificate)).build().unwrap()
}

fn client(authority: &Authority) -> Tls {
    Tls::client(ClientTls::new(authority.pem())).build().unwrap()
}

fn client_as(authority: &Authority, certificate: &Certificate) -> Tls {
    let (chain, key) = certificate.pems();
    Tls::client(ClientTls::new(authority.pem()).certificate(chain, key)).build().unwrap()
}

fn over(network: &Memory, tls: ServerTls) -> Tls {
    Tls::server(tls).over(Arc::new(network.clone())).build().unwrap()
}

fn client_over(network: &Memory, tls: ClientTls) -> Tls {
    Tls::client(tls).over(Arc::new(network.clone())).build().unwrap()
}

/// One call, by a client of its own that tries once.
async fn ask(transport: impl Transport, address: &Address) -> Result<Option<String>, Error> {
    let list = StaticList::new([Instance::at(address.clone())]);
    let client =
        XClient::builder("Foo", list).transport(Arc::new(transport)).attempts(1).build().unwrap();
    let call = Call::new("Foo.Who").args(&()).unwrap().only(address.clone());
    client.send(call).await?.decode()
}

/// The text of a call that must not have been sent.
async fn refused(transport: impl Transport, address: &Address) -> String {
    let error = timeout(PATIENCE, ask(transport, address)).await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Unavailable, Execution::NotSent));
    error.to_string()
}

#[tokio::test]
async fn calls_go_over_tls_by_host_name_and_by_ip_address() {
    let authority = Authority::new("ours");
    let tls = server(&authority.issue(&["localhost", "127.0.0.1"]));
    let serving = Serving::on(&tls, "tls@127.0.0.1:0").await;
    assert_eq!(serving.address.protocol(), "tls");
    assert_eq!(ask(client(&authority), &serving.address).await.unwrap(), None);
    let port = serving.address.port().unwrap();
    let by_name = format!("tls@localhost:{port}").parse().unwrap();
    assert_eq!(ask(client(&authority), &by_name).await.unwrap(), None);

    // The stream tells what the server has proved.
    let stream = client(&authority).connect(&by_name).await.unwrap();
    assert_eq!(stream.peer().identity.as_deref(), Some("localhost"));
}

#[tokio::test]
async fn large_bodies_and_many_calls_go_over_tls() {
    let authority = Authority::new("ours");
    let tls = server(&authority.issue(&["127.0.0.1"]));
    let echo = Service::new("Foo").method("Echo", async |text: String| Ok::<_, Status>(text));
    let serving = Serving::of(&tls, "tls@127.0.0.1:0", Server::new().service(echo)).await;
    let list = StaticList::new([Instance::at(serving.address.clone())]);
    let client =
        XClient::builder("Foo", list).transport(Arc::new(client(&authority))).build().unwrap();
    let calls = (0..40_usize).map(|n| {
        let (client, text) = (client.clone(), "x".repeat(n * n * 700));
        tokio::spawn(async move {
            let back: String = client.call("Foo.Echo", &text).await.unwrap();
            assert_eq!(back.len(), text.len());
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn a_handler_sees_whom_the_certificate_names() {
    let (authority, clients) = (Authority::new("ours"), Authority::new("the clients'"));
    let network = Memory::new();
    let settings = server_tls(&authority.issue(&["foo.example.org"])).client_ca(clients.pem());
    let serving = Serving::on(&over(&network, settings), "tls@foo.example.org:7001").await;
    for (certificate, identity) in [
        (
            clients.issue(&["bar.example.org", "spiffe://example.org/bar"]),
            "spiffe://example.org/bar",
        ),
        (clients.issue(&["bar.example.org"]), "bar.example.org"),
        (clients.issue_to("bar, the client"), "bar, the client"),
    ] {
        let (chain, key) = certificate.pems();
        let settings = ClientTls::new(authority.pem()).certificate(chain, key);
        let asked = ask(client_over(&network, settings), &serving.address).await;
        assert_eq!(asked.unwrap().as_deref(), Some(identity));
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why_and_nothing_was_sent() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("not ours"));
    let certificate = authority.issue(&["127.0.0.1"]);
    let settings = server_tls(&certificate).client_ca(authority.pem());
    let tls = Tls::server(settings).build().unwrap();
    // A refusal comes after the client's own handshake: often enough to see a race.
    let serving = Serving::on(&tls, "tls@127.0.0.1:0").await;
    let at = &serving.address;
    for _ in 0..20 {
        let told = refused(client(&authority), at).await;
        assert!(told.contains("it asks for a client certificate"), "{told}");
    }
    let told = refused(client_as(&authority, &stranger.issue(&["bar"])), at).await;
    assert!(told.contains("it trusts no authority that has signed the certificate"), "{told}");
    let told = refused(client_as(&authority, &authority.issue_expired(&["bar"])), at).await;
    assert!(told.contains("the certificate shown to it has expired"), "{told}");
    let told = refused(client_as(&authority, &authority.issue_to_nobody()), at).await;
    assert!(told.contains("names nobody"), "{told}");
    let bar = ask(client_as(&authority, &authority.issue(&["bar"])), at).await;
    assert_eq!(bar.unwrap().as_deref(), Some("bar"));
}

#[tokio::test]
async fn clients_without_a_certificate_may_be_let_in_but_not_with_a_wrong_one() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("not ours"));
    let settings = server_tls(&authority.issue(&["127.0.0.1"]))
        .client_ca(authority.pem())
        .anonymous_clients(true);
    let serving = Serving::on(&Tls::server(settings).build().unwrap(), "tls@127.0.0.1:0").await;
    let at = &serving.address;
    assert_eq!(ask(client(&authority), at).await.unwrap(), None);
    let bar = ask(client_as(&authority, &authority.issue(&["bar"])), at).await;
    assert_eq!(bar.unwrap().as_deref(), Some("bar"));
    let told = refused(client_as(&authority, &stranger.issue(&["bar"])), at).await;
    assert!(told.contains("trusts no authority"), "{told}");
    let told = refused(client_as(&authority, &authority.issue_to_nobody()), at).await;
    assert!(told.contains("names nobody"), "{told}");
}

#[tokio::test]
async fn a_server_that_is_not_who_it_should_be_gets_no_call() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("not ours"));
    for (certificate, why) in [
        (stranger.issue(&["127.0.0.1"]), "no authority that is trusted here has signed it"),
        (authority.issue_expired(&["127.0.0.1"]), "it has expired"),
        (authority.issue(&["foo.example.org"]), "it is for foo.example.org, and not for 127.0.0.1"),
    ] {
        let serving = Serving::on(&server(&certificate), "tls@127.0.0.1:0").await;
        let told = refused(client(&authority), &serving.address).await;
        assert!(told.contains("the peer's certificate is refused"), "{told}");
        assert!(told.contains(why), "{told}");
    }

    // The name that must be proved can be set, so that one certificate serves many addresses.
    let serving = Serving::on(&server(&authority.issue(&["foo"])), "tls@127.0.0.1:0").await;
    let named = |name| Tls::client(ClientTls::new(authority.pem()).server_name(name)).build();
    assert_eq!(ask(named("foo").unwrap(), &serving.address).await.unwrap(), None);
    refused(named("bar").unwrap(), &serving.address).await;
    assert!(matches!(named("no name"), Err(TlsError::ServerName(_))));
}

#[tokio::test]
async fn the_wrong_protocol_on_a_port_is_named() {
    let authority = Authority::new("ours");
    let encrypted = Serving::on(&server(&authority.issue(&["127.0.0.1"])), "tls@127.0.0.1:0").await;
    let plain = Serving::on(&Net::default(), "tcp@127.0.0.1:0").await;
    let under = |protocol, address: &Address| {
        format!("{protocol}@{}", address.target()).parse::<Address>().unwrap()
    };

    let told = refused(Net::default(), &under("tcp", &encrypted.address)).await;
    assert!(told.contains("the server speaks TLS: its address is tls@host:port"), "{told}");
    let told = refused(client(&authority), &under("tls", &plain.address)).await;
    assert!(told.contains("the peer does not speak TLS"), "{told}");

    // The same for the registry.
    let http = HttpRegistry::new(&format!("http://{}", encrypted.address.target())).unwrap();
    let told = http.list(None).await.unwrap_err().to_string();
    assert!(told.contains("a registry that speaks TLS is named by https://"), "{told}");
    let registry =
        Net::default().bind(&Address::to_bind("tcp@127.0.0.1:0").unwrap()).await.unwrap();
    let url = format!("https://{}", registry.address().target());
    let serving = tokio::spawn(RegistryServer::new().serve(registry, std::future::pending()));
    let https = HttpRegistry::builder(&url).transport(Arc::new(client(&authority)));
    let told = https.build().unwrap().list(None).await.unwrap_err().to_string();
    assert!(told.contains("the peer does not speak TLS"), "{told}");
    serving.abort();
}

#[tokio::test]
async fn tls_passes_on_what_is_not_its_own_and_says_what_it_lacks() {
    let authority = Authority::new("ours");
    let certificate = authority.issue(&["127.0.0.1"]);
    let (server, client) = (server(&certificate), client(&authority));
    assert!(client.speaks("tls") && client.speaks("tcp") && !client.speaks("quic"));
    assert!(!server.speaks("tls") && server.speaks("tcp"));

    let plain = Serving::on(&server, "tcp@127.0.0.1:0").await;
    assert_eq!(plain.address.protocol(), "tcp");
    assert_eq!(ask(client.clone(), &plain.address).await.unwrap(), None);

    let address = Address::to_bind("tls@127.0.0.1:0").unwrap();
    let error = client.bind(&address).await.unwrap_err();
    assert!(error.to_string().contains("no certificate to listen with"), "{error}");
    let error = server.connect(&"tls@127.0.0.1:1".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("no authority to check servers by"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_holds_up_nobody_and_is_let_go() {
    let authority = Authority::new("ours");
    let network = Memory::new();
    let tls = over(&network, server_tls(&authority.issue(&["foo"])));
    let calls = Serving::of(&tls, "tls@foo:1", who().max_connections_per_host(3)).await;
    let at: Address = "tls@foo:2".parse().unwrap();
    let listener = tls.bind(&at).await.unwrap();
    let server = RegistryServer::builder().max_connections_per_host(3).build();
    let registry = tokio::spawn(server.serve(listener, std::future::pending()));

    let dialling = client_over(&network, ClientTls::new(authority.pem()));
    let https = HttpRegistry::builder("https://foo:2").transport(Arc::new(dialling.clone()));
    let https = https.build().unwrap();
    for (below, limit) in [("tcp@foo:1", 5), ("tcp@foo:2", 10)] {
        let start = Instant::now();
        let mut silent = [connect(&network, below).await, connect(&network, below).await];
        // Half a record, so that the server has begun to read.
        silent[1].write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        ask(dialling.clone(), &calls.address).await.unwrap();
        https.list(None).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        // Each of them holds a place from when it was accepted, and for no longer than the limit.
        for silent in &mut silent {
            assert_eq!(silent.read(&mut [0; 64]).await.unwrap(), 0);
        }
        let limit = Duration::from_secs(limit);
        assert!((limit..limit + Duration::from_secs(1)).contains(&start.elapsed()));
    }
    registry.abort();
}

#[tokio::test(start_paused = true)]
async fn connections_count_against_their_hosts_cap_before_they_are_established() {
    let authority = Authority::new("ours");
    let network = Memory::new();
    let tls = over(&network, server_tls(&authority.issue(&["foo"])));
    let serving = Serving::of(&tls, "tls@foo:1", who().max_connections_per_host(2)).await;
    let silent = [connect(&network, "tcp@foo:1").await, connect(&network, "tcp@foo:1").await];
    let dialling = client_over(&network, ClientTls::new(authority.pem()));
    refused(dialling.clone(), &serving.address).await;
    drop(silent);
    tokio::time::sleep(Duration::from_secs(1)).await;
    ask(dialling, &serving.address).await.unwrap();
}

/// A network in which `multi` has two addresses.
struct Multi(Memory);

#[async_trait]
impl Transport for Multi {
    fn speaks(&self, protocol: &str) -> bool {
        self.0.speaks(protocol)
    }

    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        self.0.connect(address).await
    }

    async fn resolve(&self, _: &Address) -> io::Result<Vec<Address>> {
        Ok(["tcp@10.0.0.8:1", "tcp@10.0.0.9:1"].map(|place| place.parse().unwrap()).into())
    }

    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        self.0.bind(address).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_proves_the_name_at_whatever_address_it_was_dialled() {
    let authority = Authority::new("ours");
    for (name, is_proved) in [("multi", true), ("10.0.0.9", false)] {
        let network = Memory::new();
        // It takes connections and says nothing.
        let _silent = network.bind(&"tcp@10.0.0.8:1".parse().unwrap()).await.unwrap();
        let tls = over(&network, server_tls(&authority.issue(&[name])));
        let _serving = Serving::on(&tls, "tls@10.0.0.9:1").await;
        let client = Tls::client(ClientTls::new(authority.pem())).over(Arc::new(Multi(network)));
        let client = client.build().unwrap();
        let start = Instant::now();
        let address = "tls@multi:1".parse().unwrap();
        match timeout(PATIENCE, client.connect(&address)).await {
            Ok(Ok(stream)) => {
                assert!(is_proved, "a certificate for {name}");
                assert_eq!(stream.peer().identity.as_deref(), Some("multi"));
                assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
            }
            _ => assert!(!is_proved, "a certificate for {name}"),
        }
    }
}

async fn connect(network: &Memory, address: &str) -> Stream {
    network.connect(&address.parse().unwrap()).await.unwrap()
}

/// Which certificate a new connection sees: the servers' names tell them apart.
async fn is_now(network: &Memory, authority: &Authority, address: &Address, name: &str) -> bool {
    let settings = ClientTls::new(authority.pem()).server_name(name);
    client_over(network, settings).connect(address).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn files_are_looked_at_again_and_broken_ones_are_not_used() {
    let authority = Authority::new("ours");
    let folder = Folder::new();
    let (chain, key) = (folder.file("cert.pem"), folder.file("key.pem"));
    authority.issue(&["first"]).write(&chain, &key);
    let network = Memory::new();
    let settings = ServerTls::new(Pem::file(&chain), Pem::file(&key));
    let tls = over(&network, settings);
    let serving = Serving::on(&tls, "tls@foo:1").await;
    let at = &serving.address;
    let long_lived = ClientTls::new(authority.pem()).server_name("first");
    let long_lived = XClient::builder("Foo", StaticList::new([Instance::at(at.clone())]))
        .transport(Arc::new(client_over(&network, long_lived)))
        .build()
        .unwrap();
    long_lived.call::<_, Option<String>>("Foo.Who", &()).await.unwrap();

    let second = authority.issue(&["second"]);
    second.write(&chain, &key);
    // Within the interval nothing is read.
    assert!(is_now(&network, &authority, at, "first").await);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(is_now(&network, &authority, at, "second").await);
    assert!(!is_now(&network, &authority, at, "first").await);
    assert_eq!((tls.stats().reloads, tls.stats().failed_reloads), (1, 0));
    // What was open lives on.
    long_lived.call::<_, Option<String>>("Foo.Who", &()).await.unwrap();

    // A key that belongs to another certificate, as in the midst of a rotation.
    std::fs::write(&chain, authority.issue(&["third"]).chain).unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(is_now(&network, &authority, at, "second").await);
    let stats = tls.stats();
    assert_eq!((stats.reloads, stats.failed_reloads), (1, 1));
    let told = stats.last_error.unwrap();
    assert!(told.contains("key.pem does not belong to the certificate in"), "{told}");
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(tls.reload().await, Err(TlsError::Unreadable { .. })));
    assert!(is_now(&network, &authority, at, "second").await);

    // And without waiting.
    authority.issue(&["third"]).write(&chain, &key);
    tls.reload().await.unwrap();
    assert!(is_now(&network, &authority, at, "third").await);
    let stats = tls.stats();
    assert_eq!((stats.reloads, stats.failed_reloads, stats.last_error), (2, 2, None));
    tls.reload().await.unwrap();
    assert_eq!(tls.stats().reloads, 2, "the same bytes are no news");
}

#[tokio::test(start_paused = true)]
async fn authorities_and_client_certificates_are_looked_at_again_too() {
    let (old, new) = (Authority::new("the old one"), Authority::new("the new one"));
    let folder = Folder::new();
    let file = |name| folder.file(name);
    let write = |authority: &Authority| {
        std::fs::write(file("ca.pem"), authority.text()).unwrap();
        authority.issue(&["foo"]).write(&file("cert.pem"), &file("key.pem"));
        authority.issue(&["bar"]).write(&file("client.pem"), &file("client.key"));
    };
    let pem = |name| Pem::file(file(name));
    write(&old);
    let network = Memory::new();
    let settings = ServerTls::new(pem("cert.pem"), pem("key.pem")).client_ca(pem("ca.pem"));
    let tls = over(&network, settings);
    let serving = Serving::on(&tls, "tls@foo:1").await;
    let settings = ClientTls::new(pem("ca.pem")).certificate(pem("client.pem"), pem("client.key"));
    let dialling = client_over(&network, settings);
    assert!(ask(dialling.clone(), &serving.address).await.is_ok());
    write(&new);
    tls.reload().await.unwrap();
    assert!(ask(dialling.clone(), &serving.address).await.is_err());
    dialling.reload().await.unwrap();
    let asked = ask(dialling.clone(), &serving.address).await;
    assert_eq!(asked.unwrap().as_deref(), Some("bar"));
}

#[tokio::test]
async fn what_cannot_be_used_is_told_by_file_and_without_its_contents() {
    let authority = Authority::new("ours");
    let folder = Folder::new();
    let good = authority.issue(&["foo"]);
    let (chain, key) = (folder.file("cert.pem"), folder.file("key.pem"));
    let build = |chain: &str, key: &str, files: &Folder| {
        let (at, of) = (files.file("cert.pem"), files.file("key.pem"));
        std::fs::write(&at, chain).unwrap();
        std::fs::write(&of, key).unwrap();
        let built = Tls::server(ServerTls::new(Pem::file(at), Pem::file(of))).build();
        built.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(build(&good.chain, &good.key, &folder), Ok(()));
    let (chain, key) = (chain.display(), key.display());
    let cut = &good.key[..good.key.len() / 2];
    for (given_chain, given_key, told) in [
        ("", &*good.key, format!("{chain} holds no certificate")),
        (&*good.key, &*good.key, format!("{chain} holds no certificate")),
        (&*good.chain, "", format!("{key} holds no private key")),
        (&*good.chain, &*good.chain, format!("{key} holds no private key")),
        (&*good.chain, cut, format!("{key} cannot be used: a section has no end")),
    ] {
        assert_eq!(build(given_chain, given_key, &folder), Err(told));
    }
    let other = authority.issue(&["foo"]);
    let told = build(&good.chain, &other.key, &folder).unwrap_err();
    assert_eq!(told, format!("the key in {key} does not belong to the certificate in {chain}"));

    let missing = Tls::client(ClientTls::new(Pem::file(folder.file("missing.pem")))).build();
    let told = missing.unwrap_err().to_string();
    assert!(told.contains("missing.pem cannot be read"), "{told}");
    let endless = Tls::client(ClientTls::new(Pem::file("/dev/zero"))).build();
    assert!(endless.unwrap_err().to_string().contains("larger than 1 MiB"));

    let (chain, key) = good.pems();
    let tls = Tls::server(ServerTls::new(chain, key)).build().unwrap();
    let shown = format!("{tls:?}");
    assert!(shown.contains("bytes)") && !shown.contains("BEGIN"), "{shown}");
}

#[tokio::test]
async fn a_registry_over_https_registers_lists_and_is_watched() {
    let authority = Authority::new("ours");
    let tls = Tls::server(server_tls(&authority.issue(&["127.0.0.1"])).client_ca(authority.pem()))
        .client({
            let (chain, key) = authority.issue(&["spiffe://example.org/foo"]).pems();
            ClientTls::new(authority.pem()).certificate(chain, key)
        })
        .build()
        .unwrap();
    let listener: Listener = tls.bind(&Address::to_bind("tls@127.0.0.1:0").unwrap()).await.unwrap();
    let url = format!("https://{}/srpc/registry", listener.address().target());
    let registry = tokio::spawn(RegistryServer::new().serve(listener, std::future::pending()));
    let https = HttpRegistry::builder(&url).transport(Arc::new(tls.clone())).build().unwrap();

    let mut watch = https.watch(&"Foo".parse().unwrap()).unwrap();
    let set = |update| match update {
        Some(Ok(Update::Set(resolved))) => resolved.instances,
        other => panic!("{other:?}"),
    };
    assert!(set(timeout(PATIENCE, watch.next()).await.unwrap()).is_empty());
    let registrar = Registrar::new(Arc::new(https.clone()));
    let serving = Serving::of(&tls, "tls@127.0.0.1:0", who().registrar(registrar)).await;
    let found = set(timeout(PATIENCE, watch.next()).await.unwrap());
    assert_eq!(found[0].address, serving.address);

    let client = XClient::builder("Foo", https).transport(Arc::new(tls)).build().unwrap();
    client.resolver().ready(PATIENCE).await.unwrap();
    let who: Option<String> = client.call("Foo.Who", &()).await.unwrap();
    assert_eq!(who.as_deref(), Some("spiffe://example.org/foo"));

    // Without a certificate the registry says why.
    let anonymous = Tls::client(ClientTls::new(authority.pem())).build().unwrap();
    let refused = HttpRegistry::builder(&url).transport(Arc::new(anonymous)).build().unwrap();
    let told = refused.list(None).await.unwrap_err().to_string();
    assert!(told.contains("it asks for a client certificate"), "{told}");
    registry.abort();
}

#[test]
fn https_without_tls_says_what_is_missing() {
    let error = HttpRegistry::new("https://registry.example.org").unwrap_err().to_string();
    assert!(error.contains("the feature `tls`"), "{error}");
    assert!(error.contains("HttpRegistryBuilder::transport"), "{error}");
}
