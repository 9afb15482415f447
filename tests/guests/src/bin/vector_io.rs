//! Checks moves between vector registers and devices: what is loaded from where nothing is, what stays and what is cleared
//! beside it, and that nothing else changes.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and registers are loaded and stored")]

use core::arch::asm;
use guests::{cpu, guest, println, tap};

guest!(vector_io);

/// Reads as ones, and takes no notice of writes.
const NOBODY: u64 = 0xd000_0000;
/// The I/O APIC's selector of a register, 32 bits wide, of which 8 count.
const IOAPIC: u64 = 0xfec0_0000;
const AVX: u64 = 1 << 2;

#[repr(C, align(32))]
struct Register([u8; 32]);

static PATTERN: Register = Register([0x5a; 32]);

fn vector_io() {
    let has_avx = enable();
    sse();
    if has_avx {
        avx();
    } else {
        println!("# no AVX");
    }
}

/// Fills register 3, has an instruction with RDI change it, and gives what it holds: XMM's 16 bytes.
macro_rules! with_xmm3 {
    ($instruction:literal, $address:expr) => {{
        let mut after = Register([0; 32]);
        // SAFETY: the registers are named, and the instructions touch no memory of the program's.
        unsafe {
            asm!("movups xmm3, [{pattern}]", $instruction, "movups [{after}], xmm3", pattern = in(reg) &raw const PATTERN,
                after = in(reg) &raw mut after, in("rdi") $address, out("xmm3") _, options(nostack));
        }
        after.0
    }};
}

/// The same with YMM, 32 bytes.
macro_rules! with_ymm3 {
    ($instruction:literal, $address:expr) => {{
        let mut after = Register([0; 32]);
        // SAFETY: as above; the processor has AVX.
        unsafe {
            asm!("vmovups ymm3, [{pattern}]", $instruction, "vmovups [{after}], ymm3", "vzeroupper",
                pattern = in(reg) &raw const PATTERN, after = in(reg) &raw mut after, in("rdi") $address,
                out("xmm3") _, options(nostack));
        }
        after.0
    }};
}

fn sse() {
    for (loaded, name) in [
        (with_xmm3!("movups xmm3, [rdi]", NOBODY + 3), "MOVUPS"),
        (with_xmm3!("movaps xmm3, [rdi]", NOBODY), "MOVAPS"),
        (with_xmm3!("movdqu xmm3, [rdi]", NOBODY + 5), "MOVDQU"),
        (with_xmm3!("movdqa xmm3, [rdi]", NOBODY), "MOVDQA"),
    ] {
        tap::check(holds(&loaded, 16, 0), name);
    }
    for (loaded, bytes, name) in [
        (with_xmm3!("movd xmm3, dword ptr [rdi]", NOBODY), 4, "MOVD"),
        (with_xmm3!("movss xmm3, dword ptr [rdi]", NOBODY), 4, "MOVSS"),
        (with_xmm3!("movq xmm3, qword ptr [rdi]", NOBODY), 8, "MOVQ"),
        (with_xmm3!("movsd xmm3, qword ptr [rdi]", NOBODY), 8, "MOVSD"),
    ] {
        tap::check(holds(&loaded, bytes, 0), name);
    }
    let kept = with_xmm3!("movups [rdi], xmm3", NOBODY);
    tap::check(kept[..16] == [0x5a; 16], "a store leaves the register");
    let selected = with_xmm3!("movd dword ptr [rdi], xmm3\nmovd xmm3, dword ptr [rdi]", IOAPIC);
    tap::check(selected[0] == 0x5a && selected[4..16] == [0; 12], "a device takes what is stored");
}

fn avx() {
    tap::check(holds(&with_ymm3!("vmovdqu ymm3, [rdi]", NOBODY + 1), 32, 0), "VMOVDQU of 32 bytes");
    tap::check(holds(&with_ymm3!("vmovdqu xmm3, [rdi]", NOBODY), 16, 0), "of 16 bytes clears those above");
    tap::check(holds(&with_ymm3!("vmovss xmm3, dword ptr [rdi]", NOBODY), 4, 0), "so does VMOVSS");
    tap::check(holds(&with_ymm3!("movups xmm3, [rdi]", NOBODY), 16, 0x5a), "and SSE's MOVUPS does not");
    let kept = with_ymm3!("vmovups [rdi], ymm3", NOBODY);
    tap::check(kept == PATTERN.0, "a store leaves the register");
}

/// Whether so many bytes are ones, and what is behind them, in this register and above it, is this.
fn holds(value: &[u8; 32], ones: usize, above: u8) -> bool {
    let mut expected = [0; 32];
    if above != 0 {
        expected[16..].fill(above);
    }
    expected[..ones].fill(0xff);
    *value == expected
}

/// Lets the program use SSE, and AVX where there is some, which it says.
fn enable() -> bool {
    let leaf = cpu::cpuid(1, 0);
    let has_avx = leaf.ecx & 1 << 26 != 0 && leaf.ecx & 1 << 28 != 0;
    let (osfxsr, osxsave) = (3 << 9, if has_avx { 1_u64 << 18 } else { 0 });
    // SAFETY: these bits let instructions run that this program alone uses.
    unsafe {
        asm!(
            "mov {0}, cr0", "and {0}, ~0xc", "mov cr0, {0}",
            "mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}",
            out(reg) _, in(reg) osfxsr | osxsave, options(nostack),
        );
    }
    if has_avx {
        // SAFETY: components that the processor has.
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") (3 | AVX) as u32, in("edx") 0, options(nostack)) };
    }
    has_avx
}
