//! The segment registers of a new task: descriptors found, checked and loaded (SDM volume 3, table 8-1).
//!
//! All this is past the point of no return: where a check fails, the selectors are loaded, and the registers that were not
//! reached hold nothing. Until SS is loaded the privilege level is 3, so that the exception's handler, at a lower one, gets
//! a stack that the task-state segment names.

use vcpu::{Exception, Segment, SegmentName, rflags};

use super::{INDEX, LOCAL, PRESENT, Switch};
use crate::{Context, Fault};

/// Bits of a descriptor's attributes.
const ACCESSED: u16 = 1 << 0;
const READABLE_OR_WRITABLE: u16 = 1 << 1;
const CONFORMING: u16 = 1 << 2;
const CODE: u16 = 1 << 3;
const CODE_OR_DATA: u16 = 1 << 4;
const DPL_SHIFT: u32 = 5;
const GRANULAR: u16 = 1 << 11;
/// S and the type of an LDT.
const KIND: u16 = 0x1f;
const KIND_LDT: u16 = 0x02;

/// Data, readable and writable, at level 3: what every register holds in virtual-8086 mode.
const VIRTUAL_8086: u16 = 0xf3;
/// Code at level 3 that is nowhere.
const NO_CODE: u16 = 0xfb;
const LOWEST: u16 = 3;

