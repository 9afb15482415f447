use vcpu::{Exception, cr4};

use super::*;
use crate::alu::{CF, PF, SF, ZF};
use crate::step;
use crate::testing::{CODE, DATA, DEVICE, Mock, P, W};

const PAGE: u64 = 0x80_0000_0000;

/// 64-bit mode: RSI at the data, RDI 0x800 above it, RCX as given.
fn strings(count: u64) -> Mock {
    let mut mock = Mock::long();
    *mock.reg(Gpr::Rsi) = DATA;
    *mock.reg(Gpr::Rdi) = DATA + 0x800;
    *mock.reg(Gpr::Rcx) = count;
    mock
}

fn pointers(mock: &Mock) -> (u64, u64, u64) {
    (mock.gprs[Gpr::Rcx as usize], mock.gprs[Gpr::Rsi as usize] - DATA, mock.gprs[Gpr::Rdi as usize] - DATA - 0x800)
}

#[test]
fn moves_of_each_size() {
    for (code, bytes) in [(&[0xa4][..], 1), (&[0x66, 0xa5], 2), (&[0xa5], 4), (&[0x48, 0xa5], 8)] {
        let mut mock = strings(7);
        mock.poke(DATA, 8, 0x1122_3344_5566_7788);
        mock.run(code);
        assert_eq!(pointers(&mock), (7, bytes, bytes));
        assert_eq!(mock.peek(DATA + 0x800, 8), mock.peek(DATA, bytes as usize));
        let mut mock = strings(3);
        mock.run(&[&[0xf3], code].concat());
        assert_eq!(pointers(&mock), (0, 3 * bytes, 3 * bytes));
    }
}

#[test]
fn moves_from_and_to_a_device() {
    let mut mock = strings(2);
    mock.device = 0xaabb_ccdd;
    *mock.reg(Gpr::Rsi) = DEVICE;
    mock.run(&[0xf3, 0xa5]);
    assert_eq!(mock.accesses, [(0, 4, None), (4, 4, None)]);
    assert_eq!(mock.peek(DATA + 0x800, 8), 0xaabb_ccdd_aabb_ccdd);
    *mock.reg(Gpr::Rdi) = DEVICE;
    *mock.reg(Gpr::Rcx) = 3;
    *mock.reg(Gpr::Rax) = 0x1234;
    mock.accesses.clear();
    mock.run(&[0xf2, 0x66, 0xab]);
    assert_eq!(mock.accesses, [(0, 2, Some(0x1234)), (2, 2, Some(0x1234)), (4, 2, Some(0x1234))]);
}

#[test]
fn backwards() {
    let mut mock = strings(2);
    mock.rflags |= rflags::DF;
    mock.poke(DATA - 4, 8, 0x2222_2222_1111_1111);
    mock.run(&[0xf3, 0xa5]);
    assert_eq!(mock.peek(DATA + 0x800 - 4, 8), 0x2222_2222_1111_1111);
    assert_eq!(*mock.reg(Gpr::Rsi), DATA - 8);
}

#[test]
fn loads_keep_the_last() {
    let mut mock = strings(3);
    mock.poke(DATA, 4, 0x0403_0201);
    *mock.reg(Gpr::Rax) = 0xff00;
    mock.run(&[0xf3, 0xac]);
    assert_eq!(*mock.reg(Gpr::Rax), 0xff03);
    assert_eq!(pointers(&mock), (0, 3, 0));
}

#[test]
fn comparisons_end_early() {
    let mut mock = strings(10);
    mock.poke(DATA, 8, 0x0807_0604_0302_0100);
    mock.poke(DATA + 0x800, 8, 0x0807_0605_0302_0100);
    mock.run(&[0xf3, 0xa6]);
    assert_eq!(pointers(&mock), (5, 5, 5));
    assert_eq!(mock.rflags & STATUS, CF | SF | PF | alu::AF);
    // REPNE SCAS finds; the count is used up when it does not.
    let mut mock = strings(10);
    mock.poke(DATA + 0x800, 8, 0x0807_0605_0302_0100);
    *mock.reg(Gpr::Rax) = 3;
    mock.run(&[0xf2, 0xae]);
    assert_eq!((pointers(&mock), mock.rflags & ZF), ((6, 0, 4), ZF));
    *mock.reg(Gpr::Rax) = 0x77;
    mock.run(&[0xf2, 0xae]);
    assert_eq!((pointers(&mock), mock.rflags & ZF), ((0, 0, 10), 0));
}

#[test]
fn a_count_of_zero_does_nothing() {
    for code in [[0xf3, 0xa4], [0xf3, 0xa6], [0xf2, 0xae], [0xf3, 0x6c], [0xf3, 0x6e]] {
        let mut mock = strings(0);
        *mock.reg(Gpr::Rsi) = 0xffff_0000_0000_0000;
        *mock.reg(Gpr::Rdi) = 0xffff_0000_0000_0000;
        mock.rflags |= CF;
        mock.put_code(&code);
        let before = mock.clone();
        assert_eq!(step(&mut mock, 5), Ok(Completed { next_rip: CODE + 2 }));
        assert_eq!(mock, before);
    }
}

#[test]
fn the_budget_interrupts() {
    let mut mock = strings(5);
    mock.put_code(&[0xf3, 0xa4]);
    assert_eq!(step(&mut mock, 2), Ok(Completed { next_rip: CODE }));
    assert_eq!(pointers(&mock), (3, 2, 2));
    assert_eq!(step(&mut mock, 0), Ok(Completed { next_rip: CODE }));
    assert_eq!(pointers(&mock), (2, 3, 3));
    // The single-step trap comes after each element.
    mock.rflags |= rflags::TF;
    assert_eq!(step(&mut mock, 100), Ok(Completed { next_rip: CODE }));
    assert_eq!(pointers(&mock), (1, 4, 4));
    assert_eq!(step(&mut mock, 100), Ok(Completed { next_rip: CODE + 2 }));
    assert_eq!(pointers(&mock), (0, 5, 5));
}

