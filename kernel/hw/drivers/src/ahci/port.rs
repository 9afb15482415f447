//! One port's registers (AHCI 1.3.1, section 3.3).
//!
//! The main type is [`Port`]: each method is one step of the specification's procedures, none waits. [`super::disk`]
//! decides which comes next.

use crate::ata::{STATUS_BUSY, STATUS_DATA_REQUEST};
use crate::mmio::Words;

/// Where the first port's registers are, and how many bytes each port has.
pub(super) const PORTS_AT: usize = 0x100;
pub(super) const PORT_BYTES: usize = 0x80;

const CLB: usize = 0x00;
const CLBU: usize = 0x04;
const FB: usize = 0x08;
const FBU: usize = 0x0c;
const IS: usize = 0x10;
const IE: usize = 0x14;
const CMD: usize = 0x18;
const TFD: usize = 0x20;
const SIG: usize = 0x24;
const SSTS: usize = 0x28;
const SCTL: usize = 0x2c;
const SERR: usize = 0x30;
const SACT: usize = 0x34;
const CI: usize = 0x38;

/// PxCMD (section 3.3.7).
const CMD_START: u32 = 1 << 0;
const CMD_SPIN_UP: u32 = 1 << 1;
const CMD_POWER_ON: u32 = 1 << 2;
const CMD_FRAME_RECEIVE: u32 = 1 << 4;
const CMD_FRAMES_RUNNING: u32 = 1 << 14;
const CMD_LIST_RUNNING: u32 = 1 << 15;
/// Alpine and slumber on their own, and the mark of an optical drive: all off.
const CMD_OFF: u32 = 1 << 24 | 1 << 25 | 1 << 26 | 1 << 27;
const CMD_ACTIVE: u32 = 1 << 28;
const CMD_COMMUNICATION: u32 = 0xf << 28;

/// PxSSTS and PxSCTL (sections 3.3.10 and 3.3.11).
const DETECTION: u32 = 0xf;
const DETECTED_AND_LINKED: u32 = 3;
const DETECTION_OFFLINE: u32 = 4;
const CONTROL_RESET: u32 = 1;
/// No partial, slumber or sleep state is entered.
const CONTROL_NO_POWER_STATES: u32 = 7 << 8;

/// PxIS (section 3.3.5).
const EVENT_FRAME: u32 = 1 << 0;
const EVENT_PIO: u32 = 1 << 1;
const EVENT_DEVICE_BITS: u32 = 1 << 3;
const EVENT_CONNECT: u32 = 1 << 6;
const EVENT_LINK: u32 = 1 << 22;
const EVENT_OVERFLOW: u32 = 1 << 24;
const EVENT_INTERFACE: u32 = 1 << 27;
const EVENT_HOST_DATA: u32 = 1 << 28;
const EVENT_HOST_FATAL: u32 = 1 << 29;
const EVENT_TASK_FILE: u32 = 1 << 30;
const EVENTS_FATAL: u32 = EVENT_OVERFLOW | EVENT_INTERFACE | EVENT_HOST_DATA | EVENT_HOST_FATAL;
const EVENTS_LINK: u32 = EVENT_CONNECT | EVENT_LINK;
/// A command, or several queued ones, ended; the second where the last data of one came with its end.
const EVENTS_DONE: u32 = EVENT_FRAME | EVENT_PIO | EVENT_DEVICE_BITS;
/// Those that interrupt.
const EVENTS: u32 = EVENT_FRAME | EVENT_DEVICE_BITS | EVENTS_FATAL | EVENTS_LINK | EVENT_TASK_FILE;

/// What is behind a port by its signature (section 5.2.2.4; ACS-4, section 6.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Signature {
    Disk,
    /// An optical drive.
    Packet,
    Multiplier,
    /// An enclosure's processor.
    Enclosure,
    Unknown(u32),
}

/// What happened at a port since it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Events {
    /// Commands may have ended. Without this the lists of commands are not to be believed: a controller that is gone
    /// shows empty ones.
    pub done: bool,
    /// A command failed: PxIS.TFES.
    pub task_file_error: bool,
    /// The link or the host bus failed under commands: every command has to be given again.
    pub fatal: bool,
    /// The link went down, or came up.
    pub link: bool,
    /// The controller itself is gone: registers read as all ones.
    pub gone: bool,
}

/// A port.
pub(super) struct Port<W> {
    registers: W,
    /// The controller's IS register.
    pending: W,
    number: u8,
}

impl<W: Words> Port<W> {
    /// Port `number` of the controller whose registers are all in `all`; `None` where they do not reach so far.
    pub(super) fn new(all: &W, number: u8) -> Option<Self> {
        let registers = all.part(PORTS_AT + usize::from(number) * PORT_BYTES, PORT_BYTES)?;
        Some(Self { registers, pending: all.part(super::hba::IS, 4)?, number })
    }

    /// Its number on the controller.
    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// Gives the port its command list and the place for received frames, and lets it receive (section 10.1.2). The
    /// port is stopped, and both lie in the lower 4 GiB where the controller has no 64-bit addresses.
    pub(super) fn prepare(&mut self, command_list: u64, frames: u64) {
        self.registers.write(CLB, command_list as u32);
        self.registers.write(CLBU, (command_list >> 32) as u32);
        self.registers.write(FB, frames as u32);
        self.registers.write(FBU, (frames >> 32) as u32);
        self.clear_errors();
        self.registers.write(SCTL, CONTROL_NO_POWER_STATES);
        let command = self.registers.read(CMD) & !(CMD_OFF | CMD_COMMUNICATION | CMD_START);
        self.registers.write(CMD, command | CMD_FRAME_RECEIVE | CMD_SPIN_UP | CMD_POWER_ON | CMD_ACTIVE);
    }

