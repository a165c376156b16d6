//! Happy Eyeballs (RFC 8305): dials all addresses of a name until one has finished its handshake.

use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::sleep;

use super::{Stream, Transport};
use crate::instance::Address;

/// How long an attempt runs before the next one starts beside it (RFC 8305, section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// More of the failures' text is not told.
const MAX_TEXT: usize = 512;

/// Opens a connection to any of the places that `address` stands for: the first whose `open`
/// succeeds, for which the others are closed. A failed attempt starts the next at once, a slow one
/// after a quarter of a second.
///
/// No timeout of its own: the caller has one. Dropping the future closes every attempt.
pub(crate) async fn dial<T, F>(
    transport: &dyn Transport,
    address: &Address,
    places: Vec<Address>,
    open: impl Fn(Address, Stream) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let open = &open;
    let attempt = move |place: Address| async move {
        let stream = transport.connect_at(address, &place).await?;
        open(place, stream).await
    };
    race(places, attempt).await
}

/// What the first attempt that succeeds comes to.
pub(super) async fn race<P, T, F>(places: Vec<P>, attempt: impl Fn(P) -> F) -> io::Result<T>
where
    P: Display,
    F: Future<Output = io::Result<T>>,
{
    let is_alone = places.len() == 1;
    let mut places = places.into_iter();
    if is_alone && let Some(only) = places.next() {
        return attempt(only).await;
    }
    let mut running: Vec<(String, Pin<Box<F>>)> = Vec::new();
    let mut failed: Option<(io::ErrorKind, String)> = None;
    loop {
        if let Some(place) = places.next() {
            running.push((place.to_string(), Box::pin(attempt(place))));
        }
        if running.is_empty() {
            let none = || (io::ErrorKind::NotFound, "the name has no address".to_owned());
            let (kind, text) = failed.unwrap_or_else(none);
            return Err(io::Error::new(kind, text));
        }
        tokio::select! {
            biased;
            (place, ended) = first(&mut running) => match ended {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    let text = format!("{place}: {error}");
                    failed = Some(match failed.take() {
                        None => (error.kind(), text),
                        Some((kind, before)) if before.len() < MAX_TEXT => {
                            (kind, format!("{before}; {text}"))
                        }
                        Some(enough) => enough,
                    });
                }
            },
            () = sleep(ATTEMPT_DELAY), if !places.as_slice().is_empty() => {}
        }
    }
}

/// The first attempt that ends, which is taken out.
async fn first<F: Future>(running: &mut Vec<(String, Pin<Box<F>>)>) -> (String, F::Output) {
    poll_fn(|cx| {
        for at in 0..running.len() {
            if let Poll::Ready(ended) = running[at].1.as_mut().poll(cx) {
                let (place, _) = running.swap_remove(at);
                return Poll::Ready((place, ended));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::sync::Mutex;
    use tokio::time::Instant;

    use super::*;

    /// Of each place: after how many ms it ends, and whether well.
    async fn raced(places: &[(u64, bool)]) -> (Result<usize, String>, Vec<u128>, u128) {
        let (start, begun) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&begun);
        let won = race((0..places.len()).collect(), move |at: usize| {
            log.lock().push(start.elapsed().as_millis());
            let (after, succeeds) = places[at];
            async move {
                sleep(Duration::from_millis(after)).await;
                if succeeds { Ok(at) } else { Err(io::Error::other("refused")) }
            }
        })
        .await;
        let begun = begun.lock().clone();
        (won.map_err(|error| error.to_string()), begun, start.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_start_a_quarter_of_a_second_apart_or_when_one_fails() {
        const NEVER: u64 = 1_000_000;
        for (places, won, begun, took) in [
            (&[(10, true), (0, true)][..], Ok(0), vec![0], 10),
            (&[(NEVER, true), (10, true), (0, true)], Ok(1), vec![0, 250], 260),
            // The first is late, and still the first to end.
            (&[(300, true), (NEVER, true)], Ok(0), vec![0, 250], 300),
            (&[(NEVER, true), (20, false), (5, true)], Ok(2), vec![0, 250, 270], 275),
            (&[(1, false), (2, false)], Err("0: refused; 1: refused".to_owned()), vec![0, 1], 3),
            (&[(1, false)], Err("refused".to_owned()), vec![0], 1),
            (&[], Err("the name has no address".to_owned()), vec![], 0),
        ] {
            assert_eq!(raced(places).await, (won, begun, took), "{places:?}");
        }
    }
}
