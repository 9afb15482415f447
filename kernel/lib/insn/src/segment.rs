//! From a segment and an offset to a linear address, with the checks of the mode that the processor is in.
//!
//! [`linear`] is the whole of it; `memory` calls it for operands, and [`CodeSize`] serves the decoder too.
//!
//! Rules: APM volume 2, chapter 4; SDM volume 3, 6.3 (limits) and 6.4 (types).

use vcpu::{Access, Exception, Paging, Segment, SegmentName, cr0, efer, rflags};

use crate::Context;
use crate::paging::is_canonical;

const TYPE_READABLE_OR_WRITABLE: u16 = 1 << 1;
const TYPE_EXPAND_DOWN: u16 = 1 << 2;
const TYPE_CODE: u16 = 1 << 3;
const PRESENT: u16 = 1 << 7;

/// The default operand and address size of the running code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CodeSize {
    Bits16,
    Bits32,
    Bits64,
}

impl CodeSize {
    pub(crate) fn of(paging: &Paging, code: Segment) -> Self {
        if paging.efer & efer::LMA != 0 && code.is_long() {
            Self::Bits64
        } else if code.is_big() {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }

    pub(crate) const fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }

    /// An address of this mode. Outside 64-bit mode linear addresses and EIP have 32 bits: IP itself does not wrap
    /// at 64 KiB, the limit of CS is what stops it there.
    pub(crate) const fn wrap(self, address: u64) -> u64 {
        match self {
            Self::Bits16 | Self::Bits32 => address & 0xffff_ffff,
            Self::Bits64 => address,
        }
    }
}

/// The linear address of the `size` bytes (at least one) at an offset that is already wrapped to the address size.
///
/// # Errors
/// #SS(0) for SS, else #GP(0): limit, type, a null selector, or an address that is not canonical.
pub(crate) fn linear<C: Context>(
    context: &C,
    name: SegmentName,
    offset: u64,
    size: u8,
    access: Access,
) -> Result<u64, Exception> {
    let paging = context.paging();
    let refusal = if name == SegmentName::Ss { Exception::STACK } else { Exception::PROTECTION };
    if CodeSize::of(&paging, context.segment(SegmentName::Cs)) == CodeSize::Bits64 {
        let base = if matches!(name, SegmentName::Fs | SegmentName::Gs) { context.segment(name).base } else { 0 };
        let first = base.wrapping_add(offset);
        let last = first.wrapping_add(u64::from(size) - 1);
        let is_valid = is_canonical(&paging, first) && is_canonical(&paging, last);
        return if is_valid { Ok(first) } else { Err(refusal) };
    }
    let segment = context.segment(name);
    let is_protected = paging.cr0 & cr0::PE != 0 && context.rflags() & rflags::VM == 0;
    if is_protected && !allows(segment, access) || !holds(segment, offset, size, is_protected) {
        return Err(refusal);
    }
    Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
}

/// Whether the segment's type permits the access. A null selector is a segment that is not present.
const fn allows(segment: Segment, access: Access) -> bool {
    let is_code = segment.attributes & TYPE_CODE != 0;
    let has_right = segment.attributes & TYPE_READABLE_OR_WRITABLE != 0;
    segment.attributes & PRESENT != 0
        && match access {
            Access::Read => !is_code || has_right,
            Access::Write => !is_code && has_right,
            Access::Fetch => is_code,
        }
}

/// Whether the bytes lie within the segment's limit.
pub(crate) const fn holds(segment: Segment, offset: u64, size: u8, is_protected: bool) -> bool {
    let limit = segment.limit as u64;
    let last = offset.saturating_add(size as u64 - 1);
    let expands_down = segment.attributes & (TYPE_CODE | TYPE_EXPAND_DOWN) == TYPE_EXPAND_DOWN;
    if is_protected && expands_down {
        let top = if segment.is_big() { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    }
}
