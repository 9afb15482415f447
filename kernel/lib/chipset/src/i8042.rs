//! The keyboard controller of a PC with two PS/2 ports and nothing plugged in.
//!
//! The type is [`I8042`]; `board` drives its two lines. Source: IBM Personal System/2 Hardware Interface Technical
//! Reference (October 1990), "Keyboard and Auxiliary Device Controller".

mod saved;

pub use saved::Saved;

/// Bits of the status register.
mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const COMMAND: u8 = 1 << 3;
    pub const UNLOCKED: u8 = 1 << 4;
    pub const AUXILIARY: u8 = 1 << 5;
    pub const TIMEOUT: u8 = 1 << 6;
}

/// Bits of the command byte, which is the controller's RAM byte 0.
mod config {
    pub const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub const AUXILIARY_INTERRUPT: u8 = 1 << 1;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_DISABLED: u8 = 1 << 4;
    pub const AUXILIARY_DISABLED: u8 = 1 << 5;
}

mod command {
    pub const READ_RAM: u8 = 0x20;
    pub const READ_RAM_LAST: u8 = 0x3f;
    pub const WRITE_RAM: u8 = 0x60;
    pub const WRITE_RAM_LAST: u8 = 0x7f;
    pub const TEST_PASSWORD: u8 = 0xa4;
    pub const DISABLE_AUXILIARY: u8 = 0xa7;
    pub const ENABLE_AUXILIARY: u8 = 0xa8;
    pub const TEST_AUXILIARY: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_INPUT_PORT: u8 = 0xc0;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_KEYBOARD_OUTPUT: u8 = 0xd2;
    pub const WRITE_AUXILIARY_OUTPUT: u8 = 0xd3;
    pub const WRITE_AUXILIARY: u8 = 0xd4;
    pub const PULSE: u8 = 0xf0;
}

/// What the controller answers.
mod reply {
    pub const SELF_TEST_PASSED: u8 = 0x55;
    pub const LINE_GOOD: u8 = 0x00;
    pub const NO_PASSWORD: u8 = 0xf1;
    /// For a device that did not answer in time, together with the timeout bit.
    pub const NO_DEVICE: u8 = 0xfe;
    /// The keyboard is not locked.
    pub const INPUT_PORT: u8 = 0x80;
}

/// Bit 0 of the output port, and of the pulse command, is the reset line, active low.
const RESET_LINE: u8 = 1;
/// The output port after reset: no reset, A20 open.
const OUTPUT_PORT: u8 = 0x03;

/// The keyboard controller.
#[derive(Clone, Debug)]
pub struct I8042 {
    ram: [u8; 32],
    output: u8,
    /// Output full, auxiliary, timeout and command bits.
    status: u8,
    output_port: u8,
    /// A command that waits for its data byte.
    command: Option<u8>,
}

impl I8042 {
    /// The controller as firmware leaves it: tested, both ports disabled.
    pub fn new() -> Self {
        let mut ram = [0; 32];
        ram[0] = config::SYSTEM | config::KEYBOARD_DISABLED | config::AUXILIARY_DISABLED;
        Self { ram, output: 0, status: 0, output_port: OUTPUT_PORT, command: None }
    }

    /// Reads the status port.
    pub fn read_status(&self) -> u8 {
        let system = if self.ram[0] & config::SYSTEM != 0 { status::SYSTEM } else { 0 };
        self.status | system | status::UNLOCKED
    }

    /// Reads the data port, which empties the output buffer; an empty one repeats its last byte.
    pub fn read_data(&mut self) -> u8 {
        self.status &= !(status::OUTPUT_FULL | status::AUXILIARY | status::TIMEOUT);
        self.output
    }

    /// Writes the command port; whether the reset line was pulled.
    pub fn write_command(&mut self, value: u8) -> bool {
        self.status |= status::COMMAND;
        self.command = None;
        match value {
            command::READ_RAM..=command::READ_RAM_LAST => self.reply(self.ram[usize::from(value & 0x1f)]),
            command::WRITE_RAM..=command::WRITE_RAM_LAST | command::WRITE_OUTPUT_PORT..=command::WRITE_AUXILIARY => {
                self.command = Some(value)
            }
            command::TEST_PASSWORD => self.reply(reply::NO_PASSWORD),
            command::DISABLE_AUXILIARY => self.ram[0] |= config::AUXILIARY_DISABLED,
            command::ENABLE_AUXILIARY => self.ram[0] &= !config::AUXILIARY_DISABLED,
            command::TEST_AUXILIARY | command::TEST_KEYBOARD => self.reply(reply::LINE_GOOD),
            command::SELF_TEST => {
                self.ram[0] |= config::SYSTEM;
                self.reply(reply::SELF_TEST_PASSED);
            }
            command::DISABLE_KEYBOARD => self.ram[0] |= config::KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => self.ram[0] &= !config::KEYBOARD_DISABLED,
            command::READ_INPUT_PORT => self.reply(reply::INPUT_PORT),
            command::READ_OUTPUT_PORT => self.reply(self.output_port),
            command::PULSE.. => return value & RESET_LINE == 0,
            // The controller ignores commands that it does not know.
            _ => (),
        }
        false
    }

