use vcpu::{Exception, Gpr, cr4};

use super::*;
use crate::testing::{CODE, Mock, NX, P, U, W};

fn length(mock: &mut Mock, code: &[u8], expected: Opcode) -> Result<u64, Fault> {
    mock.put_code(code);
    next_rip(mock, expected, &mut None).map(|rip| rip - CODE)
}

#[test]
fn plain_and_prefixed_encodings() {
    let cases: &[(&[u8], Opcode, u64)] = &[
        (&[0x0f, 0xa2], Opcode::Cpuid, 2),
        (&[0x0f, 0x32], Opcode::Rdmsr, 2),
        (&[0x0f, 0x30], Opcode::Wrmsr, 2),
        (&[0xf4], Opcode::Hlt, 1),
        (&[0x0f, 0x01, 0xd9], Opcode::Hypercall, 3),
        (&[0x0f, 0x01, 0xc1], Opcode::Hypercall, 3),
        (&[0x0f, 0x01, 0xd1], Opcode::Xsetbv, 3),
        (&[0xf3, 0x90], Opcode::Pause, 2),
        (&[0x0f, 0x09], Opcode::CacheFlush, 2),
        (&[0x0f, 0x08], Opcode::CacheFlush, 2),
        (&[0xf3, 0x0f, 0x09], Opcode::CacheFlush, 3),
        (&[0x66, 0x0f, 0xa2], Opcode::Cpuid, 3),
        (&[0x2e, 0x65, 0xf4], Opcode::Hlt, 3),
        (&[0x66, 0xf3, 0x90], Opcode::Pause, 3),
        (&[0x48, 0x0f, 0x32], Opcode::Rdmsr, 3),
        (&[0x3e, 0x0f, 0x01, 0xd9], Opcode::Hypercall, 4),
    ];
    for &(code, opcode, bytes) in cases {
        assert_eq!(length(&mut Mock::long(), code, opcode), Ok(bytes), "{code:02x?}");
    }
}

#[test]
fn what_switches_tasks() {
    let cases: [(&[u8], u64); 6] = [
        (&[0x9a, 0, 0, 0, 0, 0x50, 0], 7),
        (&[0xea, 0, 0, 0, 0, 0x50, 0], 7),
        (&[0xff, 0x2d, 0, 0, 0, 0], 6),
        (&[0xcf], 1),
        (&[0xcd, 0x31], 2),
        (&[0x66, 0xcc], 2),
    ];
    for (code, bytes) in cases {
        assert_eq!(length(&mut Mock::flat32(), code, Opcode::Transfer), Ok(bytes), "{code:02x?}");
    }
}

#[test]
fn another_instruction_is_refused() {
    let found = length(&mut Mock::long(), &[0x0f, 0xa2, 0xcc], Opcode::Rdmsr);
    assert!(matches!(found, Err(Fault::Unsupported(bytes)) if bytes[..3] == [0x0f, 0xa2, 0xcc]));
    assert_eq!(length(&mut Mock::long(), &[0xf0, 0xf4], Opcode::Hlt), Err(Exception::UNDEFINED.into()));
}

#[test]
fn what_goes_to_cr4() {
    let mut long = Mock::long();
    long.gprs = core::array::from_fn(|index| 0x1_0000_0000 + index as u64);
    for (code, value) in [(&[0x0f, 0x22, 0xe0][..], 0), (&[0x0f, 0x22, 0xe4], 4), (&[0x41, 0x0f, 0x22, 0xe7], 15)] {
        long.put_code(code);
        assert_eq!(cr4_write(&long), Ok((0x1_0000_0000 + value, CODE + code.len() as u64)), "{code:02x?}");
    }
    for code in [&[0x0f, 0x22, 0xd8][..], &[0x0f, 0x20, 0xe0]] {
        long.put_code(code);
        assert!(matches!(cr4_write(&long), Err(Fault::Unsupported(_))), "CR3, and a read: {code:02x?}");
    }
    let mut flat = Mock::flat32();
    flat.gprs[Gpr::Rcx as usize] = 0x1_0000_0020;
    flat.put_code(&[0x0f, 0x22, 0xe1]);
    assert_eq!(cr4_write(&flat), Ok((0x20, CODE + 3)), "32 bits");
}

