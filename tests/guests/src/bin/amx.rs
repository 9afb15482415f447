//! Checks AMX: tiles hold what is loaded, are multiplied, and go to memory and back by XSAVE and XRSTOR; XCR0 takes both of its
//! components or neither; and IA32_XFD has their use fault, without losing them. Where the processor has no AMX, nothing of
//! it may be there. With `endless=1` it keeps tiles that `seed=` fills, and says `kept` now and then, until they change.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and registers are loaded and stored")]

use core::arch::asm;
use core::hint::black_box;
use guests::apic::{self, register};
use guests::cpu::msr::{PAT, XFD, XFD_ERR};
use guests::interrupts::{APIC_VECTOR, Fault, NOT_AVAILABLE, PROTECTION, UNDEFINED, catch};
use guests::{boot, cpu, guest, println, tap};

guest!(amx);

/// Components of XCR0: x87 and SSE; TILECFG and TILEDATA.
const LEAST: u64 = 3;
const TILECFG: u64 = 1 << 17;
const TILEDATA: u64 = 1 << 18;
const TILES: u64 = TILECFG | TILEDATA;
/// What the first palette has: this many tiles, of so many rows, of so many bytes.
const COUNT: usize = 8;
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;
const TILE_BYTES: usize = ROWS * ROW_BYTES;
/// Bytes of an XSAVE area's header: which components are stored.
const XSTATE_BV: usize = 512;
const EXITS: u32 = 200;
const VECTOR: u8 = APIC_VECTOR + 2;
/// Ticks of the local APIC's timer between two looks at tiles, and how many looks are between two words.
const HALT_TICKS: u32 = 10_000_000;
const SAID_EVERY: u32 = 50;

/// The memory of all tiles.
type Tiles = [[u8; TILE_BYTES]; COUNT];

/// What LDTILECFG loads: a tile of each full size.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const FULL: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: each(ROW_BYTES as u16, 0),
    rows: each(ROWS as u8, 0),
};
const NONE: Config = Config { palette: 0, row_bytes: [0; 16], rows: [0; 16], ..FULL };

/// An XSAVE area, with room for tiles behind every other component.
#[repr(C, align(64))]
struct Area([u8; 12288]);

fn amx() {
    let has = cpu::cpuid(7, 0).edx & 1 << 24 != 0;
    println!("# AMX {has}");
    if !enable_xsave() {
        return tap::skip("AMX", "the processor has no XSAVE");
    }
    if !has {
        return absent();
    }
    match boot::number("endless") {
        Some(_) => hold(),
        None => present(),
    }
}

fn present() {
    leaves();
    xcr0();
    multiplies();
    let tiles = pattern(boot::number("seed").unwrap_or(1) as u8);
    load(&tiles);
    tap::check(holds(&tiles), "tiles hold what is loaded");
    for _ in 0..EXITS {
        cpu::in8(0xe5e0);
        cpu::cpuid(0, 0);
    }
    tap::check(holds(&tiles), "also over exits");
    replace_state();
    tap::check(holds(&tiles), "and over a write to another register");
    xsave(&tiles);
    xfd(&tiles);
    disabled(&tiles);
}

/// CR4.OSXSAVE.
fn enable_xsave() -> bool {
    const OSXSAVE: u64 = 1 << 18;
    let has = cpu::cpuid(1, 0).ecx & 1 << 26 != 0;
    if has {
        // SAFETY: it only lets instructions run that this program knows.
        unsafe { asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, in(reg) OSXSAVE, options(nostack)) };
    }
    has
}

fn is(fault: Option<Fault>, vector: u8) -> bool {
    fault.is_some_and(|fault| fault.vector == vector)
}

fn xsetbv(value: u64) -> Option<Fault> {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: this program keeps nothing in a component that it takes away.
    catch(|| unsafe { asm!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high, options(nostack)) })
}

