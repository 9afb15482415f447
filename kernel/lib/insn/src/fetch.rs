//! Fetches and decodes the instruction at RIP.
//!
//! [`decode`] gives a [`Decoded`] to `step` and to the slow path of `length`. It reads a second page only when the
//! instruction reaches into it, since that page may not be mapped.

use addr::PAGE_BYTES;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use vcpu::{Access, Exception, SegmentName};

use crate::paging::{self, Privilege, is_canonical};
use crate::segment::CodeSize;
use crate::{Context, Fault, INSTRUCTION_BYTES_MAX};

/// An instruction with what it was decoded from.
pub(crate) struct Decoded {
    pub(crate) instruction: Instruction,
    pub(crate) code_size: CodeSize,
    pub(crate) next_rip: u64,
    bytes: [u8; INSTRUCTION_BYTES_MAX],
}

impl Decoded {
    /// The fault of an instruction that nobody carries out.
    pub(crate) const fn unsupported(&self) -> Fault {
        Fault::Unsupported(self.bytes)
    }
}

/// Builds the decoder's tables, which it else does at its first use, on some vCPU's first exit. For start-up.
pub fn warm_up() {
    // The result does not matter; black_box keeps the optimiser from seeing that.
    core::hint::black_box(Decoder::new(64, &[0x90], DecoderOptions::NONE).decode());
}

/// Decodes the instruction at RIP.
///
/// # Errors
/// What the fetch raises; #UD for bytes that are no instruction, misuse of LOCK included; #GP(0) past the limit of CS
/// and for an instruction of more than 15 bytes.
pub(crate) fn decode<C: Context>(context: &C) -> Result<Decoded, Fault> {
    let code = context.segment(SegmentName::Cs);
    let paging = context.paging();
    let code_size = CodeSize::of(&paging, code);
    let rip = context.rip();
    let (start, available) = if code_size == CodeSize::Bits64 {
        (rip, if is_canonical(&paging, rip) { INSTRUCTION_BYTES_MAX } else { 0 })
    } else {
        let within = (u64::from(code.limit) + 1).saturating_sub(rip).min(INSTRUCTION_BYTES_MAX as u64);
        (code_size.wrap(code.base.wrapping_add(rip)), within as usize)
    };
    let mut bytes = [0; INSTRUCTION_BYTES_MAX];
    let in_page = (PAGE_BYTES - start % PAGE_BYTES).min(available as u64) as usize;
    if in_page == 0 {
        return Err(Exception::PROTECTION.into());
    }
    copy_code(context, start, &mut bytes[..in_page])?;
    let mut outcome = decode_bytes(code_size, rip, &bytes[..in_page]);
    if outcome.is_err_and(|error| error == DecoderError::NoMoreBytes) && in_page < available {
        let second = code_size.wrap(start.wrapping_add(in_page as u64));
        copy_code(context, second, &mut bytes[in_page..available])?;
        outcome = decode_bytes(code_size, rip, &bytes[..available]);
    }
    match outcome {
        Ok(instruction) => {
            let next_rip = code_size.wrap(rip.wrapping_add(instruction.len() as u64));
            Ok(Decoded { instruction, code_size, next_rip, bytes })
        }
        Err(DecoderError::NoMoreBytes) => Err(Exception::PROTECTION.into()),
        Err(_) => Err(Exception::UNDEFINED.into()),
    }
}

/// The instruction, or `NoMoreBytes` also for one that does not end within 15 bytes.
fn decode_bytes(code_size: CodeSize, rip: u64, bytes: &[u8]) -> Result<Instruction, DecoderError> {
    let mut decoder = Decoder::with_ip(code_size.bits(), bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok(instruction),
        // The decoder calls an overlong instruction invalid, but has then used all it may.
        DecoderError::InvalidInstruction if decoder.position() < INSTRUCTION_BYTES_MAX => {
            Err(DecoderError::InvalidInstruction)
        }
        _ => Err(DecoderError::NoMoreBytes),
    }
}

/// Copies bytes of one page with the rights of an instruction fetch.
fn copy_code<C: Context>(context: &C, start: u64, into: &mut [u8]) -> Result<(), Fault> {
    let gpa = paging::probe(context, start, Access::Fetch, Privilege::of(&context.paging()))?;
    if context.ram(gpa, into) { Ok(()) } else { Err(Fault::Unsupported([0xff; INSTRUCTION_BYTES_MAX])) }
}
