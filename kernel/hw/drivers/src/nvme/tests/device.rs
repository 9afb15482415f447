//! A controller that tests play: its registers, queues and a disk in memory.

use super::super::{Port, pair::DOORBELLS_AT};
use crate::virtio::tests::{peek, poke};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

pub(super) const PAGE: u64 = 4096;
pub(super) const NAMESPACE_BLOCKS: u64 = 4096;

/// A submission and a completion queue.
#[derive(Clone, Copy, Default)]
pub(super) struct Queue {
    submissions: u64,
    completions: u64,
    entries: u32,
    head: u32,
    completion_tail: u32,
    phase: u32,
}

/// What the controller is like and what it was told.
pub(super) struct Device {
    pub capabilities: u64,
    /// Configuration and status.
    pub configuration: u32,
    pub status: u32,
    pub admin: [u32; 5],
    pub queues: BTreeMap<u16, Queue>,
    /// Numbers of active namespaces, of 512-byte blocks unless `block_power` says otherwise.
    pub namespaces: Vec<u32>,
    pub block_power: u8,
    pub sgl: u8,
    pub transfer_power: u8,
    pub granted: u16,
    pub disk: Vec<u8>,
    /// Input and output commands are taken but not done.
    pub holds: bool,
    pub held: VecDeque<(u16, [u32; 16])>,
    /// Admin commands get no answer.
    pub is_mute: bool,
    /// Whether abort ends what is held.
    pub aborts: bool,
    /// Whether it stops when told to.
    pub stops: bool,
    pub is_gone: bool,
    /// What the registers of a device read as that is gone.
    pub gone_reads: u32,
    pub dma_stopped: bool,
    /// Opcodes of input and output commands, in order.
    pub seen: Vec<[u32; 16]>,
    pub resets: u32,
}

/// The registers of a [`Device`].
#[derive(Clone)]
pub(super) struct TestPort(pub Arc<Mutex<Device>>);

impl Default for Device {
    fn default() -> Self {
        Self {
            // 64 entries, 1 s, NVM command set.
            capabilities: 63 | 2 << 24 | 1 << 37,
            configuration: 0,
            status: 0,
            admin: [0; 5],
            queues: BTreeMap::new(),
            namespaces: vec![1],
            block_power: 9,
            sgl: 0,
            transfer_power: 0,
            granted: 8,
            disk: vec![0; 512 * NAMESPACE_BLOCKS as usize],
            holds: false,
            held: VecDeque::new(),
            is_mute: false,
            aborts: true,
            stops: true,
            is_gone: false,
            gone_reads: u32::MAX,
            dma_stopped: false,
            seen: Vec::new(),
            resets: 0,
        }
    }
}

impl Port for TestPort {
    fn read(&self, offset: usize) -> u32 {
        let device = self.0.lock().unwrap();
        match offset {
            _ if device.is_gone => device.gone_reads,
            0 => device.capabilities as u32,
            4 => (device.capabilities >> 32) as u32,
            0x1c => device.status,
            _ => panic!("register {offset:#x} is read"),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        let mut device = self.0.lock().unwrap();
        match offset {
            _ if device.is_gone => {}
            0x14 => device.configure(value),
            0x24..0x38 => device.admin[(offset - 0x24) / 4] = value,
            DOORBELLS_AT.. => device.doorbell((offset - DOORBELLS_AT) / 4, value),
            _ => panic!("register {offset:#x} is written"),
        }
    }

    fn is_present(&self) -> bool {
        !self.0.lock().unwrap().is_gone
    }

    fn bytes(&self) -> usize {
        0x2000
    }

    fn stop_dma(&mut self) {
        self.0.lock().unwrap().dma_stopped = true;
    }

    fn cpu(&self) -> usize {
        0
    }
}

impl Device {
    fn configure(&mut self, value: u32) {
        self.configuration = value;
        if value & 1 != 0 {
            assert_eq!(value, 0x46_0001);
            let [attributes, submissions, _, completions, _] = self.admin;
            let address = |index: usize, low: u32| u64::from(self.admin[index]) << 32 | u64::from(low);
            let (submissions, completions) = (address(2, submissions), address(4, completions));
            let queue =
                Queue { submissions, completions, entries: (attributes & 0xfff) + 1, phase: 1, ..Queue::default() };
            self.queues = BTreeMap::from([(0, queue)]);
            self.status |= 1;
        } else if self.stops {
            self.resets += 1;
            self.queues.clear();
            self.held.clear();
            self.status = 0;
        }
    }

    fn doorbell(&mut self, index: usize, value: u32) {
        if index % 2 == 1 {
            return;
        }
        let id = (index / 2) as u16;
        loop {
            let queue = self.queues.get_mut(&id).expect("a queue that is not there is rung");
            assert!(value < queue.entries, "a doorbell past the queue");
            if queue.head == value {
                return;
            }
            let words: [u32; 16] = peek(queue.submissions + 64 * u64::from(queue.head));
            queue.head = (queue.head + 1) % queue.entries;
            match id {
                0 if self.is_mute => {}
                0 => self.administer(words),
                _ => {
                    self.seen.push(words);
                    if self.holds { self.held.push_back((id, words)) } else { self.carry_out(id, words) }
                }
            }
        }
    }

    /// Posts a completion: status code and type, and the command's result.
    pub(super) fn complete(&mut self, id: u16, identifier: u16, status: u32, result: u32) {
        let head = self.queues[&id].head;
        self.post(id, result, u32::from(id) << 16 | head, u32::from(identifier) | status << 17);
    }

