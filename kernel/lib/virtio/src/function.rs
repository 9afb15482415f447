//! One virtio PCI function (4.1): configuration space, the two BARs and what lies in them.
//!
//! [`Function`] joins a [`Device`] to its transport. BAR 0 is 32 ports, of which the first takes notifications
//! (4.1.4.4: a port write names its queue and needs no decoding of an instruction); BAR 1 is 16 KiB of memory with the
//! other structures. The devices' own methods are in their modules.

use crate::chain::Chain;
use crate::common_configuration::{COMMON_BYTES, StatusChange};
use crate::queue::Queue;
use crate::transport::{STATUS_FEATURES_OK, STATUS_NEEDS_RESET, Transport};
use crate::{Device, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Signal, saved};
use addr::{Gpa, GpaRange};
use alloc::vec::Vec;
use pci::{BarKind, CAPABILITY_VENDOR, Change, ConfigSpace, Identity, MsiX};
use state::Invalid;

/// Ports in BAR 0.
pub const IO_BAR_BYTES: u16 = 32;
/// Bytes of memory in BAR 1.
pub const MMIO_BAR_BYTES: u32 = 0x4000;

const IO_BAR: u8 = 0;
const MMIO_BAR: u8 = 1;

/// What lies where in BAR 1, a page each.
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const MSIX: u32 = 0x3000;
const MSIX_PENDING: u32 = 0x800;

/// Capability types (4.1.4).
const CAPABILITY_COMMON: u8 = 1;
const CAPABILITY_NOTIFY: u8 = 2;
const CAPABILITY_ISR: u8 = 3;
const CAPABILITY_DEVICE: u8 = 4;
const CAPABILITY_WINDOW: u8 = 5;

/// One virtio PCI function.
#[derive(Clone, Debug)]
pub struct Function<D> {
    /// The device behind the registers.
    pub device: D,
    pub(crate) transport: Transport,
    /// The chain being worked on; empty between calls, kept for its room.
    pub(crate) chain: Chain,
    /// The capability that gives access to the BARs through configuration space (4.1.4.9).
    window: u16,
    /// Where the BARs are decoded at this moment.
    io_base: Option<u16>,
    mmio_base: Option<u32>,
}

