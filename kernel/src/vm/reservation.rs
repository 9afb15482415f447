//! Memory that is kept for a VM, whether its guest has it now or not.
//!
//! The type is [`Reservation`]. What a VM reserved and has not got is promised: nobody else is given it. A reservation is
//! admitted when its VM is made, so that a start, a reset or a guest that wants back what it gave up finds it.

use super::Refusal;
use super::memory::RESERVE_BYTES;
use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use memory::FRAMES;
use spin::Mutex;

/// What VMs reserved and have not got. Locked after the frames.
static PROMISED_BYTES: Mutex<u64> = Mutex::new(0);

/// What one VM reserved, and how much memory it has; that changes with the promises locked.
#[derive(Default)]
pub struct Reservation {
    bytes: u64,
    held_bytes: AtomicU64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *PROMISED_BYTES.lock() -= self.open_bytes();
    }
}

impl Reservation {
    /// Reserves memory, or says in one line why it cannot be.
    pub fn admit(bytes: u64) -> Result<Arc<Self>, Refusal> {
        let frames = FRAMES.lock();
        let mut promised_bytes = PROMISED_BYTES.lock();
        let free_bytes = frames.free_bytes().saturating_sub(RESERVE_BYTES).saturating_sub(*promised_bytes);
        if bytes > free_bytes {
            let message = format!("it reserves {} MiB of memory and {} MiB are free", bytes >> 20, free_bytes >> 20);
            return Err((message, "reserve less, or stop or delete another VM".into()));
        }
        *promised_bytes += bytes;
        Ok(Arc::new(Self { bytes, held_bytes: AtomicU64::new(0) }))
    }

    /// How much is reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Free memory that this VM can have.
    pub fn free_bytes(&self) -> u64 {
        self.left_of(FRAMES.lock().free_bytes())
    }

    /// The same, for who has locked the frames and knows that so many bytes are free.
    pub fn left_of(&self, free_bytes: u64) -> u64 {
        free_bytes.saturating_sub(RESERVE_BYTES).saturating_sub(self.others_bytes())
    }

    /// What was promised to others.
    pub fn others_bytes(&self) -> u64 {
        *PROMISED_BYTES.lock() - self.open_bytes()
    }

    /// What was promised to this VM.
    pub fn open_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.held_bytes.load(Ordering::Relaxed))
    }

    /// The VM got so much more.
    pub fn got(&self, bytes: u64) {
        self.book(|held_bytes| held_bytes + bytes);
    }

    /// The VM gave so much back.
    pub fn gave(&self, bytes: u64) {
        self.book(|held_bytes| held_bytes - bytes);
    }

    fn book(&self, change: impl FnOnce(u64) -> u64) {
        let mut promised_bytes = PROMISED_BYTES.lock();
        let before_bytes = self.open_bytes();
        self.held_bytes.store(change(self.held_bytes.load(Ordering::Relaxed)), Ordering::Relaxed);
        *promised_bytes = *promised_bytes - before_bytes + self.open_bytes();
    }
}

/// Free memory that is kept for VMs.
pub fn promised_bytes() -> u64 {
    *PROMISED_BYTES.lock()
}
