use super::*;
use crate::testing::{A, D, Mock, NX, P, PS, U, W};

const PAGE: u64 = 0x80_0000_0000;
const TARGET: u64 = 0x3_0000;

fn fault(code: u32, gva: u64) -> Result<Gpa, Exception> {
    Err(Exception::page_fault(code, gva))
}

fn look(mock: &Mock, gva: u64, access: Access) -> Result<Gpa, Exception> {
    probe(mock, gva, access, Privilege::of(&mock.paging))
}

#[test]
fn no_paging_is_32_bits_wide() {
    let mock = Mock::flat32();
    assert_eq!(look(&mock, 0x1_1234_5678, Access::Write), Ok(Gpa::new(0x1234_5678)));
}

#[test]
fn four_levels_and_page_sizes() {
    let mut mock = Mock::long();
    mock.map(PAGE, TARGET, P | W);
    assert_eq!(look(&mock, PAGE + 0x123, Access::Write), Ok(Gpa::new(TARGET + 0x123)));
    assert_eq!(look(&mock, 0xf123_4567, Access::Read), Ok(Gpa::new(0xf123_4567)));
    // A 2 MiB page beside it.
    let directory = mock.peek(mock.peek(0x1000 + 8, 8) & !0xfff, 8) & !0xfff;
    mock.poke(directory + 8, 8, 0x60_0000 | P | PS);
    assert_eq!(look(&mock, PAGE + 0x21_2345, Access::Read), Ok(Gpa::new(0x61_2345)));
    mock.poke(directory + 8, 8, 0x60_2000 | P | PS);
    assert_eq!(look(&mock, PAGE + 0x21_2345, Access::Read), fault(0x9, PAGE + 0x21_2345));
    // PAT's bit is where the frame's lowest would be.
    mock.poke(directory + 8, 8, 0x60_0000 | 1 << 12 | P | PS);
    assert_eq!(look(&mock, PAGE + 0x21_2345, Access::Read), Ok(Gpa::new(0x61_2345)));
    mock.poke(0x2000 + 16, 8, 2 << 30 | 1 << 13 | P | PS);
    assert_eq!(look(&mock, 0x8000_0000, Access::Read), fault(0x9, 0x8000_0000));
    mock.poke(0x1000 + 16, 8, 0x2000 | P | PS);
    assert_eq!(look(&mock, 2 * PAGE, Access::Write), fault(0xb, 2 * PAGE));
}

#[test]
fn five_levels() {
    let mut mock = Mock::long();
    mock.paging.cr4 |= cr4::LA57;
    mock.poke(0x3000, 8, 0x1000 | P | W | U);
    mock.poke(0x3000 + 8 * 511, 8, 0x1000 | P | W | U);
    mock.paging.cr3 = 0x3000;
    assert_eq!(look(&mock, 0x4567, Access::Read), Ok(Gpa::new(0x4567)));
    // Canonical with 57 bits, not with 48.
    let high = 0xffff_0000_0000_1234;
    assert_eq!(look(&mock, high, Access::Read), Ok(Gpa::new(0x1234)));
    assert_eq!(look(&mock, 0xfe00_0000_0000_0000, Access::Read), Err(Exception::PROTECTION));
    mock.paging.cr4 &= !cr4::LA57;
    mock.paging.cr3 = 0x1000;
    assert_eq!(look(&mock, high, Access::Read), Err(Exception::PROTECTION));
}

#[test]
fn not_present_at_each_level() {
    let mut mock = Mock::long();
    assert_eq!(look(&mock, PAGE, Access::Read), fault(0, PAGE));
    let leaf = mock.map(PAGE, TARGET, P);
    mock.poke(leaf, 8, NX | TARGET | U);
    assert_eq!(look(&mock, PAGE, Access::Write), fault(2, PAGE));
    mock.paging.cpl = 3;
    assert_eq!(look(&mock, PAGE, Access::Fetch), fault(0x14, PAGE));
}

