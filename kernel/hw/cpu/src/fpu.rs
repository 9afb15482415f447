//! The guest's extended state: x87, vectors, protection keys and tiles. It stays in the processor's registers while Pollux
//! runs, which uses none of them but in `gcm`, which puts back what it used, and is saved only when another guest needs
//! them. The main type is [`ExtendedState`].
//!
//! SDM volume 1, chapter 13; APM volume 2, 11.5. Every component that the processor has is switched, whatever the guest
//! enabled, so that nothing of one guest is left for another to find. Only tiles, which take longer than all others, are
//! switched for those guests alone that have enabled them: after such a guest they are in their initial state again.

use crate::{cpuid, msr};
use alloc::boxed::Box;
use core::arch::asm;

const CR0_EM_TS: u64 = 1 << 2 | 1 << 3;
const CR4_OSFXSR_OSXMMEXCPT_OSXSAVE: u64 = 1 << 9 | 1 << 10 | 1 << 18;

/// Components of XCR0 that are switched for every guest: x87, SSE, AVX, AVX-512 and PKRU. But tiles, no others are offered
/// to guests.
const COMPONENTS: u64 = 0x2e7;
/// TILECFG and TILEDATA, AMX's.
const TILES: u64 = 1 << 17 | 1 << 18;
/// Bytes that all need at most, in the standard layout, and all but tiles.
const AREA_BYTES: usize = 11008;
const UNTILED_BYTES: usize = 2816;

/// The parts that every area has, and what is where in them.
const LEGACY_BYTES: usize = 512;
const HEADER_BYTES: usize = 64;
const MXCSR: usize = 24;
/// The component that is PKRU.
const PKRU: usize = 9;
/// The bits of MXCSR that every processor with virtualisation has.
const MXCSR_BITS: u32 = 0xffff;

/// A vCPU's extended state, with the registers that say what of it the guest can use.
pub struct ExtendedState {
    /// While the state is not in the processor.
    area: Box<Area<AREA_BYTES>>,
    xcr0: u64,
    xfd: u64,
    /// The processor changes it by itself.
    xfd_err: u64,
    is_loaded: bool,
    /// The guest has enabled tiles once.
    has_tiles: bool,
    /// The guest has used IA32_XFD or IA32_XFD_ERR once.
    has_xfd: bool,
}

impl ExtendedState {
    /// The state after power-up.
    pub fn reset() -> Self {
        Self { area: Area::reset(), xcr0: 1, xfd: 0, xfd_err: 0, is_loaded: false, has_tiles: false, has_xfd: false }
    }

    /// Whether it is in this processor.
    pub fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// Puts it into the processor.
    pub fn load(&mut self) {
        assert!(!self.is_loaded);
        self.area.restore(self.switched());
        set_xcr0(self.xcr0);
        self.is_loaded = true;
        self.load_xfd();
    }

    /// Takes it out of the processor.
    pub fn unload(&mut self) {
        assert!(self.is_loaded);
        (self.xfd, self.xfd_err) = self.xfd();
        if self.has_xfd {
            // XSAVE would store a component whose bit is set as if it were in its initial state (13.14).
            // SAFETY: the guest was offered the register.
            unsafe { msr::write(msr::XFD, 0) }
        }
        self.area.save(self.switched());
        self.is_loaded = false;
    }

    /// As an XSAVE area in the standard layout, without the place of tiles where they are in their initial state.
    ///
    /// # Panics
    /// While it is in the processor.
    pub fn as_bytes(&self) -> &[u8] {
        assert!(!self.is_loaded);
        let is_tiled = self.area.present() & TILES != 0;
        &self.area.0[..if is_tiled { AREA_BYTES } else { UNTILED_BYTES }]
    }

    /// Replaces it by an area that may come from anybody. False where XRSTOR would fault on that.
    ///
    /// # Panics
    /// While it is in the processor.
    pub fn replace(&mut self, bytes: &[u8]) -> bool {
        assert!(!self.is_loaded);
        let Some(area) = Area::from_bytes(bytes) else { return false };
        self.has_tiles |= area.present() & TILES != 0;
        self.area = area;
        true
    }

