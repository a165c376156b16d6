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
    let methods = &session.server.methods;
    methods.get(name).cloned().ok_or_else(|| {
        let why = unknown(name, methods.keys().map(|known| &**known));
        Failure::rejected(Kind::Unimplemented, why)
    })
}

/// How many methods of a service are compared with a wrong name: strangers may ask often.
const MAX_COMPARED: usize = 200;

/// Which part of a name is unknown, and which method may be meant.
fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let service_of = |method: &str| method.rsplit_once('.').map_or(0, |(service, _)| service.len());
    let service = &name[..service_of(name)];
    let is_of = |method: &str| &method[..service_of(method)] == service;
    let mut ours = known.filter(|method| is_of(method)).take(MAX_COMPARED).peekable();
    if ours.peek().is_none() {
        return match service {
            "" => format!("there is no method {name:?} here: it names no service"),
            _ => format!("there is no method {name:?} here: there is no service {service:?}"),
        };
    }
    // The least of several: the order of the table differs from process to process.
    match ours.filter(|method| is_close(name.as_bytes(), method.as_bytes())).min() {
        Some(near) => format!("there is no method {name:?} here: did you mean {near:?}?"),
        None => format!("there is no method {name:?} here"),
    }
}

/// Whether two names differ by case, or by one character inserted, removed, replaced or swapped with the next.
fn is_close(one: &[u8], other: &[u8]) -> bool {
    let is_same = |(a, b): &(&u8, &u8)| a.eq_ignore_ascii_case(b);
    let ahead = one.iter().zip(other).take_while(is_same).count();
    let (one, other) = (&one[ahead..], &other[ahead..]);
    let behind = one.iter().rev().zip(other.iter().rev()).take_while(is_same).count();
    match (&one[..one.len() - behind], &other[..other.len() - behind]) {
        ([a, b], [c, d]) => a.eq_ignore_ascii_case(d) && b.eq_ignore_ascii_case(c),
        (one, other) => one.len() <= 1 && other.len() <= 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_named_and_what_was_meant_too() {
        let known = ["Foo.Sum", "Foo.Sleep", "shop.Cart.Add"];
        for (name, told) in [
            ("Bar.Sum", "there is no method \"Bar.Sum\" here: there is no service \"Bar\""),
            ("Foo.Smu", "there is no method \"Foo.Smu\" here: did you mean \"Foo.Sum\"?"),
            ("Foo.sum", "there is no method \"Foo.sum\" here: did you mean \"Foo.Sum\"?"),
            ("Foo.Slep", "there is no method \"Foo.Slep\" here: did you mean \"Foo.Sleep\"?"),
            ("Foo.Nothing", "there is no method \"Foo.Nothing\" here"),
            ("Cart.Add", "there is no method \"Cart.Add\" here: there is no service \"Cart\""),
            ("Sum", "there is no method \"Sum\" here: it names no service"),
        ] {
            assert_eq!(unknown(name, known.into_iter()), told);
        }
    }
}
