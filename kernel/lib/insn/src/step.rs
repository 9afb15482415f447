//! Carries out the instruction at RIP against a [`Context`].
//!
//! [`step()`] decodes and dispatches. Each instruction first resolves its operands, which is where it can fault, then
//! reads, computes, writes memory, and last changes registers and flags. `string` has the string instructions, `vector`
//! moves of vector registers.
//!
//! Rules: APM volume 3, chapter 3; SDM volume 2, under each instruction.

use iced_x86::{Mnemonic, OpKind, Register};
use vcpu::{Access, Gpr, SegmentName};

use crate::alu::{self, Binary, Bit, STATUS, Shift, Unary};
use crate::fetch::{self, Decoded};
use crate::memory::{Place, mask};
use crate::operand::{self, Operand, Part};
use crate::segment::CodeSize;
use crate::string::{self, StringOp};
use crate::vector;
use crate::{Context, Fault};

/// An instruction that was carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completed {
    /// Where the guest goes on: after the instruction, or still at it when a repeated string instruction has used up
    /// its budget, as after an interrupt between two elements.
    pub next_rip: u64,
}

/// Carries out the instruction at RIP, which the caller then moves to [`Completed::next_rip`].
///
/// A repeated string instruction goes on for up to `budget` elements (zero counts as one), and for a single one under
/// RFLAGS.TF, since the single-step trap comes after each.
///
/// # Errors
/// See [`Fault`], which also says what is left unchanged.
pub fn step<C: Context>(context: &mut C, budget: u32) -> Result<Completed, Fault> {
    let decoded = fetch::decode(context)?;
    let mnemonic = decoded.instruction.mnemonic();
    if let Some(outcome) = vector::step(context, &decoded) {
        return outcome.map(|()| Completed { next_rip: decoded.next_rip });
    }
    if let Some(op) = StringOp::of(mnemonic) {
        return string::step(context, &decoded, op, budget);
    }
    match mnemonic {
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movnti => mov(context, &decoded, |value, _| value)?,
        Mnemonic::Movsx | Mnemonic::Movsxd => mov(context, &decoded, alu::sign_extend)?,
        Mnemonic::Movbe => mov(context, &decoded, |value, size| value.swap_bytes() >> (64 - 8 * u32::from(size)))?,
        Mnemonic::Cmp => compare(context, &decoded, |left, right, size| alu::subtract(left, right, 0, size).1)?,
        Mnemonic::Test => compare(context, &decoded, |left, right, size| alu::logic(left & right, size).1)?,
        Mnemonic::Xchg => exchange(context, &decoded)?,
        Mnemonic::Xadd => exchange_and_add(context, &decoded)?,
        Mnemonic::Cmpxchg => compare_and_exchange(context, &decoded)?,
        Mnemonic::Cmpxchg8b => compare_and_exchange_8_bytes(context, &decoded)?,
        Mnemonic::Push => push(context, &decoded)?,
        Mnemonic::Pop => pop(context, &decoded)?,
        _ => by_family(context, &decoded)?,
    }
    Ok(Completed { next_rip: decoded.next_rip })
}

/// The instructions that come in groups of one shape.
fn by_family<C: Context>(context: &mut C, decoded: &Decoded) -> Result<(), Fault> {
    let mnemonic = decoded.instruction.mnemonic();
    if let Some(op) = binary_of(mnemonic) {
        binary(context, decoded, op)
    } else if let Some(op) = unary_of(mnemonic) {
        unary(context, decoded, op)
    } else if let Some(op) = shift_of(mnemonic) {
        shift(context, decoded, op)
    } else if let Some(op) = bit_of(mnemonic) {
        bit_test(context, decoded, op)
    } else if let Some(code) = set_condition_of(mnemonic) {
        set_on_condition(context, decoded, code)
    } else if let Some(code) = move_condition_of(mnemonic) {
        move_on_condition(context, decoded, code)
    } else {
        Err(decoded.unsupported())
    }
}

fn set_status<C: Context>(context: &mut C, status: u64) {
    let flags = context.rflags() & !STATUS | status & STATUS;
    context.set_rflags(flags);
}

/// MOV and its relatives: `convert` makes the destination's value of the source's and of the source's size.
fn mov<C: Context>(context: &mut C, decoded: &Decoded, convert: fn(u64, u8) -> u64) -> Result<(), Fault> {
    let source = operand::resolve(context, decoded, 1, Access::Read)?;
    let destination = operand::resolve(context, decoded, 0, Access::Write)?;
    // A segment register resolves to its selector: loading one is not done here.
    if matches!(destination, Operand::Value(_)) {
        return Err(decoded.unsupported());
    }
    let value = source.read(context)?;
    destination.write(context, convert(value, source.size()))
}

