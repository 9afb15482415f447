//! The saved form of a function's registers and queues.

use super::{STATUS_DRIVER_OK, STATUS_FEATURES_OK, Transport};
use crate::queue::{self, Queue};
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use state::Invalid;

/// What every virtio function has.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    config: pci::saved::ConfigSpace,
    #[n(1)]
    msix: pci::saved::MsiX,
    #[n(2)]
    status: u8,
    #[n(3)]
    features: u64,
    #[n(4)]
    device_feature_select: u32,
    #[n(5)]
    driver_feature_select: u32,
    #[n(6)]
    queue_select: u16,
    #[n(7)]
    config_vector: u16,
    #[n(8)]
    generation: u8,
    #[n(9)]
    queues: Vec<queue::Saved>,
    #[n(10)]
    isr: u8,
    #[n(11)]
    line: bool,
    #[n(12)]
    config_changed: bool,
    #[n(13)]
    unfinished: u32,
}

impl Transport {
    /// What restores it. A reset that is held is its owner's to wait for.
    pub fn save(&self) -> Saved {
        Saved {
            config: self.config.save(),
            msix: self.msix.save(),
            status: self.status,
            features: self.features,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queue_select: self.queue_select,
            config_vector: self.config_vector,
            generation: self.generation,
            queues: self.queues.iter().map(Queue::save).collect(),
            isr: self.isr,
            line: self.line,
            config_changed: self.config_changed,
            unfinished: self.unfinished,
        }
    }

    /// Takes over the registers of a saved function of the same device.
    ///
    /// # Errors
    /// Where no such function can have been there.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        self.config.restore(&saved.config)?;
        self.msix.restore(&saved.msix, self.config.msix_control())?;
        let ready = saved.status & STATUS_DRIVER_OK == 0 || saved.status & STATUS_FEATURES_OK != 0;
        let vector = self.vector(saved.config_vector) == saved.config_vector;
        let bits = saved.isr <= 3 && saved.unfinished >> self.queues.len() == 0;
        Invalid::unless(ready && vector && bits, "its registers")?;
        Invalid::unless(saved.queues.len() == self.queues.len(), "it has other queues")?;
        let vectors = self.msix.vectors();
        for (queue, saved_queue) in self.queues.iter_mut().zip(&saved.queues) {
            queue.restore(saved_queue, saved.features, vectors)?;
        }
        self.status = saved.status;
        self.features = saved.features;
        self.device_feature_select = saved.device_feature_select;
        self.driver_feature_select = saved.driver_feature_select;
        self.queue_select = saved.queue_select;
        self.config_vector = saved.config_vector;
        self.generation = saved.generation;
        self.isr = saved.isr;
        self.line = saved.line;
        self.config_changed = saved.config_changed;
        self.unfinished = saved.unfinished;
        Ok(())
    }
}
