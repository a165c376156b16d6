//! TLS, spoken over another transport.

mod certificates;
mod error;
mod failure;
mod identity;
mod pem;
mod settings;
mod stream;
mod verifier;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use self::certificates::Certificates;
pub use self::certificates::TlsStats;
pub use self::error::TlsError;
use self::failure::{handshake_failed, unsupported};
pub use self::pem::Pem;
pub use self::settings::{ClientTls, ServerTls};
use self::stream::Encrypted;
use super::{Accept, Listener, Net, Stream, Transport, dial};
use crate::instance::Address;
use crate::sync::event;

/// How long a peer that was refused gets to read why.
const LINGER: Duration = Duration::from_secs(1);

/// TLS 1.2 and 1.3 over another transport: `tls@host:port` is what is spoken at that transport's
/// `tcp@host:port`. Cheap to clone.
///
/// What is not `tls@` goes to the transport below as it is, so that one value serves for both.
///
/// ```no_run
/// use srpc::transport::{ClientTls, Pem, ServerTls, Tls, Transport};
/// use srpc::Address;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let ca = Pem::file("ca.pem");
/// let (certificate, key) = (Pem::file("foo.pem"), Pem::file("foo.key"));
/// let tls = Tls::server(ServerTls::new(certificate.clone(), key.clone()).client_ca(ca.clone()))
///     .client(ClientTls::new(ca).certificate(certificate, key))
///     .build()?;
/// let listener = tls.bind(&Address::to_bind("tls@10.0.0.7:7001")?).await?;
/// # drop(listener);
/// # Ok(())
/// # }
/// ```
///
/// # Identity
/// The [`Peer`](super::Peer) of a connection that a server has established names the client by its
/// certificate: by its one URI name (such as `spiffe://example.org/foo`), else by its first DNS
/// name, else by the common name of its subject, if it has exactly one; the latter two without a
/// colon or a slash, so that none is taken for a URI. A certificate that names nobody in any of
/// these ways, or by several URIs, control characters or more than 2,048 bytes, is refused: no
/// identity always means that there was no certificate.
///
/// # Files
/// Files are looked at again when a connection is made and the last look was long enough ago
/// ([`TlsBuilder::reload_every`]), and by [`reload`](Self::reload). Connections that are made from
/// then on use what was read; those that are open live on. What cannot be used is a `tracing`
/// warning and counted in [`stats`](Self::stats), and the last good files stay in use.
///
/// # Errors
/// A failed handshake says why in words: an authority that is not trusted, a certificate that has
/// expired or is for another name, a client certificate that is missing, a peer that does not speak
/// TLS at all. A call on such a connection is `Unavailable`, not sent.
///
/// # Cancellation
/// Dropping `connect`, or a stream that is not established, closes the connection. A look at the
/// files that is under way ends on a thread for blocking work; there is no task.
#[derive(Clone)]
pub struct Tls {
    below: Arc<dyn Transport>,
    certificates: Arc<Certificates>,
}

impl Tls {
    /// For dialling `tls@` addresses.
    pub fn client(client: ClientTls) -> TlsBuilder {
        TlsBuilder { client: Some(client), ..TlsBuilder::empty() }
    }

    /// For listening on `tls@` addresses.
    pub fn server(server: ServerTls) -> TlsBuilder {
        TlsBuilder { server: Some(server), ..TlsBuilder::empty() }
    }

    /// Reads all files now. Dropping the future does not stop a look that has begun.
    ///
    /// # Errors
    /// What cannot be used: what was read before stays in use then.
    pub async fn reload(&self) -> Result<(), TlsError> {
        self.certificates.reload().await
    }

    /// How often the files have changed, and how often they could not be used.
    pub fn stats(&self) -> TlsStats {
        self.certificates.stats()
    }
}

