//! Registers that the cards have in common, and the way to them.
//!
//! The main type is [`Bus`], the way to one card; [`PciBus`] is that of a real one, and tests play others. Offsets and
//! bits are those of the 82574 datasheet, revision 3.4, section 10.2; the 8254x manual, revision 4.0, section 13.4 and
//! the 82576 datasheet, revision 2.87, section 8 have the same where no other is named.
#![expect(unsafe_code, reason = "takes over a device's registers")]

use crate::mmio::Registers;
use crate::pci::Function;
use core::fmt;
use virtio_drivers::Hal;

/// Device control.
pub(super) const CTRL: usize = 0x0000;
pub(super) const CTRL_MASTER_DISABLE: u32 = 1 << 2;
pub(super) const CTRL_AUTO_SPEED: u32 = 1 << 5;
pub(super) const CTRL_SET_LINK_UP: u32 = 1 << 6;
pub(super) const CTRL_FORCE_SPEED: u32 = 1 << 11;
pub(super) const CTRL_FORCE_DUPLEX: u32 = 1 << 12;
pub(super) const CTRL_RESET: u32 = 1 << 26;
/// Device status.
pub(super) const STATUS: usize = 0x0008;
pub(super) const STATUS_LINK_UP: u32 = 1 << 1;
pub(super) const STATUS_SPEED_SHIFT: u32 = 6;
pub(super) const STATUS_MASTER_ENABLED: u32 = 1 << 19;
/// One word of the EEPROM.
pub(super) const EERD: usize = 0x0014;
pub(super) const EERD_START: u32 = 1;
/// Extended control: the driver has taken over from management firmware.
pub(super) const CTRL_EXT: usize = 0x0018;
pub(super) const CTRL_EXT_DRIVER_LOADED: u32 = 1 << 28;
/// One register of the PHY.
pub(super) const MDIC: usize = 0x0020;
pub(super) const MDIC_PHY_1: u32 = 1 << 21;
pub(super) const MDIC_WRITE: u32 = 1 << 26;
pub(super) const MDIC_READ: u32 = 2 << 26;
pub(super) const MDIC_READY: u32 = 1 << 28;
pub(super) const MDIC_ERROR: u32 = 1 << 30;
/// Interrupt causes: reading clears them.
pub(super) const ICR: usize = 0x00c0;
/// Sets causes, as if they had occurred.
pub(super) const ICS: usize = 0x00c8;
/// Interrupt throttling, in units of 256 ns.
pub(super) const ITR: usize = 0x00c4;
/// Causes that interrupt: set and clear.
pub(super) const IMS: usize = 0x00d0;
pub(super) const IMC: usize = 0x00d8;
pub(super) const CAUSE_LINK: u32 = 1 << 2;
pub(super) const CAUSE_RECEIVED: u32 = 1 << 7;
/// Few transmit descriptors are left, by a threshold that stays off: only who sets it makes it occur.
pub(super) const CAUSE_TRANSMIT_LOW: u32 = 1 << 15;
/// Those that interrupt.
pub(super) const CAUSES: u32 = CAUSE_RECEIVED | CAUSE_LINK;
/// Receive control.
pub(super) const RCTL: usize = 0x0100;
pub(super) const RCTL_ENABLE: u32 = 1 << 1;
pub(super) const RCTL_ALL_UNICAST: u32 = 1 << 3;
pub(super) const RCTL_ALL_MULTICAST: u32 = 1 << 4;
pub(super) const RCTL_BROADCAST: u32 = 1 << 15;
pub(super) const RCTL_STRIP_CRC: u32 = 1 << 26;
/// Transmit control.
pub(super) const TCTL: usize = 0x0400;
pub(super) const TCTL_ENABLE: u32 = 1 << 1;
pub(super) const TCTL_PAD_SHORT: u32 = 1 << 3;
/// Collision threshold 15 and distance 64 (full duplex), as each manual's chapter on initialization wants.
pub(super) const TCTL_COLLISIONS: u32 = 0x0f << 4 | 0x40 << 12;
/// Gap between frames: 8254x only, the others start with the right one.
pub(super) const TIPG: usize = 0x0410;
pub(super) const TIPG_COPPER: u32 = 6 << 20 | 8 << 10 | 10;
/// Interrupt throttling of the igb cards, in microseconds from bit 2 (82576, section 8.8.12).
pub(super) const EITR: usize = 0x1680;
/// The receive queue.
pub(super) const RDBAL: usize = 0x2800;
pub(super) const RDBAH: usize = 0x2804;
pub(super) const RDLEN: usize = 0x2808;
/// How the igb cards place a frame (82576, section 8.10.2): buffers of 2 KiB, advanced descriptors with one buffer.
pub(super) const SRRCTL: usize = 0x280c;
pub(super) const SRRCTL_ADVANCED_2K: u32 = 1 << 25 | 2;
pub(super) const RDH: usize = 0x2810;
pub(super) const RDT: usize = 0x2818;
pub(super) const RXDCTL: usize = 0x2828;
/// The transmit queue.
pub(super) const TDBAL: usize = 0x3800;
pub(super) const TDBAH: usize = 0x3804;
pub(super) const TDLEN: usize = 0x3808;
pub(super) const TDH: usize = 0x3810;
pub(super) const TDT: usize = 0x3818;
pub(super) const TXDCTL: usize = 0x3828;
/// Prefetch below 8 descriptors, from 8 in memory on, write back each (82576, sections 8.10.10 and 8.12.15).
pub(super) const DCTL_THRESHOLDS: u32 = 1 << 16 | 8 << 8 | 8;
/// A queue of an igb card works only with this.
pub(super) const DCTL_ENABLE: u32 = 1 << 25;
/// 82574: thresholds count descriptors, and bit 22 must be set (section 10.2.6.6).
pub(super) const TXDCTL_82574: u32 = 1 << 24 | 1 << 22 | 1 << 16 | 1 << 8 | 31;
/// Checksums of received frames.
pub(super) const RXCSUM: usize = 0x5000;
pub(super) const RXCSUM_IP_TCP_UDP: u32 = 1 << 8 | 1 << 9;
/// Multicast filter: 128 words.
pub(super) const MTA: usize = 0x5200;
pub(super) const MTA_WORDS: usize = 128;
/// The card's own address.
pub(super) const RAL: usize = 0x5400;
pub(super) const RAH: usize = 0x5404;
pub(super) const RAH_VALID: u32 = 1 << 31;
/// Statistics: reading clears them.
pub(super) const CRCERRS: usize = 0x4000;
pub(super) const RXERRC: usize = 0x400c;
pub(super) const MPC: usize = 0x4010;
pub(super) const RLEC: usize = 0x4040;
pub(super) const GPRC: usize = 0x4074;
pub(super) const GPTC: usize = 0x4080;

