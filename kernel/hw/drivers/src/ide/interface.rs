//! What is said over an IDE channel's registers (ATA/ATAPI-7 volume 2, section 5; Bus Master IDE 1.0, sections 2 and 3).
//!
//! The main type is [`Interface`]: each method is one step of the standards' protocols, none waits longer than the 400
//! ns that a device's status takes. [`super::channel`] decides which comes next.

use super::ports::{Ports, Register};
use crate::ata::command::{Command, Data};
use crate::ata::{PAGE_BYTES, STATUS_BUSY, STATUS_DATA_REQUEST};

const STATUS_ERROR: u8 = 1 << 0;
const STATUS_FAULT: u8 = 1 << 5;
/// The error register: the data was spoilt on the cable.
const ERROR_CRC: u8 = 1 << 7;
/// What nobody drives reads as, with the pull-down of the highest line and without.
const FLOATING: [u8; 2] = [0x7f, 0xff];

/// The device register: bits that are always set, and which of the two devices.
const DEVICE_OBSOLETE: u8 = 0xa0;
const DEVICE_UNIT: u8 = 4;

/// Device control: no interrupts; both devices are reset while it is set.
const CONTROL_NO_INTERRUPT: u8 = 1 << 1;
const CONTROL_RESET: u8 = 1 << 2;

/// The bus master's command (section 2.1): run; the data goes to memory.
const MASTER_START: u8 = 1 << 0;
const MASTER_TO_MEMORY: u8 = 1 << 3;
/// The bus master's status (section 2.2). Error and interrupt are withdrawn by writing a one.
const MASTER_ACTIVE: u8 = 1 << 0;
const MASTER_ERROR: u8 = 1 << 1;
const MASTER_INTERRUPT: u8 = 1 << 2;
/// What firmware notes there about the devices.
const MASTER_NOTES: u8 = 3 << 5;
const MASTER_SIMPLEX: u8 = 1 << 7;

/// Reads of a register that take 400 ns together at least.
const PAUSE_READS: u32 = 5;

/// What a device is by its signature (section 5.15).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Signature {
    Disk,
    /// An optical drive, mostly.
    Packet,
    /// None, or nothing known.
    Unknown,
}

/// How a command stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    UnderWay,
    Done,
    /// The device says that it failed: its error register.
    Failed(u8),
    /// It came to no proper end, but another try may.
    Broken(&'static str),
    /// Nobody drives the registers.
    Gone,
}

/// A channel's registers, by what is done with them.
pub(super) struct Interface<P> {
    ports: P,
    has_interrupt: bool,
}

impl<P: Ports> Interface<P> {
    /// The channel at these ports, silent.
    pub(super) fn new(ports: P) -> Self {
        Self { ports, has_interrupt: false }
    }

    /// Lets the devices interrupt from here on. Even a channel that is polled lets them: the bus master notes it.
    pub(super) fn let_interrupt(&mut self) {
        self.has_interrupt = true;
        self.ports.write(Register::Control, 0);
    }

    /// The selected device's status.
    pub(super) fn status(&mut self) -> u8 {
        self.ports.read(Register::Control)
    }

    /// Whether it waits for a command.
    pub(super) fn is_ready(&mut self) -> bool {
        self.status() & (STATUS_BUSY | STATUS_DATA_REQUEST) == 0
    }

    /// Whether nobody drives the selected device's status.
    pub(super) fn is_floating(&mut self) -> bool {
        FLOATING.contains(&self.status())
    }

    /// Selects a device: 0 or 1.
    pub(super) fn select(&mut self, unit: usize) {
        self.ports.write(Register::Device, device_bits(unit));
        self.pause();
    }

    /// Gives the selected device, which is ready, a command. `is_wide`: the device takes 48-bit addresses.
    pub(super) fn issue(&mut self, unit: usize, command: &Command, is_wide: bool) {
        let lba = command.lba.to_le_bytes();
        let ([features, features_high], [count, count_high]) =
            (command.features.to_le_bytes(), command.count.to_le_bytes());
        let values = [features, count, lba[0], lba[1], lba[2]];
        if is_wide {
            self.write_block([features_high, count_high, lba[3], lba[4], lba[5]]);
        }
        self.write_block(values);
        self.ports.write(Register::Device, command.device | device_bits(unit));
        self.ports.write(Register::Status, command.opcode);
        self.pause();
    }

    /// The registers are two deep: what is written first becomes the high halves (section 6.2).
    fn write_block(&mut self, values: [u8; 5]) {
        let registers = [Register::Error, Register::Count, Register::LbaLow, Register::LbaMid, Register::LbaHigh];
        registers.into_iter().zip(values).for_each(|(register, value)| self.ports.write(register, value));
    }

    /// Until the status is that of the device, or of the command.
    fn pause(&mut self) {
        for _ in 0..PAUSE_READS {
            self.status();
        }
    }

