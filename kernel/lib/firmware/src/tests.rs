//! Reads the tables back as a guest does: from the scan for the anchor on, through every length and pointer.

use super::*;
use addr::LARGE_PAGE_BYTES;
use guestmem::GuestMemory;
use guestmem::heap::guest_memory;

fn board(vcpus: u32) -> Board {
    Board {
        vcpus,
        ecam: Some(layout::ECAM.start()),
        pci_memory: layout::PCI_MEMORY,
        pci_memory64: GpaRange::new(Gpa::new(1 << 40), 1 << 39),
        keyboard: true,
        hotplug: 0x7fff_fff8,
    }
}

fn read(memory: &GuestMemory, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read(Gpa::new(at), &mut bytes).unwrap();
    bytes
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A table with a standard header, its checksum and place checked.
fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
    let length = u32_at(&read(memory, at, 8), 4);
    let range = GpaRange::new(Gpa::new(at), u64::from(length)).unwrap();
    assert!(layout::ACPI_TABLES.contains(range.start()) && range.end() <= layout::ACPI_TABLES.end());
    let bytes = read(memory, at, length as usize);
    assert_eq!(sum(&bytes), 0, "checksum at {at:#x}");
    bytes
}

/// The tables of the XSDT, by way of the RSDP.
fn tables(memory: &GuestMemory, rsdp: Gpa) -> Vec<Vec<u8>> {
    let rsdp = read(memory, rsdp.as_u64(), 36);
    assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = table(memory, u64_at(&rsdp, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    xsdt[36..].chunks(8).map(|entry| table(memory, u64_at(entry, 0))).collect()
}

fn find<'a>(tables: &'a [Vec<u8>], signature: &[u8; 4]) -> &'a [u8] {
    tables.iter().find(|table| table[..4] == *signature).unwrap()
}

fn written(board: &Board) -> (GuestMemory, Vec<Vec<u8>>) {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    let rsdp = write_acpi(&memory, board).unwrap();
    let tables = tables(&memory, rsdp);
    (memory, tables)
}

#[test]
fn the_root_is_where_a_scan_finds_it() {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    let rsdp = write_acpi(&memory, &board(1)).unwrap();
    assert!((0xe_0000..0x10_0000).contains(&rsdp.as_u64()) && rsdp.is_aligned(16));
}

#[test]
fn every_table_is_linked() {
    let (_, tables) = written(&board(2));
    let signatures: Vec<&[u8]> = tables.iter().map(|table| &table[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"WAET", b"MCFG"]);
    let (_, tables) = written(&Board { ecam: None, ..board(2) });
    assert!(tables.iter().all(|table| &table[..4] != b"MCFG"));
}

#[test]
fn fadt_states_the_fixed_hardware() {
    let (memory, tables) = written(&board(1));
    let fadt = find(&tables, b"FACP");
    assert_eq!(fadt.len(), 276);
    assert_eq!((u16_at(fadt, 46), u32_at(fadt, 48)), (9, 0), "SCI, no SMI command");
    assert_eq!((u32_at(fadt, 56), u32_at(fadt, 64), u32_at(fadt, 76)), (0x600, 0x604, 0x608));
    assert_eq!((fadt[88], fadt[89], fadt[91]), (4, 2, 4));
    assert_eq!(u16_at(fadt, 109) & 0b1111, 0b0111, "legacy, 8042, no VGA, MSI");
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & (1 << 4), 0, "a fixed power button");
    assert_ne!(flags & (1 << 5), 0, "no fixed sleep button");
    assert_ne!(flags & (1 << 10), 0, "a reset register");
    assert_eq!(flags & (1 << 8 | 1 << 20), 0, "a 24-bit timer, full hardware");
    assert_eq!((fadt[116], u64_at(fadt, 120), fadt[128]), (1, 0xcf9, 6));
    assert_eq!((u64_at(fadt, 152), u64_at(fadt, 176), u64_at(fadt, 212)), (0x600, 0x604, 0x608));

    let facs = u64::from(u32_at(fadt, 36));
    assert_eq!(facs % 64, 0);
    assert_eq!(&read(&memory, facs, 8), b"FACS\x40\0\0\0");
    assert_eq!(&table(&memory, u64_at(fadt, 140))[..4], b"DSDT");
    assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
}

#[test]
fn without_a_keyboard_none_is_probed() {
    let (_, tables) = written(&Board { keyboard: false, ..board(1) });
    assert_eq!(u16_at(find(&tables, b"FACP"), 109) & 0b10, 0);
}

/// The MADT's structures as (type, bytes).
fn structures(madt: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut at, mut all) = (44, Vec::new());
    while at < madt.len() {
        let length = usize::from(madt[at + 1]);
        all.push((madt[at], madt[at..at + length].to_vec()));
        at += length;
    }
    assert_eq!(at, madt.len());
    all
}

