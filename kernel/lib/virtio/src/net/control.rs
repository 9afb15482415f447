//! The control queue (5.1.6.5): a command, its data, and a byte for the answer.
//!
//! Commands change [`Net`]'s filter, address, link state or offloads; the answer is "ok" or "error", as the
//! specification has it for commands that are unknown, malformed or not negotiated.

use super::filter::{Mac, TABLE_MAX, Table};
use super::{
    F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_GUEST_ANNOUNCE, GUEST_OFFLOADS, Net, QUEUE_CONTROL,
    STATUS_ANNOUNCE,
};
use crate::chain::{Chain, after, gather};
use crate::{Function, Signal};
use addr::Gpa;
use alloc::vec::Vec;
use guestmem::GuestMemory;

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_GUEST_OFFLOADS: u8 = 5;

const RX_PROMISCUOUS: u8 = 0;
const RX_ALL_MULTICAST: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDRESS_SET: u8 = 1;
const ANNOUNCE_ACK: u8 = 0;
const OFFLOADS_SET: u8 = 0;

const ANSWER_OK: u64 = 0;
const ANSWER_ERROR: u64 = 1;

const COMMAND_BYTES: u64 = 2;

/// A command that gets the error answer.
struct Refused;

impl Function<Net> {
    /// Carries out the commands on the control queue and answers them; the driver waits for each.
    pub fn control(&mut self, memory: &GuestMemory, signals: &mut Vec<Signal>) {
        let queue = usize::from(QUEUE_CONTROL);
        for step in 0.. {
            if step == super::CONTROL_QUEUE_SIZE {
                self.transport.leave_unfinished(queue);
                break;
            }
            let Some(head) = self.transport.pop_chain(memory, queue, &mut self.chain) else { break };
            let answer = match self.device.command(memory, &self.chain) {
                Ok(()) => ANSWER_OK,
                Err(Refused) => ANSWER_ERROR,
            };
            match answer_byte(&self.chain).map(|at| memory.store(at, 1, answer)) {
                Some(Ok(())) => self.transport.push_used(memory, queue, head, 1),
                _ => {
                    self.transport.fail();
                    break;
                }
            }
        }
        self.transport.notify(memory, queue, signals);
    }
}

/// The answer is the one byte that the device may write; in a longer buffer, its first.
fn answer_byte(chain: &Chain) -> Option<Gpa> {
    chain.writable.first().map(|(at, _)| *at)
}

impl Net {
    fn command(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<(), Refused> {
        if chain.disordered {
            return Err(Refused);
        }
        let mut data = Data { memory, chain, at: 0 };
        let [class, command] = data.take::<{ COMMAND_BYTES as usize }>()?;
        match (class, command) {
            (CLASS_RX, RX_PROMISCUOUS) if self.has(F_CTRL_RX) => self.filter.promiscuous = data.flag()?,
            (CLASS_RX, RX_ALL_MULTICAST) if self.has(F_CTRL_RX) => self.filter.all_multicast = data.flag()?,
            (CLASS_MAC, MAC_TABLE_SET) if self.has(F_CTRL_RX) => {
                let unicast = data.table()?;
                self.filter.multicast = data.table()?;
                self.filter.unicast = unicast;
            }
            (CLASS_MAC, MAC_ADDRESS_SET) if self.has(F_CTRL_MAC_ADDR) => self.mac = data.take()?,
            (CLASS_ANNOUNCE, ANNOUNCE_ACK) if self.has(F_GUEST_ANNOUNCE) => self.status &= !STATUS_ANNOUNCE,
            (CLASS_GUEST_OFFLOADS, OFFLOADS_SET) if self.has(F_CTRL_GUEST_OFFLOADS) => {
                let wanted = u64::from_le_bytes(data.take()?);
                if wanted & !(self.features & GUEST_OFFLOADS) != 0 {
                    return Err(Refused);
                }
                self.guest_offloads = wanted;
            }
            _ => return Err(Refused),
        }
        Ok(())
    }
}

/// The readable bytes of a command, taken from the front.
struct Data<'a> {
    memory: &'a GuestMemory,
    chain: &'a Chain,
    at: u64,
}

impl Data<'_> {
    fn take<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], Refused> {
        let mut bytes = [0; BYTES];
        match gather(self.memory, after(&self.chain.readable, self.at), &mut bytes) {
            Ok(got) if got == BYTES => {
                self.at += BYTES as u64;
                Ok(bytes)
            }
            _ => Err(Refused),
        }
    }

    fn flag(&mut self) -> Result<bool, Refused> {
        let [flag] = self.take()?;
        Ok(flag != 0)
    }

    /// A count and that many addresses.
    fn table(&mut self) -> Result<Table, Refused> {
        let count = u32::from_le_bytes(self.take()?);
        let mut table = Table { addresses: Vec::new(), overflow: count as usize > TABLE_MAX };
        if table.overflow {
            // Not read: where they end is all that counts.
            self.at += u64::from(count) * size_of::<Mac>() as u64;
        } else {
            for _ in 0..count {
                table.addresses.push(self.take()?);
            }
        }
        Ok(table)
    }
}
