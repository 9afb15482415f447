//! Checks that what is in the registers of x87, SSE, AVX and AVX-512 stays there, whatever exits and whoever else runs: two
//! of these with another `seed=` each, on one processor, must not see each other's. With `endless=1` it goes on, and says
//! `kept` now and then, until they do.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and registers are loaded and stored")]

use core::arch::asm;
use guests::{boot, cpu, guest, println, tap};

guest!(vectors);

/// Looks at the registers, with as many exits before each.
const ROUNDS: u32 = 200;
const EXITS: u32 = 50;
/// What the widest registers have, and how many of those there are.
const REGISTER_BYTES: usize = 64;
const REGISTERS: usize = 32;
/// Components of XCR0: x87, SSE, AVX, and the three of AVX-512.
const AVX: u64 = 1 << 2;
const AVX_512: u64 = 7 << 5;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
struct Image {
    registers: [[u8; REGISTER_BYTES]; REGISTERS],
    masks: [u64; 8],
    mxcsr: u32,
    control_word: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    /// 16 registers of 128 bits.
    Sse,
    /// 16 of 256 bits.
    Avx,
    /// 32 of 512 bits, and masks.
    Avx512,
}

fn vectors() {
    let seed = boot::number("seed").unwrap_or(1) as u8;
    let width = enable();
    println!(
        "# seed {seed}, {}",
        match width {
            Width::Sse => "SSE",
            Width::Avx => "AVX",
            Width::Avx512 => "AVX-512",
        }
    );
    let expected = image(seed, width);
    load(&expected, width);
    let is_endless = boot::number("endless").is_some();
    let mut is_kept = true;
    while is_kept {
        is_kept = keeps(&expected, width);
        if !is_endless {
            break;
        }
        println!("kept");
    }
    tap::check(is_kept, "registers keep what they hold");
}

/// Whether the registers hold this over many exits.
fn keeps(expected: &Image, width: Width) -> bool {
    (0..ROUNDS).all(|_| {
        for _ in 0..EXITS {
            cpu::cpuid(0, 0);
        }
        stored(width) == *expected
    })
}

/// Lets the program use all registers that there are.
fn enable() -> Width {
    let has_xsave = cpu::cpuid(1, 0).ecx & 1 << 26 != 0;
    let (osfxsr, osxsave) = (3 << 9, if has_xsave { 1_u64 << 18 } else { 0 });
    // SAFETY: these bits let instructions run that this program alone uses.
    unsafe {
        asm!(
            "mov {0}, cr0", "and {0}, ~0xc", "mov cr0, {0}",
            "mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}",
            out(reg) _, in(reg) osfxsr | osxsave, options(nostack),
        );
    }
    if !has_xsave {
        return Width::Sse;
    }
    let components = u64::from(cpu::cpuid(0xd, 0).eax) & (3 | AVX | AVX_512);
    // SAFETY: components that the processor has, and those that they build on.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") components as u32, in("edx") 0, options(nostack)) };
    match components {
        all if all & AVX_512 == AVX_512 => Width::Avx512,
        some if some & AVX != 0 => Width::Avx,
        _ => Width::Sse,
    }
}

/// What the registers are to hold: no byte as its neighbours, and none as with another seed.
fn image(seed: u8, width: Width) -> Image {
    let (registers, bytes) = match width {
        Width::Sse => (16, 16),
        Width::Avx => (16, 32),
        Width::Avx512 => (REGISTERS, REGISTER_BYTES),
    };
    let mut image = EMPTY;
    for (register, all) in image.registers.iter_mut().enumerate().take(registers) {
        for (at, byte) in all.iter_mut().enumerate().take(bytes) {
            *byte = seed.wrapping_mul(0x5b) ^ (register * REGISTER_BYTES + at) as u8;
        }
    }
    if width == Width::Avx512 {
        // Masks of 16 bits, which every processor with AVX-512 has.
        image.masks.iter_mut().enumerate().for_each(|(at, mask)| *mask = u64::from(seed) << 8 | at as u64);
    }
    // A rounding of its own; no exception is let through.
    image.mxcsr = 0x1f80 | u32::from(seed & 3) << 13;
    image.control_word = 0x037f | u16::from(seed & 3) << 10;
    image
}

const EMPTY: Image = Image { registers: [[0; REGISTER_BYTES]; REGISTERS], masks: [0; 8], mxcsr: 0, control_word: 0 };

