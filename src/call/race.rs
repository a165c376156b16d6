//! What copies of one call know of each other while more than one is under way.

use std::sync::Arc;

use crate::instance::Address;
use crate::sync::Mutex;

/// One of the copies of a call that race for its answer.
#[derive(Clone, Debug)]
pub(crate) struct Racer {
    race: Arc<Mutex<Race>>,
    /// It started later than the other, makes one attempt, and only where nobody has tried.
    pub(crate) second: bool,
}

#[derive(Debug, Default)]
struct Race {
    /// Where an attempt was made, in order.
    tried: Vec<Address>,
    /// How many of the attempts that have ended reached the wire, or may have.
    sent: u32,
}

impl Racer {
    /// Both copies of one call.
    pub(crate) fn pair() -> (Self, Self) {
        let race = Arc::<Mutex<Race>>::default();
        (Self { race: Arc::clone(&race), second: false }, Self { race, second: true })
    }

    /// Where attempts were made so far, by either.
    pub(crate) fn tried(&self) -> Vec<Address> {
        self.race.lock().tried.clone()
    }

    /// An attempt is made there; the number of those made so far, this one included.
    pub(crate) fn tries(&self, address: &Address) -> u32 {
        let mut race = self.race.lock();
        race.tried.push(address.clone());
        race.tried.len() as u32
    }

    /// An attempt ended that reached the wire; the number of those.
    pub(crate) fn sent(&self) -> u32 {
        let mut race = self.race.lock();
        race.sent += 1;
        race.sent
    }
}
