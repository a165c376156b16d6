//! The processes of a drill: one or two registries, five servers, four clients.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Fallible;
use crate::child::Child;
use crate::clock::Clock;
use crate::netns::Network;
use crate::roles::{Answering, Client, Registry, Role, Server};

pub(crate) const SERVERS: usize = 5;
pub(crate) const CLIENTS: usize = 4;
/// The first two clients say of their calls that a second execution does no harm, the others not.
pub(crate) const IDEMPOTENT: usize = 2;

/// Where the ledger of a client is.
pub(crate) fn client_ledger(dir: &Path, client: usize) -> PathBuf {
    dir.join(format!("client-{client}.ledger"))
}

/// The numbers of the hosts in a network of the drill's own.
fn host_of_server(slot: usize) -> usize {
    11 + slot
}

fn host_of_client(client: usize) -> usize {
    21 + client
}

fn host_of_registry(registry: usize) -> usize {
    1 + registry
}

/// A server and where it listens, as `host:port`.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) address: String,
}

/// What a client sees: whether its list is fresh, and how many calls each server has answered it.
#[derive(Clone, Debug)]
struct View {
    fresh: bool,
    answered: HashMap<String, u64>,
}

/// The processes of a drill. Dropping it kills all of them, and then deletes their network.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
    zero: u64,
    pub(crate) clock: Clock,
    /// Each is `None` only while it is being replaced.
    registries: Vec<Option<Child>>,
    /// Where each registry listens, as `tcp@host:port`, so that the next one takes its place.
    binds: Vec<String>,
    servers: Vec<Option<Running>>,
    pub(crate) clients: Vec<Child>,
    /// How many servers and registries were started, so that no file is written twice.
    started: usize,
    /// What ended without being told to, or not as it should.
    pub(crate) accidents: Vec<String>,
    network: Option<Network>,
}

impl Cluster {
    /// Starts everything; no calls are made yet.
    pub(crate) async fn start(
        dir: &Path,
        zero: u64,
        network: Option<Network>,
        registries: usize,
        blind_retry: bool,
    ) -> Fallible<Self> {
        let mut cluster = Self {
            dir: dir.to_owned(),
            zero,
            clock: Clock::since(zero),
            registries: (0..registries).map(|_| None).collect(),
            binds: (0..registries).map(|n| bind(network.as_ref(), host_of_registry(n))).collect(),
            servers: Vec::new(),
            clients: Vec::new(),
            started: 0,
            accidents: Vec::new(),
            network,
        };
        for registry in 0..registries {
            cluster.start_registry(registry).await?;
        }
        for slot in 0..SERVERS {
            let server = cluster.start_server(slot, None).await?;
            cluster.servers.push(Some(server));
        }
        for client in 0..CLIENTS {
            let idempotent = client < IDEMPOTENT;
            let role = Role::Client(Client {
                registry: cluster.urls(),
                number: client,
                idempotent,
                blind_retry: blind_retry && !idempotent,
                ledger: client_ledger(dir, client),
            });
            let child =
                cluster.spawn(&format!("client-{client}"), &role, host_of_client(client))?;
            cluster.clients.push(child);
        }
        for client in &mut cluster.clients {
            client.says("ready").await?;
        }
        Ok(cluster)
    }

