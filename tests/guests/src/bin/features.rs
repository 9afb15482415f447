//! Checks that a feature which CPUID names works, and that one which it does not name is refused: the bits of CR4, and
//! what they bring (FSGSBASE, PCID and INVPCID, SMEP, SMAP, protection keys); XCR0 and XSAVES; and MSRs that set memory types.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and control registers are written")]

use core::arch::asm;
use guests::interrupts::{Fault, PAGE_FAULT, PROTECTION, UNDEFINED, catch};
use guests::paging::{self, WINDOW, entry};
use guests::snippet::{self, Registers};
use guests::{boot, cpu, guest, tap};

guest!(features);

/// Bits of CR4 (SDM volume 3, 2.5).
mod cr4 {
    pub const UMIP: u32 = 11;
    pub const LA57: u32 = 12;
    pub const FSGSBASE: u32 = 16;
    pub const PCIDE: u32 = 17;
    pub const OSXSAVE: u32 = 18;
    pub const SMEP: u32 = 20;
    pub const SMAP: u32 = 21;
    pub const PKE: u32 = 22;
}

/// Each with the leaf of CPUID, the register and the bit that name it.
const FEATURES: [(u32, u32, Register, u32, &str); 7] = [
    (cr4::UMIP, 7, Register::Ecx, 2, "UMIP"),
    (cr4::FSGSBASE, 7, Register::Ebx, 0, "FSGSBASE"),
    (cr4::PCIDE, 1, Register::Ecx, 17, "PCIDE"),
    (cr4::OSXSAVE, 1, Register::Ecx, 26, "OSXSAVE"),
    (cr4::SMEP, 7, Register::Ebx, 7, "SMEP"),
    (cr4::SMAP, 7, Register::Ebx, 20, "SMAP"),
    (cr4::PKE, 7, Register::Ecx, 3, "PKE"),
];
const IA32_PAT: u32 = 0x277;
const MTRR_CAP: u32 = 0xfe;
const MTRR_DEFAULT: u32 = 0x2ff;
const MTRR_MASK_0: u32 = 0x201;
const MTRR_FIXED_64K: u32 = 0x250;
const XSS: u32 = 0xda0;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const LSTAR: u32 = 0xc000_0082;
const NOT_CANONICAL: u64 = 1 << 63;
/// A port that reads as ones.
const NOBODY: u64 = 0xe5e0;
const INSB: &[u8] = &[0x6c];
const OUTSB: &[u8] = &[0x6e];
/// In an entry of the page tables: the protection key 1.
const KEY_1: u64 = 1 << 59;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    Ebx,
    Ecx,
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Two pages that differ; the first begins with RET.
static FIRST: Page = Page([0xc3; 4096]);
static SECOND: Page = Page([0x90; 4096]);

fn features() {
    paging::start();
    bits();
    fsgsbase();
    pcid();
    users();
    keys();
    xcr0();
    xsaves();
    efer();
    memory_types();
    addresses();
}

fn named(leaf: u32, register: Register, bit: u32) -> bool {
    let leaf = cpu::cpuid(leaf, 0);
    let value = if register == Register::Ebx { leaf.ebx } else { leaf.ecx };
    value & 1 << bit != 0
}

fn has(bit: u32) -> bool {
    FEATURES.iter().any(|&(of, leaf, register, named_by, _)| of == bit && named(leaf, register, named_by))
}

fn cr4() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

fn set_cr4(value: u64) -> Option<Fault> {
    // SAFETY: the program's own memory is for supervisors and mapped in the same way under every bit that is set here.
    catch(|| unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) })
}

/// Does something with a bit of CR4 set that CPUID names.
fn with(bit: u32, action: impl FnOnce()) {
    let before = cr4();
    let set = set_cr4(before | 1 << bit).is_none();
    action();
    tap::check(set && set_cr4(before).is_none(), "CR4 takes the bit, and what it held before");
}

