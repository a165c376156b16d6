//! Which of two instances of one service holds the address that both claim.

use super::{Health, Instance};

/// The higher one is preferred.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Precedence {
    is_up: bool,
    epoch: u64,
}

impl Instance {
    /// Whether a registry gives this instance an address of its service that `holder` holds.
    ///
    /// An instance that is draining or unready takes no address from one that is up. Otherwise the
    /// higher epoch wins, and of equal ones the registration that comes last, which is this one.
    pub fn takes_address_from(&self, holder: &Instance) -> bool {
        (self.is_up() || !holder.is_up()) && self.epoch >= holder.epoch
    }

    /// The order in which a list without an order of time prefers instances at one address: one
    /// that is up, then the higher epoch.
    pub(crate) fn precedence(&self) -> Precedence {
        Precedence { is_up: self.is_up(), epoch: self.epoch }
    }

    /// Whether a list that has both drops `other`, which has the same id or the same address.
    pub(crate) fn replaces(&self, other: &Instance) -> bool {
        match self.id == other.id {
            // Of one state of an instance that two sources tell, the one that takes fewer calls is newer:
            // a drain that an operator asked for has reached only one of them yet.
            true => (self.epoch, !self.is_up()) > (other.epoch, !other.is_up()),
            false => self.precedence() > other.precedence(),
        }
    }

    fn is_up(&self) -> bool {
        self.health == Health::Up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(epoch: u64, health: Health) -> Instance {
        Instance::new("a", "tcp@h:1".parse().unwrap()).epoch(epoch).health(health)
    }

    #[test]
    fn an_instance_that_is_up_keeps_its_address_from_those_that_are_not() {
        let holder = instance(5, Health::Up);
        for health in [Health::Draining, Health::Unready] {
            assert!(!instance(9, health).takes_address_from(&holder), "{health}");
            assert!(instance(9, Health::Up).takes_address_from(&instance(5, health)), "{health}");
        }
        assert!(instance(9, Health::Unready).takes_address_from(&instance(5, Health::Draining)));
    }

    #[test]
    fn a_list_drops_the_older_state_of_an_id_and_what_loses_an_address() {
        let other = |epoch, health| Instance { id: "b".into(), ..instance(epoch, health) };
        assert!(instance(6, Health::Draining).replaces(&instance(5, Health::Up)));
        assert!(instance(5, Health::Draining).replaces(&instance(5, Health::Up)));
        assert!(!instance(5, Health::Up).replaces(&instance(5, Health::Draining)));
        assert!(!instance(5, Health::Up).replaces(&instance(5, Health::Up)));
        assert!(other(5, Health::Up).replaces(&instance(6, Health::Draining)));
        assert!(other(6, Health::Up).replaces(&instance(5, Health::Up)));
        assert!(!other(5, Health::Up).replaces(&instance(5, Health::Up)));
    }

    #[test]
    fn the_higher_epoch_wins_and_of_equal_ones_the_last() {
        let holder = instance(5, Health::Up);
        assert!(instance(6, Health::Up).takes_address_from(&holder));
        assert!(instance(5, Health::Up).takes_address_from(&holder));
        assert!(!instance(4, Health::Up).takes_address_from(&holder));
        assert!(!instance(4, Health::Up).takes_address_from(&instance(5, Health::Draining)));
    }
}
