//! Disks on a channel that tests play: its registers act as the standards say, and its devices carry out commands, or do
//! not, as the test wants.

use super::disk::IdeDisk;
use super::interface::Interface;
use super::ports::{Ports, Register};
use super::{Controller, Place, place, start_up};
use crate::ata::identify::sample;
use crate::ata::played::{Act, Noise, clock, each_ends_once, ended, pass, steps, submit};
use crate::heap::{LowHal, low, peek, poke};
use crate::pci::Bar;
use addr::Hpa;
use alloc::sync::Arc;
use block::{Disk, Health, HostRun, IoError, Op, SubmitError, Transfer};
use proptest::prelude::*;
use std::sync::Mutex;

/// Where the driver's memory is that a device knows by this address.
fn pointer(address: u64) -> u64 {
    low(address, 1).expect("the driver's memory")
}

/// What is plugged in as one of the two devices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plug {
    Nothing,
    Disk,
    Packet,
}

struct Device {
    plugs: [Plug; 2],
    identity: [u8; 512],
    /// Count, three of the address, features; what was written before; the device register; the error register.
    block: [[u8; 5]; 2],
    device: u8,
    error: u8,
    status: u8,
    control: u8,
    master: [u8; 2],
    table: u32,
    page: Vec<u8>,
    /// The devices do not answer any more.
    stuck: bool,
    /// Reads of everything give this instead.
    gone: Option<u8>,
    noise: Noise,
    resets: u32,
    /// Nothing was written since the last.
    is_fresh: bool,
    /// The command that waits to be carried out by the test.
    pending: Option<u8>,
}

#[derive(Clone)]
struct Wires(Arc<Mutex<Device>>);

const INTERRUPT: u8 = 4;
const ACTIVE: u8 = 1;

impl Device {
    fn unit(&self) -> usize {
        usize::from(self.device >> 4 & 1)
    }

    fn is_there(&self) -> bool {
        self.plugs[self.unit()] != Plug::Nothing
    }

    fn read(&self, register: Register) -> u8 {
        if let Some(value) = self.gone.or_else(|| self.noise.nonsense().map(|value| value as u8)) {
            return value;
        }
        match register {
            Register::MasterCommand => self.master[0],
            Register::MasterStatus => self.master[1],
            Register::Device => self.device,
            Register::Error => self.error,
            _ if self.plugs == [Plug::Nothing; 2] => 0xff,
            Register::Status | Register::Control if !self.is_there() => 0,
            Register::Status | Register::Control if self.stuck => 0x80,
            Register::Status | Register::Control => self.status,
            Register::Count => self.block[0][1],
            Register::LbaLow => self.block[0][2],
            Register::LbaMid => self.block[0][3],
            Register::LbaHigh => self.block[0][4],
        }
    }

    fn write(&mut self, register: Register, value: u8) {
        let at = match register {
            Register::Error => 0,
            Register::Count => 1,
            Register::LbaLow => 2,
            Register::LbaMid => 3,
            Register::LbaHigh => 4,
            Register::Device => {
                self.device = value;
                return self.sign();
            }
            Register::Control => return self.set_control(value),
            Register::Status => return self.take(value),
            Register::MasterCommand => {
                self.master[0] = value;
                self.master[1] = self.master[1] & !ACTIVE | value & ACTIVE;
                return;
            }
            Register::MasterStatus => {
                self.master[1] = self.master[1] & 1 | value & 0x60 | self.master[1] & 6 & !value;
                return;
            }
        };
        self.is_fresh = false;
        self.block[1][at] = core::mem::replace(&mut self.block[0][at], value);
    }

    /// After a reset a device's registers say what it is.
    fn sign(&mut self) {
        if self.is_fresh {
            let packet = self.plugs[self.unit()] == Plug::Packet;
            (self.block[0][3], self.block[0][4]) = if packet { (0x14, 0xeb) } else { (0, 0) };
        }
    }