fn is(fault: Option<Fault>, vector: u8) -> bool {
    fault.is_some_and(|fault| fault.vector == vector)
}

fn bits() {
    let before = cr4();
    for (bit, _, _, _, name) in FEATURES {
        if has(bit) {
            let taken = set_cr4(before | 1 << bit).is_none() && cr4() & 1 << bit != 0;
            tap::check(set_cr4(before).is_none() && taken, name);
        } else {
            refused(before, bit, name);
        }
    }
    for reserved in [15, 31, 32, 63] {
        refused(before, reserved, "a reserved bit of CR4");
    }
    refused(before, cr4::LA57, "LA57 does not change in long mode");
    if has(cr4::OSXSAVE) {
        let shown = [before | 1 << cr4::OSXSAVE, before & !(1 << cr4::OSXSAVE)].map(|value| {
            set_cr4(value);
            named(1, Register::Ecx, 27)
        });
        set_cr4(before);
        tap::check(shown == [true, false], "CPUID shows CR4.OSXSAVE");
    }
}

/// QEMU's processors take a bit that they have not for an exit from a guest, whether they run one or not. Where a profile
/// withholds one that they have, as `strict` on the command line says, every write exits before they look.
fn refused(before: u64, bit: u32, name: &str) {
    if boot::number("strict").is_none() && is_lax(name) {
        return;
    }
    tap::check(is(set_cr4(before | 1 << bit), PROTECTION) && cr4() == before, name);
}

/// Whether a check does not apply, since QEMU's AMD processors do not carry out what they should; says so then.
fn is_lax(name: &str) -> bool {
    let lax = cpu::cpuid(0, 0).ebx == u32::from_le_bytes(*b"Auth");
    if lax {
        tap::skip(name, "QEMU's processors do not refuse it");
    }
    lax
}

fn fsgsbase() {
    let mut read = 0_u64;
    // SAFETY: this program uses neither segment.
    let fault = catch(|| unsafe { asm!("rdfsbase {}", out(reg) read, options(nomem, nostack, preserves_flags)) });
    tap::check(is(fault, UNDEFINED), "RDFSBASE without CR4.FSGSBASE");
    if !has(cr4::FSGSBASE) {
        return tap::skip("FSGSBASE", "the processor has none");
    }
    with(cr4::FSGSBASE, || {
        // SAFETY: as above.
        let write = |value: u64| catch(|| unsafe { asm!("wrfsbase {}", in(reg) value, options(nostack)) });
        let wrote = write(0x7fff_1234_5678).is_none();
        // SAFETY: as above.
        unsafe { asm!("rdfsbase {}", out(reg) read, options(nomem, nostack, preserves_flags)) };
        let all = wrote && read == 0x7fff_1234_5678 && cpu::read_msr(FS_BASE) == read;
        tap::check(all, "WRFSBASE, RDFSBASE and the MSR are one");
        let name = "WRFSBASE of an address that is not canonical";
        if !is_lax(name) {
            tap::check(is(write(NOT_CANONICAL), PROTECTION), name);
        }
    });
}

fn set_cr3(value: u64) -> Option<Fault> {
    // SAFETY: callers change the PCID alone.
    catch(|| unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) })
}

fn cr3() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

