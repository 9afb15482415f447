//! The NVMe driver: a controller that answers anything, at any moment, and a submitter that counts.
#![no_main]

use block::Disk;
use drivers::heap::{HeapHal, peek, poke};
use drivers::nvme::{Namespace, Port, start};
use fuzz::Input;
use fuzz::disk::{Memory, Transfers};
use libfuzzer_sys::fuzz_target;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const DOORBELLS: usize = 0x1000;
const SECOND_NS: u64 = 1_000_000_000;
/// Actions after the start.
const ACTIONS_MAX: usize = 400;

/// A completion queue, and the submission queue of the same number.
#[derive(Clone, Copy, Default)]
struct Queue {
    submissions: u64,
    completions: u64,
    entries: u64,
    head: u64,
    tail: u64,
    phase: u32,
}

/// The controller.
struct Device {
    capabilities: u64,
    status: u32,
    /// Flips bits of the status.
    noise: u32,
    admin: [u32; 5],
    identity: [u8; 4096],
    namespace: [u8; 4096],
    numbers: [u8; 64],
    granted: u32,
    answers: bool,
    queues: BTreeMap<usize, Queue>,
    /// Commands without a completion: queue and identifier.
    held: Vec<(usize, u32)>,
}

#[derive(Clone)]
struct Registers(Arc<Mutex<Device>>);

impl Port for Registers {
    fn read(&self, offset: usize) -> u32 {
        let device = self.0.lock().expect("one thread");
        match offset {
            0 => device.capabilities as u32,
            4 => (device.capabilities >> 32) as u32,
            _ => device.status ^ device.noise,
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        let mut device = self.0.lock().expect("one thread");
        match offset {
            0x14 => device.configure(value),
            0x24..0x38 => device.admin[(offset - 0x24) / 4] = value,
            DOORBELLS.. => device.doorbell(offset - DOORBELLS, u64::from(value)),
            _ => panic!("register {offset:#x} is written"),
        }
    }

    fn is_present(&self) -> bool {
        true
    }

    fn bytes(&self) -> usize {
        0x4000
    }

    fn stop_dma(&mut self) {
        let mut device = self.0.lock().expect("one thread");
        device.queues.clear();
        device.held.clear();
    }

    fn cpu(&self) -> usize {
        0
    }
}

impl Device {
    /// A controller that would start, but for the changes that the fuzzer makes.
    fn new(input: &mut Input<'_>) -> Self {
        let mut device = Self {
            capabilities: 7 | 1 << 24 | 1 << 37,
            status: 0,
            noise: 0,
            admin: [0; 5],
            identity: [0; 4096],
            namespace: [0; 4096],
            numbers: [0; 64],
            granted: 3 << 16 | 3,
            answers: true,
            queues: BTreeMap::new(),
            held: Vec::new(),
        };
        (device.identity[512], device.identity[513], device.identity[520]) = (0x66, 0x44, 0x0c);
        (device.identity[525], device.identity[536]) = (1, input.u8() % 4);
        (device.namespace[1], device.namespace[130], device.numbers[0]) = (16, 9 + input.u8() % 4, 1);
        for _ in 0..input.u8() % 8 {
            match input.u8() % 5 {
                0 => device.capabilities ^= input.u64(),
                1 => device.identity[usize::from(input.u16()) % 4096] = input.u8(),
                2 => device.namespace[usize::from(input.u16()) % 256] = input.u8(),
                3 => device.numbers[usize::from(input.u8()) % 64] = input.u8(),
                _ => device.granted = input.u32(),
            }
        }
        device
    }

    fn configure(&mut self, value: u32) {
        self.queues.clear();
        self.held.clear();
        self.status = value & 1;
        if value & 1 != 0 {
            let [attributes, a, b, c, d] = self.admin.map(u64::from);
            let queue = Queue {
                submissions: b << 32 | a,
                completions: d << 32 | c,
                entries: (attributes & 0xfff) + 1,
                phase: 1,
                ..Queue::default()
            };
            self.queues.insert(0, queue);
        }
    }

