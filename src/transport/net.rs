//! Real sockets: TCP and, on Unix, Unix domain sockets.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream};

use super::dial::race;
use super::{Accept, Listener, Peer, Stream, Transport};
use crate::instance::{Address, UNDIALLABLE};

/// Real sockets: `tcp@host:port` and, on Unix, `unix@/path`.
///
/// TCP connections have Nagle's algorithm off: frames are batched above this seam. All addresses of
/// a host name are dialled, as RFC 8305 says.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Net {}

#[async_trait]
impl Transport for Net {
    fn speaks(&self, protocol: &str) -> bool {
        protocol == "tcp" || (cfg!(unix) && protocol == "unix")
    }

    #[allow(clippy::disallowed_methods, reason = "this is the one place that opens sockets")]
    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        match address.protocol() {
            "tcp" => {
                let places = lookup(address.target()).await?;
                let stream = race(places, TcpStream::connect::<SocketAddr>).await?;
                stream.set_nodelay(true)?;
                Ok(tcp(stream, None))
            }
            #[cfg(unix)]
            "unix" => {
                let stream = tokio::net::UnixStream::connect(address.target()).await?;
                Ok(Stream::new(stream, Peer::default()))
            }
            other => Err(not_spoken(other)),
        }
    }

    async fn resolve(&self, address: &Address) -> io::Result<Vec<Address>> {
        if address.protocol() != "tcp" {
            return Ok(vec![address.clone()]);
        }
        // The zone of a link-local address has no place in an address: it is dialled by its name.
        let place =
            |at: SocketAddr| format!("tcp@{at}").parse().unwrap_or_else(|_| address.clone());
        Ok(lookup(address.target()).await?.into_iter().map(place).collect())
    }

    #[allow(clippy::disallowed_methods, reason = "this is the one place that opens sockets")]
    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        match address.protocol() {
            "tcp" => {
                let listener = TcpListener::bind(address.target()).await?;
                let bound = named(address, listener.local_addr()?)?;
                Ok(Listener::new(Tcp(listener), bound))
            }
            #[cfg(unix)]
            "unix" => Ok(Listener::new(unix::bind(address.target()).await?, address.clone())),
            other => Err(not_spoken(other)),
        }
    }
}

struct Tcp(TcpListener);

#[async_trait]
impl Accept for Tcp {
    async fn accept(&mut self) -> io::Result<Stream> {
        let (stream, from) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok(tcp(stream, Some(from)))
    }
}

fn tcp(stream: TcpStream, from: Option<SocketAddr>) -> Stream {
    let peer = from.or_else(|| stream.peer_addr().ok());
    let host = peer.map(|peer| peer.ip().to_canonical().to_string()).unwrap_or_default();
    Stream::new(stream, Peer::new(host))
}

/// The address as asked for, with the port that the system gave: a host name stays a host name.
fn named(asked: &Address, bound: SocketAddr) -> io::Result<Address> {
    if asked.port() != Some(0) {
        return Ok(asked.clone());
    }
    let (host, _) = asked.target().rsplit_once(':').unwrap_or((asked.target(), ""));
    format!("tcp@{host}:{}", bound.port())
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// All addresses of `host:port` that can be dialled, in the order in which they are tried.
pub(crate) async fn lookup(target: &str) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host(target).await?.collect();
    let mut seen = HashSet::new();
    // Names are blocked by giving them the unspecified address; the system would dial itself.
    let is_dialled =
        |at: &&SocketAddr| !at.ip().to_canonical().is_unspecified() && seen.insert(**at);
    let dialled: Vec<SocketAddr> = found.iter().filter(is_dialled).copied().collect();
    if dialled.is_empty() && !found.is_empty() {
        let why = format!("{target}: {UNDIALLABLE}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(interleaved(dialled))
}

/// Takes turns between the families, beginning with that of the first (RFC 8305, section 4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let starts_with_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let count = addresses.len();
    let (one, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|at| at.is_ipv6() == starts_with_v6);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut interleaved = Vec::with_capacity(count);
    while interleaved.len() < count {
        interleaved.extend(one.next());
        interleaved.extend(other.next());
    }
    interleaved
}

fn not_spoken(protocol: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("this build does not speak {protocol:?}"))
}

#[cfg(unix)]
mod unix {
    //! Unix domain sockets, whose file goes with the listener.

    use std::io;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::path::{Path, PathBuf};

    use async_trait::async_trait;
    use tokio::net::{UnixListener, UnixStream};

    use crate::transport::{Accept, Peer, Stream};

    pub(super) struct Unix {
        listener: UnixListener,
        path: PathBuf,
        /// The file that `bind` made: another process may have replaced it since.
        inode: u64,
    }

    /// Binds `path`. A socket file that nobody listens on any more, as a killed process leaves
    /// behind, is replaced; a live one is an error.
    pub(super) async fn bind(path: &str) -> io::Result<Unix> {
        let path = PathBuf::from(path);
        let mut bound = UnixListener::bind(&path);
        let in_use = bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
        if in_use && is_abandoned(&path).await {
            std::fs::remove_file(&path)?;
            bound = UnixListener::bind(&path);
        }
        let listener = bound?;
        let inode = std::fs::metadata(&path)?.ino();
        Ok(Unix { listener, path, inode })
    }

    /// Whether nobody listens on a socket file. If its listener lives and its accept queue is full, a
    /// non-blocking connect fails at once with `WouldBlock`; a blocking one would wait for the listener.
    async fn is_abandoned(path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|file| file.file_type().is_socket())
            && UnixStream::connect(path)
                .await
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    #[async_trait]
    impl Accept for Unix {
        async fn accept(&mut self) -> io::Result<Stream> {
            let (stream, _): (UnixStream, _) = self.listener.accept().await?;
            Ok(Stream::new(stream, Peer::default()))
        }
    }

    impl Drop for Unix {
        fn drop(&mut self) {
            if std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
                // Nothing can be done about a failure here, and the next bind copes with the file.
                let _ = std::fs::remove_file(&self.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let at = |text: &&str| text.parse::<SocketAddr>().unwrap();
        for (found, tried) in [
            (&["[::1]:1", "[::2]:1", "1.0.0.1:1"][..], &["[::1]:1", "1.0.0.1:1", "[::2]:1"][..]),
            (
                &["1.0.0.1:1", "1.0.0.2:1", "[::1]:1", "[::2]:1"],
                &["1.0.0.1:1", "[::1]:1", "1.0.0.2:1", "[::2]:1"],
            ),
            (&["1.0.0.1:1"], &["1.0.0.1:1"]),
            (&[], &[]),
        ] {
            let found = found.iter().map(at).collect();
            assert_eq!(interleaved(found), tried.iter().map(at).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn the_unspecified_address_is_not_dialled() {
        for any in ["tcp@0.0.0.0:1", "tcp@[::]:1", "tcp@[::ffff:0:0]:1"] {
            let error = Net::default().connect(&any.parse().unwrap()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{any}: {error}");
        }
    }
}
