//! Disks on a controller that tests play: its registers act as the specification says, and it carries out commands, or
//! does not, as the test wants.

use super::disk::AhciDisk;
use super::{Controller, hba};
use crate::ata::identify::sample;
use crate::ata::played::{Act, Noise, clock, each_ends_once, ended, pass, steps, submit};
use crate::mmio::Words;
use crate::virtio::tests::{TestHal, peek, poke};
use addr::Hpa;
use alloc::sync::Arc;
use block::{Disk, Health, HostRun, IoError, Op, SubmitError, Transfer};
use proptest::prelude::*;
use std::sync::Mutex;

/// One port's registers by offset over four, and what is plugged in.
struct Device {
    registers: [u32; 32],
    identity: [u8; 512],
    error_log: [u8; 512],
    linked: bool,
    /// The device does not come to rest: it stays busy.
    busy: bool,
    /// It does not stop.
    stuck: bool,
    /// Reads of everything give this instead.
    gone: Option<u32>,
    /// In reads of a port's registers.
    noise: Noise,
    resets: u32,
    /// Commands that wait to be carried out by the test: slot and opcode.
    pending: Vec<(u8, u8)>,
}

/// A window of the controller's registers. Port 0 alone is implemented.
struct Window {
    device: Arc<Mutex<Device>>,
    at: usize,
}

const PORT: usize = 0x100;
const IS: usize = 0x10 / 4;
const CMD: usize = 0x18 / 4;
const TFD: usize = 0x20 / 4;
const SCTL: usize = 0x2c / 4;
const SACT: usize = 0x34 / 4;
const CI: usize = 0x38 / 4;

impl Words for Window {
    fn part(&self, offset: usize, _: usize) -> Option<Self> {
        Some(Self { device: self.device.clone(), at: self.at + offset })
    }

    fn read(&self, offset: usize) -> u32 {
        let device = self.device.lock().unwrap();
        if let Some(value) = device.gone {
            return value;
        }
        match self.at + offset {
            // 64-bit addresses, NCQ, 32 slots, one port.
            0x00 => 1 << 31 | 1 << 30 | 31 << 8,
            0x0c => 1,
            at if at >= PORT => device.noise.nonsense().unwrap_or_else(|| device.read((at - PORT) / 4)),
            _ => 0,
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        let mut device = self.device.lock().unwrap();
        if let Some(register) = (self.at + offset).checked_sub(PORT) {
            device.write(register / 4, value);
        }
    }
}

impl Device {
    fn new() -> Arc<Mutex<Self>> {
        let device = Self {
            registers: [0; 32],
            identity: sample::page(),
            error_log: [0; 512],
            linked: true,
            busy: false,
            stuck: false,
            gone: None,
            noise: Noise::new(0, 1),
            resets: 0,
            pending: Vec::new(),
        };
        Arc::new(Mutex::new(device))
    }

    fn read(&self, register: usize) -> u32 {
        match register {
            CMD if self.stuck => self.registers[CMD] | 1 << 15,
            CMD => self.registers[CMD] | (self.registers[CMD] & 0x10) << 10 | (self.registers[CMD] & 1) << 15,
            TFD if self.busy => 0x80,
            0x09 => 0x101,
            0x0a => {
                if self.linked {
                    3
                } else {
                    0
                }
            }
            _ => self.registers[register],
        }
    }

    fn write(&mut self, register: usize, value: u32) {
        match register {
            IS => self.registers[IS] &= !value,
            SACT => self.registers[SACT] |= value,
            CI => self.take(value),
            CMD => {
                const READ_ONLY: u32 = 0x1f << 8 | 3 << 14;
                self.registers[CMD] = value & !READ_ONLY | self.registers[CMD] & 0x1f << 8;
                if value & 1 != 0 {
                    return;
                }
                (self.registers[SACT], self.registers[CI]) = (0, 0);
                self.pending.clear();
            }
            SCTL => {
                self.resets += value & 1;
                self.registers[SCTL] = value;
            }
            _ => self.registers[register] = value,
        }
    }

    /// Takes commands; those of the driver's own are carried out at once.
    fn take(&mut self, slots: u32) {
        self.registers[CI] |= slots;
        for slot in super::disk::bits(slots) {
            let opcode = peek::<u8>(self.table(slot) + 2);
            let page = match opcode {
                0xec => self.identity,
                0x2f => self.error_log,
                _ => {
                    self.pending.push((slot, opcode));
                    continue;
                }
            };
            let address = peek::<u64>(self.table(slot) + 0x80);
            page.iter().enumerate().for_each(|(at, byte)| poke(address + at as u64, *byte));
            self.registers[CI] &= !(1 << slot);
            self.registers[IS] |= 1 << 1;
        }
    }

