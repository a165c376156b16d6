//! A body between the one who encodes it and the one who writes it: in place if it is small.

use bytes::Bytes;

use super::block::{LARGEST_IN_BLOCK, in_block};

/// A body; a small one lies in place. To share it, its threads would have to count references in turn,
/// and that costs more than to copy it.
#[derive(Debug)]
pub enum Packed {
    /// In place.
    Small {
        /// How many of the bytes it is.
        len: u8,
        /// They, and what follows them.
        bytes: [u8; SMALL],
    },
    /// Shared, or too large for the place.
    Shared(Bytes),
}

/// As much as takes little more room than what counts references.
pub(super) const SMALL: usize = 38;

/// A body that somebody else holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BodyRef<'a> {
    Small(&'a [u8]),
    Shared(&'a Bytes),
}

impl Packed {
    /// A copy of these bytes.
    pub(crate) fn copied(body: &[u8]) -> Self {
        let mut bytes = [0; SMALL];
        match bytes.get_mut(..body.len()) {
            Some(small) => {
                small.copy_from_slice(body);
                Self::Small { len: body.len() as u8, bytes }
            }
            None if body.len() <= LARGEST_IN_BLOCK => Self::Shared(in_block(body)),
            None => Self::Shared(Bytes::copy_from_slice(body)),
        }
    }

    /// Its bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.by_ref().as_slice()
    }

    pub(crate) fn by_ref(&self) -> BodyRef<'_> {
        match self {
            Self::Small { len, bytes } => BodyRef::Small(&bytes[..usize::from(*len)]),
            Self::Shared(bytes) => BodyRef::Shared(bytes),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_ref().len()
    }

    /// Its bytes, on their own.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self::Small { len, bytes } => in_block(&bytes[..len.into()]),
            Self::Shared(bytes) => bytes,
        }
    }
}

impl<'a> BodyRef<'a> {
    pub(crate) fn as_slice(self) -> &'a [u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    pub(crate) fn len(self) -> usize {
        self.as_slice().len()
    }
}
