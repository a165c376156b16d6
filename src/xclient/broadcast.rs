//! One call to every instance at once.

use std::borrow::Cow;
use std::future::poll_fn;
use std::task::Poll;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{XClient, fail};
use crate::call::{Call, Reply, call_begins, has_runtime, no_runtime};
use crate::error::{Error, Execution, Fate, Kind};
use crate::instance::Address;

impl XClient {
    /// Calls `method` on every ready instance in parallel. The first failure cancels the rest and
    /// is the result; if all succeed, it is the first reply.
    ///
    /// # Errors
    /// As [`call`](Self::call), and `Unavailable`, not sent, if there is no instance.
    pub async fn broadcast<A, R>(
        &self,
        method: impl Into<Cow<'static, str>>,
        args: &A,
    ) -> Result<R, Error>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let call = match Call::new(method).args_in(&self.inner.codec, args) {
            Ok(call) => call,
            Err(error) => return fail(error).await,
        };
        self.broadcast_call(call).await?.decode_with(&self.inner.codec)
    }

    /// Sends a call to every ready instance; see [`broadcast`](Self::broadcast).
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    pub async fn broadcast_call(&self, call: Call) -> Result<Reply, Error> {
        let (mut legs, _) = self.legs(call).await?;
        let mut first = None;
        while let Some((_, answer)) = legs.next().await {
            // Returning drops the other legs, which cancels them.
            let reply = answer?;
            first.get_or_insert(reply);
        }
        first.ok_or_else(|| self.no_instance())
    }

    /// Calls `method` on every ready instance in parallel and gives each instance's own result, in
    /// the order of their addresses.
    ///
    /// # Errors
    /// Only if no call could be made at all: bad arguments, no instance.
    pub async fn gather<A, R>(
        &self,
        method: impl Into<Cow<'static, str>>,
        args: &A,
    ) -> Result<Vec<(Address, Result<R, Error>)>, Error>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let call = match Call::new(method).args_in(&self.inner.codec, args) {
            Ok(call) => call,
            Err(error) => return fail(error).await,
        };
        let codec = &self.inner.codec;
        let decoded = |(address, answer): (Address, Result<Reply, Error>)| {
            let result = answer.and_then(|reply| {
                reply.decode_with(codec).map_err(|error: Error| error.at(&address))
            });
            (address, result)
        };
        Ok(self.gather_call(call).await?.into_iter().map(decoded).collect())
    }

    /// Sends a call to every ready instance; see [`gather`](Self::gather).
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub async fn gather_call(
        &self,
        call: Call,
    ) -> Result<Vec<(Address, Result<Reply, Error>)>, Error> {
        let (mut legs, addresses) = self.legs(call).await?;
        let mut answers: Vec<_> = addresses.iter().map(|_| None).collect();
        while let Some((at, answer)) = legs.next().await {
            answers[at] = Some(answer);
        }
        let lost = || Error::new(Kind::Cancelled, Fate::Unknown, "the runtime ended");
        let answers = answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(lost())));
        Ok(addresses.into_iter().zip(answers).collect())
    }

    /// Calls `method` on every ready instance in parallel; the first success is the result and
    /// cancels the rest.
    ///
    /// # Errors
    /// If all fail: the last failure, with the strongest class of all.
    pub async fn fork<A, R>(
        &self,
        method: impl Into<Cow<'static, str>>,
        args: &A,
    ) -> Result<R, Error>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let call = match Call::new(method).args_in(&self.inner.codec, args) {
            Ok(call) => call,
            Err(error) => return fail(error).await,
        };
        self.fork_call(call).await?.decode_with(&self.inner.codec)
    }

    /// Sends a call to every ready instance; see [`fork`](Self::fork).
    ///
    /// # Errors
    /// As [`fork`](Self::fork).
    pub async fn fork_call(&self, call: Call) -> Result<Reply, Error> {
        let (mut legs, _) = self.legs(call).await?;
        let mut strongest = Execution::NotSent;
        let mut last = None;
        while let Some((_, answer)) = legs.next().await {
            match answer {
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    let error = error.after(strongest);
                    strongest = error.execution();
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| self.no_instance()))
    }

    /// One leg an instance, each through the user's layers and never tried elsewhere.
    async fn legs(&self, mut call: Call) -> Result<(Legs, Vec<Address>), Error> {
        let deadline = self.inner.core.settle(&mut call, Instant::now());
        if let Err(error) = self.inner.core.listed(deadline).await {
            return fail(error).await;
        }
        let snapshot = self.resolver().snapshot();
        let addresses: Vec<_> = snapshot
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.is_ready() && !endpoint.is_doubtful())
            .map(|endpoint| endpoint.instance().address.clone())
            .collect();
        if addresses.is_empty() {
            return fail(self.no_instance()).await;
        }
        if !has_runtime() {
            return Err(no_runtime(Fate::NoConnection));
        }
        // The legs are polled by tasks of their own.
        poll_fn(|cx| {
            call_begins(cx.waker());
            Poll::Ready(())
        })
        .await;
        let mut legs = JoinSet::new();
        for (at, address) in addresses.iter().enumerate() {
            let (client, call) = (self.clone(), call.clone().only(address.clone()));
            legs.spawn(async move { (at, client.send(call).await) });
        }
        Ok((Legs(legs), addresses))
    }

    fn no_instance(&self) -> Error {
        self.inner.core.nobody("no ready instance is known")
    }
}

/// The legs under way; dropping them cancels them.
struct Legs(JoinSet<(usize, Result<Reply, Error>)>);

impl Legs {
    async fn next(&mut self) -> Option<(usize, Result<Reply, Error>)> {
        match self.0.join_next().await? {
            Ok(leg) => Some(leg),
            // A user's layer or selector panicked: so does the call, as it would alone.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends.
            Err(_) => None,
        }
    }
}