    fn doorbell(&mut self, offset: usize, value: u64) {
        let stride = 4 << (self.capabilities >> 32 & 15);
        if offset / stride % 2 == 1 {
            return;
        }
        let id = offset / stride / 2;
        let has_commands = |queue: &&mut Queue| queue.submissions != 0 && queue.head != value;
        while let Some(queue) = self.queues.get_mut(&id).filter(has_commands) {
            assert!(value < queue.entries, "a doorbell past its queue");
            let words = peek::<[u32; 16]>(queue.submissions + 64 * queue.head);
            queue.head = (queue.head + 1) % queue.entries;
            self.held.push((id, words[0] >> 16));
            if id == 0 && self.answers {
                self.administer(&words);
            }
        }
    }

    fn administer(&mut self, words: &[u32; 16]) {
        let data = u64::from(words[7]) << 32 | u64::from(words[6]);
        let (id, entries) = ((words[10] & 0xffff) as usize, u64::from(words[10] >> 16) + 1);
        let mut result = 0;
        match (words[0] & 0xff, words[10]) {
            (0x06, 0) => poke(data, self.namespace),
            (0x06, 1) => poke(data, self.identity),
            (0x06, _) => poke(data, self.numbers),
            (0x09, _) => result = self.granted,
            (0x05, _) => {
                let queue = Queue { completions: data, entries, phase: 1, ..Queue::default() };
                self.queues.insert(id, queue);
            }
            (0x01, _) => {
                // There is no completion queue where only a completion without a command said that there is.
                self.queues.entry(id).and_modify(|queue| queue.submissions = data);
            }
            _ => {}
        }
        self.finish(self.held.len() - 1, 0, result);
    }

    /// Completes what is held at an index.
    fn finish(&mut self, index: usize, status: u32, result: u32) {
        let (id, identifier) = self.held.remove(index);
        let head = self.queues[&id].head as u32;
        self.post(id, [result, 0, (id as u32) << 16 | head, identifier | status << 17], true);
    }

    /// Writes any completion, with the right phase or without.
    fn post(&mut self, id: usize, mut words: [u32; 4], in_phase: bool) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        if in_phase {
            words[3] = words[3] & !(1 << 16) | queue.phase << 16;
        }
        poke(queue.completions + 16 * queue.tail, words);
        queue.tail = (queue.tail + 1) % queue.entries;
        queue.phase ^= u32::from(queue.tail == 0);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let device = Arc::new(Mutex::new(Device::new(&mut input)));
    let clock = Cell::new(0);
    let now_ns = || {
        clock.set(clock.get() + SECOND_NS / 10);
        clock.get()
    };
    let Ok(disks) = start::<HeapHal, _>(Registers(device.clone()), "NVMe", true, &now_ns) else { return };
    for mut disk in disks {
        use_disk(&mut disk, &device, &mut input, clock.get());
    }
});

fn use_disk(disk: &mut Namespace<HeapHal, Registers>, device: &Mutex<Device>, input: &mut Input<'_>, mut now_ns: u64) {
    let mut transfers = Transfers::default();
    for _ in 0..ACTIONS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            0 | 1 => transfers.submit(disk, input, Memory::real()),
            2 => disk.kick(),
            3 => {
                let mut device = device.lock().expect("one thread");
                let (index, status) = (usize::from(input.u8()), input.u16());
                if index < device.held.len() {
                    device.finish(index, u32::from(status & 0x7f) / 0x60, input.u8().into());
                }
            }
            4 => {
                let words = [input.u32(), 0, input.u32(), input.u32()];
                device.lock().expect("one thread").post(usize::from(input.u8() % 6), words, input.u8() & 1 == 0);
            }
            5 => {
                let mut device = device.lock().expect("one thread");
                (device.noise, device.answers) = (u32::from(input.u8() & 3), input.u8() & 1 == 0);
            }
            6 => {
                now_ns += u64::from(input.u8()) * SECOND_NS / 4;
                disk.tick(now_ns);
            }
            _ => transfers.take(disk),
        }
    }
    // Whatever happened, a controller that is pulled gives everything back, once.
    {
        let mut device = device.lock().expect("one thread");
        device.noise = !device.status;
    }
    disk.tick(now_ns + SECOND_NS);
    transfers.take_all(disk);
}