/// The components that are enabled and in use.
fn in_use() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: every processor with AMX has it.
    unsafe { asm!("xgetbv", in("ecx") 1, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

fn read(index: u32) -> Result<u64, Fault> {
    let mut value = 0;
    let fault = catch(|| value = black_box(cpu::read_msr(index)));
    fault.map_or(Ok(value), Err)
}

fn write(index: u32, value: u64) -> Option<Fault> {
    // SAFETY: either it faults, or the use of tiles does.
    catch(|| unsafe { cpu::write_msr(index, value) })
}

/// What a hypervisor may carry out by replacing the processor's whole state.
fn replace_state() {
    write(PAT, cpu::read_msr(PAT));
}

/// Whether a hypervisor that is Pollux refuses what is not named: other processors may have it.
fn is_guest() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 31 != 0 && cpu::cpuid(0x4000_0100, 0).ebx == u32::from_le_bytes(*b"Poll")
}

fn absent() {
    tap::check(cpu::cpuid(0xd, 0).eax & TILES as u32 == 0, "no AMX, and none of its components");
    tap::check(is(xsetbv(LEAST | TILES), PROTECTION), "XCR0 refuses them");
    tap::check(is(release(), UNDEFINED), "there is no TILERELEASE");
    let name = "no IA32_XFD";
    if !is_guest() {
        return tap::skip(name, "this processor is no guest's");
    }
    for index in [XFD, XFD_ERR] {
        tap::check(is(read(index).err(), PROTECTION) && is(write(index, 0), PROTECTION), name);
    }
}

fn leaves() {
    let component = |bit: u64| cpu::cpuid(0xd, bit.trailing_zeros());
    let bytes = [component(TILECFG).eax, component(TILEDATA).eax];
    tap::check(bytes == [64, (COUNT * TILE_BYTES) as u32], "CPUID names the components' bytes");
    tap::check(cpu::cpuid(0, 0).eax >= 0x1e && cpu::cpuid(0x1d, 0).eax >= 1, "and palettes");
    let palette = cpu::cpuid(0x1d, 1);
    let sizes = [palette.eax & 0xffff, palette.eax >> 16, palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx];
    let expected = [COUNT * TILE_BYTES, TILE_BYTES, ROW_BYTES, COUNT, ROWS].map(|size| size as u32);
    tap::check(sizes == expected, "the first has eight tiles");
    tap::check(cpu::cpuid(0x1e, 0).ebx == 16 | 64 << 8, "whole tiles are multiplied");
}

fn xcr0() {
    tap::check(is(release(), UNDEFINED), "TILERELEASE needs XCR0");
    for value in [LEAST | TILECFG, LEAST | TILEDATA, TILES, TILES | 2] {
        tap::check(is(xsetbv(value), PROTECTION), "XCR0 takes no part of it");
    }
    tap::check(xsetbv(LEAST | TILES).is_none(), "XCR0 takes both components");
    let data = cpu::cpuid(0xd, TILEDATA.trailing_zeros());
    tap::check(cpu::cpuid(0xd, 0).ebx == data.eax + data.ebx, "CPUID counts their bytes");
    tap::check(in_use() & TILES == 0 && config() == NONE, "no tile is in use at first");
}

fn release() -> Option<Fault> {
    // SAFETY: callers keep nothing in tiles.
    catch(|| unsafe { asm!("tilerelease", options(nomem, nostack)) })
}

fn configure(config: &Config) {
    // SAFETY: tiles are no memory of Rust's.
    unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, readonly)) };
}

fn config() -> Config {
    let mut config = FULL;
    // SAFETY: it writes 64 bytes there.
    unsafe { asm!("sttilecfg [{}]", in(reg) &mut config, options(nostack)) };
    config
}

/// Fills all tiles.
fn load(tiles: &Tiles) {
    configure(&FULL);
    // SAFETY: each tile is read from its memory.
    unsafe {
        asm!("tileloadd tmm0, [{0} + {1}]", "tileloadd tmm1, [{0} + {1} + 1024]", "tileloadd tmm2, [{0} + {1} + 2048]",
            "tileloadd tmm3, [{0} + {1} + 3072]", "tileloadd tmm4, [{0} + {1} + 4096]",
            "tileloadd tmm5, [{0} + {1} + 5120]", "tileloadd tmm6, [{0} + {1} + 6144]",
            "tileloadd tmm7, [{0} + {1} + 7168]", in(reg) tiles, in(reg) ROW_BYTES, options(nostack, readonly));
    }
}

fn stored() -> Tiles {
    let mut tiles = [[0; TILE_BYTES]; COUNT];
    // SAFETY: each tile is written to its memory.
    unsafe {
        asm!("tilestored [{0} + {1}], tmm0", "tilestored [{0} + {1} + 1024], tmm1", "tilestored [{0} + {1} + 2048], tmm2",
            "tilestored [{0} + {1} + 3072], tmm3", "tilestored [{0} + {1} + 4096], tmm4",
            "tilestored [{0} + {1} + 5120], tmm5", "tilestored [{0} + {1} + 6144], tmm6",
            "tilestored [{0} + {1} + 7168], tmm7", in(reg) &mut tiles, in(reg) ROW_BYTES, options(nostack));
    }
    tiles
}

/// Whether the tiles are configured and have this in them.
fn holds(tiles: &Tiles) -> bool {
    config() == FULL && stored() == *tiles
}

/// Bytes that are another in each row of each tile, and with each seed.
fn pattern(seed: u8) -> Tiles {
    core::array::from_fn(|tile| {
        core::array::from_fn(|at| (seed as usize * 97 + tile * 31 + at / ROW_BYTES * 7 + at) as u8)
    })
}

/// The value for each of eight tiles, of sixteen places.
const fn each<T: Copy>(value: T, none: T) -> [T; 16] {
    let mut all = [none; 16];
    let mut tile = 0;
    while tile < COUNT {
        all[tile] = value;
        tile += 1;
    }
    all
}

