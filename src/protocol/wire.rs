//! Reading and writing the fields that frames are made of.

use crate::call::{InvalidMetadata, Metadata};

/// Bytes from a peer break a rule of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The handshake does not start with the magic.
    #[error("this is no srpc handshake")]
    Magic,
    /// The two sides have no version in common.
    #[error("no common version: the peer speaks {min} to {max}")]
    Version {
        /// The lowest version that the peer speaks.
        min: u8,
        /// The highest one.
        max: u8,
    },
    /// A frame is longer than any peer may send.
    #[error("a frame of {0} bytes")]
    TooLong(u32),
    /// A frame of a type that is not known, without the flag that lets it be skipped.
    #[error("an unknown frame type {0}")]
    Type(u8),
    /// A flag that is not defined for this type of frame.
    #[error("flags {flags:#04x} on a frame of type {frame}")]
    Flags {
        /// The frame's type.
        frame: u8,
        /// Its flags.
        flags: u8,
    },
    /// A reserved field is not 0.
    #[error("a reserved field is set")]
    Reserved,
    /// A payload ends before its fields do.
    #[error("the payload ends within its fields")]
    Short,
    /// A frame took too long from its first byte to its last.
    #[error("a frame takes too long to come")]
    Slow,
    /// Text is not UTF-8.
    #[error("text that is not UTF-8")]
    Utf8,
    /// Metadata beyond its limits.
    #[error(transparent)]
    Metadata(#[from] InvalidMetadata),
    /// A field has a value that is not defined.
    #[error("an undefined value in {0}")]
    Value(&'static str),
    /// An id that is 0, does not rise, or is not for this type of frame.
    #[error("a wrong id {0:#x}")]
    Id(u64),
    /// The peer says that it is this side that broke a rule.
    #[error("the peer refuses the connection: {0}")]
    Peer(String),
    /// The server has as many connections as it takes.
    #[error("{0}")]
    Full(&'static str),
    /// A frame that only the other side may send.
    #[error("a frame of type {0} from the wrong side")]
    Side(u8),
}

pub(super) fn text(bytes: &[u8]) -> Result<&str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| WireError::Utf8)
}

/// The rest of a payload, read field by field.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn text(&mut self, len: usize) -> Result<&'a str, WireError> {
        text(self.bytes(len)?)
    }

    #[inline]
    pub(super) fn metadata(&mut self) -> Result<Metadata, WireError> {
        match self.u8()? {
            0 => Ok(Metadata::default()),
            entries => self.entries(entries),
        }
    }

    fn entries(&mut self, entries: u8) -> Result<Metadata, WireError> {
        let mut metadata = Metadata::default();
        // Counted as they came: one key given often is not one entry.
        if usize::from(entries) > Metadata::MAX_ENTRIES {
            return Err(InvalidMetadata::TooMany.into());
        }
        let before = self.0.len();
        for _ in 0..entries {
            let len = self.u8()?.into();
            let key = self.text(len)?;
            let len = self.u16()?.into();
            let value = self.text(len)?;
            metadata.insert(key, value)?;
        }
        let lengths = 3 * usize::from(entries);
        if before - self.0.len() > Metadata::MAX_BYTES + lengths {
            return Err(InvalidMetadata::TooLarge.into());
        }
        Ok(metadata)
    }
}

/// Appends the entries of metadata, whose number comes before them. Its own limits keep every length
/// within its field.
pub(super) fn put_entries(out: &mut Vec<u8>, metadata: &Metadata) {
    for (key, value) in metadata.iter() {
        out.push(key.len() as u8);
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    }
}
