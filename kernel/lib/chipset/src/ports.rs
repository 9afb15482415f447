//! Where the board's devices sit in the port space; the tables that `machine` builds for the guest repeat these numbers.

/// Master 8259: command and status; the data port follows it.
pub const PIC_MASTER: u16 = 0x20;
/// Slave 8259: command and status; the data port follows it.
pub const PIC_SLAVE: u16 = 0xa0;
/// Edge/level control registers of the master and, one on, of the slave.
pub const PIC_ELCR: u16 = 0x4d0;
/// 8254: three counters, then the control word.
pub const PIT: u16 = 0x40;
/// Keyboard controller, data.
pub const I8042_DATA: u16 = 0x60;
/// System control port B: gate and output of the third counter, speaker, refresh toggle.
pub const SYSTEM_CONTROL_B: u16 = 0x61;
/// Keyboard controller, command and status.
pub const I8042_COMMAND: u16 = 0x64;
/// MC146818 index; the data port follows it.
pub const RTC: u16 = 0x70;
/// Power-on self-test codes: written and forgotten.
pub const POST: u16 = 0x80;
/// System control port A: fast reset and A20.
pub const SYSTEM_CONTROL_A: u16 = 0x92;
/// The other port that is written only for the time it takes.
pub const DELAY: u16 = 0xed;
/// Debug console, where the VM has it: a byte.
pub const DEBUG_CONSOLE: u16 = 0xe9;
/// The same for OVMF, which looks for it here.
pub const FIRMWARE_CONSOLE: u16 = 0x402;
/// Debug exit, where the VM has it: four ports, any width.
pub const DEBUG_EXIT: u16 = 0xf4;
/// COM1: eight registers.
pub const COM1: u16 = 0x3f8;
/// ACPI PM1a event block: status and enable, two bytes each.
pub const PM1A_EVENT: u16 = 0x600;
/// ACPI PM1a control block, two bytes.
pub const PM1A_CONTROL: u16 = 0x604;
/// ACPI power management timer, four bytes.
pub const PM_TIMER: u16 = 0x608;
/// ACPI general-purpose event block 0: status and enable, two bytes each.
pub const GPE0: u16 = 0x620;
/// Hotplug: four registers of four bytes.
pub const HOTPLUG: u16 = 0x630;
/// The reset register of PCI chipsets, one byte.
pub const RESET: u16 = 0xcf9;
/// What a write to [`RESET`] must hold for a full reset (the FADT's RESET_VALUE).
pub const RESET_VALUE: u8 = 0x06;
