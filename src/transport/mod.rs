//! Bytes in, bytes out: the only place that opens sockets.

mod budget;
mod dial;
mod memory;
mod net;
mod open_files;
mod pending;
mod read;
mod refusals;
mod slots;
#[cfg(feature = "tls")]
mod tls;
mod write;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) use self::budget::{
    Budget, CHARGE_STEP, Charge, HoldsMemory, Stuck, close_stuck_connections,
};
pub(crate) use self::dial::dial;
pub use self::memory::Memory;
pub use self::net::Net;
#[cfg(feature = "reqwest")]
pub(crate) use self::net::lookup;
pub(crate) use self::open_files::{ConnectionCaps, is_out_of_files};
use self::pending::{Pending, Unestablished};
pub(crate) use self::read::read_some;
pub(crate) use self::refusals::Refusals;
#[cfg(feature = "http")]
pub(crate) use self::slots::Entered;
pub(crate) use self::slots::{ConnectionSlot, ConnectionSlots, Evictable, ReachedCap};
#[cfg(feature = "tls")]
pub use self::tls::{ClientTls, Pem, ServerTls, Tls, TlsBuilder, TlsError, TlsStats};
pub(crate) use self::write::{IdleWriter, write_some};
use crate::instance::Address;

/// A way to open and accept connections: real sockets ([`Net`]), or a network in memory
/// ([`Memory`]).
///
/// # Cancellation
/// Dropping `connect` closes what it opened; dropping `bind` leaves nothing bound.
///
/// # Implementing
/// Put `#[srpc::async_trait]` on the `impl`.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Whether it speaks an address's protocol; instances at other addresses are skipped.
    fn speaks(&self, protocol: &str) -> bool;

    /// Opens a connection. No timeout of its own: the caller has one.
    async fn connect(&self, address: &Address) -> io::Result<Stream>;

    /// The places that an address stands for, such as all IP addresses of a host name, in the order
    /// in which they are to be tried. Default: the address itself.
    async fn resolve(&self, address: &Address) -> io::Result<Vec<Address>> {
        Ok(vec![address.clone()])
    }

    /// Opens a connection for `address` at `place`, one of those that [`resolve`](Self::resolve)
    /// told. What is proved there, such as a certificate's name, is still the address's. Default:
    /// connects to the place.
    async fn connect_at(&self, address: &Address, place: &Address) -> io::Result<Stream> {
        let _ = address;
        self.connect(place).await
    }

    /// Binds an address, whose port may be 0; the listener tells the one it got.
    async fn bind(&self, address: &Address) -> io::Result<Listener>;
}

#[async_trait]
impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn speaks(&self, protocol: &str) -> bool {
        (**self).speaks(protocol)
    }

    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        (**self).connect(address).await
    }

    async fn resolve(&self, address: &Address) -> io::Result<Vec<Address>> {
        (**self).resolve(address).await
    }

    async fn connect_at(&self, address: &Address, place: &Address) -> io::Result<Stream> {
        (**self).connect_at(address, place).await
    }

    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        (**self).bind(address).await
    }
}

/// What a stream is made of.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// One open connection.
pub struct Stream {
    io: Box<dyn Io>,
    peer: Peer,
    /// What must be done before it carries bytes, such as a handshake of TLS; `None`: nothing.
    pending: Option<Pending>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Peer {
    /// The address it comes from, as text without a port: what caps per address count. Empty where
    /// there is none (unix sockets).
    pub host: Arc<str>,
    /// Who it proved to be (TLS): a client by its certificate, a server the name it was asked for.
    /// `None` where the transport proves nothing, and for a client without a certificate.
    pub identity: Option<Arc<str>>,
}

impl Peer {
    /// A peer at this host, unproven.
    pub fn new(host: impl Into<Arc<str>>) -> Self {
        Self { host: host.into(), identity: None }
    }

