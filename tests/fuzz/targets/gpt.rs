//! A partition table: any disk, its check sums put right as an attacker would.
#![no_main]

use block::SECTOR_BYTES;
use block::gpt::{Scan, Step};
use fuzz::Input;
use libfuzzer_sys::fuzz_target;

const SECTOR: usize = SECTOR_BYTES as usize;
/// A good table from the second sector on (UEFI 2.10, 5.3.2 and 5.3.3), to which the fuzzer's changes are made: header
/// and two entries, each as offset and bytes there.
const GOOD: [(usize, &[u8]); 12] = [
    (8, &[0, 0, 1, 0, 92]),
    (24, &[1]),
    (32, &[79]),
    (40, &[34]),
    (48, &[60]),
    (56, &[7; 16]),
    (72, &[2, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 128]),
    (SECTOR, &[1; 32]),
    (SECTOR + 32, &[34, 0, 0, 0, 0, 0, 0, 0, 40]),
    (SECTOR + 56, b"a\0b"),
    (SECTOR + 128, &[2; 32]),
    (SECTOR + 160, &[41, 0, 0, 0, 0, 0, 0, 0, 60]),
];
/// A scan that asks more often than this never ends.
const READS_MAX: usize = 2000;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let flags = input.u8();
    let block_bytes = if flags & 1 == 0 { 512 } else { u32::from(input.u16()) };
    let sectors = if flags & 2 == 0 { 80 } else { input.u64() };
    let mut disk = vec![0; 80 * SECTOR];
    // The protective MBR: one partition of type 0xee (UEFI 2.10, 5.2.3).
    disk[450] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (offset, bytes) in GOOD {
        disk[SECTOR + offset..SECTOR + offset + bytes.len()].copy_from_slice(bytes);
    }
    while !input.is_empty() {
        let offset = SECTOR + usize::from(input.u16()) % (8 * SECTOR);
        disk[offset] = input.u8();
    }
    if flags & 4 == 0 {
        seal(&mut disk);
    }
    scan(&disk, sectors, block_bytes);
});

fn scan(disk: &[u8], sectors: u64, block_bytes: u32) {
    let mut scan = Scan::new(sectors, block_bytes);
    for _ in 0..READS_MAX {
        match scan.next() {
            Step::Read { sector, sectors: count } => {
                assert!(sector.checked_add(count.into()).is_some_and(|end| end <= sectors), "a read outside the disk");
                assert!(count > 0);
                match disk.get(
                    (sector as usize).saturating_mul(SECTOR)..(sector as usize + count as usize).saturating_mul(SECTOR),
                ) {
                    Some(bytes) => scan.supply(bytes),
                    None => scan.fail(),
                }
            }
            Step::Done(Ok(partitions)) => {
                assert!(partitions.iter().all(|partition| partition.end_sector().is_some_and(|end| end <= sectors)));
                return;
            }
            Step::Done(Err(_)) => return,
        }
    }
    panic!("the scan does not end");
}

/// Makes signature and check sums of the primary header right (UEFI 2.10, 5.3.2).
fn seal(disk: &mut [u8]) {
    disk[SECTOR..SECTOR + 8].copy_from_slice(b"EFI PART");
    let field =
        |disk: &[u8], at: usize| u32::from_le_bytes(disk[SECTOR + at..SECTOR + at + 4].try_into().unwrap()) as usize;
    let start = field(disk, 72).saturating_mul(SECTOR);
    let bytes = field(disk, 80).saturating_mul(field(disk, 84));
    if let Some(entries) = disk.get(start..start.saturating_add(bytes)) {
        let sum = crc32(entries);
        disk[SECTOR + 88..SECTOR + 92].copy_from_slice(&sum.to_le_bytes());
    }
    disk[SECTOR + 16..SECTOR + 20].fill(0);
    let header = field(disk, 12).min(SECTOR);
    let sum = crc32(&disk[SECTOR..SECTOR + header]);
    disk[SECTOR + 16..SECTOR + 20].copy_from_slice(&sum.to_le_bytes());
}

/// CRC-32 as in IEEE 802.3, a bit at a time.
fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}
