//! Checks the local APIC's modes: which changes are allowed, what each mode lets through, what is reserved, what is kept.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and the page of the local APIC is no memory")]

use guests::interrupts::{PROTECTION, catch};
use guests::{apic, cpu, guest, mmio, tap};

guest!(apic_modes);

const PAGE: u64 = 0xfee0_0000;
const ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const BOOT: u64 = 1 << 8;
/// Registers of the page.
const VERSION: u64 = 0x30;
const TASK_PRIORITY: u64 = 0x80;
const LOGICAL: u64 = 0xd0;
const SPURIOUS: u64 = 0xf0;
const LVT_TIMER: u64 = 0x320;
const SOFTWARE_ENABLED: u64 = 1 << 8;

fn apic_modes() {
    if !apic::has_x2apic() {
        return tap::skip("everything", "there is no x2APIC mode");
    }
    tap::check(base() == PAGE | ENABLED | BOOT, "it starts in xAPIC mode");
    xapic();
    x2apic();
    off();
    back();
}

fn xapic() {
    tap::check(read(VERSION) & 0xff >= 0x10 && read(VERSION) >> 16 & 0xff >= 5, "the page shows a version");
    write(TASK_PRIORITY, 0x25);
    tap::check(read(TASK_PRIORITY) == 0x25, "the page keeps a task priority");
    write(LOGICAL, 0x1234_5678);
    tap::check(read(LOGICAL) == 0x1200_0000, "the logical ID has eight bits");
    tap::check(faults(|| cpu::read_msr(0x802)), "no register is an MSR");
    tap::check(faults(|| set(0x808, 0)), "nor to be written");
    for (value, name) in [
        (PAGE | X2APIC | BOOT, "x2APIC mode without the APIC is refused"),
        (PAGE | ENABLED | BOOT | 1 << 9, "a reserved bit is refused"),
        (PAGE | ENABLED | BOOT | 1, "the lowest is"),
        (PAGE | ENABLED | BOOT | 1 << 63, "an address beyond memory's width is"),
    ] {
        tap::check(faults(|| set(cpu::msr::APIC_BASE, value)), name);
    }
    tap::check(base() == PAGE | ENABLED | BOOT, "and nothing has changed");
}

fn x2apic() {
    set(cpu::msr::APIC_BASE, PAGE | ENABLED | X2APIC | BOOT);
    tap::check(cpu::read_msr(0x808) == 0x25, "x2APIC mode keeps the task priority");
    tap::check(cpu::read_msr(0x80d) == 1, "the logical ID follows from the ID");
    tap::check(cpu::read_msr(0x802) == u64::from(cpu::cpuid(0xb, 0).edx), "the ID is CPUID's");
    for (index, name) in
        [(0x80b, "EOI"), (0x80e, "the destination format"), (0x831, "the command's upper half"), (0x83f, "self-IPI")]
    {
        tap::check(faults(|| cpu::read_msr(index)), name);
    }
    for index in [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x839, 0x840, 0x8ff] {
        tap::check(faults(|| set(index, 0)), "what is read-only, or nothing, is not written");
    }
    for (index, value) in
        [(0x808, 0x100), (0x80b, 1), (0x80f, 1 << 20), (0x828, 1), (0x832, 1 << 31), (0x838, 1 << 32), (0x83f, 0x100)]
    {
        tap::check(faults(|| set(index, value)), "reserved bits are refused");
    }
    tap::check(faults(|| set(0x830, 1 << 20)), "the command's too");
    tap::check(faults(|| set(cpu::msr::APIC_BASE, PAGE | ENABLED | BOOT)), "there is no way back to xAPIC mode");
    tap::check(faults(|| set(cpu::msr::APIC_BASE, PAGE | X2APIC | BOOT)), "nor off but at once");
    set(0x80f, SOFTWARE_ENABLED | 0xff);
}

fn off() {
    set(cpu::msr::APIC_BASE, PAGE | BOOT);
    tap::check(base() == PAGE | BOOT, "it can be disabled");
    tap::check(cpu::cpuid(1, 0).edx & 1 << 9 == 0, "CPUID then shows none");
    tap::check(faults(|| cpu::read_msr(0x808)), "no register is an MSR then");
    tap::check(faults(|| set(cpu::msr::APIC_BASE, PAGE | ENABLED | X2APIC | BOOT)), "x2APIC mode is two steps away");
}

fn back() {
    set(cpu::msr::APIC_BASE, PAGE | ENABLED | BOOT);
    tap::check(cpu::cpuid(1, 0).edx & 1 << 9 != 0, "CPUID shows it again");
    tap::check(read(SPURIOUS) & SOFTWARE_ENABLED == 0, "it is as after reset");
    tap::check(read(TASK_PRIORITY) == 0 && read(LVT_TIMER) & 1 << 16 != 0, "its registers too");
    write(LVT_TIMER, 0x31);
    tap::check(read(LVT_TIMER) & 1 << 16 != 0, "disabled by software, it masks every entry");
    write(SPURIOUS, SOFTWARE_ENABLED | 0xff);
    write(LVT_TIMER, 0x31);
    tap::check(read(LVT_TIMER) == 0x31, "enabled, it does not");
    write(SPURIOUS, 0xff);
    tap::check(read(LVT_TIMER) & 1 << 16 != 0, "disabling it masks them");
    // The page can lie elsewhere.
    set(cpu::msr::APIC_BASE, (PAGE + 0x1_0000) | ENABLED | BOOT);
    // SAFETY: the page is where it was put.
    let moved = unsafe { mmio::read(PAGE + 0x1_0000 + SPURIOUS, 4) };
    set(cpu::msr::APIC_BASE, PAGE | ENABLED | BOOT);
    tap::check(moved & 0xff == 0xff && moved & SOFTWARE_ENABLED == 0, "the page is where it was put");
}

fn base() -> u64 {
    cpu::read_msr(cpu::msr::APIC_BASE)
}

fn set(index: u32, value: u64) {
    // SAFETY: registers of the local APIC, which sends nothing here.
    unsafe { cpu::write_msr(index, value) }
}

fn read(register: u64) -> u64 {
    // SAFETY: the local APIC's page.
    unsafe { mmio::read(PAGE + register, 4) }
}

fn write(register: u64, value: u64) {
    // SAFETY: as `read`; nothing is sent.
    unsafe { mmio::write(PAGE + register, 4, value) }
}

fn faults<T>(mut action: impl FnMut() -> T) -> bool {
    catch(|| drop(action())).is_some_and(|fault| fault.vector == PROTECTION && fault.error_code == 0)
}
