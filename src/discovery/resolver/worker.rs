//! The task of a resolver: when the source is asked, and when it is watched.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::shared::Shared;
use crate::call::until;
use crate::discovery::{
    Discovery, DiscoveryError, DiscoveryErrorKind, Resolved, Update, UpdateStream,
};
use crate::error::{Panic, caught, discard};

/// The pause after a first failure; it doubles with each further one.
const BACKOFF: Duration = Duration::from_millis(100);

/// How long a new resolver waits for a watch's first item before it asks for the list.
const FIRST_ITEM: Duration = Duration::from_secs(1);

/// The least time between two requests, if the second is made because endpoints cannot be reached.
const DOUBTED: Duration = Duration::from_secs(1);

/// How long a watch must have told the list, and not less than the pause before it, for its end not to
/// count as one more failure: such a watch costs its source one list in that time at the most, and who
/// waits ten seconds after it misses ten seconds of changes.
const HELD: Duration = Duration::from_secs(1);

/// The least time that an answer is taken to hold, whatever the source says.
const SHORTEST_VALIDITY: Duration = Duration::from_secs(1);

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Between two requests to a source that is not watched.
    pub(super) poll: Duration,
    /// Between two requests to a source that is watched.
    pub(super) resync: Duration,
    /// One request at most.
    pub(super) timeout: Duration,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    discovery: Arc<dyn Discovery>,
    timing: Timing,
    rng: StdRng,
    /// The request under way. A watch is listened to meanwhile: a source may well hang in one and
    /// not in the other.
    asking: Option<Asking>,
    /// Requests that failed since the last one answered.
    failures: u32,
    /// Whether it has ever answered.
    has_answered: bool,
    /// When it was asked last.
    asked: Instant,
    /// When to ask next, unless it is being asked.
    due: Instant,
    watch: Option<Watch>,
    /// Watches that ended since the last one that held, or since the source came back.
    watch_failures: u32,
    /// The pause before the watch that was opened last.
    watch_pause: Duration,
    /// When to watch again; `None` under a watch, and for a source that offers none.
    rewatch_at: Option<Instant>,
}

struct Asking {
    /// Of the list when the question was asked.
    version: u64,
    answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
}

type Answer = Result<Resolved, DiscoveryError>;

struct Watch {
    stream: UpdateStream,
    opened: Instant,
    /// Its whole list has come.
    listed: bool,
}

