//! The table of a connection's calls in flight: no sockets, no clock.

use std::task::Waker;

#[cfg(feature = "testing")]
use tokio::time::Instant;

use super::answer::Answer;
use crate::call::Stamp;
use crate::error::{Error, Fate, Kind};
use crate::protocol::Place;

/// An id's low bits are its slot.
const SLOT_BITS: u32 = 20;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;

/// Calls that were put into the outbox and wait for their answers.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Rises with every call: ids rise in wire order, and none is used twice.
    sequence: u64,
    /// Calls that hold a place in the window.
    live: usize,
    /// Bytes of bodies that those calls hold in the window.
    bytes: usize,
    /// No deadline is earlier than this, so most sweeps need not look.
    earliest: Option<Stamp>,
}

#[derive(Debug)]
struct Slot {
    /// 0 while the slot is free.
    id: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Free,
    Waiting(Pending),
    Done(Result<Answer, Error>),
}

/// A call that was removed.
#[derive(Debug)]
pub(super) enum Removed {
    Waiting(Pending),
    Done(Result<Answer, Error>),
}

/// What a poll of a call has found.
#[derive(Debug)]
pub(super) enum Polled {
    Done(Result<Answer, Error>),
    /// The call is woken by the waker that it was polled with.
    Waits,
    /// The call holds another waker: poll it again with a clone, made under no lock.
    NeedsWaker,
}

/// A call that waits for its answer.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) waker: Waker,
    pub(super) started: Stamp,
    pub(super) deadline: Stamp,
    pub(super) place: Place,
    /// What it holds of the window.
    pub(super) bytes: usize,
    pub(super) idempotent: bool,
}

impl InFlight {
    /// The id that the next [`insert`](Self::insert) gives.
    pub(super) fn next_id(&self) -> u64 {
        let slot = self.free.last().map_or(self.slots.len() as u64, |slot| u64::from(*slot));
        (self.sequence + 1) << SLOT_BITS | slot
    }

    /// Takes a call in under [`next_id`](Self::next_id).
    pub(super) fn insert(&mut self, pending: Pending) -> u64 {
        let id = self.next_id();
        self.sequence += 1;
        self.live += 1;
        self.bytes += pending.bytes;
        let earliest = self.earliest.get_or_insert(pending.deadline);
        *earliest = pending.deadline.min(*earliest);
        let slot = Slot { id, state: State::Waiting(pending) };
        match self.free.pop() {
            Some(free) => self.slots[free as usize] = slot,
            None => self.slots.push(slot),
        }
        id
    }

    /// How many calls hold a place in the window.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// How many bytes of bodies they hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Ends a call, and tells what it was; `None`: no call of this id waits, so the answer is late,
    /// doubled or a lie.
    pub(super) fn answer(&mut self, id: u64, answer: Result<Answer, Error>) -> Option<Pending> {
        self.answer_with(id, |_| answer)
    }

    /// The same with an answer that depends on the call.
    pub(super) fn answer_with(
        &mut self,
        id: u64,
        answer: impl FnOnce(&Pending) -> Result<Answer, Error>,
    ) -> Option<Pending> {
        let slot = self.slots.get_mut((id & SLOT_MASK) as usize)?;
        let State::Waiting(pending) = &slot.state else { return None };
        if slot.id != id {
            return None;
        }
        let answer = answer(pending);
        let State::Waiting(pending) = std::mem::replace(&mut slot.state, State::Done(answer))
        else {
            return None;
        };
        self.live -= 1;
        self.bytes -= pending.bytes;
        Some(pending)
    }

    /// The answer, if it is there, whereupon the call is forgotten. Else the call keeps `fresh`, a clone of
    /// `waker`, and puts the waker before it in its place: the drop of a waker may be the user's.
    pub(super) fn poll(&mut self, id: u64, waker: &Waker, fresh: &mut Option<Waker>) -> Polled {
        let at = (id & SLOT_MASK) as usize;
        let slot = &mut self.slots[at];
        debug_assert_eq!(slot.id, id, "a future asks only for its own call");
        if let State::Waiting(pending) = &mut slot.state {
            if pending.waker.will_wake(waker) {
                return Polled::Waits;
            }
            let Some(fresh) = fresh else { return Polled::NeedsWaker };
            std::mem::swap(&mut pending.waker, fresh);
            return Polled::Waits;
        }
        match self.forget(at) {
            State::Done(answer) => Polled::Done(answer),
            State::Free | State::Waiting(_) => Polled::Waits,
        }
    }

    /// Forgets a call whose caller left: what it was, if it still waited, else what it came to.
    pub(super) fn remove(&mut self, id: u64) -> Option<Removed> {
        let at = (id & SLOT_MASK) as usize;
        match self.forget(at) {
            State::Waiting(pending) => {
                self.live -= 1;
                self.bytes -= pending.bytes;
                Some(Removed::Waiting(pending))
            }
            State::Done(answer) => Some(Removed::Done(answer)),
            State::Free => None,
        }
    }

