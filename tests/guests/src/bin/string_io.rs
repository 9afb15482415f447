//! Checks INS and OUTS, whose memory is the hypervisor's to reach: rights of pages, faults in the middle, both directions,
//! accessed and dirty bits, address sizes, and code that crosses pages.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and instructions are given as bytes")]

use guests::interrupts::{Fault, PAGE_FAULT, PROTECTION};
use guests::paging::{self, PAGE_BYTES, WINDOW, entry};
use guests::snippet::{self, Registers};
use guests::{boot, cpu, guest, mmio, println, tap};

guest!(string_io);

/// Reads as ones.
const NOBODY: u64 = 0xe5e0;
/// Keeps 32 bits, of which the lowest two are not there.
const PCI_ADDRESS: u64 = 0xcf8;
const ALIGNMENT_FLAG: u64 = 1 << 18;
const DIRECTION_FLAG: u64 = 1 << 10;
const READ_WRITE: u64 = entry::PRESENT | entry::WRITABLE;

const INSB: &[u8] = &[0x6c];
const INSD: &[u8] = &[0x6d];
const OUTSD: &[u8] = &[0x6f];
const REP_INSB: &[u8] = &[0xf3, 0x6c];
const REP_OUTSD: &[u8] = &[0xf3, 0x6f];

/// Two frames of memory, mapped one to one too.
struct Memory {
    frames: [u64; 2],
}

fn string_io() {
    paging::start();
    let free = boot::free_memory().0;
    let memory = Memory { frames: [free, free + PAGE_BYTES] };
    memory.rights();
    memory.bits();
    memory.crossing();
    memory.backwards();
    memory.widths();
    code();
}

impl Memory {
    fn map(&self, first: u64, second: u64) {
        for (index, flags) in [(0, first), (1, second)] {
            let frame = self.frames[index as usize];
            (0..PAGE_BYTES).step_by(8).for_each(|at| {
                // SAFETY: free memory.
                unsafe { mmio::write(frame + at, 8, 0) }
            });
            paging::map(index, if flags == 0 { 0 } else { frame | flags });
        }
    }

    /// A byte by its place in the window.
    fn byte(&self, at: u64) -> u64 {
        // SAFETY: the window's memory, where it is mapped one to one.
        unsafe { mmio::read(self.frames[(at / PAGE_BYTES) as usize] + at % PAGE_BYTES, 1) }
    }

    fn rights(&self) {
        let input = Registers { rdx: NOBODY, rdi: WINDOW + 8, ..Registers::default() };
        self.map(0, 0);
        check_fault(INSB, input, (PAGE_FAULT, 0b10, WINDOW + 8), "INS to a page that is not there");
        let output = Registers { rdx: NOBODY, rsi: WINDOW + 8, ..Registers::default() };
        check_fault(&[0x6e], output, (PAGE_FAULT, 0, WINDOW + 8), "OUTS from one");
        self.map(entry::PRESENT, 0);
        paging::set_write_protect(true);
        check_fault(INSB, input, (PAGE_FAULT, 0b11, WINDOW + 8), "INS to a read-only page");
        paging::set_write_protect(false);
        check(INSB, input, |_| self.byte(8) == 0xff, "without CR0.WP it is written");
        paging::set_write_protect(true);
        let wide = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
        if wide < 52 {
            self.map(READ_WRITE | 1 << 51, 0);
            check_fault(INSB, input, (PAGE_FAULT, 0b1011, WINDOW + 8), "INS through an entry with a reserved bit");
        }
        self.map(READ_WRITE | entry::USER, 0);
        if paging::set_smap(true) {
            check_fault(INSB, input, (PAGE_FAULT, 0b11, WINDOW + 8), "INS to a user's page under SMAP");
            let allowed = Registers { rflags: input.rflags | ALIGNMENT_FLAG, ..input };
            check(INSB, allowed, |_| self.byte(8) == 0xff, "RFLAGS.AC allows it");
            paging::set_smap(false);
        } else {
            tap::skip("SMAP", "the processor has none");
        }
        let far = Registers { rdi: 1 << 63, ..input };
        check_fault(INSB, far, (PROTECTION, 0, 0), "INS to an address that is not canonical");
    }

    fn bits(&self) {
        let bits = |index| paging::mapped(index) & (entry::ACCESSED | entry::DIRTY);
        self.map(READ_WRITE, READ_WRITE);
        let registers = Registers { rdx: NOBODY, rsi: WINDOW, rdi: WINDOW + PAGE_BYTES, ..Registers::default() };
        check(OUTSD, registers, |_| bits(0) == entry::ACCESSED, "OUTS marks its page as accessed");
        check(INSD, registers, |_| bits(1) == entry::ACCESSED | entry::DIRTY, "INS marks its page as dirty");
    }