    /// What the selected device is; meaningful after a reset, before any command.
    pub(super) fn signature(&mut self) -> Signature {
        match [Register::LbaMid, Register::LbaHigh].map(|register| self.ports.read(register)) {
            [0, 0] => Signature::Disk,
            [0x14, 0xeb] => Signature::Packet,
            _ => Signature::Unknown,
        }
    }

    /// How a command stands that brings a page by the processor; its failure withdraws the interrupt.
    pub(super) fn page_progress(&mut self) -> Progress {
        match self.status() {
            status if FLOATING.contains(&status) => Progress::Gone,
            status if status & STATUS_BUSY != 0 => Progress::UnderWay,
            status if status & (STATUS_ERROR | STATUS_FAULT) != 0 => Progress::Failed(self.take_error()),
            status if status & STATUS_DATA_REQUEST != 0 => Progress::Done,
            // Where no device is, the other answers with this.
            0 => Progress::Gone,
            _ => Progress::UnderWay,
        }
    }

    /// Takes the page that a device brought.
    pub(super) fn take_page(&mut self) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        page.chunks_exact_mut(2).for_each(|pair| pair.copy_from_slice(&self.ports.read_data().to_le_bytes()));
        self.ports.read(Register::Status);
        page
    }

    /// Prepares the bus master for a command: its table, and nothing noted (section 3.1, steps 1 and 2).
    pub(super) fn prepare(&mut self, table: u32, data: Data) {
        self.ports.set_table(table);
        self.ports.write(Register::MasterCommand, direction(data));
        self.clear_notes();
    }

    /// Starts the bus master, after the command was given (step 4).
    pub(super) fn start(&mut self, data: Data) {
        self.ports.write(Register::MasterCommand, direction(data) | MASTER_START);
    }

    /// Stops the bus master; false where it goes on all the same.
    pub(super) fn stop(&mut self) -> bool {
        let command = self.ports.read(Register::MasterCommand);
        self.ports.write(Register::MasterCommand, command & MASTER_TO_MEMORY);
        let status = self.ports.read(Register::MasterStatus);
        // One that is gone reads as all ones.
        status == u8::MAX || status & MASTER_ACTIVE == 0
    }

    /// Whether the controller's two channels cannot both do DMA.
    pub(super) fn is_simplex(&mut self) -> bool {
        self.ports.read(Register::MasterStatus) & MASTER_SIMPLEX != 0
    }

    /// How a command stands that moves such data by the bus master, and withdraws the interrupt of one that ended.
    pub(super) fn progress(&mut self, data: Data) -> Progress {
        // Until the interrupt is noted, data may be on its way to memory (section 2.2, bit 2).
        let master = self.ports.read(Register::MasterStatus);
        let is_noted = master & (MASTER_INTERRUPT | MASTER_ERROR) != 0;
        if data != Data::None && !is_noted {
            return Progress::UnderWay;
        }
        let status = self.status();
        if status == u8::MAX && master == u8::MAX {
            return Progress::Gone;
        }
        if master & MASTER_ERROR != 0 {
            return Progress::Broken("the bus master met an error");
        }
        if status & STATUS_BUSY != 0 {
            return Progress::UnderWay;
        }
        // Steps 7 and 8: the bus master stops, and the status withdraws the interrupt.
        self.stop();
        let status = self.ports.read(Register::Status);
        self.clear_notes();
        if status & (STATUS_ERROR | STATUS_FAULT) != 0 {
            return match self.take_error() {
                error if error & ERROR_CRC != 0 && data != Data::None => Progress::Broken("the cable spoilt data"),
                error => Progress::Failed(error),
            };
        }
        let is_whole = status & STATUS_DATA_REQUEST == 0 && (data == Data::None || master & MASTER_ACTIVE == 0);
        if is_whole { Progress::Done } else { Progress::Broken("a command ended before its data") }
    }

    fn take_error(&mut self) -> u8 {
        self.ports.read(Register::Status);
        self.ports.read(Register::Error)
    }

    fn clear_notes(&mut self) {
        let notes = self.ports.read(Register::MasterStatus) & MASTER_NOTES;
        self.ports.write(Register::MasterStatus, notes | MASTER_INTERRUPT | MASTER_ERROR);
    }

    /// Begins to reset both devices (section 9.2). It is held 5 us at least.
    pub(super) fn hold_reset(&mut self) {
        self.ports.write(Register::Control, CONTROL_NO_INTERRUPT | CONTROL_RESET);
    }

    /// Ends it. Their status means something 2 ms later.
    pub(super) fn release_reset(&mut self) {
        let control = if self.has_interrupt { 0 } else { CONTROL_NO_INTERRUPT };
        self.ports.write(Register::Control, control);
    }
}

fn device_bits(unit: usize) -> u8 {
    DEVICE_OBSOLETE | (unit as u8) << DEVICE_UNIT
}

fn direction(data: Data) -> u8 {
    if data == Data::In { MASTER_TO_MEMORY } else { 0 }
}