    /// The ids of the calls whose deadlines have come.
    pub(super) fn overdue(&mut self, now: Stamp, ids: &mut Vec<u64>) {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return;
        }
        self.earliest = None;
        for slot in &self.slots {
            let State::Waiting(pending) = &slot.state else { continue };
            if pending.deadline <= now {
                ids.push(slot.id);
            } else {
                let earliest = self.earliest.get_or_insert(pending.deadline);
                *earliest = pending.deadline.min(*earliest);
            }
        }
    }

    /// The calls that wait, by id.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u64, &Pending)> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            State::Waiting(pending) => Some((slot.id, pending)),
            State::Free | State::Done(_) => None,
        })
    }

    /// A call that waits.
    pub(super) fn pending(&self, id: u64) -> Option<&Pending> {
        let slot = self.slots.get((id & SLOT_MASK) as usize)?;
        match &slot.state {
            State::Waiting(pending) if slot.id == id => Some(pending),
            _ => None,
        }
    }

    /// Fails every call that waits, as `of` says of each.
    pub(super) fn fail(
        &mut self,
        mut of: impl FnMut(u64, &Pending) -> Option<(Kind, Fate, String)>,
    ) -> Vec<Waker> {
        let failed: Vec<_> = self
            .waiting()
            .filter_map(|(id, pending)| {
                let (kind, fate, message) = of(id, pending)?;
                Some((id, Error::new(kind, fate, message)))
            })
            .collect();
        let waker = |call: Pending| call.waker;
        failed
            .into_iter()
            .filter_map(|(id, error)| self.answer(id, Err(error)).map(waker))
            .collect()
    }

    fn forget(&mut self, at: usize) -> State {
        let Some(slot) = self.slots.get_mut(at) else { return State::Free };
        slot.id = 0;
        let state = std::mem::replace(&mut slot.state, State::Free);
        if !matches!(state, State::Free) {
            self.free.push(at as u32);
        }
        state
    }
}

/// The table alone, for `benches/parts.rs`: no part of the API.
#[cfg(feature = "testing")]
#[doc(hidden)]
#[derive(Debug)]
pub struct InFlightBench {
    table: InFlight,
    now: Stamp,
    ids: Vec<u64>,
}

#[cfg(feature = "testing")]
impl InFlightBench {
    #[doc(hidden)]
    pub fn new(now: Instant) -> Self {
        Self { table: InFlight::default(), now: Stamp::of(now), ids: Vec::new() }
    }

    /// Puts calls in, answers them and takes the answers out.
    #[doc(hidden)]
    pub fn round(&mut self, calls: usize) {
        use crate::call::{Metadata, Packed};
        let waker = Waker::noop();
        for _ in 0..calls {
            let id = self.table.insert(Pending {
                waker: waker.clone(),
                started: self.now,
                deadline: self.now,
                place: Place { start: 0, end: 40 },
                bytes: 3,
                idempotent: false,
            });
            self.ids.push(id);
        }
        for id in &self.ids {
            let answer = Answer::new(Packed::copied(&[3]), Metadata::default(), 1);
            std::hint::black_box(self.table.answer(*id, Ok(answer)));
        }
        for id in self.ids.drain(..) {
            std::hint::black_box(self.table.poll(id, waker, &mut None));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::call::{CodecId, Metadata, Packed};

    fn pending(deadline: Stamp) -> Pending {
        Pending {
            waker: Waker::noop().clone(),
            started: deadline,
            deadline,
            place: Place { start: 0, end: 10 },
            bytes: 10,
            idempotent: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ids_rise_and_are_never_used_twice() {
        let mut table = InFlight::default();
        let now = Stamp::now();
        let mut last = 0;
        for _ in 0..1000 {
            let expected = table.next_id();
            let id = table.insert(pending(now));
            assert_eq!(id, expected);
            assert!(id > last);
            last = id;
            assert!(matches!(table.remove(id), Some(Removed::Waiting(_))));
        }
        assert_eq!((table.len(), table.bytes(), table.slots.len()), (0, 0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn late_and_doubled_answers_find_nobody() {
        let mut table = InFlight::default();
        let id = table.insert(pending(Stamp::now()));
        let reply = || Ok(Answer::new(Packed::copied(b"x"), Metadata::default(), 0));
        assert!(table.answer(id + (1 << SLOT_BITS), reply()).is_none());
        assert!(table.answer(id, reply()).is_some());
        assert!(table.answer(id, reply()).is_none());
        let Polled::Done(answer) = table.poll(id, Waker::noop(), &mut None) else {
            panic!("it is answered")
        };
        assert_eq!(answer.unwrap().into_reply(CodecId::RAW).body, "x");
        let next = table.insert(pending(Stamp::now()));
        assert!(table.answer(id, reply()).is_none(), "the slot is another call's now");
        assert!(table.answer(next, reply()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waker_that_is_replaced_is_handed_back() {
        struct Counted;
        impl std::task::Wake for Counted {
            fn wake(self: Arc<Self>) {}
        }
        let mut table = InFlight::default();
        let first = Arc::new(Counted);
        let waker = Waker::from(Arc::clone(&first));
        let id = table.insert(Pending { waker, ..pending(Stamp::now()) });
        let mut fresh = None;
        assert!(matches!(table.poll(id, Waker::noop(), &mut fresh), Polled::NeedsWaker));
        fresh = Some(Waker::noop().clone());
        assert!(matches!(table.poll(id, Waker::noop(), &mut fresh), Polled::Waits));
        assert_eq!(Arc::strong_count(&first), 2, "it is not dropped by the table");
        drop(fresh);
        assert_eq!(Arc::strong_count(&first), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_finds_what_is_overdue_and_only_that() {
        let mut table = InFlight::default();
        let now = Stamp::now();
        let early = table.insert(pending(now.after(Duration::from_millis(5))));
        let late = table.insert(pending(now.after(Duration::from_millis(50))));
        let mut ids = Vec::new();
        table.overdue(now, &mut ids);
        assert!(ids.is_empty());
        table.overdue(now.after(Duration::from_millis(5)), &mut ids);
        assert_eq!(ids, [early]);
        table.remove(early);
        ids.clear();
        table.overdue(now.after(Duration::from_millis(60)), &mut ids);
        assert_eq!(ids, [late]);
    }
}
