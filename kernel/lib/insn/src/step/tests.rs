use proptest::prelude::*;
use vcpu::{Exception, Gpr, SegmentName, cr0, cr4, rflags};

use super::*;
use crate::alu::{AF, CF, OF, PF, SF, ZF};
use crate::testing::{A, CODE, D, DATA, DATA_32, DEVICE, Mock, P, RAM_BYTES, U, W};

const PAGE: u64 = 0x80_0000_0000;

/// 64-bit mode with RBX at the data.
fn at_data() -> Mock {
    let mut mock = Mock::long();
    *mock.reg(Gpr::Rbx) = DATA;
    mock
}

/// 64-bit mode with RBX at the device, which reads as `value`.
fn at_device(value: u64) -> Mock {
    let mut mock = Mock::long();
    *mock.reg(Gpr::Rbx) = DEVICE;
    mock.device = value;
    mock
}

fn status(mock: &Mock) -> u64 {
    mock.rflags & STATUS
}

#[test]
fn moves_from_a_device() {
    const OLD: u64 = 0x1111_2222_3333_4444;
    const VALUE: u64 = 0xfedc_ba98_8765_8283;
    // Code, access bytes, RAX.
    let cases: &[(&[u8], u8, u64)] = &[
        (&[0x8a, 0x03], 1, 0x1111_2222_3333_4483),
        (&[0x8a, 0x23], 1, 0x1111_2222_3333_8344),
        (&[0x66, 0x8b, 0x03], 2, 0x1111_2222_3333_8283),
        (&[0x8b, 0x03], 4, 0x8765_8283),
        (&[0x48, 0x8b, 0x03], 8, VALUE),
        (&[0x0f, 0xb6, 0x03], 1, 0x83),
        (&[0x48, 0x0f, 0xb7, 0x03], 2, 0x8283),
        (&[0x66, 0x0f, 0xbe, 0x03], 1, 0x1111_2222_3333_ff83),
        (&[0x0f, 0xbe, 0x03], 1, 0xffff_ff83),
        (&[0x48, 0x0f, 0xbf, 0x03], 2, 0xffff_ffff_ffff_8283),
        (&[0x48, 0x63, 0x03], 4, 0xffff_ffff_8765_8283),
        (&[0x0f, 0x38, 0xf0, 0x03], 4, 0x8382_6587),
        (&[0x66, 0x0f, 0x38, 0xf0, 0x03], 2, 0x1111_2222_3333_8382),
    ];
    for &(code, size, rax) in cases {
        let mut mock = at_device(VALUE);
        *mock.reg(Gpr::Rax) = OLD;
        mock.run(code);
        assert_eq!(*mock.reg(Gpr::Rax), rax, "{code:02x?}");
        assert_eq!(mock.accesses, [(0, size, None)], "{code:02x?}");
    }
}

#[test]
fn moves_to_a_device() {
    // Code, access bytes, value.
    let cases: &[(&[u8], u8, u64)] = &[
        (&[0x88, 0x03], 1, 0x88),
        (&[0x88, 0x23], 1, 0x77),
        (&[0x40, 0x88, 0x23], 1, 0x44),
        (&[0x66, 0x89, 0x03], 2, 0x7788),
        (&[0x89, 0x03], 4, 0x5566_7788),
        (&[0x48, 0x89, 0x03], 8, 0x1122_3344_5566_7788),
        (&[0xc6, 0x03, 0xab], 1, 0xab),
        (&[0x66, 0xc7, 0x03, 0x34, 0x12], 2, 0x1234),
        (&[0xc7, 0x03, 0x78, 0x56, 0x34, 0x92], 4, 0x9234_5678),
        (&[0x48, 0xc7, 0x03, 0x78, 0x56, 0x34, 0x92], 8, 0xffff_ffff_9234_5678),
        (&[0x0f, 0xc3, 0x03], 4, 0x5566_7788),
        (&[0x0f, 0x38, 0xf1, 0x03], 4, 0x8877_6655),
        (&[0x8c, 0x1b], 2, 8),
    ];
    for &(code, size, value) in cases {
        let mut mock = at_device(0);
        *mock.reg(Gpr::Rax) = 0x1122_3344_5566_7788;
        *mock.reg(Gpr::Rsp) = 0x44;
        mock.run(code);
        assert_eq!(mock.accesses, [(0, size, Some(value))], "{code:02x?}");
    }
}

