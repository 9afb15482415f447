//! The host's serial port (National Semiconductor PC16550D).
//!
//! The main type is [`SerialPort`]. It never waits for the line, except in [`SerialPort::drain`], and there not for long.
//! The kernel's host console is above it; the registers are uart_16550's.
#![expect(unsafe_code, reason = "the serial port is reached through I/O ports")]

use alloc::collections::VecDeque;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

/// The base port of COM1, and its interrupt on a PC.
pub const COM1_PORT: u16 = 0x3f8;
/// The ISA interrupt of COM1.
pub const COM1_IRQ: u8 = 4;

/// Bytes that wait for the line before [`SerialPort::write`] takes no more.
const QUEUE_BYTES: usize = 16 << 10;

/// How often the line status is read while waiting for the transmitter: at 115200 baud 16 bytes take 1.4 ms, and a port
/// read about a microsecond.
const STATUS_READS_MAX: u32 = 100_000;

/// A serial port that answers.
///
/// Several for the same port do no harm but mix their bytes, which is what a panic may want.
pub struct SerialPort {
    uart: Uart16550<PioBackend>,
    queue: VecDeque<u8>,
}

impl SerialPort {
    /// Opens COM1 at 115200 baud, 8N1; `None` where there is no such port, or one that does not work.
    pub fn com1() -> Option<Self> {
        // SAFETY: the ports belong to COM1 on every PC, and to nothing where there is none; a UART cannot touch memory.
        let mut uart = unsafe { Uart16550::new_port(COM1_PORT) }.ok()?;
        // The rest waits for the transmitter without end, so see first that it is one.
        if !uart.check_present() || !is_idle(&mut uart) {
            return None;
        }
        uart.init(Config { baud_rate: BaudRate::Baud115200, ..Config::default() }).ok()?;
        uart.test_loopback().ok()?;
        Some(Self { uart, queue: VecDeque::new() })
    }

    /// Makes received bytes raise the port's interrupt.
    pub fn enable_receive_interrupt(&mut self) {
        self.uart.enable_interrupts(IER::DATA_READY);
    }

    /// Takes as many of `bytes` as the queue has room for, and starts to send; returns how many. The rest goes out by
    /// [`SerialPort::poll`].
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(QUEUE_BYTES - self.queue.len());
        self.queue.extend(&bytes[..taken]);
        self.poll();
        taken
    }

    /// Gives the port what it has room for; returns whether more is waiting.
    pub fn poll(&mut self) -> bool {
        loop {
            // A full FIFO takes nothing; an empty one 16 bytes. The device is asked once for them all.
            let sent = self.uart.send_bytes(self.queue.as_slices().0);
            if sent == 0 {
                return !self.queue.is_empty();
            }
            self.queue.drain(..sent);
        }
    }

    /// Puts received bytes into `into`; returns how many.
    pub fn receive(&mut self, into: &mut [u8]) -> usize {
        self.uart.receive_bytes(into)
    }

    /// Sends everything that waits, then `bytes`, waiting for the line; gives up on a line that does not move. For a
    /// panic, which has no later.
    pub fn drain(&mut self, bytes: &[u8]) {
        while self.poll() {
            if !is_idle(&mut self.uart) {
                return;
            }
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.uart.send_bytes(rest);
            rest = &rest[sent..];
            if sent == 0 && !is_idle(&mut self.uart) {
                return;
            }
        }
    }
}

/// Waits for a while until the transmitter has sent everything; returns whether it has.
fn is_idle(uart: &mut Uart16550<PioBackend>) -> bool {
    (0..STATUS_READS_MAX).any(|_| uart.lsr().contains(LSR::TRANSMITTER_EMPTY))
}