    fn set_control(&mut self, value: u8) {
        if value & 4 != 0 && self.control & 4 == 0 {
            self.resets += 1;
            self.is_fresh = true;
            (self.pending, self.device, self.block) = (None, 0, [[0; 5]; 2]);
        }
        self.status = if value & 4 != 0 { 0x80 } else { 0x50 };
        self.control = value;
    }

    fn take(&mut self, opcode: u8) {
        match (opcode, self.plugs[self.unit()]) {
            (_, Plug::Nothing) => {}
            (0xec, Plug::Disk) => {
                (self.status, self.page) = (0x58, self.identity.to_vec());
            }
            (0xec, Plug::Packet) => {
                (self.status, self.error) = (0x51, 4);
                (self.block[0][3], self.block[0][4]) = (0x14, 0xeb);
            }
            _ => (self.status, self.pending) = (0xd0, Some(opcode)),
        }
    }

    /// Ends the command, with this status.
    fn end(&mut self, status: u8, error: u8) {
        self.pending = None;
        (self.status, self.error) = (status, error);
        self.master[1] = self.master[1] & !ACTIVE | INTERRUPT;
    }

    fn done(&mut self) {
        self.end(0x50, 0);
    }

    /// The entries of the bus master's table: address and length.
    fn entries(&self) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        loop {
            let at = pointer(u64::from(self.table) + 8 * entries.len() as u64);
            let (address, bytes): (u32, u32) = (peek(at), peek(at + 4));
            entries.push((address, if bytes as u16 == 0 { 1 << 16 } else { bytes & 0xffff }));
            if bytes >> 31 != 0 {
                return entries;
            }
        }
    }
}

impl Ports for Wires {
    fn read(&mut self, register: Register) -> u8 {
        self.0.lock().unwrap().read(register)
    }

    fn write(&mut self, register: Register, value: u8) {
        self.0.lock().unwrap().write(register, value);
    }

    fn read_data(&mut self) -> u16 {
        let mut device = self.0.lock().unwrap();
        // What is shown can make the driver read where there is nothing.
        let taken = device.page.len().min(2);
        let word = device.page.drain(..taken).rev().fold(0, |word, byte| word << 8 | u16::from(byte));
        if device.page.is_empty() {
            device.status = 0x50;
        }
        word
    }

    fn set_table(&mut self, address: u32) {
        self.0.lock().unwrap().table = address;
    }
}

type TestDisk = IdeDisk<LowHal, Wires>;
type Shared = Arc<Mutex<Device>>;

fn device(plugs: [Plug; 2]) -> Shared {
    Arc::new(Mutex::new(Device {
        plugs,
        identity: sample::page(),
        block: [[0; 5]; 2],
        device: 0,
        error: 0,
        status: 0x50,
        control: 0,
        master: [0; 2],
        table: 0,
        page: Vec::new(),
        stuck: false,
        gone: None,
        noise: Noise::new(0, 1),
        resets: 0,
        is_fresh: false,
        pending: None,
    }))
}

fn disks_of(device: &Shared) -> Vec<TestDisk> {
    let controller = Arc::new(Controller::new("IDE at a test".into(), None));
    let found = start_up::find(&controller, Interface::new(Wires(device.clone())), "here", &clock());
    found.map_or(Vec::new(), |found| super::finish(found, true))
}

fn disk() -> (TestDisk, Shared) {
    let device = device([Plug::Disk, Plug::Nothing]);
    (disks_of(&device).pop().unwrap(), device)
}