    fn crossing(&self) {
        let edge = WINDOW + PAGE_BYTES;
        let registers = Registers { rdx: NOBODY, rcx: 8, rdi: edge - 4, ..Registers::default() };
        self.map(READ_WRITE, READ_WRITE);
        check(REP_INSB, registers, |after| (after.rcx, after.rdi) == (0, edge + 4), "REP INS goes on in the next page");
        tap::check((PAGE_BYTES - 4..PAGE_BYTES + 4).all(|at| self.byte(at) == 0xff), "and writes all");
        tap::check(self.byte(PAGE_BYTES - 5) == 0 && self.byte(PAGE_BYTES + 4) == 0, "and no more");
        self.map(READ_WRITE, 0);
        let fault = check_fault(REP_INSB, registers, (PAGE_FAULT, 0b10, edge), "REP INS stops where there is no page");
        let stopped = fault.is_some_and(|fault| (fault.rcx, fault.rdi) == (4, edge));
        tap::check(stopped && self.byte(PAGE_BYTES - 1) == 0xff, "what it did is done");
        let wide = Registers { rdi: edge - 2, ..registers };
        check_fault(INSD, wide, (PAGE_FAULT, 0b10, edge), "an element of two pages faults at the second");
        self.map(READ_WRITE, READ_WRITE);
        check(INSD, wide, |_| self.byte(PAGE_BYTES - 2) == 0xff && self.byte(PAGE_BYTES + 1) == 0xff, "or is whole");
        check(
            REP_INSB,
            Registers { rcx: 0, ..registers },
            |after| after.rdi == edge - 4,
            "a count of zero does nothing",
        );
    }

    fn backwards(&self) {
        let edge = WINDOW + PAGE_BYTES;
        let down = Registers { rflags: 2 | DIRECTION_FLAG, rdx: NOBODY, rcx: 6, rdi: edge + 2, ..Registers::default() };
        self.map(READ_WRITE, READ_WRITE);
        check(REP_INSB, down, |after| (after.rcx, after.rdi) == (0, edge - 4), "with RFLAGS.DF it goes down");
        tap::check(self.byte(PAGE_BYTES - 3) == 0xff && self.byte(PAGE_BYTES - 4) == 0, "to its last byte");
    }

    /// What OUTS writes can be read back at the port.
    fn widths(&self) {
        self.map(READ_WRITE, READ_WRITE);
        for (at, value) in [(0, 0x8000_1110), (4, 0x8000_2224), (8, 0x8000_3338)] {
            // SAFETY: free memory.
            unsafe { mmio::write(self.frames[0] + at, 4, value) };
        }
        let read = || u64::from(cpu::in32(PCI_ADDRESS as u16));
        let registers = Registers { rdx: PCI_ADDRESS, rcx: 2, rsi: WINDOW, ..Registers::default() };
        check(OUTSD, registers, |after| (read(), after.rsi) == (0x8000_1110, WINDOW + 4), "OUTSD writes what is there");
        check(REP_OUTSD, registers, |after| (read(), after.rsi) == (0x8000_2224, WINDOW + 8), "REP OUTSD the last");
        let low = Registers { rsi: (self.frames[0] + 8) | 0xffff_ffff << 32, ..registers };
        let end = self.frames[0] + 12;
        let code = [0x67, 0x6f];
        check(&code, low, |after| (read(), after.rsi) == (0x8000_3338, end), "a short address ends at 32 bits");
        let code = [0x48, 0x6f];
        check(&code, registers, |after| (read(), after.rsi) == (0x8000_1110, WINDOW + 4), "REX.W changes nothing");
        let code = [0x66, 0xf2, 0x6f];
        let words = Registers { rdx: NOBODY, ..registers };
        check(&code, words, |after| (after.rcx, after.rsi) == (0, WINDOW + 4), "REPNE OUTSW repeats as REP does");
    }
}

/// Instructions across the end of a page.
fn code() {
    let port = Registers { rdx: NOBODY, rcx: 2, rdi: WINDOW, ..Registers::default() };
    let cases: [(&[u8], &str); 4] = [
        (&[0x0f, 0xa2], "CPUID of two pages"),
        (&[0xf3, 0x6c], "REP INSB of two pages"),
        (&[0x66, 0xf3, 0x48, 0x6c], "a longer one"),
        (&[0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x0f, 0xa2], "15 bytes"),
    ];
    for (code, name) in cases {
        let mut registers = port;
        // SAFETY: the window's memory is written, or nothing.
        let (_, fault) = unsafe { snippet::run_at(4095, code, &mut registers) };
        if let Some(fault) = fault {
            println!("# {fault:x?}");
        }
        tap::check(fault.is_none(), name);
    }
}

fn check(code: &[u8], registers: Registers, holds: impl FnOnce(&Registers) -> bool, name: &str) {
    let mut after = registers;
    // SAFETY: the window's memory is read or written.
    let (_, fault) = unsafe { snippet::run(code, &mut after) };
    let is_right = fault.is_none() && holds(&after);
    if !is_right {
        println!("# {fault:x?} {after:x?}");
    }
    tap::check(is_right, name);
}

/// Expects a vector, an error code, and for a page fault an address.
fn check_fault(code: &[u8], registers: Registers, expected: (u8, u64, u64), name: &str) -> Option<Fault> {
    let mut after = registers;
    // SAFETY: as `check`.
    let (start, fault) = unsafe { snippet::run(code, &mut after) };
    let is_right = fault.is_some_and(|fault| {
        let address = if fault.vector == PAGE_FAULT { fault.address } else { 0 };
        (fault.vector, fault.error_code, address) == expected && fault.rip == start
    });
    if !is_right {
        println!("# {start:x} {fault:x?} {after:x?}");
    }
    tap::check(is_right, name);
    fault
}