#[test]
fn reserved_bits() {
    let mut mock = Mock::long();
    mock.map(PAGE, TARGET | 1 << 40, P);
    assert_eq!(look(&mock, PAGE, Access::Read), fault(9, PAGE));
    mock.physical_address_bits = 41;
    assert_eq!(look(&mock, PAGE, Access::Read), Ok(Gpa::new(TARGET | 1 << 40)));
    mock.map(PAGE, TARGET, P | NX);
    mock.paging.efer &= !efer::NXE;
    assert_eq!(look(&mock, PAGE, Access::Read), fault(9, PAGE));
    // Bits 62:52 are the guest's own in 4-level paging.
    mock.map(PAGE, TARGET, P | 0x7ff << 52);
    assert_eq!(look(&mock, PAGE, Access::Read), Ok(Gpa::new(TARGET)));
}

#[test]
fn a_table_outside_ram_reads_all_ones() {
    let mut mock = Mock::long();
    mock.poke(0x1000 + 8, 8, 0xd000_0000 | P | W | U);
    assert_eq!(look(&mock, PAGE, Access::Read), fault(9, PAGE));
}

#[test]
fn rights_of_user_and_supervisor() {
    use Access::{Fetch, Read, Write};
    // Leaf flags, CPL, CR0.WP, access, error code or success.
    let cases = [
        (P | U, 3, true, Read, None),
        (P | U, 3, true, Write, Some(7)),
        (P | U, 3, false, Write, Some(7)),
        (P | U | W, 3, true, Write, None),
        (P | W, 3, true, Read, Some(5)),
        (P | W, 3, true, Write, Some(7)),
        (P | W, 3, true, Fetch, Some(0x15)),
        (P | U, 3, true, Fetch, None),
        (P | U | NX, 3, true, Fetch, Some(0x15)),
        (P, 0, true, Read, None),
        (P, 0, true, Write, Some(3)),
        (P, 0, false, Write, None),
        (P | U, 0, true, Write, Some(3)),
        (P | U, 0, false, Write, None),
        (P | U, 2, true, Fetch, None),
        (P | NX, 0, true, Fetch, Some(0x11)),
        (P | NX, 0, true, Read, None),
    ];
    for (flags, cpl, wp, access, error) in cases {
        let mut mock = Mock::long();
        mock.map(PAGE, TARGET, flags);
        mock.paging.cpl = cpl;
        if !wp {
            mock.paging.cr0 &= !cr0::WP;
        }
        let expected = error.map_or(Ok(Gpa::new(TARGET)), |code| fault(code, PAGE));
        assert_eq!(look(&mock, PAGE, access), expected, "{flags:x} {cpl} {wp} {access:?}");
    }
}

#[test]
fn upper_levels_narrow_rights() {
    let mut mock = Mock::long();
    mock.map(PAGE, TARGET, P | W | U);
    let upper = mock.peek(0x1000 + 8, 8);
    mock.poke(0x1000 + 8, 8, upper & !W);
    assert_eq!(look(&mock, PAGE, Access::Write), fault(3, PAGE));
    mock.poke(0x1000 + 8, 8, upper | NX);
    assert_eq!(look(&mock, PAGE, Access::Fetch), fault(0x11, PAGE));
    mock.poke(0x1000 + 8, 8, upper & !U);
    mock.paging.cpl = 3;
    assert_eq!(look(&mock, PAGE, Access::Read), fault(5, PAGE));
}

#[test]
fn smep_and_smap() {
    let mut mock = Mock::long();
    mock.map(PAGE, TARGET, P | W | U);
    mock.paging.cr4 |= cr4::SMEP | cr4::SMAP;
    assert_eq!(look(&mock, PAGE, Access::Fetch), fault(0x11, PAGE));
    assert_eq!(look(&mock, PAGE, Access::Read), fault(1, PAGE));
    assert_eq!(look(&mock, PAGE, Access::Write), fault(3, PAGE));
    // AC suspends it for a program's accesses, not for the processor's own.
    mock.rflags |= rflags::AC;
    assert_eq!(look(&mock, PAGE, Access::Write), Ok(Gpa::new(TARGET)));
    assert_eq!(probe(&mock, PAGE, Access::Read, Privilege::Implicit), fault(1, PAGE));
    assert_eq!(look(&mock, PAGE, Access::Fetch), fault(0x11, PAGE));
    mock.paging.cpl = 3;
    assert_eq!(look(&mock, PAGE, Access::Fetch), Ok(Gpa::new(TARGET)));
    // With WP clear SMAP still holds.
    mock.paging.cpl = 0;
    mock.paging.cr0 &= !cr0::WP;
    mock.rflags &= !rflags::AC;
    assert_eq!(look(&mock, PAGE, Access::Write), fault(3, PAGE));
}

