//! Which instance answered how many calls, and failed how many attempts?

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use srpc::xclient::Attempt;
use srpc::{Address, Reply};
use tower::{Layer, Service};

/// A layer around each attempt that counts the answers and the failures of each instance. A call is answered
/// once, however many attempts it took. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    counts: Arc<RwLock<HashMap<Address, Arc<Counts>>>>,
}

/// How the attempts at one address ended.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Shares {
    /// The answers of each address, and the failed attempts of those that have any.
    pub(super) fn by_address(&self) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
        let (mut answered, mut failed) = (BTreeMap::new(), BTreeMap::new());
        let known = self.counts.read().unwrap_or_else(PoisonError::into_inner);
        for (address, counts) in known.iter() {
            answered.insert(address.to_string(), counts.answered.load(Relaxed));
            let failures = counts.failed.load(Relaxed);
            if failures > 0 {
                failed.insert(address.to_string(), failures);
            }
        }
        (answered, failed)
    }

    fn of(&self, address: &Address) -> Arc<Counts> {
        let known = self.counts.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = known.get(address) {
            return Arc::clone(counts);
        }
        drop(known);
        let mut counts = self.counts.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(counts.entry(address.clone()).or_default())
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
        let counts = self.shares.of(&attempt.endpoint.instance().address);
        let answer = self.inner.call(attempt);
        Box::pin(async move {
            let answered = answer.await;
            let count = if answered.is_ok() { &counts.answered } else { &counts.failed };
            count.fetch_add(1, Relaxed);
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
        shares.of(&a).answered.fetch_add(1, Relaxed);
        shares.clone().of(&a).answered.fetch_add(1, Relaxed);
        shares.of(&b).failed.fetch_add(1, Relaxed);
        let (answered, failed) = shares.by_address();
        let of = |counts: &[(&str, u64)]| {
            counts.iter().map(|(at, count)| ((*at).to_owned(), *count)).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(answered, of(&[("tcp@a:1", 2), ("tcp@b:1", 0)]));
        assert_eq!(failed, of(&[("tcp@b:1", 1)]));
    }
}
