//! The IDE driver: a channel that shows anything, at any moment, and two disks that end commands or do not. Each transfer ends
//! once, at the latest when the channel is gone, and the bus master only ever gets tables that it can follow.
#![no_main]

use block::Disk;
use drivers::heap::{LowHal, low, peek};
use drivers::ide::{Ports, Register, start_played};
use fuzz::Input;
use fuzz::disk::{Memory, Transfers, ata_identity};
use libfuzzer_sys::fuzz_target;
use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard};

const SECOND_NS: u64 = 1_000_000_000;
/// Actions after the start.
const ACTIONS_MAX: usize = 400;
/// How long a driver may take to give silent disks up.
const SILENCE_SECONDS: u64 = 60;
/// Where transfers have the runs that the bus master reaches, above all memory of the driver; and the bytes of a table.
const RUNS: u64 = 3 << 30;
const TABLE_BYTES: u64 = 4096;

const STATUS_BUSY: u8 = 0x80;
const STATUS_READY: u8 = 0x50;
const CONTROL_RESET: u8 = 1 << 2;
const MASTER_ACTIVE: u8 = 1 << 0;
const MASTER_INTERRUPT: u8 = 1 << 2;

struct Device {
    has_slave: bool,
    identity: [u8; 512],
    /// By [`Register`].
    registers: [u8; 10],
    control: u8,
    status: u8,
    table: u32,
    /// What of the page is left that the processor reads.
    page: Vec<u8>,
    is_stuck: bool,
    /// Bits of registers to flip, each so many times.
    noise: [(u8, u8); 10],
    /// Everything reads as this.
    gone: Option<u8>,
}

#[derive(Clone)]
struct Wires(Arc<Mutex<Device>>);

impl Device {
    fn new(input: &mut Input<'_>) -> Self {
        Self {
            has_slave: input.u8() & 1 == 0,
            identity: ata_identity(input),
            registers: [0; 10],
            control: 0,
            status: STATUS_READY,
            table: 0,
            page: Vec::new(),
            is_stuck: false,
            noise: [(0, 0); 10],
            gone: None,
        }
    }

    fn read(&mut self, register: Register) -> u8 {
        let is_there = self.registers[Register::Device as usize] & 0x10 == 0 || self.has_slave;
        let value = match register {
            Register::Status | Register::Control if !is_there => 0,
            Register::Status | Register::Control if self.is_stuck => STATUS_BUSY,
            Register::Status | Register::Control => self.status,
            register => self.registers[register as usize],
        };
        let (flipped, times) = &mut self.noise[register as usize];
        let flipped = if *times > 0 { *flipped } else { 0 };
        *times = times.saturating_sub(1);
        self.gone.unwrap_or(value ^ flipped)
    }

    fn write(&mut self, register: Register, value: u8) {
        let master_status = &mut self.registers[Register::MasterStatus as usize];
        match register {
            Register::Control => {
                self.status = if value & CONTROL_RESET != 0 { STATUS_BUSY } else { STATUS_READY };
                if value & !self.control & CONTROL_RESET != 0 {
                    self.registers[..6].fill(0);
                }
                self.control = value;
            }
            Register::Status if value == 0xec => (self.status, self.page) = (0x58, self.identity.to_vec()),
            Register::Status => self.status = 0xd0,
            Register::MasterStatus => *master_status = *master_status & 1 | value & 0x60 | *master_status & 6 & !value,
            Register::MasterCommand => {
                *master_status = *master_status & !MASTER_ACTIVE | value & MASTER_ACTIVE;
                self.registers[register as usize] = value;
                if value & MASTER_ACTIVE != 0 {
                    self.follow_table();
                }
            }
            register => self.registers[register as usize] = value,
        }
    }

