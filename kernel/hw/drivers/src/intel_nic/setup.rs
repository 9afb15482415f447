//! Starting a card: reset, address, PHY, queues, interrupts (8254x manual, chapter 14; 82574, section 4.6; 82576,
//! section 4.5).
//!
//! The main functions are [`reset`], [`start`] and [`link`]; all of them only read and write registers.

use super::model::Family;
use super::receive::{self, Receiver};
use super::registers::*;
use super::transmit::{self, Transmitter};
use super::{Fault, descriptor};
use switch::{Link, Mac};
use virtio_drivers::Hal;

/// How often a register is read that is about to change: a read takes about a microsecond.
const READS_MAX: u32 = 100_000;
/// For a card to come out of reset and read its EEPROM (8254x manual, section 14.3; 82576, section 4.2.1.6.1).
const RESET_US: u64 = 5_000;
/// The least time between interrupts: short beside a round trip of 200 us, long beside the work of an interrupt.
const THROTTLE_NS: u32 = 50_000;

/// Registers of the PHY (IEEE 802.3, clause 22.2.4.1).
const PHY_CONTROL: u32 = 0;
const PHY_CONTROL_RESTART: u32 = 1 << 9;
const PHY_CONTROL_POWER_DOWN: u32 = 1 << 11;
const PHY_CONTROL_NEGOTIATE: u32 = 1 << 12;

/// Resets a card: when this returns, it does no DMA and raises no interrupt.
pub(super) fn reset(bus: &mut impl Bus, family: Family) -> Result<(), Fault> {
    bus.write(IMC, ALL_ONES);
    bus.write(RCTL, 0);
    bus.write(TCTL, 0);
    if family.is_express() {
        // Requests under way must end first (82574, section 3.1.3.10). One that does not end is cut off.
        let control = bus.read(CTRL);
        bus.write(CTRL, control | CTRL_MASTER_DISABLE);
        wait(bus, STATUS, |status| status & STATUS_MASTER_ENABLED == 0);
    }
    let control = bus.read(CTRL);
    bus.write(CTRL, control | CTRL_RESET);
    // Nothing of the card may be read at first.
    bus.pause_us(RESET_US);
    if bus.read(STATUS) == ALL_ONES {
        return Err(Fault::Gone);
    }
    if !wait(bus, CTRL, |control| control & CTRL_RESET == 0) {
        return Err(Fault::Stuck);
    }
    bus.write(IMC, ALL_ONES);
    bus.read(ICR);
    Ok(())
}

/// The card's address, as it is in its filter: from its EEPROM, or from who used it before.
pub(super) fn filter_address(bus: &mut impl Bus) -> Option<Mac> {
    let (low, high) = (bus.read(RAL), bus.read(RAH));
    let [a, b, c, d] = low.to_le_bytes();
    let [e, f, ..] = high.to_le_bytes();
    station([a, b, c, d, e, f]).filter(|_| high & RAH_VALID != 0)
}

/// The card's address in its EEPROM (8254x manual, section 5.6.1).
pub(super) fn eeprom_address(bus: &mut impl Bus, family: Family) -> Option<Mac> {
    let mut mac = [0; 6];
    for (word, bytes) in (0..).zip(mac.as_chunks_mut::<2>().0) {
        *bytes = eeprom_word(bus, family, word)?.to_le_bytes();
    }
    station(mac)
}

fn eeprom_word(bus: &mut impl Bus, family: Family, word: u32) -> Option<u16> {
    // Section 13.4.4 of the 8254x manual, section 10.2.2.5 of the 82574 datasheet.
    let (address_shift, done) = if family == Family::E1000 { (8, 1 << 4) } else { (2, 1 << 1) };
    bus.write(EERD, word << address_shift | EERD_START);
    wait(bus, EERD, |value| value & done != 0).then(|| (bus.read(EERD) >> 16) as u16)
}