fn binary<C: Context>(context: &mut C, decoded: &Decoded, op: Binary) -> Result<(), Fault> {
    let source = operand::resolve(context, decoded, 1, Access::Read)?;
    let destination = operand::resolve(context, decoded, 0, Access::Write)?;
    let right = source.read(context)?;
    let (flags, size) = (context.rflags(), destination.size());
    let is_locked = decoded.instruction.has_lock_prefix();
    let status = destination.update(context, is_locked, |left| op.apply(left, right, size, flags))?;
    set_status(context, status);
    Ok(())
}

fn unary<C: Context>(context: &mut C, decoded: &Decoded, op: Unary) -> Result<(), Fault> {
    let destination = operand::resolve(context, decoded, 0, Access::Write)?;
    let (flags, size) = (context.rflags(), destination.size());
    let is_locked = decoded.instruction.has_lock_prefix();
    let status = destination.update(context, is_locked, |value| op.apply(value, size, flags))?;
    set_status(context, status);
    Ok(())
}

fn shift<C: Context>(context: &mut C, decoded: &Decoded, op: Shift) -> Result<(), Fault> {
    let count = operand::resolve(context, decoded, 1, Access::Read)?.read(context)?;
    let destination = operand::resolve(context, decoded, 0, Access::Write)?;
    let (flags, size) = (context.rflags(), destination.size());
    let status = destination.update(context, false, |value| op.apply(value, count, size, flags))?;
    set_status(context, status);
    Ok(())
}

/// CMP and TEST: `status` makes the flags of both values and their size.
fn compare<C: Context>(context: &mut C, decoded: &Decoded, status: fn(u64, u64, u8) -> u64) -> Result<(), Fault> {
    let left = operand::resolve(context, decoded, 0, Access::Read)?;
    let right = operand::resolve(context, decoded, 1, Access::Read)?;
    let values = (left.read(context)?, right.read(context)?);
    set_status(context, status(values.0, values.1, left.size()));
    Ok(())
}

/// BT, BTS, BTR, BTC. A register's bit offset is signed and reaches beyond a memory operand; an immediate's does not.
fn bit_test<C: Context>(context: &mut C, decoded: &Decoded, op: Option<Bit>) -> Result<(), Fault> {
    let offset = operand::resolve(context, decoded, 1, Access::Read)?;
    let position = offset.read(context)?;
    let displacement = match offset {
        Operand::Register(_) => {
            let size = offset.size();
            let elements = alu::sign_extend(position, size) as i64 >> (8 * u32::from(size)).ilog2();
            (elements as u64).wrapping_mul(u64::from(size))
        }
        _ => 0,
    };
    let access = if op.is_some() { Access::Write } else { Access::Read };
    let base = operand::resolve_displaced(context, decoded, 0, access, displacement)?;
    let bit = 1u64 << (position & (8 * u64::from(base.size()) - 1));
    let was_set = match op {
        None => base.read(context)? & bit != 0,
        Some(op) => {
            let is_locked = decoded.instruction.has_lock_prefix();
            base.update(context, is_locked, |value| (op.apply(value, bit), value & bit != 0))?
        }
    };
    let carry = if was_set { alu::CF } else { 0 };
    let status = context.rflags() & !alu::CF | carry;
    set_status(context, status);
    Ok(())
}

fn set_on_condition<C: Context>(context: &mut C, decoded: &Decoded, code: u8) -> Result<(), Fault> {
    let destination = operand::resolve(context, decoded, 0, Access::Write)?;
    let value = u64::from(alu::condition(code, context.rflags()));
    destination.write(context, value)
}

/// CMOVcc: the source is read whether or not the condition holds, and a 32-bit destination's upper half is cleared.
fn move_on_condition<C: Context>(context: &mut C, decoded: &Decoded, code: u8) -> Result<(), Fault> {
    let source = operand::resolve(context, decoded, 1, Access::Read)?;
    let destination = operand::resolve(context, decoded, 0, Access::Write)?;
    let new = source.read(context)?;
    let value = if alu::condition(code, context.rflags()) { new } else { destination.read(context)? };
    destination.write(context, value)
}

/// XCHG, which locks memory with or without a prefix.
fn exchange<C: Context>(context: &mut C, decoded: &Decoded) -> Result<(), Fault> {
    let left = operand::resolve(context, decoded, 0, Access::Write)?;
    let right = operand::resolve(context, decoded, 1, Access::Write)?;
    let (memory, register) = if matches!(right, Operand::Memory(_)) { (right, left) } else { (left, right) };
    let new = register.read(context)?;
    let old = memory.update(context, true, |old| (new, old))?;
    register.write(context, old)
}

