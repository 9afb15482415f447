//! Descriptor chains (2.7.5): read once out of guest memory, checked, and held as pieces.
//!
//! [`Chain`] is reusable and bounded; [`gather`], [`scatter`] and [`after`] work on runs of pieces wherever the driver
//! chose to split them (2.7.4.1). `queue` says which chain is next, the devices say what is in it.

use addr::Gpa;
use alloc::vec::Vec;
use guestmem::{GuestMemory, Outside};

/// A run of guest bytes that a descriptor names. Not yet known to be memory.
pub type Piece = (Gpa, u32);

/// How many descriptors a chain may have where the queue is smaller: a header, a status and 256 data segments.
pub(crate) const CHAIN_DESCRIPTORS: u16 = 258;
pub(crate) const DESCRIPTOR_BYTES: u64 = 16;

const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;

/// A chain that does not end, leaves its table, or breaks the rules for indirect tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

impl From<Outside> for Malformed {
    fn from(_: Outside) -> Self {
        Self
    }
}

/// Where a queue's chains are, and which rules hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub at: Gpa,
    pub size: u16,
    pub indirect: bool,
}

/// The pieces of one chain (or of several, for merged receive buffers). None is empty.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// For the device to read.
    pub readable: Vec<Piece>,
    /// For the device to write.
    pub writable: Vec<Piece>,
    /// A readable piece came after a writable one, which 2.7.4.2 forbids.
    pub disordered: bool,
}

impl Chain {
    /// An empty one with room for the longest chain of the usual queue.
    pub fn new() -> Self {
        let room = || Vec::with_capacity(usize::from(CHAIN_DESCRIPTORS));
        Self { readable: room(), writable: room(), disordered: false }
    }

    /// Replaces what is held by the chain that starts at `head`.
    pub fn read(&mut self, memory: &GuestMemory, table: Table, head: u16) -> Result<(), Malformed> {
        self.clear();
        self.append(memory, table, head)
    }

    /// Adds the pieces of the chain that starts at `head`. On an error some of them may have been added.
    pub fn append(&mut self, memory: &GuestMemory, table: Table, head: u16) -> Result<(), Malformed> {
        table.each(memory, head, |descriptor| {
            if descriptor.flags & FLAG_INDIRECT == 0 {
                self.push(descriptor);
            }
        })
    }

    /// Forgets all pieces.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.disordered = false;
    }

    fn push(&mut self, descriptor: &Descriptor) {
        if descriptor.bytes == 0 {
            return;
        }
        let piece = (descriptor.at, descriptor.bytes);
        if descriptor.flags & FLAG_WRITE != 0 {
            self.writable.push(piece);
        } else {
            self.disordered |= !self.writable.is_empty();
            self.readable.push(piece);
        }
    }
}

impl Table {
    /// Whether all that the chain at `head` names is here, as far as it keeps to the rules.
    pub fn is_here(self, memory: &GuestMemory, head: u16) -> bool {
        let mut is_here = true;
        // Where it breaks a rule the walk ends, as it will again for whoever takes it.
        let _ = self.each(memory, head, |descriptor| {
            is_here &= memory.is_here(descriptor.at, descriptor.bytes.into());
        });
        is_here
    }

    /// Calls `visit` with each descriptor of the chain at `head`, also with one that refers to an indirect table, before it
    /// is followed there.
    fn each(self, memory: &GuestMemory, head: u16, mut visit: impl FnMut(&Descriptor)) -> Result<(), Malformed> {
        let Table { mut at, size, indirect } = self;
        let (mut entries, mut index, mut nested) = (u32::from(size), u32::from(head), false);
        // One step more than descriptors: the one that refers to the indirect table is not part of the chain.
        for _ in 0..=size.max(CHAIN_DESCRIPTORS) {
            if index >= entries {
                return Err(Malformed);
            }
            let descriptor = Descriptor::load(memory, at, index)?;
            let refers = descriptor.flags & FLAG_INDIRECT != 0;
            if refers && (!indirect || nested || !descriptor.is_table()) {
                return Err(Malformed);
            }
            visit(&descriptor);
            if refers {
                (at, entries, index, nested) = (descriptor.at, descriptor.bytes / 16, 0, true);
                continue;
            }
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(());
            }
            index = u32::from(descriptor.next);
        }
        Err(Malformed)
    }
}

/// One entry of a descriptor table (2.7.5).
struct Descriptor {
    at: Gpa,
    bytes: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn load(memory: &GuestMemory, table: Gpa, index: u32) -> Result<Self, Outside> {
        let mut raw = [0; DESCRIPTOR_BYTES as usize];
        memory.read(table.wrapping_add(u64::from(index) * DESCRIPTOR_BYTES), &mut raw)?;
        let raw = u128::from_le_bytes(raw);
        Ok(Self {
            at: Gpa::new(raw as u64),
            bytes: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        })
    }

    /// Whether this can be the last descriptor of a direct chain, referring to a table (2.7.5.3.1).
    fn is_table(&self) -> bool {
        self.flags & FLAG_NEXT == 0 && self.bytes > 0 && u64::from(self.bytes).is_multiple_of(DESCRIPTOR_BYTES)
    }
}

/// How many bytes the pieces have.
pub(crate) fn total_bytes(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|(_, bytes)| u64::from(*bytes)).sum()
}

/// The pieces without their first `skip` bytes.
pub(crate) fn after(pieces: &[Piece], skip: u64) -> impl Iterator<Item = Piece> + '_ {
    let mut skip = skip;
    pieces.iter().filter_map(move |&(at, bytes)| {
        let cut = skip.min(u64::from(bytes));
        skip -= cut;
        // `cut` is at most `bytes`; where the address wraps, the access that follows fails.
        let left = bytes - cut as u32;
        (left > 0).then_some((at.wrapping_add(cut), left))
    })
}

/// Copies bytes out of the pieces until `into` is full or they end. Returns how many.
pub(crate) fn gather(
    memory: &GuestMemory,
    pieces: impl IntoIterator<Item = Piece>,
    into: &mut [u8],
) -> Result<usize, Outside> {
    let mut done = 0;
    for (at, bytes) in pieces {
        if done == into.len() {
            break;
        }
        let take = (into.len() - done).min(bytes as usize);
        memory.read(at, &mut into[done..done + take])?;
        done += take;
    }
    Ok(done)
}

/// Copies bytes into the pieces until `from` or they end. Returns how many.
pub(crate) fn scatter(
    memory: &GuestMemory,
    pieces: impl IntoIterator<Item = Piece>,
    from: &[u8],
) -> Result<usize, Outside> {
    let mut done = 0;
    for (at, bytes) in pieces {
        if done == from.len() {
            break;
        }
        let take = (from.len() - done).min(bytes as usize);
        memory.write(at, &from[done..done + take])?;
        done += take;
    }
    Ok(done)
}
