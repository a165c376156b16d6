//! What stands in for a connection until it is established.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;

/// Opens the connection; dropped, it closes it.
pub(super) type Pending = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

/// Takes the place of the bytes: using them is a mistake in the program, and says so.
pub(super) struct Unestablished;

fn too_early<T>() -> Poll<io::Result<T>> {
    let why = "the connection is not established yet: await Stream::establish first";
    Poll::Ready(Err(io::Error::new(io::ErrorKind::NotConnected, why)))
}

impl AsyncRead for Unestablished {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        too_early()
    }
}

impl AsyncWrite for Unestablished {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        too_early()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        too_early()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        too_early()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use crate::transport::{Peer, Stream};

    #[tokio::test]
    async fn a_pending_stream_carries_nothing_until_it_is_established() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let opened = async move {
            let mut peer = Peer::new("there");
            peer.identity = Some("foo".into());
            Ok(Stream::new(ours, peer))
        };
        let nested = Stream::pending(Peer::new("there"), opened);
        let mut pending = Stream::pending(Peer::new("there"), async move { Ok(nested) });
        assert_eq!(pending.peer(), &Peer::new("there"));
        let error = pending.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
        let open = pending.establish().await.unwrap();
        assert_eq!(open.peer().identity.as_deref(), Some("foo"));
    }
}
