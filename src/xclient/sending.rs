//! A call on its way, in as little room as it needs.
//!
//! What nearly every call does, one attempt on a connection that stands, is written by hand: its
//! future is read and written by every poll, and what the compiler makes of the same steps as async
//! functions takes three times the room. Whatever else happens goes on in a box, in
//! [`Core::run`].

use std::borrow::{Borrow, Cow};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::channels::Route;
use super::core::{Aim, Core, too_late};
use super::covered::HasDeadline;
use super::fail;
use crate::call::{
    Call, Codec, CodecId, Metadata, Moment, Packed, Reply, Stamp, Terms, undecodable,
};
use crate::client::{Answer, Connection, Flight};
use crate::error::{Error, Execution};

/// A call on its way through retry and selection. Nothing happens before it is polled.
pub(super) struct Sending<C: Borrow<Arc<Core>>, F: Form> {
    core: C,
    /// The call, without its body until it goes the slow way.
    form: F,
    body: Packed,
    /// When the call must be over, once it has been polled.
    deadline: Stamp,
    stage: Stage,
}

/// The form in which a call is kept while it is on its way: whole, or in as little as it says.
pub(super) trait Form: Unpin {
    /// What a connection is told.
    fn terms(&self) -> Terms<'_>;

    /// Where it is to go.
    fn aim(&self) -> Aim<'_>;

    /// Settles by when the call, and a first attempt, must be over.
    fn settle(&mut self, core: &Core, now: Moment) -> (Stamp, Stamp);

    /// Whether it is one of several copies.
    fn is_copy(&self) -> bool;

    /// The whole call, without its body; what is left here is of no use.
    fn take(&mut self) -> Call;
}

impl Form for Call {
    fn terms(&self) -> Terms<'_> {
        self.terms()
    }

    fn aim(&self) -> Aim<'_> {
        Aim::of(self)
    }

    fn settle(&mut self, core: &Core, now: Moment) -> (Stamp, Stamp) {
        let deadline = core.settle(self, now.at);
        let call = Stamp::of(deadline);
        let attempt = match self.attempt_timeout {
            Some(_) => Stamp::of(self.attempt_until(now.at, deadline)),
            None => call,
        };
        (call, attempt)
    }

    fn is_copy(&self) -> bool {
        self.racer.is_some()
    }

    fn take(&mut self) -> Call {
        mem::replace(self, Self::new(""))
    }
}

/// A call that leaves everything to its client, as most do: a sixth of a [`Call`].
pub(super) struct Plain {
    method: Cow<'static, str>,
    codec: CodecId,
    idempotent: bool,
}

impl Plain {
    pub(super) fn new(method: Cow<'static, str>, codec: CodecId) -> Self {
        Self { method, codec, idempotent: false }
    }
}

impl Form for Plain {
    fn terms(&self) -> Terms<'_> {
        let Self { method, codec, idempotent } = self;
        let (codec, idempotent) = (*codec, *idempotent);
        Terms { method, codec, metadata: Metadata::none(), idempotent, notify: false }
    }

    fn aim(&self) -> Aim<'_> {
        Aim::default()
    }

    fn settle(&mut self, core: &Core, now: Moment) -> (Stamp, Stamp) {
        self.idempotent = core.idempotent;
        let deadline = core.deadline(now.stamp);
        let attempt = core.attempt_timeout.map(|timeout| now.stamp.after(timeout));
        (deadline, attempt.map_or(deadline, |attempt| attempt.min(deadline)))
    }

    fn is_copy(&self) -> bool {
        false
    }

    fn take(&mut self) -> Call {
        let mut call = Call::new(mem::take(&mut self.method));
        call.codec = self.codec;
        call
    }
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

impl Stage {
    /// The rest of a call that does not end with its first attempt. If it fails, it lets other tasks run.
    fn slow(rest: impl Future<Output = Result<Reply, Error>> + Send + 'static) -> Self {
        Self::Slow(Box::pin(async move {
            match rest.await {
                Ok(reply) => Ok(reply),
                Err(error) => fail(error).await,
            }
        }))
    }
}

/// A first attempt on a connection that stood.
struct First {
    route: Arc<Route>,
    /// The connection's place in its channel.
    at: usize,
    flight: Flight,
}

impl First {
    fn connection(&self) -> Option<&Connection> {
        self.route.connection(self.at)
    }
}

impl<C: Borrow<Arc<Core>>> Sending<C, Call> {
    pub(super) fn new(core: C, mut call: Call) -> Self {
        let body = Packed::Shared(mem::take(&mut call.body));
        Self::with_body(core, call, body)
    }
}

impl<C: Borrow<Arc<Core>>, F: Form> Sending<C, F> {
    /// A call whose body is apart from it.
    pub(super) fn with_body(core: C, form: F, body: Packed) -> Self {
        Self { core, form, body, deadline: Stamp::default(), stage: Stage::Start }
    }

