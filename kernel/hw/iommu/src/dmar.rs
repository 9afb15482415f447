//! The DMAR table: where Intel's remapping units are and whom they cover (VT-d specification 4.1, chapter 8).
//!
//! The main function is [`parse`]; [`crate::find`] opens the units that it names.

use crate::table::{structures, u8_at, u16_at, u64_at};
use crate::{Coverage, Description, IoApic, Place, Reserved, Source};
use addr::Hpa;
use alloc::vec::Vec;

/// Flags (8.1): interrupts can be remapped.
const FLAGS: usize = 37;
const REMAPS_INTERRUPTS: u8 = 1;
/// Where the structures start: behind the header, the host's address width, flags and ten reserved bytes (8.1).
const STRUCTURES: usize = 48;
/// Remapping units (8.3), and memory that devices must reach at all times (8.4).
const UNIT: u16 = 0;
const RESERVED: u16 = 1;
/// A flag of a unit: it covers what no other does (8.3).
const INCLUDE_ALL: u8 = 1;
/// Kinds of device scope (8.3.1).
const ENDPOINT: u8 = 1;
const BRIDGE: u8 = 2;
const IO_APIC: u8 = 3;

/// Reads the table; `None` where it is malformed. `buses` gives the first and last bus behind a bridge.
pub fn parse(table: &[u8], buses: &dyn Fn(Source) -> Option<(u8, u8)>) -> Option<Description> {
    let remaps_interrupts = u8_at(table, FLAGS)? & REMAPS_INTERRUPTS != 0;
    let mut found = Description { remaps_interrupts, ..Description::default() };
    for structure in structures(table, STRUCTURES, |bytes| u16_at(bytes, 2).map(usize::from)) {
        let structure = structure?;
        match u16_at(structure, 0)? {
            UNIT if u16_at(structure, 6)? == 0 => {
                let is_rest = u8_at(structure, 4)? & INCLUDE_ALL != 0;
                let scopes = scopes(structure.get(16..)?, buses)?;
                let unit = found.units.len();
                let io_apics = scopes.iter().filter(|scope| scope.kind == IO_APIC);
                found.io_apics.extend(io_apics.map(|scope| IoApic { id: scope.id, source: scope.source, unit }));
                let coverage = if is_rest { Coverage::Rest } else { Coverage::Ranges(ranges(&scopes, buses)) };
                found.units.push(Place { base: Hpa::new(u64_at(structure, 8)?), coverage });
            }
            RESERVED if u16_at(structure, 6)? == 0 => {
                let (start, last) = (u64_at(structure, 8)?, u64_at(structure, 16)?);
                let bytes = last.checked_sub(start)?.checked_add(1)?;
                let sources = Coverage::Ranges(ranges(&scopes(structure.get(24..)?, buses)?, buses));
                found.reserved.push(Reserved { sources, start: Hpa::new(start), bytes });
            }
            _ => {}
        }
    }
    Some(found)
}

/// An entry of a list of device scopes (8.3.1).
struct Scope {
    kind: u8,
    /// Of an I/O APIC: its ID.
    id: u8,
    source: Source,
}

/// The entries of a list of device scopes. A path through bridges is followed with `buses`; one that leads nowhere is a
/// device that is not there.
fn scopes(list: &[u8], buses: &dyn Fn(Source) -> Option<(u8, u8)>) -> Option<Vec<Scope>> {
    let mut scopes = Vec::new();
    for scope in structures(list, 0, |bytes| u8_at(bytes, 1).map(usize::from)) {
        let scope = scope?;
        let path = scope.get(6..)?.chunks_exact(2);
        let Some(source) = follow(u8_at(scope, 5)?, path, buses) else { continue };
        scopes.push(Scope { kind: u8_at(scope, 0)?, id: u8_at(scope, 4)?, source });
    }
    Some(scopes)
}

/// The devices that they name.
fn ranges(scopes: &[Scope], buses: &dyn Fn(Source) -> Option<(u8, u8)>) -> Vec<(Source, Source)> {
    let devices = scopes.iter().filter(|scope| matches!(scope.kind, ENDPOINT | BRIDGE));
    let own_and_behind = devices.flat_map(|scope| {
        let behind = if scope.kind == BRIDGE { buses(scope.source) } else { None };
        let behind = behind.map(|(first, last)| (Source::new(first, 0, 0), Source::new(last, 31, 7)));
        core::iter::once((scope.source, scope.source)).chain(behind)
    });
    own_and_behind.collect()
}

