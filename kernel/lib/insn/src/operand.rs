//! Operands of a decoded instruction: registers and their parts, immediates, and where memory operands are.
//!
//! [`resolve`] gives an [`Operand`] for reading and writing, and with that all checks of a memory operand have been
//! made. `step` uses it; `string` forms its addresses itself, from [`Part`]s.

use iced_x86::{Instruction, MemorySize, OpKind, Register};
use vcpu::{Access, Gpr, SegmentName};

use crate::fetch::Decoded;
use crate::memory::{Place, mask};
use crate::segment::CodeSize;
use crate::{Context, Fault};

/// A general register or a part of one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    gpr: Gpr,
    /// 1, 2, 4 or 8 bytes.
    size: u8,
    /// Whether it is AH, CH, DH or BH.
    high: bool,
}

impl Part {
    /// The low `size` bytes of a register.
    pub(crate) const fn low(gpr: Gpr, size: u8) -> Self {
        Self { gpr, size, high: false }
    }

    /// That of a name, if it is a general register's.
    pub(crate) fn of(register: Register) -> Option<Self> {
        let block = BLOCKS.iter().find(|block| (block.first..=block.last).contains(&register))?;
        let number = block.number + (register as usize - block.first as usize);
        Some(Self { gpr: *Gpr::ALL.get(number)?, size: block.size, high: block.high })
    }

    pub(crate) const fn size(self) -> u8 {
        self.size
    }

    pub(crate) fn read<C: Context>(self, context: &C) -> u64 {
        let shift = if self.high { 8 } else { 0 };
        context.gpr(self.gpr) >> shift & mask(self.size)
    }

    /// Writes as an instruction does: 32 bits clear the upper half, 8 and 16 leave the rest alone.
    pub(crate) fn write<C: Context>(self, context: &mut C, value: u64) {
        let old = context.gpr(self.gpr);
        let new = match (self.size, self.high) {
            (8, _) => value,
            (4, _) => value & 0xffff_ffff,
            (_, true) => old & !0xff00 | (value & 0xff) << 8,
            (size, false) => old & !mask(size) | value & mask(size),
        };
        context.set_gpr(self.gpr, new);
    }
}

/// Names that follow each other in the decoder's numbering.
struct Block {
    first: Register,
    last: Register,
    /// The encoding of the first.
    number: usize,
    size: u8,
    high: bool,
}

const BLOCKS: [Block; 6] = [
    Block { first: Register::RAX, last: Register::R15, number: 0, size: 8, high: false },
    Block { first: Register::EAX, last: Register::R15D, number: 0, size: 4, high: false },
    Block { first: Register::AX, last: Register::R15W, number: 0, size: 2, high: false },
    Block { first: Register::AL, last: Register::BL, number: 0, size: 1, high: false },
    Block { first: Register::AH, last: Register::BH, number: 0, size: 1, high: true },
    Block { first: Register::SPL, last: Register::R15L, number: 4, size: 1, high: false },
];

/// An operand ready for use.
#[derive(Clone, Copy)]
pub(crate) enum Operand {
    Register(Part),
    Memory(Place),
    /// A constant, sign-extended to 64 bits, or a segment's selector.
    Value(u64),
}

impl Operand {
    /// Its bytes; for a constant, all of them.
    pub(crate) const fn size(&self) -> u8 {
        match self {
            Self::Register(part) => part.size,
            Self::Memory(place) => place.size(),
            Self::Value(_) => 8,
        }
    }

    pub(crate) fn read<C: Context>(&self, context: &mut C) -> Result<u64, Fault> {
        match self {
            Self::Register(part) => Ok(part.read(context)),
            Self::Memory(place) => Ok(place.load(context)?),
            Self::Value(value) => Ok(*value),
        }
    }

    pub(crate) fn write<C: Context>(&self, context: &mut C, value: u64) -> Result<(), Fault> {
        match self {
            Self::Register(part) => part.write(context, value),
            Self::Memory(place) => place.store(context, value)?,
            Self::Value(_) => {}
        }
        Ok(())
    }

    /// Replaces the value by what `compute` makes of it and returns what `compute` says besides.
    pub(crate) fn update<C: Context, T>(
        &self,
        context: &mut C,
        is_locked: bool,
        compute: impl Fn(u64) -> (u64, T),
    ) -> Result<T, Fault> {
        match self {
            Self::Register(part) => {
                let (new, besides) = compute(part.read(context));
                part.write(context, new);
                Ok(besides)
            }
            Self::Memory(place) => Ok(place.update(context, is_locked, compute)?),
            Self::Value(value) => Ok(compute(*value).1),
        }
    }
}

