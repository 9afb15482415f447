//! A restored function answers as the saved one does, whatever its driver did before; and what anybody made up is
//! refused or harmless.

use crate::net::{NetConfig, NetHeader};
use crate::testing::{BUFFERS, Driver, END};
use crate::{Function, Net, Signal};
use addr::Gpa;
use proptest::prelude::*;

/// Where the rest of the device's registers are, behind its common ones, in BAR 1.
const REGISTERS: u32 = 0x4000;
/// Of the network device: CTRL_VQ, CTRL_RX, GUEST_ANNOUNCE, STATUS.
const FEATURES: u64 = 1 << 16 | 1 << 17 | 1 << 18 | 1 << 21;

#[derive(Clone, Debug)]
enum Act {
    Read(u32, u8),
    Write(u32, u8, u64),
    Config(u16, u32),
    Frame(u8),
    Buffer,
    Announce,
}

fn card() -> Net {
    Net::new(NetConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, offloads: true })
}

fn driver() -> Driver<Net> {
    Driver::with_features(card(), FEATURES)
}

fn an_offset() -> impl Strategy<Value = u32> {
    // The common structure, the interrupt status, and the first entries of the message table.
    prop_oneof![4 => 0u32..64, 1 => Just(0x1000u32), 1 => 0x2000u32..0x2010, 2 => 0x3000u32..0x3050, 1 => 0..REGISTERS]
}

fn an_act() -> impl Strategy<Value = Act> {
    let size = || prop::sample::select(vec![1u8, 2, 4, 8]);
    let value = || prop_oneof![0u64..16, any::<u64>()];
    prop_oneof![
        3 => (an_offset(), size()).prop_map(|(offset, size)| Act::Read(offset, size)),
        1 => (an_offset(), size(), value()).prop_map(|(offset, size, value)| Act::Write(offset, size, value)),
        1 => (prop::sample::select(vec![4u16, 0x10, 0x14, 0x3c, 0x40]), any::<u32>())
            .prop_map(|(offset, value)| Act::Config(offset, value)),
        4 => any::<u8>().prop_map(Act::Frame),
        4 => Just(Act::Buffer),
        1 => Just(Act::Announce),
    ]
}

/// Does it; gives what was read, and what the function signalled.
fn act(driver: &mut Driver<Net>, act: &Act) -> (u64, Vec<Signal>) {
    let mut read = 0;
    match *act {
        Act::Read(offset, size) => read = driver.function.mmio_read(offset, size, &mut driver.signals),
        Act::Write(offset, size, value) => driver.function.mmio_write(offset, size, value, &mut driver.signals),
        Act::Config(offset, value) => driver.function.config_write(offset, 4, value, &mut driver.signals),
        Act::Frame(bytes) => {
            let frame = [[2, 0, 0, 0, 0, 1].as_slice(), &[bytes; 60]].concat();
            read = u64::from(driver.function.receive(&driver.memory, &NetHeader::default(), &frame).is_ok());
            driver.function.notify_receive(&driver.memory, &mut driver.signals);
        }
        Act::Buffer => drop(driver.rings[0].add(&driver.memory, &[(BUFFERS, 2048, true)])),
        Act::Announce => driver.function.announce(&mut driver.signals),
    }
    (read, driver.take_signals())
}

/// A function with the same memory that goes on where this one is.
fn restored(driver: &Driver<Net>, function: &[u8], device: &[u8]) -> Option<Driver<Net>> {
    let mut copy = Driver::new(card());
    let mut memory = vec![0; END as usize];
    driver.memory.read(Gpa::new(0), &mut memory).unwrap();
    copy.memory.write(Gpa::new(0), &memory).unwrap();
    copy.rings = driver.rings.clone();
    copy.function = Function::new(card());
    copy.function.restore(&minicbor::decode(function).ok()?).ok()?;
    copy.function.device.restore(&minicbor::decode(device).ok()?).ok()?;
    copy.take_signals();
    Some(copy)
}

fn saved(driver: &Driver<Net>) -> (Vec<u8>, Vec<u8>) {
    let function = minicbor::to_vec(driver.function.save()).unwrap();
    (function, minicbor::to_vec(driver.function.device.save()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_restored_card_goes_on(
        before in prop::collection::vec(an_act(), 0..60),
        after in prop::collection::vec(an_act(), 1..60),
    ) {
        let mut original = driver();
        before.iter().for_each(|step| drop(act(&mut original, step)));
        let (function, device) = saved(&original);
        let mut copy = restored(&original, &function, &device).unwrap();
        prop_assert_eq!(saved(&copy), (function, device));
        for step in &after {
            prop_assert_eq!(act(&mut copy, step), act(&mut original, step), "{:?}", step);
        }
    }

    #[test]
    fn hostile_saved_cards(
        changes in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
        after in prop::collection::vec(an_act(), 1..60),
    ) {
        let mut original = driver();
        act(&mut original, &Act::Buffer);
        let (mut function, mut device) = saved(&original);
        for (of_device, place, byte) in changes {
            *place.get_mut(if of_device { &mut device } else { &mut function }) = byte;
        }
        if let Some(mut copy) = restored(&original, &function, &device) {
            after.iter().for_each(|step| drop(act(&mut copy, step)));
        }
    }
}
