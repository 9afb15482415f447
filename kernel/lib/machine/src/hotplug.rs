//! Disks and network cards that come and go while the guest runs: PCI hotplug, told to the guest by ACPI.
//!
//! Like all input these are methods of [`Machine`]; [`Part`] names what they are about. A part leaves in three steps: the
//! guest lets go of it, or it is pulled; what the host still does for it ends, failed where it was pulled; then its
//! function is gone, and reads as ones. The guest's side is in `chipset` (registers) and `firmware` (methods).
//!
//! A disk is better cut off before it is pulled: Linux gives nothing up that it asked of a disk that has vanished, and waits
//! for it for ever (6.1, `virtblk_remove`). One that is cut off answers everything, with an error, until the guest has let
//! go of it; the host is done with it at once.

use crate::board::{Board, LAST_DEVICE, Slot};
use crate::network::{Card, NicConfig};
use crate::storage::{Disk, DiskConfig};
use crate::{Host, Machine};
use chipset::Effect;
use firmware::layout;
use guestmem::GuestMemory;

/// A part of a machine that can come and go, by its number, which it keeps and no other gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// A disk.
    Disk(usize),
    /// A network card.
    Nic(usize),
}

/// The bus has no free place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusFull;

impl Machine {
    /// A disk is plugged in; gives its number, the one after the last one's.
    ///
    /// # Errors
    /// Where the bus is full.
    pub fn plug_disk(&self, config: DiskConfig, host: &mut dyn Host) -> Result<usize, BusFull> {
        let mut board = self.enter();
        let device = board.free_device().ok_or(BusFull)?;
        let disk = board.disks.add(Disk::new(config));
        board.plug(device, Slot::Disk(disk));
        self.leave(&mut board, host);
        Ok(disk)
    }

    /// A network card is plugged in; the same.
    ///
    /// # Errors
    /// Where the bus is full.
    pub fn plug_nic(&self, config: NicConfig, host: &mut dyn Host) -> Result<usize, BusFull> {
        let mut board = self.enter();
        let device = board.free_device().ok_or(BusFull)?;
        let card = board.cards.add(Card::new(config));
        board.plug(device, Slot::Card(card));
        self.leave(&mut board, host);
        Ok(card)
    }

    /// The guest is asked to let go of a part.
    pub fn ask_to_leave(&self, part: Part, host: &mut dyn Host) {
        self.about(part, host, |board, device| board.chipset.ask_device_to_leave(device, &mut board.effects));
    }

    /// It may stay after all, unless the guest let go of it already.
    pub fn let_stay(&self, part: Part, host: &mut dyn Host) {
        self.about(part, host, |board, device| board.chipset.let_device_stay(device));
    }

    /// A disk fails whatever its guest wants of it from now on, and the guest is asked to let go of it. What the host does for
    /// it is to be ended.
    pub fn cut_off(&self, disk: usize, host: &mut dyn Host) {
        self.about(Part::Disk(disk), host, |board, device| {
            board.fail_disk(&self.memory, disk);
            board.chipset.ask_device_to_leave(device, &mut board.effects);
        });
    }

    /// Whether the host works on nothing of a disk that was cut off, or has left.
    pub fn is_disk_idle(&self, disk: usize) -> bool {
        self.board.lock().disks.get(disk).is_none_or(Disk::is_at_rest)
    }

    /// A part is pulled out, whatever the guest does with it. What the host does for it is to be ended; it ends as failed.
    pub fn pull(&self, part: Part, host: &mut dyn Host) {
        self.about(part, host, |board, device| {
            board.pulled |= 1 << device;
            board.stop_device(&self.memory, device);
            board.remove_idle();
        });
    }

    /// The number of the card with this address.
    pub fn nic_number(&self, mac: [u8; 6]) -> Option<usize> {
        self.board.lock().cards.find(|card| card.plan().mac == mac)
    }

    /// Whether the guest let go of a part, or it was pulled: nothing new comes from it.
    pub fn is_leaving(&self, part: Part) -> bool {
        let board = self.board.lock();
        board.device_of(part.slot()).is_none() || board.is_leaving(part.slot())
    }

