//! The deadline that calls made inside a handler or a client's layers inherit.

use tokio::time::Instant;

tokio::task_local! {
    static DEADLINE: Instant;
}

/// Runs a future whose calls, of whatever client, end by `deadline`: the earlier of it and the one
/// that holds already.
///
/// A server does so with every handler, so that calls made inside one end when its own caller stops
/// waiting. What a handler spawns is a task of its own and inherits nothing; this hands the deadline
/// on. A client is told to inherit nothing by `XClientBuilder::inherit_deadline`.
///
/// Dropping the future drops `future`.
///
/// ```
/// # async fn audit() {}
/// # async fn handler(context: srpc::server::Context) {
/// tokio::spawn(srpc::call::within(context.deadline(), audit()));
/// # }
/// ```
pub async fn within<F: Future>(deadline: Instant, future: F) -> F::Output {
    let deadline = inherited().map_or(deadline, |outer| outer.min(deadline));
    DEADLINE.scope(deadline, future).await
}

/// The deadline of the handler, or of the client's layers, that this runs in; `None` outside of both.
pub fn inherited() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok()
}

/// Runs one poll of a handler, or of a client's layers, under its deadline.
pub(crate) fn enter<R>(deadline: Instant, poll: impl FnOnce() -> R) -> R {
    DEADLINE.sync_scope(deadline, poll)
}
