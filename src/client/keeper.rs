//! Looks after a connection's deadlines, its silence, and its end.

use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use tokio::time::Instant;

use super::shared::{Phase, Ping, Shared, State};
use crate::call::{Stamp, after};
use crate::error::{Error, Fate, Kind};
use crate::protocol::{FrameType, encode_frame};
use crate::sync::{event, wake_all};

/// Looks after deadlines while calls wait, pings a peer that is silent, and ends a connection that
/// is drained or dead.
pub(super) async fn keep(shared: &Shared) -> String {
    loop {
        let now = Instant::now();
        let mut told = Told::default();
        let next = {
            let mut state = shared.state.lock();
            if let Phase::Closed(why) = &state.phase {
                // Nothing may be said of the peer any more that nobody would take back.
                return why.to_string();
            }
            shared.pass_trial_by_age(&mut state, now);
            told.wakers = sweep(&mut state, now);
            let quiet = state.calls.len() == 0 && state.waiting.is_empty();
            if quiet && matches!(state.phase, Phase::Draining) {
                Err("the server was draining")
            } else if quiet && state.replaced {
                Err("another connection has its place")
            } else {
                let silence = check_silence(shared, &mut state, now, quiet, &mut told);
                state.keeper_parked = quiet;
                match silence {
                    Some(silence) if quiet => Ok(silence),
                    Some(silence) => Ok(silence.min(after(now, shared.settings.sweep))),
                    None => Err("the server does not answer a ping"),
                }
            }
        };
        // At the end too: whoever was swept is not in flight any more when the connection closes.
        told.tell(shared, now);
        let next = match next {
            Ok(next) => next,
            Err(why) => return why.to_owned(),
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = shared.to_keep.notified() => {}
        }
    }
}

/// What a look has found, to be told once the lock is released.
#[derive(Default)]
struct Told {
    wakers: Vec<Waker>,
    is_suspect: bool,
    /// No other connection to the endpoint suspected it before: its outlier table must be told.
    is_first: bool,
}

impl Told {
    fn tell(self, shared: &Shared, now: Instant) {
        // Before those who are woken choose another endpoint.
        if self.is_first {
            shared.tell_suspicion(false, now);
        }
        wake_all(self.wakers);
        if self.is_suspect
            && let Some(endpoint) = &shared.endpoint
        {
            event!(
                WARN,
                endpoint = %endpoint.instance().address,
                "suspect: a ping is not answered"
            );
        }
    }
}

pub(super) fn sweep(state: &mut State, now: Instant) -> Vec<Waker> {
    let mut ids = Vec::new();
    let now = Stamp::of(now);
    state.calls.overdue(now, &mut ids);
    let waiting = state.waiting.len();
    let mut wakers = state.waiting.remove_overdue(now);
    // One that was woken already has no waker left, and its turn goes to the next all the same.
    let is_changed = state.waiting.len() < waiting || !ids.is_empty();
    for id in ids {
        let fate = leave(state, id, Fate::Overdue, &mut wakers);
        wakers.extend(state.calls.answer(id, Err(overdue(fate))).map(|call| call.waker));
    }
    if is_changed {
        wakers.extend(state.next_in_line());
    }
    wakers
}

/// Gives a call up: takes it back if the writer does not have it yet, else cancels it.
fn leave(state: &mut State, id: u64, sent: Fate, wakers: &mut Vec<Waker>) -> Fate {
    let Some(place) = state.calls.pending(id).map(|call| call.place) else { return sent };
    if state.outbox.withdraw(place) {
        return Fate::NeverWritten;
    }
    state.outbox.append(|out| encode_frame(out, FrameType::Cancel, 0, id, |_| ()));
    wakers.extend(state.writer.take());
    sent
}

pub(super) fn overdue(fate: Fate) -> Error {
    Error::new(Kind::DeadlineExceeded, fate, "no answer came in time")
}

