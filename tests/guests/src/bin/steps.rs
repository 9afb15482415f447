//! Checks that single steps and faults at instructions that leave the guest are as those at any other.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and instructions are given as bytes")]

use guests::interrupts::{Fault, PROTECTION, UNDEFINED};
use guests::snippet::{self, RESUME_FLAG, Registers, TRAP_FLAG, Trap};
use guests::{cpu, guest, println, tap};

guest!(steps);

const IOAPIC: u64 = 0xfec0_0000;
const POST_PORT: u64 = 0x80;
/// DR6: single step; the four breakpoints, general detect, single step.
const SINGLE_STEP: u64 = 1 << 14;
const REASONS: u64 = 0x600f;
const PAT: u32 = 0x277;
const UNKNOWN_MSR: u64 = 0x1234_5678;

fn steps() {
    instructions();
    repeated();
    shadows();
    faults();
}

/// An instruction that leaves the guest, and its registers.
type Case = (&'static str, &'static [u8], Registers);

fn cases() -> [Case; 20] {
    let none = Registers::default();
    let port = Registers { rdx: POST_PORT, ..none };
    let base = cpu::read_msr(cpu::msr::APIC_BASE);
    let msr = Registers { rcx: cpu::msr::APIC_BASE.into(), rax: base & 0xffff_ffff, rdx: base >> 32, ..none };
    let pat = cpu::read_msr(PAT);
    let pat = Registers { rcx: PAT.into(), rax: pat & 0xffff_ffff, rdx: pat >> 32, ..none };
    let mmio = Registers { rdi: IOAPIC, rsi: IOAPIC, ..none };
    [
        ("NOP", &[0x90], none),
        ("CPUID", &[0x0f, 0xa2], none),
        ("CPUID with REX", &[0x48, 0x0f, 0xa2], none),
        ("CPUID with a segment override and REX", &[0x2e, 0x4f, 0x0f, 0xa2], none),
        ("IN AL, DX", &[0xec], port),
        ("IN AX, DX", &[0x66, 0xed], port),
        ("IN EAX, imm8", &[0xe5, 0x80], none),
        ("OUT DX, AL", &[0xee], port),
        ("OUT imm8, AL", &[0xe6, 0x80], none),
        ("OUT DX, EAX with REX", &[0x48, 0xef], port),
        ("RDMSR", &[0x0f, 0x32], msr),
        ("RDMSR with REX", &[0x4a, 0x0f, 0x32], msr),
        ("WRMSR", &[0x0f, 0x30], msr),
        ("WRMSR of PAT, for which a hypervisor may replace all state", &[0x0f, 0x30], pat),
        ("MOV from a device", &[0x8b, 0x07], mmio),
        ("MOV to a device", &[0x89, 0x07], mmio),
        ("OUTSB", &[0x6e], Registers { rsi: (&raw const BYTES) as u64, ..port }),
        ("MOVSD from a device to a device", &[0xa5], mmio),
        ("PAUSE", &[0xf3, 0x90], none),
        ("WBINVD", &[0x0f, 0x09], none),
    ]
}

static BYTES: [u8; 16] = [0; 16];

fn instructions() {
    for (name, code, registers) in cases() {
        let (start, fault) = step(code, registers);
        let mut traps = snippet::traps();
        let once = traps.len() == 1 && fault.is_none();
        let trap = traps.next().unwrap_or_default();
        let end = start + code.len() as u64;
        if !(once && trap.rip == end && trap.dr6 & REASONS == SINGLE_STEP && trap.rflags & RESUME_FLAG == 0) {
            println!("# {name} at {start:#x}: {fault:x?}");
            snippet::traps().for_each(|trap| println!("# {trap:x?}"));
            return tap::check(false, "each instruction is one step");
        }
    }
    tap::check(true, "each instruction is one step");
}

/// Single-steps `code`.
fn step(code: &[u8], registers: Registers) -> (u64, Option<Fault>) {
    let mut registers = Registers { rflags: registers.rflags | TRAP_FLAG, ..registers };
    // SAFETY: the instructions above read, or write what is there or goes nowhere.
    unsafe { snippet::run(code, &mut registers) }
}

fn repeated() {
    let registers = Registers { rcx: 3, rdx: POST_PORT, rsi: (&raw const BYTES) as u64, ..Registers::default() };
    let (start, _) = step(&[0xf3, 0x6e], registers);
    let rips = snippet::traps().map(|trap| trap.rip).eq([start, start, start + 2]);
    tap::check(rips, "REP OUTSB is one step for each element");
    let flags = snippet::traps().map(|trap| trap.rflags & RESUME_FLAG != 0).eq([true, true, false]);
    tap::check(flags, "RF is pushed between two elements, and not behind the last");
}

fn shadows() {
    // MOV SS, EBX; CPUID.
    let (start, _) = step(&[0x8e, 0xd3, 0x0f, 0xa2], Registers { rbx: 0x18, ..Registers::default() });
    let rips = snippet::traps().map(|trap| trap.rip).eq([start + 4]);
    tap::check(rips, "MOV SS and the CPUID behind it are one step");
    // PUSHFQ; POPFQ; CPUID; IN AL, 80h.
    let (start, _) = step(&[0x9c, 0x9d, 0x0f, 0xa2, 0xe4, 0x80], Registers::default());
    let rips = snippet::traps().map(|trap| trap.rip).eq([1, 2, 4, 6].map(|at| start + at));
    tap::check(rips, "one after the other they are a step each");
}

fn faults() {
    let msr = |index| Registers { rcx: index, rax: 2, ..Registers::default() };
    let cases: [Case; 5] = [
        ("RDMSR", &[0x0f, 0x32], msr(UNKNOWN_MSR)),
        ("WRMSR", &[0x0f, 0x30], msr(UNKNOWN_MSR)),
        ("WRMSR of EFER", &[0x0f, 0x30], msr(cpu::msr::EFER.into())),
        ("XSETBV", &[0x0f, 0x01, 0xd1], msr(0)),
        ("UD2", &[0x0f, 0x0b], msr(0)),
    ];
    for (name, code, registers) in cases {
        let mut registers = registers;
        // SAFETY: they all fault.
        let (start, fault) = unsafe { snippet::run(code, &mut registers) };
        let expected = if matches!(name, "XSETBV" | "UD2") { UNDEFINED } else { PROTECTION };
        let is_right = fault.is_some_and(|fault| {
            (fault.vector, fault.error_code, fault.rip) == (expected, 0, start) && fault.rflags & RESUME_FLAG != 0
        });
        if !is_right {
            println!("# {name} at {start:#x}: {fault:x?}");
        }
        tap::check(is_right, name);
    }
    let last: Option<Trap> = snippet::traps().next();
    tap::check(last.is_none(), "a fault is no debug exception");
}
