//! Why a call failed: what kind of failure, where, at which attempt, and whether it was executed.

mod execution;
mod kind;
mod layers;
mod panics;
mod status;

use std::borrow::Cow;
use std::fmt;

pub use self::execution::{Execution, Fate};
pub use self::kind::Kind;
pub(crate) use self::layers::{causes, foreign_kind, full_text};
pub(crate) use self::panics::{Panic, catch, caught, discard};
pub use self::status::Status;
use crate::instance::Address;

/// What tower's services and layers may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The longest text of an error that is sent, or taken from a peer, in bytes.
pub(crate) const MAX_TEXT: usize = 4 * 1024;

/// As much of a text as is sent, in whole characters.
pub(crate) fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The text of an error as a peer sent it.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    let mut end = bytes.len().min(MAX_TEXT);
    if end < bytes.len() {
        // Not within a character of UTF-8, which continues in up to three bytes 10xxxxxx.
        let first = end - 3;
        while end > first && bytes[end] & 0xc0 == 0x80 {
            end -= 1;
        }
    }
    // Bytes that are no UTF-8 grow where they are replaced.
    let text = String::from_utf8_lossy(&bytes[..end]);
    cut(&text).to_owned()
}

/// Why a call failed.
///
/// Four things can be asked of it: [`kind`](Self::kind), the [`endpoint`](Self::endpoint) it
/// failed at, the [`attempt`](Self::attempt) and its [`execution`](Self::execution), which says
/// whether the call may have had an effect. `NotSent` and `Rejected` are promises: the handler has
/// not run.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    fate: Fate,
    /// The fate's, or the strongest one of an earlier attempt's and it.
    execution: Execution,
    endpoint: Option<Address>,
    /// Counted from 1; 0 before the first attempt.
    attempt: u32,
    message: Cow<'static, str>,
    source: Option<BoxError>,
}

impl Error {
    /// An error of this kind whose fate decides its execution.
    pub fn new(kind: Kind, fate: Fate, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            fate,
            execution: fate.execution(),
            endpoint: None,
            attempt: 0,
            message: message.into(),
            source: None,
        }))
    }

    /// A refusal by a layer of a client, for the layer to fail with: the call was not sent.
    ///
    /// `Unavailable` and `ResourceExhausted` may be tried again, and every other kind is final, as for a
    /// server's refusals. If the layer did pass the call on, its caller is told what became of that.
    /// A layer of a service fails with [`Failure::rejected`](crate::server::Failure::rejected).
    ///
    /// ```
    /// # use srpc::{Call, Error, Kind};
    /// # use srpc::xclient::XClientBuilder;
    /// # fn example(builder: XClientBuilder) -> XClientBuilder {
    /// builder.layer(tower::filter::FilterLayer::new(|call: Call| match &*call.method {
    ///     "Foo.Old" => Err(Error::refused(Kind::FailedPrecondition, "Foo.Old is switched off")),
    ///     _ => Ok(call),
    /// }))
    /// # }
    /// ```
    pub fn refused(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(kind, Fate::LayerRefused, message)
    }

    /// An error that a server answered with.
    pub(crate) fn answered(kind: Kind, execution: Execution, message: String) -> Self {
        let fate = match execution {
            Execution::Executed => Fate::Failed,
            Execution::MaybeExecuted => Fate::HandlerDropped,
            Execution::Rejected | Execution::NotSent => Fate::Refused,
        };
        Self::new(kind, fate, message)
    }

    /// The kind of failure, in the vocabulary of gRPC's status codes.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether the call was executed, as far as can be known here.
    pub fn execution(&self) -> Execution {
        self.0.execution
    }

    /// What happened to the last attempt.
    pub(crate) fn fate(&self) -> Fate {
        self.0.fate
    }

    /// The endpoint of the last attempt; `None` if the call never had one.
    pub fn endpoint(&self) -> Option<&Address> {
        self.0.endpoint.as_ref()
    }

    /// The number of the last attempt, from 1; 0 if none was made.
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// The text: the service's own if it answered, ours otherwise.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether another attempt may be made without the risk of a second execution.
    ///
    /// `idempotent` is the caller's word that a second execution does no harm.
    pub fn may_be_sent_again(&self, idempotent: bool) -> bool {
        let Inner { kind, fate, execution, .. } = &*self.0;
        // What a layer refuses it refuses again, as a server does, unless the kind says otherwise.
        let class = match (fate, execution) {
            (Fate::LayerRefused, Execution::NotSent) => Execution::Rejected,
            _ => *execution,
        };
        class.may_be_sent_again(*kind, idempotent)
    }

    /// Names the endpoint, unless it is named already.
    #[must_use]
    pub fn at(mut self, endpoint: &Address) -> Self {
        self.0.endpoint.get_or_insert_with(|| endpoint.clone());
        self
    }

    /// Sets the number of the attempt.
    #[must_use]
    pub fn on_attempt(mut self, attempt: u32) -> Self {
        self.0.attempt = attempt;
        self
    }

    /// Adds what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Raises the execution to the strongest one of an earlier attempt's and this one's.
    #[must_use]
    pub fn after(mut self, earlier: Execution) -> Self {
        self.raise(earlier);
        self
    }

    /// [`after`](Self::after) in place.
    pub(crate) fn raise(&mut self, earlier: Execution) {
        self.0.execution = self.0.execution.max(earlier);
    }

    /// Turns what a tower stack failed with into an `Error`: the one place where erased errors come
    /// back.
    ///
    /// Our own errors are found at any depth. Errors of tower's layers are recognised by their types:
    /// `timeout` is DeadlineExceeded, `load_shed` ResourceExhausted, a closed `buffer` Unavailable. All
    /// others, also those of another major version of tower, are Unknown, with their text.
    ///
    /// Whether such a call had been sent is not known here, so these count as `MaybeExecuted`. A client
    /// knows it of its own layers.
    pub fn from_boxed(error: BoxError) -> Self {
        let error = match error.downcast::<Error>() {
            Ok(error) => return *error,
            Err(error) => error,
        };
        let ours = causes(&*error).find_map(|cause| cause.downcast_ref::<Error>()).map(|ours| {
            let mut found = Error::new(ours.kind(), ours.fate(), ours.message().to_owned())
                .on_attempt(ours.attempt());
            found.0.execution = ours.execution();
            found.0.endpoint = ours.endpoint().cloned();
            found
        });
        if let Some(found) = ours {
            return found.because(error);
        }
        let kind = foreign_kind(&*error);
        let what = match kind {
            Some(Kind::DeadlineExceeded) => "a layer's timeout passed",
            _ => "a layer failed",
        };
        let message = format!("{what}: {}", full_text(&*error));
        Error::new(kind.unwrap_or(Kind::Unknown), Fate::Unknown, message).because(error)
    }

    /// What a client's layers failed with. `passed_on` is the strongest class of the copies of the call that they
    /// passed on; with none, or none that was sent, the call was not sent, whatever else the layers did.
    pub(crate) fn of_layers(error: BoxError, passed_on: Execution) -> Self {
        let mut error = Self::from_boxed(error);
        if passed_on == Execution::NotSent && error.execution() != Execution::NotSent {
            error.0.fate = Fate::LayerRefused;
            error.0.execution = Execution::NotSent;
        }
        error.after(passed_on)
    }
}

