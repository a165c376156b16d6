//! Why a registry gave no answer that can be used.

use std::borrow::Cow;
use std::fmt;

use super::api::{self, Problem};
use crate::backend::exchange::{Answer, ExchangeError};
use crate::discovery::{DiscoveryError, DiscoveryErrorKind};
use crate::error::BoxError;
use crate::registry::{RegistryError, RegistryErrorKind};
use crate::sync::event;

/// How many characters of a foreign text are shown.
const MAX_TEXT: usize = 256;

/// One private error, with one conversion to each door's.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer, or one that puts off.
    Unavailable { message: String, source: Option<BoxError> },
    /// An answer that is none: garbage, a page, the wrong shape.
    Nonsense(String),
    /// A registry's own words.
    Problem(Box<Problem>),
}

impl Failure {
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into(), source: None }
    }

    /// A refusal in words of whoever answered, which is no problem+json.
    pub(super) fn refused(answer: &Answer) -> Self {
        let text = String::from_utf8_lossy(&answer.body);
        Self::Problem(Box::new(Problem {
            kind: Cow::Borrowed(""),
            title: Cow::Borrowed("refused"),
            status: answer.status.as_u16(),
            detail: plain(&text),
            held_epoch: None,
            held_by: None,
            results: None,
            retry_after: answer.retry_after(),
        }))
    }

    /// What only `/v1` can, where there is none.
    pub(super) fn unsupported() -> Self {
        Self::Problem(Box::new(Problem {
            kind: Cow::Borrowed(api::UNSUPPORTED),
            title: Cow::Borrowed("not supported"),
            status: 501,
            detail: "the registry has no /v1".to_owned(),
            held_epoch: None,
            held_by: None,
            results: None,
            retry_after: None,
        }))
    }

    /// Whether another registry would answer the same: it is not asked then.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Problem(problem) if !is_temporary(problem))
    }

    /// Whether another process has replaced the one that asks.
    pub(super) fn is_superseded(&self) -> bool {
        self.registry_kind().is_superseded()
    }

    /// Whether the one who asks is not let in.
    pub(super) fn is_not_allowed(&self) -> bool {
        self.registry_kind() == RegistryErrorKind::NotAllowed
    }

    /// The same failure for one more lease.
    pub(super) fn registry_error(&self) -> RegistryError {
        let error = RegistryError::new(self.registry_kind(), self.to_string());
        match self {
            Self::Problem(problem) => {
                let error = error.retry_in(problem.retry_after);
                problem.held_by.iter().fold(error, |error, holder| error.held_by(holder.clone()))
            }
            Self::Unavailable { .. } | Self::Nonsense(_) => error,
        }
    }

    /// A refusal of the one who asks names the registry: the others may know him.
    pub(super) fn naming(self, url: &str) -> Self {
        match self {
            Self::Problem(mut problem) if matches!(problem.status, 401 | 403 | 421) => {
                problem.title = format!("{url}: {}", problem.title).into();
                Self::Problem(problem)
            }
            other => other,
        }
    }

    fn registry_kind(&self) -> RegistryErrorKind {
        match self {
            Self::Problem(problem) => registry_kind(problem),
            // A page in place of an answer comes from something that stands in for the registry
            // until it is back.
            Self::Unavailable { .. } | Self::Nonsense(_) => RegistryErrorKind::Unavailable,
        }
    }

    fn source(self) -> Option<BoxError> {
        match self {
            Self::Unavailable { source, .. } => source,
            Self::Nonsense(_) | Self::Problem(_) => None,
        }
    }
}

fn registry_kind(problem: &Problem) -> RegistryErrorKind {
    match (problem.status, problem.held_epoch) {
        (409, held) if problem.kind == api::STALE_EPOCH => {
            RegistryErrorKind::StaleEpoch { held: held.unwrap_or(u64::MAX) }
        }
        (409, held) if problem.kind == api::SUPERSEDED => {
            RegistryErrorKind::Superseded { held: held.unwrap_or(u64::MAX) }
        }
        (401 | 403 | 421, _) => RegistryErrorKind::NotAllowed,
        _ if problem.kind == api::FULL => RegistryErrorKind::Full,
        _ if problem.kind == api::UNSUPPORTED => RegistryErrorKind::Unsupported,
        _ if is_temporary(problem) => RegistryErrorKind::Unavailable,
        _ => RegistryErrorKind::Invalid,
    }
}

