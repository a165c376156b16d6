//! Calls that wait, in order, for a place in the connection's window.

use std::collections::VecDeque;
use std::task::Waker;

use crate::call::Stamp;

/// Calls that wait for a place in the window, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queue: VecDeque<Ticket>,
    last: u64,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    deadline: Stamp,
    waker: Waker,
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
        self.queue.push_back(Ticket { number: self.last, deadline, waker });
        self.last
    }

    /// Whether it is this call's turn.
    pub(super) fn is_first(&self, number: u64) -> bool {
        self.queue.front().is_some_and(|first| first.number == number)
    }

    /// Waits on with another waker.
    pub(super) fn wait_on(&mut self, number: u64, waker: &Waker) {
        if let Ok(at) = self.find(number) {
            self.queue[at].waker.clone_from(waker);
        }
    }

    /// Leaves the queue, served or not.
    pub(super) fn leave(&mut self, number: u64) {
        if let Ok(at) = self.find(number) {
            self.queue.remove(at);
        }
    }

    /// The waker of the one whose turn it is.
    pub(super) fn first(&self) -> Option<Waker> {
        self.queue.front().map(|first| first.waker.clone())
    }

    /// Takes out those whose deadlines have come, polled or not; their wakers.
    pub(super) fn remove_overdue(&mut self, now: Stamp) -> Vec<Waker> {
        let mut wakers = Vec::new();
        self.queue.retain(|ticket| {
            let overdue = ticket.deadline <= now;
            if overdue {
                wakers.push(ticket.waker.clone());
            }
            !overdue
        });
        wakers
    }

    /// Whether this call still waits.
    pub(super) fn holds(&self, number: u64) -> bool {
        self.find(number).is_ok()
    }

    /// The wakers of all.
    pub(super) fn all(&self) -> impl Iterator<Item = Waker> {
        self.queue.iter().map(|ticket| ticket.waker.clone())
    }

    /// Numbers rise along the queue.
    fn find(&self, number: u64) -> Result<usize, usize> {
        self.queue.binary_search_by_key(&number, |ticket| ticket.number)
    }
}