/// Operand `index` of an instruction, ready for `access`.
///
/// # Errors
/// What the processor raises for the memory operand; [`Fault::Unsupported`] for a kind that is not modelled.
pub(crate) fn resolve<C: Context>(
    context: &mut C,
    decoded: &Decoded,
    index: u32,
    access: Access,
) -> Result<Operand, Fault> {
    resolve_displaced(context, decoded, index, access, 0)
}

/// As [`resolve`], for an instruction whose memory operand lies `displacement` bytes further on (wrapping) than its
/// address says: a bit string's element, or what POP addresses relative to the new stack pointer.
pub(crate) fn resolve_displaced<C: Context>(
    context: &mut C,
    decoded: &Decoded,
    index: u32,
    access: Access,
    displacement: u64,
) -> Result<Operand, Fault> {
    let instruction = &decoded.instruction;
    let operand = match instruction.op_kind(index) {
        OpKind::Register => register(context, instruction.op_register(index)),
        OpKind::Memory => {
            let size = memory_bytes(instruction.memory_size()).ok_or_else(|| decoded.unsupported())?;
            Some(Operand::Memory(piece(context, decoded, displacement, size, access)?))
        }
        _ => instruction.try_immediate(index).ok().map(Operand::Value),
    };
    operand.ok_or_else(|| decoded.unsupported())
}

/// `size` bytes of the memory operand, which begin `displacement` bytes behind its start.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn piece<C: Context>(
    context: &mut C,
    decoded: &Decoded,
    displacement: u64,
    size: u8,
    access: Access,
) -> Result<Place, Fault> {
    let offset = offset(context, decoded, displacement).ok_or_else(|| decoded.unsupported())?;
    Place::new(context, operand_segment(decoded), offset, size, access)
}

fn register<C: Context>(context: &C, register: Register) -> Option<Operand> {
    if let Some(name) = segment_name(register) {
        return Some(Operand::Value(u64::from(context.segment(name).selector)));
    }
    Part::of(register).map(Operand::Register)
}

/// The bytes of an integer in memory.
pub(crate) const fn memory_bytes(size: MemorySize) -> Option<u8> {
    Some(match size {
        MemorySize::UInt8 | MemorySize::Int8 => 1,
        MemorySize::UInt16 | MemorySize::Int16 => 2,
        MemorySize::UInt32 | MemorySize::Int32 => 4,
        MemorySize::UInt64 | MemorySize::Int64 => 8,
        _ => return None,
    })
}

/// The segment of a memory operand. In 64-bit mode overrides other than FS and GS are ignored, so that a stack
/// address stays one (APM volume 3, 1.2.4).
pub(crate) fn operand_segment(decoded: &Decoded) -> SegmentName {
    let instruction = &decoded.instruction;
    let implied = match instruction.memory_base() {
        Register::BP | Register::EBP | Register::ESP | Register::RBP | Register::RSP => SegmentName::Ss,
        _ => SegmentName::Ds,
    };
    match segment_name(instruction.segment_prefix()) {
        Some(name @ (SegmentName::Fs | SegmentName::Gs)) => name,
        Some(name) if decoded.code_size != CodeSize::Bits64 => name,
        _ => implied,
    }
}

fn segment_name(register: Register) -> Option<SegmentName> {
    Some(match register {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::DS => SegmentName::Ds,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => return None,
    })
}

/// The effective address of the memory operand, wrapped to its address size. `None` for vector indexes.
fn offset<C: Context>(context: &C, decoded: &Decoded, displacement: u64) -> Option<u64> {
    let instruction = &decoded.instruction;
    let base = instruction.memory_base();
    let mut sum = instruction.memory_displacement64().wrapping_add(displacement);
    // The decoder has already added the next RIP to a displacement relative to it.
    if !matches!(base, Register::None | Register::RIP | Register::EIP) {
        sum = sum.wrapping_add(Part::of(base)?.read(context));
    }
    let index = instruction.memory_index();
    if index != Register::None {
        let scale = u64::from(instruction.memory_index_scale());
        sum = sum.wrapping_add(Part::of(index)?.read(context).wrapping_mul(scale));
    }
    Some(sum & mask(address_bytes(instruction)?))
}

/// The address size: that of the registers, or of the displacement where there are none.
fn address_bytes(instruction: &Instruction) -> Option<u8> {
    let register = match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, index) => index,
        (base, _) => base,
    };
    match register {
        Register::None => u8::try_from(instruction.memory_displ_size()).ok().filter(|&size| size >= 2),
        Register::RIP => Some(8),
        Register::EIP => Some(4),
        register => Some(Part::of(register)?.size),
    }
}
