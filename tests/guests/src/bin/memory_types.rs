//! Checks that memory is one whatever type it is reached by: what a page's entry and PAT say, what the MTRRs say, and with
//! the caches off. The hypervisor reaches it too, for string I/O, by a type of its own.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and memory is reached by other addresses")]

use core::arch::asm;
use guests::paging::{self, WINDOW, entry};
use guests::snippet::{self, Registers};
use guests::{boot, cpu, guest, mmio, tap};

guest!(memory_types);

const PAT: u32 = 0x277;
const MTRR_CAP: u32 = 0xfe;
const MTRR_BASE_0: u32 = 0x200;
const MTRR_MASK_0: u32 = 0x201;
const MTRR_DEFAULT: u32 = 0x2ff;
const MTRR_ENABLED: u64 = 1 << 11;
const MTRR_VALID: u64 = 1 << 11;
/// CR0.CD.
const CACHES_OFF: u64 = 1 << 30;
/// Bits of an entry that choose one of PAT's eight: PWT, PCD and PAT.
const CHOICES: [u64; 3] = [1 << 3, 1 << 4, 1 << 7];
/// What PAT holds meanwhile: the types by their numbers (SDM volume 3, table 13-10).
const TYPES: [(u64, &str); 8] = [
    (6, "write-back"),
    (4, "write-through"),
    (7, "uncached, weak"),
    (0, "uncached"),
    (1, "write-combining"),
    (5, "write-protected"),
    (6, "write-back, by another choice"),
    (0, "uncached, by another choice"),
];
const IOAPIC: u64 = 0xfec0_0000;
/// Reads as ones.
const NOBODY: u64 = 0xe5e0;
const INSB: &[u8] = &[0x6c];

fn memory_types() {
    paging::start();
    let frame = boot::free_memory().0;
    let before = cpu::read_msr(PAT);
    let pat = (0..).zip(TYPES).fold(0, |pat, (index, (kind, _))| pat | kind << (8 * index));
    // SAFETY: the program's own memory is reached by the first choice, which stays write-back.
    unsafe { cpu::write_msr(PAT, pat) };
    tap::check(cpu::read_msr(PAT) == pat, "PAT has every type");
    for (index, (_, name)) in (0..).zip(TYPES) {
        tap::check(is_one(frame, index), name);
    }
    tap::check((0..8).all(is_device), "a device is one by each of them");
    ranges(frame);
    caches_off(frame);
    // SAFETY: as it was.
    unsafe { cpu::write_msr(PAT, before) };
    paging::map(0, 0);
}

/// Maps the window's first page by a choice of PAT's.
fn map(to: u64, index: u64) {
    let chosen = (0..3).filter(|bit| index >> bit & 1 != 0).fold(0, |bits, bit| bits | CHOICES[bit]);
    paging::map(0, to | entry::PRESENT | entry::WRITABLE | chosen);
}

/// Whether a frame is the same through the window, one to one, and for the hypervisor.
fn is_one(frame: u64, index: u64) -> bool {
    let value = 0x0123_4567_89ab_cdef ^ index;
    map(frame, index);
    let mut into = Registers { rdx: NOBODY, rdi: frame, ..Registers::default() };
    // SAFETY: free memory; a byte is written where INS says.
    unsafe {
        mmio::write(WINDOW, 8, value);
        asm!("mfence", options(nostack, preserves_flags));
        let near = mmio::read(frame, 8);
        mmio::write(frame, 8, !value);
        asm!("mfence", options(nostack, preserves_flags));
        let far = mmio::read(WINDOW, 8);
        let fault = snippet::run(INSB, &mut into).1;
        (near, far, mmio::read(WINDOW, 8)) == (value, !value, !value | 0xff) && fault.is_none()
    }
}

/// Whether a device's register is the same through the window and one to one.
fn is_device(index: u64) -> bool {
    map(IOAPIC, index);
    // SAFETY: the I/O APIC's register select, which nobody uses.
    unsafe {
        mmio::write(WINDOW, 4, 0x10 + index);
        asm!("mfence", options(nostack, preserves_flags));
        mmio::read(IOAPIC, 4) == 0x10 + index
    }
}

/// A range that the MTRRs call uncached, and none at all.
fn ranges(frame: u64) {
    if cpu::cpuid(1, 0).edx & 1 << 12 == 0 || cpu::read_msr(MTRR_CAP) & 0xff == 0 {
        return tap::skip("MTRRs", "the processor has none");
    }
    let registers = [MTRR_BASE_0, MTRR_MASK_0, MTRR_DEFAULT];
    let before = registers.map(cpu::read_msr);
    let width = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    let mask = ((1 << width) - 0x1000) | MTRR_VALID;
    // SAFETY: the type of a frame that is free.
    unsafe {
        cpu::write_msr(MTRR_MASK_0, 0);
        cpu::write_msr(MTRR_BASE_0, frame);
        cpu::write_msr(MTRR_MASK_0, mask);
    }
    let is_kept = cpu::read_msr(MTRR_BASE_0) == frame && cpu::read_msr(MTRR_MASK_0) == mask;
    tap::check(is_kept && (0..8).all(|index| is_one(frame, index)), "a range that is uncached");
    // SAFETY: slower at worst.
    unsafe { cpu::write_msr(MTRR_DEFAULT, before[2] & !MTRR_ENABLED) };
    let is_kept = cpu::read_msr(MTRR_DEFAULT) == before[2] & !MTRR_ENABLED;
    tap::check(is_kept && (0..8).all(|index| is_one(frame, index)), "MTRRs that are off");
    for (index, value) in registers.into_iter().zip(before) {
        // SAFETY: as it was.
        unsafe { cpu::write_msr(index, value) };
    }
}

/// As Linux does around a change of the MTRRs.
fn caches_off(frame: u64) {
    let before: u64;
    // SAFETY: slower, and no more.
    unsafe {
        asm!("mov {}, cr0", out(reg) before, options(nomem, nostack, preserves_flags));
        asm!("mov cr0, {}", "wbinvd", in(reg) before | CACHES_OFF, options(nostack, preserves_flags));
    }
    let is_same = (0..8).all(|index| is_one(frame, index));
    let during: u64;
    // SAFETY: as it was.
    unsafe {
        asm!("mov {}, cr0", out(reg) during, options(nomem, nostack, preserves_flags));
        asm!("mov cr0, {}", in(reg) before, options(nostack, preserves_flags));
    }
    tap::check(is_same && during & CACHES_OFF != 0, "with the caches off");
}
