//! The methods that one connection calls, found faster than in the server's whole table.

use std::sync::Arc;

use super::context::Origin;
use super::handler::{Failure, Seat};
use super::session::Session;
use super::shared::Entry;
use crate::error::{Kind, discard};
use crate::protocol::{MethodRef, Named, WireError};

/// How many methods are remembered; most connections call fewer.
const RECENT: usize = 8;

/// The methods that one connection calls.
#[derive(Default)]
pub(super) struct Methods {
    recent: Vec<Known>,
    /// Whose place the next one takes, once all are taken.
    next: usize,
    /// Methods by the number that the client gave them; grows to 256 at most.
    numbers: Vec<Option<Result<Arc<Entry>, Failure>>>,
}

/// A method that the connection has called.
pub(super) struct Known {
    pub(super) entry: Arc<Entry>,
    pub(super) origin: Arc<Origin>,
    /// Where its next call in place runs.
    pub(super) seat: Option<Box<dyn Seat>>,
}

impl Methods {
    /// The names of those that are remembered.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.recent.iter().map(|known| &*known.entry.name)
    }

    /// The method that a call names, by its place among the names or anew, or why there is none.
    ///
    /// # Errors
    /// If the call names a number that was never given: that breaks the protocol.
    pub(super) fn find(
        &mut self,
        session: &Session,
        method: Named<'_>,
    ) -> Result<Result<&mut Known, Failure>, WireError> {
        let method = match method {
            Named::Known(at) => return Ok(Ok(&mut self.recent[at])),
            Named::Anew(method) => method,
        };
        let entry = match method {
            MethodRef::Name(name) => find(session, name),
            MethodRef::Define(number, name) => {
                let at = usize::from(number);
                if self.numbers.len() <= at {
                    self.numbers.resize(at + 1, None);
                }
                self.numbers[at].insert(find(session, name)).clone()
            }
            MethodRef::Number(number) => match self.numbers.get(usize::from(number)) {
                Some(Some(method)) => method.clone(),
                _ => return Err(WireError::Value("a method's number: it was never given")),
            },
        };
        Ok(entry.map(|entry| self.remember(session, entry)))
    }

    fn remember(&mut self, session: &Session, entry: Arc<Entry>) -> &mut Known {
        let recent = self.recent.iter().position(|known| Arc::ptr_eq(&known.entry, &entry));
        let at = recent.unwrap_or_else(|| {
            let (method, peer) = (Arc::clone(&entry.name), Arc::clone(&session.peer));
            let known = Known { entry, origin: Arc::new(Origin { method, peer }), seat: None };
            if self.recent.len() < RECENT {
                self.recent.push(known);
                self.recent.len() - 1
            } else {
                let at = self.next % RECENT;
                self.next += 1;
                discard(std::mem::replace(&mut self.recent[at], known).seat);
                at
            }
        });
        &mut self.recent[at]
    }
}

fn find(session: &Session, name: &str) -> Result<Arc<Entry>, Failure> {
    session.server.methods.get(name).cloned().ok_or_else(|| {
        let why = format!("there is no method {name:?} here");
        Failure::rejected(Kind::Unimplemented, why)
    })
}
