//! Asks the members of a cluster, one after the other, over the HTTP gateway that each of them has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::api::{Authenticate, Authenticated, Refusal, Streamed};
use super::failure::Failure;
use crate::backend::exchange::{Answer, Ask, Connections, Host, OpenAnswer};
use crate::instance::Address;
use crate::sync::Mutex;
use crate::transport::Transport;

/// The longest line of a stream, in bytes: etcd splits larger messages.
const MAX_LINE: usize = 32 * 1024 * 1024;

/// How many requests to one member are under way at once. It commits together what comes at one time,
/// so more are of use than to a registry.
const MAX_REQUESTS: usize = 32;

/// As much as is read of a refusal, in bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// One member.
pub(super) struct Member {
    /// As given, for messages.
    pub(super) name: String,
    pub(super) address: Address,
    pub(super) authority: String,
    connections: Connections,
}

impl Member {
    pub(super) fn new(name: String, address: Address, authority: String) -> Self {
        let connections = Connections::new(None, MAX_REQUESTS);
        Self { name, address, authority, connections }
    }
}

/// Who asks, where the cluster wants to know.
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: String,
}

pub(super) struct Gateway {
    /// At least one.
    members: Vec<Member>,
    transport: Arc<dyn Transport>,
    /// What one member gets of the time that a request may take.
    share: Duration,
    /// The member to ask first.
    first: AtomicUsize,
    user: Option<User>,
    token: Mutex<Option<HeaderValue>>,
}

impl Gateway {
    pub(super) fn new(
        members: Vec<Member>,
        transport: Arc<dyn Transport>,
        timeout: Duration,
        user: Option<User>,
    ) -> Self {
        // All of them are asked within the timeout, and a little before.
        let share = match members.len() as u32 {
            0 | 1 => timeout,
            several => timeout.mul_f64(0.9) / several,
        };
        let (first, token) = (AtomicUsize::new(0), Mutex::new(None));
        Self { members, transport, share, first, user, token }
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// The answer of the first member that gives one, starting with the one that did last. Whatever is
    /// asked may be done twice: the answer of a member that did it can be lost.
    pub(super) async fn ask<A: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<A, Failure> {
        let body = json(question)?;
        let mut failures = Vec::new();
        for at in self.order() {
            let member = &self.members[at];
            match self.ask_member(member, path, &body).await {
                Ok(answer) => {
                    self.first.store(at, Relaxed);
                    return Ok(answer);
                }
                Err(refused @ Failure::Refused { .. }) => return Err(refused),
                Err(failure) => {
                    // Also for a caller with a limit of its own that ends before the round does.
                    self.first.store((at + 1) % self.members.len(), Relaxed);
                    failures.push(failure.from(&member.name));
                }
            }
        }
        Err(all(failures))
    }

    /// Asks one member alone, by its place.
    pub(super) async fn ask_at<A: DeserializeOwned>(
        &self,
        at: usize,
        path: &str,
        question: &impl Serialize,
    ) -> Result<A, Failure> {
        let member = &self.members[at];
        let answer = self.ask_member(member, path, &json(question)?).await;
        answer.map_err(|failure| failure.from(&member.name))
    }

    /// A stream from the first member that gives one. One at a time: it does not move to another.
    pub(super) async fn open(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<Lines, Failure> {
        let body = json(question)?;
        let mut failures = Vec::new();
        for at in self.order() {
            let member = &self.members[at];
            let opened = match self.open_member(member, path, &body).await {
                Err(failure) if self.user.is_some() && failure.wants_token() => {
                    *self.token.lock() = None;
                    self.open_member(member, path, &body).await
                }
                opened => opened,
            };
            match opened {
                Ok(answer) => return Ok(Lines { at, answer, read: Vec::new() }),
                Err(refused @ Failure::Refused { .. }) => return Err(refused),
                Err(failure) => {
                    self.first.store((at + 1) % self.members.len(), Relaxed);
                    failures.push(failure.from(&member.name));
                }
            }
        }
        Err(all(failures))
    }

    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, len) = (self.first.load(Relaxed), self.members.len());
        (0..len).map(move |step| (first + step) % len)
    }

    async fn ask_member<A: DeserializeOwned>(
        &self,
        member: &Member,
        path: &str,
        body: &[u8],
    ) -> Result<A, Failure> {
        match self.try_member(member, path, body).await {
            // The token has run out: etcd forgets those that are not used for some minutes.
            Err(failure) if self.user.is_some() && failure.wants_token() => {
                *self.token.lock() = None;
                self.try_member(member, path, body).await
            }
            answered => answered,
        }
    }