    /// Waits until every registry and all clients know exactly the servers that run, and each of these
    /// has answered each client since; tells how long that took, `None` if it did not within the
    /// limit, and what was the last to be lacking.
    pub(crate) async fn whole(&mut self, limit: Duration) -> Fallible<(Option<Duration>, String)> {
        let started = Instant::now();
        let mut before = vec![None; CLIENTS];
        let mut last = String::new();
        while started.elapsed() < limit {
            match self.lacks(&mut before).await? {
                None => return Ok((Some(started.elapsed()), last)),
                Some(lacks) => last = lacks,
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok((None, last))
    }

    /// What keeps the cluster from being whole. `before` holds what each client has said at first.
    async fn lacks(&mut self, before: &mut [Option<View>]) -> Fallible<Option<String>> {
        let addresses = self.addresses();
        let mut lacks = None;
        for registry in self.registries.iter_mut().flatten() {
            let listed = registry.ask("list").await?;
            if listed != SERVERS.to_string() {
                lacks = Some(format!("{} lists {listed}", registry.name));
            }
        }
        for (client, before) in self.clients.iter_mut().zip(before) {
            let view = View::parse(&client.ask("look").await?);
            let lack = view.lacks(&addresses, before.as_ref());
            lacks = lacks.or(lack.map(|lack| format!("{} {lack}", client.name)));
            before.get_or_insert(view);
        }
        Ok(lacks)
    }

    /// Where the servers listen, by their slots.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.servers.iter().flatten().map(|server| server.address.clone()).collect()
    }

    pub(crate) fn server(&mut self, slot: usize) -> Fallible<&mut Running> {
        Ok(self.servers.get_mut(slot).and_then(Option::as_mut).ok_or("there is no such server")?)
    }

    /// Gives an order to every server and tells what each answered.
    pub(crate) async fn tell_servers(&mut self, order: &str) -> Fallible<Vec<String>> {
        let mut answers = Vec::new();
        for server in self.servers.iter_mut().flatten() {
            answers.push(server.child.ask(order).await?);
        }
        Ok(answers)
    }

    /// Takes a server away; `start_in` puts another one into its place.
    pub(crate) fn take(&mut self, slot: usize) -> Fallible<Running> {
        let server = self.servers.get_mut(slot).and_then(Option::take);
        Ok(server.ok_or("there is no such server")?)
    }

    /// Starts a server in an empty place, at another port, and waits until it is registered.
    pub(crate) async fn start_in(&mut self, slot: usize) -> Fallible<()> {
        let server = self.start_server(slot, None).await?;
        self.servers[slot] = Some(server);
        Ok(())
    }

    /// Starts another server at the address of one that runs, waits until it is registered, and returns the
    /// one that was there.
    pub(crate) async fn start_beside(&mut self, slot: usize) -> Fallible<Running> {
        let address = format!("tcp@{}", self.server(slot)?.address);
        let server = self.start_server(slot, Some(address)).await?;
        self.server(slot).map(|running| std::mem::replace(running, server))
    }

    /// Starts a client that was not there before, and tells what it would call once it has its first list.
    pub(crate) async fn ask_new_client(&mut self) -> Fallible<Vec<String>> {
        self.started += 1;
        let name = format!("new-client-{}", self.started);
        let role = Role::Client(Client {
            registry: self.urls(),
            number: CLIENTS,
            idempotent: true,
            blind_retry: false,
            ledger: self.dir.join(format!("{name}.ledger")),
        });
        let mut client = self.spawn(&name, &role, host_of_client(0))?;
        client.says("ready").await?;
        let view = View::parse(&client.ask("look").await?);
        client.ask("stop").await?;
        let status = client.ended().await?;
        if !status.success() {
            return Err(format!("{name}: {status}").into());
        }
        Ok(view.answered.into_keys().collect())
    }

    /// What each client would call now.
    pub(crate) async fn called_by_clients(&mut self) -> Fallible<Vec<Vec<String>>> {
        let mut called = Vec::new();
        for client in &mut self.clients {
            let view = View::parse(&client.ask("look").await?);
            called.push(view.answered.into_keys().collect());
        }
        Ok(called)
    }

    /// How many servers each registry lists.
    pub(crate) async fn listed(&mut self) -> Fallible<Vec<String>> {
        self.tell_registries("list").await
    }

    /// Who each registry lists at an address, as `ID HEALTH`.
    pub(crate) async fn holders(&mut self, address: &str) -> Fallible<Vec<String>> {
        self.tell_registries(&format!("holder {address}")).await
    }

    pub(crate) fn registries(&self) -> usize {
        self.registries.len()
    }

    pub(crate) async fn kill_registry(&mut self, registry: usize) -> Fallible<()> {
        match self.registries.get_mut(registry).and_then(Option::take) {
            Some(registry) => registry.kill().await,
            None => Ok(()),
        }
    }

    /// Starts a registry that knows nothing, on the port of the one before.
    pub(crate) async fn start_registry(&mut self, registry: usize) -> Fallible<()> {
        self.started += 1;
        let role = Role::Registry(Registry { bind: self.binds[registry].clone() });
        let name = format!("registry-{}-{}", registry + 1, self.started);
        let mut child = self.spawn(&name, &role, host_of_registry(registry))?;
        self.binds[registry] = child.says("listening").await?;
        self.registries[registry] = Some(child);
        Ok(())
    }

    /// Gives an order to every registry and tells what each answered.
    pub(crate) async fn tell_registries(&mut self, order: &str) -> Fallible<Vec<String>> {
        let mut answers = Vec::new();
        for registry in self.registries.iter_mut().flatten() {
            answers.push(registry.ask(order).await?);
        }
        Ok(answers)
    }

    /// Puts something else at the addresses of all registries, or the registries themselves.
    pub(crate) async fn registries_answer(&mut self, answering: Answering) -> Fallible<()> {
        self.tell_registries(answering.name()).await.map(|_| ())
    }

    pub(crate) async fn signal_registry(&mut self, registry: usize, signal: &str) -> Fallible<()> {
        let registry = self.registries.get(registry).and_then(Option::as_ref);
        registry.ok_or("there is no such registry")?.signal(signal).await
    }

    /// Makes what a server sends to the registries, and the other way round, vanish.
    pub(crate) fn cut_from_registries(&mut self, slot: usize) -> Fallible<()> {
        let network = self.network.as_mut().ok_or(NO_NETWORK)?;
        for registry in 0..self.registries.len() {
            network.cut(host_of_server(slot), host_of_registry(registry))?;
            network.cut(host_of_registry(registry), host_of_server(slot))?;
        }
        Ok(())
    }

    /// Makes what clients send to a server vanish.
    pub(crate) fn cut_requests(&mut self, slot: usize) -> Fallible<()> {
        let network = self.network.as_mut().ok_or(NO_NETWORK)?;
        (0..CLIENTS)
            .try_for_each(|client| Ok(network.cut(host_of_client(client), host_of_server(slot))?))
    }

    /// Makes what a server sends to clients vanish.
    pub(crate) fn cut_replies(&mut self, slot: usize) -> Fallible<()> {
        let network = self.network.as_mut().ok_or(NO_NETWORK)?;
        (0..CLIENTS)
            .try_for_each(|client| Ok(network.cut(host_of_server(slot), host_of_client(client))?))
    }

    /// Ends every cut.
    pub(crate) fn heal(&mut self) -> Fallible<()> {
        Ok(self.network.as_mut().ok_or(NO_NETWORK)?.heal()?)
    }

    /// Starts the load.
    pub(crate) async fn start_load(&mut self) -> Fallible<()> {
        for client in &mut self.clients {
            client.ask("start").await?;
        }
        Ok(())
    }

    /// Ends the load once every call has its outcome, and the servers by draining them.
    pub(crate) async fn stop(mut self) -> Fallible<Vec<String>> {
        let mut accidents = std::mem::take(&mut self.accidents);
        let servers = self.servers.iter_mut().flatten().map(|server| &mut server.child);
        for child in servers.chain(&mut self.clients).chain(self.registries.iter_mut().flatten()) {
            if let Some(status) = child.has_ended() {
                accidents.push(format!("{} has ended by itself: {status}", child.name));
            }
        }
        for mut client in std::mem::take(&mut self.clients) {
            let name = client.name.clone();
            client.ask("stop").await?;
            let status = client.ended().await?;
            if !status.success() {
                accidents.push(format!("{name}: {status}"));
            }
        }
        let servers: Vec<_> = self.servers.iter_mut().filter_map(Option::take).collect();
        for server in &servers {
            server.child.signal("TERM").await?;
        }
        for server in servers {
            let name = server.child.name.clone();
            let status = server.child.ended().await?;
            if !status.success() {
                accidents.push(format!("{name}: {status}"));
            }
        }
        for registry in 0..self.registries.len() {
            self.kill_registry(registry).await?;
        }
        Ok(accidents)
    }

    /// Starts a server, at a port of the system's choice unless an address is given.
    async fn start_server(&mut self, slot: usize, address: Option<String>) -> Fallible<Running> {
        self.started += 1;
        let name = format!("server-{}-{}", slot + 1, self.started);
        let host = host_of_server(slot);
        let role = Role::Server(Server {
            registry: self.urls(),
            bind: address.unwrap_or_else(|| bind(self.network.as_ref(), host)),
            ledger: self.dir.join(format!("{name}.ledger")),
        });
        let mut child = self.spawn(&name, &role, host)?;
        let address = child.says("listening").await?;
        let address = address.trim_start_matches("tcp@").to_owned();
        child.says("registered").await?;
        Ok(Running { child, address })
    }

    fn spawn(&self, name: &str, role: &Role, host: usize) -> Fallible<Child> {
        let network = self.network.as_ref().map(|network| (network, host));
        Child::start(name, role, self.zero, &self.dir, network)
    }

    fn urls(&self) -> String {
        let url =
            |bind: &String| format!("http://{}/srpc/registry", bind.trim_start_matches("tcp@"));
        self.binds.iter().map(url).collect::<Vec<_>>().join(",")
    }
}

impl View {
    fn parse(said: &str) -> Self {
        let mut words = said.split(' ');
        let fresh = words.next() == Some("ready");
        let pairs = words.filter_map(|word| word.split_once('='));
        let counted =
            |(server, count): (&str, &str)| Some((server.to_owned(), count.parse().ok()?));
        Self { fresh, answered: pairs.filter_map(counted).collect() }
    }

