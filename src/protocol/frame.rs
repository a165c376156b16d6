//! Frames: a header of 16 bytes and a payload, cut out of a stream of bytes.

use super::WireError;

/// The bytes of a frame's header: length 4, type 1, flags 1, reserved 2, id 8; big endian.
pub const HEADER_LEN: usize = 16;

/// The longest payload that is skipped to keep a connection; beyond it, the peer is no peer.
pub const MAX_SKIPPED: u32 = 64 * 1024 * 1024;

/// The longest payload of a frame that is no call, reply, or frame to skip.
const MAX_CONTROL: u32 = 4 * 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum FrameType {
    /// Nothing: a call that was withdrawn before it was sent leaves this behind.
    Void = 0,
    /// A request. From the client.
    Call = 1,
    /// The answer to a call. From the server.
    Reply = 2,
    /// The caller left. From the client.
    Cancel = 3,
    /// Calls above this id are not started. From the server.
    Drain = 4,
    /// Answer with a pong of the same payload.
    Ping = 5,
    /// The answer to a ping.
    Pong = 6,
    /// Why the sender closes the connection.
    ConnectionError = 7,
}

impl FrameType {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Void,
            1 => Self::Call,
            2 => Self::Reply,
            3 => Self::Cancel,
            4 => Self::Drain,
            5 => Self::Ping,
            6 => Self::Pong,
            7 => Self::ConnectionError,
            _ => return None,
        })
    }

    fn allowed_flags(self) -> u8 {
        match self {
            Self::Call => Flags::SKIP | Flags::IDEMPOTENT | Flags::NOTIFY,
            _ => Flags::SKIP,
        }
    }
}

/// A frame's flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// Skip this frame if its type is not known.
    pub const SKIP: u8 = 1;
    /// More of this body follows in another frame. Reserved: version 1 refuses it.
    pub const MORE: u8 = 2;
    /// On a call: a second execution does no harm.
    pub const IDEMPOTENT: u8 = 4;
    /// On a call: an empty reply as soon as the handler has started is answer enough.
    pub const NOTIFY: u8 = 8;

    /// Whether this flag is set.
    pub fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }
}

/// A frame's header, with a type that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub frame: FrameType,
    /// Its flags.
    pub flags: Flags,
    /// The call it is about; 0 if about none.
    pub id: u64,
}

/// A frame, cut out but not yet read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header.
    pub header: Header,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// What the bytes start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Half a frame: at least this many bytes are needed in all.
    More(usize),
    /// A whole frame, and how many bytes it took.
    Frame(Frame<'a>, usize),
    /// A frame that is to be passed over: this many bytes in all, which may not have come yet. If a
    /// header is given, the frame is a call or a reply that is longer than the limit.
    Skip(Option<Header>, usize),
}

/// Cuts the next frame out of `bytes`.
///
/// Limits are checked on the header, before the payload has come: `max_payload` is for calls and
/// replies. A longer one, up to [`MAX_SKIPPED`], is to be skipped and costs its call alone.
///
/// # Errors
/// If the bytes break a rule, after which the connection cannot go on.
pub fn next_frame(bytes: &[u8], max_payload: u32) -> Result<Next<'_>, WireError> {
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return Ok(Next::More(HEADER_LEN));
    };
    let len = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    let (code, flags) = (header[4], Flags(header[5]));
    let mut id = [0; 8];
    id.copy_from_slice(&header[8..]);
    let id = u64::from_be_bytes(id);
    if len > MAX_SKIPPED {
        return Err(WireError::TooLong(len));
    }
    let whole = HEADER_LEN + len as usize;
    let Some(frame) = FrameType::from_code(code) else {
        if flags.has(Flags::SKIP) {
            return Ok(Next::Skip(None, whole));
        }
        return Err(WireError::Type(code));
    };
    if flags.0 & !frame.allowed_flags() != 0 {
        return Err(WireError::Flags { frame: code, flags: flags.0 });
    }
    if header[6..8] != [0, 0] {
        return Err(WireError::Reserved);
    }
    let header = Header { frame, flags, id };
    match frame {
        FrameType::Void => return Ok(Next::Skip(None, whole)),
        FrameType::Call | FrameType::Reply if len > max_payload => {
            return Ok(Next::Skip(Some(header), whole));
        }
        FrameType::Call | FrameType::Reply => {}
        _ if len > MAX_CONTROL => return Err(WireError::TooLong(len)),
        _ => {}
    }
    match bytes.get(HEADER_LEN..whole) {
        Some(payload) => Ok(Next::Frame(Frame { header, payload }, whole)),
        None => Ok(Next::More(whole)),
    }
}

/// Appends a frame whose payload `fill` writes, and puts its length into the header.
pub fn encode_frame(
    out: &mut Vec<u8>,
    frame: FrameType,
    flags: u8,
    id: u64,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    encode_frame_before(out, frame, flags, id, 0, fill);
}

/// Appends a frame without the last `rest` bytes of its payload, which follow elsewhere.
pub fn encode_frame_before(
    out: &mut Vec<u8>,
    frame: FrameType,
    flags: u8,
    id: u64,
    rest: usize,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let mut header = [0; HEADER_LEN];
    header[4] = frame as u8;
    header[5] = flags;
    header[8..].copy_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&header);
    fill(out);
    let len = (out.len() - start - HEADER_LEN + rest) as u32;
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends a connection error: why its sender closes.
pub fn encode_connection_error(out: &mut Vec<u8>, error: &WireError) {
    encode_frame(out, FrameType::ConnectionError, 0, 0, |out| {
        out.extend_from_slice(error.to_string().as_bytes());
    });
}

/// Turns the frame that starts at `start` into one that every peer passes over. Only for a frame
/// of which no byte has been handed to a socket.
pub fn void_frame(out: &mut [u8], start: usize) {
    out[start + 4] = FrameType::Void as u8;
    out[start + 5] = 0;
}