    /// The guest's XCR0.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Sets it, already checked: bit 0 set, and only components that the processor has.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        // Where the state is in the processor, tiles are in their initial state there until now.
        self.has_tiles |= value & TILES != 0;
        if self.is_loaded {
            set_xcr0(value);
        }
    }

    /// The guest's IA32_XFD and IA32_XFD_ERR.
    pub fn xfd(&self) -> (u64, u64) {
        if self.is_loaded && self.has_xfd {
            // SAFETY: the guest was offered the register.
            return (self.xfd, unsafe { msr::read(msr::XFD_ERR) });
        }
        (self.xfd, self.xfd_err)
    }

    /// Sets them, already checked against what the processor has.
    pub fn set_xfd(&mut self, (xfd, xfd_err): (u64, u64)) {
        (self.xfd, self.xfd_err) = (xfd, xfd_err);
        self.has_xfd |= xfd | xfd_err != 0;
        self.load_xfd();
    }

    /// PKRU; zero where there is none.
    pub fn pkru(&self) -> u32 {
        if self.is_loaded { pkru(self.xcr0) } else { self.area.pkru() }
    }

    /// They are the guest's own while the state is in the processor: nothing of the host faults by them.
    fn load_xfd(&self) {
        if self.is_loaded && self.has_xfd {
            // SAFETY: the values were checked, so that the processor has the registers.
            unsafe {
                msr::write(msr::XFD, self.xfd);
                msr::write(msr::XFD_ERR, self.xfd_err);
            }
        }
    }

    fn switched(&self) -> u64 {
        components() & if self.has_tiles { COMPONENTS | TILES } else { COMPONENTS }
    }
}

/// An XSAVE area. All zeroes is the state after reset, but for the two words that [`Area::reset`] sets.
#[repr(C, align(64))]
struct Area<const BYTES: usize>([u8; BYTES]);

impl Area<AREA_BYTES> {
    /// The state after power-up: x87 and SSE exceptions masked.
    fn reset() -> Box<Self> {
        let mut area = Box::new(Self([0; AREA_BYTES]));
        area.0[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        area.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        // XSTATE_BV: x87 and SSE come from the area; the others are in their initial state.
        area.0[512] = 3;
        area
    }

    /// An area that may come from anybody; `None` where XRSTOR would fault on it (SDM volume 1, 13.8): a component that
    /// this processor lacks, the compacted layout, or a reserved bit. A configuration of tiles that makes no sense is no
    /// fault there.
    fn from_bytes(bytes: &[u8]) -> Option<Box<Self>> {
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

    /// Takes these components out of the processor, and leaves no tiles there.
    fn save(&mut self, components: u64) {
        let (low, high) = (components as u32, (components >> 32) as u32);
        set_xcr0(components);
        // SAFETY: the area is aligned and holds every component that XCR0 names now.
        unsafe { asm!("xsave64 [{}]", in(reg) self, in("eax") low, in("edx") high, options(nostack)) }
        if components & TILES != 0 {
            // SAFETY: XCR0 has them now, and they are saved.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
        }
    }

    /// Puts these components into the processor.
    fn restore(&self, components: u64) {
        let (low, high) = (components as u32, (components >> 32) as u32);
        set_xcr0(components);
        // SAFETY: the area was made by `reset`, `save` or `from_bytes`, so that its header and MXCSR are sound, and it has
        // no component that is not among these.
        unsafe { asm!("xrstor64 [{}]", in(reg) self, in("eax") low, in("edx") high, options(nostack)) }
    }
}

impl<const BYTES: usize> Area<BYTES> {
    /// XSTATE_BV: the components that are not in their initial state.
    fn present(&self) -> u64 {
        self.0[LEGACY_BYTES..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// PKRU as it is here, not in the processor; zero where there is none.
    fn pkru(&self) -> u32 {
        let present = self.present() & 1 << PKRU != 0;
        let at = cpuid(0xd, PKRU as u32).ebx as usize;
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk).filter(|_| present);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}

/// PKRU as it is in the processor, whose XCR0 is `xcr0`; zero where there is none. RDPKRU would need the host's CR4.PKE.
fn pkru(xcr0: u64) -> u32 {
    let mut area = Area([0; UNTILED_BYTES]);
    set_xcr0(components() & COMPONENTS);
    // SAFETY: as in `save`; of the one component that is asked for.
    unsafe { asm!("xsave64 [{}]", in(reg) &mut area, in("eax") 1 << PKRU, in("edx") 0, options(nostack)) }
    set_xcr0(xcr0);
    area.pkru()
}

/// Lets this processor run the XSAVE instructions. Guests are offered no supervisor state, so that their XSAVES finds none.
pub fn enable() {
    const XSAVES: u32 = 1 << 3;
    const XFD: u32 = 1 << 4;
    let instructions = cpuid(0xd, 1).eax;
    for (bit, register) in [(XSAVES, msr::XSS), (XFD, msr::XFD)] {
        if instructions & bit != 0 {
            // SAFETY: where there is the feature there is the register, and zero is what it has after reset.
            unsafe { msr::write(register, 0) }
        }
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
fn set_xcr0(value: u64) {
    // SAFETY: the callers pass checked values.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack)) }
}

/// The components that this processor has and guests may use.
fn components() -> u64 {
    let leaf = cpuid(0xd, 0);
    (u64::from(leaf.edx) << 32 | u64::from(leaf.eax)) & (COMPONENTS | TILES)
}
