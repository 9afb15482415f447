//! Checks the registers by which a program controls speculation: that each is there where CPUID names it and nowhere else,
//! takes the bits that are named and no reserved one, and keeps its value whatever exits and whoever else runs. With
//! `endless=1` it holds the bit that `seed=` counts, and says `kept` now and then, until that is not so.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and registers are written")]

use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};
use guests::apic::{self, register};
use guests::cpu::msr::{ARCH_CAPABILITIES, FLUSH_CMD, PRED_CMD, SPEC_CTRL};
use guests::interrupts::{APIC_VECTOR, Fault, PROTECTION, catch};
use guests::{boot, cpu, guest, println, smp, tap};

guest!(speculation);

/// Bits of IA32_SPEC_CTRL that CPUID names: leaf and subleaf, whether in EBX and not EDX, the bit there, and here (SDM
/// volume 2, CPUID 7; APM volume 3, E.4.6).
const NAMED: [((u32, u32), bool, u32, u64); 11] = [
    ((7, 0), false, 26, 1 << 0),
    ((7, 0), false, 27, 1 << 1),
    ((7, 0), false, 31, 1 << 2),
    ((7, 2), false, 0, 1 << 7),
    ((7, 2), false, 1, 1 << 3 | 1 << 4),
    ((7, 2), false, 2, 1 << 5 | 1 << 6),
    ((7, 2), false, 4, 1 << 10),
    ((0x8000_0008, 0), true, 14, 1 << 0),
    ((0x8000_0008, 0), true, 15, 1 << 1),
    ((0x8000_0008, 0), true, 24, 1 << 2),
    ((0x8000_0008, 0), true, 28, 1 << 7),
];
/// Bits that no processor has.
const RESERVED: [u32; 5] = [9, 11, 31, 32, 63];
/// The highest that one has.
const LAST: u32 = 10;
const PAT: u32 = 0x277;
const VECTOR: u8 = APIC_VECTOR + 2;
const EXITS: u32 = 200;
/// Some seconds, on any processor.
const WAIT_CYCLES: u64 = 20_000_000_000;

/// What another processor found at first, and behind all that this one did, each plus one.
static FOUND: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// What it sets.
static OTHERS: AtomicU64 = AtomicU64::new(0);

fn speculation() {
    let named =
        NAMED.iter().filter(|&&(at, is_ebx, bit, _)| has(at, is_ebx, bit)).fold(0, |bits, named| bits | named.3);
    println!("# IA32_SPEC_CTRL {named:#x}");
    if boot::number("endless").is_some() {
        return hold(named);
    }
    apic::start();
    control(named);
    let has_ibpb = has((7, 0), false, 26) || has((0x8000_0008, 0), true, 12);
    command(PRED_CMD, has_ibpb, "IA32_PRED_CMD");
    command(FLUSH_CMD, has((7, 0), false, 28), "IA32_FLUSH_CMD");
    capabilities();
    others(named);
}

fn has((leaf, subleaf): (u32, u32), is_ebx: bool, bit: u32) -> bool {
    let last = cpu::cpuid(leaf & 0x8000_0000, 0).eax;
    let found = cpu::cpuid(leaf, subleaf);
    leaf <= last && if is_ebx { found.ebx } else { found.edx } & 1 << bit != 0
}

fn read(index: u32) -> Result<u64, Fault> {
    let mut value = 0;
    let fault = catch(|| value = black_box(cpu::read_msr(index)));
    fault.map_or(Ok(value), Err)
}

fn write(index: u32, value: u64) -> Option<Fault> {
    // SAFETY: either it faults, or the program runs on at another speed.
    catch(|| unsafe { cpu::write_msr(index, value) })
}

fn holds(value: u64) -> bool {
    read(SPEC_CTRL).is_ok_and(|found| found == value)
}

fn is_protection(fault: Option<Fault>) -> bool {
    fault.is_some_and(|fault| fault.vector == PROTECTION)
}

/// Whether what is not named is not there: for Pollux's guests. Other processors may have it, and QEMU's refuse no register.
fn is_strict(name: &str) -> bool {
    let is_guest =
        cpu::cpuid(1, 0).ecx & 1 << 31 != 0 && cpu::cpuid(0x4000_0100, 0).ebx == u32::from_le_bytes(*b"Poll");
    if !is_guest {
        tap::skip(name, "this processor is no guest's");
    }
    is_guest
}