#[test]
fn the_fetch_bit_needs_nx_or_smep() {
    let mut mock = Mock::long();
    mock.paging.efer &= !efer::NXE;
    assert_eq!(look(&mock, PAGE, Access::Fetch), fault(0, PAGE));
    mock.paging.cr4 |= cr4::SMEP;
    assert_eq!(look(&mock, PAGE, Access::Fetch), fault(0x10, PAGE));
}

#[test]
fn protection_keys() {
    let mut mock = Mock::long();
    mock.map(PAGE, TARGET, P | W | U | 3 << 59);
    mock.pkru = 1 << 6;
    assert_eq!(look(&mock, PAGE, Access::Read), Ok(Gpa::new(TARGET)));
    mock.paging.cr4 |= cr4::PKE;
    assert_eq!(look(&mock, PAGE, Access::Read), fault(0x21, PAGE));
    assert_eq!(look(&mock, PAGE, Access::Fetch), Ok(Gpa::new(TARGET)));
    mock.pkru = 1 << 7;
    assert_eq!(look(&mock, PAGE, Access::Read), Ok(Gpa::new(TARGET)));
    assert_eq!(look(&mock, PAGE, Access::Write), fault(0x23, PAGE));
    mock.paging.cr0 &= !cr0::WP;
    assert_eq!(look(&mock, PAGE, Access::Write), Ok(Gpa::new(TARGET)));
    mock.paging.cpl = 3;
    assert_eq!(look(&mock, PAGE, Access::Write), fault(0x27, PAGE));
    // Supervisor pages have no key.
    mock.map(PAGE, TARGET, P | W | 3 << 59);
    mock.paging.cpl = 0;
    assert_eq!(look(&mock, PAGE, Access::Write), Ok(Gpa::new(TARGET)));
}

#[test]
fn accessed_and_dirty_bits() {
    let mut mock = Mock::long();
    let leaf = mock.map(PAGE, TARGET, P | W);
    let supervisor = Privilege::Supervisor;
    let untouched = mock.clone();
    probe(&mock, PAGE, Access::Write, supervisor).unwrap();
    assert_eq!(mock, untouched);
    translate(&mut mock, PAGE, Access::Read, supervisor).unwrap();
    assert_eq!(mock.peek(leaf, 8), TARGET | P | W | A);
    assert_eq!(mock.peek(0x1000 + 8, 8) & (A | D), A);
    translate(&mut mock, PAGE, Access::Write, supervisor).unwrap();
    assert_eq!(mock.peek(leaf, 8), TARGET | P | W | A | D);
    assert_eq!(mock.peek(0x1000 + 8, 8) & (A | D), A);
    // A refused access leaves nothing behind.
    let leaf = mock.map(PAGE + 0x1000, TARGET, P);
    translate(&mut mock, PAGE + 0x1000, Access::Write, supervisor).unwrap_err();
    assert_eq!(mock.peek(leaf, 8), TARGET | P);
}

#[test]
fn a_racing_guest_keeps_its_entry() {
    let mut mock = Mock::long();
    let leaf = mock.map(PAGE, TARGET, P | W);
    translate(&mut mock, PAGE, Access::Read, Privilege::Supervisor).unwrap();
    // The other vCPU's change (bit 9) survives, and the dirty bit is set with it.
    mock.races = 1;
    translate(&mut mock, PAGE, Access::Write, Privilege::Supervisor).unwrap();
    assert_eq!(mock.peek(leaf, 8), TARGET | P | W | A | D | 1 << 9);
    mock.poke(leaf, 8, TARGET | P | W);
    mock.races = u32::MAX;
    assert_eq!(translate(&mut mock, PAGE, Access::Write, Privilege::Supervisor), Err(Fault::Unavailable));
}

/// 32-bit tables: 0x1000 the directory, 0x2000 the table of its entry 1.
fn legacy() -> Mock {
    let mut mock = Mock::flat32();
    mock.paging.cr0 |= cr0::PG | cr0::WP;
    mock.paging.cr3 = 0x1018;
    mock.poke(0x1004, 4, 0x2000 | P | W | U);
    mock.poke(0x2008, 4, TARGET | P | U);
    mock.poke(0x1000 + 4 * 0x3ff, 4, 0x0080_0000 | P | W | PS);
    mock
}