impl From<BoxError> for Error {
    fn from(error: BoxError) -> Self {
        Self::from_boxed(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.kind, self.0.message)?;
        match (&self.0.endpoint, self.0.attempt) {
            (Some(endpoint), 0 | 1) => write!(f, " ({endpoint}, {})", self.0.execution),
            (Some(endpoint), n) => write!(f, " ({endpoint}, attempt {n}, {})", self.0.execution),
            (None, _) => write!(f, " ({})", self.0.execution),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("execution", &self.0.execution)
            .field("endpoint", &self.0.endpoint)
            .field("attempt", &self.0.attempt)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_two_characters() {
        let emojis = format!("x{}", "\u{1f600}".repeat(2000));
        for text in ["x".repeat(9000), "\u{e4}".repeat(9000), emojis] {
            let taken = text_of(text.as_bytes());
            assert!(taken.len() <= MAX_TEXT && taken.len() > MAX_TEXT - 4, "{}", taken.len());
            assert!(text.starts_with(&taken));
            assert_eq!(cut(&text), taken);
        }
        assert!(text_of(&[0xff; 9000]).len() <= MAX_TEXT);
        assert!(text_of(&[0x80; 9000]).len() <= MAX_TEXT);
        assert_eq!(text_of(b"short \xff"), "short \u{fffd}");
    }

    #[test]
    fn an_error_wrapped_by_a_layer_is_found_again() {
        #[derive(Debug, thiserror::Error)]
        #[error("wrapped")]
        struct Wrapped(#[source] Error);

        let inner = Error::new(Kind::Unavailable, Fate::NoConnection, "refused")
            .at(&"tcp@a:1".parse().unwrap())
            .on_attempt(2);
        let found = Error::from_boxed(Box::new(Wrapped(inner)));
        assert_eq!(found.kind(), Kind::Unavailable);
        assert_eq!(found.execution(), Execution::NotSent);
        assert_eq!(found.attempt(), 2);
        assert_eq!(found.endpoint().unwrap().as_str(), "tcp@a:1");
    }

    #[test]
    fn towers_elapsed_is_a_deadline() {
        let elapsed = tower::timeout::error::Elapsed::new();
        let error = Error::from_boxed(elapsed.into());
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert_eq!(error.execution(), Execution::MaybeExecuted);
    }

    #[test]
    fn what_layers_did_not_pass_on_was_not_sent() {
        let plain = || BoxError::from("switched off");
        let error = Error::of_layers(plain(), Execution::NotSent);
        assert_eq!((error.kind(), error.execution()), (Kind::Unknown, Execution::NotSent));
        assert!(error.to_string().contains("switched off"), "{error}");
        assert!(!error.may_be_sent_again(true));
        let error = Error::of_layers(plain(), Execution::MaybeExecuted);
        assert_eq!(error.execution(), Execution::MaybeExecuted);
        // A call of another client, which the layer made first.
        let other = || Error::new(Kind::PermissionDenied, Fate::Failed, "who are you?").into();
        assert_eq!(Error::of_layers(other(), Execution::NotSent).execution(), Execution::NotSent);
        let other = || Error::new(Kind::Unavailable, Fate::NoConnection, "nobody is there").into();
        let error = Error::of_layers(other(), Execution::MaybeExecuted);
        assert_eq!(error.execution(), Execution::MaybeExecuted);
        assert!(!error.may_be_sent_again(false));
        let refused = || Error::refused(Kind::Unavailable, "later").into();
        assert!(Error::of_layers(refused(), Execution::NotSent).may_be_sent_again(false));
        assert!(!Error::of_layers(refused(), Execution::MaybeExecuted).may_be_sent_again(false));
    }
}
