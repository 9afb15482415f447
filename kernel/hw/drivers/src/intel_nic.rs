//! Intel's Gigabit cards: the e1000, e1000e and igb families.
//!
//! The main type is [`IntelNic`], a [`switch::Nic`] over any [`Bus`]. [`model`] says which card is which, [`setup`] starts
//! one, [`receive`] and [`transmit`] hold its two rings, [`descriptor`] and [`offload`] say what is written into them. The
//! sources are Intel's 8254x manual (revision 4.0), 82574 datasheet (revision 3.4) and 82576 datasheet (revision 2.87).

mod descriptor;
mod model;
mod offload;
#[cfg(any(test, feature = "heap"))]
pub mod played;
mod receive;
mod registers;
mod setup;
mod transmit;

use crate::pci::Function;
use crate::pci::interrupt::enable_msi;
use crate::probe::Interrupts;
use alloc::vec::Vec;
use core::fmt;
pub use model::{Family, Model};
use receive::Receiver;
pub use registers::Bus;
use registers::{ALL_ONES, CAUSE_LINK, CAUSES, CRCERRS, GPRC, GPTC, ICR, MPC, PciBus, RLEC, RXERRC};
use switch::{CardCounters, Full, Link, Mac, Nic, Offload, Offloads};
use transmit::Transmitter;
use virtio_drivers::Hal;

/// How often a card is looked after, about once a second, while it does not send what it has, before it is reset.
const STALLS_MAX: u32 = 5;

/// Why a card could not be started.
#[derive(Debug)]
pub enum Fault {
    /// Its registers are not where they belong.
    Registers,
    /// There is no memory for its rings.
    Memory,
    /// It does not reset, or its queues do not start.
    Stuck,
    /// It does not answer.
    Gone,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Registers => "its registers have no address",
            Self::Memory => "there is no memory for its rings",
            Self::Stuck => "it does not reset or start",
            Self::Gone => "it does not answer",
        })
    }
}

/// An Intel network card, ready.
pub struct IntelNic<H: Hal, B: Bus> {
    bus: B,
    model: Model,
    mac: Mac,
    receiver: Receiver<H>,
    transmitter: Transmitter<H>,
    has_interrupt: bool,
    /// As last seen.
    link: Link,
    counters: CardCounters,
    stall: Stall,
}

/// Whether frames leave.
#[derive(Default)]
struct Stall {
    /// How many frames had left when the card was last looked after, if more waited.
    progress: Option<u64>,
    /// How often in a row none had left.
    count: u32,
}

/// Starts the driver of a function. `interrupts` is asked for its interrupt: a message, or where the card has none its
/// line.
pub(crate) fn start<H: Hal>(
    model: Model,
    function: Function,
    interrupts: &mut dyn Interrupts,
) -> Result<IntelNic<H, PciBus>, Fault> {
    let address = function.address();
    let spare = [0x02, 0, 0, address.bus(), address.device(), address.function()];
    let bus = PciBus::open::<H>(function).ok_or(Fault::Registers)?;
    IntelNic::start(model, bus, spare, |bus: &mut PciBus| {
        if model.family.is_express() {
            return interrupts.message().is_some_and(|message| enable_msi(bus.function(), message));
        }
        bus.function().let_pull(true);
        let has_line = interrupts.line(&mut |pulls| setup::pull(bus, pulls));
        bus.function().let_pull(has_line);
        has_line
    })
}

impl<H: Hal, B: Bus> IntelNic<H, B> {
    /// Starts a card, its receive ring full of buffers. `spare` is its address if it has none; `connect` brings its
    /// interrupt to the processor and returns whether it can.
    pub fn start(model: Model, mut bus: B, spare: Mac, connect: impl FnOnce(&mut B) -> bool) -> Result<Self, Fault> {
        let receiver = Receiver::new(model.family.receive_format()).ok_or(Fault::Memory)?;
        let transmitter = Transmitter::new(model.family.transmit_format()).ok_or(Fault::Memory)?;
        let kept = setup::filter_address(&mut bus);
        if let Err(fault) = setup::reset(&mut bus, model.family) {
            bus.stop_dma();
            return Err(fault);
        }
        let mac = kept.or_else(|| setup::eeprom_address(&mut bus, model.family)).unwrap_or(spare);
        let mut nic = Self {
            bus,
            model,
            mac,
            receiver,
            transmitter,
            has_interrupt: false,
            link: Link::Down,
            counters: CardCounters::default(),
            stall: Stall::default(),
        };
        setup::start(&mut nic.bus, model.family, mac, &nic.receiver, &nic.transmitter)?;
        nic.has_interrupt = connect(&mut nic.bus);
        if nic.has_interrupt {
            setup::enable_interrupt(&mut nic.bus, model.family);
        }
        nic.link = setup::link(&mut nic.bus);
        Ok(nic)
    }

