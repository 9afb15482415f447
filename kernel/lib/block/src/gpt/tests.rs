//! A disk in memory with a well-formed table, and what happens when it is damaged.

use super::table::{CRC32, header_crc};
use super::*;
use proptest::prelude::*;

const BLOCKS: u64 = 2048;

/// First and last block, attributes and name of an entry.
type Entry = (u64, u64, u64, &'static str);

fn entry(number: u8, (first, last, attributes, name): Entry) -> [u8; 128] {
    let mut bytes = [0; 128];
    bytes[..16].fill(0xaf);
    bytes[16..32].fill(number);
    bytes[32..40].copy_from_slice(&first.to_le_bytes());
    bytes[40..48].copy_from_slice(&last.to_le_bytes());
    bytes[48..56].copy_from_slice(&attributes.to_le_bytes());
    for (unit, at) in name.encode_utf16().zip((56..128).step_by(2)) {
        bytes[at..at + 2].copy_from_slice(&unit.to_le_bytes());
    }
    bytes
}

fn header(block: u64, entries_block: u64, count: u32, entries: &[u8], block_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; block_bytes];
    bytes[..8].copy_from_slice(b"EFI PART");
    bytes[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&92_u32.to_le_bytes());
    bytes[24..32].copy_from_slice(&block.to_le_bytes());
    bytes[32..40].copy_from_slice(&(BLOCKS - block).to_le_bytes());
    bytes[40..48].copy_from_slice(&34_u64.to_le_bytes());
    bytes[48..56].copy_from_slice(&(BLOCKS - 34).to_le_bytes());
    bytes[72..80].copy_from_slice(&entries_block.to_le_bytes());
    bytes[80..84].copy_from_slice(&count.to_le_bytes());
    bytes[84..88].copy_from_slice(&128_u32.to_le_bytes());
    bytes[88..92].copy_from_slice(&CRC32.checksum(entries).to_le_bytes());
    seal(&mut bytes);
    bytes
}

/// Makes the header's CRC right again.
fn seal(header: &mut [u8]) {
    let crc = header_crc(&header[..92]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
}

fn image(block_bytes: usize, partitions: &[Entry]) -> Vec<u8> {
    let mut disk = vec![0; BLOCKS as usize * block_bytes];
    disk[446 + 4] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0; 128 * 128];
    for (index, partition) in partitions.iter().enumerate() {
        entries[index * 128..][..128].copy_from_slice(&entry(index as u8 + 1, *partition));
    }
    for (block, entries_block) in [(1, 2), (BLOCKS - 1, BLOCKS - 33)] {
        let at = block as usize * block_bytes;
        disk[at..at + block_bytes].copy_from_slice(&header(block, entries_block, 128, &entries, block_bytes));
        disk[entries_block as usize * block_bytes..][..entries.len()].copy_from_slice(&entries);
    }
    disk
}

fn scan(disk: &[u8], block_bytes: u32) -> Result<Vec<Partition>, Error> {
    let mut scan = Scan::new(disk.len() as u64 / 512, block_bytes);
    for _ in 0..100 {
        match scan.next() {
            Step::Read { sector, sectors } => {
                assert!(sectors > 0 && sectors <= READ_SECTORS_MAX);
                let at = sector as usize * 512;
                scan.supply(&disk[at..at + sectors as usize * 512]);
            }
            Step::Done(result) => return result,
        }
    }
    panic!("the scan does not end");
}

const TWO: [Entry; 2] = [(64, 127, 0, "root"), (128, 255, 1 << 60, "päckchen")];

#[test]
fn a_table_is_read() {
    let partitions = scan(&image(512, &TWO), 512).unwrap();
    assert_eq!(partitions.len(), 2);
    assert_eq!((partitions[0].first_sector, partitions[0].sectors), (64, 64));
    assert_eq!((partitions[1].name.as_str(), partitions[1].read_only), ("päckchen", true));
    assert_eq!(partitions[1].unique_guid.to_string(), "02020202-0202-0202-0202-020202020202");
}

#[test]
fn large_blocks_are_counted_in_sectors() {
    let partitions = scan(&image(4096, &TWO), 4096).unwrap();
    assert_eq!((partitions[0].first_sector, partitions[0].sectors), (512, 512));
}