impl<D: Device> Function<D> {
    /// The function as after power-on, BARs not placed, wired to pin INTA#.
    pub fn new(device: D) -> Self {
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1040 + D::TYPE,
            // 4.1.2.1: a function that is modern only.
            revision: 1,
            class: D::CLASS,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1040 + D::TYPE,
        });
        config.add_bar(IO_BAR.into(), BarKind::Io, IO_BAR_BYTES.into());
        config.add_bar(MMIO_BAR.into(), BarKind::Memory32, MMIO_BAR_BYTES.into());
        config.set_interrupt(1, 0xff);
        let vectors = device.queue_sizes().len() as u16 + 1;
        config.add_msix(vectors, MMIO_BAR, MSIX, MSIX + MSIX_PENDING);
        let window = add_capabilities(&mut config, D::CONFIG_BYTES);
        let offered = device.features() | F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1;
        let transport = Transport::new(config, MsiX::new(vectors, MSIX_PENDING), device.queue_sizes(), offered);
        Self { device, transport, chain: Chain::new(), window, io_base: None, mmio_base: None }
    }

    /// What restores the registers of the function; the device's own part is beside it.
    pub fn save(&self) -> saved::Function {
        self.transport.save()
    }

    /// Makes a fresh function go on where the saved one was. The device learns its driver's features again.
    ///
    /// # Errors
    /// Where no function of this device can have been there, or the driver settled on what is not offered here.
    pub fn restore(&mut self, saved: &saved::Function) -> Result<(), Invalid> {
        self.transport.restore(saved)?;
        if self.transport.status & STATUS_FEATURES_OK != 0 {
            let features = self.transport.features;
            let settled = self.transport.features_valid() && self.device.accepts(features);
            Invalid::unless(settled, "the driver's features are not offered here")?;
            self.device.set_driver_features(features);
        }
        self.decode_bars();
        Ok(())
    }

    /// Places both BARs and has them decoded, as firmware does before it starts a system.
    pub fn place_bars(&mut self, io_base: u16, mmio_base: u32) {
        let config = &mut self.transport.config;
        config.place_bar(IO_BAR.into(), io_base.into());
        config.place_bar(MMIO_BAR.into(), mmio_base.into());
        config.enable(true, true, config.bus_master());
        self.decode_bars();
    }

    /// Notes in configuration space which interrupt line pin INTA# is routed to.
    pub fn set_interrupt_line(&mut self, line: u8) {
        self.transport.config.set_interrupt(1, line);
    }

    /// Reads `size` (1, 2 or 4) bytes of configuration space.
    pub fn config_read(&mut self, offset: u16, size: u8, signals: &mut Vec<Signal>) -> u32 {
        if offset == self.window + WINDOW_DATA {
            return self.window_read(signals);
        }
        self.transport.config.read(offset, size)
    }

    /// Writes `size` (1, 2 or 4) bytes of configuration space.
    pub fn config_write(&mut self, offset: u16, size: u8, value: u32, signals: &mut Vec<Signal>) {
        if offset == self.window + WINDOW_DATA {
            return self.window_write(value, signals);
        }
        let was_live = self.transport.live();
        let Change { bars, command, msix } = self.transport.config.write(offset, size, value);
        if bars || command {
            self.decode_bars();
        }
        if msix {
            let control = self.transport.config.msix_control();
            self.transport.msix.set_control(control, |message| signals.push(Signal::Msi(message)));
        }
        if msix || command {
            self.transport.update_line(signals);
        }
        if !was_live && self.transport.live() {
            self.transport.kick_all(signals);
        }
    }

    /// The offset into BAR 0 of a port, where BAR 0 is decoded there.
    pub fn port_hit(&self, port: u16) -> Option<u16> {
        port.checked_sub(self.io_base?).filter(|offset| *offset < IO_BAR_BYTES)
    }

    /// The offset into BAR 1 of an address, where BAR 1 is decoded there.
    pub fn mmio_hit(&self, gpa: Gpa) -> Option<u32> {
        let offset = gpa.as_u64().checked_sub(self.mmio_base?.into())?;
        (offset < u64::from(MMIO_BAR_BYTES)).then_some(offset as u32)
    }

    /// Reads `size` bytes at `offset` into BAR 0: notification registers read as zero.
    pub fn port_read(&mut self, _offset: u16, _size: u8) -> u32 {
        0
    }

    /// Writes at `offset` into BAR 0: the value written to the first port is the queue with work.
    pub fn port_write(&mut self, offset: u16, _size: u8, value: u32, signals: &mut Vec<Signal>) {
        if offset == 0 {
            self.transport.kick(value as u16, signals);
        }
    }

    /// Reads `size` (1, 2, 4 or 8) bytes at `offset` into BAR 1. Reading the ISR status lowers the pin.
    pub fn mmio_read(&mut self, offset: u32, size: u8, signals: &mut Vec<Signal>) -> u64 {
        match offset {
            COMMON..ISR => self.transport.common_read(offset - COMMON, size),
            ISR => self.transport.take_isr(signals).into(),
            DEVICE..MSIX => {
                let mut bytes = [0; 8];
                self.device.config_read(offset - DEVICE, &mut bytes[..usize::from(size.min(8))]);
                u64::from_le_bytes(bytes)
            }
            MSIX..MMIO_BAR_BYTES => self.transport.msix.read(offset - MSIX, size),
            _ => 0,
        }
    }

    /// Writes `size` (1, 2, 4 or 8) bytes at `offset` into BAR 1.
    pub fn mmio_write(&mut self, offset: u32, size: u8, value: u64, signals: &mut Vec<Signal>) {
        match offset {
            COMMON..ISR => match self.transport.common_write(offset - COMMON, size, value) {
                Some(StatusChange::Reset) => self.reset(signals),
                Some(StatusChange::Negotiate) => self.negotiate(),
                Some(StatusChange::Start) => self.transport.kick_all(signals),
                None => {}
            },
            DEVICE..MSIX => {
                self.device.config_write(offset - DEVICE, &value.to_le_bytes()[..usize::from(size.min(8))]);
            }
            MSIX..MMIO_BAR_BYTES => {
                signals.extend(self.transport.msix.write(offset - MSIX, size, value).map(Signal::Msi));
            }
            _ => {}
        }
    }

    /// Keeps the reset that was just signalled from ending: the driver's reads of the status stay non-zero until
    /// [`Function::finish_reset`], so that it does not reuse memory the host still writes to.
    pub fn hold_reset(&mut self) {
        self.transport.reset_held = true;
    }

    /// Ends a reset that was held.
    pub fn finish_reset(&mut self) {
        self.transport.reset_held = false;
    }

    /// Passes on what waits for a chance to signal. The notify methods do this too; it is for work that ended without
    /// one, as where [`Function::wanted`] found a broken ring.
    pub fn flush(&mut self, signals: &mut Vec<Signal>) {
        self.transport.flush(signals);
    }

    /// Has every queue looked at again: guest memory that was not here has come.
    pub fn kick_all(&self, signals: &mut Vec<Signal>) {
        self.transport.kick_all(signals);
    }

    /// The guest memory of its queues, which the device reaches without being asked.
    pub fn rings(&self) -> impl Iterator<Item = GpaRange> + '_ {
        self.transport.queues.iter().flat_map(Queue::rings)
    }

    /// Whether the driver is ready and the device takes work.
    pub fn live(&self) -> bool {
        self.transport.live()
    }

    /// Whether the driver broke a rule that only a reset repairs (DEVICE_NEEDS_RESET, 2.1.2).
    pub fn needs_reset(&self) -> bool {
        self.transport.status & STATUS_NEEDS_RESET != 0
    }

    /// The features both sides settled on; 0 before that.
    pub fn driver_features(&self) -> u64 {
        if self.transport.status & STATUS_FEATURES_OK != 0 { self.transport.features } else { 0 }
    }

    fn reset(&mut self, signals: &mut Vec<Signal>) {
        let used = self.transport.status != 0;
        self.transport.reset(signals);
        self.device.reset();
        if used {
            signals.push(Signal::Reset);
        }
    }

    /// Sets FEATURES_OK, unless the device cannot work with the driver's choice (3.1.1 step 5).
    fn negotiate(&mut self) {
        let features = self.transport.features;
        if self.transport.features_valid() && self.device.accepts(features) {
            self.transport.status |= STATUS_FEATURES_OK;
            self.device.set_driver_features(features);
        }
    }

    fn decode_bars(&mut self) {
        (self.io_base, self.mmio_base) = (None, None);
        for bar in self.transport.config.decoded() {
            match bar.kind {
                BarKind::Io => self.io_base = Some(bar.base as u16),
                BarKind::Memory32 | BarKind::Memory64 => self.mmio_base = Some(bar.base as u32),
            }
        }
    }

    /// What the window capability points at: BAR, offset, size; `None` where 4.1.4.9 does not allow it.
    fn window_target(&self) -> Option<(u8, u32, u8)> {
        let config = &self.transport.config;
        let bar = config.read(self.window + 4, 1) as u8;
        let offset = config.read(self.window + 8, 4);
        let length = config.read(self.window + 12, 4);
        (matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length)).then_some((bar, offset, length as u8))
    }

    fn window_read(&mut self, signals: &mut Vec<Signal>) -> u32 {
        match self.window_target() {
            Some((MMIO_BAR, offset, size)) => self.mmio_read(offset, size, signals) as u32,
            _ => 0,
        }
    }

    fn window_write(&mut self, value: u32, signals: &mut Vec<Signal>) {
        match self.window_target() {
            Some((IO_BAR, offset @ 0..0x1_0000, size)) => self.port_write(offset as u16, size, value, signals),
            Some((MMIO_BAR, offset, size)) => self.mmio_write(offset, size, value.into(), signals),
            _ => {}
        }
    }
}

