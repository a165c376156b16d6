//! What travels beside a call's arguments and a reply's result.

use std::sync::Arc;

/// Entries of text beside a body. Shared when cloned; free while empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    entries: Option<Arc<Vec<(String, String)>>>,
}

/// An entry of metadata goes beyond a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMetadata {
    /// More entries than a peer takes.
    #[error("more than {} metadata entries", Metadata::MAX_ENTRIES)]
    TooMany,
    /// More bytes than a peer takes.
    #[error("more than {} bytes of metadata", Metadata::MAX_BYTES)]
    TooLarge,
    /// A key is empty or longer than 255 bytes.
    #[error("a metadata key is 1 to 255 bytes")]
    Key,
}

impl Metadata {
    /// No entries.
    pub(crate) fn none() -> &'static Self {
        static NONE: Metadata = Metadata { entries: None };
        &NONE
    }

    /// The most entries.
    pub const MAX_ENTRIES: usize = 64;
    /// The most bytes, keys and values together.
    pub const MAX_BYTES: usize = 8 * 1024;

    /// Adds an entry; a key that is there already keeps its first place and takes the new value.
    ///
    /// # Errors
    /// Beyond 64 entries or 8 KiB, or if the key is empty or over 255 bytes; nothing changes then.
    pub fn insert(
        &mut self,
        key: impl Into<String>,
        value: impl Into<String>,
    ) -> Result<(), InvalidMetadata> {
        let (key, value) = (key.into(), value.into());
        if key.is_empty() || key.len() > 255 {
            return Err(InvalidMetadata::Key);
        }
        let present = self.iter().position(|(k, _)| k == key);
        let replaced = present.map_or(0, |at| key.len() + self.entries_slice()[at].1.len());
        if present.is_none() && self.len() == Self::MAX_ENTRIES {
            return Err(InvalidMetadata::TooMany);
        }
        if self.bytes() - replaced + key.len() + value.len() > Self::MAX_BYTES {
            return Err(InvalidMetadata::TooLarge);
        }
        let entries = Arc::make_mut(self.entries.get_or_insert_default());
        match present {
            Some(at) => entries[at].1 = value,
            None => entries.push((key, value)),
        }
        Ok(())
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// All entries, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries_slice().iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries_slice().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_none()
    }

    /// The bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    fn entries_slice(&self) -> &[(String, String)] {
        self.entries.as_ref().map_or(&[], |entries| entries.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_change_nothing() {
        let mut metadata = Metadata::default();
        for n in 0..Metadata::MAX_ENTRIES {
            metadata.insert(format!("k{n}"), "v").unwrap();
        }
        let before = metadata.clone();
        assert_eq!(metadata.insert("one more", "v"), Err(InvalidMetadata::TooMany));
        assert_eq!(
            metadata.insert("k0", "x".repeat(Metadata::MAX_BYTES)),
            Err(InvalidMetadata::TooLarge)
        );
        assert_eq!(metadata, before);
        metadata.insert("k0", "new").unwrap();
        assert_eq!(metadata.value("k0"), Some("new"));
        assert_eq!(metadata.len(), Metadata::MAX_ENTRIES);
    }
}
