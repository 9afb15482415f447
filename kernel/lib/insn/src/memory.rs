//! Memory operands: an offset in a segment becomes one or two pieces of guest-physical memory.
//!
//! A [`Place`] is made once, with every check that the processor makes, and then loaded and stored without further
//! faults of the guest's. `operand` and `string` make places from instructions.

use addr::{Gpa, PAGE_BYTES};
use vcpu::{Access, Exception, SegmentName, rflags};

use crate::paging::{self, Privilege};
use crate::segment::{self, CodeSize};
use crate::{Context, Fault, Unavailable};

/// #AC(0).
const ALIGNMENT: Exception = Exception { vector: 17, error_code: Some(0), fault_address: None };
/// CR0.AM.
const ALIGNMENT_MASK: u64 = 1 << 18;
/// How often a locked update starts again because another vCPU wrote between its load and its store.
const RACES_MAX: u32 = 64;

/// Translated memory of 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    first: Gpa,
    /// Where the bytes past the page's end are, if there are any.
    second: Gpa,
    /// How many bytes lie in the first page.
    first_bytes: u8,
    size: u8,
}

impl Place {
    /// Translates the memory for an access, which may only be a read or a write.
    ///
    /// Both pages of one that crosses are checked before either is marked as accessed.
    pub(crate) fn new<C: Context>(
        context: &mut C,
        segment: SegmentName,
        offset: u64,
        size: u8,
        access: Access,
    ) -> Result<Self, Fault> {
        let start = segment::linear(context, segment, offset, size, access)?;
        let paging = context.paging();
        let privilege = Privilege::of(&paging);
        let code_size = CodeSize::of(&paging, context.segment(SegmentName::Cs));
        let in_page = PAGE_BYTES - start % PAGE_BYTES;
        let next_page = code_size.wrap(start.wrapping_add(in_page));
        let crosses = u64::from(size) > in_page;
        if !start.is_multiple_of(u64::from(size)) {
            paging::probe(context, start, access, privilege)?;
            if crosses {
                paging::probe(context, next_page, access, privilege)?;
            }
            let is_checked = privilege == Privilege::User && paging.cr0 & ALIGNMENT_MASK != 0;
            if is_checked && context.rflags() & rflags::AC != 0 {
                return Err(ALIGNMENT.into());
            }
        }
        let first = paging::translate(context, start, access, privilege)?;
        context.touch(start, size, access);
        if !crosses {
            context.check(first, size)?;
            return Ok(Self { first, second: first, first_bytes: size, size });
        }
        let second = paging::translate(context, next_page, access, privilege)?;
        context.check(first, in_page as u8)?;
        context.check(second, size - in_page as u8)?;
        Ok(Self { first, second, first_bytes: in_page as u8, size })
    }

    pub(crate) const fn size(&self) -> u8 {
        self.size
    }

    const fn crosses(&self) -> bool {
        self.first_bytes < self.size
    }

    pub(crate) fn load<C: Context>(&self, context: &mut C) -> Result<u64, Unavailable> {
        if !self.crosses() {
            return Ok(context.load(self.first, self.size)? & mask(self.size));
        }
        let mut value = 0;
        self.each_piece(|gpa, size, shift| {
            value |= (context.load(gpa, size)? & mask(size)) << shift;
            Ok(())
        })?;
        Ok(value)
    }

    pub(crate) fn store<C: Context>(&self, context: &mut C, value: u64) -> Result<(), Unavailable> {
        if !self.crosses() {
            return context.store(self.first, self.size, value & mask(self.size));
        }
        self.each_piece(|gpa, size, shift| context.store(gpa, size, value >> shift & mask(size)))
    }

    /// Replaces the value by what `compute` makes of it and returns what `compute` says besides.
    ///
    /// `is_locked` makes it atomic within a page; across two pages it is not, though the processor's bus lock is.
    pub(crate) fn update<C: Context, T>(
        &self,
        context: &mut C,
        is_locked: bool,
        compute: impl Fn(u64) -> (u64, T),
    ) -> Result<T, Unavailable> {
        for _ in 0..RACES_MAX {
            let old = self.load(context)?;
            let (new, besides) = compute(old);
            if !is_locked || self.crosses() {
                self.store(context, new)?;
                return Ok(besides);
            }
            if context.compare_exchange(self.first, self.size, old, new & mask(self.size))? {
                return Ok(besides);
            }
        }
        Err(Unavailable)
    }

    /// Visits a crossing place in naturally aligned pieces: address, bytes, and the piece's position in bits.
    fn each_piece(&self, mut visit: impl FnMut(Gpa, u8, u32) -> Result<(), Unavailable>) -> Result<(), Unavailable> {
        let mut done = 0;
        while done < self.size {
            let (at, left) = if done < self.first_bytes {
                (self.first.wrapping_add(u64::from(done)), self.first_bytes - done)
            } else {
                (self.second.wrapping_add(u64::from(done - self.first_bytes)), self.size - done)
            };
            let mut piece = 4;
            while piece > left || !at.is_aligned(u64::from(piece)) {
                piece /= 2;
            }
            visit(at, piece, 8 * u32::from(done))?;
            done += piece;
        }
        Ok(())
    }
}

/// The bits of a value of 1, 2, 4 or 8 bytes.
pub(crate) const fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}
