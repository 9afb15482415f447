//! The AHCI driver: a controller that shows anything, at any moment, and a disk that ends commands or does not. Each transfer
//! ends once, at the latest when the controller is gone.
#![no_main]

use block::{Disk, Health};
use drivers::ahci::{Words, start_played};
use drivers::heap::{HeapHal, peek, poke};
use fuzz::Input;
use fuzz::disk::{Memory, Transfers, ata_identity};
use libfuzzer_sys::fuzz_target;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

const SECOND_NS: u64 = 1_000_000_000;
/// Actions after the start.
const ACTIONS_MAX: usize = 400;
/// How long a driver may take to give a silent disk up.
const SILENCE_SECONDS: u64 = 40;

/// Registers: the controller's, then those of its one port.
const CAP: usize = 0x00;
const PI: usize = 0x0c;
const PORT: usize = 0x100;
const PORT_END: usize = 0x180;
const CLB: usize = 0x00;
const CLBU: usize = 0x04;
const IS: usize = 0x10;
const CMD: usize = 0x18;
const TFD: usize = 0x20;
const SIG: usize = 0x24;
const SSTS: usize = 0x28;
const SACT: usize = 0x34;
const CI: usize = 0x38;
const CMD_START: u32 = 1 << 0;
const CMD_RECEIVE: u32 = 1 << 4;
const CMD_SLOT: u32 = 0x1f << 8;

struct Device {
    bytes: usize,
    capabilities: u32,
    implemented: u32,
    /// The port's, by offset over four; the driver's memory is found by these.
    port: [u32; 32],
    /// What registers show wrong: bits to flip, by offset.
    noise: BTreeMap<usize, u32>,
    identity: [u8; 512],
    error_log: [u8; 512],
    is_linked: bool,
    is_busy: bool,
    is_stuck: bool,
    /// Everything reads as this.
    gone: Option<u32>,
}

/// A window of the registers.
#[derive(Clone)]
struct Window {
    device: Arc<Mutex<Device>>,
    at: usize,
}

impl Words for Window {
    fn part(&self, offset: usize, bytes: usize) -> Option<Self> {
        let at = self.at + offset;
        (at + bytes <= lock(&self.device).bytes).then(|| Self { device: self.device.clone(), at })
    }

    fn read(&self, offset: usize) -> u32 {
        let device = lock(&self.device);
        let at = self.at + offset;
        device.gone.unwrap_or_else(|| device.read(at) ^ device.noise.get(&at).copied().unwrap_or(0))
    }

    fn write(&mut self, offset: usize, value: u32) {
        let mut device = lock(&self.device);
        match self.at + offset {
            at @ PORT..PORT_END if device.gone.is_none() => device.write(at - PORT, value),
            _ => {}
        }
    }
}

impl Device {
    fn new(input: &mut Input<'_>) -> Self {
        let mut device = Self {
            bytes: [0x1100, 0x180][usize::from(input.u8() & 1)],
            capabilities: 3 << 30 | u32::from(input.u8() & 31) << 8,
            implemented: 1,
            port: [0; 32],
            noise: BTreeMap::new(),
            identity: ata_identity(input),
            error_log: [0; 512],
            is_linked: true,
            is_busy: false,
            is_stuck: false,
            gone: None,
        };
        match input.u8() % 4 {
            0 => (device.capabilities, device.implemented) = (input.u32(), input.u32()),
            1 => device.make_noise(input),
            _ => {}
        }
        device
    }

    fn make_noise(&mut self, input: &mut Input<'_>) {
        let at = [0, 4, 8, 0x0c, 0x24, 0x28, PORT + IS, PORT + CMD, PORT + TFD, PORT + SIG, PORT + SSTS, PORT + CI];
        let at = at.get(usize::from(input.u8() % 16)).copied().unwrap_or(PORT + SACT);
        self.noise.insert(at, input.u32());
    }

    fn read(&self, at: usize) -> u32 {
        match at {
            CAP => self.capabilities,
            PI => self.implemented,
            PORT..PORT_END => self.read_port(at - PORT),
            _ => 0,
        }
    }

    fn read_port(&self, register: usize) -> u32 {
        let value = self.port[register / 4];
        match register {
            CMD if self.is_stuck => value | 1 << 15,
            CMD => value | (value & CMD_RECEIVE) << 10 | (value & CMD_START) << 15,
            TFD if self.is_busy => 0x80,
            SIG => 0x101,
            SSTS => u32::from(self.is_linked) * 3,
            _ => value,
        }
    }