/// An address that a card can have: neither a group's nor nobody's.
fn station(mac: Mac) -> Option<Mac> {
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// Starts a card that was just reset, on empty rings, and raises no interrupt yet.
pub(super) fn start<H: Hal>(
    bus: &mut impl Bus,
    family: Family,
    mac: Mac,
    receiver: &Receiver<H>,
    transmitter: &Transmitter<H>,
) -> Result<(), Fault> {
    let control = bus.read(CTRL) & !(CTRL_MASTER_DISABLE | CTRL_FORCE_SPEED | CTRL_FORCE_DUPLEX);
    let auto_speed = if family == Family::E1000 { CTRL_AUTO_SPEED } else { 0 };
    bus.write(CTRL, control | CTRL_SET_LINK_UP | auto_speed);
    if family.is_express() {
        let control = bus.read(CTRL_EXT);
        bus.write(CTRL_EXT, control | CTRL_EXT_DRIVER_LOADED);
    }
    wake_phy(bus);
    let [a, b, c, d, e, f] = mac;
    bus.write(RAL, u32::from_le_bytes([a, b, c, d]));
    bus.write(RAH, u32::from_le_bytes([e, f, 0, 0]) | RAH_VALID);
    (0..MTA_WORDS).for_each(|word| bus.write(MTA + 4 * word, 0));
    start_receiver(bus, family, receiver)?;
    start_transmitter(bus, family, transmitter)
}

fn start_receiver<H: Hal>(bus: &mut impl Bus, family: Family, receiver: &Receiver<H>) -> Result<(), Fault> {
    let physical = receiver.physical();
    bus.write(RDBAL, physical as u32);
    bus.write(RDBAH, (physical >> 32) as u32);
    bus.write(RDLEN, ring_bytes(receive::RING_SIZE));
    bus.write(RDH, 0);
    bus.write(RDT, 0);
    bus.write(RXCSUM, RXCSUM_IP_TCP_UDP);
    // Guests have addresses of their own, so all frames are taken; none longer than 1522 bytes, since long packets
    // stay off, and so each fits into its buffer.
    let filter = RCTL_ALL_UNICAST | RCTL_ALL_MULTICAST | RCTL_BROADCAST;
    let control = RCTL_ENABLE | filter | RCTL_STRIP_CRC;
    if family == Family::Igb {
        bus.write(SRRCTL, SRRCTL_ADVANCED_2K);
        enable_queue(bus, RXDCTL)?;
    }
    bus.write(RCTL, control);
    receiver.announce(bus);
    Ok(())
}

fn start_transmitter<H: Hal>(bus: &mut impl Bus, family: Family, transmitter: &Transmitter<H>) -> Result<(), Fault> {
    let physical = transmitter.physical();
    bus.write(TDBAL, physical as u32);
    bus.write(TDBAH, (physical >> 32) as u32);
    bus.write(TDLEN, ring_bytes(transmit::RING_SIZE));
    bus.write(TDH, 0);
    bus.write(TDT, 0);
    match family {
        Family::E1000 => bus.write(TIPG, TIPG_COPPER),
        Family::E1000e => bus.write(TXDCTL, TXDCTL_82574),
        Family::Igb => enable_queue(bus, TXDCTL)?,
    }
    bus.write(TCTL, TCTL_ENABLE | TCTL_PAD_SHORT | TCTL_COLLISIONS);
    Ok(())
}

/// Enables a queue of an igb card; its tail may be written only afterwards (82576, section 4.5.9).
fn enable_queue(bus: &mut impl Bus, register: usize) -> Result<(), Fault> {
    bus.write(register, DCTL_THRESHOLDS | DCTL_ENABLE);
    if wait(bus, register, |value| value & DCTL_ENABLE != 0) { Ok(()) } else { Err(Fault::Stuck) }
}

fn ring_bytes(descriptors: u16) -> u32 {
    u32::from(descriptors) * descriptor::DESCRIPTOR_BYTES as u32
}

/// Lets the card raise its interrupt for frames and for its link, not too often.
pub(super) fn enable_interrupt(bus: &mut impl Bus, family: Family) {
    match family {
        Family::Igb => bus.write(EITR, (THROTTLE_NS / 1000) << 2),
        Family::E1000 | Family::E1000e => bus.write(ITR, THROTTLE_NS / 256),
    }
    bus.read(ICR);
    bus.write(IMS, CAUSES);
}

/// Has the card pull at its interrupt line, or let it go, before [`enable_interrupt`] (8254x manual, section 13.4.18).
pub(super) fn pull(bus: &mut impl Bus, pulls: bool) {
    if pulls {
        bus.write(IMS, CAUSE_TRANSMIT_LOW);
        bus.write(ICS, CAUSE_TRANSMIT_LOW);
        // It has arrived when a register can be read again, which takes no cause away.
        bus.read(STATUS);
    } else {
        bus.write(IMC, ALL_ONES);
        bus.read(ICR);
    }
}

/// Whether there is a carrier.
pub(super) fn link(bus: &mut impl Bus) -> Link {
    match bus.read(STATUS) {
        ALL_ONES => Link::Failed,
        status if status & STATUS_LINK_UP == 0 => Link::Down,
        status => Link::Up(Some([10, 100, 1000, 1000][(status >> STATUS_SPEED_SHIFT & 3) as usize])),
    }
}

/// Lets the PHY negotiate where there is no link: its last user may have left it powered down, or nobody has set it up
/// since its own reset. A link that is there is left alone.
fn wake_phy(bus: &mut impl Bus) {
    if bus.read(STATUS) & STATUS_LINK_UP != 0 {
        return;
    }
    if let Some(control) = phy(bus, MDIC_READ | PHY_CONTROL << 16) {
        let awake = control & !PHY_CONTROL_POWER_DOWN | PHY_CONTROL_NEGOTIATE | PHY_CONTROL_RESTART;
        phy(bus, MDIC_WRITE | PHY_CONTROL << 16 | awake);
    }
}

/// Reads or writes a register of the PHY; what was read (82574, section 10.2.2.7).
fn phy(bus: &mut impl Bus, command: u32) -> Option<u32> {
    bus.write(MDIC, MDIC_PHY_1 | command);
    if !wait(bus, MDIC, |value| value & MDIC_READY != 0) {
        return None;
    }
    let value = bus.read(MDIC);
    (value & MDIC_ERROR == 0).then_some(value & 0xffff)
}

/// Reads a register until it is as wanted; returns whether it came to be. A card that vanished is not waited for.
fn wait(bus: &mut impl Bus, register: usize, mut is_wanted: impl FnMut(u32) -> bool) -> bool {
    for _ in 0..READS_MAX {
        match bus.read(register) {
            ALL_ONES => return false,
            value if is_wanted(value) => return true,
            _ => {}
        }
    }
    false
}
