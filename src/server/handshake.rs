//! The first bytes of a connection: is this a peer that can be served?

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::shared::Shared;
use crate::protocol::{
    FrameType, Hello, WireError, decode_hello, encode_connection_error, encode_frame, hello_len,
};
use crate::transport::Stream;

/// Reads the client's handshake and answers it. With `refusal` a good one is answered by that.
pub(super) async fn shake_hands(
    server: &Shared,
    stream: &mut Stream,
    refusal: Option<WireError>,
) -> io::Result<(BytesMut, Hello)> {
    let mut read = BytesMut::with_capacity(1024);
    let client = loop {
        match hello_len(&read) {
            Ok(Some(len)) if read.len() >= len => {
                break decode_hello(&read.split_to(len)).and_then(|hello| {
                    hello.check_version()?;
                    Ok(hello)
                });
            }
            Ok(_) => {}
            Err(error) => break Err(error),
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let client = client.and_then(|hello| refusal.map_or(Ok(hello), Err));
    let mut answer = Vec::new();
    if matches!(client, Err(WireError::Magic)) && is_http(&read) {
        answer.extend_from_slice(
            b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n\
              content-length: 38\r\n\r\nThis port speaks srpc, and not HTTP.\r\n",
        );
    } else {
        Hello::new(server.settings.limits).encode(&mut answer);
        if let Err(error) = &client {
            if matches!(error, WireError::Full(_)) {
                // What the client has sent already was not taken, and can be sent elsewhere.
                encode_frame(&mut answer, FrameType::Drain, 0, 0, |_| ());
            }
            encode_connection_error(&mut answer, error);
        }
    }
    stream.write_all(&answer).await?;
    stream.flush().await?;
    match client {
        Ok(hello) => Ok((read, hello)),
        Err(error) => {
            stream.shutdown().await?;
            // Unread bytes would reset the connection and destroy the answer.
            let mut rest = vec![0; 4096];
            while stream.read(&mut rest).await? > 0 {}
            Err(io::Error::new(io::ErrorKind::InvalidData, error))
        }
    }
}

fn is_http(read: &[u8]) -> bool {
    [&b"GET "[..], b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"PATC", b"PRI "]
        .iter()
        .any(|method| read.starts_with(&method[..read.len().min(4)]))
}
