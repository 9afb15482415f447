//! What a host network driver looks like from above.
//!
//! The main type is [`Nic`]; `hw/drivers` implements it and the kernel joins it to a [`crate::Switch`] port.

use crate::{Mac, Offload};
use alloc::vec::Vec;

/// Which unfinished frames a port takes. What it does not take is finished in software before it is sent:
/// [`crate::Segments`], [`crate::complete_checksum`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// Frames whose TCP or UDP checksum is still to be completed.
    pub transmit_checksum: bool,
    /// TCP over IPv4 to be segmented.
    pub transmit_tso4: bool,
    /// TCP over IPv6 to be segmented.
    pub transmit_tso6: bool,
    /// Segmentation of frames with [`Offload::ecn`].
    pub transmit_ecn: bool,
}

/// The transmit queue has no room: try again when frames have left, or drop the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Whether a card has a carrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Frames pass, at so many Mbit/s where the card says.
    Up(Option<u32>),
    /// No carrier: frames are dropped.
    Down,
    /// The card broke the rules or vanished, and was given up. Frames are dropped for good.
    Failed,
}

/// What a card itself counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CardCounters {
    /// Good frames that passed its filter.
    pub received: u64,
    /// Good frames that left.
    pub transmitted: u64,
    /// Frames for which it had no room.
    pub missed: u64,
    /// Frames with a wrong check sequence.
    pub crc_errors: u64,
    /// Frames damaged in another way: symbol and length errors.
    pub other_errors: u64,
}

/// A host network interface, as its driver shows it. No method blocks.
pub trait Nic: Send {
    /// Its address.
    fn mac(&self) -> Mac;

    /// What [`Nic::transmit`] takes unfinished.
    fn offloads(&self) -> Offloads;

    /// What kind of card it is.
    fn name(&self) -> &str;

    /// Whether there is a carrier now.
    fn link(&mut self) -> Link;

    /// Looks after the card; called about once a second. A card that vanished or stands still is noticed here, and
    /// reported.
    fn tick(&mut self) {}

    /// What the card counted since it was started, where it counts.
    fn counters(&mut self) -> Option<CardCounters> {
        None
    }

    /// How many frames of the usual size the transmit queue takes now, at least.
    fn room(&mut self) -> usize;

    /// How many it takes when it is empty.
    fn room_max(&self) -> usize;

    /// Copies a frame (destination address first, no frame check sequence) into the transmit queue. The device may not
    /// look at it before [`Nic::kick`]. A frame that the device cannot send (too long, an offload that it lacks, or a
    /// device that has failed for good) is dropped, as on a wire.
    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), Full>;

    /// Tells the device of every frame transmitted since the last call.
    fn kick(&mut self);

    /// Puts the next received frame into `into`, replacing what is there, with what its sender left undone. `None` also
    /// arms the receive interrupt, so a caller that has seen `None` may wait for it.
    fn receive(&mut self, into: &mut Vec<u8>) -> Option<Offload>;

    /// Whether a received frame waits for [`Nic::receive`], announced or not.
    fn has_received(&mut self) -> bool;

    /// Takes the cause of the card's interrupt away where the card wants that, as one must that pulls at a line; says
    /// whether there was one. Nothing with MSI-X.
    fn acknowledge_interrupt(&mut self) -> bool;

    /// Whether received frames raise an interrupt. Otherwise the caller polls [`Nic::receive`].
    fn has_interrupt(&self) -> bool;
}