#[test]
fn absolute_offsets() {
    let mut mock = Mock::long();
    mock.device = 0x1234_5678;
    let mut code = vec![0xa1];
    code.extend((DEVICE + 0x20).to_le_bytes());
    mock.run(&code);
    assert_eq!((*mock.reg(Gpr::Rax), &mock.accesses[..]), (0x1234_5678, &[(0x20, 4, None)][..]));
    let mut mock = Mock::flat32();
    *mock.reg(Gpr::Rax) = 0xaa;
    mock.run(&[0xa2, 0x30, 0, 0, 0xf0]);
    assert_eq!(mock.accesses, [(0x30, 1, Some(0xaa))]);
    let mut mock = Mock::real();
    mock.poke(0x4321, 2, 0xbeef);
    mock.run(&[0xa1, 0x21, 0x43]);
    assert_eq!(*mock.reg(Gpr::Rax), 0xbeef);
}

#[test]
fn address_forms() {
    // Code of `mov al, [...]` and the address it reads, with RBX = DATA, RCX = 0x10, RSI = -8, R8 = 0x40.
    let cases: &[(&[u8], u64)] = &[
        (&[0x8a, 0x43, 0xf0], DATA - 0x10),
        (&[0x8a, 0x83, 0, 1, 0, 0], DATA + 0x100),
        (&[0x8a, 0x04, 0x8b], DATA + 0x40),
        (&[0x8a, 0x44, 0xcb, 0x01], DATA + 0x81),
        (&[0x8a, 0x04, 0x33], DATA - 8),
        (&[0x42, 0x8a, 0x04, 0x43], DATA + 0x80),
        (&[0x8a, 0x04, 0x25, 0x00, 0x10, 0x02, 0x00], DATA + 0x1000),
        (&[0x8a, 0x05, 0xfa, 0x7f, 0x01, 0x00], CODE + 0x1_8000),
        (&[0x67, 0x8a, 0x04, 0x33], DATA - 8),
        (&[0x67, 0x8a, 0x05, 0xf9, 0x7f, 0x01, 0x00], CODE + 0x1_8000),
        (&[0x65, 0x8a, 0x03], DATA + 0x3000),
        (&[0x2e, 0x8a, 0x03], DATA),
    ];
    for &(code, address) in cases {
        let mut mock = at_data();
        *mock.reg(Gpr::Rcx) = 0x10;
        *mock.reg(Gpr::Rsi) = 8u64.wrapping_neg();
        *mock.reg(Gpr::R8) = 0x40;
        mock.segments[SegmentName::Gs as usize].base = 0x3000;
        // In 64-bit mode this base does not count.
        mock.segments[SegmentName::Cs as usize].base = 0x7000;
        mock.segments[SegmentName::Ds as usize].base = 0x7000;
        mock.poke(address, 1, 0x5a);
        mock.run(code);
        assert_eq!(*mock.reg(Gpr::Rax), 0x5a, "{code:02x?}");
    }
}

#[test]
fn sixteen_bit_addresses_wrap() {
    let mut mock = Mock::real();
    *mock.reg(Gpr::Rbx) = 0xffff_f000;
    *mock.reg(Gpr::Rsi) = 0x2000;
    mock.segments[SegmentName::Ds as usize].base = 0x1_0000;
    mock.poke(0x1_1004, 2, 0x1234);
    mock.run(&[0x8b, 0x40, 0x04]);
    assert_eq!(*mock.reg(Gpr::Rax), 0x1234);
    // BP addresses the stack; 0x67 makes it 32-bit.
    mock.segments[SegmentName::Ss as usize].base = 0x2_0000;
    *mock.reg(Gpr::Rbp) = 0x10;
    mock.poke(0x2_0010, 2, 0x5678);
    mock.run(&[0x8b, 0x46, 0x00]);
    assert_eq!(*mock.reg(Gpr::Rax), 0x5678);
    mock.run(&[0x67, 0x8b, 0x45, 0x00]);
    assert_eq!(mock.fails(&[0x67, 0x8b, 0x03]), Exception::PROTECTION);
}

