//! What a connection's handle, its calls and its driver share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::ConnectionSettings;
use super::batching::Batching;
use super::in_flight::InFlight;
use super::sync::{AtomicU64, Mutex, Notify};
use super::waiting::Waiting;
use crate::call::after;
use crate::discovery::Endpoint;
use crate::error::{Error, Fate, Kind};
use crate::protocol::{Limits, Outbox};
use crate::sync::wake_all;
use crate::transport::IdleWriter;

/// Whether the connection's writer may still hand bytes to the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// It has ended: what it has written is final.
    Ended,
    /// Aborting a task does not stop a poll that is under way.
    MayWrite,
}

/// A connection that ends sooner than this, without a reply or a pong, counts as a failed dial.
const TRIAL_TIME: Duration = Duration::from_secs(10);

/// Whether a connection has shown that its peer is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// Nothing came but the handshake.
    Pending,
    /// A reply or a pong that was asked for came, or the connection lived for 10 s.
    Passed,
    /// It ended or was drained before: it counts as a failed dial.
    Failed,
}

/// What calls and the driver share.
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// The first call since the keeper had nothing to look after.
    pub(super) to_keep: Notify,
    /// The number of the last ping of [`Connection::ping`](super::Connection::ping) that was
    /// answered.
    pub(super) ponged: watch::Sender<u64>,
    /// How far the socket has taken the outgoing stream.
    pub(super) written: AtomicU64,
    pub(super) settings: ConnectionSettings,
    /// Whose live flags this connection sets; `None` for a connection without an endpoint.
    pub(super) endpoint: Option<Endpoint>,
    /// The smaller of both sides' limits.
    pub(super) limits: Limits,
    /// The phase, for those who only want to know whether it is worth asking: what counts is under
    /// the lock.
    pub(super) open: AtomicBool,
}

pub(super) struct State {
    pub(super) calls: InFlight,
    pub(super) waiting: Waiting,
    /// The name of a method that was found valid: the same letters at the same place need no other look.
    pub(super) named: Option<&'static str>,
    pub(super) outbox: Outbox,
    pub(super) phase: Phase,
    /// When the last byte came.
    pub(super) heard: Instant,
    /// When the handshake was done.
    pub(super) opened: Instant,
    pub(super) trial: Trial,
    /// It has its place in a channel, whose endpoint pays for its failure.
    pub(super) has_place: bool,
    /// The stamp until which no dial was due when a newer registration earned this one; 0: none.
    pub(super) backoff_before: u64,
    /// The keeper has sent a ping: pongs with its number are answers.
    pub(super) has_pinged: bool,
    /// When the first of the calls now in flight was sent.
    pub(super) busy: Instant,
    /// The ping that nothing has come after.
    pub(super) pinged: Option<Ping>,
    /// That ping is not answered in time.
    pub(super) suspect: bool,
    /// Its endpoint's statistics were told so.
    pub(super) accused: bool,
    /// Another connection has taken its place: what it knows of its peer is no longer the news.
    pub(super) replaced: bool,
    /// How many pings were asked for from outside; the keeper's own have number 0.
    pub(super) probes: u64,
    /// Set while the keeper sleeps for long, so that a first call wakes it.
    pub(super) keeper_parked: bool,
    /// The writer, while it waits for something to write.
    pub(super) writer: IdleWriter,
    /// The writer, while it lets others go first: for the one with whom a batch becomes large.
    pub(super) impatient: Option<Waker>,
    pub(super) batching: Batching,
    /// Replies to nobody: late after a cancel, doubled, or lies.
    pub(super) stray: u64,
}

/// A ping that is under way.
#[derive(Debug)]
pub(super) struct Ping {
    /// Where it ends in the outgoing stream.
    pub(super) end: u64,
    /// How far the stream had come when this was last looked at.
    pub(super) written: u64,
    /// When it was written, or when the stream last moved before that.
    pub(super) since: Instant,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Open,
    /// The server takes no call above an id: new ones go elsewhere.
    Draining,
    Closed(Arc<str>),
}

impl Shared {
    /// An open connection without calls.
    pub(super) fn new(
        settings: ConnectionSettings,
        endpoint: Option<Endpoint>,
        limits: Limits,
    ) -> Self {
        let now = Instant::now();
        let state = State {
            calls: InFlight::default(),
            waiting: Waiting::default(),
            named: None,
            outbox: Outbox::default(),
            phase: Phase::Open,
            heard: now,
            opened: now,
            trial: Trial::Pending,
            has_place: false,
            backoff_before: 0,
            has_pinged: false,
            busy: now,
            pinged: None,
            suspect: false,
            accused: false,
            replaced: false,
            probes: 0,
            keeper_parked: false,
            writer: IdleWriter::default(),
            impatient: None,
            batching: Batching::default(),
            stray: 0,
        };
        Self {
            state: Mutex::new(state),
            to_keep: Notify::new(),
            ponged: watch::Sender::new(0),
            written: AtomicU64::new(0),
            settings,
            endpoint,
            limits,
            open: AtomicBool::new(true),
        }
    }

