//! A card that tests and the fuzzer play.
//!
//! The main type is [`Card`], a [`Bus`]: clones are the same card, so that one drives and another plays.

use super::registers::*;
use crate::heap::{peek, poke};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use spin::Mutex;

/// The address in its EEPROM.
pub const MAC: switch::Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A card.
#[derive(Clone, Default)]
pub struct Card(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// What its registers show.
    registers: BTreeMap<usize, u32>,
    /// What the driver wrote into them since the last reset. By these it finds its rings: what it may show instead is
    /// for the driver to bear, but a card that reads and writes anywhere is no driver's mistake.
    written: BTreeMap<usize, u32>,
    /// Where the next frame goes, and whence the next is taken.
    receive_head: u32,
    transmit_head: u32,
    is_gone: bool,
    /// What the bus gives for a card that is gone.
    gone_reads: u32,
    /// Does not come out of reset.
    is_stuck: bool,
    dma_stopped: bool,
    resets: u32,
}

/// What was found between two ends of packets on the transmit ring: second words of descriptors, and bytes.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Context descriptors, if any came before the frame.
    pub contexts: Vec<[u64; 2]>,
    /// The data descriptors' second words.
    pub data: Vec<u64>,
    /// What they describe.
    pub bytes: Vec<u8>,
}

/// Bit 20 of a descriptor's second word tells data from context in both formats.
const DATA: u64 = 1 << 20;
const END: u64 = 1 << 24;
const DONE: u64 = 1 << 32;

impl State {
    fn get(&self, register: usize) -> u32 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    fn written(&self, register: usize) -> u32 {
        self.written.get(&register).copied().unwrap_or(0)
    }

    fn ring(&self, low: usize, high: usize) -> u64 {
        u64::from(self.written(low)) | u64::from(self.written(high)) << 32
    }

    fn write(&mut self, register: usize, value: u32) {
        self.written.insert(register, value);
        match register {
            CTRL if value & CTRL_RESET != 0 && !self.is_stuck => {
                self.registers.retain(|register, _| [RAL, RAH, STATUS].contains(register));
                self.written.clear();
                (self.receive_head, self.transmit_head) = (0, 0);
                self.resets += 1;
            }
            EERD => {
                // Any layout of the address: words 0 to 2 differ in their low bits at either place.
                let word = (value >> 8 | value >> 2 & 3) as usize & 3;
                let bytes = [MAC[word * 2 % 6], MAC[(word * 2 + 1) % 6]];
                self.registers.insert(EERD, u32::from(u16::from_le_bytes(bytes)) << 16 | 1 << 4 | 1 << 1);
            }
            MDIC => drop(self.registers.insert(MDIC, value & 0xffff | MDIC_READY)),
            RDH => self.receive_head = value,
            TDH => self.transmit_head = value,
            ICS => *self.registers.entry(ICR).or_default() |= value,
            IMS => *self.registers.entry(IMS).or_default() |= value,
            IMC => *self.registers.entry(IMS).or_default() &= !value,
            _ => drop(self.registers.insert(register, value)),
        }
    }
}

impl Card {
    /// A card with its link up at 1 Gbit/s.
    pub fn new() -> Self {
        let card = Self::default();
        card.set(STATUS, STATUS_LINK_UP | 2 << STATUS_SPEED_SHIFT);
        card
    }

    /// Lets a register show a value, by its offset.
    pub fn set(&self, register: usize, value: u32) {
        self.0.lock().registers.insert(register, value);
    }

    /// What the driver last wrote into a register, or the card put there.
    pub fn get(&self, register: usize) -> u32 {
        self.0.lock().get(register)
    }

    /// Brings the link up or down.
    pub fn set_link(&self, is_up: bool) {
        self.set(STATUS, if is_up { STATUS_LINK_UP | 2 << STATUS_SPEED_SHIFT } else { 0 });
        self.set(ICR, CAUSE_LINK);
    }

    /// Whether it pulls at its interrupt line.
    pub fn pulls(&self) -> bool {
        let state = self.0.lock();
        state.get(ICR) & state.get(IMS) != 0
    }