    /// Gives a card up for good.
    fn fail(&mut self, why: &str) {
        if self.link != Link::Failed {
            log::error!("{} at {}: {why}; it was given up", self.model.name, self.bus);
        }
        self.bus.stop_dma();
        self.link = Link::Failed;
    }

    /// Resets a card that stands still, and starts it again.
    fn restart(&mut self) {
        log::warn!("{} at {}: it does not send; it is reset", self.model.name, self.bus);
        let family = self.model.family;
        let Self { bus, receiver, transmitter, .. } = self;
        let restarted = setup::reset(bus, family).and_then(|()| {
            receiver.reset();
            transmitter.reset();
            setup::start(bus, family, self.mac, receiver, transmitter)
        });
        if let Err(fault) = restarted {
            return self.fail(match fault {
                Fault::Gone => "it vanished",
                Fault::Registers | Fault::Memory | Fault::Stuck => "it does not reset",
            });
        }
        if self.has_interrupt {
            setup::enable_interrupt(&mut self.bus, family);
        }
    }

    /// Looks at the link.
    fn look(&mut self) {
        let link = setup::link(&mut self.bus);
        if link == Link::Failed {
            return self.fail("it vanished");
        }
        self.link = link;
    }

    /// Whether the card has frames and has sent none for long, although it could.
    fn is_stalled(&mut self) -> bool {
        let before = self.stall.progress;
        self.stall.progress = self.transmitter.progress();
        let stands = self.stall.progress.is_some() && self.stall.progress == before;
        self.stall.count = if stands && matches!(self.link, Link::Up(_)) { self.stall.count + 1 } else { 0 };
        if self.stall.count < STALLS_MAX {
            return false;
        }
        self.stall = Stall::default();
        true
    }

    /// Adds up the card's counters, which start again at 0 when read.
    fn count(&mut self) {
        let [received, transmitted, missed, crc_errors, symbols, lengths] =
            [GPRC, GPTC, MPC, CRCERRS, RXERRC, RLEC].map(|register| u64::from(self.bus.read(register)));
        if received == u64::from(ALL_ONES) {
            // It has vanished, or stood at its highest.
            return;
        }
        let counters = &mut self.counters;
        counters.received += received;
        counters.transmitted += transmitted;
        counters.missed += missed;
        counters.crc_errors += crc_errors;
        counters.other_errors += symbols + lengths;
    }
}

impl<H: Hal, B: Bus> Drop for IntelNic<H, B> {
    fn drop(&mut self) {
        // The rings are freed next.
        self.bus.stop_dma();
    }
}

impl<H: Hal, B: Bus> Nic for IntelNic<H, B> {
    fn mac(&self) -> Mac {
        self.mac
    }

    fn offloads(&self) -> Offloads {
        Offloads { transmit_checksum: true, transmit_tso4: true, transmit_tso6: true, transmit_ecn: false }
    }

    fn name(&self) -> &str {
        self.model.name
    }

    fn link(&mut self) -> Link {
        if self.link != Link::Failed {
            self.look();
        }
        self.link
    }

    fn tick(&mut self) {
        if self.link() == Link::Failed {
            return;
        }
        if !self.bus.is_present() {
            return self.fail("it vanished");
        }
        self.count();
        if self.is_stalled() {
            self.restart();
        }
    }

    fn counters(&mut self) -> Option<CardCounters> {
        if self.link != Link::Failed {
            self.count();
        }
        Some(self.counters)
    }

    fn room(&mut self) -> usize {
        // What is not up takes everything, as a cut wire does.
        if matches!(self.link, Link::Up(_)) { self.transmitter.room() } else { usize::MAX }
    }

    fn room_max(&self) -> usize {
        transmit::ROOM_MAX
    }

    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), Full> {
        // A card without a carrier keeps what it gets, and would send it when nobody waits for it any more.
        if !matches!(self.link, Link::Up(_)) || (offload.ecn && offload.gso != switch::Gso::None) {
            return Ok(());
        }
        self.transmitter.transmit(&mut self.bus, offload, frame)
    }

    fn kick(&mut self) {
        if self.link != Link::Failed {
            self.transmitter.kick(&mut self.bus);
        }
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        if self.link == Link::Failed {
            return None;
        }
        self.receiver.receive(&mut self.bus, into)
    }

    fn has_received(&mut self) -> bool {
        self.link != Link::Failed && self.receiver.has_received()
    }

    fn acknowledge_interrupt(&mut self) -> bool {
        if !self.has_interrupt || self.link == Link::Failed {
            return false;
        }
        let causes = self.bus.read(ICR);
        if causes == ALL_ONES {
            self.fail("it vanished");
            return false;
        }
        if causes & CAUSE_LINK != 0 {
            self.look();
        }
        causes & CAUSES != 0
    }

    fn has_interrupt(&self) -> bool {
        self.has_interrupt
    }
}

#[cfg(test)]
mod tests;
