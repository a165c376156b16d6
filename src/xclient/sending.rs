//! A call on its way, in as little room as it needs.
//!
//! What nearly every call does, one attempt on a connection that stands, is written by hand: its
//! future is read and written by every poll, and what the compiler makes of the same steps as async
//! functions takes three times the room. Whatever else happens goes on in a box, in
//! [`Core::run`].

use std::borrow::Borrow;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::channels::Route;
use super::core::{Core, too_late};
use crate::call::{Call, Codec, CodecId, Packed, Reply, undecodable};
use crate::client::{Answer, Connection, Flight};
use crate::error::{Error, Execution};

/// A call on its way through retry and selection. Nothing happens before it is polled.
pub(super) struct Sending<C: Borrow<Arc<Core>>> {
    core: C,
    /// Without its body until it goes the slow way.
    call: Call,
    body: Packed,
    stage: Stage,
}

/// An answer, with whatever of a reply the way here did not have to make.
pub(super) enum Landed {
    First(Answer, Arc<Route>, CodecId),
    Reply(Reply),
}

impl Landed {
    /// The whole reply.
    pub(super) fn into_reply(self) -> Reply {
        match self {
            Self::First(answer, route, codec) => route.names(answer.into_reply(codec), 1),
            Self::Reply(reply) => reply,
        }
    }

    /// The result alone.
    pub(super) fn decode<R: DeserializeOwned>(self, codec: &Codec) -> Result<R, Error> {
        match self {
            Self::First(answer, route, _) => codec
                .decode(answer.body())
                .map_err(|error| undecodable(&error.to_string()).at(&route.address).on_attempt(1)),
            Self::Reply(reply) => reply.decode_with(codec),
        }
    }
}

enum Stage {
    Start,
    First(First),
    Slow(Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>),
    Done,
}

/// A first attempt on a connection that stood.
struct First {
    route: Arc<Route>,
    /// The connection's place in its channel.
    at: usize,
    connection: Connection,
    flight: Flight,
}

impl<C: Borrow<Arc<Core>>> Sending<C> {
    pub(super) fn new(core: C, mut call: Call) -> Self {
        let body = Packed::Shared(mem::take(&mut call.body));
        Self::with_body(core, call, body)
    }

    /// A call whose body is apart from it.
    pub(super) fn with_body(core: C, call: Call, body: Packed) -> Self {
        Self { core, call, body, stage: Stage::Start }
    }

    fn start(&mut self) -> Result<Stage, Error> {
        let core = self.core.borrow();
        let now = Instant::now();
        let deadline = core.settle(&mut self.call, now);
        if now >= deadline {
            return Err(too_late());
        }
        if core.attempts.is_none()
            && self.call.racer.is_none()
            && let Some(route) = core.pick(&self.call, 1, &[], now)
        {
            core.retry.count_call(now);
            let (at, connection) = route.channel.open();
            let Some(connection) = connection else {
                return Ok(self.go_on(route, Err(at)));
            };
            let until = self.call.attempt_until(now, deadline);
            let flight = Flight::new(Some(now), until);
            return Ok(Stage::First(First { route, at, connection, flight }));
        }
        let (core, call) = (Arc::clone(self.core.borrow()), self.take_call());
        Ok(Stage::Slow(Box::pin(async move { core.run(&call, now, deadline, None).await })))
    }

    /// The first attempt failed.
    #[cold]
    fn failed(&mut self, first: First, error: Error) -> Stage {
        let First { route, at, connection, .. } = first;
        // Its server drained the connection, for being idle perhaps, before the call was sent.
        let was_drained = error.execution() == Execution::NotSent && connection.is_draining();
        self.go_on(route, if was_drained { Err(at) } else { Ok(error) })
    }

    /// Goes on after a first attempt that ended with an error, or that needs a new connection at
    /// this place of its channel.
    #[cold]
    fn go_on(&mut self, route: Arc<Route>, ended: Result<Error, usize>) -> Stage {
        let (core, call) = (Arc::clone(self.core.borrow()), self.take_call());
        Stage::Slow(Box::pin(async move {
            let now = Instant::now();
            let deadline = call.deadline.unwrap_or(now);
            let error = match ended {
                Ok(error) => error,
                Err(at) => {
                    let until = call.attempt_until(now, deadline);
                    match route.channel.exchange_over_new(at, &call, until).await {
                        Ok(reply) => return Ok(route.names(reply, 1)),
                        Err(error) => error,
                    }
                }
            };
            core.run(&call, now, deadline, Some((route, error))).await
        }))
    }

    fn take_call(&mut self) -> Call {
        let mut call = mem::replace(&mut self.call, Call::new(""));
        call.body = mem::replace(&mut self.body, Packed::Shared(Bytes::new())).into_bytes();
        call
    }
}

impl<C: Borrow<Arc<Core>> + Unpin> Future for Sending<C> {
    type Output = Result<Landed, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.stage {
                Stage::Start => {
                    this.stage = Stage::Done;
                    this.stage = this.start()?;
                }
                Stage::First(first) => {
                    let First { connection, flight, .. } = first;
                    let answer = connection.poll_flight(flight, &this.call, this.body.by_ref(), cx);
                    let Poll::Ready(answer) = answer else { return Poll::Pending };
                    let Stage::First(first) = mem::replace(&mut this.stage, Stage::Done) else {
                        return Poll::Pending;
                    };
                    match answer {
                        Ok(answer) => {
                            let landed = Landed::First(answer, first.route, this.call.codec);
                            return Poll::Ready(Ok(landed));
                        }
                        Err(error) => this.stage = this.failed(first, error),
                    }
                }
                Stage::Slow(future) => {
                    return future.as_mut().poll(cx).map(|answer| answer.map(Landed::Reply));
                }
                Stage::Done => return Poll::Pending,
            }
        }
    }
}

impl<C: Borrow<Arc<Core>>> Drop for Sending<C> {
    fn drop(&mut self) {
        if let Stage::First(first) = &mut self.stage {
            first.connection.leave(&mut first.flight);
        }
    }
}