#[test]
fn registers_and_tables_are_as_the_standards_have_them() {
    let (mut disk, device) = disk();
    assert_eq!((disk.geometry().sectors, disk.geometry().serial.as_str()), (1 << 21, "S1234"));
    assert_eq!(device.lock().unwrap().control, 0);
    let runs =
        [HostRun { start: Hpa::new(0x123_f000), bytes: 0x2_1000 }, HostRun { start: Hpa::new(0x5002), bytes: 0x400 }];
    disk.submit(&Transfer { id: 7, op: Op::Write, sector: 0x1_2345, sectors: 0x10a, runs: &runs }).unwrap();
    assert_eq!(device.lock().unwrap().pending, None);
    disk.kick();
    let mut wires = device.lock().unwrap();
    assert_eq!((wires.pending, wires.device, wires.master[0]), (Some(0x35), 0xe0, 1));
    assert_eq!(wires.block, [[0, 0x0a, 0x45, 0x23, 1], [0, 1, 0, 0, 0]]);
    assert_eq!(
        wires.entries(),
        [(0x123_f000, 0x1000), (0x124_0000, 0x1_0000), (0x125_0000, 0x1_0000), (0x5002, 0x400)]
    );
    wires.done();
    drop(wires);
    assert_eq!(ended(&mut disk), [(7, Ok(()))]);
    submit(&mut disk, 8, Op::Read).unwrap();
    disk.kick();
    let wires = device.lock().unwrap();
    assert_eq!((wires.pending, wires.master), (Some(0x25), [9, 1]));
}

#[test]
fn the_channel_does_one_command_at_a_time_in_order() {
    let device = device([Plug::Disk, Plug::Disk]);
    let mut disks = disks_of(&device);
    let [mut slave, mut master] = [disks.pop().unwrap(), disks.pop().unwrap()];
    submit(&mut master, 1, Op::Read).unwrap();
    submit(&mut slave, 2, Op::Write).unwrap();
    submit(&mut master, 3, Op::Flush).unwrap();
    slave.kick();
    let state = || {
        let wires = device.lock().unwrap();
        (wires.pending, wires.unit())
    };
    assert_eq!(state(), (Some(0x25), 0));
    device.lock().unwrap().done();
    // Whoever asks first, each takes its own.
    assert_eq!((ended(&mut slave), state()), (vec![], (None, 0)));
    assert_eq!((ended(&mut master), state()), (vec![(1, Ok(()))], (Some(0x35), 1)));
    device.lock().unwrap().done();
    assert_eq!((ended(&mut slave), state()), (vec![(2, Ok(()))], (Some(0xea), 0)));
    device.lock().unwrap().done();
    assert_eq!(ended(&mut master), [(3, Ok(()))]);
}

#[test]
fn slots_are_filled_and_no_more() {
    let (mut disk, _) = disk();
    (1..=8).for_each(|id| submit(&mut disk, id, Op::Read).unwrap());
    assert_eq!(submit(&mut disk, 9, Op::Read), Err(SubmitError::Full));
}

#[test]
fn a_failed_command_ends_alone() {
    let (mut disk, device) = disk();
    (1..=2).for_each(|id| submit(&mut disk, id, Op::Read).unwrap());
    disk.kick();
    device.lock().unwrap().end(0x51, 0x40);
    assert_eq!(ended(&mut disk), [(1, Err(IoError::Device))]);
    assert_eq!(device.lock().unwrap().pending, Some(0x25));
    assert_eq!(device.lock().unwrap().resets, 1);
    device.lock().unwrap().done();
    assert_eq!((ended(&mut disk), disk.health()), (vec![(2, Ok(()))], Health::Ready));
}

#[test]
fn a_command_without_all_of_its_data_is_given_again() {
    for (status, error, master) in [(0x50, 0, INTERRUPT | ACTIVE), (0x58, 0, INTERRUPT), (0x51, 0x84, 4), (0x50, 0, 2)]
    {
        let (mut disk, device) = disk();
        submit(&mut disk, 1, Op::Read).unwrap();
        disk.kick();
        device.lock().unwrap().end(status, error);
        device.lock().unwrap().master[1] = master;
        assert_eq!((ended(&mut disk), disk.health()), (vec![], Health::Recovering));
        pass(&mut disk, 0, 1);
        assert_eq!((device.lock().unwrap().pending, disk.health()), (Some(0x25), Health::Ready));
        device.lock().unwrap().done();
        assert_eq!(ended(&mut disk), [(1, Ok(()))]);
        assert_eq!(device.lock().unwrap().resets, 2);
    }
}

