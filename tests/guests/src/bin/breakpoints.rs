//! Checks that breakpoints on code come before instructions that leave the guest, once, and that RF passes over them; and
//! breakpoints on memory.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and debug registers are reached by MOV")]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use guests::interrupts::{self, DEBUG, Frame};
use guests::snippet::{self, RESUME_FLAG, Registers};
use guests::{cpu, guest, tap};

guest!(breakpoints);

const ACCESS: u64 = 3;
const FOUR: u64 = 3;

static COUNT: AtomicU32 = AtomicU32::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);
static DR6: AtomicU64 = AtomicU64::new(0);
static mut WORD: u32 = 0;

fn breakpoints() {
    interrupts::handle(DEBUG, Some(note));
    let base = cpu::read_msr(cpu::msr::APIC_BASE);
    let msr =
        Registers { rcx: cpu::msr::APIC_BASE.into(), rax: base & 0xffff_ffff, rdx: base >> 32, ..Registers::default() };
    let cases: [(&str, &[u8], Registers); 5] = [
        ("NOP", &[0x90], msr),
        ("CPUID", &[0x0f, 0xa2], msr),
        ("RDMSR", &[0x0f, 0x32], msr),
        ("IN", &[0xe4, 0x80], msr),
        ("a load from a device", &[0x8b, 0x07], Registers { rdi: 0xfec0_0000, ..msr }),
    ];
    for (name, code, registers) in cases {
        // Where it will lie.
        let mut nothing = registers;
        // SAFETY: the instructions read, and where a breakpoint is met is noted.
        let (start, _) = unsafe { snippet::run(code, &mut nothing) };
        interrupts::handle(DEBUG, Some(note));
        arm(start, 0, 0);
        COUNT.store(0, Ordering::Relaxed);
        run_again(start, registers);
        disarm();
        let at = (COUNT.load(Ordering::Relaxed), RIP.load(Ordering::Relaxed), DR6.load(Ordering::Relaxed) & 0x600f);
        tap::check(at == (1, start, 1), name);
    }
    memory();
}

/// Calls the code that lies at `start` with these registers.
fn run_again(start: u64, registers: Registers) {
    let Registers { rax, rcx, rdx, rdi, .. } = registers;
    // SAFETY: a snippet that was run before.
    unsafe {
        asm!("call r13", in("r13") start, inout("rax") rax => _, inout("rcx") rcx => _, inout("rdx") rdx => _,
            inout("rdi") rdi => _, out("rsi") _, clobber_abi("sysv64"));
    }
}

fn memory() {
    let at = &raw mut WORD;
    arm(at as u64, ACCESS, FOUR);
    COUNT.store(0, Ordering::Relaxed);
    // SAFETY: a word of this program's own.
    let value = unsafe { at.read_volatile() };
    disarm();
    tap::check(COUNT.load(Ordering::Relaxed) == 1 && value == 0, "a load from memory meets its breakpoint");
    tap::check(DR6.load(Ordering::Relaxed) & 0x600f == 1, "as DR6 says");
}

fn note(frame: &mut Frame) {
    let dr6: u64;
    // SAFETY: only this handler looks at DR6.
    unsafe { asm!("mov {0}, dr6", "mov dr6, {1}", out(reg) dr6, in(reg) 0xffff_0ff0u64, options(nomem, nostack)) };
    COUNT.fetch_add(1, Ordering::Relaxed);
    RIP.store(frame.rip, Ordering::Relaxed);
    DR6.store(dr6, Ordering::Relaxed);
    frame.rflags |= RESUME_FLAG;
}

/// Arms the first breakpoint.
fn arm(address: u64, kind: u64, length: u64) {
    let dr7 = 1 << 10 | 1 << 1 | kind << 16 | length << 18;
    // SAFETY: the handler sees to what it raises.
    unsafe { asm!("mov dr0, {}", "mov dr7, {}", in(reg) address, in(reg) dr7, options(nomem, nostack)) };
}

fn disarm() {
    // SAFETY: no breakpoint is left.
    unsafe { asm!("mov dr7, {}", in(reg) 1u64 << 10, options(nomem, nostack)) };
}