#[test]
fn madt_lists_processors_and_wiring() {
    let (_, tables) = written(&board(300));
    let madt = find(&tables, b"APIC");
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    let all = structures(madt);
    let of = |kind: u8| all.iter().filter(move |(each, _)| *each == kind).map(|(_, bytes)| bytes).collect::<Vec<_>>();
    assert_eq!((of(0).len(), of(9).len()), (255, 45));
    assert_eq!(of(0)[254].as_slice(), [0, 8, 254, 254, 1, 0, 0, 0]);
    assert_eq!((u32_at(of(9)[0], 4), u32_at(of(9)[0], 8), u32_at(of(9)[0], 12)), (255, 1, 255));
    assert_eq!(of(1)[0].as_slice(), [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(of(2)[0].as_slice(), [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(of(2)[1].as_slice(), [2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
    assert_eq!(of(4)[0].as_slice(), [4, 6, 0xff, 0, 0, 1]);
    assert_eq!(of(0xa)[0].as_slice(), [0xa, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
}

#[test]
fn mcfg_covers_bus_0() {
    let (_, tables) = written(&board(1));
    let mcfg = find(&tables, b"MCFG");
    assert_eq!((mcfg.len(), u64_at(mcfg, 44)), (60, layout::ECAM.start().as_u64()));
    assert_eq!(&mcfg[52..56], [0, 0, 0, 0]);
}

#[test]
fn the_largest_guest_fits_and_a_larger_one_is_refused() {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    assert!(write_acpi(&memory, &board(1024)).is_ok());
    for vcpus in [0, 1025, u32::MAX] {
        assert_eq!(write_acpi(&memory, &board(vcpus)), Err(Error::Vcpus { max: 1024 }));
    }
}

#[test]
fn nothing_is_written_outside_the_tables() {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    memory.write(Gpa::new(0), &vec![0xa5; LARGE_PAGE_BYTES as usize]).unwrap();
    write_acpi(&memory, &board(1024)).unwrap();
    write_smbios(&memory, &board(1024)).unwrap();
    assert!(read(&memory, 0, 0xe_0000).iter().all(|byte| *byte == 0xa5));
    assert!(read(&memory, 0x10_0000, 0x10_0000).iter().all(|byte| *byte == 0xa5));
}

#[test]
fn a_board_that_cannot_be_described_is_refused() {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    let refuse = |board: Board, which| assert_eq!(write_acpi(&memory, &board), Err(Error::Window(which)));
    refuse(Board { ecam: Some(Gpa::new(1 << 32)), ..board(1) }, "ECAM");
    refuse(Board { ecam: Some(Gpa::new(0xe000_1000)), ..board(1) }, "ECAM");
    let empty = GpaRange::new(Gpa::new(0xc000_0000), 0).unwrap();
    refuse(Board { pci_memory: empty, ..board(1) }, "32-bit PCI window");
    let high = GpaRange::new(Gpa::new(0xc000_0000), 1 << 32).unwrap();
    refuse(Board { pci_memory: high, ..board(1) }, "32-bit PCI window");
    refuse(Board { pci_memory64: Some(empty), ..board(1) }, "64-bit PCI window");
    let no_memory = GuestMemory::new(std::sync::Arc::new(guestmem::heap::Heap::new(0)));
    assert!(matches!(write_acpi(&no_memory, &board(1)), Err(Error::NoMemory(_))));
    assert!(matches!(write_smbios(&no_memory, &board(1)), Err(Error::NoMemory(_))));
}

/// The offset of `pattern`, which must be there once.
fn once(bytes: &[u8], pattern: &[u8]) -> usize {
    let mut hits = bytes.windows(pattern.len()).enumerate().filter(|(_, window)| *window == pattern);
    let at = hits.next().unwrap_or_else(|| panic!("{pattern:x?} is not there")).0;
    assert!(hits.next().is_none());
    at
}

fn dsdt(board: &Board) -> Vec<u8> {
    let (memory, tables) = written(board);
    table(&memory, u64_at(find(&tables, b"FACP"), 140))
}

/// The value of the package length at `at`, and its own bytes (ACPI 6.5, 20.2.4).
fn package_length(aml: &[u8], at: usize) -> (usize, usize) {
    let more = usize::from(aml[at] >> 6);
    if more == 0 {
        return (usize::from(aml[at] & 0x3f), 1);
    }
    let high = (1..=more).rev().fold(0, |value, index| value << 8 | usize::from(aml[at + index]));
    (high << 4 | usize::from(aml[at] & 0xf), 1 + more)
}

#[test]
fn dsdt_is_soft_off_and_one_scope() {
    let aml = dsdt(&board(2))[36..].to_vec();
    assert_eq!(&aml[..14], [&b"\x08_S5_\x12"[..], &[8, 4, 0x0a, 5, 0x0a, 5, 0, 0]].concat());
    assert_eq!(aml[14], 0x10, "a scope");
    let end = 15 + package_length(&aml, 15).0;
    assert_eq!(&aml[end + 2..end + 7], b"\\_GPE", "and the events");
    assert_eq!(end + 1 + package_length(&aml, end + 1).0, aml.len(), "up to the end");
    // Devices follow each other without a gap.
    let mut at = 15 + package_length(&aml, 15).1 + 4;
    let mut names = Vec::new();
    while at < end {
        assert_eq!(aml[at..at + 2], [0x5b, 0x82]);
        let (length, own) = package_length(&aml, at + 2);
        names.push(String::from_utf8(aml[at + 2 + own..at + 6 + own].to_vec()).unwrap());
        at += 2 + length;
    }
    assert_eq!(names, ["PCI0", "MBRD", "COM1", "RTC_", "KBD_", "C000", "C001"]);
}

#[test]
fn slots_can_be_ejected_by_their_numbers() {
    let aml = dsdt(&Board { hotplug: 1 << 5 | 1 << 30, ..board(1) });
    let bits: [&[u8]; 2] = [&[0x0a, 0x20], &[0x0c, 0, 0, 0, 0x40]];
    for (name, address, number, bit) in [(b"S05_", 0x5_0000u32, 5, bits[0]), (b"S1E_", 0x1e_0000, 30, bits[1])] {
        once(&aml, &[&name[..], b"\x08_ADR\x0c", &address.to_le_bytes(), b"\x08_SUN\x0a", &[number]].concat());
        // A store of the device's bit to the register, and a notification of each kind where a bit is set.
        once(&aml, &[&b"_EJ0\x09\x70"[..], bit, b"EJCT"].concat());
        for kind in [&[1][..], &[0x0a, 3]] {
            once(&aml, &[&b"\x7b\x60"[..], bit, &[0, 0x86], name, kind].concat());
        }
    }
    once(&aml, b"\x86\\\x2e_SB_PCI0\0");
    once(&aml, b"_E01\0\\\x2f\x03_SB_PCI0HPCL");
    assert!(!dsdt(&Board { hotplug: 0, ..board(1) }).windows(4).any(|name| name == b"_EJ0"));
}

#[test]
fn the_window_leaves_the_ecam_out() {
    let aml = dsdt(&board(1));
    let window = |first: u32, last: u32| {
        let mut bytes = vec![0x87, 23, 0, 0, 0x0c, 1, 0, 0, 0, 0];
        [first, last, 0, last - first + 1].iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
        bytes
    };
    once(&aml, &window(0xc000_0000, 0xdfff_ffff));
    once(&aml, &window(0xe010_0000, 0xfebf_ffff));
    once(&dsdt(&Board { ecam: None, ..board(1) }), &window(0xc000_0000, 0xfebf_ffff));
}

#[test]
fn interrupt_pins_rotate_over_eight_gsis() {
    assert_eq!(
        (layout::pci_gsi(0, 0), layout::pci_gsi(0, 3), layout::pci_gsi(5, 3), layout::pci_gsi(31, 3)),
        (16, 19, 16, 18)
    );
    let aml = dsdt(&board(1));
    // Device 31, INTD: a package of four, address, pin, no source, GSI.
    once(&aml, &[0x12, 0x0c, 4, 0x0c, 0xff, 0xff, 0x1f, 0, 0x0a, 3, 0, 0x0a, 18]);
}

#[test]
fn smbios_structures_chain_to_the_end() {
    let mut memory = guest_memory(LARGE_PAGE_BYTES);
    memory.add_slot(Gpa::new(1 << 32), vec![addr::Hpa::new(0)]);
    let entry = write_smbios(&memory, &board(2)).unwrap();
    assert!(entry.is_aligned(16) && (0xf_0000..0x10_0000).contains(&entry.as_u64()));
    let entry = read(&memory, entry.as_u64(), 24);
    assert_eq!((&entry[..5], entry[6], sum(&entry)), (&b"_SM3_"[..], 24, 0));
    let all = read(&memory, u64_at(&entry, 16), u32_at(&entry, 12) as usize);
    let (mut at, mut kinds) = (0, Vec::new());
    while at < all.len() {
        kinds.push((all[at], all[at + 1]));
        let strings = at + usize::from(all[at + 1]);
        at = strings + all[strings..].windows(2).position(|pair| pair == [0, 0]).unwrap() + 2;
    }
    assert_eq!(at, all.len());
    let expected =
        [(0, 0x1a), (1, 0x1b), (3, 0x16), (4, 0x30), (16, 0x17), (17, 0x28), (19, 0x1f), (19, 0x1f), (127, 4)];
    assert_eq!(kinds, expected);
}

#[test]
fn errors_say_what_to_do() {
    assert_eq!(Error::Vcpus { max: 1024 }.to_string(), "a guest has 1 to 1024 vCPUs: change their number");
}
