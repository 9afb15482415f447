//! The saved form of the board, but for the functions that have units of their own.

use super::{Board, LAST_DEVICE, Slot};
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use pci::ConfigPort;
use state::Invalid;

/// Chipset, host bridge, configuration port, and what goes between functions and chipset.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    chipset: chipset::saved::Board,
    #[n(1)]
    bridge: pci::saved::ConfigSpace,
    #[n(2)]
    config_address: u32,
    /// The level of each device number's interrupt pin.
    #[n(3)]
    pins: u32,
    /// Device numbers and queues with work.
    #[n(4)]
    kicked: Vec<(u8, u16)>,
    /// Which function is where; missing where each is where a board has it at first.
    #[n(5)]
    places: Option<Vec<Place>>,
}

/// A function and its device number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
struct Place {
    #[n(0)]
    device: u8,
    #[n(1)]
    kind: Kind,
    /// Which of the disks or cards, in their order.
    #[n(2)]
    index: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(index_only)]
enum Kind {
    #[n(0)]
    Console,
    #[n(1)]
    Rng,
    #[n(2)]
    Disk,
    #[n(3)]
    Card,
    #[n(4)]
    Balloon,
}

impl Board {
    pub fn save(&self) -> Saved {
        let places = self.places();
        let is_as_made = places.iter().map(Place::slot).eq(Self::slots_as_made(&self.disks, &self.cards))
            && places.iter().zip(1..).all(|(place, device)| place.device == device);
        Saved {
            chipset: self.chipset.save(),
            bridge: self.bridge.save(),
            config_address: self.config_port.read_address(),
            pins: self.pins,
            // Who waits for its share is let go on at once where it is restored.
            kicked: self
                .kicked
                .iter()
                .chain(self.meter.waiting())
                .map(|&(slot, queue)| (self.device_number(slot), queue))
                .collect(),
            places: (!is_as_made).then_some(places),
        }
    }

    /// Makes a fresh board go on where the saved one was.
    ///
    /// # Errors
    /// Where no board like this can have been there.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        if let Some(places) = &saved.places {
            self.arrange(places)?;
        }
        // Bit 0 is the host bridge's, which has no pin.
        let pins = (1..=LAST_DEVICE).filter(|&device| self.slot(device).is_some());
        let pins = pins.fold(0, |pins, device| pins | 1u32 << device);
        Invalid::unless(saved.pins & !pins == 0, "the interrupt pins")?;
        for &(device, queue) in &saved.kicked {
            let slot = self.slot(device).ok_or(Invalid("a kick for nobody"))?;
            self.kick_again(slot, queue);
        }
        self.chipset = self.chipset.clone().restore(&saved.chipset)?;
        self.bridge.restore(&saved.bridge)?;
        self.config_port = ConfigPort::restore(saved.config_address)?;
        self.pins = saved.pins;
        Ok(())
    }

    /// Where each function is; disks and cards in the order in which they came.
    fn places(&self) -> Vec<Place> {
        let place = |device: u8| {
            let (kind, index) = match self.slot(device)? {
                Slot::Console => (Kind::Console, 0),
                Slot::Rng => (Kind::Rng, 0),
                Slot::Balloon => (Kind::Balloon, 0),
                Slot::Disk(disk) => (Kind::Disk, self.disks.numbers().take_while(|&other| other != disk).count()),
                Slot::Card(card) => (Kind::Card, self.cards.numbers().take_while(|&other| other != card).count()),
            };
            Some(Place { device, kind, index: index as u8 })
        };
        (1..=LAST_DEVICE).filter_map(place).collect()
    }

    /// Puts the functions of a fresh board where they are to be.
    fn arrange(&mut self, places: &[Place]) -> Result<(), Invalid> {
        let mut left: Vec<Slot> = self.slots.drain(..).flatten().collect();
        for place in places {
            let found = left.iter().position(|slot| *slot == place.slot());
            let is_free = (1..=LAST_DEVICE).contains(&place.device) && self.slot(place.device).is_none();
            let found = found.filter(|_| is_free).ok_or(Invalid("where its devices are"))?;
            self.set_slot(place.device, Some(left.swap_remove(found)));
        }
        Invalid::unless(left.is_empty(), "where its devices are")
    }
}

impl Place {
    /// The function, on a board of which no part was taken out.
    fn slot(&self) -> Slot {
        match self.kind {
            Kind::Console => Slot::Console,
            Kind::Rng => Slot::Rng,
            Kind::Disk => Slot::Disk(self.index.into()),
            Kind::Card => Slot::Card(self.index.into()),
            Kind::Balloon => Slot::Balloon,
        }
    }
}
