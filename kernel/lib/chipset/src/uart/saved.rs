//! The saved form of the serial port.

use super::{FIFO_BYTES, Uart, mcr};
use minicbor::{Decode, Encode};
use state::Invalid;

/// The registers and the receiver's ring.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    ier: u8,
    #[n(1)]
    lcr: u8,
    #[n(2)]
    mcr: u8,
    #[n(3)]
    scratch: u8,
    #[n(4)]
    divisor: u16,
    #[n(5)]
    fifo_enabled: bool,
    #[n(6)]
    trigger_bytes: u8,
    /// The ring as it lies: an empty one repeats its last byte.
    #[cbor(n(7), with = "minicbor::bytes")]
    received: [u8; FIFO_BYTES],
    #[n(8)]
    received_first: u8,
    #[n(9)]
    received_bytes: u8,
    #[n(10)]
    overrun: bool,
    #[n(11)]
    modem_deltas: u8,
    #[n(12)]
    transmitter_event: bool,
}

impl Uart {
    /// What restores it.
    pub fn save(&self) -> Saved {
        Saved {
            ier: self.ier,
            lcr: self.lcr,
            mcr: self.mcr,
            scratch: self.scratch,
            divisor: self.divisor,
            fifo_enabled: self.fifo_enabled,
            trigger_bytes: self.trigger_bytes as u8,
            received: self.received,
            received_first: self.received_first as u8,
            received_bytes: self.received_bytes as u8,
            overrun: self.overrun,
            modem_deltas: self.modem_deltas,
            transmitter_event: self.transmitter_event,
        }
    }

    /// A port that goes on where the saved one was.
    ///
    /// # Errors
    /// Where no port can have been there.
    pub fn restore(saved: &Saved) -> Result<Self, Invalid> {
        let uart = Self {
            ier: saved.ier,
            lcr: saved.lcr,
            mcr: saved.mcr,
            scratch: saved.scratch,
            divisor: saved.divisor,
            fifo_enabled: saved.fifo_enabled,
            trigger_bytes: saved.trigger_bytes.into(),
            received: saved.received,
            received_first: saved.received_first.into(),
            received_bytes: saved.received_bytes.into(),
            overrun: saved.overrun,
            modem_deltas: saved.modem_deltas,
            transmitter_event: saved.transmitter_event,
        };
        let registers = uart.ier <= 0x0f && uart.mcr & !mcr::WRITABLE == 0 && uart.modem_deltas <= 0x0f;
        let trigger = if uart.fifo_enabled { [1, 4, 8, 14].as_slice() } else { &[1] };
        let ring = uart.received_first < FIFO_BYTES && uart.received_bytes <= uart.capacity();
        Invalid::unless(registers && ring && trigger.contains(&uart.trigger_bytes), "the serial port")?;
        Ok(uart)
    }
}
