//! What tests of re-entry need: a limit in real time, and a call from anywhere.

use std::sync::mpsc;
use std::task::{Context, Waker};
use std::time::Duration;

use srpc::{Call, XClient};

/// Runs a test that fails by never ending: on a thread of its own, with paused time.
pub(crate) fn ends(test: impl Future<Output = ()> + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(test);
        done.send(()).unwrap();
    });
    if ended.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("a thread waits for a lock that it holds itself");
    }
    // Its own panic, if it had one.
    thread.join().unwrap();
}

/// Polls a call once, and drops it.
pub(crate) fn look(client: &XClient) {
    let call = Call::new("Foo.Echo").args(&1_u64).unwrap();
    let mut sent = Box::pin(client.send(call));
    let _ = sent.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}
