//! What the URLs of all backends have in common.

/// A text is not the URL of a registry or a source, or of one that this build lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} cannot be opened: {reason}")]
pub struct InvalidUrl {
    url: String,
    reason: String,
}

impl InvalidUrl {
    pub(crate) fn new(url: &str, reason: impl Into<String>) -> Self {
        Self { url: shown(url), reason: reason.into() }
    }

    /// What is wrong, in a few words.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// The URL without a password that it may contain.
fn shown(url: &str) -> String {
    match (url.rsplit_once('@'), url.split_once("://")) {
        // There an `@` is a part of every address.
        (Some(_), Some(("static", _))) | (None, _) => url.to_owned(),
        (Some((_, host)), Some((scheme, _))) => format!("{scheme}://***@{host}"),
        (Some((_, host)), None) => format!("***@{host}"),
    }
}
