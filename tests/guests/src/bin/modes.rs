//! Checks instructions that leave the guest in protected mode with 32 and 16 bits, with and without paging, and real mode.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and instructions are given as bytes")]

use guests::legacy_modes::{self, BASE, Fault, Mode, Registers, selector};
use guests::{guest, println, tap};

guest!(modes);

/// Reads as ones.
const NOBODY: u32 = 0xe5e0;
const IOAPIC: u32 = 0xfec0_0000;
const PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;
const INSB: &[u8] = &[0x6c];
const REP_INSB: &[u8] = &[0xf3, 0x6c];
const OUTSB: &[u8] = &[0x6e];

fn modes() {
    legacy_modes::start();
    for mode in [Mode::Protected32, Mode::Paged32, Mode::PagedPae] {
        protected(mode);
    }
    segments();
    pages(Mode::Paged32);
    pages(Mode::PagedPae);
    narrow();
    real();
}

fn protected(mode: Mode) {
    println!("# {mode:?}");
    let none = Registers::default();
    check(mode, &[0x0f, 0xa2], none, |after| after.ebx != 0, "CPUID");
    let port = Registers { edx: NOBODY, eax: 0x1234_5678, ..none };
    check(mode, &[0xec], port, |after| after.eax == 0x1234_56ff, "IN AL, DX");
    check(mode, &[0x66, 0xed], port, |after| after.eax == 0x1234_ffff, "IN AX, DX");
    check(mode, &[0xed], port, |after| after.eax == u32::MAX, "IN EAX, DX");
    let flat = Registers { ds: selector::FLAT, edi: IOAPIC, eax: 0x55, ..none };
    check(mode, &[0x89, 0x07, 0x31, 0xc0, 0x8b, 0x07], flat, |after| after.eax == 0x55, "a device by [EDI]");
    let code = [0xa1, 0, 0, 0xc0, 0xfe];
    check(mode, &code, flat, |after| after.eax == 0x55, "a device by an address");
    // MOV BX, [EDI]; MOV ESI, [EDI + ECX * 4].
    check(
        mode,
        &[0x66, 0x8b, 0x1f, 0x8b, 0x34, 0x8f],
        flat,
        |after| (after.ebx, after.esi) == (0x55, 0x55),
        "and others",
    );
    check_fault(mode, &[0x0f, 0x32], Registers { ecx: 0x1234_5678, ..none }, (PROTECTION, 0, 0), "RDMSR of none");
    check_fault(mode, &[0x90, 0x0f, 0x0b], none, (6, 0, 1), "UD2");
}

fn segments() {
    let mode = Mode::Protected32;
    let short = Registers { edx: NOBODY, es: selector::SHORT, edi: 0xffe, ecx: 4, ..Registers::default() };
    let after = check_fault(mode, REP_INSB, short, (PROTECTION, 0, 0), "REP INS stops at the segment's end");
    tap::check((after.ecx, after.edi) == (2, 0x1000), "what it did is done");
    let down = Registers { edx: NOBODY, ds: selector::DOWN, esi: 0xfff, ..Registers::default() };
    check_fault(mode, OUTSB, down, (PROTECTION, 0, 0), "OUTS below a segment that expands down");
    check(mode, OUTSB, Registers { esi: 0x1000, ..down }, |after| after.esi == 0x1001, "OUTS inside it");
    let fixed = Registers { edx: NOBODY, es: selector::READ_ONLY, edi: 0x100, ..Registers::default() };
    check_fault(mode, INSB, fixed, (PROTECTION, 0, 0), "INS to a read-only segment");
    let null = Registers { es: 0, ..fixed };
    check_fault(mode, INSB, null, (PROTECTION, 0, 0), "INS to none");
    let code = [0x67, 0x6c];
    let low = Registers { edx: NOBODY, edi: 0x5_0010, ..Registers::default() };
    legacy_modes::put(BASE + 0x10, 0);
    check(mode, &code, low, |after| after.edi == 0x5_0011 && legacy_modes::get(BASE + 0x10) == 0xff, "a short address");
    let override_ss = Registers { edx: NOBODY, ds: selector::SHORT, esi: 0x2000, ..Registers::default() };
    check_fault(mode, OUTSB, override_ss, (PROTECTION, 0, 0), "OUTS beyond DS");
    check(mode, &[0x36, 0x6e], override_ss, |after| after.esi == 0x2001, "an override is another segment");
}

