//! Whether a request that failed has left, as far as hyper tells.

use std::error::Error;

/// Whether nothing of a request was sent: it waited for a connection that ended, or `is_connect` says of a
/// cause that there was none. What is not known counts as sent.
pub(super) fn was_not_sent(
    error: &(dyn Error + 'static),
    is_connect: impl Fn(&(dyn Error + 'static)) -> bool,
) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // hyper cancels what it has not begun to write, and nothing else.
        let canceled = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        if canceled || is_connect(error) {
            return true;
        }
        cause = error.source();
    }
    false
}
