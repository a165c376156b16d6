//! A connection's calls, its writer, its reader and its closers in every order that loom finds.
//!
//! What runs is the code itself: `Exchange`, the loops of the driver that read and write, the
//! sweep, and `Shared` with its tables. Only the lock, the counter and the signal are loom's
//! (`client::sync`), and the socket is the model's. `CONTRIBUTING.md` has the command.

mod peer;
pub(super) mod sync;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use loom::thread::{Builder, JoinHandle};
use tokio::time::Instant;

use self::peer::{Answers, LEFT, Peer};
use self::sync::block_on;
use super::driver::write;
use super::keeper::sweep;
use super::replies::read;
use super::shared::{Shared, Writer};
use super::{ConnectionSettings, Exchange};
use crate::call::{Call, CodecId, Reply};
use crate::error::{Error, Execution, Kind};
use crate::protocol::{FrameReader, Limits};
use crate::transport;

/// No call of a model comes to it by the clock.
const FAR: Duration = Duration::from_secs(3600);
/// What loom gives a thread by itself is too little for an encoder.
const STACK: usize = 256 * 1024;

/// Runs `scenario` in every order in which at most `preemptions` steps are taken out of turn.
fn check(preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 10_000;
    let orders = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&orders);
    model.check(move || {
        counted.fetch_add(1, Relaxed);
        scenario();
    });
    println!("{} orders", orders.load(Relaxed));
}

fn spawn<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().stack_size(STACK).spawn(act).unwrap()
}

/// A connection with this many calls in its window, without a driver.
fn connection(window_calls: u32) -> Arc<Shared> {
    let limits = Limits { window_calls, ..Limits::LEAST };
    Arc::new(Shared::new(ConnectionSettings::default(), None, limits))
}

/// The driver without its clock; it ends as `driver::run` does.
fn drive(shared: &Arc<Shared>, peer: &Peer) -> JoinHandle<()> {
    let (shared, peer) = (Arc::clone(shared), peer.clone());
    spawn(move || {
        let stream = transport::Stream::new(peer, transport::Peer::default());
        let (from, to) = tokio::io::split(stream);
        let frames = FrameReader::new(BytesMut::new(), Limits::LEAST.max_payload());
        let why = block_on(async {
            tokio::select! {
                biased;
                why = read(&shared, from, frames) => why,
                why = write(&shared, to) => why,
            }
        });
        shared.close(&why, Writer::Ended);
    })
}

fn call(body: &'static str) -> Call {
    Call::new("Foo.Sum").body(CodecId::RAW, body)
}

/// A caller that waits for its answer.
fn caller(
    shared: &Arc<Shared>,
    body: &'static str,
) -> JoinHandle<(&'static str, Result<Reply, Error>)> {
    let shared = Arc::clone(shared);
    spawn(move || {
        let call = call(body);
        (body, block_on(Exchange::new(&shared, &call, None, Instant::now() + FAR)))
    })
}

/// A caller that leaves as soon as it has asked.
fn leaver(shared: &Arc<Shared>) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    spawn(move || {
        let call = call(LEFT);
        let mut exchange = Exchange::new(&shared, &call, None, Instant::now() + FAR);
        block_on(poll_fn(|cx| {
            // An answer at once is as good as none.
            let _ = Pin::new(&mut exchange).poll(cx);
            Poll::Ready(())
        }));
    })
}

/// A caller with two calls, who waits for the first and then leaves the other, in line or not,
/// without having looked at it again.
fn half_leaver(shared: &Arc<Shared>, body: &'static str) -> JoinHandle<Result<Reply, Error>> {
    let shared = Arc::clone(shared);
    spawn(move || {
        let (call, other) = (call(body), call(LEFT));
        let mut left = Exchange::new(&shared, &other, None, Instant::now() + FAR);
        let mut exchange = Exchange::new(&shared, &call, None, Instant::now() + FAR);
        let mut asked = false;
        block_on(poll_fn(|cx| {
            let answer = Pin::new(&mut exchange).poll(cx);
            if !std::mem::replace(&mut asked, true) {
                // It is left, whatever comes of it.
                let _ = Pin::new(&mut left).poll(cx);
            }
            answer
        }))
    })
}

/// Nothing is held by anybody any more.
fn assert_empty(shared: &Shared) {
    let state = shared.state.lock();
    let held = (state.calls.len(), state.calls.bytes(), state.waiting.len());
    assert_eq!(held, (0, 0, 0), "calls, bytes, callers in line");
}

fn is_not_sent(answer: &Result<Reply, Error>) -> bool {
    matches!(answer, Err(error) if error.execution() == Execution::NotSent)
}