    /// Posts any completion, with the right phase.
    pub(super) fn post(&mut self, id: u16, result: u32, word2: u32, word3: u32) {
        let queue = self.queues.get_mut(&id).unwrap();
        let at = queue.completions + 16 * u64::from(queue.completion_tail);
        poke(at, [result, 0, word2]);
        poke(at + 12, word3 & !(1 << 16) | queue.phase << 16);
        queue.completion_tail = (queue.completion_tail + 1) % queue.entries;
        queue.phase ^= u32::from(queue.completion_tail == 0);
    }

    fn administer(&mut self, words: [u32; 16]) {
        let data = u64::from(words[7]) << 32 | u64::from(words[6]);
        let (id, entries) = (words[10] as u16, (words[10] >> 16) + 1);
        let (mut status, mut result) = (0, 0);
        match words[0] & 0xff {
            0x06 => match self.identity(words[10], words[1]) {
                Some(bytes) => poke(data, <[u8; 4096]>::try_from(bytes).unwrap()),
                None => status = 0xb,
            },
            0x09 => result = u32::from(self.granted - 1) << 16 | u32::from(self.granted - 1),
            0x05 => {
                assert!(id <= self.granted && words[11] == 3);
                let queue = Queue { completions: data, entries, phase: 1, ..Queue::default() };
                self.queues.insert(id, queue);
            }
            0x01 => {
                assert_eq!(words[11], u32::from(id) << 16 | 1);
                self.queues.get_mut(&id).expect("its completion queue comes first").submissions = data;
            }
            0x08 => {
                let found = self.held.iter().position(|(id, held)| words[10] == u32::from(*id) | held[0] & 0xffff_0000);
                result = u32::from(!self.aborts);
                if let Some(index) = found.filter(|_| self.aborts) {
                    let (id, held) = self.held.remove(index).unwrap();
                    self.complete(id, (held[0] >> 16) as u16, 7, 0);
                }
            }
            opcode => panic!("admin command {opcode:#x}"),
        }
        self.complete(0, (words[0] >> 16) as u16, status, result);
    }

    fn identity(&self, subject: u32, namespace: u32) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        match subject {
            0 if self.namespaces.contains(&namespace) => {
                bytes[..8].copy_from_slice(&NAMESPACE_BLOCKS.to_le_bytes());
                bytes[130] = self.block_power;
            }
            0 => {}
            1 => {
                bytes[4..8].copy_from_slice(b"S123");
                (bytes[77], bytes[512], bytes[513], bytes[520]) = (self.transfer_power, 0x66, 0x44, 0x0c);
                (bytes[525], bytes[536]) = (1, self.sgl);
                bytes[516] = 3;
            }
            2 if self.namespaces.is_empty() => return None,
            2 => {
                let list = self.namespaces.iter().flat_map(|number| number.to_le_bytes());
                list.enumerate().for_each(|(index, byte)| bytes[index] = byte);
            }
            subject => panic!("identify {subject}"),
        }
        Some(bytes)
    }

    /// Does what is held.
    pub(super) fn release(&mut self) {
        while let Some((id, words)) = self.held.pop_front() {
            self.carry_out(id, words);
        }
    }

    fn carry_out(&mut self, id: u16, words: [u32; 16]) {
        let block_bytes = 1_usize << self.block_power;
        let at = (u64::from(words[11]) << 32 | u64::from(words[10])) as usize * block_bytes;
        let bytes = ((words[12] & 0xffff) as usize + 1) * block_bytes;
        match words[0] & 0xff {
            0x00 => {}
            0x01 | 0x02 => {
                let mut at = at;
                for (address, length) in segments(&words, bytes as u64) {
                    for offset in 0..length {
                        match words[0] & 0xff {
                            1 => self.disk[at] = peek(address + offset),
                            _ => poke(address + offset, self.disk[at]),
                        }
                        at += 1;
                    }
                }
            }
            0x08 => self.disk[at..at + bytes].fill(0),
            0x09 => {
                assert_eq!(words[10..12], [0, 4]);
                let range = u64::from(words[7]) << 32 | u64::from(words[6]);
                let (blocks, block) = (peek::<u32>(range + 4), peek::<u64>(range + 8));
                let at = block as usize * block_bytes;
                self.disk[at..at + blocks as usize * block_bytes].fill(0xdd);
            }
            opcode => panic!("command {opcode:#x}"),
        }
        self.complete(id, (words[0] >> 16) as u16, 0, 0);
    }
}

/// Where a command's data lies, and how it must be described (Base specification 2.0, sections 4.1.1 and 4.1.2).
fn segments(words: &[u32; 16], bytes: u64) -> Vec<(u64, u64)> {
    let pair = |index: usize| u64::from(words[index + 1]) << 32 | u64::from(words[index]);
    let (first, second) = (pair(6), pair(8));
    if words[0] >> 14 & 3 == 1 {
        let list = match second >> 60 {
            0 => vec![(first, second)],
            3 => (0..(second & 0xffff_ffff) / 16).map(|index| peek::<(u64, u64)>(first + 16 * index)).collect(),
            kind => panic!("descriptor type {kind}"),
        };
        assert_eq!(list.iter().map(|(_, length)| length).sum::<u64>(), bytes);
        return list;
    }
    assert!(first.is_multiple_of(4));
    let mut found = vec![(first, bytes.min(PAGE - first % PAGE))];
    let mut left = bytes - found[0].1;
    let is_list = left > PAGE;
    for index in 0.. {
        if left == 0 {
            break;
        }
        let page = if is_list { peek::<u64>(second + 8 * index) } else { second };
        assert!(page.is_multiple_of(PAGE), "only the first page may begin within");
        found.push((page, left.min(PAGE)));
        left -= left.min(PAGE);
    }
    found
}