#[test]
fn data_that_is_on_its_way_is_waited_for() {
    let (mut disk, device) = disk();
    submit(&mut disk, 1, Op::Read).unwrap();
    disk.kick();
    device.lock().unwrap().status = 0x50;
    device.lock().unwrap().master[1] = 0;
    assert_eq!((ended(&mut disk), disk.health()), (vec![], Health::Ready));
}

#[test]
fn a_lost_interrupt_costs_a_moment() {
    let (mut disk, device) = disk();
    submit(&mut disk, 1, Op::Read).unwrap();
    disk.kick();
    device.lock().unwrap().done();
    pass(&mut disk, 0, 2);
    assert_eq!(device.lock().unwrap().resets, 1);
    assert_eq!(disk.channel.lock().current, None);
    assert_eq!(ended(&mut disk), [(1, Ok(()))]);
}

#[test]
fn silence_leads_to_a_reset_and_then_to_the_end() {
    let (mut disk, device) = disk();
    submit(&mut disk, 1, Op::Read).unwrap();
    disk.kick();
    let mut now_ns = pass(&mut disk, 0, 14);
    assert_eq!((device.lock().unwrap().resets, disk.health()), (1, Health::Ready));
    now_ns = pass(&mut disk, now_ns, 40);
    assert_eq!((device.lock().unwrap().resets, ended(&mut disk)), (4, vec![(1, Err(IoError::Device))]));
    submit(&mut disk, 2, Op::Read).unwrap();
    disk.kick();
    pass(&mut disk, now_ns, 60);
    assert_eq!((ended(&mut disk), disk.health()), (vec![(2, Err(IoError::Device))], Health::Failed));
    assert_eq!(submit(&mut disk, 3, Op::Read), Err(SubmitError::Refused));
}

#[test]
fn a_disk_that_fails_leaves_the_other_alone() {
    let device = device([Plug::Disk, Plug::Disk]);
    let mut disks = disks_of(&device);
    let [mut slave, mut master] = [disks.pop().unwrap(), disks.pop().unwrap()];
    submit(&mut master, 1, Op::Read).unwrap();
    submit(&mut slave, 2, Op::Read).unwrap();
    master.kick();
    device.lock().unwrap().plugs[0] = Plug::Packet;
    device.lock().unwrap().master[1] = 2;
    assert_eq!(ended(&mut master), []);
    pass(&mut slave, 0, 1);
    assert_eq!((ended(&mut master), master.health()), (vec![(1, Err(IoError::Device))], Health::Failed));
    device.lock().unwrap().done();
    assert_eq!((ended(&mut slave), slave.health()), (vec![(2, Ok(()))], Health::Ready));
}

#[test]
fn a_controller_that_is_gone_completes_nothing() {
    for nothing in [0, 0x7f, 0xff] {
        let (mut disk, device) = disk();
        submit(&mut disk, 1, Op::Read).unwrap();
        submit(&mut disk, 2, Op::Flush).unwrap();
        disk.kick();
        device.lock().unwrap().gone = Some(nothing);
        assert!(ended(&mut disk).iter().all(|(_, outcome)| outcome.is_err()));
        pass(&mut disk, 0, 60);
        assert!(ended(&mut disk).iter().all(|(_, outcome)| outcome.is_err()));
        assert_eq!(disk.health(), Health::Failed, "{nothing:#x}");
    }
}