fn control(named: u64) {
    let name = "IA32_SPEC_CTRL is not there";
    if named == 0 {
        if is_strict(name) {
            tap::check(is_protection(read(SPEC_CTRL).err()) && is_protection(write(SPEC_CTRL, 0)), name);
        }
        return;
    }
    tap::check(holds(0), "IA32_SPEC_CTRL is zero at first");
    tap::check(write(SPEC_CTRL, 0).is_none() && holds(0), "and takes zero");
    for bit in (0..=LAST).filter(|bit| named & 1 << bit != 0) {
        tap::check(write(SPEC_CTRL, 1 << bit).is_none() && holds(1 << bit), "it takes each bit that is named");
    }
    tap::check(write(SPEC_CTRL, named).is_none() && holds(named), "and all of them");
    // Bochs takes every bit that some processor has. What is withheld of those that this one has exits, and is refused.
    let unnamed = (0..=LAST).filter(|bit| named & 1 << bit == 0 && boot::number("strict").is_some() && *bit != 9);
    for bit in RESERVED.into_iter().chain(unnamed) {
        tap::check(is_protection(write(SPEC_CTRL, named | 1 << bit)) && holds(named), "and no other");
    }
    for _ in 0..EXITS {
        cpu::in8(0xe5e0);
        cpu::cpuid(0, 0);
    }
    tap::check(holds(named), "it keeps them over exits");
    // A hypervisor may carry this out by replacing the processor's whole state.
    write(PAT, cpu::read_msr(PAT));
    tap::check(holds(named), "and over a write to another register");
    tap::check(halts() && holds(named), "and over a halt");
    write(SPEC_CTRL, 0);
    cpu::cpuid(0, 0);
    tap::check(holds(0), "and is zero again");
}

/// Halts until the timer interrupts.
fn halts() -> bool {
    apic::write(register::DIVIDE, 11);
    apic::write(register::LVT_TIMER, VECTOR.into());
    apic::write(register::INITIAL_COUNT, 1_000_000);
    cpu::wait_for_interrupt();
    apic::write(register::LVT_TIMER, apic::MASKED);
    apic::read(register::CURRENT_COUNT) == 0
}

/// A register that is only written, and its bit 0 alone.
fn command(index: u32, is_named: bool, name: &str) {
    if !is_named && !is_strict(name) {
        return;
    }
    tap::check(is_protection(read(index).err()), name);
    tap::check(write(index, 1).is_none() == is_named, "it is there where it is named");
    for bit in [1, 31, 32, 63] {
        tap::check(is_protection(write(index, 1 << bit)), "it takes no reserved bit");
    }
}

fn capabilities() {
    /// TSX_CTRL, MCU_CONTROL, MISC_PACKAGE_CTLS, ENERGY_FILTERING_CTL, FB_CLEAR_CTRL, GDS_CTRL: each brings a register, or
    /// bits of one, that no guest has.
    const CONTROLS: u64 = 1 << 7 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 18 | 1 << 25;
    let name = "IA32_ARCH_CAPABILITIES";
    match read(ARCH_CAPABILITIES) {
        Ok(value) if has((7, 0), false, 29) => {
            println!("# {name} {value:#x}");
            tap::check(is_protection(write(ARCH_CAPABILITIES, value)), "IA32_ARCH_CAPABILITIES is not written");
            if is_strict("it names no control") {
                tap::check(value & CONTROLS == 0, "it names no control");
            }
        }
        found => {
            if is_strict(name) {
                tap::check(is_protection(found.err()) && !has((7, 0), false, 29), name);
            }
        }
    }
}

/// Another processor has a value of its own.
fn others(named: u64) {
    let name = "each processor has its own";
    if named == 0 || smp::count() < 2 {
        return tap::skip(name, "there is one, or nothing to have");
    }
    let own = 1 << named.trailing_zeros();
    OTHERS.store(named & !own, Ordering::Release);
    write(SPEC_CTRL, own);
    smp::prepare(other);
    smp::start(Some(1));
    let met = cpu::wait_until(WAIT_CYCLES, || FOUND[1].load(Ordering::Acquire) != 0);
    let found = [0, 1].map(|index| FOUND[index].load(Ordering::Acquire));
    tap::check(met && found == [1, 1 + (named & !own)] && holds(own), name);
    write(SPEC_CTRL, 0);
}

fn other(_index: usize) {
    FOUND[0].store(1 + cpu::read_msr(SPEC_CTRL), Ordering::Release);
    write(SPEC_CTRL, OTHERS.load(Ordering::Acquire));
    for _ in 0..EXITS {
        cpu::cpuid(0, 0);
    }
    FOUND[1].store(1 + cpu::read_msr(SPEC_CTRL), Ordering::Release);
}

/// Holds one of the bits that are named as long as it stays.
fn hold(named: u64) {
    let count = boot::number("seed").unwrap_or(0) as usize;
    let Some(bit) = (0..=LAST).filter(|bit| named & 1 << bit != 0).nth(count) else {
        return tap::check(false, "there are so many bits");
    };
    write(SPEC_CTRL, 1 << bit);
    for round in 0_u32.. {
        if !holds(1 << bit) {
            break;
        }
        if round % (20 * EXITS) == 0 {
            println!("kept {:#x}", 1 << bit);
        }
        cpu::in8(0xe5e0);
        (0..1000).for_each(|_| core::hint::spin_loop());
    }
    tap::check(false, "it keeps its own");
}
