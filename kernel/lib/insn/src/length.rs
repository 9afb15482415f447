//! Where an intercepted instruction ends, for processors that do not say so: SVM without next-RIP, and at task switches.
//!
//! [`next_rip`] is on the path of each CPUID, MSR and HLT exit there, so the plain encodings are compared as bytes
//! after one page walk; only prefixed ones reach the decoder in `fetch`.

use addr::{Gpa, PAGE_BYTES};
use iced_x86::{Mnemonic, Register};
use vcpu::{Access, Exit, Paging, SegmentName};

use crate::fetch;
use crate::operand::Part;
use crate::paging::{self, Privilege};
use crate::segment::CodeSize;
use crate::{Context, Fault};

/// The instructions that are intercepted and completed without being decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opcode {
    /// CPUID.
    Cpuid,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// HLT.
    Hlt,
    /// VMMCALL or VMCALL.
    Hypercall,
    /// XSETBV.
    Xsetbv,
    /// PAUSE.
    Pause,
    /// WBINVD, INVD or WBNOINVD.
    CacheFlush,
    /// What can switch tasks: CALL, JMP, IRET and the INTs.
    Transfer,
}

impl Opcode {
    /// The instruction behind an exit, or `None` for an exit that has no instruction to complete, or more than one
    /// candidate.
    pub const fn of(exit: &Exit) -> Option<Self> {
        Some(match exit {
            Exit::Cpuid { .. } => Self::Cpuid,
            Exit::MsrRead { .. } => Self::Rdmsr,
            Exit::MsrWrite { .. } => Self::Wrmsr,
            Exit::Halt => Self::Hlt,
            Exit::Hypercall => Self::Hypercall,
            Exit::SetXcr { .. } => Self::Xsetbv,
            Exit::Pause => Self::Pause,
            Exit::CacheFlush => Self::CacheFlush,
            Exit::TaskSwitch { .. } => Self::Transfer,
            _ => return None,
        })
    }

    /// The length in bytes when `code`, little-endian, starts with a plain encoding of this (APM volume 3).
    const fn plain_length(self, code: u64) -> Option<u64> {
        let (two, three) = (code as u16, code as u32 & 0xff_ffff);
        let length = match self {
            Self::Cpuid if two == 0xa20f => 2,
            Self::Rdmsr if two == 0x320f => 2,
            Self::Wrmsr if two == 0x300f => 2,
            Self::Hlt if code as u8 == 0xf4 => 1,
            Self::Hypercall if three == 0xd9_010f || three == 0xc1_010f => 3,
            Self::Xsetbv if three == 0xd1_010f => 3,
            Self::Pause if two == 0x90f3 => 2,
            Self::CacheFlush if two == 0x090f || two == 0x080f => 2,
            Self::CacheFlush if three == 0x09_0ff3 => 3,
            _ => return None,
        };
        Some(length)
    }

    const fn is(self, mnemonic: Mnemonic) -> bool {
        match self {
            Self::Cpuid => matches!(mnemonic, Mnemonic::Cpuid),
            Self::Rdmsr => matches!(mnemonic, Mnemonic::Rdmsr),
            Self::Wrmsr => matches!(mnemonic, Mnemonic::Wrmsr),
            Self::Hlt => matches!(mnemonic, Mnemonic::Hlt),
            Self::Hypercall => matches!(mnemonic, Mnemonic::Vmmcall | Mnemonic::Vmcall),
            Self::Xsetbv => matches!(mnemonic, Mnemonic::Xsetbv),
            Self::Pause => matches!(mnemonic, Mnemonic::Pause),
            Self::CacheFlush => matches!(mnemonic, Mnemonic::Wbinvd | Mnemonic::Invd | Mnemonic::Wbnoinvd),
            Self::Transfer => matches!(
                mnemonic,
                Mnemonic::Call
                    | Mnemonic::Jmp
                    | Mnemonic::Iret
                    | Mnemonic::Iretd
                    | Mnemonic::Int
                    | Mnemonic::Int1
                    | Mnemonic::Int3
                    | Mnemonic::Into
            ),
        }
    }
}

/// Where the code of an earlier exit lay, so that a guest which exits again and again from one page costs one walk.
///
/// A page table that changed meanwhile is not noticed while the old page still holds the expected instruction at the
/// same offset. The exit itself says which instruction ran, so that only a prefix on it could be missed then; processors
/// with next-RIP, which is all of today's silicon, never come here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodePage {
    paging: Paging,
    linear: u64,
    gpa: Gpa,
}

/// The RIP after the instruction at RIP, wrapped to 32 bits outside 64-bit mode.
///
/// Changes nothing in the guest: the accessed bits of the code's page are the processor's to set, and it has.
///
/// # Errors
/// [`Fault::Unsupported`] when `expected` is not there (another vCPU changed the code), or what its fetch raises.
pub fn next_rip<C: Context>(context: &C, expected: Opcode, page: &mut Option<CodePage>) -> Result<u64, Fault> {
    let code = context.segment(SegmentName::Cs);
    let paging = context.paging();
    let code_size = CodeSize::of(&paging, code);
    let rip = context.rip();
    let start = match code_size {
        CodeSize::Bits64 => rip,
        CodeSize::Bits16 | CodeSize::Bits32 => code_size.wrap(code.base.wrapping_add(rip)),
    };
    let (linear, offset) = (start - start % PAGE_BYTES, start % PAGE_BYTES);
    if let Some(page) = page
        && (page.linear, page.paging) == (linear, paging)
        && offset <= PAGE_BYTES - 8
        && let Some(bytes) = context.ram_u64(page.gpa.wrapping_add(offset))
        && let Some(length) = expected.plain_length(bytes)
    {
        return Ok(code_size.wrap(rip.wrapping_add(length)));
    }
    if offset <= PAGE_BYTES - 8 {
        let gpa: Gpa = paging::probe(context, start, Access::Fetch, Privilege::of(&paging))?;
        *page = Some(CodePage { paging, linear, gpa: gpa.align_down(PAGE_BYTES) });
        if let Some(length) = context.ram_u64(gpa).and_then(|bytes| expected.plain_length(bytes)) {
            return Ok(code_size.wrap(rip.wrapping_add(length)));
        }
    }
    let decoded = fetch::decode(context)?;
    if expected.is(decoded.instruction.mnemonic()) { Ok(decoded.next_rip) } else { Err(decoded.unsupported()) }
}

/// What the MOV to CR4 at RIP writes, and the RIP after it.
///
/// # Errors
/// [`Fault::Unsupported`] when there is another instruction (another vCPU changed the code), or what its fetch raises.
pub fn cr4_write<C: Context>(context: &C) -> Result<(u64, u64), Fault> {
    let decoded = fetch::decode(context)?;
    let instruction = &decoded.instruction;
    let is_write = instruction.mnemonic() == Mnemonic::Mov && instruction.op0_register() == Register::CR4;
    match Part::of(instruction.op1_register()) {
        Some(source) if is_write => Ok((source.read(context), decoded.next_rip)),
        _ => Err(decoded.unsupported()),
    }
}

#[cfg(test)]
mod tests;