    /// What keeps it from using all of these servers and no other. Before there is a view to compare
    /// with, no server has answered since.
    fn lacks(&self, servers: &[String], before: Option<&Self>) -> Option<String> {
        if !self.fresh {
            return Some("has a stale list".to_owned());
        }
        if self.answered.len() != servers.len() {
            return Some(format!("would call {} servers", self.answered.len()));
        }
        let Some(before) = before else { return Some("was asked only once".to_owned()) };
        let silent = |server: &&String| {
            let now = self.answered.get(*server).copied().unwrap_or_default();
            now == before.answered.get(*server).copied().unwrap_or_default()
        };
        servers.iter().find(silent).map(|server| format!("has no answer of {server}"))
    }
}

const NO_NETWORK: &str = "there is no network of the drill's own";

/// The hosts that a network of the drill's own must have.
pub(crate) fn hosts(registries: usize) -> Vec<usize> {
    let servers = (0..SERVERS).map(host_of_server);
    let registries = (0..registries).map(host_of_registry);
    registries.chain(servers).chain((0..CLIENTS).map(host_of_client)).collect()
}

fn bind(network: Option<&Network>, host: usize) -> String {
    match network {
        Some(network) => format!("tcp@{}:0", network.host(host)),
        None => "tcp@127.0.0.1:0".to_owned(),
    }
}
