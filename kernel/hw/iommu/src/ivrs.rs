//! The IVRS table: where AMD's IOMMUs are and whom they cover (AMD I/O Virtualization Technology specification 3.08,
//! chapter 5).
//!
//! The main function is [`parse`]; [`crate::find`] opens the units that it names.

use crate::table::{structures, u8_at, u16_at, u64_at};
use crate::{Coverage, Description, IoApic, Place, Reserved, Source};
use addr::Hpa;
use alloc::vec::Vec;

/// Where the blocks start: behind the header, the I/O virtualization information and eight reserved bytes (5.2.1).
const BLOCKS: usize = 48;
/// Blocks that describe a unit: of the first form, and of the later one, which repeats the first's with more.
const UNIT: [u8; 3] = [0x10, 0x11, 0x40];
/// Blocks that describe memory: for all devices, one, and a range.
const MEMORY_ALL: u8 = 0x20;
const MEMORY_ONE: u8 = 0x21;
const MEMORY_RANGE: u8 = 0x22;
/// The kind of special device that is an I/O APIC (5.2.2.2).
const IO_APIC: u8 = 1;
/// In a memory block's flags: the devices must not reach it untranslated, but past the tables.
const EXCLUSION: u8 = 1 << 3;

/// Reads the table; `None` where it is malformed.
pub fn parse(table: &[u8]) -> Option<Description> {
    let blocks = || structures(table, BLOCKS, |bytes| u16_at(bytes, 2).map(usize::from));
    // A unit may be described in several forms: the latest counts.
    let mut form = 0;
    for block in blocks() {
        form = form.max(u8_at(block?, 0).filter(|kind| UNIT.contains(kind)).unwrap_or(0));
    }
    let mut found = Description { remaps_interrupts: true, ..Description::default() };
    for block in blocks() {
        let block = block?;
        match u8_at(block, 0)? {
            kind if kind == form => read_unit(&mut found, block, if kind == 0x10 { 24 } else { 40 })?,
            kind @ (MEMORY_ALL | MEMORY_ONE | MEMORY_RANGE) => read_memory(&mut found, block, kind)?,
            _ => {}
        }
    }
    Some(found)
}

/// A unit (5.2.2).
fn read_unit(found: &mut Description, block: &[u8], entries: usize) -> Option<()> {
    if u16_at(block, 16)? != 0 {
        return Some(());
    }
    let mut ranges = Vec::new();
    let mut first = None;
    for entry in structures(block, entries, entry_bytes) {
        let entry = entry?;
        let source = Source(u16_at(entry, 1)?);
        // What a range's first entry said of it; an alias is the requester ID that its devices use.
        match u8_at(entry, 0)? {
            0x01 => ranges.push((Source(0), Source(u16::MAX))),
            0x02 | 0x46 => ranges.push((source, source)),
            0x42 => {
                ranges.push((source, source));
                found.aliases.push((source, Source(u16_at(entry, 5)?)));
            }
            0x03 | 0x47 => first = Some((source, None)),
            0x43 => first = Some((source, Some(Source(u16_at(entry, 5)?)))),
            0x48 if u8_at(entry, 7)? == IO_APIC => {
                let (id, source) = (u8_at(entry, 4)?, Source(u16_at(entry, 5)?));
                found.io_apics.push(IoApic { id, source, unit: found.units.len() });
            }
            0x04 => {
                let (start, alias) = first.take()?;
                ranges.push((start, source));
                let all = (start.0..=source.0).map(Source);
                found.aliases.extend(alias.into_iter().flat_map(|alias| all.clone().map(move |one| (one, alias))));
            }
            _ => {}
        }
    }
    found.units.push(Place { base: Hpa::new(u64_at(block, 8)?), coverage: Coverage::Ranges(ranges) });
    Some(())
}

/// Memory (5.2.3).
fn read_memory(found: &mut Description, block: &[u8], kind: u8) -> Option<()> {
    let flags = u8_at(block, 1)?;
    let (device, last) = (Source(u16_at(block, 4)?), Source(u16_at(block, 6)?));
    let range = match kind {
        MEMORY_ALL => (Source(0), Source(u16::MAX)),
        MEMORY_ONE => (device, device),
        _ => (device, last),
    };
    let (start, bytes) = (u64_at(block, 16)?, u64_at(block, 24)?);
    start.checked_add(bytes)?;
    if flags & EXCLUSION == 0 {
        let sources = Coverage::Ranges(alloc::vec![range]);
        found.reserved.push(Reserved { sources, start: Hpa::new(start), bytes });
    }
    Some(())
}