#[test]
fn a_fault_leaves_the_registers_at_its_element() {
    let mut mock = strings(8);
    mock.map(PAGE, DATA + 0x4000, P | W);
    *mock.reg(Gpr::Rdi) = PAGE + 0xff8;
    mock.poke(DATA, 8, 0x1122_3344_5566_7788);
    mock.rflags |= CF;
    mock.put_code(&[0xf3, 0xa5]);
    assert_eq!(step(&mut mock, 100), Err(Exception::page_fault(2, PAGE + 0x1000).into()));
    assert_eq!((mock.gprs[1], mock.gprs[6], mock.gprs[7]), (6, DATA + 8, PAGE + 0x1000));
    assert_eq!(mock.peek(DATA + 0x4ff8, 8), 0x1122_3344_5566_7788);
    // Mapped, it goes on.
    mock.map(PAGE + 0x1000, DATA + 0x6000, P | W);
    assert_eq!(step(&mut mock, 100), Ok(Completed { next_rip: CODE + 2 }));
    assert_eq!(*mock.reg(Gpr::Rcx), 0);
}

#[test]
fn address_sizes() {
    // In 64-bit mode with 0x67 the 32-bit registers count, and writing them clears the upper halves.
    let mut mock = strings(0xffff_ffff_0000_0002);
    *mock.reg(Gpr::Rsi) |= 5 << 32;
    *mock.reg(Gpr::Rdi) |= 5 << 32;
    mock.run(&[0x67, 0xf3, 0xa4]);
    assert_eq!(pointers(&mock), (0, 2, 2));
    // In real mode SI wraps at 64 KiB and the upper halves stay.
    let mut mock = Mock::real();
    *mock.reg(Gpr::Rsi) = 0xabcd_ffff;
    *mock.reg(Gpr::Rdi) = 0x6000;
    *mock.reg(Gpr::Rcx) = 0x1_0002;
    mock.poke(0xffff, 1, 0x11);
    mock.poke(0, 1, 0x22);
    mock.run(&[0xf3, 0xa4]);
    assert_eq!((*mock.reg(Gpr::Rsi), *mock.reg(Gpr::Rcx), mock.peek(0x6000, 2)), (0xabcd_0001, 0x1_0000, 0x2211));
}

#[test]
fn input_strings() {
    let mut mock = strings(3);
    *mock.reg(Gpr::Rdx) = 0xffff_01f0;
    mock.port_input.extend([0xdead_1111, 0x2222, 0x3333]);
    mock.run(&[0xf3, 0x66, 0x6d]);
    assert_eq!(mock.peek(DATA + 0x800, 8), 0x3333_2222_1111);
    assert_eq!(pointers(&mock), (0, 0, 6));
    // ES holds the destination whatever the prefix says.
    let mut mock = Mock::real();
    mock.segments[SegmentName::Es as usize].base = 0x1_0000;
    mock.port_input.push_back(0x5a);
    mock.run(&[0x2e, 0x6c]);
    assert_eq!(mock.peek(0x1_0000, 1), 0x5a);
}

#[test]
fn input_checks_memory_before_it_reads_the_port() {
    let mut mock = strings(4);
    mock.map(PAGE, DATA + 0x4000, P | W);
    mock.map(PAGE + 0x1000, DATA + 0x5000, P);
    *mock.reg(Gpr::Rdi) = PAGE + 0xffd;
    mock.port_input.extend([0x1111, 0x2222, 0x3333]);
    mock.put_code(&[0xf3, 0x66, 0x6d]);
    assert_eq!(step(&mut mock, 100), Err(Exception::page_fault(3, PAGE + 0x1000).into()));
    assert_eq!((mock.port_reads, mock.gprs[1], mock.gprs[7]), (1, 3, PAGE + 0xfff));
}

#[test]
fn output_strings() {
    let mut mock = strings(2);
    *mock.reg(Gpr::Rdx) = 0x3f8;
    mock.poke(DATA, 8, 0x4433_2211_ddcc_bbaa);
    mock.run(&[0xf3, 0x6f]);
    assert_eq!(mock.port_output, [(0x3f8, 4, 0xddcc_bbaa), (0x3f8, 4, 0x4433_2211)]);
    assert_eq!(pointers(&mock), (0, 8, 0));
    // An override moves the source.
    mock.segments[SegmentName::Fs as usize].base = 0x10;
    mock.poke(DATA + 0x18, 1, 0x77);
    mock.run(&[0x64, 0x6e]);
    assert_eq!(mock.port_output[2], (0x3f8, 1, 0x77));
    let mut mock = Mock::real();
    mock.segments[SegmentName::Ss as usize].base = 0x1_0000;
    mock.poke(0x1_0000, 2, 0xcafe);
    mock.run(&[0x36, 0x6f]);
    assert_eq!(mock.port_output, [(0, 2, 0xcafe)]);
}

#[test]
fn smap_covers_both_ends() {
    let mut mock = strings(1);
    mock.map(PAGE, DATA + 0x4000, P | W);
    mock.poke(0x2000, 8, mock.peek(0x2000, 8) & !4);
    mock.paging.cr4 |= cr4::SMAP;
    mock.run(&[0xa4]);
    mock.poke(0x2000, 8, mock.peek(0x2000, 8) | 4);
    *mock.reg(Gpr::Rsi) = PAGE;
    let destination = *mock.reg(Gpr::Rdi);
    assert_eq!(mock.fails(&[0xa4]), Exception::page_fault(3, destination));
}
