//! Several sources as one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream;
use tokio::time::{Instant, sleep_until};

use super::follow::{apply, changes, endless};
use crate::backend::join::all;
use crate::discovery::{Discovery, DiscoveryError, Resolved, Update, UpdateSender, UpdateStream};
use crate::instance::{Instance, ServiceName};
use crate::sync::Mutex;

/// How often a source without a watch is asked.
const POLL: Duration = Duration::from_secs(10);
/// How long the first list of a watch waits for a source that has not answered yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// Several sources as one: an instance is there if one of them has it. Of two with one id the one with the
/// higher epoch counts, of two at one address the one that is up, then the higher epoch; of equal ones that
/// of the source named first.
///
/// It serves a move from one registry to another: clients look at both, while servers are restarted to
/// register with the new one. A source that fails keeps what it last said, so that nothing is lost
/// while another answers; the list then proves nothing. If none answers, it is an error.
#[derive(Clone)]
pub struct Merged {
    sources: Vec<Arc<dyn Discovery>>,
    /// What each source said last, by service.
    last: Arc<Mutex<HashMap<ServiceName, Vec<Option<Resolved>>>>>,
}

impl Merged {
    /// These sources. Without any, no service has an instance, and nothing proves it.
    pub fn new(sources: impl IntoIterator<Item = Arc<dyn Discovery>>) -> Self {
        Self { sources: sources.into_iter().collect(), last: Arc::default() }
    }
}

#[async_trait]
impl Discovery for Merged {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let answers =
            all(self.sources.iter().map(|source| source.resolve(service)).collect()).await;
        let (mut failed, mut answered) = (None, self.sources.is_empty());
        let mut heard = Vec::new();
        // Before the lock is taken: the source of an error that is dropped is the user's.
        for answer in answers {
            match answer {
                Ok(resolved) => {
                    answered = true;
                    heard.push(Some(resolved));
                }
                Err(error) => {
                    heard.push(None);
                    failed = Some(error);
                }
            }
        }
        let mut last = self.last.lock();
        let known = last.entry(service.clone()).or_default();
        known.resize(self.sources.len(), None);
        for (known, heard) in known.iter_mut().zip(heard) {
            match (known, heard) {
                (known, Some(resolved)) => *known = Some(resolved),
                (Some(known), None) => known.complete = false,
                (None, None) => {}
            }
        }
        match failed {
            // Whoever asks has the last list already.
            Some(error) if !answered => Err(error),
            _ => Ok(union(known)),
        }
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let sources = self.sources.iter();
        let watches = sources.map(|source| endless(Arc::clone(source), service.clone(), POLL));
        let watches = watches.collect();
        Some(UpdateStream::fed(4, |updates| follow(watches, updates)))
    }

    /// Those of any source. One that fails is an error: what it alone has would be missing.
    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        let answers = all(self.sources.iter().map(|source| source.services()).collect()).await;
        let mut services = BTreeSet::new();
        for answer in answers {
            services.extend(answer?);
        }
        Ok(services.into_iter().collect())
    }
}