fn is_temporary(problem: &Problem) -> bool {
    // What is refused in foreign words was not refused by a registry: something stands in for it.
    let foreign = problem.kind.is_empty() && !matches!(problem.status, 400 | 401 | 403 | 421);
    // Of two registries that stand in for each other, not one part of the instances each.
    let is_final = problem.kind == api::FULL || problem.kind == api::UNSUPPORTED;
    // A registry that is mounted elsewhere answers for a path that it does not serve.
    let misrouted = problem.kind == api::NOT_FOUND;
    foreign || misrouted || (matches!(problem.status, 408 | 429 | 500..) && !is_final)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable { message, .. } | Self::Nonsense(message) => f.write_str(message),
            Self::Problem(problem) if problem.detail.is_empty() => {
                write!(f, "{} ({})", problem.title, problem.status)
            }
            Self::Problem(problem) => {
                write!(f, "{}: {} ({})", problem.title, problem.detail, problem.status)
            }
        }
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Unavailable { message, source } => Self::Unavailable { message, source },
            ExchangeError::Nonsense(message) => Self::Nonsense(message),
        }
    }
}

impl From<Failure> for RegistryError {
    fn from(failure: Failure) -> Self {
        let error = failure.registry_error();
        match failure.source() {
            Some(source) => error.because(source),
            None => error,
        }
    }
}

impl From<Failure> for DiscoveryError {
    fn from(failure: Failure) -> Self {
        let kind = match (&failure, failure.registry_kind()) {
            (_, RegistryErrorKind::NotAllowed) => DiscoveryErrorKind::NotAllowed,
            (Failure::Nonsense(_), _) => DiscoveryErrorKind::Invalid,
            (_, RegistryErrorKind::Unavailable) => DiscoveryErrorKind::Unavailable,
            (_, RegistryErrorKind::Unsupported) => DiscoveryErrorKind::Unsupported,
            _ => DiscoveryErrorKind::Invalid,
        };
        let error = DiscoveryError::new(kind, failure.to_string());
        match failure.source() {
            Some(source) => error.because(source),
            None => error,
        }
    }
}

/// The failures of one request, asked of one registry after the other.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<Failure>);

impl Failures {
    /// Adds one that names its registry.
    pub(super) fn keep(&mut self, failure: Failure) {
        self.0.push(failure);
    }

    pub(super) fn push(&mut self, url: &str, failure: Failure) {
        event!(DEBUG, url, %failure, "a registry failed");
        self.0.push(match failure {
            Failure::Unavailable { message, source } => {
                Failure::Unavailable { message: format!("{url}: {message}"), source }
            }
            Failure::Nonsense(message) => Failure::Nonsense(format!("{url}: {message}")),
            Failure::Problem(mut problem) => {
                problem.title = format!("{url}: {}", problem.title).into();
                Failure::Problem(problem)
            }
        });
    }

    /// All of them as one. The one is kept whole; of several, the texts.
    pub(super) fn into_one(mut self) -> Failure {
        match self.0.pop() {
            Some(only) if self.0.is_empty() => only,
            None => Failure::unavailable("no registry was asked"),
            Some(last) => {
                self.0.push(last);
                let texts: Vec<String> = self.0.iter().map(Failure::to_string).collect();
                let text = texts.join("; ");
                if self.0.iter().all(|failure| matches!(failure, Failure::Nonsense(_))) {
                    return Failure::Nonsense(text);
                }
                Failure::unavailable(text)
            }
        }
    }
}

/// What a peer says, made fit for a line of a log.
pub(super) fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(MAX_TEXT).map(shown).collect()
}
