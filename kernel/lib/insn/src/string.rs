//! The string instructions, alone or repeated: MOVS, STOS, LODS, CMPS, SCAS, INS and OUTS.
//!
//! [`step()`] carries out elements one at a time and leaves RCX, RSI and RDI at the next after each, so that a fault or
//! the end of the budget looks like an interrupt between two elements.
//!
//! Rules: APM volume 3, 1.2.6 (repeat prefixes); SDM volume 2, REP.

use iced_x86::{Mnemonic, OpKind};
use vcpu::{Access, Gpr, SegmentName, rflags};

use crate::alu::{self, STATUS};
use crate::fetch::Decoded;
use crate::memory::Place;
use crate::operand::{self, Part};
use crate::step::Completed;
use crate::{Context, Fault};

/// Which string instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StringOp {
    Move,
    Store,
    Load,
    Compare,
    Scan,
    In,
    Out,
}

impl StringOp {
    /// That of a mnemonic. MOVSD and CMPSD are also SSE instructions, which the operands tell apart.
    pub(crate) const fn of(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => Self::Move,
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Self::Store,
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => Self::Load,
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => Self::Compare,
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => Self::Scan,
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Self::In,
            Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Self::Out,
            _ => return None,
        })
    }

    const fn uses_source(self) -> bool {
        matches!(self, Self::Move | Self::Load | Self::Compare | Self::Out)
    }

    const fn uses_destination(self) -> bool {
        matches!(self, Self::Move | Self::Store | Self::Compare | Self::Scan | Self::In)
    }
}

/// A string instruction with its registers, as long as it runs.
struct StringStep {
    op: StringOp,
    /// Bytes in an element.
    size: u8,
    source_segment: SegmentName,
    source: Part,
    destination: Part,
    count: Part,
}

/// Carries out up to `budget` elements.
pub(crate) fn step<C: Context>(
    context: &mut C,
    decoded: &Decoded,
    op: StringOp,
    budget: u32,
) -> Result<Completed, Fault> {
    let instruction = &decoded.instruction;
    let string = StringStep::new(decoded, op).ok_or(decoded.unsupported())?;
    let (repe, repne) = (instruction.has_repe_prefix(), instruction.has_repne_prefix());
    let done = Ok(Completed { next_rip: decoded.next_rip });
    if !repe && !repne {
        let status = string.element(context)?;
        set_status(context, status);
        return done;
    }
    let mut left = string.count.read(context);
    let budget = if context.rflags() & rflags::TF != 0 { 1 } else { budget.max(1) };
    let mut status = None;
    for _ in 0..budget {
        if left == 0 {
            break;
        }
        // On a fault the flags stay as before the instruction, which reads none of them (SDM volume 2, REP).
        status = string.element(context)?;
        left -= 1;
        string.count.write(context, left);
        // F2 in front of the others repeats as F3 does.
        let ends = status.is_some_and(|status| (status & alu::ZF != 0) == repne);
        if ends {
            left = 0;
        }
        if context.is_trapped() {
            break;
        }
    }
    set_status(context, status);
    if left == 0 { done } else { Ok(Completed { next_rip: context.rip() }) }
}

fn set_status<C: Context>(context: &mut C, status: Option<u64>) {
    if let Some(status) = status {
        let flags = context.rflags() & !STATUS | status;
        context.set_rflags(flags);
    }
}

impl StringStep {
    /// `None` where the operands are not those of a string instruction.
    fn new(decoded: &Decoded, op: StringOp) -> Option<Self> {
        let instruction = &decoded.instruction;
        let address_bytes = (0..instruction.op_count()).find_map(|index| match instruction.op_kind(index) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
            _ => None,
        })?;
        Some(Self {
            op,
            size: operand::memory_bytes(instruction.memory_size())?,
            source_segment: operand::operand_segment(decoded),
            source: Part::low(Gpr::Rsi, address_bytes),
            destination: Part::low(Gpr::Rdi, address_bytes),
            count: Part::low(Gpr::Rcx, address_bytes),
        })
    }

    /// Carries out one element and returns the status flags of one that compares.
    fn element<C: Context>(&self, context: &mut C) -> Result<Option<u64>, Fault> {
        let status = self.transfer(context)?;
        let forward = context.rflags() & rflags::DF == 0;
        let stride = u64::from(self.size);
        let delta = if forward { stride } else { stride.wrapping_neg() };
        if self.op.uses_source() {
            self.source.write(context, self.source.read(context).wrapping_add(delta));
        }
        if self.op.uses_destination() {
            self.destination.write(context, self.destination.read(context).wrapping_add(delta));
        }
        Ok(status)
    }

    fn transfer<C: Context>(&self, context: &mut C) -> Result<Option<u64>, Fault> {
        let accumulator = Part::low(Gpr::Rax, self.size);
        let port = context.gpr(Gpr::Rdx) as u16;
        match self.op {
            StringOp::Move => {
                let source = self.source_place(context)?;
                let destination = self.destination_place(context, Access::Write)?;
                let value = source.load(context)?;
                destination.store(context, value)?;
            }
            StringOp::Store => {
                let destination = self.destination_place(context, Access::Write)?;
                destination.store(context, accumulator.read(context))?;
            }
            StringOp::Load => {
                let value = self.source_place(context)?.load(context)?;
                accumulator.write(context, value);
            }
            StringOp::Compare => {
                let source = self.source_place(context)?;
                let destination = self.destination_place(context, Access::Read)?;
                let (left, right) = (source.load(context)?, destination.load(context)?);
                return Ok(Some(alu::subtract(left, right, 0, self.size).1));
            }
            StringOp::Scan => {
                let right = self.destination_place(context, Access::Read)?.load(context)?;
                return Ok(Some(alu::subtract(accumulator.read(context), right, 0, self.size).1));
            }
            StringOp::In => {
                let destination = self.destination_place(context, Access::Write)?;
                let value = context.port_in(port, self.size);
                destination.store(context, u64::from(value))?;
            }
            StringOp::Out => {
                let value = self.source_place(context)?.load(context)?;
                context.port_out(port, self.size, value as u32);
            }
        }
        Ok(None)
    }

    fn source_place<C: Context>(&self, context: &mut C) -> Result<Place, Fault> {
        let offset = self.source.read(context);
        Place::new(context, self.source_segment, offset, self.size, Access::Read)
    }

    /// In ES, which nothing overrides.
    fn destination_place<C: Context>(&self, context: &mut C, access: Access) -> Result<Place, Fault> {
        let offset = self.destination.read(context);
        Place::new(context, SegmentName::Es, offset, self.size, access)
    }
}

#[cfg(test)]
mod tests;