/// Pings a silent peer; tells when to look again, or `None` if the peer is dead.
///
/// A peer that does not answer is suspect: its endpoint is ejected, its idempotent calls and those
/// that wait in line move on, the others wait for their deadlines. The connection stays for a
/// while: a stopped process that goes on answers the ping, whereupon the endpoint is taken back
/// without having cost a call.
fn check_silence(
    shared: &Shared,
    state: &mut State,
    now: Instant,
    quiet: bool,
    told: &mut Told,
) -> Option<Instant> {
    let settings = &shared.settings;
    let Some(ping) = &mut state.pinged else {
        let (since, patience) = match quiet {
            true => (state.heard, settings.ping_idle),
            false => (state.heard.max(state.busy), settings.ping_busy),
        };
        let due = after(since, patience);
        if now < due {
            return Some(due);
        }
        let place = state.outbox.append(|out| {
            encode_frame(out, FrameType::Ping, 0, 0, |out| out.extend_from_slice(&[0; 8]));
        });
        let written = shared.written.load(Relaxed);
        state.pinged = Some(Ping { end: place.end, written, since: now });
        state.has_pinged = true;
        told.wakers.extend(state.writer.take());
        // The answer's time runs from when it is written, which is seen soon.
        return Some(after(now, settings.sweep));
    };
    // A ping behind large bodies is not late while the socket takes them.
    let written = shared.written.load(Relaxed);
    if ping.written < ping.end && written > ping.written {
        ping.written = written;
        ping.since = now;
    }
    let until = after(ping.since, settings.ping_timeout);
    if now < until {
        return Some(until);
    }
    if now >= after(ping.since, settings.dead_after) {
        return None;
    }
    if !state.suspect {
        state.suspect = true;
        if let Some(endpoint) = &shared.endpoint
            && !state.replaced
        {
            state.accused = true;
            told.is_suspect = true;
            told.is_first = endpoint.stats().add_suspect();
        }
        told.wakers.extend(state.waiting.all());
    }
    let idempotent: Vec<_> =
        state.calls.waiting().filter(|(_, call)| call.idempotent).map(|(id, _)| id).collect();
    for id in idempotent {
        let fate = leave(state, id, Fate::ConnectionLost, &mut told.wakers);
        let error = Error::new(Kind::Unavailable, fate, "the server does not answer a ping");
        told.wakers.extend(state.calls.answer(id, Err(error)).map(|call| call.waker));
    }
    Some(after(now, settings.ping_busy))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::call::{Call, Reply};
    use crate::client::{Connection, ConnectionSettings};
    use crate::error::Execution;
    use crate::protocol::{Hello, Limits};
    use crate::transport::{Peer, Stream};

    /// One call with this deadline; `lie` is what the server does after its handshake.
    async fn called<F: Future<Output = DuplexStream>>(
        settings: ConnectionSettings,
        deadline: Duration,
        lie: impl FnOnce(DuplexStream) -> F,
    ) -> Result<Reply, Error> {
        let (ours, mut server) = tokio::io::duplex(4096);
        let mut hello = Vec::new();
        Hello::new(Limits::default()).encode(&mut hello);
        server.write_all(&hello).await.unwrap();
        let stream = Stream::new(ours, Peer::default());
        let connection = Connection::open(stream, settings, None).await.unwrap();
        let call = Call::new("Foo.Sum");
        let exchange = connection.exchange(&call, Instant::now() + deadline);
        let answer = timeout(Duration::from_secs(60), exchange);
        let (answer, _open) = tokio::join!(answer, lie(server));
        answer.expect("the call ends")
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_call_of_a_drained_connection_ends_at_its_deadline() {
        let drain = |mut server: DuplexStream| async {
            sleep(Duration::from_millis(100)).await;
            let mut drain = Vec::new();
            encode_frame(&mut drain, FrameType::Drain, 0, u64::MAX, |_| ());
            server.write_all(&drain).await.unwrap();
            server
        };
        let settings = ConnectionSettings::default();
        let error = called(settings, Duration::from_secs(1), drain).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert_eq!(error.execution(), Execution::MaybeExecuted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_comes_as_the_connection_is_given_up_ends_its_call() {
        for millis in 1490..1530 {
            let half = Duration::from_millis(500);
            let settings = ConnectionSettings {
                ping_timeout: half,
                dead_after: half,
                ..ConnectionSettings::default()
            };
            let deadline = Duration::from_millis(millis);
            let answer = called(settings, deadline, |server| async { server }).await;
            assert!(answer.is_err(), "nobody answers");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_place_another_has_ends_with_its_last_call() {
        let (ours, mut server) = tokio::io::duplex(4096);
        let mut hello = Vec::new();
        Hello::new(Limits::default()).encode(&mut hello);
        server.write_all(&hello).await.unwrap();
        let stream = Stream::new(ours, Peer::default());
        let settings = ConnectionSettings::default();
        let connection = Connection::open(stream, settings, None).await.unwrap();
        let (started, deadline) = (Instant::now(), Duration::from_secs(3));
        let call = Call::new("Foo.Sum");
        let replace = async {
            sleep(Duration::from_millis(100)).await;
            connection.retire();
            connection.replaced();
            assert!(!connection.is_open());
        };
        let answer = tokio::join!(connection.exchange(&call, started + deadline), replace).0;
        assert_eq!(answer.unwrap_err().kind(), Kind::DeadlineExceeded);
        assert!(started.elapsed() >= deadline, "the call had its time");
        let mut rest = Vec::new();
        let end = server.read_to_end(&mut rest);
        timeout(Duration::from_secs(1), end).await.expect("it ends").unwrap();
    }
}
