//! What is on an IDE channel: both devices are reset, and those that say that they are disks are asked what they are.
//!
//! The main function is [`find`]. Every wait has an end, so that a device that is stuck, or none, costs a moment.

use super::Controller;
use super::channel::{Channel, UNITS, Unit};
use super::interface::{Interface, Progress, Signature};
use super::ports::Ports;
use super::slots::{RUNS_MAX, SLOTS, Slots, TRANSFER_BYTES_MAX};
use crate::ata::PAGE_BYTES;
use crate::ata::command::{Command, manner};
use crate::ata::identify::Identity;
use alloc::sync::Arc;
use block::Geometry;
use virtio_drivers::Hal;

/// How long a reset is held, and when after it a device's status means something (ATA/ATAPI-7 volume 2, section 9.2).
const HOLD_NS: u64 = 20_000;
const SETTLE_NS: u64 = 3_000_000;
/// How long the devices of a channel may take to get ready. Firmware has had them spin up.
const READY_NS: u64 = 3_000_000_000;
/// How long a device may take to say what it is.
const ANSWER_NS: u64 = 3_000_000_000;

/// A channel with its disks' geometries, by unit.
pub(super) type Found<H, P> = (Channel<H, P>, [Option<Geometry>; UNITS]);

/// Resets the channel called `place`, and gives it with its disks; `None` where there are none.
pub(super) fn find<H: Hal, P: Ports>(
    controller: &Arc<Controller>,
    mut interface: Interface<P>,
    place: &str,
    now_ns: &dyn Fn() -> u64,
) -> Option<Found<H, P>> {
    if !interface.stop() {
        controller.cut_off("its bus master does not stop");
        return None;
    }
    let is_empty = (0..UNITS).all(|unit| {
        interface.select(unit);
        interface.is_floating()
    });
    if is_empty {
        return None;
    }
    interface.hold_reset();
    pass(now_ns, HOLD_NS);
    interface.release_reset();
    pass(now_ns, SETTLE_NS);
    let start_ns = now_ns();
    let (mut units, mut geometries) = ([None, None], [None, None]);
    for unit in 0..UNITS {
        let name = alloc::format!("{place} {}", if unit == 0 { "master" } else { "slave" });
        interface.select(unit);
        let mut late = || now_ns().saturating_sub(start_ns) > READY_NS;
        let Some(identity) = ask(&mut interface, unit, &name, &mut late, now_ns) else { continue };
        let Some(slots) = Slots::<H>::new() else {
            log::error!("{name}: reaches only the lower 4 GiB, where there is no memory");
            continue;
        };
        let geometry = identity.geometry(&name, RUNS_MAX, TRANSFER_BYTES_MAX, SLOTS.into());
        let max_transfer_bytes = geometry.max_transfer_bytes.min(TRANSFER_BYTES_MAX);
        let geometry = Geometry { max_transfer_bytes, ..geometry };
        units[unit] = Some(Unit::new(geometry.name.clone(), manner(&identity, false), slots));
        geometries[unit] = Some(geometry);
    }
    let has_disks = units.iter().any(Option::is_some);
    has_disks.then(|| (Channel::new(controller.clone(), interface, units), geometries))
}

/// Finds out what the selected device is. `is_late` says when it should long be ready.
fn ask<P: Ports>(
    interface: &mut Interface<P>,
    unit: usize,
    name: &str,
    is_late: &mut dyn FnMut() -> bool,
    now_ns: &dyn Fn() -> u64,
) -> Option<Identity> {
    while !interface.is_ready() {
        if interface.is_floating() {
            return None;
        }
        if is_late() {
            log::warn!("{name}: there is a device that does not get ready");
            return None;
        }
        core::hint::spin_loop();
    }
    if interface.is_floating() || interface.signature() == Signature::Unknown {
        return None;
    }
    // What is written for a command goes into both devices' registers, so that the second one's signature may be lost by
    // now. A drive that is no disk shows it again when it refuses.
    match identify(interface, unit, now_ns)? {
        Ok(page) => match Identity::parse(&page) {
            Ok(identity) => return Some(identity),
            Err(unfit) => log::error!("{name}: {unfit}"),
        },
        Err(_) if interface.signature() == Signature::Packet => {
            log::info!("{name}: an optical drive (ATAPI), which is not driven");
        }
        Err(why) => log::error!("{name}: {why}"),
    }
    None
}

/// What the selected device says of itself, or why it does not; `None` where there is none.
fn identify<P: Ports>(
    interface: &mut Interface<P>,
    unit: usize,
    now_ns: &dyn Fn() -> u64,
) -> Option<Result<[u8; PAGE_BYTES], &'static str>> {
    interface.issue(unit, &Command::identify(), false);
    let start_ns = now_ns();
    loop {
        match interface.page_progress() {
            Progress::Done => return Some(Ok(interface.take_page())),
            Progress::Gone => return None,
            Progress::Failed(_) => return Some(Err("refuses to say what it is")),
            Progress::UnderWay | Progress::Broken(_) => {}
        }
        if now_ns().saturating_sub(start_ns) > ANSWER_NS {
            return Some(Err("does not say what it is"));
        }
        core::hint::spin_loop();
    }
}

fn pass(now_ns: &dyn Fn() -> u64, wait_ns: u64) {
    let start_ns = now_ns();
    while now_ns().saturating_sub(start_ns) < wait_ns {
        core::hint::spin_loop();
    }
}
