//! Reads from a stream, with as little memory held as what comes needs.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::protocol::FrameReader;

/// How long nothing must come before the memory that many bytes needed is given back.
const REST: Duration = Duration::from_secs(1);

/// Reads what there is; how many bytes that were, 0 at the end. Dropping the future loses nothing.
pub(crate) async fn read_some<R: AsyncRead + Unpin>(
    from: &mut R,
    frames: &mut FrameReader,
) -> io::Result<usize> {
    if frames.holds_much() {
        // In a box: its room would be a part of every connection's task.
        match Box::pin(timeout(REST, from.read_buf(frames.buffer()))).await {
            Ok(read) => return read,
            Err(_) => frames.shrink(),
        }
    }
    from.read_buf(frames.buffer()).await
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::io::AsyncWriteExt;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::protocol::{FrameType, encode_frame};

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_rests_gives_back_what_much_needed() {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut frames = FrameReader::new(BytesMut::new(), 1 << 20);
        let mut many = Vec::new();
        for id in 1..=20 {
            encode_frame(&mut many, FrameType::Reply, 0, id, |out| {
                out.extend_from_slice(&[7; 50_000]);
            });
        }
        theirs.write_all(&many).await.unwrap();
        let mut cut = 0;
        while cut < 20 {
            let bytes = read_some(&mut ours, &mut frames).await.unwrap();
            frames.was_read(bytes);
            while frames.next_frame().unwrap().is_some() {
                cut += 1;
            }
        }
        assert!(frames.holds_much());
        let start = Instant::now();
        let later = async {
            sleep(2 * REST).await;
            theirs.write_all(&[7; 3]).await.unwrap();
        };
        let (read, ()) = tokio::join!(read_some(&mut ours, &mut frames), later);
        assert_eq!((read.unwrap(), frames.uncut()), (3, 3), "nothing is lost by the pause");
        assert_eq!(start.elapsed(), 2 * REST);
        assert!(!frames.holds_much(), "it gave its memory back before they came");
    }
}
