//! Connections of the simulated network, as a transport.

use std::io;

use async_trait::async_trait;
use srpc::Address;
use srpc::transport::{Accept, Listener, Peer, Stream, Transport};
use turmoil::net::{TcpListener, TcpStream};

/// The simulated network as seen by the host that runs now.
pub(crate) struct Simulated;

#[async_trait]
impl Transport for Simulated {
    fn speaks(&self, protocol: &str) -> bool {
        protocol == "tcp"
    }

    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        let stream = TcpStream::connect(address.target()).await?;
        let host = stream.peer_addr()?.ip().to_string();
        Ok(Stream::new(stream, Peer::new(host)))
    }

    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        let port = address.port().unwrap_or(0);
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        Ok(Listener::new(Accepting(listener), address.clone()))
    }
}

struct Accepting(TcpListener);

#[async_trait]
impl Accept for Accepting {
    async fn accept(&mut self) -> io::Result<Stream> {
        let (stream, from) = self.0.accept().await?;
        Ok(Stream::new(stream, Peer::new(from.ip().to_string())))
    }
}