    fn write(&mut self, register: usize, value: u32) {
        match register {
            IS => self.port[IS / 4] &= !value,
            SACT => self.port[SACT / 4] |= value,
            CI => self.take(value),
            CMD => {
                self.port[CMD / 4] = value & !(CMD_SLOT | 3 << 14) | self.port[CMD / 4] & CMD_SLOT;
                if value & CMD_START == 0 {
                    (self.port[SACT / 4], self.port[CI / 4]) = (0, 0);
                }
            }
            _ => self.port[register / 4] = value,
        }
    }

    /// Takes commands; those of the driver's own are carried out at once.
    fn take(&mut self, slots: u32) {
        self.port[CI / 4] |= slots;
        let list = u64::from(self.port[CLB / 4]) | u64::from(self.port[CLBU / 4]) << 32;
        for slot in (0..32).filter(|slot| slots & 1 << slot != 0) {
            let header = list + 32 * slot;
            let table: u64 = peek(header + 8);
            let entries = peek::<u32>(header) >> 16;
            assert!((0..u64::from(entries)).all(|entry| peek::<u64>(table + 0x80 + 16 * entry) & 1 == 0));
            let page = match peek::<u8>(table + 2) {
                0xec => self.identity,
                0x2f => self.error_log,
                _ => continue,
            };
            poke(peek::<u64>(table + 0x80), page);
            self.port[CI / 4] &= !(1 << slot);
            self.port[IS / 4] |= 1 << 1;
        }
    }

    /// Ends a command, well or with these errors.
    fn end(&mut self, slot: u8, events: Option<u32>) {
        match events {
            None => {
                self.port[SACT / 4] &= !(1 << slot);
                self.port[CI / 4] &= !(1 << slot);
                self.port[IS / 4] |= 1 << 3 | 1;
            }
            Some(events) => {
                self.port[CMD / 4] = self.port[CMD / 4] & !CMD_SLOT | u32::from(slot) << 8;
                self.port[TFD / 4] = 0x0441;
                self.port[IS / 4] |= events;
            }
        }
    }
}

fn lock(device: &Mutex<Device>) -> MutexGuard<'_, Device> {
    device.lock().expect("one thread")
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let device = Arc::new(Mutex::new(Device::new(&mut input)));
    let clock = Cell::new(0);
    let now_ns = || clock.replace(clock.get() + SECOND_NS / 10);
    let window = Window { device: device.clone(), at: 0 };
    let Ok(disks) = start_played::<HeapHal, _>(window, &now_ns) else { return };
    for mut disk in disks {
        lock(&device).gone = None;
        use_disk(&mut *disk, &device, &mut input, clock.get());
    }
});

fn use_disk(disk: &mut dyn Disk, device: &Mutex<Device>, input: &mut Input<'_>, mut now_ns: u64) {
    let mut transfers = Transfers::default();
    for _ in 0..ACTIONS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 10 {
            0 | 1 => transfers.submit(disk, input, Memory::real()),
            2 => disk.kick(),
            3 => lock(device).end(input.u8() & 31, None),
            4 => lock(device).end(input.u8() & 31, Some(1 << 30)),
            5 => lock(device).end(input.u8() & 31, Some(input.u32())),
            6 => {
                now_ns += u64::from(input.u8()) * SECOND_NS / 16;
                disk.tick(now_ns);
            }
            7 => lock(device).make_noise(input),
            8 => change(&mut lock(device), input),
            _ => transfers.take(disk),
        }
    }
    {
        let mut device = lock(device);
        device.noise.clear();
        device.gone = Some([0, u32::MAX][usize::from(input.u8() & 1)]);
    }
    for _ in 0..SILENCE_SECONDS * 10 {
        now_ns += SECOND_NS / 10;
        disk.tick(now_ns);
        transfers.take(disk);
    }
    transfers.take_all(disk);
    assert_eq!(disk.health(), Health::Failed);
}

fn change(device: &mut Device, input: &mut Input<'_>) {
    match input.u8() % 6 {
        0 => device.noise.clear(),
        1 => (device.error_log[0], device.error_log[511]) = (input.u8(), input.u8()),
        2 => device.is_linked = input.u8() & 1 == 0,
        3 => device.is_busy = input.u8() & 1 == 0,
        4 => device.is_stuck = input.u8() & 1 == 0,
        _ => device.identity[usize::from(input.u16()) % 512] ^= input.u8(),
    }
}
