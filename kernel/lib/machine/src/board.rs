//! The board: chipset, PCI bus and devices behind one lock, and who answers at which port and address.

mod saved;

use crate::balloon::Balloon;
use crate::bays::Bays;
use crate::console::Console;
use crate::function::PciFunction;
use crate::guest_firmware::Firmware;
use crate::input::InputMode;
use crate::mail::{Mail, Tell};
use crate::meter::Meter;
use crate::network::{Card, NicConfig};
use crate::output::Outbox;
use crate::storage::{Disk, DiskConfig};
use crate::{End, Host, Machine};
use addr::{Gpa, GpaRange};
use alloc::vec::Vec;
use chipset::{Chipset, Clock, DebugPorts, DeliveryMode, Effect, Message};
use firmware::layout;
use guestmem::GuestMemory;
use pci::{Bdf, ConfigPort, ConfigSpace};
use virtio::{Function, Rng, Signal};

/// Where functions are placed before the guest starts, as firmware does it.
const IO_BARS: u16 = 0xc000;
const IO_BAR_STRIDE: u16 = 0x20;
const MMIO_BARS: u32 = 0xfe00_0000;
const MMIO_BAR_STRIDE: u32 = 0x1_0000;

/// How many random bytes a request gets at most.
const RANDOM_BYTES_MAX: usize = 64;

/// The LPC bridge's device number.
const LPC_DEVICE: u8 = 31;

/// The last device number that a function can have: one each, but the bridges'.
pub const LAST_DEVICE: u8 = LPC_DEVICE - 1;

/// Which function answers at a PCI device number; 0 is the host bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    Console,
    Rng,
    Disk(usize),
    Card(usize),
    Balloon,
}

/// All that is behind the board's lock.
pub struct Board {
    pub input_mode: InputMode,
    pub chipset: Chipset,
    pub(crate) bridge: ConfigSpace,
    /// What is there for a firmware of the guest's own.
    pub(crate) firmware: Option<Firmware>,
    config_port: ConfigPort,
    pub(crate) console: Console,
    pub(crate) rng: Function<Rng>,
    pub(crate) disks: Bays<Disk>,
    pub(crate) cards: Bays<Card>,
    pub(crate) balloon: Balloon,
    /// Device numbers from 1 on, up to the last that ever had one.
    slots: Vec<Option<Slot>>,
    /// Device numbers whose devices are to leave, and those of them that were pulled.
    pub(crate) leaving: u32,
    pub(crate) pulled: u32,
    /// The level of each device number's interrupt pin.
    pins: u32,
    /// What the chipset wants done; drained by [`Machine::carry_out`].
    pub(crate) effects: Vec<Effect>,
    /// What a function wants done; drained by [`Board::settle`].
    pub(crate) signals: Vec<Signal>,
    /// Queues with work, each once.
    kicked: Vec<(Slot, u16)>,
    pub(crate) end: Option<End>,
    /// What disks and cards may do, and queues that wait until they may.
    pub(crate) meter: Meter,
    /// When the boot vCPU thinks that a timer of the chipset is due.
    noted_deadline_ns: Option<u64>,
}

impl Board {
    pub fn new(
        wall_unix_ns: u64,
        memory: &GuestMemory,
        disks: Vec<DiskConfig>,
        nics: Vec<NicConfig>,
        debug: DebugPorts,
    ) -> Self {
        let (disks, cards) = (disks.into_iter().map(Disk::new).collect(), nics.into_iter().map(Card::new).collect());
        let slots: Vec<_> = Self::slots_as_made(&disks, &cards).map(Some).collect();
        assert!(slots.len() <= usize::from(LAST_DEVICE), "a machine of {} functions does not fit one bus", slots.len());
        let below = |range: &GpaRange| range.start() < layout::LOW_MEMORY_END;
        let low_bytes = memory.ranges().filter(below).map(GpaRange::bytes).sum();
        let high_bytes = memory.total_bytes() - low_bytes;
        Self {
            input_mode: InputMode::Solo,
            chipset: Chipset::with_ram(wall_unix_ns, low_bytes, high_bytes).with_debug_ports(debug),
            bridge: pci::host_bridge(),
            firmware: None,
            config_port: ConfigPort::default(),
            console: Console::new(),
            rng: Function::new(Rng::new()),
            disks,
            cards,
            balloon: Balloon::new(),
            slots,
            leaving: 0,
            pulled: 0,
            pins: 0,
            effects: Vec::new(),
            signals: Vec::new(),
            kicked: Vec::new(),
            end: None,
            meter: Meter::default(),
            noted_deadline_ns: None,
        }
    }