#[test]
fn what_no_entry_describes_is_copied() {
    let (mut disk, device) = disk();
    let mut buffer = vec![0_u8; 8194];
    let odd = buffer.as_mut_ptr() as u64 | 1;
    // Above 4 GiB, as the heap is; and odd, which only a block may be.
    for (start, bytes) in [(odd + 1, 8192), (odd, 512_u32)] {
        for op in [Op::Write, Op::Read] {
            let at = |base: u64, index: u32| base + u64::from(index);
            (0..bytes - 1).for_each(|index| poke(at(start, index), index as u8 ^ 0x5a));
            let runs = [HostRun { start: Hpa::new(start), bytes }];
            let transfer = |id| Transfer { id, op, sector: 0, sectors: bytes / 512, runs: &runs };
            disk.submit(&transfer(1)).unwrap();
            assert_eq!(disk.submit(&transfer(2)), Err(SubmitError::Full));
            disk.kick();
            let room = pointer(device.lock().unwrap().entries()[0].0.into());
            if op == Op::Read {
                (0..bytes).for_each(|index| poke(at(room, index), index as u8 ^ 0x33));
            }
            device.lock().unwrap().done();
            assert_eq!(ended(&mut disk), [(1, Ok(()))]);
            let (seen, key) = if op == Op::Write { (room, 0x5a) } else { (start, 0x33) };
            assert!((0..bytes - 1).all(|index| peek::<u8>(at(seen, index)) == index as u8 ^ key));
        }
    }
}

#[test]
fn a_discard_has_its_ranges() {
    let (mut disk, device) = disk();
    disk.submit(&Transfer { id: 1, op: Op::Discard, sector: 80, sectors: 800, runs: &[] }).unwrap();
    disk.kick();
    let device = device.lock().unwrap();
    assert_eq!((device.pending, device.block[0][0]), (Some(0x06), 1));
    let [(ranges, 512)] = device.entries()[..] else { panic!("one page of ranges") };
    assert_eq!(peek::<u64>(pointer(ranges.into())), 800 << 48 | 80);
}

#[test]
fn what_is_no_disk_is_not_driven() {
    for plugs in [[Plug::Nothing; 2], [Plug::Packet, Plug::Nothing], [Plug::Packet; 2]] {
        assert!(disks_of(&device(plugs)).is_empty());
    }
    let disks = disks_of(&device([Plug::Packet, Plug::Disk]));
    assert_eq!((disks.len(), disks[0].unit), (1, 1));
    assert!(disks[0].geometry.name.starts_with("here slave, "));
    let hung = device([Plug::Disk; 2]);
    hung.lock().unwrap().stuck = true;
    assert!(disks_of(&hung).is_empty());
    for nothing in [0, 0x7f, 0xff] {
        hung.lock().unwrap().gone = Some(nothing);
        assert!(disks_of(&hung).is_empty());
    }
}

#[test]
fn channels_are_where_the_class_says() {
    let bars = [0x1000, 0x1010, 0x1020, 0, 0x1040, 0].map(|port| (port != 0).then_some(Bar::Io { port, ports: 8 }));
    assert_eq!(place(0, 0x80, &bars), Some(Place { command: 0x1f0, control: 0x3f6, irq: Some(14) }));
    assert_eq!(place(1, 0x81, &bars), Some(Place { command: 0x170, control: 0x376, irq: Some(15) }));
    assert_eq!(place(0, 0x81, &bars), Some(Place { command: 0x1000, control: 0x1012, irq: None }));
    assert_eq!(place(1, 0x85, &bars), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_device_that_shows_anything_ends_each_transfer_once(
        seed in any::<u64>(),
        rate in 1_u64..400,
        steps in steps(),
    ) {
        let (mut disk, device) = disk();
        device.lock().unwrap().noise = Noise::new(rate, seed);
        let act = |act, value| {
            let mut device = device.lock().unwrap();
            match act {
                Act::Done => device.done(),
                Act::Fail => device.end(value, value),
                Act::Leave => device.gone = Some(0x80),
            }
        };
        each_ends_once(&mut disk, steps, act, 60)?;
    }

    #[test]
    fn starting_up_ends_whatever_is_shown(seed in any::<u64>(), rate in 1_u64..40) {
        let device = device([Plug::Disk, Plug::Packet]);
        device.lock().unwrap().noise = Noise::new(rate, seed);
        device.lock().unwrap().page = vec![0; 4096];
        disks_of(&device);
    }
}