    /// Writes the data port: a command's argument, or a byte for the keyboard. Whether the reset line was pulled.
    pub fn write_data(&mut self, value: u8) -> bool {
        self.status &= !status::COMMAND;
        match self.command.take() {
            Some(write @ command::WRITE_RAM..=command::WRITE_RAM_LAST) => {
                self.ram[usize::from(write & 0x1f)] = value;
            }
            Some(command::WRITE_OUTPUT_PORT) => {
                self.output_port = value | RESET_LINE;
                return value & RESET_LINE == 0;
            }
            Some(command::WRITE_KEYBOARD_OUTPUT) => self.reply(value),
            Some(command::WRITE_AUXILIARY_OUTPUT) => self.answer(value, status::AUXILIARY),
            Some(command::WRITE_AUXILIARY) => self.answer(reply::NO_DEVICE, status::AUXILIARY | status::TIMEOUT),
            _ => self.answer(reply::NO_DEVICE, status::TIMEOUT),
        }
        false
    }

    /// The level of ISA interrupt 1.
    pub fn keyboard_irq(&self) -> bool {
        self.ram[0] & config::KEYBOARD_INTERRUPT != 0
            && self.status & (status::OUTPUT_FULL | status::AUXILIARY) == status::OUTPUT_FULL
    }

    /// The level of ISA interrupt 12.
    pub fn auxiliary_irq(&self) -> bool {
        let full = status::OUTPUT_FULL | status::AUXILIARY;
        self.ram[0] & config::AUXILIARY_INTERRUPT != 0 && self.status & full == full
    }

    fn reply(&mut self, value: u8) {
        self.answer(value, 0);
    }

    fn answer(&mut self, value: u8, flags: u8) {
        self.output = value;
        self.status = self.status & status::COMMAND | status::OUTPUT_FULL | flags;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(controller: &mut I8042, command: u8) -> u8 {
        controller.write_command(command);
        assert_ne!(controller.read_status() & 1, 0, "an answer to {command:#x}");
        controller.read_data()
    }

    #[test]
    fn controller_tests() {
        let mut controller = I8042::new();
        assert_eq!(controller.read_status() & 1, 0);
        assert_eq!(ask(&mut controller, 0xaa), 0x55);
        assert_eq!(ask(&mut controller, 0xab), 0x00);
        assert_eq!(ask(&mut controller, 0xa9), 0x00);
        assert_eq!(controller.read_status() & 5, 4);
    }

    #[test]
    fn command_byte() {
        let mut controller = I8042::new();
        controller.write_command(0x60);
        controller.write_data(0x47);
        assert_eq!(ask(&mut controller, 0x20), 0x47);
        controller.write_command(0xad);
        assert_eq!(ask(&mut controller, 0x20), 0x57);
    }

    #[test]
    fn no_keyboard_answers() {
        let mut controller = I8042::new();
        controller.write_command(0x60);
        controller.write_data(0x03);
        controller.write_data(0xff);
        assert_eq!(controller.read_status() & 0x61, 0x41);
        assert!(controller.keyboard_irq() && !controller.auxiliary_irq());
        assert_eq!(controller.read_data(), 0xfe);
        assert!(!controller.keyboard_irq());
        controller.write_command(0xd4);
        controller.write_data(0xff);
        assert_eq!(controller.read_status() & 0x61, 0x61);
        assert!(!controller.keyboard_irq() && controller.auxiliary_irq());
    }

    #[test]
    fn auxiliary_loopback() {
        let mut controller = I8042::new();
        controller.write_command(0xd3);
        controller.write_data(0x5a);
        assert_eq!(controller.read_status() & 0x61, 0x21);
        assert_eq!(controller.read_data(), 0x5a);
    }

    #[test]
    fn reset_line() {
        let mut controller = I8042::new();
        assert!(controller.write_command(0xfe));
        assert!(!controller.write_command(0xff));
        controller.write_command(0xd1);
        assert!(controller.write_data(0xfe));
        controller.write_command(0xd1);
        assert!(!controller.write_data(0x03));
    }
}