    /// What is where on a board of these disks and cards at first, from device number 1 on.
    fn slots_as_made(disks: &Bays<Disk>, cards: &Bays<Card>) -> impl Iterator<Item = Slot> + use<> {
        let (disks, cards) = (disks.numbers().count(), cards.numbers().count());
        let first = [Slot::Console, Slot::Rng].into_iter();
        first.chain((0..disks).map(Slot::Disk)).chain((0..cards).map(Slot::Card)).chain([Slot::Balloon])
    }

    /// Reads a port; all ones where nobody answers.
    pub fn port_read(&mut self, port: u16, size: u8, clock: Clock) -> u32 {
        let ones = u32::MAX >> (32 - 8 * u32::from(size));
        if let Some(value) = self.chipset.port_read(port, size, clock, &mut self.effects) {
            self.console.feed_uart(&mut self.chipset, &mut self.effects);
            return value;
        }
        if port == pci_ports::ADDRESS && size == 4 {
            return self.config_port.read_address();
        }
        if let Some((bdf, offset)) = self.config_port.decode(port, size) {
            return self.config_read(bdf, offset, size);
        }
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots[index] else { continue };
            let function = self.function(slot);
            if let Some(offset) = function.port_hit(port) {
                return function.port_read(offset, size) & ones;
            }
        }
        self.firmware.as_mut().and_then(|firmware| firmware.fw_cfg.port_read(port, size)).unwrap_or(ones)
    }

    /// Writes a port; nothing happens where nobody answers.
    pub fn port_write(&mut self, port: u16, size: u8, value: u32, clock: Clock) {
        if self.chipset.port_write(port, size, value, clock, &mut self.effects) {
            return;
        }
        if port == pci_ports::ADDRESS && size == 4 {
            return self.config_port.write_address(value);
        }
        if let Some((bdf, offset)) = self.config_port.decode(port, size) {
            return self.config_write(bdf, offset, size, value);
        }
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots[index] else { continue };
            if let Some(offset) = self.function(slot).port_hit(port) {
                self.with_function(slot, |function, signals| function.port_write(offset, size, value, signals));
                return;
            }
        }
        if let Some(firmware) = &mut self.firmware {
            firmware.fw_cfg.port_write(port, size, value);
        }
    }

    /// Reads a guest-physical address that is no memory; all ones where nobody answers.
    pub fn mmio_read(&mut self, gpa: Gpa, size: u8) -> u64 {
        if let Some(value) = self.chipset.mmio_read(gpa, size) {
            return value;
        }
        if let Some((flash, offset)) = self.flash_at(gpa) {
            return flash.read(offset, size);
        }
        if let Some((bdf, offset)) = self.ecam(gpa) {
            let low = u64::from(self.config_read(bdf, offset, size.min(4)));
            // Registers are 32 bits wide: a wider access is two.
            let high = if size == 8 { self.config_read(bdf, offset + 4, 4) } else { 0 };
            return low | u64::from(high) << 32;
        }
        match self.mmio_slot(gpa) {
            Some((slot, offset)) => {
                self.with_function(slot, |function, signals| function.mmio_read(offset, size, signals))
            }
            None => u64::MAX >> (64 - 8 * u32::from(size)),
        }
    }

    /// Writes a guest-physical address that is no memory.
    pub fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        if self.chipset.mmio_write(gpa, size, value, &mut self.effects) {
            return;
        }
        if let Some((flash, offset)) = self.flash_at(gpa) {
            flash.write(offset, size, value);
            return;
        }
        if let Some((bdf, offset)) = self.ecam(gpa) {
            self.config_write(bdf, offset, size.min(4), value as u32);
            if size == 8 {
                self.config_write(bdf, offset + 4, 4, (value >> 32) as u32);
            }
            return;
        }
        if let Some((slot, offset)) = self.mmio_slot(gpa) {
            self.with_function(slot, |function, signals| function.mmio_write(offset, size, value, signals));
        }
    }

    /// What was kicked and not yet looked at.
    pub fn take_kick(&mut self) -> Option<(Slot, u16)> {
        self.kicked.pop()
    }

    /// Notes that a queue has work left. From what is to leave nothing more is taken.
    pub fn kick_again(&mut self, slot: Slot, queue: u16) {
        if !self.kicked.contains(&(slot, queue)) && !self.is_leaving(slot) {
            self.kicked.push((slot, queue));
        }
    }

    /// Whether something waits for a vCPU that exits.
    pub fn has_work(&self) -> bool {
        !self.kicked.is_empty() || !self.effects.is_empty() || self.end.is_some()
    }

    /// When the chipset's timers are due, or queues that wait.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.chipset.deadline_ns().into_iter().chain(self.meter.due_ns()).min()
    }

    /// Whether they are due at another moment than the boot vCPU thinks.
    pub fn timers_changed(&self) -> bool {
        self.deadline_ns() != self.noted_deadline_ns
    }

    /// The boot vCPU takes note of when they are due.
    pub fn note_timers(&mut self) -> Option<u64> {
        self.noted_deadline_ns = self.deadline_ns();
        self.noted_deadline_ns
    }

    /// Sees to the random number device's queue, with bytes from `random`.
    pub fn pump_rng(&mut self, memory: &GuestMemory, random: &mut dyn FnMut(&mut [u8])) {
        let mut bytes = [0; RANDOM_BYTES_MAX];
        while let Some((head, wanted)) = self.rng.wanted(memory) {
            let bytes = &mut bytes[..wanted.min(RANDOM_BYTES_MAX)];
            random(bytes);
            self.rng.fill(memory, head, bytes, &mut self.signals);
        }
        // A ring that broke ends the batch without a fill.
        self.rng.flush(&mut self.signals);
        self.settle(Slot::Rng);
    }

    /// Somebody pressed the power button.
    pub fn press_power_button(&mut self) {
        self.chipset.press_power_button(&mut self.effects);
    }

    /// Calls `act` on a function and sees to what it signals.
    pub fn with_function<R>(&mut self, slot: Slot, act: impl FnOnce(&mut dyn PciFunction, &mut Vec<Signal>) -> R) -> R {
        let mut signals = core::mem::take(&mut self.signals);
        let result = act(self.function(slot), &mut signals);
        self.signals = signals;
        self.settle(slot);
        result
    }

    /// Has every queue looked at again.
    pub fn kick_all(&mut self) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots[index] else { continue };
            self.with_function(slot, |function, signals| function.kick_all(signals));
        }
    }

    /// Calls `each` with the guest memory of every queue.
    pub fn each_ring(&mut self, each: &mut dyn FnMut(GpaRange)) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots[index] else { continue };
            self.function(slot).each_ring(each);
        }
    }

    /// Sees to what a function signalled.
    pub fn settle(&mut self, slot: Slot) {
        for index in 0..self.signals.len() {
            match self.signals[index] {
                Signal::Msi(msi) => {
                    self.effects.extend(Message::from_msi(msi.address, msi.data).map(Effect::Interrupt));
                }
                Signal::Line(asserted) => self.set_pin(slot, asserted),
                Signal::Kicked(queue) => self.kick_again(slot, queue),
                Signal::Reset => {
                    self.drop_kicks(slot);
                    match slot {
                        Slot::Disk(disk) => self.disks[disk].reset(),
                        Slot::Console => self.console.note_reset(),
                        Slot::Balloon => self.balloon.reset(),
                        Slot::Rng | Slot::Card(_) => {}
                    }
                }
            }
        }
        self.signals.clear();
    }

    pub fn function(&mut self, slot: Slot) -> &mut dyn PciFunction {
        match slot {
            Slot::Console => &mut self.console.function,
            Slot::Rng => &mut self.rng,
            Slot::Disk(disk) => &mut self.disks[disk].function,
            Slot::Card(card) => &mut self.cards[card].function,
            Slot::Balloon => &mut self.balloon.function,
        }
    }

    /// Drives a function's interrupt pin. Every eighth device shares its GSI, which has the OR of their levels.
    pub(crate) fn set_pin(&mut self, slot: Slot, asserted: bool) {
        let gsi_of = |device| layout::pci_gsi(device, 0) as u8;
        let device = self.device_number(slot);
        self.pins = self.pins & !(1 << device) | u32::from(asserted) << device;
        let gsi = gsi_of(device);
        let level = (0..32).any(|other| self.pins & 1 << other != 0 && gsi_of(other) == gsi);
        self.chipset.set_gsi(gsi, level, &mut self.effects);
    }

    fn config_read(&mut self, bdf: Bdf, offset: u16, size: u8) -> u32 {
        match self.slot_at(bdf) {
            None => match self.bridge_at(bdf) {
                Some(bridge) => bridge.read(offset, size),
                None => u32::MAX >> (32 - 8 * u32::from(size)),
            },
            Some(slot) => self.with_function(slot, |function, signals| function.config_read(offset, size, signals)),
        }
    }

    fn config_write(&mut self, bdf: Bdf, offset: u16, size: u8, value: u32) {
        match self.slot_at(bdf) {
            None => {
                if let Some(bridge) = self.bridge_at(bdf) {
                    bridge.write(offset, size, value);
                }
            }
            Some(slot) => {
                self.with_function(slot, |function, signals| {
                    function.config_write(offset, size, value, signals);
                });
            }
        }
    }

    fn slot_at(&self, bdf: Bdf) -> Option<Slot> {
        if bdf.bus != 0 || bdf.function != 0 {
            return None;
        }
        self.slot(bdf.device)
    }

    /// What is at a device number.
    pub(crate) fn slot(&self, device: u8) -> Option<Slot> {
        *self.slots.get(usize::from(device).checked_sub(1)?)?
    }

    pub(crate) fn set_slot(&mut self, device: u8, slot: Option<Slot>) {
        let index = usize::from(device) - 1;
        if self.slots.len() <= index {
            self.slots.resize(index + 1, None);
        }
        self.slots[index] = slot;
    }

    /// The first device number that nobody has.
    pub(crate) fn free_device(&self) -> Option<u8> {
        (1..=LAST_DEVICE).find(|&device| self.slot(device).is_none())
    }

    /// A function's device number, while it is there.
    pub(crate) fn device_of(&self, slot: Slot) -> Option<u8> {
        self.slots.iter().position(|other| *other == Some(slot)).map(|index| index as u8 + 1)
    }

    pub(crate) fn drop_kicks(&mut self, slot: Slot) {
        self.kicked.retain(|(kicked, _)| *kicked != slot);
        self.meter.forget(slot);
    }

    pub(crate) fn device_number(&self, slot: Slot) -> u8 {
        self.device_of(slot).expect("every function has a slot")
    }

    fn mmio_slot(&mut self, gpa: Gpa) -> Option<(Slot, u32)> {
        (0..self.slots.len()).find_map(|index| {
            let slot = self.slots[index]?;
            Some((slot, self.function(slot).mmio_hit(gpa)?))
        })
    }

    /// The host bridge, or the LPC bridge that firmware wants.
    fn bridge_at(&mut self, bdf: Bdf) -> Option<&mut ConfigSpace> {
        match (bdf.bus, bdf.device, bdf.function) {
            (0, 0, 0) => Some(&mut self.bridge),
            (0, LPC_DEVICE, 0) => self.firmware.as_mut().map(|firmware| &mut firmware.lpc),
            _ => None,
        }
    }

    /// What an address in the memory-mapped configuration space means: that is where firmware put it, or where the tables
    /// say.
    fn ecam(&self, gpa: Gpa) -> Option<(Bdf, u16)> {
        if self.firmware.is_some() {
            let (start, bytes) = pci::configured_ecam(&self.bridge)?;
            return gpa.as_u64().checked_sub(start).filter(|&offset| offset < bytes).and_then(pci::ecam);
        }
        let window = layout::ECAM;
        window.contains(gpa).then(|| pci::ecam(gpa.as_u64() - window.start().as_u64())).flatten()
    }

    /// Places every function as firmware does, for a guest that starts without one.
    pub fn place_functions(&mut self) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots[index] else { continue };
            let line = layout::pci_gsi(index as u8 + 1, 0) as u8;
            let io = IO_BARS + IO_BAR_STRIDE * index as u16;
            let mmio = MMIO_BARS + MMIO_BAR_STRIDE * index as u32;
            match slot {
                Slot::Console => place(&mut self.console.function, io, mmio, line),
                Slot::Rng => place(&mut self.rng, io, mmio, line),
                Slot::Disk(disk) => place(&mut self.disks[disk].function, io, mmio, line),
                Slot::Card(card) => place(&mut self.cards[card].function, io, mmio, line),
                Slot::Balloon => place(&mut self.balloon.function, io, mmio, line),
            }
        }
    }
}

