//! Which frames a guest wants (5.1.6.5.1, 5.1.6.5.2): receive modes and the table of addresses.
//!
//! [`Filter`] is what the control queue sets and the receive path asks.

use alloc::vec::Vec;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Addresses kept of each kind; a longer table lets all frames of its kind pass.
pub(crate) const TABLE_MAX: usize = 64;

/// A list of addresses, or all of them.
#[derive(Clone, Default, Debug)]
pub(crate) struct Table {
    pub addresses: Vec<Mac>,
    /// The driver gave more than are kept.
    pub overflow: bool,
}

impl Table {
    fn has(&self, address: &Mac) -> bool {
        self.overflow || self.addresses.contains(address)
    }
}

/// Receive modes and address tables.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub promiscuous: bool,
    pub all_multicast: bool,
    pub unicast: Table,
    pub multicast: Table,
}

impl Default for Filter {
    /// Everything passes until the driver sets a mode: one without the control queue never does.
    fn default() -> Self {
        Self { promiscuous: true, all_multicast: false, unicast: Table::default(), multicast: Table::default() }
    }
}

impl Filter {
    /// Whether a frame to `destination` is for the guest with the address `own`.
    pub fn passes(&self, destination: &Mac, own: &Mac) -> bool {
        if self.promiscuous || destination == own || *destination == [0xff; 6] {
            return true;
        }
        // The group bit is the first to go over the wire (IEEE 802.3, 3.2.3).
        if destination[0] & 1 != 0 {
            self.all_multicast || self.multicast.has(destination)
        } else {
            self.unicast.has(destination)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

    #[test]
    fn modes() {
        let mut filter = Filter::default();
        assert!(filter.passes(&OTHER, &OWN));
        filter.promiscuous = false;
        assert!(filter.passes(&OWN, &OWN) && filter.passes(&[0xff; 6], &OWN));
        assert!(!filter.passes(&OTHER, &OWN) && !filter.passes(&GROUP, &OWN));
        filter.all_multicast = true;
        assert!(filter.passes(&GROUP, &OWN) && !filter.passes(&OTHER, &OWN));
    }

    #[test]
    fn tables() {
        let mut filter = Filter { promiscuous: false, ..Filter::default() };
        filter.unicast.addresses.push(OTHER);
        filter.multicast.addresses.push(GROUP);
        assert!(filter.passes(&OTHER, &OWN) && filter.passes(&GROUP, &OWN));
        assert!(!filter.passes(&[2, 9, 9, 9, 9, 9], &OWN));
        filter.unicast.overflow = true;
        assert!(filter.passes(&[2, 9, 9, 9, 9, 9], &OWN) && !filter.passes(&[3, 9, 9, 9, 9, 9], &OWN));
    }
}