fn load(image: &Image, width: Width) {
    let (registers, masks) = (&raw const image.registers, &raw const image.masks);
    // SAFETY: nothing else in this program uses these registers, and `image` holds as many as are loaded.
    unsafe {
        asm!("ldmxcsr [{}]", in(reg) &raw const image.mxcsr, options(nostack, readonly));
        asm!("fldcw [{}]", in(reg) &raw const image.control_word, options(nostack, readonly));
        match width {
            Width::Sse => load_sse(registers.cast()),
            Width::Avx => load_avx(registers.cast()),
            Width::Avx512 => load_avx512(registers.cast(), masks.cast()),
        }
    }
}

fn stored(width: Width) -> Image {
    let mut image = EMPTY;
    let (registers, masks) = (&raw mut image.registers, &raw mut image.masks);
    // SAFETY: `image` has room for as many as are stored.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut image.mxcsr, options(nostack));
        asm!("fnstcw [{}]", in(reg) &raw mut image.control_word, options(nostack));
        match width {
            Width::Sse => store_sse(registers.cast()),
            Width::Avx => store_avx(registers.cast()),
            Width::Avx512 => store_avx512(registers.cast(), masks.cast()),
        }
    }
    image
}

/// Makes the functions that load and store every register of a width.
macro_rules! every_register {
    ($load:ident, $store:ident, $instruction:literal, $name:literal, [$($number:literal $offset:literal),*]) => {
        /// # Safety
        /// Behind `from` lie as many registers, 64 bytes apart.
        unsafe fn $load(from: *const u8) {
            // SAFETY: the caller's promise; nothing else in this program uses these registers.
            unsafe {
                asm!($(concat!($instruction, " ", $name, $number, ", [{0} + ", $offset, "]")),*, in(reg) from, options(nostack, readonly));
            }
        }

        /// # Safety
        /// Behind `to` is room for as many registers, 64 bytes apart.
        unsafe fn $store(to: *mut u8) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!($(concat!($instruction, " [{0} + ", $offset, "], ", $name, $number)),*, in(reg) to, options(nostack));
            }
        }
    };
}

every_register!(load_sse, store_sse, "movdqu", "xmm", ["0" "0", "1" "64", "2" "128", "3" "192", "4" "256", "5" "320", "6" "384", "7" "448", "8" "512", "9" "576", "10" "640", "11" "704", "12" "768", "13" "832", "14" "896", "15" "960"]);
every_register!(load_avx, store_avx, "vmovdqu", "ymm", ["0" "0", "1" "64", "2" "128", "3" "192", "4" "256", "5" "320", "6" "384", "7" "448", "8" "512", "9" "576", "10" "640", "11" "704", "12" "768", "13" "832", "14" "896", "15" "960"]);
every_register!(load_zmm, store_zmm, "vmovdqu64", "zmm", ["0" "0", "1" "64", "2" "128", "3" "192", "4" "256", "5" "320", "6" "384", "7" "448", "8" "512", "9" "576", "10" "640", "11" "704", "12" "768", "13" "832", "14" "896", "15" "960", "16" "1024", "17" "1088", "18" "1152", "19" "1216", "20" "1280", "21" "1344", "22" "1408", "23" "1472", "24" "1536", "25" "1600", "26" "1664", "27" "1728", "28" "1792", "29" "1856", "30" "1920", "31" "1984"]);

/// # Safety
/// As `load_zmm`, and behind `masks` lie eight words of 64 bits.
unsafe fn load_avx512(from: *const u8, masks: *const u64) {
    // SAFETY: the caller's promise.
    unsafe {
        load_zmm(from);
        asm!("kmovw k0, [{0} + 0]", "kmovw k1, [{0} + 8]", "kmovw k2, [{0} + 16]", "kmovw k3, [{0} + 24]", "kmovw k4, [{0} + 32]", "kmovw k5, [{0} + 40]", "kmovw k6, [{0} + 48]", "kmovw k7, [{0} + 56]", in(reg) masks, options(nostack, readonly));
    }
}

/// # Safety
/// As `store_zmm`, and behind `masks` is room for eight words of 64 bits.
unsafe fn store_avx512(to: *mut u8, masks: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe {
        store_zmm(to);
        asm!("kmovw [{0} + 0], k0", "kmovw [{0} + 8], k1", "kmovw [{0} + 16], k2", "kmovw [{0} + 24], k3", "kmovw [{0} + 32], k4", "kmovw [{0} + 40], k5", "kmovw [{0} + 48], k6", "kmovw [{0} + 56], k7", in(reg) masks, options(nostack));
    }
}