    /// What caps count by: its host, and of an IPv6 address the network, of which one machine may
    /// have all 2^64 addresses.
    pub fn account(&self) -> Arc<str> {
        let Ok(address) = self.host.parse::<IpAddr>() else { return Arc::clone(&self.host) };
        match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                let network = Ipv6Addr::from(u128::from(address) & (u128::MAX << 64));
                format!("{network}/64").into()
            }
            canonical if canonical != address => canonical.to_string().into(),
            _ => Arc::clone(&self.host),
        }
    }
}

impl Stream {
    /// Wraps an open connection.
    pub fn new(io: impl Io, peer: Peer) -> Self {
        Self { io: Box::new(io), peer, pending: None }
    }

    /// A connection that was accepted and is not yet open: `open` makes it so, and tells who the
    /// peer proved to be. Until then it can be neither read nor written.
    pub fn pending(
        peer: Peer,
        open: impl Future<Output = io::Result<Stream>> + Send + 'static,
    ) -> Self {
        Self { io: Box::new(Unestablished), peer, pending: Some(Box::pin(open)) }
    }

    /// Does what is still to be done before the connection carries bytes. A server awaits it in the
    /// connection's own task and not where it accepts, so that a slow peer holds up nobody else.
    ///
    /// Takes as long as the peer likes: the caller bounds it. Dropping the future closes the
    /// connection.
    ///
    /// # Errors
    /// Why the connection cannot be opened, such as a certificate that is not trusted.
    pub async fn establish(mut self) -> io::Result<Self> {
        while let Some(open) = self.pending.take() {
            self = open.await?;
        }
        Ok(self)
    }

    /// Who is at the other end. What it proved is known once the connection is established.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer).finish()
    }
}

/// Accepts connections; dropping it unbinds.
///
/// # Implementing
/// Put `#[srpc::async_trait]` on the `impl`.
#[async_trait]
pub trait Accept: Send + 'static {
    /// The next connection, at once: what a peer can draw out, such as a handshake, belongs into
    /// [`Stream::pending`]. Dropping the future loses none.
    async fn accept(&mut self) -> io::Result<Stream>;
}

/// A bound address that accepts connections. Dropping it unbinds.
pub struct Listener {
    accept: Box<dyn Accept>,
    address: Address,
    in_process: bool,
}

impl Listener {
    /// Binds real sockets: `tcp@127.0.0.1:0`, `unix@/run/foo.sock`.
    ///
    /// # Errors
    /// `InvalidInput` if the text is no address, else what the system says.
    pub async fn bind(address: &str) -> io::Result<Self> {
        let address = Address::to_bind(address)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Net::default().bind(&address).await
    }

    /// Wraps what accepts, with the address that clients dial.
    pub fn new(accept: impl Accept, address: Address) -> Self {
        Self { accept: Box::new(accept), address, in_process: false }
    }

    /// Says that only this process can connect to it, whatever its address looks like.
    #[must_use]
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
    }

    /// The address as bound: never port 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether only this process can connect to it, as [`in_process`](Self::in_process) said.
    pub fn is_in_process(&self) -> bool {
        self.in_process
    }

    /// Whether only this machine reaches it: a Unix socket, a loopback address, `localhost`, or a
    /// network in memory.
    pub fn is_local(&self) -> bool {
        self.in_process || self.address.is_local()
    }

    /// The next connection, which may have to be [established](Stream::establish) first. Dropping
    /// the future loses none.
    ///
    /// # Errors
    /// What the system says, such as too many open files: none of them ends the listener.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        self.accept.accept().await
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_has_one_account() {
        for (host, account) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8::7", "2001:db8::/64"),
            ("2001:db8::1:2:3:4", "2001:db8::/64"),
            ("::1", "::1"),
            ("memory", "memory"),
            ("", ""),
        ] {
            assert_eq!(&*Peer::new(host).account(), account, "{host:?}");
        }
    }
}
