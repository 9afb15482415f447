//! Checks five levels of page tables: data, code, devices and string I/O at addresses of 57 bits, what is not canonical, and
//! registers that hold such addresses.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and memory is reached by other addresses")]

use core::arch::asm;
use guests::interrupts::{Fault, PAGE_FAULT, PROTECTION, catch};
use guests::legacy_modes::{self, Mode};
use guests::levels::{self, ALIAS, LA57};
use guests::snippet::{self, Registers};
use guests::{boot, cpu, guest, mmio, tap};

guest!(la57);

/// Reads as ones.
const NOBODY: u64 = 0xe5e0;
const IOAPIC: u64 = 0xfec0_0000;
/// Behind [`ALIAS`], where the fifth level has no entry.
const NOWHERE: u64 = 3 << 48;
/// Canonical with 57 bits.
const HIGH: u64 = 0xff00_1234_5678_9000;
/// Not canonical with 57 bits either.
const NOT_CANONICAL: u64 = 1 << 56;
const FS_BASE: u32 = 0xc000_0100;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const LSTAR: u32 = 0xc000_0082;
const SYSENTER_EIP: u32 = 0x176;
const INSB: &[u8] = &[0x6c];

fn la57() {
    let bits = cpu::cpuid(0x8000_0008, 0).eax >> 8 & 0xff;
    if cpu::cpuid(7, 0).ecx & 1 << 16 == 0 {
        tap::check(bits == 48, "CPUID tells of 48 bits");
        return withheld();
    }
    tap::check(bits == 57, "CPUID tells of 57 bits");
    tap::check(is(load(ALIAS), PROTECTION), "with four levels a load from 1 << 48 raises #GP");
    levels::set(true);
    tap::check(cr4() & LA57 != 0, "CR4.LA57 is set outside long mode");
    accesses();
    emulated();
    registers();
    levels::set(false);
    tap::check(cr4() & LA57 == 0, "and cleared there");
    tap::check(is(load(ALIAS), PROTECTION), "four levels are as before");
}

/// What the processor does by itself.
fn accesses() {
    let free = boot::free_memory().0;
    // SAFETY: free memory, by both of its addresses.
    let same = unsafe {
        mmio::write(free, 8, 0x1234_5678_9abc_def0);
        mmio::read(ALIAS + free, 8) == 0x1234_5678_9abc_def0
    };
    tap::check(same, "memory by an address of 57 bits");
    let missing = load(NOWHERE);
    tap::check(missing.is_some_and(|fault| fault.address == NOWHERE) && is(missing, PAGE_FAULT), "none is a #PF");
    tap::check(is(load(NOT_CANONICAL), PROTECTION), "1 << 56 is not canonical");
}

/// What exits, and is carried out with the guest's own tables.
fn emulated() {
    // SAFETY: the register select of the I/O APIC, which nobody uses.
    let selected = unsafe {
        mmio::write(ALIAS + IOAPIC, 4, 0x21);
        mmio::read(IOAPIC, 4) == 0x21 && mmio::read(ALIAS + IOAPIC, 4) == 0x21
    };
    tap::check(selected, "a device by an address of 57 bits");
    let free = boot::free_memory().0;
    // SAFETY: free memory.
    unsafe { mmio::write(free, 8, 0) };
    let into = Registers { rdx: NOBODY, rdi: ALIAS + free, ..Registers::default() };
    let (fault, after) = run(INSB, into);
    // SAFETY: as above.
    let written = unsafe { mmio::read(free, 8) };
    tap::check(fault.is_none() && after.rdi == ALIAS + free + 1 && written == 0xff, "INS to an address of 57 bits");
    let (fault, _) = run(INSB, Registers { rdi: NOWHERE, ..into });
    let told = fault.is_some_and(|fault| (fault.error_code, fault.address) == (0b10, NOWHERE));
    tap::check(is(fault, PAGE_FAULT) && told, "INS to none is a #PF");
    for far in [NOT_CANONICAL, 1 << 63] {
        let (fault, _) = run(INSB, Registers { rdi: far, ..into });
        tap::check(is(fault, PROTECTION), "INS to what is not canonical raises #GP");
    }
    let code = ALIAS + identify as *const () as u64;
    let highest: u64;
    // SAFETY: the function's other address; it keeps to the C convention.
    unsafe { asm!("call {}", in(reg) code, lateout("rax") highest, clobber_abi("C")) };
    tap::check(highest as u32 == cpu::cpuid(0, 0).eax, "code at an address of 57 bits exits and goes on");
}

/// Registers take addresses of 57 bits, and keep them over an exit.
fn registers() {
    let indices = [FS_BASE, KERNEL_GS_BASE, LSTAR, SYSENTER_EIP];
    let before = indices.map(cpu::read_msr);
    for (index, name) in indices.into_iter().zip(["FS.base", "KernelGSbase", "LSTAR", "SYSENTER_EIP"]) {
        // SAFETY: this program uses none of them.
        let taken = catch(|| unsafe { cpu::write_msr(index, HIGH) }).is_none();
        cpu::cpuid(0, 0);
        tap::check(taken && cpu::read_msr(index) == HIGH, name);
    }
    for (index, value) in indices.into_iter().zip(before) {
        // SAFETY: as it was.
        unsafe { cpu::write_msr(index, value) };
    }
    if cpu::cpuid(0, 0).ebx == u32::from_le_bytes(*b"Auth") {
        return tap::skip("LA57 stays as it is in long mode", "QEMU's processors do not refuse it");
    }
    // SAFETY: it is refused.
    let clear = catch(|| unsafe { asm!("mov cr4, {}", in(reg) cr4() & !LA57, options(nostack)) });
    tap::check(is(clear, PROTECTION), "LA57 stays as it is in long mode");
}

/// Where CPUID does not name it, CR4 does not take it. QEMU's processors do, where no exit comes before they look.
fn withheld() {
    // MOV EAX, CR4; BTS EAX, 12; MOV CR4, EAX.
    const SET: &[u8] = &[0x0f, 0x20, 0xe0, 0x0f, 0xba, 0xe8, 12, 0x0f, 0x22, 0xe0];
    if boot::number("strict").is_none() {
        return tap::skip("LA57", "the processor has none");
    }
    legacy_modes::start();
    // SAFETY: it is refused.
    let fault = unsafe { legacy_modes::run(Mode::Protected32, SET, &mut legacy_modes::Registers::default()) };
    tap::check(fault.is_some_and(|fault| (fault.vector, fault.offset) == (13, 7)), "CR4 refuses LA57");
}

/// CPUID's leaf 0, EAX.
#[unsafe(naked)]
extern "C" fn identify() {
    core::arch::naked_asm!("push rbx", "xor eax, eax", "xor ecx, ecx", "cpuid", "pop rbx", "ret")
}

fn load(address: u64) -> Option<Fault> {
    // SAFETY: it only reads, or faults.
    catch(|| unsafe {
        mmio::read(address, 8);
    })
}

fn run(code: &[u8], mut registers: Registers) -> (Option<Fault>, Registers) {
    // SAFETY: free memory is written, or nothing.
    let (_, fault) = unsafe { snippet::run(code, &mut registers) };
    (fault, registers)
}

fn is(fault: Option<Fault>, vector: u8) -> bool {
    fault.is_some_and(|fault| fault.vector == vector)
}

fn cr4() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