fn multiplies() {
    let name = "TDPBUUD";
    if cpu::cpuid(7, 0).edx & 1 << 25 == 0 {
        return tap::skip(name, "the processor has no AMX-INT8");
    }
    load(&core::array::from_fn(|tile| [tile as u8; TILE_BYTES]));
    // SAFETY: it changes a tile.
    unsafe { asm!("tilezero tmm0", "tdpbuud tmm0, tmm2, tmm3", options(nomem, nostack)) };
    // Sixteen times four products, of 2 and 3.
    tap::check(stored()[0].chunks(4).all(|sum| *sum == 384_u32.to_le_bytes()), name);
}

fn save(area: &mut Area) {
    // SAFETY: the area is aligned, and has room for every component.
    unsafe { asm!("xsave64 [{}]", in(reg) area, in("eax") TILES as u32, in("edx") 0, options(nostack)) };
}

fn restore(area: &Area) -> Option<Fault> {
    // SAFETY: this program keeps nothing else in tiles.
    catch(|| unsafe {
        asm!("xrstor64 [{}]", in(reg) area, in("eax") TILES as u32, in("edx") 0, options(nostack, readonly));
    })
}

impl Area {
    /// Which tiles' components are stored.
    fn present(&self) -> u64 {
        self.0[XSTATE_BV..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) & TILES
    }
}

fn xsave(tiles: &Tiles) {
    let mut area = Area([0; 12288]);
    save(&mut area);
    let at = cpu::cpuid(0xd, TILEDATA.trailing_zeros()).ebx as usize;
    let bytes = &area.0[at..][..COUNT * TILE_BYTES];
    tap::check(in_use() & TILES == TILES && area.present() == TILES, "XSAVE finds tiles in use");
    tap::check(bytes == tiles.as_flattened(), "and stores them");
    release();
    tap::check(in_use() & TILES == 0 && config() == NONE, "TILERELEASE");
    tap::check(restore(&area).is_none() && holds(tiles), "XRSTOR brings them back");
    area.0[XSTATE_BV..][..8].fill(0);
    tap::check(restore(&area).is_none() && config() == NONE, "or initialises them");
    load(tiles);
}

fn zero() -> Option<Fault> {
    // SAFETY: callers have it fault.
    catch(|| unsafe { asm!("tilezero tmm0", options(nomem, nostack)) })
}

/// While the use of tiles faults they stay, whoever else runs.
fn xfd(tiles: &Tiles) {
    tap::check(cpu::cpuid(0xd, 1).eax & 1 << 4 != 0, "IA32_XFD comes with AMX");
    tap::check([XFD, XFD_ERR].map(read).iter().all(|&value| value.is_ok_and(|value| value == 0)), "IA32_XFD is zero");
    for bit in [0, 2, 17, 19, 63] {
        let refused = [XFD, XFD_ERR].into_iter().all(|index| is(write(index, 1 << bit), PROTECTION));
        tap::check(refused, "it takes no reserved bit");
    }
    tap::check(write(XFD, TILEDATA).is_none() && read(XFD).is_ok_and(|value| value == TILEDATA), "and that of tiles");
    tap::check(is(zero(), NOT_AVAILABLE), "whose use then faults");
    replace_state();
    tap::check(read(XFD_ERR).is_ok_and(|value| value == TILEDATA), "IA32_XFD_ERR says why");
    tap::check(write(XFD_ERR, 0).is_none() && read(XFD_ERR).is_ok_and(|value| value == 0), "until it is cleared");
    let mut area = Area([0; 12288]);
    save(&mut area);
    tap::check(area.present() & TILEDATA == 0, "XSAVE finds none");
    tap::check(write(XFD, 0).is_none() && holds(tiles), "they are what they were");
}

/// What is disabled in XCR0 stays.
fn disabled(tiles: &Tiles) {
    tap::check(xsetbv(LEAST).is_none() && is(release(), UNDEFINED), "without XCR0 there are no tiles");
    replace_state();
    tap::check(xsetbv(LEAST | TILES).is_none() && holds(tiles), "they are back with it");
    release();
}

/// Keeps tiles as long as they stay.
fn hold() {
    let tiles = pattern(boot::number("seed").unwrap_or(1) as u8);
    let has_none = xsetbv(LEAST | TILES).is_none() && in_use() & TILES == 0;
    tap::check(has_none, "no tile is in use at first");
    load(&tiles);
    apic::start();
    for round in 0_u32.. {
        if !holds(&tiles) {
            break;
        }
        if round % SAID_EVERY == 0 {
            println!("kept");
        }
        halt();
    }
    tap::check(false, "tiles stay");
}

/// Halts until the timer interrupts, so that others run.
fn halt() {
    apic::write(register::DIVIDE, 11);
    apic::write(register::LVT_TIMER, VECTOR.into());
    apic::write(register::INITIAL_COUNT, HALT_TICKS);
    cpu::wait_for_interrupt();
}