    /// Whether a part is gone, and the host works on nothing of it.
    pub fn has_left(&self, part: Part) -> bool {
        self.board.lock().device_of(part.slot()).is_none()
    }

    /// Sees to the devices that the guest let go of; what that has to say joins the board's effects.
    pub(crate) fn carry_out_ejects(&self, board: &mut Board) {
        for index in 0..board.effects.len() {
            if let Effect::Eject(devices) = board.effects[index] {
                board.eject(&self.memory, devices);
            }
        }
    }

    fn about(&self, part: Part, host: &mut dyn Host, act: impl FnOnce(&mut Board, u8)) {
        let mut board = self.enter();
        if let Some(device) = board.device_of(part.slot()) {
            act(&mut board, device);
        }
        self.leave(&mut board, host);
    }
}

impl Part {
    fn slot(self) -> Slot {
        match self {
            Self::Disk(disk) => Slot::Disk(disk),
            Self::Nic(card) => Slot::Card(card),
        }
    }
}

impl Board {
    /// The device numbers, a bit each, whose devices can come and go.
    pub fn hotplug_slots(&self) -> u32 {
        let fixed = |device: &u8| !matches!(self.slot(*device), None | Some(Slot::Disk(_) | Slot::Card(_)));
        let all = (1..=LAST_DEVICE).fold(0, |all, device| all | 1u32 << device);
        (1..=LAST_DEVICE).filter(fixed).fold(all, |left, device| left & !(1 << device))
    }

    /// Whether a function is to leave.
    pub(crate) fn is_leaving(&self, slot: Slot) -> bool {
        self.leaving != 0 && self.device_of(slot).is_some_and(|device| self.leaving >> device & 1 != 0)
    }

    /// The guest let go of devices.
    fn eject(&mut self, memory: &GuestMemory, devices: u32) {
        let ejected = (1..=LAST_DEVICE).filter(|device| devices >> device & 1 != 0);
        ejected.for_each(|device| self.stop_device(memory, device));
        self.remove_idle();
    }

    /// Takes away the functions that are to leave and of which the host does nothing any more.
    pub(crate) fn remove_idle(&mut self) {
        let leaving = self.leaving;
        for device in (1..=LAST_DEVICE).filter(|device| leaving >> device & 1 != 0) {
            match self.slot(device) {
                Some(Slot::Disk(disk)) if !self.disks[disk].is_at_rest() => {}
                Some(slot) => self.unplug(device, slot),
                None => {}
            }
        }
    }

    fn plug(&mut self, device: u8, slot: Slot) {
        self.set_slot(device, Some(slot));
        self.function(slot).set_interrupt_line(layout::pci_gsi(device, 0) as u8);
        self.chipset.announce_device(device, &mut self.effects);
    }

    /// Nothing new is taken from a device: what waits there has failed.
    fn stop_device(&mut self, memory: &GuestMemory, device: u8) {
        let Some(slot @ (Slot::Disk(_) | Slot::Card(_))) = self.slot(device) else { return };
        self.leaving |= 1 << device;
        self.drop_kicks(slot);
        if let Slot::Disk(disk) = slot {
            self.fail_disk(memory, disk);
        }
    }

    /// What waits at a disk has failed, and what comes will.
    fn fail_disk(&mut self, memory: &GuestMemory, disk: usize) {
        let slot = Slot::Disk(disk);
        self.drop_kicks(slot);
        if self.disks[disk].stop(memory) {
            self.kick_again(slot, Disk::QUEUE);
        }
        self.disks[disk].function.notify_if_needed(memory, &mut self.signals);
        self.settle(slot);
    }

    fn unplug(&mut self, device: u8, slot: Slot) {
        self.drop_kicks(slot);
        self.set_pin(slot, false);
        self.set_slot(device, None);
        let bit = 1 << device;
        if self.pulled & bit != 0 {
            self.chipset.tell_of_lost_device(device, &mut self.effects);
        }
        self.leaving &= !bit;
        self.pulled &= !bit;
        match slot {
            Slot::Disk(disk) => self.disks.remove(disk),
            Slot::Card(card) => self.cards.remove(card),
            Slot::Console | Slot::Rng | Slot::Balloon => {}
        }
    }
}
