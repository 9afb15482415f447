//! How a guest addresses configuration space: the port pair at 0xCF8 (3.2.2.3.2) and the memory window (PCIe 7.2.2).
//!
//! [`ConfigPort`] and [`ecam`] both yield a [`Bdf`] and a register offset; `machine` looks the function up and gives
//! all-ones where there is none.

use core::fmt;
use state::Invalid;

/// A function's place: bus, device (0..32) and function (0..8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bdf {
    /// The bus.
    pub bus: u8,
    /// The device on it, 0..32.
    pub device: u8,
    /// The function in it, 0..8.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// Bits of the address latch that exist: enable, bus, device, function, register (3.2.2.3.2), and the upper register
/// bits of AMD's extension (BKDG family 10h, 2.7.1).
const LATCH_BITS: u32 = 0x8fff_fffc;
const LATCH_ENABLE: u32 = 1 << 31;

/// Configuration mechanism #1: an address latch at 0xCF8 and a data window at 0xCFC..=0xCFF.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ConfigPort {
    latch: u32,
}

impl ConfigPort {
    /// The latch, as a 4-byte read of 0xCF8 gives it.
    pub fn read_address(&self) -> u32 {
        self.latch
    }

    /// A 4-byte write to 0xCF8. Narrower accesses there are no business of the latch (3.2.2.3.2): do not pass them.
    pub fn write_address(&mut self, value: u32) {
        self.latch = value & LATCH_BITS;
    }

    /// The latch of a saved machine.
    ///
    /// # Errors
    /// With bits that no latch has.
    pub fn restore(latch: u32) -> Result<Self, Invalid> {
        Invalid::unless(latch & !LATCH_BITS == 0, "the configuration address")?;
        Ok(Self { latch })
    }

    /// What a data access of `size` bytes at `port` means: a function and a register offset.
    ///
    /// `None` where the latch is not enabled, the port is not 0xCFC..=0xCFF, or the access runs past 0xCFF.
    pub fn decode(&self, port: u16, size: u8) -> Option<(Bdf, u16)> {
        let byte = port.checked_sub(0xcfc).filter(|byte| *byte < 4)?;
        if self.latch & LATCH_ENABLE == 0 || byte + u16::from(size) > 4 {
            return None;
        }
        let [register, device_function, bus, extension] = self.latch.to_le_bytes();
        let bdf = Bdf { bus, device: device_function >> 3, function: device_function & 7 };
        let register = u16::from(extension & 0xf) << 8 | u16::from(register);
        Some((bdf, register + byte))
    }
}

/// What an offset into the memory-mapped configuration window means (PCIe 7.2.2): a function and a register offset
/// in 0..4096. `None` past bus 255.
pub fn ecam(offset: u64) -> Option<(Bdf, u16)> {
    let bus = u8::try_from(offset >> 20).ok()?;
    let bdf = Bdf { bus, device: (offset >> 15 & 31) as u8, function: (offset >> 12 & 7) as u8 };
    Some((bdf, (offset & 0xfff) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latch_selects_a_register() {
        let mut port = ConfigPort::default();
        assert_eq!(port.decode(0xcfc, 4), None, "disabled after reset");
        port.write_address(0xff00_0000 | 0x02 << 16 | 0x1f << 11 | 3 << 8 | 0x41);
        assert_eq!(port.read_address(), 0x8f02_fb40, "reserved bits read zero");
        let bdf = Bdf { bus: 2, device: 31, function: 3 };
        assert_eq!(port.decode(0xcfc, 4), Some((bdf, 0xf40)), "AMD's extension selects the upper registers");
        port.write_address(0x8002_fb40);
        assert_eq!(port.decode(0xcfc, 4), Some((bdf, 0x40)));
        assert_eq!(port.decode(0xcfe, 2), Some((bdf, 0x42)));
        assert_eq!(port.decode(0xcff, 2), None);
        assert_eq!(port.decode(0xcfb, 1), None);
        assert_eq!(port.decode(0xd00, 1), None);
    }

    #[test]
    fn the_window_selects_a_register() {
        let bdf = Bdf { bus: 1, device: 2, function: 3 };
        assert_eq!(ecam(1 << 20 | 2 << 15 | 3 << 12 | 0x123), Some((bdf, 0x123)));
        assert_eq!(ecam(256 << 20), None);
        assert_eq!(std::format!("{bdf}"), "01:02.3");
    }
}