fn invpcid(kind: u64, pcid: u64, address: u64) -> Option<Fault> {
    let descriptor = [pcid, address];
    // SAFETY: it forgets translations, which the tables still hold.
    catch(|| unsafe { asm!("invpcid {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack, preserves_flags)) })
}

fn touch() -> Option<Fault> {
    catch(|| {
        seen();
    })
}

fn seen() -> u8 {
    // SAFETY: a page of the window that callers have mapped.
    unsafe { (WINDOW as *const u8).read_volatile() }
}

fn pcid() {
    let has_invpcid = named(7, Register::Ebx, 10);
    if !has_invpcid {
        tap::check(is(invpcid(2, 0, 0), UNDEFINED), "INVPCID without the feature");
    }
    if !has(cr4::PCIDE) {
        return tap::skip("PCID", "the processor has none");
    }
    let (root, before) = (cr3(), cr4());
    // What is bit 3 of the PCID is PWT without PCIDE.
    set_cr3(root | 8);
    tap::check(is(set_cr4(before | 1 << cr4::PCIDE), PROTECTION), "PCIDE with a PCID in CR3");
    set_cr3(root);
    with(cr4::PCIDE, || {
        paging::map(0, &raw const FIRST as u64 | entry::PRESENT);
        tap::check(set_cr3(root | 5).is_none() && cr3() == root | 5 && seen() == 0xc3, "CR3 takes a PCID");
        let kept = set_cr3(root | 6 | 1 << 63).is_none() && cr3() == root | 6;
        tap::check(kept, "bit 63 of CR3 is not kept");
        paging::map(0, &raw const SECOND as u64 | entry::PRESENT);
        tap::check(seen() == 0x90, "another PCID sees the page that it has");
        if has_invpcid {
            invalidations(root);
        }
        set_cr3(root);
    });
    tap::check(is(set_cr3(root | 1 << 62), PROTECTION), "a reserved bit of CR3");
    paging::map(0, 0);
}

fn invalidations(root: u64) {
    let forgot = invpcid(1, 5, 0).is_none() && set_cr3(root | 5 | 1 << 63).is_none();
    tap::check(forgot && seen() == 0x90, "INVPCID forgets another PCID");
    paging::map(0, &raw const FIRST as u64 | entry::PRESENT);
    set_cr3(root | 6 | 1 << 63);
    let forgot = invpcid(0, 6, WINDOW).is_none() && seen() == 0xc3;
    tap::check(forgot, "INVPCID forgets a page");
    tap::check((2..4).all(|kind| invpcid(kind, 0, 0).is_none()), "INVPCID forgets everything");
    tap::check(is(invpcid(4, 0, 0), PROTECTION), "INVPCID of an unknown kind");
    tap::check(is(invpcid(1, 1 << 12, 0), PROTECTION), "INVPCID of a PCID of 13 bits");
    tap::check(is(invpcid(0, 5, NOT_CANONICAL), PROTECTION), "INVPCID of an address that is not canonical");
}

/// A page of users, which the supervisor that this program is may not run, nor touch.
fn users() {
    paging::map(0, &raw const FIRST as u64 | entry::PRESENT | entry::USER);
    // SAFETY: the page holds RET.
    let run = || catch(|| unsafe { asm!("call {}", in(reg) WINDOW) });
    tap::check(run().is_none() && touch().is_none(), "a page of users, without SMEP and SMAP");
    if has(cr4::SMEP) {
        // Present, an instruction.
        with(cr4::SMEP, || tap::check(is_page_fault(run(), 0x11), "SMEP"));
    }
    if has(cr4::SMAP) {
        with(cr4::SMAP, || {
            tap::check(is_page_fault(touch(), 0x1), "SMAP");
            // SAFETY: AC does nothing but let the supervisor touch pages of users.
            let allowed = catch(|| unsafe {
                asm!("stac", options(nostack));
                seen();
                asm!("clac", options(nostack));
            });
            tap::check(allowed.is_none(), "SMAP lets through what STAC allows");
        });
    }
    paging::map(0, 0);
}

fn is_page_fault(fault: Option<Fault>, error: u64) -> bool {
    fault.is_some_and(|fault| (fault.vector, fault.error_code, fault.address) == (PAGE_FAULT, error, WINDOW))
}

fn wrpkru(value: u32, ecx: u32) -> Option<Fault> {
    // SAFETY: the program's own pages are no user's, which have no key.
    catch(|| unsafe { asm!("wrpkru", in("eax") value, in("ecx") ecx, in("edx") 0, options(nostack)) })
}

/// PKRU, or the fault.
fn rdpkru(ecx: u32) -> Result<u32, Fault> {
    let mut value = 0;
    // SAFETY: it reads, or faults.
    let fault = catch(|| unsafe {
        asm!("rdpkru", in("ecx") ecx, out("eax") value, out("edx") _, options(nomem, nostack, preserves_flags));
    });
    fault.map_or(Ok(value), Err)
}

/// INS or OUTS at the window, which a hypervisor carries out.
fn string_io(code: &[u8]) -> Option<Fault> {
    let mut registers = Registers { rdx: NOBODY, rsi: WINDOW, rdi: WINDOW, ..Registers::default() };
    // SAFETY: callers map no page there that may be written.
    unsafe { snippet::run(code, &mut registers) }.1
}

fn keys() {
    tap::check(is(wrpkru(0, 0), UNDEFINED), "WRPKRU without CR4.PKE");
    tap::check(is(rdpkru(0).err(), UNDEFINED), "and RDPKRU");
    if !has(cr4::PKE) {
        return tap::skip("protection keys", "the processor has none");
    }
    paging::map(0, &raw const FIRST as u64 | entry::PRESENT | entry::USER | KEY_1);
    with(cr4::PKE, || {
        tap::check(named(7, Register::Ecx, 4), "CPUID shows CR4.PKE");
        tap::check(wrpkru(0b0100, 0).is_none(), "WRPKRU");
        // Present, a key.
        tap::check(is_page_fault(touch(), 0x21), "a key that denies access");
        // A write too.
        tap::check(is_page_fault(string_io(INSB), 0x23), "INS obeys it");
        tap::check(is_page_fault(string_io(OUTSB), 0x21), "OUTS obeys it");
        tap::check(rdpkru(0).is_ok_and(|value| value == 0b0100), "RDPKRU, after exits");
        tap::check(wrpkru(0b1000, 0).is_none() && touch().is_none(), "one that denies writing");
        paging::set_write_protect(true);
        tap::check(is_page_fault(string_io(INSB), 0x23), "INS obeys it");
        paging::set_write_protect(false);
        tap::check(string_io(OUTSB).is_none(), "OUTS does not write");
        tap::check(is(wrpkru(0, 1), PROTECTION), "WRPKRU with ECX");
        tap::check(is(rdpkru(1).err(), PROTECTION), "RDPKRU with ECX");
        wrpkru(0, 0);
    });
    paging::map(0, 0);
}

fn xsetbv(index: u32, value: u64) -> Option<Fault> {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: this program uses no register of any component.
    catch(|| unsafe { asm!("xsetbv", in("ecx") index, in("eax") low, in("edx") high, options(nostack)) })
}

fn xcr0() {
    if !has(cr4::OSXSAVE) {
        return tap::skip("XCR0", "the processor has none");
    }
    tap::check(is(xsetbv(0, 1), UNDEFINED), "XSETBV without CR4.OSXSAVE");
    with(cr4::OSXSAVE, || {
        let named = u64::from(cpu::cpuid(0xd, 0).eax) | u64::from(cpu::cpuid(0xd, 0).edx) << 32;
        tap::check(xsetbv(0, named).is_none(), "XCR0 takes all that CPUID names");
        let (all_bytes, most_bytes) = (cpu::cpuid(0xd, 0).ebx, cpu::cpuid(0xd, 0).ecx);
        tap::check(all_bytes == most_bytes, "CPUID counts their bytes");
        tap::check(xsetbv(0, 1).is_none() && cpu::cpuid(0xd, 0).ebx == 576, "and those of the least");
        for value in [0, 2, 1 | 1 << 2, 3 | 1 << 5, 1 | 1 << 3, 1 << 63 | 3, !named | 3] {
            tap::check(is(xsetbv(0, value), PROTECTION), "XCR0 refuses what makes no sense");
        }
        tap::check(is(xsetbv(1, 1), PROTECTION), "there is no other such register");
    });
}

/// An XSAVE area, with room for every component.
#[repr(C, align(64))]
struct Area([u8; 4096]);

impl Area {
    fn word(&self, at: usize) -> u64 {
        self.0[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

/// Components, all or x87 alone, go to an area by XSAVES and come back by XRSTORS.
fn xsaves() {
    const INSTRUCTIONS: [&str; 2] = ["IA32_XSS without XSAVES", "XSAVES without CR4.OSXSAVE"];
    if !has(cr4::OSXSAVE) || cpu::cpuid(0xd, 1).eax & 1 << 3 == 0 {
        // Other processors than a guest's may have the register and say nothing of it.
        if is_guest() {
            let read = catch(|| {
                core::hint::black_box(cpu::read_msr(XSS));
            });
            tap::check(is(read, PROTECTION) && is(write(XSS, 0), PROTECTION), INSTRUCTIONS[0]);
        }
        return tap::skip("XSAVES", "the processor has none");
    }
    let mut area = Area([0; 4096]);
    let save = |area: &mut Area, low: u32| {
        // SAFETY: the area is aligned, and has room for every component that CPUID names.
        catch(|| unsafe { asm!("xsaves64 [{}]", in(reg) area, in("eax") low, in("edx") 0, options(nostack)) })
    };
    let restore = |area: &Area| {
        // SAFETY: this program uses no register of any component.
        catch(|| unsafe { asm!("xrstors64 [{}]", in(reg) area, in("eax") 3, in("edx") 0, options(nostack)) })
    };
    tap::check(is(save(&mut area, 3), UNDEFINED), INSTRUCTIONS[1]);
    supervisor_components();
    with(cr4::OSXSAVE, || {
        tap::check(xsetbv(0, 3).is_none() && cpu::cpuid(0xd, 1).ebx == 576, "CPUID counts what XSAVES stores");
        // SAFETY: this program uses no register of the FPU.
        unsafe { asm!("fninit", "fld1", options(nostack)) };
        tap::check(save(&mut area, 3).is_none(), "XSAVES");
        tap::check(area.word(XCOMP_BV) == COMPACTED | 3, "it stores in the compacted form what was asked for");
        // SAFETY: as above.
        unsafe { asm!("fninit", options(nostack)) };
        let mut again = Area([0; 4096]);
        let both = restore(&area).is_none() && save(&mut again, 1).is_none();
        // ST(0): one.
        tap::check(both && again.word(32) == 1 << 63 && again.word(40) as u16 == 0x3fff, "XRSTORS brings it back");
        again.0[XCOMP_BV + 7] = 0;
        tap::check(is(restore(&again), PROTECTION), "XRSTORS takes no other form");
    });
}

/// Bytes of an area's header: which components are stored, and in which form.
const XCOMP_BV: usize = 520;
const COMPACTED: u64 = 1 << 63;

/// IA32_XSS takes what CPUID names, and nothing else.
fn supervisor_components() {
    let named = u64::from(cpu::cpuid(0xd, 1).ecx) | u64::from(cpu::cpuid(0xd, 1).edx) << 32;
    tap::check(cpu::read_msr(XSS) == 0, "IA32_XSS is zero at first");
    tap::check(write(XSS, named).is_none() && cpu::read_msr(XSS) == named, "it takes what CPUID names");
    write(XSS, 0);
    for bit in [0, 8, 11, 63].into_iter().filter(|bit| named & 1 << bit == 0) {
        tap::check(is(write(XSS, 1 << bit), PROTECTION) && cpu::read_msr(XSS) == 0, "and nothing else");
    }
}

fn write(index: u32, value: u64) -> Option<Fault> {
    // SAFETY: either it faults, or it changes how memory is cached that nothing else uses, or a register that this program
    // does not use.
    catch(|| unsafe { cpu::write_msr(index, value) })
}

/// The bits of EFER, each with the bit of leaf 8000_0001 EDX that names it; SVME and LMSLE are named elsewhere, and no guest
/// has them.
fn efer() {
    let before = cpu::read_msr(EFER);
    let edx = cpu::cpuid(0x8000_0001, 0).edx;
    let named = |bit: u32| edx & 1 << bit != 0;
    for (bit, is_named, name) in [
        (0, named(11), "EFER.SCE"),
        (11, named(20), "EFER.NXE"),
        (14, named(25), "EFER.FFXSR"),
        (12, false, "EFER.SVME"),
        (13, false, "EFER.LMSLE"),
        (63, false, "a reserved bit of EFER"),
    ] {
        let (with, without) = (before | 1 << bit, before & !(1 << bit));
        if is_named {
            let taken = write(EFER, with).is_none() && cpu::read_msr(EFER) == with;
            let taken = taken && write(EFER, without).is_none() && cpu::read_msr(EFER) == without;
            tap::check(taken, name);
        } else if is_guest() || !is_lax(name) {
            tap::check(is(write(EFER, with), PROTECTION) && cpu::read_msr(EFER) == before, name);
        }
        write(EFER, before);
    }
}

/// Whether something virtualises this processor: then its EFER is checked in software.
fn is_guest() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 31 != 0
}

fn memory_types() {
    let pat = cpu::read_msr(IA32_PAT);
    let other = pat & !(0xff << 56) | 1 << 56;
    tap::check(write(IA32_PAT, other).is_none() && cpu::read_msr(IA32_PAT) == other, "PAT keeps its types");
    for wrong in [2, 3, 8, 1 << 7] {
        tap::check(is(write(IA32_PAT, pat & !0xff00 | wrong << 8), PROTECTION), "PAT refuses others");
    }
    write(IA32_PAT, pat);
    if cpu::cpuid(1, 0).edx & 1 << 12 == 0 {
        return tap::skip("MTRRs", "the processor has none");
    }
    let cap = cpu::read_msr(MTRR_CAP);
    tap::check(is(write(MTRR_CAP, cap), PROTECTION), "the MTRRs' number is not written");
    let default = cpu::read_msr(MTRR_DEFAULT);
    tap::check(write(MTRR_DEFAULT, default).is_none(), "the default type takes what it holds");
    tap::check(is(write(MTRR_DEFAULT, default & !0xff | 2), PROTECTION), "and no unknown type");
    tap::check(is(write(MTRR_DEFAULT, default | 1 << 13), PROTECTION), "nor a reserved bit");
    if cap & 0xff != 0 {
        let (base, mask) = (cpu::read_msr(MTRR_MASK_0 - 1), cpu::read_msr(MTRR_MASK_0));
        let kept = write(MTRR_MASK_0 - 1, 0xf000_0001).is_none() && cpu::read_msr(MTRR_MASK_0 - 1) == 0xf000_0001;
        tap::check(kept, "a range has its base and type");
        tap::check(is(write(MTRR_MASK_0 - 1, 0xf000_0002), PROTECTION), "and no unknown type");
        tap::check(is(write(MTRR_MASK_0, mask | 1 << 63), PROTECTION), "nor addresses that there are not");
        write(MTRR_MASK_0 - 1, base);
    }
    if cap & 1 << 8 != 0 {
        let fixed = cpu::read_msr(MTRR_FIXED_64K);
        tap::check(is(write(MTRR_FIXED_64K, 2), PROTECTION), "a fixed range refuses an unknown type");
        tap::check(write(MTRR_FIXED_64K, fixed).is_none(), "and takes what it holds");
    }
}

/// Registers that hold addresses refuse those that are not canonical.
fn addresses() {
    for (index, name) in [(FS_BASE, "FS_BASE"), (KERNEL_GS_BASE, "KERNEL_GS_BASE"), (LSTAR, "LSTAR")] {
        let before = cpu::read_msr(index);
        let kept = write(index, 0xffff_8000_1234_5678).is_none() && cpu::read_msr(index) == 0xffff_8000_1234_5678;
        write(index, before);
        tap::check(kept, name);
        if !is_lax(name) {
            tap::check(is(write(index, NOT_CANONICAL), PROTECTION) && cpu::read_msr(index) == before, name);
        }
    }
}