impl Machine {
    /// Sees to what the board wants done: interrupts into mailboxes, console bytes into the outbox, and the machine's
    /// end. Without an outbox console bytes wait in the board's effects for the next vCPU that exits.
    pub(crate) fn carry_out(&self, board: &mut Board, mut outbox: Option<&mut Outbox>, host: &mut dyn Host) {
        self.carry_out_ejects(board);
        let mut effects = core::mem::take(&mut board.effects);
        let mut left = 0;
        for index in 0..effects.len() {
            match effects[index] {
                effect @ (Effect::Console(byte) | Effect::DebugConsole(byte)) => match &mut outbox {
                    Some(outbox) => {
                        if matches!(effect, Effect::Console(_)) {
                            board.console.note_uart_output();
                        }
                        outbox.push_console(&[byte]);
                    }
                    None => {
                        effects[left] = effects[index];
                        left += 1;
                    }
                },
                Effect::Interrupt(message) => self.send(&message, host),
                Effect::PicLine(asserted) => self.post(0, Mail::PicLine(asserted), host),
                Effect::LevelEoi(vector) => {
                    let more = board.effects.len();
                    board.chipset.end_of_interrupt(vector, &mut board.effects);
                    for index in more..board.effects.len() {
                        if let Effect::Interrupt(message) = board.effects[index] {
                            self.send(&message, host);
                        }
                    }
                    board.effects.truncate(more);
                }
                Effect::PowerOff => board.end = board.end.take().or(Some(End::PowerOff)),
                Effect::Reset => board.end = board.end.take().or(Some(End::Reset)),
                Effect::Eject(_) => {}
                Effect::Exit(code) => board.end = board.end.take().or(Some(End::Exit(code))),
            }
        }
        effects.truncate(left);
        board.effects = effects;
    }