impl<C: Context> Switch<'_, C> {
    /// Loads LDTR and the six others, by their names' order.
    pub(super) fn load_segments(&mut self, selectors: [u16; 6], ldt: u16) -> Result<(), Fault> {
        let is_virtual_8086 = self.state.rflags & rflags::VM != 0;
        self.state.segments = selectors.map(if is_virtual_8086 { virtual_8086 } else { nothing });
        self.state.ldtr = Segment { selector: ldt, ..Segment::default() };
        if !is_virtual_8086 {
            self.set_level(LOWEST);
        }
        self.load_ldt(ldt)?;
        if is_virtual_8086 {
            return Ok(());
        }
        let level = selectors[SegmentName::Cs as usize] & 3;
        self.load_stack(selectors[SegmentName::Ss as usize], level)?;
        self.load_code(selectors[SegmentName::Cs as usize], level)?;
        for name in [SegmentName::Es, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs] {
            self.load_data(name, selectors[name as usize], level)?;
        }
        Ok(())
    }

    /// The descriptor that a selector names, and where it lies; `None` beyond its table.
    pub(super) fn descriptor(&mut self, selector: u16) -> Result<Option<(u64, Segment)>, Fault> {
        let (base, limit) = if selector & LOCAL == 0 {
            (self.state.gdtr.base, u32::from(self.state.gdtr.limit))
        } else if self.state.ldtr.attributes & PRESENT != 0 {
            (self.state.ldtr.base, self.state.ldtr.limit)
        } else {
            return Ok(None);
        };
        let offset = selector & !7;
        if u32::from(offset | 7) > limit {
            return Ok(None);
        }
        let at = base.wrapping_add(offset.into());
        let mut bytes = [0; 8];
        self.memory.read(at, &mut bytes)?;
        Ok(Some((at, segment(selector, u64::from_le_bytes(bytes)))))
    }

    fn load_ldt(&mut self, selector: u16) -> Result<(), Fault> {
        if selector & INDEX == 0 {
            return Ok(());
        }
        let found = if selector & LOCAL == 0 { self.descriptor(selector)? } else { None };
        let fits = |ldt: &Segment| ldt.attributes & KIND == KIND_LDT && ldt.attributes & PRESENT != 0;
        let ldt = found.map(|(_, ldt)| ldt).filter(fits);
        self.state.ldtr = ldt.ok_or_else(|| self.refusal(Exception::INVALID_TSS, selector))?;
        Ok(())
    }

    fn load_stack(&mut self, selector: u16, level: u16) -> Result<(), Fault> {
        const KIND: u16 = CODE_OR_DATA | CODE | READABLE_OR_WRITABLE;
        let (at, stack) = self.named(selector)?;
        let is_right = stack.attributes & KIND == CODE_OR_DATA | READABLE_OR_WRITABLE;
        if !is_right || dpl(stack) != level || selector & 3 != level {
            return Err(self.refusal(Exception::INVALID_TSS, selector));
        }
        self.put(SegmentName::Ss, at, stack, Exception::STACK)?;
        self.set_code_level(level);
        Ok(())
    }

    fn load_code(&mut self, selector: u16, level: u16) -> Result<(), Fault> {
        let (at, code) = self.named(selector)?;
        let is_code = code.attributes & (CODE_OR_DATA | CODE) == CODE_OR_DATA | CODE;
        let is_conforming = code.attributes & CONFORMING != 0;
        let is_allowed = if is_conforming { dpl(code) <= level } else { dpl(code) == level };
        if !is_code || !is_allowed {
            return Err(self.refusal(Exception::INVALID_TSS, selector));
        }
        self.put(SegmentName::Cs, at, code, Exception::NOT_PRESENT)
    }

    fn load_data(&mut self, name: SegmentName, selector: u16, level: u16) -> Result<(), Fault> {
        if selector & INDEX == 0 {
            return Ok(());
        }
        let (at, data) = self.named(selector)?;
        let is_code = data.attributes & CODE != 0;
        let is_readable = !is_code || data.attributes & READABLE_OR_WRITABLE != 0;
        let is_conforming = is_code && data.attributes & CONFORMING != 0;
        let is_allowed = is_conforming || dpl(data) >= level.max(selector & 3);
        if data.attributes & CODE_OR_DATA == 0 || !is_readable || !is_allowed {
            return Err(self.refusal(Exception::INVALID_TSS, selector));
        }
        self.put(name, at, data, Exception::NOT_PRESENT)
    }

    /// What a selector must name.
    fn named(&mut self, selector: u16) -> Result<(u64, Segment), Fault> {
        let found = if selector & INDEX == 0 { None } else { self.descriptor(selector)? };
        found.ok_or_else(|| self.refusal(Exception::INVALID_TSS, selector))
    }

    /// Loads a register from a descriptor that fits, if it is present, and marks it as accessed.
    fn put(&mut self, name: SegmentName, at: u64, segment: Segment, absent: Exception) -> Result<(), Fault> {
        if segment.attributes & PRESENT == 0 {
            return Err(self.refusal(absent, segment.selector));
        }
        if segment.attributes & ACCESSED == 0 {
            self.memory.change_rights(at, |rights| rights | ACCESSED as u8)?;
        }
        let attributes = segment.attributes | ACCESSED;
        self.state.segments[name as usize] = Segment { attributes, ..segment };
        Ok(())
    }

    /// The privilege level while CS and SS are not loaded.
    fn set_level(&mut self, level: u16) {
        self.state.segments[SegmentName::Ss as usize].attributes = level << DPL_SHIFT;
        self.set_code_level(level);
    }

    /// That of CS, which is that of SS.
    fn set_code_level(&mut self, level: u16) {
        self.state.segments[SegmentName::Cs as usize].attributes = NO_CODE & !(3 << DPL_SHIFT) | level << DPL_SHIFT;
    }
}

/// A register's form of a descriptor (SDM volume 3, figure 3-8).
fn segment(selector: u16, descriptor: u64) -> Segment {
    let attributes = (descriptor >> 40 & 0xff | descriptor >> 44 & 0xf00) as u16;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    let limit = if attributes & GRANULAR != 0 { limit << 12 | 0xfff } else { limit };
    let base = descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000;
    Segment { selector, attributes, limit, base }
}

pub(super) const fn dpl(segment: Segment) -> u16 {
    segment.attributes >> DPL_SHIFT & 3
}

/// A register that cannot be used.
fn nothing(selector: u16) -> Segment {
    Segment { selector, ..Segment::default() }
}

/// A register in virtual-8086 mode (SDM volume 3, 22.2.1).
fn virtual_8086(selector: u16) -> Segment {
    Segment { selector, attributes: VIRTUAL_8086, limit: 0xffff, base: u64::from(selector) << 4 }
}
