//! What a handler fails with.

use std::fmt;

use super::Kind;

/// A handler's failure: a kind and a text, both of which reach the caller.
///
/// Whatever can be displayed becomes one, of kind `Unknown`, so that `?` works in a handler; for
/// that reason `Status` itself does not implement `Display` or `Error`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    kind: Kind,
    message: String,
}

impl Status {
    /// A failure of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The kind that the caller will see.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The text that the caller will see.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl<E: fmt::Display> From<E> for Status {
    fn from(error: E) -> Self {
        Self::new(Kind::Unknown, error.to_string())
    }
}