/// Bits 7:6 of an entry's kind say how long it is (5.2.2.1); those from F0h on say it themselves.
fn entry_bytes(entry: &[u8]) -> Option<usize> {
    match u8_at(entry, 0)? {
        0xf0.. => Some(22 + usize::from(u8_at(entry, 21)?)),
        kind => Some(4 << (kind >> 6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(blocks: &[Vec<u8>]) -> Vec<u8> {
        let mut table = b"IVRS".to_vec();
        table.resize(BLOCKS, 0);
        blocks.iter().for_each(|block| table.extend_from_slice(block));
        table
    }

    fn unit(kind: u8, entries: &[&[u8]]) -> Vec<u8> {
        let mut block = vec![kind, 0, 0, 0, 2, 0, 0x40, 0];
        block.extend(0xfed8_0000_u64.to_le_bytes());
        block.resize(if kind == 0x10 { 24 } else { 40 }, 0);
        entries.iter().for_each(|entry| block.extend_from_slice(entry));
        block[2] = block.len() as u8;
        block
    }

    fn range(first: u16, last: u16) -> (Source, Source) {
        (Source(first), Source(last))
    }

    #[test]
    fn units_and_their_devices_are_read() {
        let entries: [&[u8]; 5] =
            [&[0, 0, 0, 0], &[2, 8, 0, 0], &[3, 0x10, 0, 0], &[4, 0x1f, 0, 0], &[0x42, 0x20, 1, 0, 0, 0, 1, 0]];
        let ivrs = parse(&table(&[unit(0x10, &entries)])).unwrap();
        let ranges = vec![range(8, 8), range(0x10, 0x1f), range(0x120, 0x120)];
        assert_eq!(ivrs.units, [Place { base: Hpa::new(0xfed8_0000), coverage: Coverage::Ranges(ranges) }]);
        assert_eq!(ivrs.aliases, [(Source(0x120), Source(0x100))]);
    }

    #[test]
    fn io_apics_are_read() {
        let entries: [&[u8]; 2] = [&[0x48, 0, 0, 0, 5, 0xa0, 0, 1], &[0x48, 0, 0, 0, 0, 0xa1, 0, 2]];
        let ivrs = parse(&table(&[unit(0x10, &entries)])).unwrap();
        assert_eq!(ivrs.io_apics, [IoApic { id: 5, source: Source(0xa0), unit: 0 }]);
    }

    #[test]
    fn the_latest_form_of_a_unit_counts() {
        let ivrs = parse(&table(&[unit(0x10, &[&[2, 8, 0, 0]]), unit(0x11, &[&[1, 0, 0, 0]])])).unwrap();
        assert_eq!(ivrs.units.len(), 1);
        assert_eq!(ivrs.units[0].coverage, Coverage::Ranges(vec![range(0, 0xffff)]));
    }

    #[test]
    fn a_range_under_an_alias_gives_each_device_one() {
        let entries: [&[u8]; 2] = [&[0x43, 8, 0, 0, 0, 0, 1, 0], &[4, 10, 0, 0]];
        let ivrs = parse(&table(&[unit(0x10, &entries)])).unwrap();
        assert_eq!(ivrs.aliases, [8, 9, 10].map(|one| (Source(one), Source(0x100))));
    }

    #[test]
    fn reserved_memory_is_read_but_no_exclusion() {
        let memory = |flags: u8| {
            let mut block = vec![0x21, flags, 32, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            block.extend(0x1000_u64.to_le_bytes());
            block.extend(0x2000_u64.to_le_bytes());
            block
        };
        let ivrs = parse(&table(&[memory(7), memory(8)])).unwrap();
        let sources = Coverage::Ranges(vec![range(9, 9)]);
        assert_eq!(ivrs.reserved, [Reserved { sources, start: Hpa::new(0x1000), bytes: 0x2000 }]);
    }

    #[test]
    fn malformed_tables_are_refused() {
        let good = table(&[unit(0x10, &[&[2, 8, 0, 0]])]);
        for cut in BLOCKS + 1..good.len() {
            assert!(parse(&good[..cut]).is_none(), "cut to {cut} bytes");
        }
        assert!(parse(&table(&[unit(0x10, &[&[4, 8, 0, 0]])])).is_none(), "a range without a start");
        let mut endless = good;
        endless[BLOCKS + 2] = 0;
        assert!(parse(&endless).is_none());
    }
}
