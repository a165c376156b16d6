//! Frames: any split of a stream's bytes gives the same frames, and no more is held than they need.

use bytes::{BufMut, Bytes, BytesMut};
use srpc::protocol::{
    FrameReader, FrameType, HEADER_LEN, Next, OwnedFrame, WireError, encode_frame, next_frame,
};

/// The longest payload of a frame that is no call or reply.
const MAX_CONTROL: usize = 4 * 1024;
/// The most that a reader offers to one read.
const MAX_ROOM: usize = 256 * 1024;

/// How the bytes are cut into reads, the longest payload in units of 64 bytes, and the stream.
pub fn frame(input: &[u8]) {
    let [how, limit, bytes @ ..] = input else { return };
    let max_payload = u32::from(*limit) * 64;
    let expected = at_once(bytes, max_payload);

    let most = 2 * (HEADER_LEN + MAX_CONTROL.max(max_payload as usize) + MAX_ROOM);
    let mut reader = FrameReader::new(BytesMut::new(), max_payload);
    let mut frames = Vec::new();
    let mut error = None;
    'stream: for mut read in super::reads(bytes, *how) {
        while !read.is_empty() {
            let buffer = reader.buffer();
            let room = buffer.capacity() - buffer.len();
            assert!(room > 0, "a read without room would look like the end of the stream");
            let (now, later) = read.split_at(room.min(read.len()));
            buffer.put_slice(now);
            reader.was_read(now.len());
            read = later;
            loop {
                match reader.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(broken) => {
                        error = Some(broken);
                        break 'stream;
                    }
                }
            }
            let held = reader.buffer().capacity();
            assert!(held <= most, "{held} bytes are held for payloads of {max_payload}");
        }
    }
    assert_eq!(frames, expected.frames);
    assert_eq!(error, expected.error);
    assert_eq!(reader.whole(), expected.whole);
    if error.is_none() {
        assert_eq!(reader.is_within_frame(), expected.within);
    }
}

#[derive(Default)]
struct Expected {
    frames: Vec<OwnedFrame>,
    error: Option<WireError>,
    /// Frames that came whole.
    whole: u64,
    /// Whether the stream ends within a frame.
    within: bool,
}

/// What a stream has if all of it has come.
fn at_once(bytes: &[u8], max_payload: u32) -> Expected {
    let mut expected = Expected::default();
    let mut rest = bytes;
    loop {
        let taken = match next_frame(rest, max_payload) {
            Err(error) => {
                expected.error = Some(error);
                return expected;
            }
            Ok(Next::More(needed)) => {
                assert!(needed > rest.len(), "more than there is");
                expected.within = !rest.is_empty();
                return expected;
            }
            Ok(Next::Frame(frame, whole)) => {
                let header = frame.header;
                let long = matches!(header.frame, FrameType::Call | FrameType::Reply);
                let most = if long { max_payload as usize } else { MAX_CONTROL };
                assert!(frame.payload.len() <= most, "beyond the limit");
                let mut again = Vec::new();
                encode_frame(&mut again, header.frame, header.flags.0, header.id, |out| {
                    out.extend_from_slice(frame.payload);
                });
                assert_eq!(again, rest[..whole], "a frame has one encoding");
                expected
                    .frames
                    .push(OwnedFrame::Whole(header, Bytes::copy_from_slice(frame.payload)));
                whole
            }
            Ok(Next::Skip(oversized, whole)) => {
                expected.frames.extend(oversized.map(OwnedFrame::Oversized));
                whole
            }
        };
        let Some(after) = rest.get(taken..) else {
            expected.within = true;
            return expected;
        };
        expected.whole += 1;
        rest = after;
    }
}