    fn table(&self, slot: u8) -> u64 {
        let list = u64::from(self.registers[0]) | u64::from(self.registers[1]) << 32;
        peek::<u64>(list + 32 * u64::from(slot) + 8)
    }

    /// Ends a command well.
    fn done(&mut self, slot: u8) {
        self.pending.retain(|(pending, _)| *pending != slot);
        self.registers[SACT] &= !(1 << slot);
        self.registers[CI] &= !(1 << slot);
        self.registers[IS] |= 1 << 3 | 1;
    }

    /// Reports that a command failed.
    fn fail(&mut self, slot: u8) {
        self.registers[CMD] = self.registers[CMD] & !(0x1f << 8) | u32::from(slot) << 8;
        self.registers[TFD] = 0x0441;
        self.registers[IS] |= 1 << 30;
    }
}

type TestDisk = AhciDisk<TestHal, Window>;

fn disk_of(device: &Arc<Mutex<Device>>) -> Option<TestDisk> {
    let controller = Arc::new(Controller::new("AHCI at a test".into(), None));
    let window = Window { device: device.clone(), at: 0 };
    hba::bring_up(&controller, window, &clock()).unwrap().pop()
}

fn disk() -> (TestDisk, Arc<Mutex<Device>>) {
    let device = Device::new();
    (disk_of(&device).unwrap(), device)
}

#[test]
fn commands_and_runs_are_as_the_specification_has_them() {
    let (mut disk, device) = disk();
    assert_eq!((disk.geometry().sectors, disk.geometry().queue_depth), (1 << 21, 32));
    assert_eq!(disk.geometry().serial, "S1234");
    let runs =
        [HostRun { start: Hpa::new(0x12_3456_7000), bytes: 4096 }, HostRun { start: Hpa::new(0x5000), bytes: 1024 }];
    disk.submit(&Transfer { id: 7, op: Op::Write, sector: 0x1_2345, sectors: 10, runs: &runs }).unwrap();
    assert!(device.lock().unwrap().pending.is_empty());
    disk.kick();
    let mut device = device.lock().unwrap();
    assert_eq!((device.pending.as_slice(), device.registers[SACT], device.registers[CI]), (&[(0, 0x61)][..], 1, 1));
    let (table, list) = (device.table(0), u64::from(device.registers[0]) | u64::from(device.registers[1]) << 32);
    assert_eq!(peek::<u32>(list), 2 << 16 | 1 << 6 | 5);
    let frame: Vec<u8> = (0..20).map(|at| peek(table + at)).collect();
    assert_eq!(frame, [0x27, 0x80, 0x61, 10, 0x45, 0x23, 1, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((peek::<u64>(table + 0x80), peek::<u32>(table + 0x8c)), (0x12_3456_7000, 4095));
    assert_eq!((peek::<u64>(table + 0x90), peek::<u32>(table + 0x9c)), (0x5000, 1023));
    device.done(0);
    drop(device);
    assert_eq!(ended(&mut disk), [(7, Ok(()))]);
}

#[test]
fn queued_and_other_commands_keep_apart_in_order() {
    let (mut disk, device) = disk();
    for (id, op) in [(1, Op::Read), (2, Op::Write), (3, Op::Flush), (4, Op::Read)] {
        submit(&mut disk, id, op).unwrap();
    }
    disk.kick();
    let pending = || device.lock().unwrap().pending.clone();
    assert_eq!(pending(), [(0, 0x60), (1, 0x61)]);
    device.lock().unwrap().done(1);
    assert_eq!(ended(&mut disk), [(2, Ok(()))]);
    assert_eq!(pending(), [(0, 0x60)]);
    device.lock().unwrap().done(0);
    assert_eq!(ended(&mut disk), [(1, Ok(()))]);
    assert_eq!(pending(), [(2, 0xea)]);
    device.lock().unwrap().done(2);
    assert_eq!(ended(&mut disk), [(3, Ok(()))]);
    assert_eq!(pending(), [(3, 0x60)]);
}

#[test]
fn all_slots_and_no_more() {
    let (mut disk, _) = disk();
    (0..32).for_each(|id| submit(&mut disk, id + 1, Op::Read).unwrap());
    assert_eq!(submit(&mut disk, 40, Op::Read), Err(SubmitError::Full));
}

#[test]
fn the_log_tells_which_queued_command_failed_and_the_others_run_again() {
    let (mut disk, device) = disk();
    (1..=4).for_each(|id| submit(&mut disk, id, Op::Read).unwrap());
    disk.kick();
    {
        let mut device = device.lock().unwrap();
        device.done(3);
        (device.error_log[0], device.error_log[511]) = (1, 0xff);
        device.fail(0);
    }
    assert_eq!(ended(&mut disk), [(4, Ok(())), (2, Err(IoError::Device))]);
    assert_eq!(device.lock().unwrap().pending, [(0, 0x60), (2, 0x60)]);
    assert_eq!((disk.health(), device.lock().unwrap().resets), (Health::Ready, 0));
    [0, 2].into_iter().for_each(|slot| device.lock().unwrap().done(slot));
    assert_eq!(ended(&mut disk), [(1, Ok(())), (3, Ok(()))]);
}

#[test]
fn without_the_log_the_culprit_shows_alone() {
    let (mut disk, device) = disk();
    (1..=3).for_each(|id| submit(&mut disk, id, Op::Read).unwrap());
    disk.kick();
    device.lock().unwrap().error_log[0] = 9;
    device.lock().unwrap().fail(0);
    assert_eq!(ended(&mut disk), []);
    assert_eq!(device.lock().unwrap().pending, [(0, 0x60)]);
    device.lock().unwrap().fail(0);
    assert_eq!(ended(&mut disk), [(1, Err(IoError::Device))]);
    assert_eq!(device.lock().unwrap().pending, [(1, 0x60)]);
    for (slot, id) in [(1, 2), (2, 3)] {
        device.lock().unwrap().done(slot);
        assert_eq!(ended(&mut disk), [(id, Ok(()))]);
    }
}

#[test]
fn a_command_of_its_own_leaves_the_slots_as_they_were() {
    let (mut disk, device) = disk();
    submit(&mut disk, 1, Op::Flush).unwrap();
    submit(&mut disk, 2, Op::Flush).unwrap();
    disk.kick();
    device.lock().unwrap().fail(1);
    assert_eq!(ended(&mut disk), [(2, Err(IoError::Device))]);
    assert_eq!(device.lock().unwrap().pending, [(0, 0xea)]);
}

#[test]
fn silence_leads_to_a_reset_and_then_to_the_end() {
    let (mut disk, device) = disk();
    submit(&mut disk, 1, Op::Read).unwrap();
    disk.kick();
    let mut now_ns = pass(&mut disk, 0, 14);
    assert_eq!((device.lock().unwrap().resets, disk.health()), (0, Health::Ready));
    now_ns = pass(&mut disk, now_ns, 2);
    assert_eq!((device.lock().unwrap().resets, disk.health()), (1, Health::Ready));
    assert_eq!(device.lock().unwrap().pending, [(0, 0x60)]);
    now_ns = pass(&mut disk, now_ns, 60);
    assert_eq!(ended(&mut disk), [(1, Err(IoError::Device))]);
    // One that never answers again is given up for good.
    for id in 2..9 {
        let taken = submit(&mut disk, id, Op::Read);
        disk.kick();
        now_ns = pass(&mut disk, now_ns, 70);
        if taken == Err(SubmitError::Refused) {
            assert_eq!(disk.health(), Health::Failed);
            return;
        }
    }
    panic!("the disk is still used");
}

#[test]
fn a_pulled_disk_fails_everything() {
    let (mut disk, device) = disk();
    submit(&mut disk, 1, Op::Read).unwrap();
    disk.kick();
    device.lock().unwrap().linked = false;
    device.lock().unwrap().registers[IS] |= 1 << 22;
    assert_eq!(ended(&mut disk), []);
    assert_eq!(disk.health(), Health::Recovering);
    pass(&mut disk, 0, 5);
    assert_eq!(ended(&mut disk), [(1, Err(IoError::Device))]);
    assert_eq!((disk.health(), submit(&mut disk, 2, Op::Read)), (Health::Failed, Err(SubmitError::Refused)));
}

#[test]
fn a_disk_that_comes_back_goes_on_and_another_does_not() {
    for (is_other, outcome) in [(false, Ok(())), (true, Err(IoError::Device))] {
        let (mut disk, device) = disk();
        submit(&mut disk, 1, Op::Write).unwrap();
        disk.kick();
        device.lock().unwrap().linked = false;
        let now_ns = pass(&mut disk, 0, 2);
        assert_eq!(disk.health(), Health::Recovering);
        device.lock().unwrap().linked = true;
        if is_other {
            sample::set(&mut device.lock().unwrap().identity, 10, 0x5858);
        }
        pass(&mut disk, now_ns, 1);
        if !is_other {
            assert_eq!(device.lock().unwrap().pending, [(0, 0x61)]);
            device.lock().unwrap().done(0);
        }
        assert_eq!(ended(&mut disk), [(1, outcome)]);
    }
}

#[test]
fn a_controller_that_is_gone_completes_nothing() {
    for nothing in [0, u32::MAX] {
        let (mut disk, device) = disk();
        submit(&mut disk, 1, Op::Read).unwrap();
        disk.kick();
        device.lock().unwrap().gone = Some(nothing);
        assert!(ended(&mut disk).iter().all(|(_, outcome)| outcome.is_err()));
        pass(&mut disk, 0, 5);
        assert_eq!(disk.health(), Health::Failed);
    }
}

#[test]
fn a_port_that_does_not_stop_is_cut_off() {
    let (mut disk, device) = disk();
    submit(&mut disk, 1, Op::Read).unwrap();
    disk.kick();
    device.lock().unwrap().stuck = true;
    device.lock().unwrap().fail(0);
    assert_eq!(ended(&mut disk), [(1, Err(IoError::Device))]);
    pass(&mut disk, 0, 2);
    assert!(disk.controller.has_failed());
    assert_eq!(disk.health(), Health::Failed);
}

#[test]
fn an_odd_run_goes_through_the_page_for_copies() {
    let (mut disk, device) = disk();
    let mut buffer = vec![0_u8; 513];
    let odd = (buffer.as_mut_ptr() as u64) | 1;
    let runs = [HostRun { start: Hpa::new(odd), bytes: 500 }, HostRun { start: Hpa::new(odd + 500), bytes: 12 }];
    for (op, slot) in [(Op::Write, 0), (Op::Read, 0)] {
        (0..512).for_each(|at| poke(odd + at, at as u8 ^ 0x5a));
        disk.submit(&Transfer { id: 1, op, sector: 0, sectors: 1, runs: &runs }).unwrap();
        assert_eq!(disk.submit(&Transfer { id: 2, op, sector: 0, sectors: 1, runs: &runs }), Err(SubmitError::Full));
        disk.kick();
        let page: u64 = peek(device.lock().unwrap().table(slot) + 0x80);
        let expected = |at: u64| at as u8 ^ if op == Op::Write { 0x5a } else { 0x33 };
        if op == Op::Read {
            (0..512).for_each(|at| poke(page + at, expected(at)));
        }
        device.lock().unwrap().done(slot);
        assert_eq!(ended(&mut disk), [(1, Ok(()))]);
        let seen = if op == Op::Write { page } else { odd };
        assert!((0..512).all(|at| peek::<u8>(seen + at) == expected(at)));
    }
}

#[test]
fn a_discard_has_its_ranges() {
    let (mut disk, device) = disk();
    disk.submit(&Transfer { id: 1, op: Op::Discard, sector: 80, sectors: 800, runs: &[] }).unwrap();
    disk.kick();
    let device = device.lock().unwrap();
    assert_eq!(device.pending, [(0, 0x06)]);
    let ranges: u64 = peek(device.table(0) + 0x80);
    assert_eq!((peek::<u64>(ranges), peek::<u64>(ranges + 8)), (800 << 48 | 80, 0));
    assert_eq!(peek::<u8>(device.table(0) + 3), 1);
}

#[test]
fn what_does_not_answer_is_no_disk() {
    let device = Device::new();
    device.lock().unwrap().busy = true;
    assert!(disk_of(&device).is_none());
    device.lock().unwrap().busy = false;
    device.lock().unwrap().identity = [0; 512];
    assert!(disk_of(&device).is_none());
    device.lock().unwrap().linked = false;
    assert!(disk_of(&device).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_device_that_shows_anything_ends_each_transfer_once(
        seed in any::<u64>(),
        rate in 1_u64..400,
        quiet_start in any::<bool>(),
        steps in steps(),
    ) {
        let device = Device::new();
        device.lock().unwrap().noise = Noise::new(if quiet_start { 0 } else { rate }, seed);
        let Some(mut disk) = disk_of(&device) else { return Ok(()) };
        device.lock().unwrap().noise.rate = rate;
        let act = |act, value| {
            let mut device = device.lock().unwrap();
            match act {
                Act::Done => device.done(value & 31),
                Act::Fail => device.fail(value & 31),
                Act::Leave => device.gone = Some(0),
            }
        };
        each_ends_once(&mut disk, steps, act, 40)?;
        prop_assert_eq!(disk.health(), Health::Failed);
    }
}
