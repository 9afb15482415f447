//! COM1, a 16550, polled; [`println!`](crate::println) writes to it.

use crate::cpu;
use core::fmt;

const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// 115,200 baud, 8N1, FIFOs on, no interrupts.
pub fn start() {
    for (register, value) in [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0x07), (4, 0x03)] {
        cpu::out8(PORT + register, value);
    }
}

/// COM1 as a sink of text.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while cpu::in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            cpu::out8(PORT, byte);
        }
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // The sink takes everything.
        let _ = writeln!($crate::serial::Serial, $($argument)*);
    }};
}
