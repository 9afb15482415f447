//! A disk on an IDE channel, as the host sees it.
//!
//! The main type is [`IdeDisk`], a [`Disk`] over the [`Channel`] that it shares with the other disk there.

use super::channel::Channel;
use super::ports::Ports;
use super::recovery::Phase;
use alloc::sync::Arc;
use block::{Disk, Geometry, Health, Outcome, SubmitError, Transfer};
use spin::Mutex;
use virtio_drivers::Hal;

/// A disk, ready.
pub(super) struct IdeDisk<H: Hal, P> {
    pub(super) channel: Arc<Mutex<Channel<H, P>>>,
    pub(super) unit: usize,
    pub(super) geometry: Geometry,
    pub(super) has_interrupt: bool,
}

impl<H: Hal, P: Ports> Disk for IdeDisk<H, P> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, transfer: &Transfer<'_>) -> Result<(), SubmitError> {
        self.channel.lock().submit(self.unit, transfer, &self.geometry)
    }

    fn kick(&mut self) {
        self.channel.lock().issue();
    }

    fn completed(&mut self) -> Option<(u64, Outcome)> {
        self.channel.lock().completed(self.unit)
    }

    fn acknowledge_interrupt(&mut self) {}

    fn has_interrupt(&self) -> bool {
        self.has_interrupt
    }

    fn health(&self) -> Health {
        let mut channel = self.channel.lock();
        if channel.unit(self.unit).has_failed {
            return Health::Failed;
        }
        match channel.phase {
            Phase::Running => Health::Ready,
            Phase::Failed => Health::Failed,
            Phase::Resetting { .. } | Phase::Settling { .. } => Health::Recovering,
        }
    }

    fn tick(&mut self, now_ns: u64) -> Option<u64> {
        self.channel.lock().tick(now_ns)
    }
}