    fn start(&mut self, now: Moment) -> Result<Stage, Error> {
        let core = self.core.borrow();
        let (deadline, until) = self.form.settle(core, now);
        self.deadline = deadline;
        if deadline <= now.stamp {
            return Err(too_late());
        }
        if core.attempts.is_none()
            && !self.form.is_copy()
            && let Some(route) = core.pick(self.form.aim(), 1, &[], now.at)
        {
            core.retry.count_call(now.stamp);
            return Ok(match route.next() {
                Ok(at) => Stage::First(First { route, at, flight: Flight::new(until) }),
                Err(at) => self.go_on(route, Err(at)),
            });
        }
        let (core, call, deadline) = self.take_call(now);
        Ok(Stage::slow(async move { core.run(&call, now.at, deadline, None).await }))
    }

    /// The first attempt failed.
    #[cold]
    fn failed(&mut self, first: First, error: Error) -> Stage {
        // Its server drained the connection, for being idle perhaps, or another took its place, before
        // the call was sent.
        let was_left = error.execution() == Execution::NotSent
            && first.connection().is_some_and(Connection::is_leaving);
        let ended = if was_left { Err(first.at) } else { Ok(error) };
        self.go_on(first.route, ended)
    }

    /// Goes on after a first attempt that ended with an error, or that needs a new connection at
    /// this place of its channel.
    #[cold]
    fn go_on(&mut self, route: Arc<Route>, ended: Result<Error, usize>) -> Stage {
        let now = Moment::now();
        let (core, call, deadline) = self.take_call(now);
        Stage::slow(async move {
            let error = match ended {
                Ok(error) => error,
                Err(at) => {
                    let until = call.attempt_until(now.at, deadline);
                    match route.channel.exchange_over_new(at, &call, until).await {
                        Ok(reply) => return Ok(route.names(reply, 1)),
                        Err(error) => error,
                    }
                }
            };
            core.run(&call, now.at, deadline, Some((route, error))).await
        })
    }

    /// The whole call, its deadline settled, for the slow way.
    fn take_call(&mut self, now: Moment) -> (Arc<Core>, Call, Instant) {
        let core = Arc::clone(self.core.borrow());
        let deadline = now.at + Duration::from_micros(self.deadline.since(now.stamp));
        let mut call = self.form.take();
        call.body = mem::replace(&mut self.body, Packed::Shared(Bytes::new())).into_bytes();
        call.deadline = Some(deadline);
        call.attempt_timeout = call.attempt_timeout.or(core.attempt_timeout);
        call.idempotent |= core.idempotent;
        (core, call, deadline)
    }
}

impl<C: Borrow<Arc<Core>> + Unpin, F: Form> Future for Sending<C, F> {
    type Output = Result<Landed, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut now = None;
        loop {
            match &mut this.stage {
                Stage::Start => {
                    this.stage = Stage::Done;
                    let read = Moment::now();
                    this.stage =
                        this.start(read).unwrap_or_else(|error| Stage::slow(async { Err(error) }));
                    now = Some(read);
                }
                Stage::First(first) => {
                    let (terms, body) = (this.form.terms(), this.body.by_ref());
                    let First { route, at, flight } = first;
                    let Some(connection) = route.connection(*at) else {
                        let (route, at) = (Arc::clone(route), *at);
                        this.stage = this.go_on(route, Err(at));
                        continue;
                    };
                    let answer = connection.poll_flight(flight, terms, body, now, cx);
                    let Poll::Ready(answer) = answer else { return Poll::Pending };
                    let Stage::First(first) = mem::replace(&mut this.stage, Stage::Done) else {
                        return Poll::Pending;
                    };
                    match answer {
                        Ok(answer) => {
                            let codec = this.form.terms().codec;
                            return Poll::Ready(Ok(Landed::First(answer, first.route, codec)));
                        }
                        Err(error) => this.stage = this.failed(first, error),
                    }
                }
                Stage::Slow(future) => {
                    let answer = ready!(future.as_mut().poll(cx));
                    this.stage = Stage::Done;
                    return Poll::Ready(answer.map(Landed::Reply));
                }
                Stage::Done => return Poll::Pending,
            }
        }
    }
}

impl<C: Borrow<Arc<Core>>, F: Form> Drop for Sending<C, F> {
    fn drop(&mut self) {
        if let Stage::First(First { route, at, flight }) = &mut self.stage
            && let Some(connection) = route.connection(*at)
        {
            connection.leave(flight);
        }
    }
}

impl<C: Borrow<Arc<Core>>, F: Form> HasDeadline for Sending<C, F> {
    fn deadline(&self) -> Stamp {
        self.deadline
    }
}
