//! The host's serial port (National Semiconductor PC16550D).
//!
//! The main type is [`SerialPort`], opened for a [`Line`]. It never waits for the line, except in [`SerialPort::drain`],
//! and there not for long. The kernel's host console is above it; the registers are uart_16550's.
#![expect(unsafe_code, reason = "the serial port is reached through I/O ports or registers in memory")]

use crate::pci::{Bar, Function};
use alloc::collections::VecDeque;
use uart_16550::backend::Backend;
use uart_16550::spec::registers::{FifoTriggerLevel, IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};
use virtio_drivers::Hal;

/// Bytes that wait for the line before [`SerialPort::write`] takes no more.
const QUEUE_BYTES: usize = 16 << 10;

/// How often the line status is read while waiting for the transmitter: at 115200 baud 16 bytes take 1.4 ms, and a port
/// read about a microsecond.
const STATUS_READS_MAX: u32 = 100_000;

/// The rate of a line for which nothing else is known.
const BAUD: u32 = 115_200;
/// The clock of a PC's UART, whose sixteenth part the divisor divides (PC16550D, table III).
const CLOCK_HZ: u32 = 1_843_200;

/// Registers of a UART in memory, at the widest.
const REGISTER_BYTES: usize = 32;
/// PCI's class of UARTs, and the first and last interface that is a 16550 or more (PCI Code and ID Assignment 1.11, 1.8).
const UART_CLASS: [u8; 2] = [7, 0];
const INTERFACES: core::ops::RangeInclusive<u8> = 2..=6;

/// Where a UART's registers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At eight I/O ports from this one.
    Ports(u16),
    /// In memory, from this physical address on; each four bytes wide, or one.
    Memory {
        /// The first register.
        address: u64,
        /// Four bytes each.
        wide: bool,
    },
}

/// A UART, and how it is set. It comes from the PC's own places, from the firmware or from a PCI function: where it is, is
/// a UART or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    place: Place,
    baud: Option<u32>,
    clock_hz: u32,
    is_declared: bool,
}

impl Line {
    /// A PC's first serial port.
    pub const COM1: Self = Self::at(Place::Ports(0x3f8));
    /// A PC's second serial port.
    pub const COM2: Self = Self::at(Place::Ports(0x2f8));

    const fn at(place: Place) -> Self {
        Self { place, baud: Some(BAUD), clock_hz: CLOCK_HZ, is_declared: false }
    }

    /// A UART that the firmware says is there. Without a rate it keeps the one that the firmware set. It is believed where
    /// it cannot test itself, as some of those behind a management processor cannot. Nothing where there cannot be one.
    pub fn declared<H: Hal>(place: Place, baud: Option<u32>, clock_hz: Option<u32>) -> Option<Self> {
        let clock_hz = clock_hz.unwrap_or(CLOCK_HZ);
        Some(Self { place: mapped::<H>(place)?, baud, clock_hz, is_declared: true })
    }

    /// Whether a PCI function is a UART of this kind.
    pub fn is_uart(function: &Function) -> bool {
        let [class, subclass, interface] = function.class();
        [class, subclass] == UART_CLASS && INTERFACES.contains(&interface)
    }

    /// The UART that a PCI function is, by its first BAR.
    pub fn of_pci<H: Hal>(function: &mut Function) -> Option<Self> {
        let place = match function.bars()[0].filter(|_| Self::is_uart(function))? {
            Bar::Io { port, .. } => Place::Ports(u16::try_from(port).ok().filter(|&port| port != 0)?),
            Bar::Memory { start, .. } => Place::Memory { address: start.as_u64(), wide: false },
        };
        function.enable_decoding();
        mapped::<H>(place).map(Self::at)
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Its rate, if it does not keep the firmware's.
    pub fn baud(&self) -> Option<u32> {
        self.baud
    }
}

/// The place, if eight registers can be there; those in memory are mapped.
fn mapped<H: Hal>(place: Place) -> Option<Place> {
    match place {
        Place::Ports(first) => (first <= u16::MAX - 7).then_some(place),
        Place::Memory { address, wide } => {
            if address == 0 || address >= 1 << 46 || wide && !address.is_multiple_of(4) {
                return None;
            }
            // SAFETY: a device's registers by the word of the firmware or of the device itself.
            let start = unsafe { H::mmio_phys_to_virt(address, REGISTER_BYTES) };
            Some(Place::Memory { address: start.as_ptr() as u64, wide })
        }
    }
}

/// A serial port that answers.
///
/// Several for the same line do no harm but mix their bytes, which is what a panic may want.
pub struct SerialPort {
    uart: Uart16550<Place>,
    queue: VecDeque<u8>,
}

impl Backend for Place {
    unsafe fn read(&mut self, register: u8) -> u8 {
        // SAFETY: a `Line`'s place is a UART, mapped and aligned, or nothing; reading it does no harm.
        unsafe {
            match *self {
                Self::Ports(first) => cpu::port_in8(first + u16::from(register)),
                Self::Memory { address, wide: false } => ((address + u64::from(register)) as *const u8).read_volatile(),
                Self::Memory { address, wide: true } => {
                    ((address + 4 * u64::from(register)) as *const u32).read_volatile() as u8
                }
            }
        }
    }

