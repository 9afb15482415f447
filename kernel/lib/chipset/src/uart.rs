//! The serial port COM1, a 16550A whose transmitter is never busy.
//!
//! The type is [`Uart`]; `board` carries its bytes out and drives its line. Source: National Semiconductor PC16550D
//! datasheet (June 1995), section 8; that OUT2 gates the interrupt is the wiring of the PC.

mod saved;

pub use saved::Saved;

/// Bytes that the receiver's FIFO holds.
const FIFO_BYTES: usize = 16;

/// Register offsets.
mod register {
    pub const DATA: u16 = 0;
    pub const IER: u16 = 1;
    /// IIR when read, FCR when written.
    pub const IIR: u16 = 2;
    pub const LCR: u16 = 3;
    pub const MCR: u16 = 4;
    pub const LSR: u16 = 5;
    pub const MSR: u16 = 6;
}

mod ier {
    pub const RECEIVED: u8 = 1;
    pub const TRANSMITTER_EMPTY: u8 = 2;
    pub const LINE_STATUS: u8 = 4;
    pub const MODEM_STATUS: u8 = 8;
}

/// Interrupt identifications, highest priority first (table IV).
mod iir {
    pub const LINE_STATUS: u8 = 0x06;
    pub const RECEIVED: u8 = 0x04;
    pub const CHARACTER_TIMEOUT: u8 = 0x0c;
    pub const TRANSMITTER_EMPTY: u8 = 0x02;
    pub const MODEM_STATUS: u8 = 0x00;
    pub const NONE: u8 = 0x01;
    pub const FIFO_ENABLED: u8 = 0xc0;
}

mod fcr {
    pub const ENABLE: u8 = 1;
    pub const CLEAR_RECEIVER: u8 = 2;
}

const LCR_DLAB: u8 = 0x80;

mod mcr {
    pub const DTR: u8 = 1;
    pub const RTS: u8 = 2;
    pub const OUT1: u8 = 4;
    pub const OUT2: u8 = 8;
    pub const LOOP: u8 = 0x10;
    pub const WRITABLE: u8 = 0x1f;
}

mod lsr {
    pub const DATA_READY: u8 = 1;
    pub const OVERRUN: u8 = 2;
    pub const TRANSMITTER_IDLE: u8 = 0x60;
}

mod msr {
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RI: u8 = 0x40;
    pub const DCD: u8 = 0x80;
    /// What a connected terminal asserts.
    pub const CONNECTED: u8 = CTS | DSR | DCD;
}

/// What a register write did beyond the registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// A byte left.
    pub transmitted: Option<u8>,
    /// The interrupt output went low for a moment, so an edge follows if it is high now.
    pub pulsed_low: bool,
}

/// The serial port.
#[derive(Clone, Debug)]
pub struct Uart {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    fifo_enabled: bool,
    /// Bytes at which the receiver interrupts.
    trigger_bytes: usize,
    received: [u8; FIFO_BYTES],
    received_first: usize,
    received_bytes: usize,
    overrun: bool,
    modem_deltas: u8,
    /// The transmitter became empty and nobody has asked since (IIR read or THR written).
    transmitter_event: bool,
}

impl Uart {
    /// A port after master reset: 115200 baud would be divisor 1.
    pub fn new() -> Self {
        Self {
            ier: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: 1,
            fifo_enabled: false,
            trigger_bytes: 1,
            received: [0; FIFO_BYTES],
            received_first: 0,
            received_bytes: 0,
            overrun: false,
            modem_deltas: 0,
            transmitter_event: false,
        }
    }

    /// Reads the register at `offset` (0 to 7).
    pub fn read(&mut self, offset: u16) -> u8 {
        let divisor_latch = self.lcr & LCR_DLAB != 0;
        match offset {
            register::LSR => self.read_line_status(),
            register::DATA if divisor_latch => self.divisor as u8,
            register::DATA => self.pop(),
            register::IER if divisor_latch => (self.divisor >> 8) as u8,
            register::IER => self.ier,
            register::IIR => self.read_identification(),
            register::LCR => self.lcr,
            register::MCR => self.mcr,
            register::MSR => self.modem_lines() | core::mem::take(&mut self.modem_deltas),
            _ => self.scratch,
        }
    }

    /// Writes the register at `offset` (0 to 7).
    pub fn write(&mut self, offset: u16, value: u8) -> Written {
        let divisor_latch = self.lcr & LCR_DLAB != 0;
        match offset {
            register::DATA if divisor_latch => self.divisor = self.divisor & 0xff00 | u16::from(value),
            register::DATA => return self.transmit(value),
            register::IER if divisor_latch => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            register::IER => {
                // Enabling the interrupt while the transmitter stands empty raises it; drivers probe for that.
                self.transmitter_event |= value & !self.ier & ier::TRANSMITTER_EMPTY != 0;
                self.ier = value & 0x0f;
            }
            register::IIR => self.write_fifo_control(value),
            register::LCR => self.lcr = value,
            register::MCR => self.write_modem_control(value),
            // Line and modem status are for factory tests only when written.
            register::LSR | register::MSR => (),
            _ => self.scratch = value,
        }
        Written::default()
    }