#[test]
fn guids_are_shown_in_mixed_order() {
    let guid = Guid([0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);
    assert_eq!(guid.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
}

#[test]
fn the_backup_stands_in() {
    for at in [512 + 16, 512, 2 * 512 + 60] {
        let mut disk = image(512, &TWO);
        disk[at] ^= 1;
        assert_eq!(scan(&disk, 512).unwrap().len(), 2, "damage at {at}");
        let last = disk.len() - 512 + 16;
        disk[last] ^= 1;
        assert_eq!(scan(&disk, 512), Err(Error::Damaged));
    }
}

#[test]
fn read_errors_lead_to_the_backup() {
    let disk = image(512, &TWO);
    let mut scan = Scan::new(BLOCKS, 512);
    scan.fail();
    while let Step::Read { sector, sectors } = scan.next() {
        scan.supply(&disk[sector as usize * 512..][..sectors as usize * 512]);
    }
    assert!(matches!(scan.next(), Step::Done(Ok(partitions)) if partitions.len() == 2));
    let mut scan = Scan::new(BLOCKS, 512);
    scan.supply(&[]);
    scan.supply(&[0; 10]);
    assert_eq!(scan.next(), Step::Done(Err(Error::Unreadable)));
}

#[test]
fn entries_of_a_half_read_table_are_forgotten() {
    let mut disk = image(512, &TWO);
    // A table of 64 KiB takes two reads; its second fails.
    let entries = vec![0; 512 * 128];
    disk[512..1024].copy_from_slice(&header(1, 2, 512, &entries, 512));
    disk[512 + 40..512 + 48].copy_from_slice(&200_u64.to_le_bytes());
    seal(&mut disk[512..1024]);
    let mut scan = Scan::new(BLOCKS, 512);
    let mut reads = 0;
    while let Step::Read { sector, sectors } = scan.next() {
        reads += 1;
        match reads {
            3 => scan.fail(),
            _ => scan.supply(&disk[sector as usize * 512..][..sectors as usize * 512]),
        }
    }
    assert!(matches!(scan.next(), Step::Done(Ok(partitions)) if partitions.len() == 2));
}

#[test]
fn other_disks_are_told_apart() {
    assert_eq!(scan(&vec![0; 1 << 20], 512), Err(Error::NotGpt));
    let mut disk = image(512, &TWO);
    disk[446 + 4] = 0x83;
    assert_eq!(scan(&disk, 512), Err(Error::NotGpt));
    assert_eq!(scan(&[0; 512], 512), Err(Error::Unreadable));
    assert_eq!(Scan::new(u64::MAX, 0).next(), Step::Done(Err(Error::Unreadable)));
    assert_eq!(Scan::new(u64::MAX, 1 << 31).next(), Step::Done(Err(Error::Unreadable)));
}

#[test]
fn partitions_stay_inside_and_apart() {
    assert_eq!(scan(&image(512, &[(33, 40, 0, "")]), 512), Err(Error::OutOfRange(1)));
    assert_eq!(scan(&image(512, &[(40, BLOCKS - 33, 0, "")]), 512), Err(Error::OutOfRange(1)));
    assert_eq!(scan(&image(512, &[(50, 49, 0, "")]), 512), Err(Error::OutOfRange(1)));
    assert_eq!(scan(&image(512, &[(40, u64::MAX, 0, "")]), 512), Err(Error::OutOfRange(1)));
    let crossing = [(300, 400, 0, "a"), (34, 60, 0, "b"), (60, 70, 0, "c")];
    assert_eq!(scan(&image(512, &crossing), 512), Err(Error::Overlap(2, 3)));
}

#[test]
fn names_cannot_talk_to_a_terminal() {
    let partitions = scan(&image(512, &[(34, 34, 0, "a\u{1b}[2J"), (35, 35, 0, "")]), 512).unwrap();
    assert_eq!(partitions[0].name, "a\u{fffd}[2J");
    assert_eq!(partitions[1].name, "part2");
}

/// Changes a header field in both copies, with right CRCs.
fn with_field(offset: usize, value: &[u8]) -> Result<Vec<Partition>, Error> {
    let mut disk = image(512, &TWO);
    for at in [512, disk.len() - 512] {
        disk[at + offset..][..value.len()].copy_from_slice(value);
        seal(&mut disk[at..at + 512]);
    }
    scan(&disk, 512)
}

#[test]
fn hostile_headers_are_refused() {
    assert_eq!(with_field(80, &u32::MAX.to_le_bytes()), Err(Error::TooLarge));
    assert_eq!(with_field(84, &u32::MAX.to_le_bytes()), Err(Error::Damaged));
    assert_eq!(with_field(84, &0_u32.to_le_bytes()), Err(Error::Damaged));
    assert_eq!(with_field(80, &0_u32.to_le_bytes()), Err(Error::Damaged));
    assert_eq!(with_field(72, &u64::MAX.to_le_bytes()), Err(Error::Damaged));
    assert_eq!(with_field(72, &40_u64.to_le_bytes()), Err(Error::Damaged));
    assert_eq!(with_field(48, &u64::MAX.to_le_bytes()), Err(Error::Damaged));
    assert_eq!(with_field(40, &0_u64.to_le_bytes()), Err(Error::Damaged));
    assert_eq!(with_field(12, &u32::MAX.to_le_bytes()), Err(Error::Damaged));
    assert_eq!(with_field(12, &20_u32.to_le_bytes()), Err(Error::Damaged));
}

proptest! {
    #[test]
    fn arbitrary_damage_neither_panics_nor_loops(changes in prop::collection::vec((0_usize..34 * 512, any::<u8>()), 1..8)) {
        let mut disk = image(512, &TWO);
        for (at, value) in changes {
            disk[at] = value;
        }
        seal(&mut disk[512..1024]);
        if let Ok(partitions) = scan(&disk, 512) {
            for partition in partitions {
                prop_assert!(partition.first_sector >= 2 && partition.end_sector().unwrap() < BLOCKS);
            }
        }
    }
}