/// A call has its own reply, or an error of which `NotSent` is the truth.
fn assert_true(peer: &Peer, (body, answer): &(&'static str, Result<Reply, Error>)) {
    match answer {
        Ok(reply) => assert_eq!(reply.body, body.as_bytes(), "another call's reply"),
        Err(error) => {
            let lie = is_not_sent(answer) && peer.has(body);
            assert!(!lie, "{body} was handed to the socket: {error}");
        }
    }
}

#[test]
fn what_a_closer_calls_not_sent_never_leaves() {
    // All in one write; in two; and one call in line, of a server that does not answer.
    for (window, answers, chunk) in
        [(2, Answers::Echo, 1000), (2, Answers::Echo, 20), (1, Answers::Nothing, 1000)]
    {
        check(2, move || {
            let shared = connection(window);
            let peer = Peer::new(answers, window as usize).takes(chunk, 1000);
            let driver = drive(&shared, &peer);
            let calls = [caller(&shared, "a"), caller(&shared, "b")];
            shared.close("the model closes it", Writer::MayWrite);
            let answers = calls.map(|call| call.join().unwrap());
            peer.hang_up();
            driver.join().unwrap();
            answers.iter().for_each(|answer| assert_true(&peer, answer));
            assert_empty(&shared);
        });
    }
}

#[test]
fn what_a_broken_socket_took_is_known_to_the_byte() {
    // A frame has 32 bytes: none, a part, all but one, one whole, and one whole with a part.
    for room in [0, 20, 31, 32, 50] {
        check(2, move || {
            let (shared, peer) = (connection(2), Peer::new(Answers::Nothing, 2).takes(30, room));
            let driver = drive(&shared, &peer);
            let calls = [caller(&shared, "a"), caller(&shared, "b")];
            let answers = calls.map(|call| call.join().unwrap());
            driver.join().unwrap();
            for (body, answer) in &answers {
                assert!(answer.is_err(), "nobody answers");
                assert_eq!(is_not_sent(answer), !peer.has(body), "{body}: {answer:?}");
            }
            assert_eq!(answers.iter().filter(|(body, _)| peer.has(body)).count(), room / 32);
            assert_empty(&shared);
        });
    }
}

#[test]
fn a_place_that_is_left_goes_to_the_next_and_the_window_holds() {
    check(2, || {
        let (shared, peer) = (connection(1), Peer::new(Answers::EchoTwice, 1));
        let driver = drive(&shared, &peer);
        let (left, call) = (leaver(&shared), caller(&shared, "a"));
        let answer = call.join().unwrap();
        left.join().unwrap();
        assert!(answer.1.is_ok(), "{answer:?}");
        assert_true(&peer, &answer);
        assert_empty(&shared);
        peer.hang_up();
        driver.join().unwrap();
        assert!(peer.cancelled() <= 1);
    });
}

#[test]
fn a_turn_that_is_left_goes_to_the_next_in_line() {
    check(2, || {
        let (shared, peer) = (connection(1), Peer::new(Answers::EchoTwice, 1));
        let driver = drive(&shared, &peer);
        let (half, call) = (half_leaver(&shared, "a"), caller(&shared, "b"));
        let answers = [("a", half.join().unwrap()), call.join().unwrap()];
        for answer in &answers {
            assert!(answer.1.is_ok(), "{answer:?}");
            assert_true(&peer, answer);
        }
        assert_empty(&shared);
        peer.hang_up();
        driver.join().unwrap();
    });
}

#[test]
fn replies_give_their_places_to_those_in_line() {
    check(2, || {
        let (shared, peer) = (connection(1), Peer::new(Answers::EchoTwice, 1));
        let driver = drive(&shared, &peer);
        let calls = [caller(&shared, "a"), caller(&shared, "b")];
        for answer in calls.map(|call| call.join().unwrap()) {
            assert!(answer.1.is_ok(), "{answer:?}");
            assert_true(&peer, &answer);
        }
        assert_empty(&shared);
        peer.hang_up();
        driver.join().unwrap();
    });
}

#[test]
fn a_sweep_ends_who_is_overdue_and_wakes_who_is_next() {
    check(2, || {
        let (shared, peer) = (connection(1), Peer::new(Answers::Echo, 1));
        let driver = drive(&shared, &peer);
        let calls = [caller(&shared, "a"), caller(&shared, "b")];
        let later = Instant::now() + FAR + FAR;
        let wakers = sweep(&mut shared.state.lock(), later);
        wakers.into_iter().for_each(std::task::Waker::wake);
        let answers = calls.map(|call| call.join().unwrap());
        peer.hang_up();
        driver.join().unwrap();
        for answer in &answers {
            assert_true(&peer, answer);
            assert!(
                answer.1.as_ref().is_err_and(|e| e.kind() == Kind::DeadlineExceeded)
                    || answer.1.is_ok(),
                "{answer:?}"
            );
        }
        assert_empty(&shared);
    });
}

#[test]
fn a_drain_leaves_nobody_waiting() {
    check(2, || {
        let (shared, peer) = (connection(1), Peer::new(Answers::EchoAndDrain, 2));
        let driver = drive(&shared, &peer);
        let calls = [caller(&shared, "a"), caller(&shared, "b")];
        let answers = calls.map(|call| call.join().unwrap());
        peer.hang_up();
        driver.join().unwrap();
        answers.iter().for_each(|answer| assert_true(&peer, answer));
        assert!(answers.iter().any(|(_, answer)| answer.is_ok()), "the first is answered");
        assert_empty(&shared);
    });
}