#[test]
fn arithmetic_on_memory() {
    // Code; old memory, RAX, flags before; new memory, status flags.
    type Case = (&'static [u8], u64, u64, u64, u64, u64);
    let cases: &[Case] = &[
        (&[0x01, 0x03], 0xffff_ffff, 1, 0, 0, CF | ZF | AF | PF),
        (&[0x48, 0x01, 0x03], 0xffff_ffff, 1, 0, 0x1_0000_0000, AF | PF),
        (&[0x09, 0x03], 0xf0, 0x0f, CF, 0xff, PF),
        (&[0x11, 0x03], 1, 1, CF, 3, PF),
        (&[0x19, 0x03], 5, 1, CF, 3, PF),
        (&[0x21, 0x03], 0xff, 0x81, CF, 0x81, PF),
        (&[0x29, 0x03], 0, 1, 0, 0xffff_ffff, CF | SF | AF | PF),
        (&[0x31, 0x03], 0xff, 0xff, CF, 0, ZF | PF),
        (&[0x80, 0x0b, 0x80], 0x01, 0, 0, 0x81, SF | PF),
        (&[0x83, 0x23, 0xfe], 0xffff_ffff, 0, 0, 0xffff_fffe, SF),
        (&[0x66, 0x81, 0x03, 0xff, 0x7f], 1, 0, 0, 0x8000, SF | OF | AF | PF),
        (&[0xf0, 0x01, 0x03], 2, 3, 0, 5, PF),
        (&[0xff, 0x03], 0x7fff_ffff, 0, CF, 0x8000_0000, CF | SF | OF | AF | PF),
        (&[0xfe, 0x0b], 0, 0, 0, 0xff, SF | AF | PF),
        (&[0xf6, 0x1b], 1, 0, 0, 0xff, CF | SF | AF | PF),
        (&[0xf7, 0x13], 0, 0, CF | ZF, 0xffff_ffff, CF | ZF),
        (&[0xd1, 0x23], 0x8000_0001, 0, 0, 2, CF | OF),
        (&[0xc1, 0x2b, 0x04], 0x123, 0, 0, 0x12, PF),
        (&[0xd2, 0x03], 0x81, 0, ZF, 0x18, ZF),
    ];
    for &(code, old, rax, carry, new, flags) in cases {
        let mut mock = at_data();
        *mock.reg(Gpr::Rax) = rax;
        *mock.reg(Gpr::Rcx) = 4;
        mock.poke(DATA, 8, old);
        mock.rflags |= carry | rflags::IF;
        mock.run(code);
        assert_eq!(mock.peek(DATA, 8), new, "{code:02x?}");
        // ROL by four leaves OF undefined.
        let defined = if code[0] == 0xd2 { !(OF | CF) } else { !0 };
        let defined = if code[0] == 0xc1 { defined & !OF } else { defined };
        assert_eq!(status(&mock) & defined, flags & defined, "{code:02x?}");
        assert_ne!(mock.rflags & rflags::IF, 0);
        assert_eq!(*mock.reg(Gpr::Rax), rax);
    }
}

#[test]
fn arithmetic_from_memory_and_on_a_device() {
    let mut mock = at_data();
    mock.poke(DATA, 4, 0x10);
    *mock.reg(Gpr::Rax) = 0xffff_ffff_0000_0001;
    mock.run(&[0x03, 0x03]);
    assert_eq!(*mock.reg(Gpr::Rax), 0x11);
    // A locked OR on a device reads and writes it once.
    let mut mock = at_device(0x0f);
    *mock.reg(Gpr::Rax) = 0xf0;
    mock.run(&[0xf0, 0x09, 0x03]);
    assert_eq!(mock.accesses, [(0, 4, None), (0, 4, Some(0xff))]);
}

#[test]
fn comparisons_write_nothing() {
    let mut mock = at_device(0x80);
    mock.run(&[0x80, 0x3b, 0x81]);
    assert_eq!(status(&mock), CF | SF | AF | PF);
    mock.run(&[0xf6, 0x03, 0x80]);
    assert_eq!(status(&mock), SF);
    *mock.reg(Gpr::Rax) = 0x7f;
    mock.run(&[0x3a, 0x03]);
    assert_eq!(status(&mock), CF | SF | OF | PF);
    assert!(mock.accesses.iter().all(|access| access.2.is_none()));
    assert_eq!(mock.accesses.len(), 3);
    // A read-only page is enough for them.
    let mut mock = Mock::long();
    mock.map(PAGE, DATA, P);
    *mock.reg(Gpr::Rbx) = PAGE;
    mock.run(&[0x39, 0x03]);
    assert_eq!(mock.fails(&[0x01, 0x03]), Exception::page_fault(3, PAGE));
}

#[test]
fn exchanges() {
    let mut mock = at_data();
    mock.poke(DATA, 8, 0x1111_2222_3333_4444);
    *mock.reg(Gpr::Rax) = 0xaaaa_bbbb_cccc_dddd;
    mock.run(&[0x87, 0x03]);
    assert_eq!((mock.peek(DATA, 8), *mock.reg(Gpr::Rax)), (0x1111_2222_cccc_dddd, 0x3333_4444));
    mock.run(&[0x86, 0x23]);
    assert_eq!((mock.peek(DATA, 1), *mock.reg(Gpr::Rax)), (0x44, 0x3333_dd44));
    // XADD.
    mock.poke(DATA, 4, 7);
    *mock.reg(Gpr::Rax) = 0xffff_ffff;
    mock.run(&[0xf0, 0x0f, 0xc1, 0x03]);
    assert_eq!((mock.peek(DATA, 4), *mock.reg(Gpr::Rax)), (6, 7));
    assert_eq!(status(&mock), CF | AF | PF);
    *mock.reg(Gpr::Rax) = 3;
    mock.run(&[0x0f, 0xc1, 0xc0]);
    assert_eq!(*mock.reg(Gpr::Rax), 6);
}

#[test]
fn compare_and_exchange_both_ways() {
    let mut mock = at_data();
    mock.poke(DATA, 4, 5);
    *mock.reg(Gpr::Rax) = 0xffff_ffff_0000_0005;
    *mock.reg(Gpr::Rcx) = 9;
    mock.run(&[0xf0, 0x0f, 0xb1, 0x0b]);
    assert_eq!((mock.peek(DATA, 4), *mock.reg(Gpr::Rax), status(&mock)), (9, 0xffff_ffff_0000_0005, ZF | PF));
    mock.run(&[0x0f, 0xb1, 0x0b]);
    assert_eq!((mock.peek(DATA, 4), *mock.reg(Gpr::Rax)), (9, 9));
    assert_eq!(status(&mock), CF | SF | AF | PF);
    // Failing, it still writes memory, but no register.
    let mut mock = at_device(5);
    mock.run(&[0x0f, 0xb1, 0x0b]);
    assert_eq!(mock.accesses, [(0, 4, None), (0, 4, Some(5))]);
    *mock.reg(Gpr::Rdx) = u64::MAX;
    mock.run(&[0x0f, 0xb1, 0xca]);
    assert_eq!((*mock.reg(Gpr::Rdx), *mock.reg(Gpr::Rax)), (u64::MAX, 0xffff_ffff));
}

#[test]
fn compare_and_exchange_8_bytes() {
    let mut mock = at_data();
    mock.poke(DATA + 0x10, 8, 0x1_0000_0002);
    let set = |mock: &mut Mock| {
        *mock.reg(Gpr::Rdx) = 0xffff_ffff_0000_0001;
        *mock.reg(Gpr::Rax) = 2;
        *mock.reg(Gpr::Rcx) = 3;
    };
    set(&mut mock);
    mock.rflags |= CF | OF;
    mock.run(&[0xf0, 0x0f, 0xc7, 0x4b, 0x10]);
    assert_eq!(mock.peek(DATA + 0x10, 8), 3 << 32 | DATA);
    assert_eq!(status(&mock), CF | OF | ZF);
    assert_eq!(*mock.reg(Gpr::Rdx), 0xffff_ffff_0000_0001);
    mock.run(&[0x0f, 0xc7, 0x4b, 0x10]);
    assert_eq!((*mock.reg(Gpr::Rdx), *mock.reg(Gpr::Rax)), (3, DATA));
    assert_eq!(status(&mock), CF | OF);
}

#[test]
fn locked_updates_survive_races() {
    let mut mock = at_data();
    mock.poke(DATA, 4, 1);
    *mock.reg(Gpr::Rax) = 1;
    // Let the accessed and dirty bits be set first: they would lose races too.
    mock.run(&[0x83, 0x03, 0x00]);
    mock.races = 3;
    mock.run(&[0xf0, 0x01, 0x03]);
    assert_eq!(mock.peek(DATA, 4), 2 + 3 * 0x200);
    mock.races = u32::MAX;
    mock.put_code(&[0xf0, 0x01, 0x03]);
    assert_eq!(step(&mut mock, 1), Err(Fault::Unavailable));
}

#[test]
fn bit_tests() {
    let mut mock = at_data();
    mock.poke(DATA, 8, 0x10);
    mock.rflags |= ZF | OF;
    mock.run(&[0x0f, 0xba, 0x23, 0x24]);
    assert_eq!(status(&mock), ZF | OF | CF);
    // A register's offset goes beyond the operand, either way.
    *mock.reg(Gpr::Rax) = 70;
    mock.run(&[0x0f, 0xab, 0x03]);
    assert_eq!((mock.peek(DATA + 8, 4), status(&mock) & CF), (0x40, 0));
    *mock.reg(Gpr::Rax) = 0xffff_ffff;
    mock.run(&[0x0f, 0xbb, 0x03]);
    assert_eq!(mock.peek(DATA - 4, 4), 0x8000_0000);
    mock.run(&[0xf0, 0x0f, 0xb3, 0x03]);
    assert_eq!((mock.peek(DATA - 4, 4), status(&mock) & CF), (0, CF));
    *mock.reg(Gpr::Rax) = 65u64.wrapping_neg();
    mock.run(&[0x48, 0x0f, 0xab, 0x03]);
    assert_eq!(mock.peek(DATA - 16, 8), 1 << 63);
    *mock.reg(Gpr::Rax) = 17;
    mock.run(&[0x66, 0x0f, 0xab, 0x03]);
    assert_eq!(mock.peek(DATA, 4), 0x2_0010);
    // A test alone does not write.
    let mut mock = at_device(0);
    mock.run(&[0x0f, 0xba, 0x23, 0x04]);
    assert_eq!(mock.accesses, [(0, 4, None)]);
}

#[test]
fn conditional_sets_and_moves() {
    let mut mock = at_device(0x8000_0001);
    mock.rflags |= ZF;
    mock.run(&[0x0f, 0x94, 0x03]);
    mock.run(&[0x0f, 0x95, 0x03]);
    assert_eq!(mock.accesses, [(0, 1, Some(1)), (0, 1, Some(0))]);
    *mock.reg(Gpr::Rax) = 0xffff_ffff_ffff_ffff;
    mock.run(&[0x0f, 0x45, 0x03]);
    assert_eq!(*mock.reg(Gpr::Rax), 0xffff_ffff);
    mock.run(&[0x0f, 0x44, 0x03]);
    assert_eq!(*mock.reg(Gpr::Rax), 0x8000_0001);
    assert_eq!(mock.accesses[2..], [(0, 4, None), (0, 4, None)]);
}

#[test]
fn stack_operations() {
    let mut mock = at_device(0x1122_3344_5566_7788);
    *mock.reg(Gpr::Rsp) = DATA;
    mock.run(&[0xff, 0x33]);
    assert_eq!((*mock.reg(Gpr::Rsp), mock.peek(DATA - 8, 8)), (DATA - 8, 0x1122_3344_5566_7788));
    mock.run(&[0x66, 0xff, 0x33]);
    assert_eq!((*mock.reg(Gpr::Rsp), mock.peek(DATA - 10, 2)), (DATA - 10, 0x7788));
    mock.run(&[0x6a, 0xff]);
    assert_eq!(mock.peek(DATA - 18, 8), u64::MAX);
    mock.run(&[0x8f, 0x03]);
    assert_eq!(mock.accesses.last(), Some(&(0, 8, Some(u64::MAX))));
    assert_eq!(*mock.reg(Gpr::Rsp), DATA - 10);
    // POP relative to RSP uses its new value; POP RSP leaves what it popped.
    mock.poke(DATA - 10, 8, DATA + 0x100);
    mock.run(&[0x8f, 0x04, 0x24]);
    assert_eq!(mock.peek(DATA - 2, 8), DATA + 0x100);
    mock.run(&[0x5c]);
    assert_eq!(*mock.reg(Gpr::Rsp), DATA + 0x100);
    // A 16-bit stack wraps within its segment.
    let mut mock = Mock::real();
    *mock.reg(Gpr::Rsp) = 0xabcd_0000;
    mock.run(&[0x68, 0x34, 0x12]);
    assert_eq!((*mock.reg(Gpr::Rsp), mock.peek(0xfffe, 2)), (0xabcd_fffe, 0x1234));
}

#[test]
fn refused_instructions() {
    // LOCK without a memory destination, or on an instruction that has none; UD2; an overlong instruction.
    let mut mock = at_data();
    for code in [&[0xf0, 0x8b, 0x03][..], &[0xf0, 0x01, 0xc0], &[0xf0, 0x39, 0x03], &[0xf0, 0x0f, 0xba, 0x23, 1]] {
        assert_eq!(mock.fails(code), Exception::UNDEFINED, "{code:02x?}");
    }
    assert_eq!(mock.fails(&[0x3e; 16]), Exception::PROTECTION);
    // SSE and AVX arithmetic, MOV to a segment register, MUL, CMPXCHG16B.
    for code in [
        &[0x0f, 0x58, 0x03][..],
        &[0xf2, 0x0f, 0x59, 0x03],
        &[0xc5, 0xfc, 0x58, 0x03],
        &[0x8e, 0x1b],
        &[0xf7, 0x23],
        &[0x48, 0x0f, 0xc7, 0x0b],
        &[0x0f, 0x22, 0xc0],
    ] {
        mock.put_code(code);
        let outcome = step(&mut mock, 1);
        assert!(
            matches!(outcome, Err(Fault::Unsupported(bytes)) if bytes.starts_with(code)),
            "{code:02x?} {outcome:?}"
        );
    }
    mock.rip = DEVICE;
    assert_eq!(step(&mut mock, 1), Err(Fault::Unsupported([0xff; 15])));
}

#[test]
fn accesses_across_a_page() {
    let mut mock = Mock::long();
    let first = mock.map(PAGE, DATA, P | W);
    let second = mock.map(PAGE + 0x1000, DATA + 0x5000, P | W);
    *mock.reg(Gpr::Rbx) = PAGE + 0xffd;
    *mock.reg(Gpr::Rax) = 0x1122_3344_5566_7788;
    mock.run(&[0x48, 0x89, 0x03]);
    assert_eq!((mock.peek(DATA + 0xffd, 3), mock.peek(DATA + 0x5000, 5)), (0x66_7788, 0x11_2233_4455));
    mock.run(&[0x48, 0x8b, 0x0b]);
    assert_eq!(*mock.reg(Gpr::Rcx), 0x1122_3344_5566_7788);
    assert_eq!(mock.peek(second, 8) & (A | D), A | D);
    // The second page's fault comes before anything has changed, the first page's entry included.
    mock.map(PAGE, DATA, P | W);
    mock.map(PAGE + 0x1000, DATA + 0x5000, P);
    let before = mock.clone();
    assert_eq!(mock.fails(&[0x48, 0x89, 0x03]), Exception::page_fault(3, PAGE + 0x1000));
    assert_eq!(mock.peek(first, 8), before.peek(first, 8));
    assert_eq!(mock.peek(DATA + 0xff8, 8), before.peek(DATA + 0xff8, 8));
    // Into a device: aligned pieces.
    mock.map(PAGE + 0x1000, DEVICE, P | W);
    mock.run(&[0x48, 0x89, 0x03]);
    assert_eq!(mock.accesses, [(0, 4, Some(0x2233_4455)), (4, 1, Some(0x11))]);
}

#[test]
fn canonical_edges() {
    let mut mock = Mock::long();
    *mock.reg(Gpr::Rbx) = 0x8000_0000_0000;
    assert_eq!(mock.fails(&[0x8b, 0x03]), Exception::PROTECTION);
    *mock.reg(Gpr::Rbx) = 0x7fff_ffff_fffd;
    assert_eq!(mock.fails(&[0x8b, 0x03]), Exception::PROTECTION);
    *mock.reg(Gpr::Rbp) = 0x8000_0000_0000;
    assert_eq!(mock.fails(&[0x8b, 0x45, 0]), Exception::STACK);
    // A DS override does not make it less of a stack address; GS does.
    assert_eq!(mock.fails(&[0x3e, 0x8b, 0x45, 0]), Exception::STACK);
    assert_eq!(mock.fails(&[0x65, 0x8b, 0x45, 0]), Exception::PROTECTION);
    mock.rip = 0x8000_0000_0000;
    assert_eq!(step(&mut mock, 1), Err(Exception::PROTECTION.into()));
}

#[test]
fn limits_and_rights_of_segments() {
    let ds = SegmentName::Ds as usize;
    for mut mock in [Mock::flat32(), Mock::compat()] {
        *mock.reg(Gpr::Rbx) = 0xffff_ffff_0000_0000 | DATA;
        mock.segments[ds].limit = DATA as u32 + 3;
        mock.run(&[0x8b, 0x03]);
        assert_eq!(mock.fails(&[0x8b, 0x43, 1]), Exception::PROTECTION);
        // Read-only data; execute-only code; a null selector.
        mock.segments[ds].attributes = 0x491;
        mock.run(&[0x8b, 0x03]);
        assert_eq!(mock.fails(&[0x89, 0x03]), Exception::PROTECTION);
        mock.segments[ds].attributes = 0x499;
        assert_eq!(mock.fails(&[0x8b, 0x03]), Exception::PROTECTION);
        mock.segments[ds].attributes = 0;
        assert_eq!(mock.fails(&[0x8b, 0x03]), Exception::PROTECTION);
        mock.segments[SegmentName::Ss as usize].limit = 0xfff;
        *mock.reg(Gpr::Rbp) = DATA;
        assert_eq!(mock.fails(&[0x8b, 0x45, 0]), Exception::STACK);
        // Expand-down: valid above the limit.
        mock.segments[ds].attributes = DATA_32 | 4;
        mock.segments[ds].limit = DATA as u32 - 1;
        mock.run(&[0x8b, 0x03]);
        assert_eq!(mock.fails(&[0x8b, 0x43, 0xff]), Exception::PROTECTION);
        mock.segments[ds].attributes &= !(1 << 10);
        assert_eq!(mock.fails(&[0x8b, 0x03]), Exception::PROTECTION);
        // The code segment's own limit.
        mock.segments[SegmentName::Cs as usize].limit = CODE as u32;
        assert_eq!(mock.fails(&[0x8b, 0x03]), Exception::PROTECTION);
        mock.segments[SegmentName::Cs as usize].limit = CODE as u32 - 1;
        assert_eq!(mock.fails(&[0xf4]), Exception::PROTECTION);
    }
}

#[test]
fn real_mode_ignores_types_but_not_limits() {
    let mut mock = Mock::real();
    *mock.reg(Gpr::Rax) = 0x1234;
    *mock.reg(Gpr::Rbx) = 0x6000;
    mock.run(&[0x2e, 0x89, 0x07]);
    assert_eq!(mock.peek(0x6000, 2), 0x1234);
    *mock.reg(Gpr::Rbx) = 0xffff;
    assert_eq!(mock.fails(&[0x89, 0x07]), Exception::PROTECTION);
    mock.run(&[0x88, 0x07]);
    // Virtual-8086 mode follows the same rules.
    mock.paging.cr0 |= cr0::PE;
    mock.paging.cpl = 3;
    mock.rflags |= rflags::VM;
    *mock.reg(Gpr::Rbx) = 0x6002;
    mock.run(&[0x2e, 0x89, 0x07]);
}

#[test]
fn smap_alignment_and_user_accesses() {
    let mut mock = Mock::long();
    mock.map(PAGE, DATA, P | W | U);
    *mock.reg(Gpr::Rbx) = PAGE + 1;
    mock.paging.cr4 |= cr4::SMAP;
    mock.poke(0x2000, 8, mock.peek(0x2000, 8) & !U);
    assert_eq!(mock.fails(&[0x8b, 0x03]), Exception::page_fault(1, PAGE + 1));
    mock.rflags |= rflags::AC;
    mock.run(&[0x8b, 0x03]);
    // At CPL 3 with CR0.AM the same flag asks for aligned accesses; a page fault goes first.
    mock.poke(0x2000, 8, mock.peek(0x2000, 8) | U);
    mock.paging.cpl = 3;
    mock.run(&[0x8b, 0x03]);
    mock.paging.cr0 |= 1 << 18;
    assert_eq!(mock.fails(&[0x8b, 0x03]), Exception { vector: 17, error_code: Some(0), fault_address: None });
    mock.run(&[0x8a, 0x03]);
    mock.map(PAGE, DATA, P | W);
    assert_eq!(mock.fails(&[0x8b, 0x03]), Exception::page_fault(5, PAGE + 1));
}

#[test]
fn unavailable_memory_leaves_the_registers() {
    let mut mock = at_data();
    mock.unavailable = Some(DATA);
    for code in [&[0x8b, 0x03][..], &[0x89, 0x03], &[0x01, 0x03], &[0x0f, 0xc1, 0x03], &[0x87, 0x03]] {
        mock.put_code(code);
        let before = mock.clone();
        assert_eq!(step(&mut mock, 1), Err(Fault::Unavailable), "{code:02x?}");
        assert_eq!((mock.gprs, mock.rflags), (before.gprs, before.rflags), "{code:02x?}");
    }
}

fn any_mode() -> impl Strategy<Value = Mock> {
    (0..5, any::<[u64; 16]>(), any::<u64>(), 0u8..4).prop_map(|(mode, gprs, flags, cpl)| {
        let mut mock = match mode {
            0 => Mock::real(),
            1 => Mock::flat32(),
            2 => Mock::compat(),
            _ => Mock::long(),
        };
        // Mostly addresses that are mapped.
        mock.gprs = gprs.map(|value| if value & 7 == 0 { value } else { value % (2 * RAM_BYTES as u64) });
        mock.rflags = flags & (STATUS | rflags::DF | rflags::AC | rflags::TF) | rflags::FIXED;
        mock.paging.cpl = cpl;
        mock
    })
}

/// Some prefixes, an opcode of an instruction that is carried out (mostly), and anything after it.
fn likely_code() -> impl Strategy<Value = Vec<u8>> {
    let prefixes =
        prop::collection::vec(prop::sample::select(&[0xf0u8, 0xf2, 0xf3, 0x66, 0x67, 0x48, 0x65, 0x36][..]), 0..3);
    let two_byte = prop::sample::select(
        &[
            0x40u8, 0x47, 0x4c, 0x90, 0x9f, 0xa3, 0xab, 0xb0, 0xb1, 0xb3, 0xb6, 0xb7, 0xba, 0xbb, 0xbe, 0xbf, 0xc0,
            0xc1, 0xc3, 0xc7,
        ][..],
    );
    let opcode = prop_oneof![any::<u8>().prop_map(|byte| vec![byte]), two_byte.prop_map(|byte| vec![0x0f, byte])];
    (prefixes, opcode, any::<[u8; 12]>())
        .prop_map(|(prefixes, opcode, tail)| [prefixes, opcode, tail.to_vec()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6000))]

    #[test]
    fn no_bytes_do_harm(
        mut mock in any_mode(),
        code in prop_oneof![likely_code(), any::<[u8; 16]>().prop_map(Vec::from)],
    ) {
        mock.put_code(&code);
        let before = mock.clone();
        match step(&mut mock, 50) {
            Ok(done) => prop_assert!(done.next_rip.wrapping_sub(CODE) <= 15),
            Err(_) => {
                let decoded = fetch::decode(&before);
                let is_string = decoded.is_ok_and(|decoded| StringOp::of(decoded.instruction.mnemonic()).is_some());
                prop_assert!(is_string || mock.gprs == before.gprs);
                prop_assert_eq!(mock.rflags, before.rflags);
            }
        }
        prop_assert_eq!(mock.rip, before.rip);
    }
}