    async fn try_member<A: DeserializeOwned>(
        &self,
        member: &Member,
        path: &str,
        body: &[u8],
    ) -> Result<A, Failure> {
        let ask = self.with_token(member, post(path, body)).await?;
        read(&self.exchange(member, &ask).await?)
    }

    async fn open_member(
        &self,
        member: &Member,
        path: &str,
        body: &[u8],
    ) -> Result<OpenAnswer, Failure> {
        let ask = self.with_token(member, post(path, body)).await?;
        let (connections, transport) = (&member.connections, &*self.transport);
        let mut answer = connections.open(transport, member.host(), &ask, self.share).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let mut body = Vec::new();
        let whole = async {
            while let Ok(Some(chunk)) = answer.chunk().await {
                body.extend_from_slice(&chunk);
                if body.len() > MAX_REFUSAL {
                    return;
                }
            }
        };
        // What came until then says why, or nothing does.
        let _ = tokio::time::timeout(self.share, whole).await;
        Err(refusal(answer.status, &body))
    }

    async fn with_token(&self, member: &Member, ask: Ask) -> Result<Ask, Failure> {
        let Some(user) = &self.user else { return Ok(ask) };
        let known = self.token.lock().clone();
        let token = match known {
            Some(token) => token,
            None => {
                let User { name, password } = user;
                let body = json(&Authenticate { name, password })?;
                let ask = post("/v3/auth/authenticate", &body);
                let answered: Authenticated = read(&self.exchange(member, &ask).await?)?;
                let mut token = HeaderValue::from_str(&answered.token)
                    .map_err(|_| Failure::Nonsense("the token fits no header".to_owned()))?;
                token.set_sensitive(true);
                *self.token.lock() = Some(token.clone());
                token
            }
        };
        Ok(ask.header("authorization", token))
    }

    async fn exchange(&self, member: &Member, ask: &Ask) -> Result<Answer, Failure> {
        let (connections, transport) = (&member.connections, &*self.transport);
        Ok(connections.ask(transport, member.host(), ask, self.share).await?)
    }
}

impl Member {
    fn host(&self) -> Host<'_> {
        Host { address: &self.address, authority: &self.authority }
    }
}

/// The items of a stream, a line each.
pub(super) struct Lines {
    /// The member that sends it.
    pub(super) at: usize,
    answer: OpenAnswer,
    read: Vec<u8>,
}

impl Lines {
    /// The next item. A stream that ends is a failure: etcd ends none while it is well. Dropping the
    /// future loses nothing.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let item: Streamed<T> = serde_json::from_slice(&line).map_err(nonsense)?;
                return match item {
                    Streamed { result: Some(item), .. } => Ok(item),
                    Streamed { error: Some(refusal), .. } => Err(Failure::of(refusal)),
                    Streamed { .. } => Err(Failure::Nonsense("an item without content".into())),
                };
            }
            if self.read.len() > MAX_LINE {
                return Err(Failure::Nonsense(format!("an item of more than {MAX_LINE} bytes")));
            }
            match self.answer.chunk().await? {
                Some(chunk) => self.read.extend_from_slice(&chunk),
                None => return Err(Failure::unavailable("the stream ended")),
            }
        }
    }
}

fn post(path: &str, body: &[u8]) -> Ask {
    Ask::post(path).json(body.to_vec())
}

fn json(question: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(question)
        .map_err(|error| Failure::Nonsense(format!("this cannot be asked: {error}")))
}

fn read<A: DeserializeOwned>(answer: &Answer) -> Result<A, Failure> {
    if answer.status.is_success() {
        return serde_json::from_slice(&answer.body).map_err(nonsense);
    }
    Err(refusal(answer.status, &answer.body))
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) if refusal.code != 0 => Failure::of(refusal),
        _ => Failure::unavailable(format!("status {status}")),
    }
}

fn nonsense(error: serde_json::Error) -> Failure {
    Failure::Nonsense(format!("the answer is not what was asked for: {error}"))
}

/// The failures of all members as one; the only one is kept whole.
fn all(mut failures: Vec<Failure>) -> Failure {
    if failures.len() == 1
        && let Some(only) = failures.pop()
    {
        return only;
    }
    let texts: Vec<String> = failures.iter().map(Failure::to_string).collect();
    Failure::unavailable(texts.join("; "))
}
