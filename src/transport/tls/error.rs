//! Why certificates or a key cannot be used.

use std::io;

/// Why certificates or a key cannot be used. Its text names the file and never shows its contents.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{from} cannot be read: {source}")]
    Unreadable {
        /// Which file.
        from: String,
        /// What the system says.
        source: io::Error,
    },
    /// What was looked for is not in it.
    #[error("{from} holds no {what}")]
    Missing {
        /// Which file.
        from: String,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// It is damaged, or of a kind that is not supported.
    #[error("{from} cannot be used: {reason}")]
    Unusable {
        /// Which file.
        from: String,
        /// Why, in a few words.
        reason: String,
    },
    /// A certificate and a key that do not belong together.
    #[error("the key in {key} does not belong to the certificate in {certificate}")]
    Mismatch {
        /// Which file holds the certificate.
        certificate: String,
        /// Which file holds the key.
        key: String,
    },
    /// A name that no certificate could be for.
    #[error("{0:?} is neither a host name nor an IP address")]
    ServerName(String),
}
