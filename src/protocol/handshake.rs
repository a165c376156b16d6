//! The first bytes of each side: who speaks which versions, and what it takes.

use super::wire::Fields;
use super::{Limits, WireError};

/// The first four bytes of each side of a connection.
pub const MAGIC: [u8; 4] = *b"SRPC";
/// The version of the protocol that this build speaks.
pub const VERSION: u8 = 1;

/// The bytes before the fields: magic and the length of the fields.
const PREFIX: usize = 6;
/// The fields that version 1 defines; a longer handshake comes from a newer peer.
const FIELDS: u16 = 18;
/// The longest fields that are read: a newer peer has some room.
const MAX_FIELDS: u16 = 1024;

/// What each side says first. The client's names the versions it speaks; the server's, the one it
/// chose, as both `min_version` and `max_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hello {
    /// The lowest version spoken.
    pub min_version: u8,
    /// The highest version spoken.
    pub max_version: u8,
    /// What this side takes.
    pub limits: Limits,
    /// Optional abilities, a bit each; version 1 defines none.
    pub features: u32,
}

impl Hello {
    /// What this build says.
    pub fn new(limits: Limits) -> Self {
        Self { min_version: VERSION, max_version: VERSION, limits, features: 0 }
    }

    /// Appends the handshake.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FIELDS.to_be_bytes());
        out.push(self.min_version);
        out.push(self.max_version);
        out.extend_from_slice(&self.limits.max_body.to_be_bytes());
        out.extend_from_slice(&self.limits.window_calls.to_be_bytes());
        out.extend_from_slice(&self.limits.window_bytes.to_be_bytes());
        out.extend_from_slice(&self.features.to_be_bytes());
    }

    /// Whether this build's version is among those spoken.
    ///
    /// # Errors
    /// [`WireError::Version`] names what the peer speaks.
    pub fn check_version(&self) -> Result<(), WireError> {
        if (self.min_version..=self.max_version).contains(&VERSION) {
            return Ok(());
        }
        Err(WireError::Version { min: self.min_version, max: self.max_version })
    }
}

/// How many bytes the handshake has that `bytes` starts; `None`: more bytes are needed to tell.
///
/// # Errors
/// As soon as the bytes cannot be the start of a handshake.
pub fn hello_len(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let seen = bytes.len().min(MAGIC.len());
    if bytes[..seen] != MAGIC[..seen] {
        return Err(WireError::Magic);
    }
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else { return Ok(None) };
    let len = u16::from_be_bytes([prefix[4], prefix[5]]);
    if !(FIELDS..=MAX_FIELDS).contains(&len) {
        return Err(WireError::Value("the handshake's length"));
    }
    Ok(Some(PREFIX + usize::from(len)))
}

/// Reads a whole handshake. Fields after those of version 1 are left to newer versions.
///
/// # Errors
/// If it is none.
pub fn decode_hello(bytes: &[u8]) -> Result<Hello, WireError> {
    let len = hello_len(bytes)?.ok_or(WireError::Short)?;
    let mut fields = Fields(bytes.get(PREFIX..len).ok_or(WireError::Short)?);
    let hello = Hello {
        min_version: fields.u8()?,
        max_version: fields.u8()?,
        limits: Limits {
            max_body: fields.u32()?,
            window_calls: fields.u32()?,
            window_bytes: fields.u32()?,
        },
        features: fields.u32()?,
    };
    let least = Limits::LEAST;
    if hello.limits.max_body < least.max_body
        || hello.limits.window_calls < least.window_calls
        || hello.limits.window_bytes < least.window_bytes
    {
        return Err(WireError::Value("the handshake's limits: below what every peer takes"));
    }
    Ok(hello)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_comes_back_and_its_prefixes_ask_for_more() {
        let hello = Hello::new(Limits::default());
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        assert_eq!(decode_hello(&bytes), Ok(hello));
        for end in 0..bytes.len() {
            match hello_len(&bytes[..end]) {
                Ok(None) => assert!(end < PREFIX),
                Ok(Some(len)) => assert_eq!(len, bytes.len()),
                Err(error) => panic!("{end} bytes: {error}"),
            }
        }
    }

    #[test]
    fn a_longer_handshake_is_a_newer_peers() {
        let mut bytes = Vec::new();
        Hello::new(Limits::default()).encode(&mut bytes);
        bytes[5] += 2;
        bytes.extend_from_slice(&[7, 7]);
        assert_eq!(decode_hello(&bytes), Ok(Hello::new(Limits::default())));
    }

    #[test]
    fn what_is_no_handshake_is_known_at_its_first_wrong_byte() {
        assert_eq!(hello_len(b"G"), Err(WireError::Magic));
        assert_eq!(hello_len(b"SRPX"), Err(WireError::Magic));
        assert!(matches!(hello_len(b"SRPC\0\0"), Err(WireError::Value(_))));
        assert!(matches!(hello_len(b"SRPC\xff\xff"), Err(WireError::Value(_))));
    }
}