/// Sends the union of what the watches tell, and its changes.
async fn follow(mut watches: Vec<UpdateStream>, updates: UpdateSender) {
    let mut lists: Vec<Option<Resolved>> = watches.iter().map(|_| None).collect();
    let mut silent: HashSet<usize> = (0..lists.len()).collect();
    let mut down: HashSet<usize> = HashSet::new();
    let begun = Instant::now();
    let mut sent: Option<Vec<Instance>> = None;
    loop {
        let next = tokio::select! {
            biased;
            next = poll_fn(|cx| any(&mut watches, cx)) => Some(next),
            () = sleep_until(begun + PATIENCE), if sent.is_none() => None,
        };
        let mut is_whole = true;
        let mut error = None;
        match next {
            Some((at, Some(Ok(update)))) => {
                silent.remove(&at);
                down.remove(&at);
                let list = lists[at].get_or_insert_default();
                is_whole = apply(list, update);
            }
            Some((at, Some(Err(failure)))) => {
                silent.remove(&at);
                down.insert(at);
                // That it proves nothing any more is news once: an old list is no new answer.
                let known = lists[at].as_mut();
                is_whole = known.is_some_and(|list| std::mem::replace(&mut list.complete, false));
                error = Some(failure);
            }
            // They have no end.
            Some((_, None)) => return,
            None => {}
        }
        if sent.is_none() && !silent.is_empty() && next_is_early(begun) {
            continue;
        }
        if lists.iter().all(Option::is_none) {
            let none = || DiscoveryError::unavailable("none of the sources has answered");
            updates.send(Err(error.unwrap_or_else(none))).await;
            return;
        }
        if down.len() == lists.len()
            && let Some(error) = error.take()
        {
            // Nobody tells anything: whoever listens knows the last list, and how old it is.
            updates.send(Err(error)).await;
            return;
        }
        let whole = union(&lists);
        let instances = whole.instances.clone();
        let news = match &sent {
            Some(before) if !is_whole => changes(before, &instances),
            _ => vec![Update::Set(whole)],
        };
        for update in news {
            if !updates.send(Ok(update)).await {
                return;
            }
        }
        sent = Some(instances);
    }
}

fn next_is_early(begun: Instant) -> bool {
    begun.elapsed() < PATIENCE
}

/// The next item of any stream, with its place.
fn any(
    watches: &mut [UpdateStream],
    cx: &mut Context<'_>,
) -> Poll<(usize, Option<Result<Update, DiscoveryError>>)> {
    for (at, watch) in watches.iter_mut().enumerate() {
        if let Poll::Ready(item) = Pin::new(watch).poll_next(cx) {
            return Poll::Ready((at, item));
        }
    }
    Poll::Pending
}

/// All instances of these lists, each once. It proves as much as the least of them.
fn union(lists: &[Option<Resolved>]) -> Resolved {
    let mut instances: Vec<Option<&Instance>> = Vec::new();
    let (mut by_id, mut by_address) = (HashMap::new(), HashMap::new());
    for instance in lists.iter().flatten().flat_map(|list| &list.instances) {
        let same = [by_id.get(&instance.id), by_address.get(&instance.address)];
        let same: Vec<usize> = same.into_iter().flatten().copied().collect();
        let wins = |at: &usize| instances[*at].is_none_or(|other| instance.replaces(other));
        if !same.iter().all(wins) {
            continue;
        }
        same.iter().for_each(|at| instances[*at] = None);
        by_id.insert(&instance.id, instances.len());
        by_address.insert(&instance.address, instances.len());
        instances.push(Some(instance));
    }
    let instances = instances.into_iter().flatten().cloned().collect();
    let known: Vec<&Resolved> = lists.iter().flatten().collect();
    let complete = known.len() == lists.len() && known.iter().all(|list| list.complete);
    let mut resolved =
        Resolved::new(instances).complete(complete).warming(known.iter().any(|list| list.warming));
    resolved.authoritative = !known.is_empty() && known.iter().all(|list| list.authoritative);
    resolved.valid_for = known.iter().filter_map(|list| list.valid_for).min();
    // What left one registry may still be in another.
    let deregistered = known.iter().flat_map(|list| &list.deregistered);
    resolved.deregistered = deregistered.filter(|id| !by_id.contains_key(id)).cloned().collect();
    let resolved = resolved.unread(known.iter().flat_map(|list| list.unread.iter().cloned()));
    let revisions: Option<Vec<&str>> = known.iter().map(|list| list.revision.as_deref()).collect();
    match revisions {
        Some(revisions) if !revisions.is_empty() => resolved.revision(revisions.join("+")),
        _ => resolved,
    }
}

impl fmt::Debug for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merged").field("sources", &self.sources.len()).finish()
    }
}
