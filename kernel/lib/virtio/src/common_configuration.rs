//! The common configuration structure (4.1.4.3): how a driver negotiates features and sets up queues.
//!
//! Two methods of `Transport`, [`Transport::common_read`] and [`Transport::common_write`]; what concerns the device
//! itself comes back as a [`StatusChange`] for `function` to act on. Each field is accessed at its own width, the
//! 64-bit ones also by halves (4.1.3.1); other writes are dropped.

use crate::F_VERSION_1;
use crate::queue::{NO_VECTOR, Queue};
use crate::transport::{STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET, Transport};

/// Bytes of the structure.
pub(crate) const COMMON_BYTES: u32 = 60;

/// What a write to the device status asks of the device (2.1, 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StatusChange {
    /// Reset it.
    Reset,
    /// Settle on the driver's features, if they make sense; then set FEATURES_OK.
    Negotiate,
    /// The driver is ready: look at the queues.
    Start,
}

impl Transport {
    /// Reads `size` (at most 8) bytes.
    pub fn common_read(&self, offset: u32, size: u8) -> u64 {
        let image = self.common_image();
        let mut bytes = [0; 8];
        crate::copy_from_image(&image, offset, &mut bytes[..usize::from(size.min(8))]);
        u64::from_le_bytes(bytes)
    }

    /// Writes a field. While a reset is held, nothing is accepted.
    pub fn common_write(&mut self, offset: u32, size: u8, value: u64) -> Option<StatusChange> {
        if self.reset_held {
            return None;
        }
        match (offset, size) {
            (0, 4) => self.device_feature_select = value as u32,
            (8, 4) => self.driver_feature_select = value as u32,
            (12, 4) => self.write_features(value as u32),
            (16, 2) => self.config_vector = self.vector(value as u16),
            (20, 1) => return self.write_status(value as u8),
            (22, 2) => self.queue_select = value as u16,
            (24..56, _) => self.write_queue(offset, size, value),
            _ => {}
        }
        None
    }

    fn common_image(&self) -> [u8; COMMON_BYTES as usize] {
        let mut image = [0; COMMON_BYTES as usize];
        let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.device_feature_select.to_le_bytes());
        put(4, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(8, &self.driver_feature_select.to_le_bytes());
        put(12, &half(self.features, self.driver_feature_select).to_le_bytes());
        put(16, &self.config_vector.to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        // The driver waits for zero after a reset (4.1.4.3.2).
        let status = if self.reset_held { STATUS_NEEDS_RESET } else { self.status };
        put(20, &[status, self.generation]);
        put(22, &self.queue_select.to_le_bytes());
        // Of a queue that does not exist, everything reads as zero. So does the notify offset of each one that does.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(24, &queue.size.to_le_bytes());
            put(26, &queue.vector.to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(32, &queue.descriptors.to_le_bytes());
            put(40, &queue.available.to_le_bytes());
            put(48, &queue.used.to_le_bytes());
        }
        image
    }

    /// A vector the table has, or none (4.1.5.1.2).
    pub fn vector(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    fn write_features(&mut self, value: u32) {
        // Settled features stay (2.2.1, 3.1.1).
        if self.status & STATUS_FEATURES_OK != 0 {
            return;
        }
        match self.driver_feature_select {
            0 => self.features = self.features >> 32 << 32 | u64::from(value),
            1 => self.features = self.features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// Bits are only ever added, until zero resets (2.1.1).
    fn write_status(&mut self, value: u8) -> Option<StatusChange> {
        if value == 0 {
            return Some(StatusChange::Reset);
        }
        let added = value & !self.status & !STATUS_NEEDS_RESET;
        self.status |= added & !(STATUS_FEATURES_OK | STATUS_DRIVER_OK);
        if added & STATUS_FEATURES_OK != 0 {
            return Some(StatusChange::Negotiate);
        }
        if added & STATUS_DRIVER_OK != 0 && self.status & STATUS_FEATURES_OK != 0 {
            self.status |= STATUS_DRIVER_OK;
            return Some(StatusChange::Start);
        }
        None
    }

    /// Whether the driver's features are offered ones and include the modern interface.
    pub fn features_valid(&self) -> bool {
        self.features & !self.offered == 0 && self.features & F_VERSION_1 != 0
    }

    fn write_queue(&mut self, offset: u32, size: u8, value: u64) {
        let vector = self.vector(value as u16);
        let (features, settled) = (self.features, self.status & STATUS_FEATURES_OK != 0);
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        match (offset, size) {
            (26, 2) => queue.vector = vector,
            // A running queue keeps its place and size, and cannot be stopped but by a reset (4.1.4.3.2).
            _ if queue.enabled => {}
            (24, 2) => queue.set_size(value as u16),
            (28, 2) if value == 1 && settled => queue.enable(features),
            (32..56, _) => write_address(queue, offset - 32, size, value),
            _ => {}
        }
    }
}

/// Writes one of the three addresses, or half of one.
fn write_address(queue: &mut Queue, offset: u32, size: u8, value: u64) {
    let address = match offset / 8 {
        0 => &mut queue.descriptors,
        1 => &mut queue.available,
        _ => &mut queue.used,
    };
    match (offset % 8, size) {
        (0, 8) => *address = value,
        (0, 4) => *address = *address >> 32 << 32 | value & 0xffff_ffff,
        (4, 4) => *address = *address & 0xffff_ffff | value << 32,
        _ => {}
    }
}

/// 32 of the 64 feature bits; there are none further up.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