    /// Whether there is a device with which the link stands.
    pub(super) fn is_linked(&self) -> bool {
        self.registers.read(SSTS) & DETECTION == DETECTED_AND_LINKED
    }

    /// Whether it processes commands of a device with which the link stands.
    pub(super) fn runs(&self) -> bool {
        const RUNNING: u32 = CMD_LIST_RUNNING | CMD_START;
        let command = self.registers.read(CMD);
        command != u32::MAX && command & RUNNING == RUNNING && self.is_linked()
    }

    /// Whether nothing at all is plugged in, as far as a port can tell that listens.
    pub(super) fn is_empty(&self) -> bool {
        let listens = self.registers.read(CMD) & CMD_SPIN_UP != 0;
        listens && matches!(self.registers.read(SSTS) & DETECTION, 0)
    }

    /// Whether the port is switched off.
    pub(super) fn is_offline(&self) -> bool {
        self.registers.read(SSTS) & DETECTION == DETECTION_OFFLINE
    }

    /// Whether the device waits for a command. Until an error of the link is cleared, the controller shows no change
    /// (section 5.3.4: PxSERR.DIAG.X).
    pub(super) fn is_ready(&mut self) -> bool {
        if !self.is_linked() {
            return false;
        }
        self.clear_errors();
        self.status() & (STATUS_BUSY | STATUS_DATA_REQUEST) == 0
    }

    /// The device's status register, as last reported.
    pub(super) fn status(&self) -> u8 {
        self.registers.read(TFD) as u8
    }

    /// Its error register, as last reported.
    pub(super) fn error(&self) -> u8 {
        (self.registers.read(TFD) >> 8) as u8
    }

    /// What the device is; meaningful once it is ready.
    pub(super) fn signature(&self) -> Signature {
        match self.registers.read(SIG) {
            0x0000_0101 => Signature::Disk,
            0xeb14_0101 => Signature::Packet,
            0x9669_0101 => Signature::Multiplier,
            0xc33c_0101 => Signature::Enclosure,
            other => Signature::Unknown(other),
        }
    }

    /// Starts to process the command list (section 10.3.1). The device is ready.
    pub(super) fn start(&mut self) {
        self.clear_errors();
        self.registers.write(IS, u32::MAX);
        let command = self.registers.read(CMD);
        self.registers.write(CMD, command | CMD_START);
    }

    /// Asks for interrupts, or for none.
    pub(super) fn set_interrupts(&mut self, on: bool) {
        self.registers.write(IE, if on { EVENTS } else { 0 });
    }

    /// Stops to process the command list; done once [`Port::is_stopped`] (section 10.3.2). PxCI and PxSACT are lost.
    pub(super) fn stop(&mut self) {
        let command = self.registers.read(CMD);
        self.registers.write(CMD, command & !CMD_START);
    }

    /// Whether it has stopped: the memory of no command is touched any more.
    pub(super) fn is_stopped(&self) -> bool {
        self.registers.read(CMD) & (CMD_LIST_RUNNING | CMD_START) == 0
    }

    /// Stops to receive frames; the port has stopped. Done once [`Port::is_deaf`].
    pub(super) fn stop_receiving(&mut self) {
        let command = self.registers.read(CMD);
        self.registers.write(CMD, command & !CMD_FRAME_RECEIVE);
    }

    /// Whether no frame is received any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.registers.read(CMD) & (CMD_FRAMES_RUNNING | CMD_FRAME_RECEIVE) == 0
    }

    /// Begins to reset the device and the link (COMRESET, section 10.4.2); for a millisecond at least.
    pub(super) fn begin_reset(&mut self) {
        self.registers.write(SCTL, CONTROL_NO_POWER_STATES | CONTROL_RESET);
    }

    /// Ends the reset: the link comes up again.
    pub(super) fn end_reset(&mut self) {
        self.registers.write(SCTL, CONTROL_NO_POWER_STATES);
    }

    /// Which command failed: the slot that was being processed (PxCMD.CCS).
    pub(super) fn current_slot(&self) -> u8 {
        (self.registers.read(CMD) >> 8 & 0x1f) as u8
    }

    /// Hands over the commands in these slots; queued ones are announced in PxSACT first (section 5.5.1).
    pub(super) fn issue(&mut self, slots: u32, queued: bool) {
        if queued {
            self.registers.write(SACT, slots);
        }
        self.registers.write(CI, slots);
    }

    /// The commands that the device still has. A queued one leaves PxCI when the device has accepted it, and PxSACT when
    /// it is done.
    pub(super) fn active(&self, queued: bool) -> u32 {
        if queued { self.registers.read(SACT) } else { self.registers.read(CI) }
    }

    /// Takes what happened. The port's bits go first, the controller's after them: it keeps its own as long as the
    /// port's stand, and signals what comes later again (section 10.7.2).
    pub(super) fn take_events(&mut self) -> Events {
        let events = self.registers.read(IS);
        if events == 0 {
            return Events::default();
        }
        if events == u32::MAX {
            return Events { gone: true, ..Events::default() };
        }
        if events & EVENTS_LINK != 0 {
            // PCS and PRCS are shadows of these.
            self.clear_errors();
        }
        self.registers.write(IS, events);
        self.pending.write(0, 1 << self.number);
        Events {
            done: events & EVENTS_DONE != 0,
            task_file_error: events & EVENT_TASK_FILE != 0,
            fatal: events & EVENTS_FATAL != 0,
            link: events & EVENTS_LINK != 0,
            gone: false,
        }
    }

    fn clear_errors(&mut self) {
        self.registers.write(SERR, u32::MAX);
    }
}