    unsafe fn write(&mut self, register: u8, value: u8) {
        // SAFETY: as in `read`; a UART cannot touch memory.
        unsafe {
            match *self {
                Self::Ports(first) => cpu::port_out8(first + u16::from(register), value),
                Self::Memory { address, wide: false } => {
                    ((address + u64::from(register)) as *mut u8).write_volatile(value);
                }
                Self::Memory { address, wide: true } => {
                    ((address + 4 * u64::from(register)) as *mut u32).write_volatile(value.into());
                }
            }
        }
    }
}

impl SerialPort {
    /// Opens a line, 8N1; `None` where no UART is there, or one that does not work.
    pub fn open(line: Line) -> Option<Self> {
        // SAFETY: as in `read`: a UART's registers or nothing, and nobody else but a dying host uses them.
        let mut uart = unsafe { Uart16550::new_with_backend(line.place) };
        // The rest waits for the transmitter without end, so see first that it is one.
        if !uart.check_present() || !is_idle(&mut uart) {
            return None;
        }
        let divisor = match line.baud {
            Some(baud) => divisor(line.clock_hz, baud),
            None => kept_divisor(&mut uart).unwrap_or(divisor(line.clock_hz, BAUD)),
        };
        // A clock that makes the rate exactly, as the crate asks for.
        let frequency = 16 * BAUD * u32::from(divisor);
        // An interrupt a byte: what is typed comes singly. And Bochs's port hands out its last byte once more after a burst
        // that ends above another level, which is what the loopback test is.
        let fifo_trigger_level = Some(FifoTriggerLevel::One);
        uart.init(Config { frequency, baud_rate: BaudRate::Baud115200, fifo_trigger_level, ..Config::default() })
            .ok()?;
        if !line.is_declared {
            uart.test_loopback().ok()?;
        }
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
            // The device is not asked without need: each of its registers takes a microsecond.
            if self.queue.is_empty() {
                return false;
            }
            // A full FIFO takes nothing; an empty one 16 bytes. The device is asked once for them all.
            let sent = self.uart.send_bytes(self.queue.as_slices().0);
            if sent == 0 {
                return true;
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

/// What the clock is divided by, nearest to a rate.
fn divisor(clock_hz: u32, baud: u32) -> u16 {
    let sixteenth = 16 * u64::from(baud.max(1));
    let divisor = (u64::from(clock_hz) + sixteenth / 2) / sixteenth;
    // The largest for which the clock that the crate is told can be said.
    const DIVISOR_MAX: u64 = (u32::MAX / (16 * BAUD)) as u64;
    divisor.clamp(1, DIVISOR_MAX) as u16
}

/// The divisor that the firmware left, if it can be one.
fn kept_divisor(uart: &mut Uart16550<Place>) -> Option<u16> {
    let (low, high) = uart.dll_dlm();
    let kept = u16::from_le_bytes([low, high]);
    (1..=divisor(CLOCK_HZ, 1)).contains(&kept).then_some(kept)
}

/// Waits for a while until the transmitter has sent everything; returns whether it has.
fn is_idle(uart: &mut Uart16550<Place>) -> bool {
    (0..STATUS_READS_MAX).any(|_| uart.lsr().contains(LSR::TRANSMITTER_EMPTY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_become_the_nearest_divisor() {
        assert_eq!(divisor(CLOCK_HZ, 115_200), 1);
        assert_eq!(divisor(CLOCK_HZ, 9600), 12);
        assert_eq!(divisor(48_000_000, 115_200), 26);
        assert_eq!(divisor(CLOCK_HZ, u32::MAX), 1);
        assert_eq!(divisor(CLOCK_HZ, 0), divisor(CLOCK_HZ, 1));
        // The clock that is told for the largest fits.
        assert!((16 * BAUD).checked_mul(u32::from(divisor(u32::MAX, 1))).is_some());
    }
}
