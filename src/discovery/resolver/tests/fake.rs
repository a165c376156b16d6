//! A source that does as it is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::discovery::{
    Discovery, DiscoveryError, DiscoveryErrorKind, Resolved, Resolver, ResolverBuilder, Update,
    UpdateStream,
};
use crate::instance::{Instance, ServiceName};
use crate::sync::Mutex;

pub(super) type Feed = mpsc::Sender<Result<Update, DiscoveryError>>;

pub(super) struct Fake {
    answer: Mutex<Answer>,
    watch: Mutex<Watch>,
    asked: AtomicUsize,
    watched: AtomicUsize,
}

/// What a request is answered with.
#[derive(Clone)]
pub(super) enum Answer {
    List(Resolved),
    Slow(Duration, Resolved),
    Down,
    Hangs,
    Panics,
    /// With a payload that panics when it is dropped.
    PanicsTwice,
}

/// A payload that panics when it is dropped.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped, on purpose");
        }
    }
}

/// What a watch gives.
enum Watch {
    None,
    Unsupported,
    /// One watch for each feed, in order; when they are used up it fails.
    Fed(VecDeque<mpsc::Receiver<Result<Update, DiscoveryError>>>),
}

impl Fake {
    pub(super) fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(answer),
            watch: Mutex::new(Watch::None),
            asked: AtomicUsize::new(0),
            watched: AtomicUsize::new(0),
        })
    }

    pub(super) fn listing(list: Resolved) -> Arc<Self> {
        Self::new(Answer::List(list))
    }

    pub(super) fn unsupported(self: Arc<Self>) -> Arc<Self> {
        *self.watch.lock() = Watch::Unsupported;
        self
    }

    pub(super) fn failing_watch(self: Arc<Self>) -> Arc<Self> {
        *self.watch.lock() = Watch::Fed(VecDeque::new());
        self
    }

    /// Lets the next watch be fed by hand.
    pub(super) fn feed(&self) -> Feed {
        let (feed, fed) = mpsc::channel(16);
        let mut watch = self.watch.lock();
        match &mut *watch {
            Watch::Fed(feeds) => feeds.push_back(fed),
            _ => *watch = Watch::Fed(VecDeque::from([fed])),
        }
        feed
    }

    pub(super) fn answers(&self, answer: Answer) {
        *self.answer.lock() = answer;
    }

    pub(super) fn lists(&self, list: Resolved) {
        self.answers(Answer::List(list));
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }

    pub(super) fn watched(&self) -> usize {
        self.watched.load(Relaxed)
    }

    pub(super) fn builder(self: &Arc<Self>) -> ResolverBuilder {
        let discovery: Arc<dyn Discovery> = Arc::<Self>::clone(self);
        Resolver::builder("Foo".parse().unwrap(), discovery).seed(7)
    }

    /// A resolver that has its first list, or its first error.
    pub(super) async fn resolver(self: &Arc<Self>) -> Resolver {
        let resolver = self.builder().build();
        resolver.first().await;
        resolver
    }
}

#[async_trait]
impl Discovery for Fake {
    async fn resolve(&self, _: &ServiceName) -> Result<Resolved, DiscoveryError> {
        self.asked.fetch_add(1, Relaxed);
        let answer = self.answer.lock().clone();
        match answer {
            Answer::List(list) => Ok(list),
            Answer::Slow(delay, list) => {
                tokio::time::sleep(delay).await;
                Ok(list)
            }
            Answer::Down => Err(DiscoveryError::unavailable("connection refused")),
            Answer::Hangs => std::future::pending().await,
            Answer::Panics => panic!("the source is told to panic"),
            Answer::PanicsTwice => std::panic::panic_any(PanicsOnDrop),
        }
    }

    fn watch(&self, _: &ServiceName) -> Option<UpdateStream> {
        self.watched.fetch_add(1, Relaxed);
        match &mut *self.watch.lock() {
            Watch::None => None,
            Watch::Unsupported => Some(failing(DiscoveryErrorKind::Unsupported)),
            Watch::Fed(feeds) => match feeds.pop_front() {
                None => Some(failing(DiscoveryErrorKind::Unavailable)),
                Some(mut fed) => Some(UpdateStream::fed(1, move |updates| async move {
                    while let Some(item) = fed.recv().await {
                        updates.send(item).await;
                    }
                })),
            },
        }
    }
}

fn failing(kind: DiscoveryErrorKind) -> UpdateStream {
    UpdateStream::fed(1, move |updates| async move {
        updates.send(Err(DiscoveryError::new(kind, "no watch"))).await;
    })
}

pub(super) fn at(port: u16) -> Instance {
    Instance::at(format!("tcp@a:{port}").parse().unwrap())
}

pub(super) fn unproven(ports: &[u16]) -> Resolved {
    Resolved::new(ports.iter().map(|port| at(*port)).collect())
}

pub(super) fn proven(ports: &[u16]) -> Resolved {
    unproven(ports).revision("r").authoritative(true)
}

/// The ports of the current list, in its order.
pub(super) fn ports(resolver: &Resolver) -> Vec<u16> {
    let snapshot = resolver.snapshot();
    let port = |index| snapshot.endpoints.at(index)?.instance().address.port();
    (0..snapshot.endpoints.len()).filter_map(port).collect()
}

/// The ports that are doubted.
pub(super) fn doubted(resolver: &Resolver) -> Vec<u16> {
    let snapshot = resolver.snapshot();
    let doubtful = snapshot.endpoints.iter().filter(|endpoint| endpoint.is_doubtful());
    doubtful.filter_map(|endpoint| endpoint.instance().address.port()).collect()
}

/// Lets everything happen that needs no time to speak of.
pub(super) async fn settle() {
    seconds(0.005).await;
}

/// Lets time pass.
pub(super) async fn seconds(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}
