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
    if frames.is_large() {
        // In a box: its room would be a part of every connection's task.
        match Box::pin(timeout(REST, from.read_buf(frames.buffer()))).await {
            Ok(read) => return read,
            Err(_) => frames.shrink(),
        }
    }
    from.read_buf(frames.buffer()).await
}
