//! Where an IDE channel's registers are: command and control block (ATA/ATAPI-7 volume 2, section 5; PCI IDE Controller
//! Specification 1.0, section 2), and the bus master's (Bus Master IDE 1.0, section 2).
//!
//! The main types are [`Ports`], what the driver sees of them and tests play, and [`PortIo`], the ports themselves.
#![expect(unsafe_code, reason = "an IDE channel is reached through I/O ports")]

/// A register of 8 bits. Where reading and writing mean different things, it has both names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// Error; features.
    Error,
    /// Sectors.
    Count,
    /// Bits 0 to 7 of the address.
    LbaLow,
    /// Bits 8 to 15.
    LbaMid,
    /// Bits 16 to 23.
    LbaHigh,
    /// Which of the two devices, and what else a command says.
    Device,
    /// Status, whose reading withdraws the device's interrupt; command.
    Status,
    /// Alternate status, whose reading withdraws nothing; device control.
    Control,
    /// The bus master's command.
    MasterCommand,
    /// The bus master's status.
    MasterStatus,
}

/// A channel's registers.
pub trait Ports: Send {
    /// Reads a register.
    fn read(&mut self, register: Register) -> u8;

    /// Writes a register.
    fn write(&mut self, register: Register, value: u8);

    /// Reads the data register.
    fn read_data(&mut self) -> u16;

    /// Tells the bus master where its table is.
    fn set_table(&mut self, address: u32);
}

/// The blocks of ports of a channel.
pub(super) struct PortIo {
    command: u16,
    control: u16,
    master: u16,
}

impl PortIo {
    /// Eight ports of the command block, the one of the control block, and eight of the bus master.
    ///
    /// # Safety
    /// They are an IDE channel's, of a controller that the caller drives, and nothing else uses them.
    pub(super) unsafe fn new(command: u16, control: u16, master: u16) -> Self {
        Self { command, control, master }
    }

    fn port(&self, register: Register) -> u16 {
        match register {
            Register::Error => self.command + 1,
            Register::Count => self.command + 2,
            Register::LbaLow => self.command + 3,
            Register::LbaMid => self.command + 4,
            Register::LbaHigh => self.command + 5,
            Register::Device => self.command + 6,
            Register::Status => self.command + 7,
            Register::Control => self.control,
            Register::MasterCommand => self.master,
            Register::MasterStatus => self.master + 2,
        }
    }
}

impl Ports for PortIo {
    fn read(&mut self, register: Register) -> u8 {
        // SAFETY: a port of the channel, whose user this is alone, as `new` was promised.
        unsafe { cpu::port_in8(self.port(register)) }
    }

    fn write(&mut self, register: Register, value: u8) {
        // SAFETY: as in `read`; the bus master gets tables in memory that the driver keeps.
        unsafe { cpu::port_out8(self.port(register), value) }
    }

    fn read_data(&mut self) -> u16 {
        // SAFETY: as in `read`.
        unsafe { cpu::port_in16(self.command) }
    }

    fn set_table(&mut self, address: u32) {
        // SAFETY: as in `write`.
        unsafe { cpu::port_out32(self.master + 4, address) }
    }
}