    /// Ends the connection: every call in flight fails by how far the socket took its frame.
    pub(super) fn close(&self, why: &str, writer: Writer) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        state.phase = Phase::Closed(why.into());
        self.open.store(false, Relaxed);
        let is_trusted = self.trust(&mut state);
        let State { calls, outbox, .. } = &mut *state;
        let written = self.written.load(Relaxed);
        let mut wakers = calls.fail(|_, call| {
            // A frame that the writer does not have, and will not get, is surely not sent; of one
            // that it has, only its end tells.
            let not_sent = outbox.withdraw(call.place)
                || (writer == Writer::Ended && call.place.end > written);
            let fate = if not_sent { Fate::PartlyWritten } else { Fate::ConnectionLost };
            Some((Kind::Unavailable, fate, format!("the connection ended: {why}")))
        });
        wakers.extend(state.waiting.all());
        // Bodies are not kept for as long as the connection's last handle is. Their drop may be the user's.
        let bodies = std::mem::take(&mut state.outbox);
        drop(state);
        drop(bodies);
        if is_trusted {
            self.tell_suspicion(false, Instant::now());
        }
        wake_all(wakers);
        if let Some(endpoint) = &self.endpoint {
            // A drain ends with its connection, as a suspicion does: whoever answers there next is
            // somebody new, and if nobody does, connecting fails and is put off.
            endpoint.stats().set_draining(false);
        }
        self.ponged.send_replace(u64::MAX);
    }

    /// Takes back that the peer is suspect, if that was said. True: the endpoint's outlier table must be
    /// [told](Self::tell_suspicion) once the lock is released.
    #[must_use = "the outlier table must be told"]
    pub(super) fn trust(&self, state: &mut State) -> bool {
        state.suspect = false;
        std::mem::take(&mut state.accused)
            && self.endpoint.as_ref().is_some_and(|endpoint| endpoint.stats().remove_suspect())
    }

    /// Tells the endpoint's outlier table that a suspicion was raised, or taken back because the peer was
    /// `heard` or because nobody waits for it any more.
    pub(super) fn tell_suspicion(&self, heard: bool, now: Instant) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.stats().tell_suspicion(heard, now);
        }
    }

    /// The connection has its place in a channel: calls may use it, unless it has failed already.
    /// `is_early`: a newer registration earned the dial, before the backoff was over.
    pub(super) fn stands(&self, is_early: bool) {
        let mut state = self.state.lock();
        state.has_place = true;
        let Some(endpoint) = &self.endpoint else { return };
        match state.trial {
            Trial::Failed => {
                let (stats, now) = (endpoint.stats(), Instant::now());
                if !(is_early && stats.in_backoff(now)) {
                    self.count_failure(endpoint, now);
                }
            }
            Trial::Pending | Trial::Passed => {
                let backoff = endpoint.stats().handshake_done();
                if is_early {
                    state.backoff_before = backoff;
                }
            }
        }
    }

    /// The peer is of use: dials that failed before are forgiven.
    pub(super) fn pass_trial(&self, state: &mut State) {
        if state.trial != Trial::Passed {
            state.trial = Trial::Passed;
            if let Some(endpoint) = &self.endpoint {
                endpoint.stats().connected();
            }
        }
    }

    /// A connection that has lived long enough was of use.
    pub(super) fn pass_trial_by_age(&self, state: &mut State, now: Instant) {
        if now >= after(state.opened, TRIAL_TIME) {
            self.pass_trial(state);
        }
    }

    /// The peer ends the connection or takes no more calls on it. To be called before `open` is
    /// cleared: who sees that must see the backoff.
    pub(super) fn end_trial(&self, state: &mut State, now: Instant) {
        if state.replaced {
            return;
        }
        self.pass_trial_by_age(state, now);
        if state.trial != Trial::Pending {
            return;
        }
        state.trial = Trial::Failed;
        // Without a place it has not stood yet: `stands` will count it.
        if let Some(endpoint) = self.endpoint.as_ref().filter(|_| state.has_place) {
            let stats = endpoint.stats();
            let resumed = stats.resume_backoff(state.backoff_before, now);
            // Connections that stood together fail together: that is one failed dial.
            if !resumed && !stats.in_backoff(now) {
                self.count_failure(endpoint, now);
            }
        }
    }

    /// The driver ends by itself, and not because the client closed the connection.
    pub(super) fn ended_by_peer(&self) {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Closed(_)) {
            self.end_trial(&mut state, Instant::now());
        }
    }

    fn count_failure(&self, endpoint: &Endpoint, now: Instant) {
        let stats = endpoint.stats();
        stats.connect_failed(after(now, self.settings.backoff(stats.connect_failures())));
    }
}

impl State {
    /// Whether a call with a body of `bytes` fits into the window now. A body larger than the
    /// window's bytes goes alone.
    pub(super) fn has_room(&self, limits: &Limits, bytes: usize) -> bool {
        let held = self.calls.bytes();
        self.calls.len() < limits.window_calls as usize
            // A peer that does not read must not make withdrawn calls pile up here.
            && self.outbox.len() <= limits.window_bytes as usize
            && (held == 0 || held + bytes <= limits.window_bytes as usize)
    }

    /// Ready once something waits in the outbox; else `cx` is woken then.
    pub(super) fn poll_filled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.writer.poll(&self.outbox, cx)
    }

    /// Takes the waker of the call that may take a place that has become free.
    pub(super) fn next_in_line(&mut self) -> Option<Waker> {
        self.waiting.first()
    }

    pub(super) fn closed(why: &str) -> Error {
        Error::new(
            Kind::Unavailable,
            Fate::NoConnection,
            format!("the connection is closed: {why}"),
        )
    }
}
