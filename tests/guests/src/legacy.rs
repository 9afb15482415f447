//! The PC's old interrupt hardware: the two 8259s, the PIT's channel 0, and the IOAPIC that replaces the first.

use crate::interrupts::PIC_VECTOR;
use crate::{cpu, mmio};

const PIC1: u16 = 0x20;
const PIC2: u16 = 0xa0;
const PIT_CHANNEL_0: u16 = 0x40;
const PIT_COMMAND: u16 = 0x43;
const IOAPIC: u64 = 0xfec0_0000;
/// Ticks a second of the PIT.
pub const PIT_HZ: u64 = 1_193_182;

/// Initialises both PICs at [`PIC_VECTOR`] with the lines of `mask` clear let through.
pub fn start_pics(mask: u16) {
    const INITIALIZE: u8 = 0x11;
    const IN_8086_MODE: u8 = 0x01;
    for (port, vector, wiring, mask) in
        [(PIC1, PIC_VECTOR, 1 << 2, mask as u8), (PIC2, PIC_VECTOR + 8, 2, (mask >> 8) as u8)]
    {
        cpu::out8(port, INITIALIZE);
        for value in [vector, wiring, IN_8086_MODE, mask] {
            cpu::out8(port + 1, value);
        }
    }
}

/// Ends the interrupt of a PIC line.
pub fn acknowledge(line: u8) {
    const END_OF_INTERRUPT: u8 = 0x20;
    if line >= 8 {
        cpu::out8(PIC2, END_OF_INTERRUPT);
    }
    cpu::out8(PIC1, END_OF_INTERRUPT);
}

/// Starts the PIT's channel 0, both bytes of the count, periodic (mode 2), every `ticks`.
pub fn start_pit(ticks: u16) {
    cpu::out8(PIT_COMMAND, 0b0011_0100);
    let [low, high] = ticks.to_le_bytes();
    cpu::out8(PIT_CHANNEL_0, low);
    cpu::out8(PIT_CHANNEL_0, high);
}

/// Stops it: mode 0 with no count loaded.
pub fn stop_pit() {
    cpu::out8(PIT_COMMAND, 0b0011_0000);
}

/// Writes an IOAPIC register by its index.
pub fn write_ioapic(index: u8, value: u32) {
    // SAFETY: the IOAPIC's two registers; it sends interrupts, which are handled, and touches no memory.
    unsafe {
        mmio::write(IOAPIC, 4, u64::from(index));
        mmio::write(IOAPIC + 0x10, 4, u64::from(value));
    }
}

/// Reads an IOAPIC register by its index.
pub fn read_ioapic(index: u8) -> u32 {
    // SAFETY: as `write_ioapic`.
    unsafe {
        mmio::write(IOAPIC, 4, u64::from(index));
        mmio::read(IOAPIC + 0x10, 4) as u32
    }
}

/// Ends the level-triggered interrupts with this vector by the IOAPIC's own register.
pub fn end_ioapic(vector: u8) {
    // SAFETY: as `write_ioapic`.
    unsafe { mmio::write(IOAPIC + 0x40, 4, vector.into()) }
}

/// Routes an IOAPIC pin, edge-triggered, to `vector` on the CPU with this APIC id; with no vector, masks it.
pub fn route(pin: u8, vector: Option<u8>, apic_id: u8) {
    const MASKED: u32 = 1 << 16;
    write_ioapic(0x11 + 2 * pin, u32::from(apic_id) << 24);
    write_ioapic(0x10 + 2 * pin, vector.map_or(MASKED, u32::from));
}
