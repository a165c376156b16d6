//! A watched source's changes, as a stream.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc;

use super::{DiscoveryError, InstanceId, Resolved};
use crate::instance::Instance;

/// A change that a watched source tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// The whole list; the first item of every watch, and the one after a gap.
    Set(Resolved),
    /// These are new or changed.
    Upsert(Vec<Instance>),
    /// These are gone, and the source knows it. That one lease ended proves it; that many ended at once does
    /// not: then send a `Set` that is `warming`.
    Remove(Vec<InstanceId>),
    /// The service itself is gone, and the source knows it.
    Gone,
}

/// A watched source's changes. Dropping it ends the work behind it.
pub struct UpdateStream(Pin<Box<dyn Stream<Item = Result<Update, DiscoveryError>> + Send>>);

impl UpdateStream {
    /// Wraps any stream.
    pub fn new(
        stream: impl Stream<Item = Result<Update, DiscoveryError>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(stream))
    }

    /// A stream fed by a future that is polled as part of it and dropped with it: no task is
    /// spawned, and none is left behind. The stream ends when the future does.
    ///
    /// At most `capacity` changes wait; then [`UpdateSender::send`] does.
    pub fn fed<F, Fut>(capacity: usize, feed: F) -> Self
    where
        F: FnOnce(UpdateSender) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let feed = feed(UpdateSender(sender));
        Self(Box::pin(Fed { feed: Some(Box::pin(feed)), receiver }))
    }

    /// The next change; `None` when the stream ended. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Update, DiscoveryError>> {
        std::future::poll_fn(|cx| self.0.as_mut().poll_next(cx)).await
    }
}

impl Stream for UpdateStream {
    type Item = Result<Update, DiscoveryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for UpdateStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpdateStream")
    }
}

/// The feeding end of [`UpdateStream::fed`].
#[derive(Clone, Debug)]
pub struct UpdateSender(mpsc::Sender<Result<Update, DiscoveryError>>);

impl UpdateSender {
    /// Sends a change, waiting while the stream is full. False: nobody listens any more.
    pub async fn send(&self, update: Result<Update, DiscoveryError>) -> bool {
        self.0.send(update).await.is_ok()
    }
}

struct Fed {
    /// Taken when it is done.
    feed: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    receiver: mpsc::Receiver<Result<Update, DiscoveryError>>,
}

impl Stream for Fed {
    type Item = Result<Update, DiscoveryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let done = self.feed.as_mut().is_some_and(|feed| feed.as_mut().poll(cx).is_ready());
        if done {
            self.feed = None;
        }
        self.receiver.poll_recv(cx)
    }
}
