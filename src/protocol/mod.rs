//! The wire, without I/O: handshake, frames, what they carry, and their limits.
//!
//! `docs/PROTOCOL.md` is its specification.

mod call;
mod frame;
mod frame_reader;
mod handshake;
mod limits;
mod outbox;
mod read_buffer;
mod reply;
mod wire;

pub use self::call::{CallHead, MethodRef, decode_call, encode_call};
pub(crate) use self::call::{CallRest, Named, decode_call_of};
pub use self::frame::{
    Flags, Frame, FrameType, HEADER_LEN, Header, MAX_SKIPPED, Next, encode_connection_error,
    encode_frame, encode_frame_before, next_frame, void_frame,
};
pub use self::frame_reader::{Cut, FrameReader, OwnedFrame, Payload};
pub use self::handshake::{Hello, MAGIC, VERSION, decode_hello, hello_len};
pub use self::limits::Limits;
pub use self::outbox::{Batch, LARGE_BODY, Outbox, Place};
pub use self::reply::{ReplyHead, decode_reply, encode_reply};
pub use self::wire::WireError;
