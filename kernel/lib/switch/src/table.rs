//! Which address was last seen at which port.
//!
//! The main type is [`Table`], of fixed size; [`crate::Switch`] is its only user.

use crate::{Mac, PortId};
use alloc::boxed::Box;
use alloc::vec;

/// Addresses that fit in one set, and sets: 1024 addresses in all.
const WAYS: usize = 4;
const SETS: usize = 256;

/// How long an address stays without being seen (IEEE 802.1D-2004, table 7-5: ageing time).
pub(crate) const AGEING_NS: u64 = 300 * 1_000_000_000;

#[derive(Clone, Copy)]
struct Entry {
    mac: Mac,
    port: PortId,
    seen_ns: u64,
    /// Belongs to a port's configuration: neither ages nor moves.
    pinned: bool,
}

impl Entry {
    fn is_live(&self, now_ns: u64) -> bool {
        self.pinned || now_ns.saturating_sub(self.seen_ns) < AGEING_NS
    }
}

/// A set-associative table of addresses.
pub(crate) struct Table {
    sets: Box<[[Option<Entry>; WAYS]]>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { sets: vec![[None; WAYS]; SETS].into_boxed_slice() }
    }

    /// The port of an address that has not aged.
    pub(crate) fn lookup(&self, mac: &Mac, now_ns: u64) -> Option<PortId> {
        let entries = self.sets[set_of(mac)].iter().flatten();
        entries.filter(|entry| entry.is_live(now_ns)).find(|entry| entry.mac == *mac).map(|entry| entry.port)
    }

    /// Notes that an address was seen at a port. Returns false where it is pinned to another.
    pub(crate) fn learn(&mut self, mac: &Mac, port: PortId, now_ns: u64) -> bool {
        let set = &mut self.sets[set_of(mac)];
        if let Some(entry) = set.iter_mut().flatten().find(|entry| entry.mac == *mac) {
            if entry.pinned {
                return entry.port == port;
            }
            entry.port = port;
            entry.seen_ns = now_ns;
            return true;
        }
        if let Some(way) = victim(set) {
            set[way] = Some(Entry { mac: *mac, port, seen_ns: now_ns, pinned: false });
        }
        true
    }

    /// Ties an address to a port for good. Returns false where it is another's, or the set is full of such.
    pub(crate) fn pin(&mut self, mac: &Mac, port: PortId) -> bool {
        let set = &mut self.sets[set_of(mac)];
        let known = set.iter().position(|entry| entry.is_some_and(|entry| entry.mac == *mac));
        let Some(way) = known.or_else(|| victim(set)) else { return false };
        if set[way].is_some_and(|entry| entry.pinned) {
            return false;
        }
        set[way] = Some(Entry { mac: *mac, port, seen_ns: 0, pinned: true });
        true
    }

    /// Forgets every address of a port.
    pub(crate) fn forget(&mut self, port: PortId) {
        for entry in self.sets.iter_mut().flatten() {
            if entry.is_some_and(|entry| entry.port == port) {
                *entry = None;
            }
        }
    }
}

/// The way to put a new address into: an empty one, else the one not seen for longest.
fn victim(set: &[Option<Entry>; WAYS]) -> Option<usize> {
    let age = |way: &usize| set[*way].map_or(0, |entry| entry.seen_ns.saturating_add(1));
    (0..WAYS).filter(|way| !set[*way].is_some_and(|entry| entry.pinned)).min_by_key(age)
}

fn set_of(mac: &Mac) -> usize {
    let [a, b, c, d, e, f] = *mac;
    let key = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    // Multiplicative hashing; the top bits are the well-mixed ones.
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % SETS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u32) -> Mac {
        let [a, b, c, d] = number.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    #[test]
    fn addresses_age() {
        let mut table = Table::new();
        table.learn(&mac(1), PortId(3), 1000);
        assert_eq!(table.lookup(&mac(1), 999 + AGEING_NS), Some(PortId(3)));
        assert_eq!(table.lookup(&mac(1), 1000 + AGEING_NS), None);
        table.learn(&mac(1), PortId(3), 500 + AGEING_NS);
        assert_eq!(table.lookup(&mac(1), 1000 + AGEING_NS), Some(PortId(3)));
        assert_eq!(table.lookup(&mac(1), 0), Some(PortId(3)), "a clock that steps back does no harm");
    }

    #[test]
    fn a_flood_of_addresses_spares_the_pinned() {
        let mut table = Table::new();
        assert!(table.pin(&mac(7), PortId(1)));
        for number in 100..100_000 {
            table.learn(&mac(number), PortId(2), number.into());
        }
        assert_eq!(table.lookup(&mac(7), 0), Some(PortId(1)));
        assert!(!table.learn(&mac(7), PortId(2), 0));
        assert!(!table.pin(&mac(7), PortId(2)));
        assert_eq!(table.lookup(&mac(99_999), 99_999), Some(PortId(2)));
        table.forget(PortId(1));
        assert_eq!(table.lookup(&mac(7), 0), None);
    }

    #[test]
    fn a_set_full_of_pins_learns_nothing() {
        let mut table = Table::new();
        let same_set: Vec<_> = (0..).map(mac).filter(|mac| set_of(mac) == 0).take(WAYS + 2).collect();
        for mac in &same_set[..WAYS] {
            assert!(table.pin(mac, PortId(0)));
        }
        assert!(!table.pin(&same_set[WAYS], PortId(0)));
        assert!(table.learn(&same_set[WAYS], PortId(0), 0));
        assert_eq!(table.lookup(&same_set[WAYS], 0), None);
    }

    #[test]
    fn neighbouring_addresses_spread() {
        let mut counts = [0; SETS];
        for number in 0..SETS as u32 {
            counts[set_of(&mac(number))] += 1;
        }
        assert!(counts.iter().all(|count| *count <= WAYS), "{counts:?}");
    }
}