#[test]
fn rip_wraps_to_the_code_size() {
    let mut long = Mock::long();
    long.map(0xffff_ffff_ffff_f000, CODE, P | W | U);
    long.poke(CODE + 0xffe, 2, 0xa20f);
    long.rip = 0xffff_ffff_ffff_fffe;
    assert_eq!(next_rip(&long, Opcode::Cpuid, &mut None), Ok(0));
    // EIP has 32 bits; IP goes past 64 KiB, where the limit of CS stops it.
    let mut flat = Mock::flat32();
    flat.segments[SegmentName::Cs as usize].base = CODE + 2;
    flat.put_code(&[0x0f, 0xa2]);
    flat.rip = 0xffff_fffe;
    assert_eq!(next_rip(&flat, Opcode::Cpuid, &mut None), Ok(0));
    let mut real = Mock::real();
    real.poke(0xffff, 1, 0xf4);
    real.rip = 0xffff;
    assert_eq!(next_rip(&real, Opcode::Hlt, &mut None), Ok(0x1_0000));
}

#[test]
fn the_segment_base_counts_outside_64_bit_mode_only() {
    let mut real = Mock::real();
    real.segments[SegmentName::Cs as usize].base = CODE;
    real.poke(CODE + 0x10, 1, 0xf4);
    real.rip = 0x10;
    assert_eq!(next_rip(&real, Opcode::Hlt, &mut None), Ok(0x11));
    let mut long = Mock::long();
    long.segments[SegmentName::Cs as usize].base = 0x5000;
    assert_eq!(length(&mut long, &[0xf4], Opcode::Hlt), Ok(1));
}

#[test]
fn instruction_across_a_page_edge() {
    const TEXT: u64 = 0x80_0000_0000;
    let mut mock = Mock::long();
    mock.map(TEXT, CODE, P);
    mock.map(TEXT + 0x1000, 0x3_0000, P);
    mock.poke(CODE + 0xfff, 1, 0x0f);
    mock.poke(0x3_0000, 1, 0xa2);
    mock.rip = TEXT + 0xfff;
    assert_eq!(next_rip(&mock, Opcode::Cpuid, &mut None), Ok(TEXT + 0x1001));
    // One that ends at the edge does not touch the next page; one that goes on faults there.
    mock.map(TEXT + 0x1000, 0, 0);
    assert_eq!(next_rip(&mock, Opcode::Cpuid, &mut None), Err(Exception::page_fault(0x10, TEXT + 0x1000).into()));
    mock.poke(CODE + 0xfff, 1, 0xf4);
    assert_eq!(next_rip(&mock, Opcode::Hlt, &mut None), Ok(TEXT + 0x1000));
}

#[test]
fn the_fetch_has_its_own_rights_and_changes_nothing() {
    const TEXT: u64 = 0x80_0000_0000;
    let mut mock = Mock::long();
    mock.put_code(&[0xf4]);
    mock.map(TEXT, CODE, P | NX);
    mock.rip = TEXT;
    assert_eq!(next_rip(&mock, Opcode::Hlt, &mut None), Err(Exception::page_fault(0x11, TEXT).into()));
    mock.map(TEXT, CODE, P | U);
    mock.paging.cr4 |= cr4::SMEP;
    assert_eq!(next_rip(&mock, Opcode::Hlt, &mut None), Err(Exception::page_fault(0x11, TEXT).into()));
    let leaf = mock.map(TEXT, CODE, P);
    let before = mock.peek(leaf, 8);
    assert_eq!(next_rip(&mock, Opcode::Hlt, &mut None), Ok(TEXT + 1));
    assert_eq!(mock.peek(leaf, 8), before);
}

#[test]
fn exits_name_their_instruction() {
    assert_eq!(Opcode::of(&Exit::MsrRead { index: 0x10 }), Some(Opcode::Rdmsr));
    assert_eq!(Opcode::of(&Exit::Unoffered(vcpu::Exception::UNDEFINED)), None);
}