fn exchange_and_add<C: Context>(context: &mut C, decoded: &Decoded) -> Result<(), Fault> {
    let destination = operand::resolve(context, decoded, 0, Access::Write)?;
    let source = operand::resolve(context, decoded, 1, Access::Write)?;
    let addend = source.read(context)?;
    let size = destination.size();
    let is_locked = decoded.instruction.has_lock_prefix();
    let (old, status) = destination.update(context, is_locked, |old| {
        let (sum, status) = alu::add(old, addend, 0, size);
        (sum, (old, status))
    })?;
    let aliases = matches!((destination, source), (Operand::Register(one), Operand::Register(other)) if one == other);
    // With one register as both operands the sum stays (SDM volume 2, XADD: the source is written first).
    if !aliases {
        source.write(context, old)?;
    }
    set_status(context, status);
    Ok(())
}

/// CMPXCHG. Memory is written in any case, with its old value when the comparison fails; a register is then left
/// alone, its upper half included (as measured on an AMD EPYC).
fn compare_and_exchange<C: Context>(context: &mut C, decoded: &Decoded) -> Result<(), Fault> {
    let destination = operand::resolve(context, decoded, 0, Access::Write)?;
    let new = operand::resolve(context, decoded, 1, Access::Read)?.read(context)?;
    let size = destination.size();
    let accumulator = Part::low(Gpr::Rax, size);
    let expected = accumulator.read(context);
    let is_locked = decoded.instruction.has_lock_prefix();
    let old = match destination {
        Operand::Register(part) if part.read(context) != expected => part.read(context),
        _ => destination.update(context, is_locked, |old| (if old == expected { new } else { old }, old))?,
    };
    if old != expected {
        accumulator.write(context, old);
    }
    set_status(context, alu::subtract(expected, old, 0, size).1);
    Ok(())
}

/// CMPXCHG8B: EDX:EAX against memory, ECX:EBX into it; only ZF changes.
fn compare_and_exchange_8_bytes<C: Context>(context: &mut C, decoded: &Decoded) -> Result<(), Fault> {
    let destination = operand::resolve(context, decoded, 0, Access::Write)?;
    let half = |context: &C, gpr| Part::low(gpr, 4).read(context);
    let expected = half(context, Gpr::Rdx) << 32 | half(context, Gpr::Rax);
    let new = half(context, Gpr::Rcx) << 32 | half(context, Gpr::Rbx);
    let is_locked = decoded.instruction.has_lock_prefix();
    let old = destination.update(context, is_locked, |old| (if old == expected { new } else { old }, old))?;
    if old != expected {
        Part::low(Gpr::Rax, 4).write(context, old);
        Part::low(Gpr::Rdx, 4).write(context, old >> 32);
    }
    let zero = if old == expected { alu::ZF } else { 0 };
    let status = context.rflags() & !alu::ZF | zero;
    set_status(context, status);
    Ok(())
}

/// The stack pointer as the stack's address size shows it.
fn stack_pointer<C: Context>(context: &C, decoded: &Decoded) -> Part {
    let size = match decoded.code_size {
        CodeSize::Bits64 => 8,
        _ if context.segment(SegmentName::Ss).is_big() => 4,
        _ => 2,
    };
    Part::low(Gpr::Rsp, size)
}

fn push<C: Context>(context: &mut C, decoded: &Decoded) -> Result<(), Fault> {
    let source = operand::resolve(context, decoded, 0, Access::Read)?;
    let size = match (decoded.instruction.op_kind(0), source) {
        (_, Operand::Register(_) | Operand::Memory(_)) => source.size(),
        (OpKind::Immediate16 | OpKind::Immediate8to16, _) => 2,
        (OpKind::Immediate32 | OpKind::Immediate8to32, _) => 4,
        (OpKind::Immediate32to64 | OpKind::Immediate8to64, _) => 8,
        _ => return Err(decoded.unsupported()),
    };
    let pointer = stack_pointer(context, decoded);
    let top = pointer.read(context).wrapping_sub(u64::from(size)) & mask(pointer.size());
    let stack = Place::new(context, SegmentName::Ss, top, size, Access::Write)?;
    let value = source.read(context)?;
    stack.store(context, value)?;
    pointer.write(context, top);
    Ok(())
}