fn pages(mode: Mode) {
    const DIRTY: u64 = 1 << 6;
    const ACCESSED: u64 = 1 << 5;
    const AT: u32 = 0x3000_0000;
    println!("# {mode:?}");
    let entry = legacy_modes::entry(mode, AT.into());
    let registers = Registers { edx: NOBODY, es: selector::FLAT, edi: AT + 5, ..Registers::default() };
    legacy_modes::put(entry, 0);
    check_fault(mode, INSB, registers, (PAGE_FAULT, 0b10, 0), "INS to no page");
    // The frame is that of the first megabytes, where the guest's part of low memory is.
    legacy_modes::put(entry, 0x81);
    let low = Registers { edi: AT + BASE as u32 + 0x20, ..registers };
    legacy_modes::put(BASE + 0x20, 0);
    check(mode, INSB, low, |_| legacy_modes::get(BASE + 0x20) == 0xff, "without CR0.WP a page is written");
    let bits = legacy_modes::get(entry) & (ACCESSED | DIRTY);
    tap::check(bits == ACCESSED | DIRTY, "and marked");
    legacy_modes::put(entry, 0x83 | if mode == Mode::PagedPae { 1 << 20 } else { 1 << 21 });
    check_fault(mode, INSB, low, (PAGE_FAULT, 0b1011, 0), "INS through an entry with a reserved bit");
    legacy_modes::put(entry, 0);
}

fn narrow() {
    let mode = Mode::Protected16;
    println!("# {mode:?}");
    let port = Registers { edx: NOBODY, eax: 0x1234_5678, edi: 0x9_0030, ecx: 0x7_0002, ..Registers::default() };
    check(mode, &[0x0f, 0xa2], Registers::default(), |after| after.ebx != 0, "CPUID");
    check(mode, &[0xed], port, |after| after.eax == 0x1234_ffff, "IN AX, DX");
    check(mode, &[0x66, 0xed], port, |after| after.eax == u32::MAX, "IN EAX, DX");
    legacy_modes::put(BASE + 0x30, 0);
    check(
        mode,
        REP_INSB,
        port,
        |after| (after.ecx, after.edi, legacy_modes::get(BASE + 0x30)) == (0x7_0000, 0x9_0032, 0xffff),
        "REP INS by CX and DI",
    );
    let flat = Registers { ds: selector::FLAT, edi: IOAPIC, eax: 0x33, ..Registers::default() };
    // MOV [EDI], EAX; XOR EAX, EAX; MOV AX, [EDI], with the prefixes that they need.
    let code = [0x66, 0x67, 0x89, 0x07, 0x66, 0x31, 0xc0, 0x67, 0x8b, 0x07];
    check(mode, &code, flat, |after| after.eax == 0x33, "a device by [EDI]");
    let short = Registers { edx: NOBODY, es: selector::SHORT, edi: 0xffe, ecx: 4, ..Registers::default() };
    let after = check_fault(mode, REP_INSB, short, (PROTECTION, 0, 0), "REP INS stops at the segment's end");
    tap::check((after.ecx, after.edi) == (2, 0x1000), "what it did is done");
}

fn real() {
    let mode = Mode::Real;
    println!("# {mode:?}");
    let port = Registers { edx: NOBODY, eax: 0x1234_5678, edi: 0x40, ecx: 3, ..Registers::default() };
    check(mode, &[0x0f, 0xa2], Registers::default(), |after| after.ebx != 0, "CPUID");
    check(mode, &[0xec], port, |after| after.eax == 0x1234_56ff, "IN AL, DX");
    check(mode, &[0xee], port, |after| after.eax == 0x1234_5678, "OUT DX, AL");
    legacy_modes::put(BASE + 0x40, 0);
    check(
        mode,
        REP_INSB,
        port,
        |after| (after.ecx, after.edi, legacy_modes::get(BASE + 0x40)) == (0, 0x43, 0x00ff_ffff),
        "REP INS",
    );
    check(
        mode,
        &[0x0f, 0x32],
        Registers { ecx: 0x1b, ..port },
        |after| after.eax & 0xffff_f000 == 0xfee0_0000,
        "RDMSR",
    );
    check_fault(mode, &[0x0f, 0x32], Registers { ecx: 0x1234_5678, ..port }, (PROTECTION, 0, 0), "RDMSR of none");
    check_fault(mode, &[0x6d], Registers { edi: 0xffff, ..port }, (PROTECTION, 0, 0), "INS across the segment's end");
    let down = Registers { edi: 0, ecx: 1, ..port };
    check(mode, &[0xfd, 0xf3, 0x6c, 0xfc], down, |after| after.edi == 0xffff, "DI goes around");
}

fn check(mode: Mode, code: &[u8], registers: Registers, holds: impl FnOnce(&Registers) -> bool, name: &str) {
    let mut after = registers;
    // SAFETY: low memory that is this program's, or nothing, is written.
    let fault = unsafe { legacy_modes::run(mode, code, &mut after) };
    let is_right = fault.is_none() && holds(&after);
    if !is_right {
        println!("# {fault:x?} {after:x?}");
    }
    tap::check(is_right, name);
}

/// Expects a vector, an error code, and where.
fn check_fault(mode: Mode, code: &[u8], registers: Registers, expected: (u64, u64, u64), name: &str) -> Registers {
    let mut after = registers;
    // SAFETY: as `check`.
    let fault = unsafe { legacy_modes::run(mode, code, &mut after) };
    let (vector, error_code, offset) = expected;
    let is_right = fault == Some(Fault { vector, error_code, offset });
    if !is_right {
        println!("# {fault:x?} {after:x?}");
    }
    tap::check(is_right, name);
    after
}
