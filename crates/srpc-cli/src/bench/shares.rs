//! Which instance answered how many calls?

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use srpc::xclient::Attempt;
use srpc::{Address, Reply};
use tower::{Layer, Service};

/// A layer around each attempt that counts the answers of each instance. A call is answered once,
/// however many attempts it took. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    answered: Arc<RwLock<HashMap<Address, Arc<AtomicU64>>>>,
}

impl Shares {
    /// The counts, by address.
    pub(super) fn by_address(&self) -> BTreeMap<String, u64> {
        let answered = self.answered.read().unwrap_or_else(PoisonError::into_inner);
        answered.iter().map(|(address, count)| (address.to_string(), count.load(Relaxed))).collect()
    }

    fn of(&self, address: &Address) -> Arc<AtomicU64> {
        let known = self.answered.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = known.get(address) {
            return Arc::clone(count);
        }
        drop(known);
        let mut answered = self.answered.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(answered.entry(address.clone()).or_default())
    }
}

impl<S> Layer<S> for Shares {
    type Service = Shared<S>;

    fn layer(&self, inner: S) -> Shared<S> {
        Shared { inner, shares: self.clone() }
    }
}

/// The service that [`Shares`] makes of another.
#[derive(Clone, Debug)]
pub(super) struct Shared<S> {
    inner: S,
    shares: Shares,
}

impl<S> Service<Attempt> for Shared<S>
where
    S: Service<Attempt, Response = Reply>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Reply;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let count = self.shares.of(&attempt.endpoint.instance().address);
        let answer = self.inner.call(attempt);
        Box::pin(async move {
            let answered = answer.await;
            if answered.is_ok() {
                count.fetch_add(1, Relaxed);
            }
            answered
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_one_count() {
        let shares = Shares::default();
        let (a, b): (Address, Address) = ("tcp@a:1".parse().unwrap(), "tcp@b:1".parse().unwrap());
        shares.of(&a).fetch_add(1, Relaxed);
        shares.clone().of(&a).fetch_add(1, Relaxed);
        shares.of(&b).fetch_add(1, Relaxed);
        let counts = shares.by_address();
        assert_eq!(counts.get("tcp@a:1"), Some(&2));
        assert_eq!(counts.get("tcp@b:1"), Some(&1));
    }
}
