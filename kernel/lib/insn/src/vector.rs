//! MOV of vector registers, by which compilers copy memory and which so reaches devices: whole registers, and their low 4
//! or 8 bytes; in SSE's encoding, which leaves what is above a register's 16 bytes, and in AVX's, which clears it.
//!
//! APM volume 4, chapters 1.3 and 2; SDM volume 2, under each instruction. Which part of memory a processor reads or writes
//! first is its own affair (SDM volume 3, 10.1.1): here it is eight bytes at a time, from the first on.

use alloc::vec::Vec;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use vcpu::Access;

use crate::fetch::Decoded;
use crate::memory::Place;
use crate::operand;
use crate::{Context, Fault};

/// The bytes of a register: YMM, whose first half is XMM.
pub const VECTOR_BYTES: usize = 32;
const XMM_BYTES: usize = 16;
/// What is read or written at a time.
const PIECE_BYTES: usize = 8;

/// Whose encoding an instruction has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Set {
    Sse,
    Avx,
}

/// Carries out a move between a vector register and memory; `None` where the instruction is no such.
///
/// # Errors
/// As [`crate::step`].
pub(crate) fn step<C: Context>(context: &mut C, decoded: &Decoded) -> Option<Result<(), Fault>> {
    let instruction = &decoded.instruction;
    let (set, part_bytes) = of(instruction.mnemonic())?;
    // AVX-512 has masks.
    if instruction.op_count() != 2 || instruction.op_mask() != Register::None {
        return None;
    }
    match [0, 1].map(|operand| instruction.op_kind(operand)) {
        [OpKind::Register, OpKind::Memory] => {
            let (number, bytes) = register(instruction, 0)?;
            Some(load(context, decoded, number, part_bytes.unwrap_or(bytes), set))
        }
        [OpKind::Memory, OpKind::Register] => {
            let (number, bytes) = register(instruction, 1)?;
            Some(store(context, decoded, number, part_bytes.unwrap_or(bytes)))
        }
        _ => None,
    }
}

fn load<C: Context>(context: &mut C, decoded: &Decoded, number: usize, bytes: usize, set: Set) -> Result<(), Fault> {
    let pieces = pieces(context, decoded, bytes, Access::Read)?;
    let mut value = [0; VECTOR_BYTES];
    for (place, part) in pieces.iter().zip(value[..bytes].chunks_mut(PIECE_BYTES)) {
        let piece = place.load(context)?.to_le_bytes();
        part.copy_from_slice(&piece[..part.len()]);
    }
    match set {
        Set::Sse => {
            let above = context.vector(number);
            value[XMM_BYTES..].copy_from_slice(&above[XMM_BYTES..]);
            context.set_vector(number, value);
        }
        Set::Avx => context.replace_vector(number, value),
    }
    Ok(())
}

fn store<C: Context>(context: &mut C, decoded: &Decoded, number: usize, bytes: usize) -> Result<(), Fault> {
    let pieces = pieces(context, decoded, bytes, Access::Write)?;
    let value = context.vector(number);
    for (place, part) in pieces.iter().zip(value[..bytes].chunks(PIECE_BYTES)) {
        let mut piece = [0; PIECE_BYTES];
        piece[..part.len()].copy_from_slice(part);
        place.store(context, u64::from_le_bytes(piece))?;
    }
    Ok(())
}

/// The memory operand, checked as a whole before any of it is used.
fn pieces<C: Context>(context: &mut C, decoded: &Decoded, bytes: usize, access: Access) -> Result<Vec<Place>, Fault> {
    let piece = |at: usize| operand::piece(context, decoded, at as u64, bytes.min(PIECE_BYTES) as u8, access);
    (0..bytes).step_by(PIECE_BYTES).map(piece).collect()
}

/// Which of the first 16 vector registers an operand is, and how many bytes it has; `None` for AVX-512's.
fn register(instruction: &Instruction, operand: u32) -> Option<(usize, usize)> {
    let register = instruction.op_register(operand);
    [(Register::XMM0, XMM_BYTES), (Register::YMM0, VECTOR_BYTES)].into_iter().find_map(|(first, bytes)| {
        let number = (register as usize).checked_sub(first as usize)?;
        (number < 16).then_some((number, bytes))
    })
}

/// Whose encoding it is where an instruction moves a register's low bytes, and how many, where these are not all.
fn of(mnemonic: Mnemonic) -> Option<(Set, Option<usize>)> {
    Some(match mnemonic {
        Mnemonic::Movaps
        | Mnemonic::Movapd
        | Mnemonic::Movups
        | Mnemonic::Movupd
        | Mnemonic::Movdqa
        | Mnemonic::Movdqu
        | Mnemonic::Lddqu
        | Mnemonic::Movntdqa
        | Mnemonic::Movntdq
        | Mnemonic::Movntps
        | Mnemonic::Movntpd => (Set::Sse, None),
        Mnemonic::Movss | Mnemonic::Movd => (Set::Sse, Some(4)),
        Mnemonic::Movsd | Mnemonic::Movq => (Set::Sse, Some(8)),
        Mnemonic::Vmovaps
        | Mnemonic::Vmovapd
        | Mnemonic::Vmovups
        | Mnemonic::Vmovupd
        | Mnemonic::Vmovdqa
        | Mnemonic::Vmovdqu
        | Mnemonic::Vlddqu
        | Mnemonic::Vmovntdqa
        | Mnemonic::Vmovntdq
        | Mnemonic::Vmovntps
        | Mnemonic::Vmovntpd => (Set::Avx, None),
        Mnemonic::Vmovss | Mnemonic::Vmovd => (Set::Avx, Some(4)),
        Mnemonic::Vmovsd | Mnemonic::Vmovq => (Set::Avx, Some(8)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