/// The data register in the window capability.
const WINDOW_DATA: u16 = 16;

/// Adds the capabilities that say where the structures are (4.1.4) and returns the offset of the window's.
fn add_capabilities(config: &mut ConfigSpace, device_bytes: u32) -> u16 {
    let mut add = |kind, bar, offset, length, extra: &[u8]| {
        let mut body = [0; 18];
        body[0] = 16 + extra.len() as u8;
        body[1] = kind;
        body[2] = bar;
        body[6..10].copy_from_slice(&u32::to_le_bytes(offset));
        body[10..14].copy_from_slice(&u32::to_le_bytes(length));
        body[14..14 + extra.len()].copy_from_slice(extra);
        config.add_capability(CAPABILITY_VENDOR, &body[..14 + extra.len()])
    };
    add(CAPABILITY_COMMON, MMIO_BAR, COMMON, COMMON_BYTES, &[]);
    add(CAPABILITY_ISR, MMIO_BAR, ISR, 1, &[]);
    if device_bytes > 0 {
        add(CAPABILITY_DEVICE, MMIO_BAR, DEVICE, device_bytes, &[]);
    }
    // A multiplier of zero: all queues share the one register.
    add(CAPABILITY_NOTIFY, IO_BAR, 0, 4, &0u32.to_le_bytes());
    let window = add(CAPABILITY_WINDOW, 0, 0, 0, &[0; 4]);
    config.make_writable(window + 4, 1);
    config.make_writable(window + 8, 8);
    window
}

#[cfg(test)]
mod tests;
