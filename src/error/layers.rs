//! What a foreign error, as of a user's tower layer, says of a call.

use std::error::Error;
use std::iter;

use super::Kind;

/// Maximum number of causes that are read: an error may be its own cause.
const MAX_CAUSES: usize = 16;

/// An error and its causes, outermost first.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    // Dereferenced, since a reference to an error is an error too, and lives shorter.
    iter::successors(Some(error), |error| (**error).source()).take(MAX_CAUSES)
}

/// The kind of an error of tower's own layers or of tokio's timeout; `None` for any other.
///
/// Another major version of tower has other types, which are unknown here.
pub(crate) fn foreign_kind(error: &(dyn Error + 'static)) -> Option<Kind> {
    causes(error).find_map(|cause| {
        if cause.is::<tower::timeout::error::Elapsed>() || cause.is::<tokio::time::error::Elapsed>()
        {
            Some(Kind::DeadlineExceeded)
        } else if cause.is::<tower::load_shed::error::Overloaded>() {
            Some(Kind::ResourceExhausted)
        } else if cause.is::<tower::buffer::error::Closed>() {
            Some(Kind::Unavailable)
        } else {
            None
        }
    })
}

/// The texts of an error and of its causes, without those that repeat another.
pub(crate) fn full_text(error: &(dyn Error + 'static)) -> String {
    causes(error).fold(String::new(), |mut text, cause| {
        let own = cause.to_string();
        if !text.contains(&own) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&own);
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;
    use crate::error::BoxError;

    #[derive(Debug, thiserror::Error)]
    #[error("no token")]
    struct Wrapped(#[source] BoxError);

    #[tokio::test(start_paused = true)]
    async fn errors_of_tower_and_tokio_are_recognised_by_type_at_any_depth() {
        let elapsed = tokio::time::timeout(std::time::Duration::ZERO, std::future::pending::<()>());
        let errors: [(BoxError, Kind); 3] = [
            (tower::timeout::error::Elapsed::new().into(), Kind::DeadlineExceeded),
            (tower::load_shed::error::Overloaded::new().into(), Kind::ResourceExhausted),
            (elapsed.await.unwrap_err().into(), Kind::DeadlineExceeded),
        ];
        for (error, kind) in errors {
            let text = error.to_string();
            let wrapped = Wrapped(error);
            assert_eq!(foreign_kind(&wrapped), Some(kind));
            assert_eq!(full_text(&wrapped), format!("no token: {text}"));
        }
        let same_text = BoxError::from("request timed out");
        assert_eq!(foreign_kind(&*same_text), None, "the text alone says nothing");
        assert_eq!(full_text(&*same_text), "request timed out");
    }

    #[test]
    fn an_error_that_is_its_own_cause_ends() {
        #[derive(Debug)]
        struct Endless;

        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("endless")
            }
        }

        impl Error for Endless {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(self)
            }
        }

        assert_eq!(causes(&Endless).count(), MAX_CAUSES);
        assert_eq!(full_text(&Endless), "endless");
    }
}
