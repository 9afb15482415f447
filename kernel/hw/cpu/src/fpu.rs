//! The guest's floating-point state. It stays in the processor's registers while Pollux runs, which uses none of them but
//! in `gcm`, which puts back what it used, and is saved only when another guest needs them.
//!
//! SDM volume 1, chapter 13; APM volume 2, 11.5. Every component that the processor has is switched, whatever the guest
//! enabled, so that nothing of one guest is left for another to find.

use crate::{cpuid, msr};
use alloc::boxed::Box;
use core::arch::asm;

const CR0_EM_TS: u64 = 1 << 2 | 1 << 3;
const CR4_OSFXSR_OSXMMEXCPT_OSXSAVE: u64 = 1 << 9 | 1 << 10 | 1 << 18;

/// Components of XCR0 that are switched: x87, SSE, AVX, AVX-512 and PKRU. The others are not offered to guests.
const COMPONENTS: u64 = 0x2e7;
/// Bytes that those need at most, in the standard layout.
const AREA_BYTES: usize = 2816;

/// The parts that every area has, and what is where in them.
const LEGACY_BYTES: usize = 512;
const HEADER_BYTES: usize = 64;
const MXCSR: usize = 24;
/// The component that is PKRU.
const PKRU: usize = 9;
/// The bits of MXCSR that every processor with virtualisation has.
const MXCSR_BITS: u32 = 0xffff;

/// An XSAVE area. All zeroes is the state after reset, but for the two words that [`Area::reset`] sets.
#[repr(C, align(64))]
pub struct Area([u8; AREA_BYTES]);

impl Area {
    /// The state after power-up: x87 and SSE exceptions masked.
    pub fn reset() -> Box<Self> {
        let mut area = Box::new(Self([0; AREA_BYTES]));
        area.0[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        area.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        // XSTATE_BV: x87 and SSE come from the area; the others are in their initial state.
        area.0[512] = 3;
        area
    }

    /// The area, in the standard layout.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// An area that may come from anybody; `None` where XRSTOR would fault on it (SDM volume 1, 13.8): a component that
    /// this processor lacks, the compacted layout, or a reserved bit.
    pub fn from_bytes(bytes: &[u8]) -> Option<Box<Self>> {
        let mut area = Self::reset();
        area.0.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let (legacy, header) = area.0.split_at(LEGACY_BYTES);
        let (present, reserved) = header[..HEADER_BYTES].split_first_chunk()?;
        let mxcsr = u32::from_le_bytes(*legacy[MXCSR..].first_chunk()?);
        let is_sound = u64::from_le_bytes(*present) & !components() == 0
            && reserved.iter().all(|&byte| byte == 0)
            && mxcsr & !MXCSR_BITS == 0;
        is_sound.then_some(area)
    }

    /// Takes the state out of the processor.
    pub fn save(&mut self) {
        set_xcr0(components());
        // SAFETY: the area is aligned and holds every component that XCR0 names now.
        unsafe { asm!("xsave64 [{}]", in(reg) self, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack)) }
    }

    /// PKRU as it is here, not in the processor; zero where there is none.
    pub fn pkru(&self) -> u32 {
        let present = self.0[LEGACY_BYTES + PKRU / 8] & 1 << (PKRU % 8) != 0;
        let at = cpuid(0xd, PKRU as u32).ebx as usize;
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk).filter(|_| present);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// Puts the state into the processor, and sets the guest's XCR0.
    pub fn restore(&self, xcr0: u64) {
        set_xcr0(components());
        // SAFETY: the area was made by `reset`, `save` or `from_bytes`, so that its header and MXCSR are sound.
        unsafe { asm!("xrstor64 [{}]", in(reg) self, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack)) }
        set_xcr0(xcr0);
    }
}

/// PKRU as it is in the processor, whose XCR0 is `xcr0`; zero where there is none. RDPKRU would need the host's CR4.PKE.
pub fn pkru(xcr0: u64) -> u32 {
    let mut area = Area([0; AREA_BYTES]);
    set_xcr0(components());
    // SAFETY: as in `save`; of the one component that is asked for.
    unsafe { asm!("xsave64 [{}]", in(reg) &mut area, in("eax") 1 << PKRU, in("edx") 0, options(nostack)) }
    set_xcr0(xcr0);
    area.pkru()
}

/// Lets this processor run the XSAVE instructions. Guests are offered no supervisor state, so that their XSAVES finds none.
pub fn enable() {
    const XSAVES: u32 = 1 << 3;
    if cpuid(0xd, 1).eax & XSAVES != 0 {
        // SAFETY: where there is XSAVES there is the register, and zero is what it has after reset.
        unsafe { msr::write(msr::XSS, 0) }
    }
    // SAFETY: the processor has XSAVE; the host uses no floating point that these bits would disturb.
    unsafe {
        asm!("mov {0}, cr0", "and {0}, {1}", "mov cr0, {0}", out(reg) _, in(reg) !CR0_EM_TS, options(nostack));
        asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, in(reg) CR4_OSFXSR_OSXMMEXCPT_OSXSAVE,
            options(nostack));
    }
}

/// Whether SSE instructions run on this processor now, as they do since [`enable`].
pub fn is_enabled() -> bool {
    let (cr0, cr4): (u64, u64);
    // SAFETY: reads two registers.
    unsafe { asm!("mov {0}, cr0", "mov {1}, cr4", out(reg) cr0, out(reg) cr4, options(nomem, nostack)) }
    cr0 & CR0_EM_TS == 0 && cr4 & CR4_OSFXSR_OSXMMEXCPT_OSXSAVE == CR4_OSFXSR_OSXMMEXCPT_OSXSAVE
}

/// XCR0, already checked: bit 0 set, and only components that the processor has.
pub fn set_xcr0(value: u64) {
    // SAFETY: the callers pass checked values.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack)) }
}

/// The components that this processor has and guests may use.
fn components() -> u64 {
    let leaf = cpuid(0xd, 0);
    (u64::from(leaf.edx) << 32 | u64::from(leaf.eax)) & COMPONENTS
}