    /// Sends an interrupt message to the vCPUs that it concerns.
    pub(crate) fn send(&self, message: &Message, host: &mut dyn Host) {
        let Message { vector, level_triggered, .. } = *message;
        let mail = match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => Mail::Vector { vector, level_triggered },
            DeliveryMode::Nmi => Mail::Nmi,
            DeliveryMode::Init => Mail::Init,
            DeliveryMode::Startup => Mail::Startup(vector),
            DeliveryMode::ExtInt => Mail::ExtInt,
            // There is no system management mode.
            DeliveryMode::Smi => return,
        };
        self.addresses.of(message).for_each(|vcpu| self.post(vcpu, mail, host));
    }

    pub(crate) fn post(&self, vcpu: usize, mail: Mail, host: &mut dyn Host) {
        match self.mailboxes[vcpu].post(mail) {
            Tell::Nobody => {}
            Tell::Vcpu => host.kick(vcpu),
            Tell::Processor => host.notify(vcpu),
        }
    }
}

/// PCI configuration mechanism 1.
mod pci_ports {
    pub const ADDRESS: u16 = 0xcf8;
}

fn place<D: virtio::Device>(function: &mut Function<D>, io: u16, mmio: u32, line: u8) {
    function.place_bars(io, mmio);
    function.set_interrupt_line(line);
}
