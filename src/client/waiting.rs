//! Calls that wait, in order, for a place in the connection's window.

use std::collections::VecDeque;
use std::task::Waker;

use crate::call::Stamp;

/// Calls that wait for a place in the window, in the order they came.
///
/// Wakers are the user's: they are moved, and never cloned or dropped here, under the connection's lock.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queue: VecDeque<Ticket>,
    last: u64,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    deadline: Stamp,
    /// `None` from when it is woken until it is polled.
    waker: Option<Waker>,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Joins the queue; the number is the place in it.
    pub(super) fn join(&mut self, deadline: Stamp, waker: Waker) -> u64 {
        self.last += 1;
        self.queue.push_back(Ticket { number: self.last, deadline, waker: Some(waker) });
        self.last
    }

    /// Whether it is this call's turn.
    pub(super) fn is_first(&self, number: u64) -> bool {
        self.queue.front().is_some_and(|first| first.number == number)
    }

    /// Waits on with another waker; returns the one that is no longer used.
    #[must_use = "it is dropped under no lock"]
    pub(super) fn wait_on(&mut self, number: u64, waker: Waker) -> Option<Waker> {
        match self.find(number) {
            Ok(at) => self.queue[at].waker.replace(waker),
            Err(_) => Some(waker),
        }
    }

    /// Leaves the queue, served or not; returns its waker.
    #[must_use = "it is dropped under no lock"]
    pub(super) fn leave(&mut self, number: u64) -> Option<Waker> {
        let at = self.find(number).ok()?;
        self.queue.remove(at)?.waker
    }

    /// Takes the waker of the one whose turn it is.
    pub(super) fn first(&mut self) -> Option<Waker> {
        self.queue.front_mut()?.waker.take()
    }

    /// Takes out those whose deadlines have come, polled or not; returns their wakers.
    pub(super) fn remove_overdue(&mut self, now: Stamp) -> Vec<Waker> {
        let mut wakers = Vec::new();
        self.queue.retain_mut(|ticket| {
            let is_overdue = ticket.deadline <= now;
            if is_overdue {
                wakers.extend(ticket.waker.take());
            }
            !is_overdue
        });
        wakers
    }

    /// Whether this call still waits.
    pub(super) fn holds(&self, number: u64) -> bool {
        self.find(number).is_ok()
    }

    /// Takes the wakers of all.
    pub(super) fn all(&mut self) -> impl Iterator<Item = Waker> {
        self.queue.iter_mut().filter_map(|ticket| ticket.waker.take())
    }

    /// Numbers rise along the queue.
    fn find(&self, number: u64) -> Result<usize, usize> {
        self.queue.binary_search_by_key(&number, |ticket| ticket.number)
    }
}