/// What every register of a card reads as that is no longer there.
pub(super) const ALL_ONES: u32 = u32::MAX;

/// Bytes of registers that the driver uses.
const WINDOW_BYTES: u64 = 0x8000;
/// TSC ticks that take a microsecond at least: no processor counts faster.
const TICKS_PER_US: u64 = 5000;

/// The way to a card. It is shown as the place where the card is.
pub trait Bus: Send + fmt::Display {
    /// Reads a register, by its offset.
    fn read(&mut self, register: usize) -> u32;
    /// Writes a register. What was written to memory before is there when the card sees it.
    fn write(&mut self, register: usize, value: u32);
    /// Waits, only while a card starts.
    fn pause_us(&mut self, us: u64);
    /// Takes the right to memory from the card.
    fn stop_dma(&mut self);
    /// Whether the card is still on its bus. Its registers need not show that it is gone: some buses give zeroes.
    fn is_present(&mut self) -> bool;
}

/// A card on the host's PCI bus.
pub(crate) struct PciBus {
    function: Function,
    registers: Registers,
}

impl PciBus {
    /// Enables the function and maps its registers (BAR 0). `None` where they are not there.
    pub(super) fn open<H: Hal>(mut function: Function) -> Option<Self> {
        let (start, bytes) = function.memory_bar(0)?;
        if bytes < WINDOW_BYTES {
            return None;
        }
        function.enable();
        // SAFETY: the window lies in a memory BAR of a function that this driver owns and has just enabled.
        let registers = unsafe { Registers::map::<H>(start.as_u64(), WINDOW_BYTES as usize) };
        Some(Self { function, registers })
    }

    /// The function, to set up its interrupt.
    pub(super) fn function(&mut self) -> &mut Function {
        &mut self.function
    }
}

impl fmt::Display for PciBus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.function.fmt(out)
    }
}

impl Bus for PciBus {
    fn read(&mut self, register: usize) -> u32 {
        self.registers.read(register)
    }

    fn write(&mut self, register: usize, value: u32) {
        self.registers.write(register, value);
    }

    fn pause_us(&mut self, us: u64) {
        let start = cpu::tsc();
        while cpu::tsc().wrapping_sub(start) < us * TICKS_PER_US {
            core::hint::spin_loop();
        }
    }

    fn stop_dma(&mut self) {
        self.function.stop_dma();
    }

    fn is_present(&mut self) -> bool {
        let (vendor, device) = self.function.ids();
        self.function.read_config(0) == u32::from(device) << 16 | u32::from(vendor)
    }
}