/// POP. A destination that RSP addresses is relative to its new value, and POP RSP leaves what was popped.
fn pop<C: Context>(context: &mut C, decoded: &Decoded) -> Result<(), Fault> {
    let instruction = &decoded.instruction;
    let size = match instruction.op_kind(0) {
        OpKind::Memory => operand::memory_bytes(instruction.memory_size()),
        _ => Part::of(instruction.op_register(0)).map(Part::size),
    };
    let size = size.ok_or(decoded.unsupported())?;
    let pointer = stack_pointer(context, decoded);
    let top = pointer.read(context);
    let stack = Place::new(context, SegmentName::Ss, top, size, Access::Read)?;
    let from_stack = matches!(instruction.memory_base(), Register::RSP | Register::ESP);
    let displacement = if from_stack { u64::from(size) } else { 0 };
    let destination = operand::resolve_displaced(context, decoded, 0, Access::Write, displacement)?;
    let value = stack.load(context)?;
    if let Operand::Memory(_) = destination {
        destination.write(context, value)?;
    }
    pointer.write(context, top.wrapping_add(u64::from(size)));
    if let Operand::Register(part) = destination {
        part.write(context, value);
    }
    Ok(())
}

const fn binary_of(mnemonic: Mnemonic) -> Option<Binary> {
    Some(match mnemonic {
        Mnemonic::Add => Binary::Add,
        Mnemonic::Or => Binary::Or,
        Mnemonic::Adc => Binary::Adc,
        Mnemonic::Sbb => Binary::Sbb,
        Mnemonic::And => Binary::And,
        Mnemonic::Sub => Binary::Sub,
        Mnemonic::Xor => Binary::Xor,
        _ => return None,
    })
}

const fn unary_of(mnemonic: Mnemonic) -> Option<Unary> {
    Some(match mnemonic {
        Mnemonic::Inc => Unary::Inc,
        Mnemonic::Dec => Unary::Dec,
        Mnemonic::Neg => Unary::Neg,
        Mnemonic::Not => Unary::Not,
        _ => return None,
    })
}

const fn shift_of(mnemonic: Mnemonic) -> Option<Shift> {
    Some(match mnemonic {
        Mnemonic::Rol => Shift::Rol,
        Mnemonic::Ror => Shift::Ror,
        Mnemonic::Rcl => Shift::Rcl,
        Mnemonic::Rcr => Shift::Rcr,
        Mnemonic::Shl | Mnemonic::Sal => Shift::Shl,
        Mnemonic::Shr => Shift::Shr,
        Mnemonic::Sar => Shift::Sar,
        _ => return None,
    })
}

/// What a bit test does besides testing.
const fn bit_of(mnemonic: Mnemonic) -> Option<Option<Bit>> {
    Some(match mnemonic {
        Mnemonic::Bt => None,
        Mnemonic::Bts => Some(Bit::Set),
        Mnemonic::Btr => Some(Bit::Reset),
        Mnemonic::Btc => Some(Bit::Complement),
        _ => return None,
    })
}

const fn set_condition_of(mnemonic: Mnemonic) -> Option<u8> {
    Some(match mnemonic {
        Mnemonic::Seto => 0,
        Mnemonic::Setno => 1,
        Mnemonic::Setb => 2,
        Mnemonic::Setae => 3,
        Mnemonic::Sete => 4,
        Mnemonic::Setne => 5,
        Mnemonic::Setbe => 6,
        Mnemonic::Seta => 7,
        Mnemonic::Sets => 8,
        Mnemonic::Setns => 9,
        Mnemonic::Setp => 10,
        Mnemonic::Setnp => 11,
        Mnemonic::Setl => 12,
        Mnemonic::Setge => 13,
        Mnemonic::Setle => 14,
        Mnemonic::Setg => 15,
        _ => return None,
    })
}

const fn move_condition_of(mnemonic: Mnemonic) -> Option<u8> {
    Some(match mnemonic {
        Mnemonic::Cmovo => 0,
        Mnemonic::Cmovno => 1,
        Mnemonic::Cmovb => 2,
        Mnemonic::Cmovae => 3,
        Mnemonic::Cmove => 4,
        Mnemonic::Cmovne => 5,
        Mnemonic::Cmovbe => 6,
        Mnemonic::Cmova => 7,
        Mnemonic::Cmovs => 8,
        Mnemonic::Cmovns => 9,
        Mnemonic::Cmovp => 10,
        Mnemonic::Cmovnp => 11,
        Mnemonic::Cmovl => 12,
        Mnemonic::Cmovge => 13,
        Mnemonic::Cmovle => 14,
        Mnemonic::Cmovg => 15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
