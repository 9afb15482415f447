//! Where the modules of a Multiboot or PVH kernel lie: each on a page of its own, one behind the other, behind the kernel.
//!
//! [`Modules`] chooses, and puts them there.

use crate::multiboot::{Image, usable};
use crate::{Boot, Error, Module, layout};
use addr::{Gpa, PAGE_BYTES};
use alloc::vec::Vec;
use guestmem::{GuestMemory, Outside};

/// Modules and their places.
pub struct Modules<'a>(Vec<(Gpa, Module<'a>)>);

impl<'a> Modules<'a> {
    /// Finds a place for each module of `boot` behind `image`, in memory from 1 MiB to 4 GiB: the lowest behind the one
    /// before. An empty one has a place too.
    ///
    /// # Errors
    /// Where they do not fit.
    pub fn place(memory: &GuestMemory, boot: &Boot<'a>, image: &Image<'_>) -> Result<Self, Error> {
        let mut places = Vec::new();
        let mut next = image.end().max(layout::HIGH_MEMORY.as_u64());
        for module in boot.all_modules() {
            let bytes = module.bytes.len() as u64;
            let start = lowest(memory, next, bytes).ok_or_else(|| Error::TooLarge {
                needed_bytes: next.next_multiple_of(PAGE_BYTES) + bytes,
                have_bytes: usable(memory).map(|(_, end)| end).max().unwrap_or(0),
            })?;
            places.push((Gpa::new(start), module));
            next = start + bytes;
        }
        Ok(Self(places))
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// Where each lies.
    pub fn iter(&self) -> impl Iterator<Item = (Gpa, Module<'a>)> + '_ {
        self.0.iter().copied()
    }

    /// Puts them there.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), Outside> {
        self.iter().try_for_each(|(at, module)| memory.write(at, module.bytes))
    }
}

/// The lowest page from `next` on with `bytes` of memory.
fn lowest(memory: &GuestMemory, next: u64, bytes: u64) -> Option<u64> {
    usable(memory).find_map(|(first, last)| {
        let start = next.max(first).next_multiple_of(PAGE_BYTES);
        (start <= last && bytes <= last - start).then_some(start)
    })
}
