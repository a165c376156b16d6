//! The registry, behind a gate that can answer in its place.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use srpc::Listener;
use srpc::backend::http::RegistryServer;
use srpc::backend::memory::MemoryRegistry;
use srpc::instance::{Health, Instance, ServiceName};
use srpc::registry::HealthOverride;
use srpc::transport::{Memory, Stream, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::orders::orders;
use super::{SERVICE, TTL};

/// A registry to be run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Registry {
    /// Where it listens: the port is 0 unless it takes the place of one that was killed.
    pub(crate) bind: String,
}

/// What stands at the registry's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answering {
    /// The registry itself.
    Registry,
    Error500,
    /// Bytes that are no HTTP, JSON that is cut short, and JSON of something else.
    Garbage,
    /// `[]`, as JSON.
    Nobody,
    Html,
    /// Nothing: it accepts, reads, and is silent.
    Hanging,
}

impl Answering {
    pub(crate) const ALL: [Self; 6] =
        [Self::Registry, Self::Error500, Self::Garbage, Self::Nobody, Self::Html, Self::Hanging];

    /// Its name as an order.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Error500 => "500",
            Self::Garbage => "garbage",
            Self::Nobody => "empty",
            Self::Html => "html",
            Self::Hanging => "hang",
        }
    }
}

impl Registry {
    pub(super) async fn run(self) -> Result<(), Box<dyn Error>> {
        let mut orders = orders();
        let mut gate = Listener::bind(&self.bind).await?;
        let inside = Memory::new();
        let state = MemoryRegistry::builder().default_ttl(Some(TTL)).warming(true).build();
        let registry = RegistryServer::builder().registry(state.clone()).build();
        let listener = inside.bind(&"mem@registry".parse()?).await?;
        println!("listening {}", gate.address());

        let (answering, _) = watch::channel(Answering::Registry);
        let service = SERVICE.parse()?;
        let mut guests = JoinSet::new();
        let mut serving = tokio::spawn(registry.serve(listener, std::future::pending()));
        let mut accepted = 0_usize;
        loop {
            tokio::select! {
                stream = gate.accept() => match stream {
                    Ok(stream) => {
                        accepted += 1;
                        guests.spawn(host(stream, inside.clone(), answering.subscribe(), accepted));
                    }
                    Err(_) => sleep(Duration::from_millis(10)).await,
                },
                Some(_) = guests.join_next() => {}
                served = &mut serving => {
                    served??;
                    return Err("the registry has ended".into());
                }
                Some(order) = orders.recv() => {
                    if let Some(address) = order.words.strip_prefix("holder ") {
                        order.answer(&holder(&state, &service, address));
                    } else if order.words == "list" {
                        let listed = state.list(Some(&service)).entries.len();
                        order.answer(&listed.to_string());
                    } else if let Some((health, address)) = override_of(&order.words) {
                        let is_set = set_health(&state, &service, address, health);
                        order.answer(if is_set { "done" } else { "it is not listed" });
                    } else {
                        let named = |it: &Answering| it.name() == order.words;
                        let it = Answering::ALL.into_iter().find(named).ok_or("unknown order")?;
                        answering.send_replace(it);
                        order.answer("done");
                    }
                }
            }
        }
    }
}

/// What an operator says of the server at an address: `drain HOST:PORT`, `undrain HOST:PORT`.
fn override_of(words: &str) -> Option<(Health, &str)> {
    match words.split_once(' ')? {
        ("drain", address) => Some((Health::Draining, address)),
        ("undrain", address) => Some((Health::Up, address)),
        _ => None,
    }
}

/// The id of the server that is listed at an address, and its health.
fn holder(state: &MemoryRegistry, service: &ServiceName, address: &str) -> String {
    let listed = state.list(Some(service));
    let instances = listed.entries.iter().map(|entry| &entry.instance);
    let at = instances.filter(|instance| instance.address.target() == address);
    let said: Vec<_> = at.map(|instance| format!("{} {}", instance.id, instance.health)).collect();
    said.join(", ")
}

/// False: no server is listed at that address.
fn set_health(
    state: &MemoryRegistry,
    service: &ServiceName,
    address: &str,
    health: Health,
) -> bool {
    let listed = state.list(Some(service));
    let named = |instance: &&Instance| instance.address.target() == address;
    let instance = listed.entries.iter().map(|entry| &entry.instance).find(named);
    instance.is_some_and(|instance| {
        let word = HealthOverride::new(health).by("the drill").reason("a row");
        state.set_health(service, &instance.id, word)
    })
}

/// Serves one connection, until something else is to stand here.
async fn host(
    mut stream: Stream,
    inside: Memory,
    mut answering: watch::Receiver<Answering>,
    number: usize,
) {
    let now = *answering.borrow_and_update();
    let serving = async {
        match now {
            Answering::Registry => {
                let Ok(address) = "mem@registry".parse() else { return };
                let inside: Arc<dyn Transport> = Arc::new(inside);
                if let Ok(mut registry) = inside.connect(&address).await {
                    // How a connection ends is its client's affair.
                    let _ = copy_bidirectional(&mut stream, &mut registry).await;
                }
            }
            Answering::Hanging => {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            }
            other => {
                let mut request = [0; 16 * 1024];
                let _ = timeout(Duration::from_secs(1), stream.read(&mut request)).await;
                let _ = stream.write_all(instead(other, number).as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    };
    tokio::select! {
        () = serving => {}
        _ = answering.changed() => {}
    }
}

/// What is answered in the registry's place.
fn instead(answering: Answering, number: usize) -> String {
    let http = |status: &str, content_type: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )
    };
    match answering {
        Answering::Error500 => http("500 Internal Server Error", "text/plain", "out of order"),
        Answering::Nobody => http("200 OK", "application/json", "[]"),
        Answering::Html => {
            http("200 OK", "text/html", "<!doctype html><title>Welcome</title><p>It works!</p>")
        }
        _ => match number % 3 {
            0 => "\u{1}\u{2}\u{3}\0\u{7f}SSH-2.0-nonsense\r\n\r\n".to_owned(),
            1 => http("200 OK", "application/json", r#"{"revision":"x-1","instances":[{"id":"#),
            _ => http("200 OK", "application/json", r#"{"status":"fine","items":7}"#),
        },
    }
}