#[async_trait]
impl Transport for Tls {
    /// `tls` if it [can dial](Self::client), and what the transport below speaks.
    fn speaks(&self, protocol: &str) -> bool {
        match protocol {
            "tls" => self.certificates.can_dial() && self.below.speaks("tcp"),
            _ => self.below.speaks(protocol),
        }
    }

    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        if address.protocol() != "tls" {
            return self.below.connect(address).await;
        }
        let places = self.resolve(address).await?;
        dial(self, address, places, |_, stream| async move { Ok(stream) }).await
    }

    async fn resolve(&self, address: &Address) -> io::Result<Vec<Address>> {
        if address.protocol() != "tls" {
            return self.below.resolve(address).await;
        }
        let places = self.below.resolve(&with_protocol("tcp", address)?).await?;
        places.iter().map(|place| with_protocol("tls", place)).collect()
    }

    /// The certificate is checked against the address's name, whatever the place.
    async fn connect_at(&self, address: &Address, place: &Address) -> io::Result<Stream> {
        if address.protocol() != "tls" {
            return self.below.connect_at(address, place).await;
        }
        let dialling = self.certificates.client().await.ok_or_else(|| {
            unsupported("no authority to check servers by was given: see Tls::client")
        })?;
        let name = match &dialling.name {
            Some(name) => name.clone(),
            None => server_name(address)?,
        };
        let (address, place) = (with_protocol("tcp", address)?, with_protocol("tcp", place)?);
        let stream = self.below.connect_at(&address, &place).await?.establish().await?;
        let mut peer = stream.peer().clone();
        peer.identity = Some(name.to_str().into());
        let connector = TlsConnector::from(Arc::clone(&dialling.config));
        let stream = connector.connect(name, stream).await;
        Ok(Stream::new(Encrypted(stream.map_err(handshake_failed)?), peer))
    }

    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        if address.protocol() != "tls" {
            return self.below.bind(address).await;
        }
        if !self.certificates.can_listen() {
            return Err(unsupported("no certificate to listen with was given: see Tls::server"));
        }
        let below = self.below.bind(&with_protocol("tcp", address)?).await?;
        let address = with_protocol("tls", below.address())?;
        let certificates = Arc::clone(&self.certificates);
        let in_process = below.is_in_process();
        let listener = Listener::new(Accepting { below, certificates }, address);
        Ok(if in_process { listener.in_process() } else { listener })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// Configures a [`Tls`].
#[must_use]
pub struct TlsBuilder {
    below: Arc<dyn Transport>,
    client: Option<ClientTls>,
    server: Option<ServerTls>,
    reload_every: Duration,
}

impl TlsBuilder {
    fn empty() -> Self {
        Self {
            below: Arc::new(Net::default()),
            client: None,
            server: None,
            reload_every: Duration::from_secs(60),
        }
    }

    /// Lets it dial `tls@` addresses too. Default: as [`Tls::client`] set it.
    pub fn client(mut self, client: ClientTls) -> Self {
        self.client = Some(client);
        self
    }

    /// Lets it listen on `tls@` addresses too. Default: as [`Tls::server`] set it.
    pub fn server(mut self, server: ServerTls) -> Self {
        self.server = Some(server);
        self
    }

    /// Sets the transport below. Default: real sockets.
    pub fn over(mut self, transport: Arc<dyn Transport>) -> Self {
        self.below = transport;
        self
    }

    /// Sets the least time between two looks at the files; `Duration::MAX`: only
    /// [`Tls::reload`] looks. Default: 60 s.
    pub fn reload_every(mut self, interval: Duration) -> Self {
        self.reload_every = interval;
        self
    }

    /// Reads all files, which blocks for as long as that takes.
    ///
    /// # Errors
    /// Names the file that cannot be used, and why.
    pub fn build(self) -> Result<Tls, TlsError> {
        let certificates = Certificates::read(self.client, self.server, self.reload_every)?;
        Ok(Tls { below: self.below, certificates: Arc::new(certificates) })
    }
}

impl fmt::Debug for TlsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsBuilder")
            .field("client", &self.client)
            .field("server", &self.server)
            .field("reload_every", &self.reload_every)
            .finish_non_exhaustive()
    }
}

struct Accepting {
    below: Listener,
    certificates: Arc<Certificates>,
}

#[async_trait]
impl Accept for Accepting {
    async fn accept(&mut self) -> io::Result<Stream> {
        let stream = self.below.accept().await?;
        let peer = stream.peer().clone();
        Ok(Stream::pending(peer, shake_hands(Arc::clone(&self.certificates), stream)))
    }
}

/// The server's side of a handshake.
async fn shake_hands(certificates: Arc<Certificates>, stream: Stream) -> io::Result<Stream> {
    let missing = || unsupported("no certificate to listen with was given");
    let config = certificates.server().await.ok_or_else(missing)?;
    let stream = stream.establish().await?;
    let mut peer = stream.peer().clone();
    match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(stream) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            peer.identity = chain.first().and_then(identity::of);
            Ok(Stream::new(Encrypted(stream), peer))
        }
        Err((error, stream)) => {
            let error = handshake_failed(error);
            event!(DEBUG, host = &*peer.host, %error, "no TLS with a client");
            let _ = timeout(LINGER, let_read(stream)).await;
            Err(error)
        }
    }
}

/// Lets a refused client read the alert. It may have sent on already, since in TLS 1.3 its own
/// handshake ends before its certificate is looked at: closing with unread bytes would reset the
/// connection and destroy what tells it why.
async fn let_read(mut stream: Stream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// The name that the server at an address must prove: a host name, or an IP address.
fn server_name(address: &Address) -> io::Result<ServerName<'static>> {
    let host = address.host().unwrap_or_default();
    // No certificate has the dot that turns search lists off.
    let host = host.strip_suffix('.').unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(|_| {
        let why = format!("{host:?} is no name that a certificate could be for");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })
}

/// The same target under another protocol.
fn with_protocol(protocol: &str, address: &Address) -> io::Result<Address> {
    // Port 0 is an address to bind.
    Address::to_bind(&format!("{protocol}@{}", address.target()))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}
