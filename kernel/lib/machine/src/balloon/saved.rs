//! The saved form of the balloon. Of the pages in it only those are kept that fill large frames: the others could not go
//! back to the host before the guest gives more up anyway.

use super::{Balloon, Known, PAGES};
use addr::{Gpa, LARGE_PAGE_BYTES};
use alloc::vec::Vec;
use guestmem::GuestMemory;
use minicbor::{Decode, Encode};
use state::Invalid;

/// The balloon.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    function: virtio::saved::Function,
    #[n(1)]
    device: virtio::saved::Balloon,
    /// Large frames that are in it as a whole: the first one's number, and how many follow each other.
    #[n(2)]
    full: Vec<(u64, u64)>,
}

impl Balloon {
    /// Whether the guest waits for the host to take what it gave up.
    pub fn is_busy(&self) -> bool {
        self.is_releasing || self.function.device.is_busy()
    }

    pub fn save(&self) -> Saved {
        let mut full: Vec<(u64, u64)> = Vec::new();
        let counts = self.known.iter().flat_map(|known| (0..).zip(&known.counts));
        for (frame, _) in counts.filter(|(_, count)| **count == PAGES) {
            match full.last_mut() {
                Some((first, count)) if *first + *count == frame => *count += 1,
                _ => full.push((frame, 1)),
            }
        }
        Saved { function: self.function.save(), device: self.function.device.save(), full }
    }

    /// Takes that over. What was in the balloon is ready to go back to this host.
    pub fn restore(&mut self, saved: &Saved, memory: &GuestMemory) -> Result<(), Invalid> {
        self.function.restore(&saved.function)?;
        self.function.device.restore(&saved.device)?;
        if saved.full.is_empty() {
            return Ok(());
        }
        // Without room to know it, that memory stays the guest's.
        let Some(mut known) = Known::new(memory) else { return Ok(()) };
        for &(first, count) in &saved.full {
            let start = first.checked_mul(LARGE_PAGE_BYTES).map(Gpa::new);
            let range = start.zip(count.checked_mul(LARGE_PAGE_BYTES));
            let is_memory = range.is_some_and(|(start, bytes)| memory.check(start, bytes).is_ok());
            Invalid::unless(is_memory, "a balloon with what is no memory")?;
            known.pages.insert(first * u64::from(PAGES), count * u64::from(PAGES));
            known.full.insert(first, count);
            known.counts[first as usize..(first + count) as usize].fill(PAGES);
        }
        self.known = Some(known);
        Ok(())
    }
}