fn follow<'a>(
    mut bus: u8,
    path: impl Iterator<Item = &'a [u8]>,
    buses: &dyn Fn(Source) -> Option<(u8, u8)>,
) -> Option<Source> {
    let mut found = None;
    for step in path {
        if let Some(bridge) = found {
            bus = buses(bridge)?.0;
        }
        found = Some(Source::new(bus, step[0], step[1]));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(structures: &[&[u8]]) -> Vec<u8> {
        let mut table = b"DMAR".to_vec();
        table.resize(STRUCTURES, 0);
        structures.iter().for_each(|structure| table.extend_from_slice(structure));
        table
    }

    /// A structure of a kind with its fields and scopes.
    fn structure(kind: u8, head: &[u8], scopes: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend_from_slice(head);
        scopes.iter().for_each(|scope| bytes.extend_from_slice(scope));
        bytes[2] = bytes.len() as u8;
        bytes
    }

    fn behind(bridge: Source) -> Option<(u8, u8)> {
        (bridge == Source::new(0, 3, 0)).then_some((5, 7))
    }

    const UNIT_HEAD: [u8; 12] = [0, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0];

    #[test]
    fn units_and_their_devices_are_read() {
        let all = structure(0, &[1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0], &[]);
        let some = structure(0, &UNIT_HEAD, &[&[1, 8, 0, 0, 0, 0, 2, 0], &[2, 8, 0, 0, 0, 0, 3, 0]]);
        let below = structure(0, &UNIT_HEAD, &[&[1, 10, 0, 0, 0, 0, 3, 0, 4, 1]]);
        let dmar = parse(&table(&[&some, &below, &all]), &behind).unwrap();
        let own = |bus, device, function| (Source::new(bus, device, function), Source::new(bus, device, function));
        let bridged = (Source::new(5, 0, 0), Source::new(7, 31, 7));
        assert_eq!(dmar.units[0].coverage, Coverage::Ranges(vec![own(0, 2, 0), own(0, 3, 0), bridged]));
        assert_eq!(dmar.units[1].coverage, Coverage::Ranges(vec![own(5, 4, 1)]));
        assert_eq!(dmar.units[2], Place { base: Hpa::new(0xfed9_0000), coverage: Coverage::Rest });
    }

    #[test]
    fn io_apics_and_whether_interrupts_are_remapped_are_read() {
        let none = structure(0, &UNIT_HEAD, &[&[1, 8, 0, 0, 0, 0, 2, 0]]);
        let one = structure(0, &[1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0], &[&[3, 8, 0, 0, 5, 0xff, 0x1e, 7]]);
        let mut table = table(&[&none, &one]);
        let dmar = parse(&table, &behind).unwrap();
        assert_eq!(dmar.io_apics, [IoApic { id: 5, source: Source::new(0xff, 0x1e, 7), unit: 1 }]);
        assert!(!dmar.remaps_interrupts);
        table[FLAGS] = 1;
        assert!(parse(&table, &behind).unwrap().remaps_interrupts);
    }

    #[test]
    fn reserved_memory_is_read() {
        let mut head = vec![0, 0, 0, 0];
        head.extend(0x7f00_0000_u64.to_le_bytes());
        head.extend(0x7f0f_ffff_u64.to_le_bytes());
        let dmar = parse(&table(&[&structure(1, &head, &[&[1, 8, 0, 0, 0, 0, 0x1d, 0]])]), &behind).unwrap();
        assert_eq!((dmar.reserved[0].start, dmar.reserved[0].bytes), (Hpa::new(0x7f00_0000), 1 << 20));
        assert!(dmar.reserved[0].sources.names(Source::new(0, 0x1d, 0)));
    }

    #[test]
    fn malformed_tables_are_refused() {
        let good = table(&[&structure(0, &UNIT_HEAD, &[&[1, 8, 0, 0, 0, 0, 2, 0]])]);
        assert!(parse(&good, &behind).is_some());
        for cut in STRUCTURES + 1..good.len() {
            assert!(parse(&good[..cut], &behind).is_none(), "cut to {cut} bytes");
        }
        let mut endless = good.clone();
        endless[STRUCTURES + 2] = 0;
        assert!(parse(&endless, &behind).is_none());
        let mut long_scope = good;
        long_scope[STRUCTURES + 17] = 9;
        assert!(parse(&long_scope, &behind).is_none());
    }
}