enum Event {
    Answered(u64, Answer),
    Wanted,
    Due,
    Rewatch,
    Told(Option<Result<Update, DiscoveryError>>),
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        discovery: Arc<dyn Discovery>,
        timing: Timing,
        seed: u64,
    ) -> Self {
        let now = Instant::now();
        Self {
            shared,
            discovery,
            timing,
            rng: StdRng::seed_from_u64(seed),
            asking: None,
            failures: 0,
            has_answered: false,
            asked: now,
            due: now + FIRST_ITEM,
            watch: None,
            watch_failures: 0,
            watch_pause: Duration::ZERO,
            rewatch_at: Some(now),
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            // Source and selector are the user's: their panic must not leave every client of this
            // process with a list that nobody keeps up any more.
            let ended = caught(self.turn()).await;
            if let Err(panic) = ended {
                self.panicked(&panic, Instant::now());
                // On a runtime without a timer each turn panics: other tasks must run in between.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits for one event and does what it asks for.
    async fn turn(&mut self) {
        let due = self.asking.is_none().then_some(self.due);
        // Biased, so that a seed gives one run; the watch is last, so that a torrent of updates
        // holds nothing up.
        let event = tokio::select! {
            biased;
            (version, answer) = answered(&mut self.asking) => Event::Answered(version, answer),
            () = self.shared.flights.wished() => Event::Wanted,
            () = until(self.rewatch_at) => Event::Rewatch,
            () = until(due) => Event::Due,
            item = told(&mut self.watch) => Event::Told(item),
        };
        let now = Instant::now();
        match event {
            Event::Answered(version, answer) => self.answered(version, answer, now),
            Event::Wanted => {
                if self.shared.flights.take_doubt() {
                    self.doubted(now);
                }
                // If not, a flight that ended meanwhile has fulfilled the wish.
                if self.shared.flights.is_wanted() {
                    self.ask();
                }
            }
            Event::Due => self.ask(),
            Event::Rewatch => self.watch(now),
            Event::Told(item) => self.told(item, now),
        }
    }

    /// Endpoints of the list cannot be reached: there may be news, which no watch has told.
    fn doubted(&mut self, now: Instant) {
        // A source that fails is asked at its own pace.
        if self.failures == 0 {
            let soon = now.max(self.asked + DOUBTED);
            self.due = self.due.min(soon);
            self.rewatch_at = self.rewatch_at.map(|at| at.min(soon));
        }
    }

    fn ask(&mut self) {
        if self.asking.is_some() {
            return;
        }
        self.asked = Instant::now();
        let discovery = Arc::clone(&self.discovery);
        let service = self.shared.service.clone();
        let limit = self.timing.timeout;
        let answer = async move {
            match tokio::time::timeout(limit, discovery.resolve(&service)).await {
                Ok(answer) => answer,
                Err(_) => {
                    let message = format!("the source gave no answer within {limit:?}");
                    Err(DiscoveryError::unavailable(message))
                }
            }
        };
        self.asking = Some(Asking { version: self.shared.version(), answer: Box::pin(answer) });
    }

    fn answered(&mut self, version: u64, answer: Answer, now: Instant) {
        self.asking = None;
        match answer {
            Ok(answer) => {
                let valid_for = answer.valid_for;
                self.shared.answered(answer, version, now);
                if self.failures > 0 {
                    // The source is back, and so may its watch be: without one, what changes next
                    // would be learnt at the next poll.
                    self.rewatch_at = self.rewatch_at.map(|at| at.min(now));
                    self.watch_failures = 0;
                }
                self.failures = 0;
                self.has_answered = true;
                self.due = now + self.pause(valid_for);
                self.shared.flights.landed(None);
            }
            Err(error) => self.failed(error, now),
        }
    }

    fn failed(&mut self, error: DiscoveryError, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.due = now + self.backoff(self.failures);
        let error = Arc::new(error);
        self.shared.failed(&error, now);
        self.shared.flights.landed(Some(error));
    }

    fn watch(&mut self, now: Instant) {
        let stream = self.discovery.watch(&self.shared.service);
        self.rewatch_at = None;
        self.watch = stream.map(|stream| Watch { stream, opened: now, listed: false });
        // Whoever refreshes a new resolver has asked already; when to ask again is settled then.
        if self.watch.is_none() && self.failures == 0 && !self.has_answered {
            self.due = self.due.min(now);
        }
    }

    fn told(&mut self, item: Option<Result<Update, DiscoveryError>>, now: Instant) {
        let update = match item {
            Some(Ok(update)) => update,
            Some(Err(error)) => return self.unwatched(Some(error), now),
            None => return self.unwatched(None, now),
        };
        let whole = matches!(update, Update::Set(_) | Update::Gone);
        self.shared.told(update, now);
        // Changes of single instances do not put the resync off: a busy service needs it as well.
        if whole {
            if let Some(watch) = &mut self.watch {
                watch.listed = true;
            }
            // It is back: when this watch ends, the source is asked at once, and not at the pace of
            // failures that are over.
            self.failures = 0;
            self.due = now + self.pause(None);
        }
    }

    /// The watch ended; until the next one stands, the source is polled.
    fn unwatched(&mut self, error: Option<DiscoveryError>, now: Instant) {
        let held = self.watch.take().is_some_and(|watch| {
            let time = now.duration_since(watch.opened);
            watch.listed && time >= HELD.max(self.watch_pause)
        });
        let unsupported =
            error.as_ref().is_some_and(|e| e.kind() == DiscoveryErrorKind::Unsupported);
        let poll_at = match error {
            Some(error) => {
                if !unsupported {
                    self.shared.watch_failed(error);
                }
                now
            }
            None => now + self.jittered(self.timing.poll),
        };
        if self.failures == 0 {
            self.due = self.due.min(poll_at);
        }
        let pause = if unsupported {
            self.jittered(self.timing.resync)
        } else {
            self.watch_failures = if held { 1 } else { self.watch_failures.saturating_add(1) };
            self.backoff(self.watch_failures)
        };
        self.rewatch_after(pause, now);
    }

    fn rewatch_after(&mut self, pause: Duration, now: Instant) {
        self.watch_pause = pause;
        self.rewatch_at = Some(now + pause);
    }

    fn panicked(&mut self, panic: &Panic, now: Instant) {
        let watching = self.watch.is_some();
        discard(self.asking.take());
        discard(self.watch.take());
        if watching || self.rewatch_at.is_some_and(|at| at <= now) {
            self.watch_failures = self.watch_failures.saturating_add(1);
            let pause = self.backoff(self.watch_failures);
            self.rewatch_after(pause, now);
        }
        let message = format!("the source or the selector panicked: {}", panic.text());
        self.failed(DiscoveryError::new(DiscoveryErrorKind::Invalid, message), now);
    }

    /// How long after a good answer the next request is due.
    fn pause(&mut self, valid_for: Option<Duration>) -> Duration {
        let watched = self.watch.as_ref().is_some_and(|watch| watch.listed);
        let Timing { poll, resync, .. } = self.timing;
        let pause = match valid_for {
            // A doubt waits for an answer, also under a watch that has no more to tell.
            _ if watched && self.shared.is_doubting() => poll.min(resync),
            _ if watched => resync,
            // However long a name server's records hold, the list is asked for at every resync.
            Some(valid_for) => valid_for.min(resync).max(SHORTEST_VALIDITY),
            None => poll,
        };
        self.jittered(pause)
    }

    /// From nine tenths of a duration to eleven.
    fn jittered(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(0.9 + 0.2 * self.rng.random::<f64>())
    }

    /// From half of the pause after so many failures to the whole of it.
    fn backoff(&mut self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let pause = BACKOFF.saturating_mul(1 << doublings).min(self.timing.poll);
        pause.mul_f64(0.5 + 0.5 * self.rng.random::<f64>())
    }
}

/// The answer of the request under way; never, if there is none.
async fn answered(asking: &mut Option<Asking>) -> (u64, Answer) {
    match asking {
        Some(asking) => (asking.version, asking.answer.as_mut().await),
        None => pending().await,
    }
}

/// The next item of the watch; never, if there is none.
async fn told(watch: &mut Option<Watch>) -> Option<Result<Update, DiscoveryError>> {
    match watch {
        Some(watch) => watch.stream.next().await,
        None => pending().await,
    }
}