#[test]
fn legacy_pages() {
    let mut mock = legacy();
    assert_eq!(look(&mock, 0x40_2345, Access::Read), Ok(Gpa::new(TARGET + 0x345)));
    assert_eq!(look(&mock, 0x40_2345, Access::Write), fault(3, 0x40_2345));
    assert_eq!(look(&mock, 0x40_3345, Access::Fetch), fault(0, 0x40_3345));
    assert_eq!(look(&mock, 0x80_0000, Access::Write), fault(2, 0x80_0000));
    mock.poke(0x2008, 4, TARGET | P | W);
    translate(&mut mock, 0x40_2345, Access::Write, Privilege::Supervisor).unwrap();
    assert_eq!(mock.peek(0x2008, 4), TARGET | P | W | A | D);
    assert_eq!(mock.peek(0x1004, 4), 0x2000 | P | W | U | A);
    assert_eq!(mock.peek(0x200c, 4), 0);
}

#[test]
fn page_size_extensions() {
    let mut mock = legacy();
    // Without PSE the bit means nothing and the entry is a table's, here one outside RAM.
    assert_eq!(look(&mock, 0xffc1_2345, Access::Read), Ok(Gpa::new(0xffff_f345)));
    mock.paging.cr4 |= cr4::PSE;
    assert_eq!(look(&mock, 0xffc1_2345, Access::Read), Ok(Gpa::new(0x81_2345)));
    // PSE-36: bits 20:13 are address bits 39:32.
    mock.poke(0x1ffc, 4, 0x0080_0000 | 0x81 << 13 | P | PS);
    assert_eq!(look(&mock, 0xffc1_2345, Access::Read), Ok(Gpa::new(0x81_0081_2345)));
    mock.physical_address_bits = 36;
    assert_eq!(look(&mock, 0xffc1_2345, Access::Read), fault(9, 0xffc1_2345));
    mock.poke(0x1ffc, 4, 0x00a0_0000 | P | PS);
    assert_eq!(look(&mock, 0xffc1_2345, Access::Read), fault(9, 0xffc1_2345));
}

#[test]
fn physical_address_extension() {
    let mut mock = Mock::flat32();
    mock.paging.cr0 |= cr0::PG | cr0::WP;
    mock.paging.cr4 = cr4::PAE;
    mock.paging.efer = efer::NXE;
    mock.paging.cr3 = 0x1020;
    mock.poke(0x1020 + 8 * 3, 8, 0x2000 | P);
    mock.poke(0x2000, 8, 0x3000 | P | W | U);
    mock.poke(0x2008, 8, 0x60_0000 | P | W | PS | NX);
    mock.poke(0x3000 + 8 * 5, 8, 0x7_0000_0000 | P | W);
    assert_eq!(look(&mock, 0xc000_5678, Access::Write), Ok(Gpa::new(0x7_0000_0678)));
    assert_eq!(look(&mock, 0xc021_2345, Access::Read), Ok(Gpa::new(0x61_2345)));
    assert_eq!(look(&mock, 0xc021_2345, Access::Fetch), fault(0x11, 0xc021_2345));
    assert_eq!(look(&mock, 0x8000_0000, Access::Read), fault(0, 0x8000_0000));
    // The pointer's accessed bit does not exist. It is not set, but one that somebody set is let pass.
    translate(&mut mock, 0xc000_5678, Access::Write, Privilege::Supervisor).unwrap();
    assert_eq!(mock.peek(0x1020 + 8 * 3, 8), 0x2000 | P);
    mock.poke(0x1020 + 8 * 3, 8, 0x2000 | P | A);
    assert_eq!(look(&mock, 0xc000_5678, Access::Write), Ok(Gpa::new(0x7_0000_0678)));
    for reserved in [W, U, D, PS] {
        mock.poke(0x1020 + 8 * 3, 8, 0x2000 | P | reserved);
        assert_eq!(look(&mock, 0xc000_5678, Access::Read), fault(9, 0xc000_5678));
    }
    // Bits 62:52 are reserved here, unlike in 4-level paging.
    mock.poke(0x1020 + 8 * 3, 8, 0x2000 | P);
    mock.poke(0x3000 + 8 * 5, 8, 1 << 55 | 0x4000 | P);
    assert_eq!(look(&mock, 0xc000_5678, Access::Read), fault(9, 0xc000_5678));
}