    /// Sees that the table has an end, that it is in its page, and that no entry crosses 64 KiB or is another's memory.
    fn follow_table(&self) {
        let page = low(u64::from(self.table), TABLE_BYTES).expect("the table is the driver's");
        assert_eq!(u64::from(self.table) % TABLE_BYTES, 0);
        for at in (page..page + TABLE_BYTES).step_by(8) {
            let [start, word]: [u32; 2] = peek(at);
            // No bytes stand for 64 KiB.
            let (start, bytes) = (u64::from(start), (u64::from(word as u16).wrapping_sub(1) & 0xffff) + 1);
            assert_eq!((start & 1, (start ^ (start + bytes - 1)) >> 16), (0, 0), "an entry that crosses 64 KiB");
            assert!(start >= RUNS || low(start, bytes).is_some(), "memory that is not the driver's");
            if word >> 31 != 0 {
                return;
            }
        }
        panic!("a table without an end");
    }

    fn end(&mut self, status: u8, error: u8) {
        (self.status, self.registers[Register::Error as usize]) = (status, error);
        let master_status = &mut self.registers[Register::MasterStatus as usize];
        *master_status = *master_status & !MASTER_ACTIVE | MASTER_INTERRUPT;
    }
}

impl Ports for Wires {
    fn read(&mut self, register: Register) -> u8 {
        lock(&self.0).read(register)
    }

    fn write(&mut self, register: Register, value: u8) {
        lock(&self.0).write(register, value);
    }

    fn read_data(&mut self) -> u16 {
        let mut device = lock(&self.0);
        if device.page.len() <= 2 {
            device.status = STATUS_READY;
        }
        let taken = device.page.len().min(2);
        device.page.drain(..taken).rev().fold(0, |value, byte| value << 8 | u16::from(byte))
    }

    fn set_table(&mut self, address: u32) {
        lock(&self.0).table = address;
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
    if input.u8() & 3 == 0 {
        make_noise(&mut lock(&device), &mut input);
    }
    let mut disks = start_played::<LowHal, _>(Wires(device.clone()), &now_ns);
    let mut transfers: Vec<Transfers> = disks.iter().map(|_| Transfers::default()).collect();
    let mut now_ns = clock.get();
    for _ in 0..ACTIONS_MAX {
        if disks.is_empty() || input.is_empty() {
            break;
        }
        let which = usize::from(input.u8()) % disks.len();
        act(&mut *disks[which], &mut transfers[which], &device, &mut input, &mut now_ns);
    }
    end(&mut disks, &mut transfers, &device, now_ns);
});

fn act(
    disk: &mut dyn Disk,
    transfers: &mut Transfers,
    device: &Mutex<Device>,
    input: &mut Input<'_>,
    now_ns: &mut u64,
) {
    match input.u8() % 9 {
        0 => transfers.submit(disk, input, Memory::real()),
        1 => transfers.submit(disk, input, Memory::nowhere(RUNS, 2)),
        2 => disk.kick(),
        3 => lock(device).end(STATUS_READY, 0),
        4 => lock(device).end(input.u8(), input.u8()),
        5 => {
            *now_ns += u64::from(input.u8()) * SECOND_NS / 16;
            disk.tick(*now_ns);
        }
        6 => make_noise(&mut lock(device), input),
        7 => lock(device).is_stuck = input.u8() & 1 == 0,
        _ => transfers.take(disk),
    }
}

fn make_noise(device: &mut Device, input: &mut Input<'_>) {
    device.noise[usize::from(input.u8()) % device.noise.len()] = (input.u8(), input.u8());
}

/// The channel falls silent: time alone must end everything.
fn end(disks: &mut [Box<dyn Disk>], transfers: &mut [Transfers], device: &Mutex<Device>, mut now_ns: u64) {
    lock(device).gone = Some(0xff);
    // The driver finds out when it gives the channel something, or waits for it.
    disks.iter_mut().for_each(|disk| disk.kick());
    for _ in 0..SILENCE_SECONDS * 10 {
        now_ns += SECOND_NS / 10;
        for (disk, transfers) in disks.iter_mut().zip(&mut *transfers) {
            disk.tick(now_ns);
            transfers.take(&mut **disk);
        }
    }
    for (disk, transfers) in disks.iter_mut().zip(transfers) {
        transfers.take_all(&mut **disk);
    }
}
