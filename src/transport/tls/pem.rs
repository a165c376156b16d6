//! Where certificates and keys come from.

use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// The largest file that is read: a bundle of all public authorities is a quarter of it.
const LARGEST: u64 = 1024 * 1024;

/// Where certificates or a private key come from: PEM, in a file or in memory. Cheap to clone; its
/// `Debug` shows no contents.
#[derive(Clone)]
pub struct Pem {
    source: Source,
}

#[derive(Clone)]
enum Source {
    File(Arc<PathBuf>),
    Bytes(Arc<[u8]>),
}

impl Pem {
    /// A file, which is read again when it is time to look at it: at most 1 MiB.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { source: Source::File(Arc::new(path.into())) }
    }

    /// Bytes that stay as they are.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self { source: Source::Bytes(bytes.into().into()) }
    }

    fn read(&self) -> Result<Vec<u8>, TlsError> {
        let path = match &self.source {
            Source::File(path) => path,
            Source::Bytes(bytes) => return Ok(bytes.to_vec()),
        };
        let unreadable = |error| TlsError::Unreadable { from: self.to_string(), source: error };
        let mut bytes = Vec::new();
        File::open(&**path)
            .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        if bytes.len() as u64 > LARGEST {
            return Err(unreadable(io::Error::other("larger than 1 MiB")));
        }
        Ok(bytes)
    }
}

/// Says where it comes from, as messages do.
impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Bytes(_) => f.write_str("the PEM in memory"),
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::File(path) => f.debug_tuple("Pem").field(path).finish(),
            Source::Bytes(bytes) => write!(f, "Pem({} bytes)", bytes.len()),
        }
    }
}

/// Reads PEM, and remembers by a hash what it has read, so that the next look can tell whether
/// anything changed. Keys are not kept for that.
#[derive(Default)]
pub(super) struct Reader {
    hasher: DefaultHasher,
}

impl Reader {
    /// All certificates: at least one.
    pub(super) fn certificates(
        &mut self,
        pem: &Pem,
    ) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let bytes = self.bytes(pem)?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(pem, &error))?;
        if certificates.is_empty() {
            return Err(TlsError::Missing { from: pem.to_string(), what: "certificate" });
        }
        Ok(certificates)
    }

    /// The first private key.
    pub(super) fn key(&mut self, pem: &Pem) -> Result<PrivateKeyDer<'static>, TlsError> {
        let bytes = self.bytes(pem)?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
            pem::Error::NoItemsFound => {
                TlsError::Missing { from: pem.to_string(), what: "private key" }
            }
            error => unusable(pem, &error),
        })
    }

    /// What was read, as a number.
    pub(super) fn mark(&self) -> u64 {
        self.hasher.finish()
    }

    fn bytes(&mut self, pem: &Pem) -> Result<Vec<u8>, TlsError> {
        let bytes = pem.read()?;
        bytes.hash(&mut self.hasher);
        Ok(bytes)
    }
}

/// In words of our own: the library's show lines of what may be a key.
fn unusable(pem: &Pem, error: &pem::Error) -> TlsError {
    let reason = match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::Base64Decode(_) => "a section is no base64",
        _ => "it is no PEM",
    };
    TlsError::Unusable { from: pem.to_string(), reason: reason.to_owned() }
}
