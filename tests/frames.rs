//! Frames, however the bytes that carry them are split.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use srpc::call::{CodecId, Metadata};
use srpc::error::{Execution, Kind};
use srpc::protocol::{
    CallHead, Flags, FrameReader, FrameType, MethodRef, Next, OwnedFrame, ReplyHead, decode_call,
    decode_reply, encode_call, encode_frame, encode_reply, next_frame,
};

const MAX_PAYLOAD: u32 = 2048;

/// What a frame should come out as; `None`: it is passed over.
type Expected = Option<OwnedFrame>;

/// A frame's bytes and what a reader must make of them.
fn a_frame() -> impl Strategy<Value = (Vec<u8>, Expected)> {
    let frame = prop_oneof![
        Just(FrameType::Void),
        Just(FrameType::Call),
        Just(FrameType::Reply),
        Just(FrameType::Cancel),
        Just(FrameType::Drain),
        Just(FrameType::Ping),
        Just(FrameType::Pong),
    ];
    (frame, any::<u64>(), vec(any::<u8>(), 0..3000), any::<bool>()).prop_map(
        |(frame, id, payload, skip)| {
            let flags = if skip { Flags::SKIP } else { 0 };
            let mut bytes = Vec::new();
            encode_frame(&mut bytes, frame, flags, id, |out| out.extend_from_slice(&payload));
            let header = srpc::protocol::Header { frame, flags: Flags(flags), id };
            let expected = match frame {
                FrameType::Void => None,
                FrameType::Call | FrameType::Reply if payload.len() > MAX_PAYLOAD as usize => {
                    Some(OwnedFrame::Oversized(header))
                }
                _ => Some(OwnedFrame::Whole(header, Bytes::from(payload))),
            };
            (bytes, expected)
        },
    )
}

fn some_metadata() -> impl Strategy<Value = Metadata> {
    vec(("[a-z]{1,20}", "\\PC{0,40}"), 0..20).prop_map(|entries| {
        let mut metadata = Metadata::default();
        for (key, value) in entries {
            metadata.insert(key, value).unwrap();
        }
        metadata
    })
}

proptest! {
    #[test]
    fn any_split_gives_the_same_frames(
        frames in vec(a_frame(), 0..12),
        cuts in vec(1_usize..700, 1..200),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let expected: Vec<_> = frames.into_iter().filter_map(|(_, expected)| expected).collect();
        let mut reader = FrameReader::new(BytesMut::new(), MAX_PAYLOAD);
        let (mut seen, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (part, after) = rest.split_at(rest.len().min(*cut));
            rest = after;
            reader.buffer().extend_from_slice(part);
            reader.was_read(part.len());
            while let Some(frame) = reader.next_frame().unwrap() {
                seen.push(frame);
            }
        }
        prop_assert_eq!(seen, expected);
        prop_assert!(!reader.is_within_frame());
    }

    #[test]
    fn every_prefix_of_a_frame_asks_for_more((bytes, expected) in a_frame()) {
        for end in 0..bytes.len() {
            match next_frame(&bytes[..end], MAX_PAYLOAD).unwrap() {
                Next::More(least) => prop_assert!(least > end && least <= bytes.len()),
                Next::Skip(header, whole) => {
                    prop_assert!(whole == bytes.len());
                    let oversized = matches!(expected, Some(OwnedFrame::Oversized(_)));
                    prop_assert_eq!(header.is_some(), oversized);
                }
                Next::Frame(..) => prop_assert!(false, "{} of {} bytes", end, bytes.len()),
            }
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic_or_grow(bytes in vec(any::<u8>(), 0..4000)) {
        let mut reader = FrameReader::new(BytesMut::new(), MAX_PAYLOAD);
        reader.buffer().extend_from_slice(&bytes);
        while let Ok(Some(frame)) = reader.next_frame() {
            if let OwnedFrame::Whole(_, payload) = frame {
                let _ = decode_call(&payload);
                let _ = decode_reply(&payload);
            }
        }
        prop_assert!(reader.buffer().capacity() <= 64 * 1024);
    }

    #[test]
    fn a_call_comes_back(
        name in "[A-Z][a-z]{0,20}\\.[A-Z][a-z]{0,20}",
        number in any::<u8>(),
        form in 0..3,
        codec in any::<u8>(),
        remaining_ms in any::<u32>(),
        metadata in some_metadata(),
        body in vec(any::<u8>(), 0..500),
    ) {
        let method = match form {
            0 => MethodRef::Name(&name),
            1 => MethodRef::Define(number, &name),
            _ => MethodRef::Number(number),
        };
        let head = CallHead { method, codec: CodecId(codec), remaining_ms, metadata };
        let mut payload = Vec::new();
        encode_call(&mut payload, &head, &body);
        let (seen, rest) = decode_call(&payload).unwrap();
        prop_assert_eq!(&seen, &head);
        prop_assert_eq!(rest, &body[..]);
        // Cut anywhere within its head, it is no call.
        for end in 0..payload.len() - body.len() {
            prop_assert!(decode_call(&payload[..end]).is_err());
        }
    }

    #[test]
    fn a_reply_comes_back(
        code in 0_u8..=16,
        class in 0_usize..3,
        load in any::<u32>(),
        metadata in some_metadata(),
        body in vec(any::<u8>(), 0..500),
    ) {
        let execution =
            [Execution::Executed, Execution::Rejected, Execution::MaybeExecuted][class];
        let status = if code == 0 { Ok(()) } else { Err((Kind::from_code(code), execution)) };
        let head = ReplyHead { status, load, metadata };
        let mut payload = Vec::new();
        encode_reply(&mut payload, &head, &body);
        let (seen, rest) = decode_reply(&payload).unwrap();
        prop_assert_eq!(seen, head);
        prop_assert_eq!(rest, &body[..]);
    }
}
