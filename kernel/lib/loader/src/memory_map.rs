//! The guest's memory as a boot protocol's map tells it: what can be used, and what lies under the BIOS area.

use crate::layout;
use addr::GpaRange;
use guestmem::GuestMemory;

/// What a range of the memory map is, by the numbers of INT 15h, E820h, which Multiboot shares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Memory = 1,
    Reserved = 2,
}

/// The map: first address, end and kind of each range, in the order of addresses.
pub fn entries(memory: &GuestMemory) -> impl Iterator<Item = (u64, u64, Kind)> + '_ {
    memory.ranges().flat_map(pieces).flatten()
}

/// A range of memory as the guest may use it: what lies under the BIOS area is reserved, for the tables are there.
fn pieces(range: GpaRange) -> [Option<(u64, u64, Kind)>; 3] {
    let (start, end) = (range.start().as_u64(), range.end().as_u64());
    let (low, high) = (layout::LOW_MEMORY_END.as_u64(), layout::HIGH_MEMORY.as_u64());
    let piece = |from: u64, to: u64, kind| {
        let (from, to) = (from.max(start), to.min(end));
        (from < to).then_some((from, to, kind))
    };
    [piece(0, low, Kind::Memory), piece(low, high, Kind::Reserved), piece(high, u64::MAX, Kind::Memory)]
}
