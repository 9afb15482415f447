//! Checks that breakpoints on ports and on a device's registers are met as those on memory, in DR6 and behind the
//! instruction.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and debug registers are reached by MOV")]

use core::arch::asm;
use guests::snippet::{self, RESUME_FLAG, Registers, TRAP_FLAG};
use guests::{guest, println, tap};

guest!(device_breakpoints);

const POST_PORT: u64 = 0x80;
const IOAPIC: u64 = 0xfec0_0000;
const CR4_DE: u64 = 1 << 3;
/// What a breakpoint waits for, and how many bytes it watches, as DR7 has it.
const WRITE: u64 = 1;
const PORT: u64 = 2;
const ACCESS: u64 = 3;
const ONE: u64 = 0;
const FOUR: u64 = 3;
const MET: u64 = 0xf;
const STEP: u64 = 1 << 14;

static BYTES: [u8; 16] = [0; 16];

fn device_breakpoints() {
    set_de(true);
    let port = Registers { rdx: POST_PORT, ..Registers::default() };
    let mmio = Registers { rdi: IOAPIC, ..Registers::default() };
    arm(PORT, ONE, POST_PORT);
    check(&[0xee], port, &[(1, MET_3)], "OUT meets the breakpoint on its port");
    check(&[0xec], port, &[(1, MET_3)], "IN does");
    check(&[0xe5, 0x7e], port, &[(2, MET_3)], "a wider access that reaches it does");
    check(&[0xe4, 0x84], port, &[], "another port does not");
    let string = Registers { rcx: 2, rsi: (&raw const BYTES) as u64, ..port };
    check(&[0xf3, 0x6e], string, &[(0, MET_3), (2, MET_3)], "REP OUTSB does with each element");
    arm(PORT, FOUR, POST_PORT);
    check(&[0xe4, 0x83], port, &[(2, MET_3)], "a breakpoint of four ports is met in its last");
    set_de(false);
    check(&[0xee], port, &[], "without CR4.DE a port has none");
    arm(ACCESS, FOUR, IOAPIC);
    check(&[0x8b, 0x07], mmio, &[(2, MET_3)], "a load from a device meets a breakpoint on accesses");
    check(&[0x89, 0x07], mmio, &[(2, MET_3)], "a store does");
    check(&[0x8b, 0x47, 0x10], mmio, &[], "another register does not");
    let stepped = Registers { rflags: mmio.rflags | TRAP_FLAG, ..mmio };
    check(&[0x8b, 0x07], stepped, &[(2, MET_3 | STEP)], "with a single step it is one exception");
    arm(WRITE, ONE, IOAPIC + 3);
    check(&[0x8b, 0x07], mmio, &[], "a load meets none on writes");
    check(&[0x89, 0x07], mmio, &[(2, MET_3)], "a store does, at its last byte");
    disarm();
}

/// DR6.B3.
const MET_3: u64 = 1 << 3;

/// Runs an instruction and compares where debug exceptions came, and what DR6 said.
fn check(code: &[u8], registers: Registers, expected: &[(u64, u64)], name: &str) {
    let mut registers = registers;
    // SAFETY: the instructions read, or write to where nothing comes of it.
    let (start, fault) = unsafe { snippet::run(code, &mut registers) };
    let same = snippet::traps().map(|trap| (trap.rip - start, trap.dr6 & (MET | STEP))).eq(expected.iter().copied());
    let last_has_rf = snippet::traps().last().is_some_and(|trap| trap.rflags & RESUME_FLAG != 0);
    if !same || last_has_rf || fault.is_some() {
        println!("# {start:#x} {fault:x?}");
        snippet::traps().for_each(|trap| println!("# {trap:x?}"));
    }
    tap::check(same && !last_has_rf && fault.is_none(), name);
}

/// Arms the fourth breakpoint.
fn arm(kind: u64, length: u64, address: u64) {
    let dr7 = 1 << 10 | 1 << 7 | kind << 28 | length << 30;
    // SAFETY: the snippets' handler sees to what it raises.
    unsafe { asm!("mov dr3, {}", "mov dr7, {}", in(reg) address, in(reg) dr7, options(nomem, nostack)) };
}

fn disarm() {
    // SAFETY: no breakpoint is left.
    unsafe { asm!("mov dr7, {}", in(reg) 1u64 << 10, options(nomem, nostack)) };
}

fn set_de(on: bool) {
    let cr4: u64;
    // SAFETY: the bit changes what breakpoints mean.
    unsafe {
        asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack));
        asm!("mov cr4, {}", in(reg) if on { cr4 | CR4_DE } else { cr4 & !CR4_DE }, options(nomem, nostack));
    }
}
