//! A network in memory: for tests, examples and simulation, without ports.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{Accept, Listener, Peer, Stream, Transport};
use crate::instance::Address;
use crate::sync::Mutex;

/// What one direction of a connection holds before its writer waits, in bytes.
const CAPACITY: usize = 64 * 1024;
/// How many connections wait to be accepted before connecting waits.
const BACKLOG: usize = 128;

/// A network in memory. Clones are the same network; two values are two networks.
///
/// It speaks `mem@name` and also `tcp@host:port`, so that what is tested here is what runs on
/// sockets; port 0 is given a number of its own.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    bound: Arc<Mutex<HashMap<String, mpsc::Sender<Stream>>>>,
    next_port: Arc<AtomicU64>,
}

impl Memory {
    /// A network of its own.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Transport for Memory {
    fn speaks(&self, protocol: &str) -> bool {
        matches!(protocol, "mem" | "tcp")
    }

    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        let listener = self.bound.lock().get(&*address.identity()).cloned();
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens there");
        let listener = listener.ok_or_else(refused)?;
        let (ours, theirs) = tokio::io::duplex(CAPACITY);
        let theirs = Stream::new(theirs, Peer::new("memory"));
        listener.send(theirs).await.map_err(|_| refused())?;
        Ok(Stream::new(ours, Peer::new("memory")))
    }

    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        let address = match (address.host(), address.port()) {
            (Some(_), Some(0)) => {
                let (host, _) = address.target().rsplit_once(':').unwrap_or_default();
                let port = 10_000 + self.next_port.fetch_add(1, Relaxed) % 50_000;
                format!("{}@{host}:{port}", address.protocol())
                    .parse()
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?
            }
            _ => address.clone(),
        };
        let (sender, connections) = mpsc::channel(BACKLOG);
        let mut bound = self.bound.lock();
        if bound.get(&*address.identity()).is_some_and(|listener| !listener.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        bound.insert(address.identity().into_owned(), sender);
        Ok(Listener::new(Accepting { connections }, address).in_process())
    }
}

struct Accepting {
    /// Its closing is what makes a later `connect` fail.
    connections: mpsc::Receiver<Stream>,
}

#[async_trait]
impl Accept for Accepting {
    async fn accept(&mut self) -> io::Result<Stream> {
        self.connections.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}