    /// The level of the interrupt output as the PC sees it.
    pub fn irq(&self) -> bool {
        self.mcr & (mcr::OUT2 | mcr::LOOP) == mcr::OUT2 && self.identification() != iir::NONE
    }

    /// How many bytes the receiver has room for; none in loopback, where its input is disconnected.
    pub fn room(&self) -> usize {
        if self.mcr & mcr::LOOP != 0 { 0 } else { self.capacity() - self.received_bytes }
    }

    /// Receives bytes as far as there is room; how many that were.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.room().min(bytes.len());
        bytes[..taken].iter().for_each(|&byte| self.push(byte));
        taken
    }

    fn capacity(&self) -> usize {
        if self.fifo_enabled { FIFO_BYTES } else { 1 }
    }

    fn push(&mut self, byte: u8) {
        if self.received_bytes == self.capacity() {
            self.overrun = true;
            // Without a FIFO the new character replaces the old; with one it is the new that is lost.
            if !self.fifo_enabled {
                self.received[self.received_first] = byte;
            }
            return;
        }
        self.received[(self.received_first + self.received_bytes) % FIFO_BYTES] = byte;
        self.received_bytes += 1;
    }

    fn pop(&mut self) -> u8 {
        let byte = self.received[self.received_first];
        if self.received_bytes > 0 {
            self.received_bytes -= 1;
            self.received_first = (self.received_first + 1) % FIFO_BYTES;
        }
        byte
    }

    /// Sends a byte. The transmitter empties at once, so the interrupt goes away and comes back in one write.
    fn transmit(&mut self, byte: u8) -> Written {
        self.transmitter_event = false;
        let pulsed_low = !self.irq();
        self.transmitter_event = true;
        if self.mcr & mcr::LOOP != 0 {
            self.push(byte);
            return Written { transmitted: None, pulsed_low };
        }
        Written { transmitted: Some(byte), pulsed_low }
    }

    /// The pending interrupt with the highest priority (section 8.6). The character timeout counts as expired at once.
    fn identification(&self) -> u8 {
        let enabled = |bit| self.ier & bit != 0;
        if enabled(ier::LINE_STATUS) && self.overrun {
            iir::LINE_STATUS
        } else if enabled(ier::RECEIVED) && self.received_bytes >= self.trigger_bytes {
            iir::RECEIVED
        } else if enabled(ier::RECEIVED) && self.received_bytes > 0 {
            iir::CHARACTER_TIMEOUT
        } else if enabled(ier::TRANSMITTER_EMPTY) && self.transmitter_event {
            iir::TRANSMITTER_EMPTY
        } else if enabled(ier::MODEM_STATUS) && self.modem_deltas != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn read_identification(&mut self) -> u8 {
        let identification = self.identification();
        if identification == iir::TRANSMITTER_EMPTY {
            self.transmitter_event = false;
        }
        identification | if self.fifo_enabled { iir::FIFO_ENABLED } else { 0 }
    }

    fn read_line_status(&mut self) -> u8 {
        let ready = if self.received_bytes > 0 { lsr::DATA_READY } else { 0 };
        let overrun = if core::mem::take(&mut self.overrun) { lsr::OVERRUN } else { 0 };
        ready | overrun | lsr::TRANSMITTER_IDLE
    }

    /// FIFO control (section 8.5): the other bits count only together with the enable bit.
    fn write_fifo_control(&mut self, value: u8) {
        let enable = value & fcr::ENABLE != 0;
        if enable != self.fifo_enabled || enable && value & fcr::CLEAR_RECEIVER != 0 {
            self.received_first = 0;
            self.received_bytes = 0;
        }
        self.fifo_enabled = enable;
        self.trigger_bytes = if enable { [1, 4, 8, 14][usize::from(value >> 6)] } else { 1 };
    }

    fn write_modem_control(&mut self, value: u8) {
        let old = self.modem_lines();
        self.mcr = value & mcr::WRITABLE;
        let new = self.modem_lines();
        // The low half of MSR reports changes; for the ring indicator only its trailing edge.
        let changed = old ^ new & !msr::RI | old & !new & msr::RI;
        self.modem_deltas |= changed >> 4;
    }

    /// The input lines, upper half of MSR; in loopback they are the outputs (section 8.8).
    fn modem_lines(&self) -> u8 {
        if self.mcr & mcr::LOOP == 0 {
            return msr::CONNECTED;
        }
        [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)]
            .iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |lines, (_, input)| lines | input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_interrupts(ier: u8) -> Uart {
        let mut uart = Uart::new();
        uart.write(2, 0x01);
        uart.write(4, 0x08);
        uart.write(1, ier);
        uart
    }

    /// What Linux's 8250 driver asks of a port before it calls it a 16550A.
    #[test]
    fn autoconfiguration() {
        let mut uart = Uart::new();
        uart.write(1, 0x00);
        assert_eq!(uart.read(1), 0);
        uart.write(1, 0x0f);
        assert_eq!(uart.read(1), 0x0f);
        uart.write(1, 0xf0);
        assert_eq!(uart.read(1), 0, "no UUE bit, no XScale");
        uart.write(4, 0x1a);
        assert_eq!(uart.read(6) & 0xf0, 0x90, "loopback: RTS and OUT2 come back as CTS and DCD");
        uart.write(4, 0);
        uart.write(2, 0x01);
        assert_eq!(uart.read(2) >> 6, 3, "working FIFO");
        uart.write(3, 0xbf);
        assert_ne!(uart.read(2), 0, "no enhanced feature register");
        uart.write(3, 0x80);
        uart.write(0, 0x0c);
        uart.write(1, 0x01);
        assert_eq!((uart.read(0), uart.read(1)), (0x0c, 0x01));
        uart.write(3, 0x03);
        uart.write(7, 0xa5);
        assert_eq!((uart.read(3), uart.read(7), uart.read(5)), (0x03, 0xa5, 0x60));
    }

    #[test]
    fn transmitter_interrupt_probe() {
        let mut uart = with_interrupts(0);
        for _ in 0..2 {
            uart.write(1, 0x02);
            assert!(uart.irq());
            assert_eq!(uart.read(2), 0xc2);
            assert_eq!(uart.read(2), 0xc1, "reading it took it back");
            assert!(!uart.irq());
            uart.write(1, 0x00);
        }
    }

    #[test]
    fn each_byte_makes_an_edge() {
        let mut uart = with_interrupts(2);
        uart.read(2);
        let written = uart.write(0, b'x');
        assert_eq!(written, Written { transmitted: Some(b'x'), pulsed_low: true });
        assert!(uart.irq());
    }

    #[test]
    fn receive_order_trigger_and_timeout() {
        let mut uart = with_interrupts(1);
        uart.write(2, 0x41);
        assert_eq!(uart.receive(b"abc"), 3);
        assert_eq!(uart.read(2), 0xcc, "below the trigger: timeout");
        assert_eq!(uart.receive(b"d"), 1);
        assert_eq!(uart.read(2), 0xc4);
        let read: Vec<u8> = (0..4).map(|_| uart.read(0)).collect();
        assert_eq!(read, b"abcd");
        assert_eq!((uart.read(2), uart.read(5) & 1), (0xc1, 0));
    }

    #[test]
    fn receiver_takes_what_fits() {
        let mut uart = Uart::new();
        assert_eq!(uart.receive(b"abc"), 1, "one without a FIFO");
        uart.write(2, 0x01);
        assert_eq!(uart.receive(&[7; 40]), 16);
        assert_eq!((uart.room(), uart.receive(b"z")), (0, 0));
        uart.read(0);
        assert_eq!(uart.room(), 1);
        uart.write(2, 0x03);
        assert_eq!(uart.room(), 16);
    }

    #[test]
    fn loopback_receives_and_overruns_and_is_silent() {
        let mut uart = with_interrupts(0x0f);
        uart.write(4, 0x18);
        for byte in 0..17 {
            assert_eq!(uart.write(0, byte).transmitted, None);
        }
        assert!(!uart.irq(), "OUT2 is disconnected in loopback");
        assert_eq!(uart.receive(b"x"), 0);
        assert_eq!(uart.read(2), 0xc6);
        assert_eq!(uart.read(5), 0x63);
        assert_eq!(uart.read(5), 0x61, "the error is read away");
        assert_eq!(uart.read(0), 0);
    }

    #[test]
    fn priorities() {
        let mut uart = with_interrupts(0x0f);
        uart.write(4, 0x1f);
        uart.write(4, 0x08);
        uart.receive(b"x");
        assert_eq!(uart.read(2), 0xc4);
        uart.read(0);
        assert_eq!(uart.read(2), 0xc2);
        assert_eq!(uart.read(2), 0xc0);
        assert_eq!(uart.read(6) & 0x04, 0x04, "trailing edge of RI");
        assert_eq!((uart.read(2), uart.read(6) & 0x0f), (0xc1, 0));
    }

    #[test]
    fn out2_gates_the_line() {
        let mut uart = with_interrupts(2);
        assert!(uart.irq());
        uart.write(4, 0);
        assert!(!uart.irq());
    }
}