    /// Takes the card out of its slot.
    pub fn vanish(&self) {
        self.vanish_to(ALL_ONES);
    }

    /// The same, on a bus that gives zeroes for what is not there.
    pub fn vanish_silently(&self) {
        self.vanish_to(0);
    }

    fn vanish_to(&self, reads: u32) {
        let mut state = self.0.lock();
        (state.is_gone, state.gone_reads) = (true, reads);
    }

    /// Makes the next reset its last.
    pub fn stick(&self) {
        self.0.lock().is_stuck = true;
    }

    /// Whether the driver took the right to memory from it.
    pub fn dma_stopped(&self) -> bool {
        self.0.lock().dma_stopped
    }

    /// How often it was reset.
    pub fn resets(&self) -> u32 {
        self.0.lock().resets
    }

    /// Writes into the next receive buffer, as long as it is, and sets its descriptor's second word to `word`. Returns
    /// whether there was a buffer.
    pub fn deliver(&self, bytes: &[u8], word: u64) -> bool {
        let mut state = self.0.lock();
        let ring = state.ring(RDBAL, RDBAH);
        let size = state.written(RDLEN) / 16;
        if size == 0 || state.receive_head == state.written(RDT) {
            return false;
        }
        let descriptor = ring + 16 * u64::from(state.receive_head);
        let buffer: u64 = peek(descriptor);
        bytes.iter().take(super::receive::BUFFER_BYTES).zip(buffer..).for_each(|(byte, at)| poke(at, *byte));
        poke(descriptor + 8, word);
        state.receive_head = (state.receive_head + 1) % size;
        true
    }

    /// Writes a second word into any receive descriptor, whether it is the card's or not.
    pub fn scribble(&self, index: u32, word: u64) {
        let state = self.0.lock();
        let size = state.written(RDLEN) / 16;
        if size > 0 {
            poke(state.ring(RDBAL, RDBAH) + 16 * u64::from(index % size) + 8, word);
        }
    }

    /// The next frame on the transmit ring, without finishing it.
    fn next_sent(state: &mut State) -> Option<(Sent, u64)> {
        let (ring, size, tail) = (state.ring(TDBAL, TDBAH), state.written(TDLEN) / 16, state.written(TDT));
        let (mut sent, mut head) = (Sent::default(), state.transmit_head);
        while size > 0 && head != tail {
            let at = ring + 16 * u64::from(head);
            let [first, second]: [u64; 2] = peek(at);
            head = (head + 1) % size;
            if second & DATA == 0 {
                sent.contexts.push([first, second]);
                continue;
            }
            sent.data.push(second);
            sent.bytes.extend((0..second & 0xffff).map(|offset| peek::<u8>(first + offset)));
            if second & END != 0 {
                state.transmit_head = head;
                return Some((sent, at));
            }
        }
        None
    }

    /// Sends the next frame that the driver announced.
    pub fn send(&self) -> Option<Sent> {
        let (sent, at) = Self::next_sent(&mut self.0.lock())?;
        poke(at + 8, peek::<u64>(at + 8) | DONE);
        Some(sent)
    }
}

impl fmt::Display for Card {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("nowhere")
    }
}

impl Bus for Card {
    fn read(&mut self, register: usize) -> u32 {
        let mut state = self.0.lock();
        match register {
            _ if state.is_gone => state.gone_reads,
            ICR | CRCERRS | RXERRC | MPC | RLEC | GPRC | GPTC => state.registers.remove(&register).unwrap_or(0),
            _ => state.get(register),
        }
    }

    fn write(&mut self, register: usize, value: u32) {
        let mut state = self.0.lock();
        if !state.is_gone {
            state.write(register, value);
        }
    }

    fn pause_us(&mut self, _us: u64) {}

    fn is_present(&mut self) -> bool {
        !self.0.lock().is_gone
    }

    fn stop_dma(&mut self) {
        self.0.lock().dma_stopped = true;
    }
}
