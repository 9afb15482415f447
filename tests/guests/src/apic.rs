//! The local APIC, in x2APIC mode where the processor has it, else through its page (Intel SDM volume 3, chapter 12).

use crate::interrupts::SPURIOUS_VECTOR;
use crate::{cpu, mmio};
use core::sync::atomic::{AtomicBool, Ordering};

/// Registers, by their x2APIC number; times 16 they are offsets in the page.
pub mod register {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const ID: u32 = 0x02;
    pub const TASK_PRIORITY: u32 = 0x08;
    pub const EOI: u32 = 0x0b;
    pub const SPURIOUS: u32 = 0x0f;
    pub const COMMAND: u32 = 0x30;
    pub const COMMAND_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_LINT0: u32 = 0x35;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
}

/// In an LVT entry: no interrupt from here.
pub const MASKED: u32 = 1 << 16;
/// In the timer's LVT entry: the TSC-deadline mode.
pub const TSC_DEADLINE_MODE: u32 = 2 << 17;
/// In an LVT entry: the vector comes from the PICs.
pub const EXTERNAL: u32 = 7 << 8;

const PAGE: u64 = 0xfee0_0000;
static X2APIC: AtomicBool = AtomicBool::new(false);

/// Whether the processor has x2APIC mode.
pub fn has_x2apic() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 21 != 0
}

/// Whether the timer has the TSC-deadline mode.
pub fn has_tsc_deadline() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 24 != 0
}

/// Enables the APIC, with the spurious vector [`SPURIOUS_VECTOR`] and every priority let through.
pub fn start() {
    const ENABLE: u64 = 1 << 11;
    const ENABLE_X2APIC: u64 = 1 << 10;
    const SOFTWARE_ENABLE: u32 = 1 << 8;
    let x2apic = has_x2apic();
    let base = cpu::read_msr(cpu::msr::APIC_BASE) | ENABLE;
    // SAFETY: the APIC stays where it is; its mode changes nothing in memory.
    unsafe { cpu::write_msr(cpu::msr::APIC_BASE, if x2apic { base | ENABLE_X2APIC } else { base }) };
    X2APIC.store(x2apic, Ordering::Relaxed);
    write(register::SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
    write(register::TASK_PRIORITY, 0);
}

/// Reads a register.
pub fn read(register: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        return cpu::read_msr(0x800 + register) as u32;
    }
    // SAFETY: the APIC's page, which is no memory.
    unsafe { mmio::read(PAGE + u64::from(register) * 16, 4) as u32 }
}

/// Writes a register.
pub fn write(register: u32, value: u32) {
    // SAFETY: the APIC touches no memory, and what it sends is handled.
    unsafe {
        if X2APIC.load(Ordering::Relaxed) {
            cpu::write_msr(0x800 + register, u64::from(value));
        } else {
            mmio::write(PAGE + u64::from(register) * 16, 4, u64::from(value));
        }
    }
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    let raw = read(register::ID);
    if X2APIC.load(Ordering::Relaxed) { raw } else { raw >> 24 }
}

/// Sends `vector` to the CPU with this APIC id.
pub fn send(vector: u8, to: u32) {
    command(ASSERT | u32::from(vector), to);
}

/// Sends `vector` to every CPU but this one.
pub fn send_to_others(vector: u8) {
    command(OTHERS | ASSERT | u32::from(vector), 0);
}

/// Sends `vector` to a set of CPUs in x2APIC mode: a cluster in the upper half, a bit for each member in the lower one.
pub fn send_logical(vector: u8, set: u32) {
    const LOGICAL: u32 = 1 << 11;
    command(LOGICAL | ASSERT | u32::from(vector), set);
}

/// Sends an NMI to the CPU with this APIC id.
pub fn send_nmi(to: u32) {
    const NMI: u32 = 4 << 8;
    command(NMI | ASSERT, to);
}

/// Sends INIT to the CPU with this APIC id, or to all others.
pub fn send_init(to: Option<u32>) {
    const INIT: u32 = 5 << 8;
    command(INIT | ASSERT | shorthand(to), to.unwrap_or(0));
}

/// Sends a start-up message with this page to the CPU with this APIC id, or to all others.
pub fn send_startup(page: u8, to: Option<u32>) {
    const STARTUP: u32 = 6 << 8;
    command(STARTUP | ASSERT | shorthand(to) | u32::from(page), to.unwrap_or(0));
}

const ASSERT: u32 = 1 << 14;
const OTHERS: u32 = 3 << 18;

fn shorthand(to: Option<u32>) -> u32 {
    if to.is_some() { 0 } else { OTHERS }
}

fn command(command: u32, to: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: vectors are handled, and what the other modes do happens to other CPUs.
        unsafe { cpu::write_msr(0x800 + register::COMMAND, u64::from(to) << 32 | u64::from(command)) };
    } else {
        write(register::COMMAND_HIGH, to << 24);
        write(register::COMMAND, command);
    }
}

/// Sends `vector` to this CPU by the self shorthand.
pub fn send_to_self(vector: u8) {
    const SELF: u32 = 1 << 18;
    write(register::COMMAND, SELF | ASSERT | u32::from(vector));
}

/// Ends the interrupt in service.
pub fn acknowledge() {
    write(register::EOI, 0);
}
