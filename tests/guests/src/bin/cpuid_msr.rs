//! Checks that CPUID, MSRs, ports and faults are as hardware has them.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and instructions are provoked to fault")]

use core::arch::asm;
use guests::interrupts::{PAGE_FAULT, PROTECTION, UNDEFINED, catch};
use guests::{apic, cpu, guest, mmio, println, tap};

guest!(cpuid_msr);

/// A number that no processor and no hypervisor uses.
const UNKNOWN_MSR: u32 = 0x1234_5678;
/// Inside the PCI window of ports, where no BAR is.
const UNKNOWN_PORT: u16 = 0xe5e0;

fn cpuid_msr() {
    identity();
    hypervisor();
    msrs();
    ports();
    faults();
    time();
}

fn identity() {
    let leaf = cpu::cpuid(0, 0);
    let mut vendor = [0; 12];
    for (part, register) in vendor.chunks_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    println!("# vendor {:?}, leaves to {:#x}", str::from_utf8(&vendor), leaf.eax);
    tap::check(vendor.iter().all(u8::is_ascii_alphanumeric), "CPUID 0 names a vendor");
    tap::check(leaf.eax >= 1, "CPUID 0 counts its leaves");
    let features = cpu::cpuid(1, 0);
    // FPU, TSC, MSR, PAE, CX8, APIC, CMOV, FXSR, SSE, SSE2.
    let required = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26;
    tap::check(features.edx & required == required, "CPUID 1 has what 64-bit mode implies");
    let extended = cpu::cpuid(0x8000_0000, 0).eax;
    tap::check((0x8000_0001..0x8000_0100).contains(&extended), "CPUID 0x80000000 counts its leaves");
    tap::check(cpu::cpuid(0x8000_0001, 0).edx & 1 << 29 != 0, "CPUID 0x80000001 has long mode");
    let widths = cpu::cpuid(0x8000_0008, 0).eax;
    tap::check((36..=52).contains(&(widths & 0xff)), "CPUID 0x80000008 has a physical address width");
    tap::check(features.ebx >> 24 == apic_id(), "CPUID 1 and the local APIC agree on the APIC id");
}

fn apic_id() -> u32 {
    apic::start();
    apic::id()
}

fn hypervisor() {
    let name = "CPUID 0x40000000 has a signature and its leaves";
    if cpu::cpuid(1, 0).ecx & 1 << 31 == 0 {
        return tap::skip(name, "no hypervisor bit");
    }
    let leaf = cpu::cpuid(0x4000_0000, 0);
    let mut signature = [0; 12];
    for (part, register) in signature.chunks_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    println!("# hypervisor {:?}, leaves to {:#x}", str::from_utf8(&signature), leaf.eax);
    tap::check(signature[0].is_ascii_graphic() && (0x4000_0000..0x4001_0000).contains(&leaf.eax), name);
}

fn faults_with(vector: u8, action: impl FnMut()) -> bool {
    catch(action).is_some_and(|fault| fault.vector == vector)
}

fn msrs() {
    tap::check(
        faults_with(PROTECTION, || {
            cpu::read_msr(UNKNOWN_MSR);
        }),
        "RDMSR of an unknown register raises #GP",
    );
    let write = |index, value| {
        // SAFETY: either it faults, or the value was there before or names no state of the program's.
        move || unsafe { cpu::write_msr(index, value) }
    };
    tap::check(faults_with(PROTECTION, write(UNKNOWN_MSR, 0)), "WRMSR of an unknown register raises #GP");
    let efer = cpu::read_msr(cpu::msr::EFER);
    tap::check(efer & 0x500 == 0x500, "EFER has LME and LMA");
    tap::check(catch(write(cpu::msr::EFER, efer)).is_none(), "EFER takes what it holds");
    tap::check(faults_with(PROTECTION, write(cpu::msr::EFER, efer | 1 << 63)), "EFER refuses reserved bits");
    if cpu::cpuid(0x8000_0001, 0).ecx & 1 << 2 == 0 {
        tap::check(faults_with(PROTECTION, write(cpu::msr::EFER, efer | 1 << 12)), "EFER refuses SVME without SVM");
    } else {
        tap::skip("EFER refuses SVME without SVM", "the processor has SVM");
    }
    let base = cpu::read_msr(cpu::msr::APIC_BASE);
    tap::check(base & 1 << 8 != 0 && base & !0xfff == 0xfee0_0000, "APIC_BASE: the boot processor, where it should be");
}

fn ports() {
    tap::check(cpu::in8(UNKNOWN_PORT) == u8::MAX, "an unknown port reads as ones: 1 byte");
    tap::check(cpu::in16(UNKNOWN_PORT) == u16::MAX, "an unknown port reads as ones: 2 bytes");
    tap::check(cpu::in32(UNKNOWN_PORT) == u32::MAX, "an unknown port reads as ones: 4 bytes");
    cpu::out32(UNKNOWN_PORT, 0);
    tap::check(cpu::in32(UNKNOWN_PORT) == u32::MAX, "an unknown port forgets what is written");
}

fn faults() {
    // SAFETY: the faults come back through `catch`; nothing is changed.
    tap::check(faults_with(UNDEFINED, || unsafe { asm!("ud2") }), "UD2 raises #UD");
    const UNMAPPED: u64 = 1 << 33;
    let fault = catch(|| {
        // SAFETY: nothing is mapped there.
        unsafe { mmio::read(UNMAPPED, 8) };
    });
    tap::check(
        fault.is_some_and(|fault| (fault.vector, fault.error_code, fault.address) == (PAGE_FAULT, 0, UNMAPPED)),
        "a load from an unmapped page raises #PF with its address",
    );
    // SAFETY: as above; the address is not canonical.
    let load = || unsafe { asm!("mov {0}, [{0}]", inout(reg) 1u64 << 63 => _) };
    tap::check(faults_with(PROTECTION, load), "a load from an address that is not canonical raises #GP");
}

fn time() {
    let mut last = cpu::tsc();
    let is_monotonic = (0..100_000).all(|_| {
        let now = cpu::tsc();
        let is_later = now >= last;
        last = now;
        is_later
    });
    tap::check(is_monotonic, "the time-stamp counter never goes back");
}
