//! Decodes and carries out the guest instruction behind an MMIO or a string-I/O exit, finds the length of an
//! intercepted one, switches tasks, and walks the guest's page tables; pure, over the [`Context`] that its caller
//! implements.
//!
//! [`step()`] is the emulator, [`next_rip`] the length finder for processors without next-RIP, [`task`] the task switch,
//! [`paging`] the walk. `iced-x86` decodes, the modules beside this one execute, and `machine` calls both from its exit
//! handlers.
//!
//! Sources, cited as APM and SDM: AMD64 Architecture Programmer's Manual (24592 rev. 3.23, 24593 rev. 3.42, 24594
//! rev. 3.36) and Intel 64 and IA-32 Software Developer's Manual (325462-085).
//!
//! What [`step()`] carries out, with every operand form, size and address mode of it: MOV (also moffs; from but not to
//! a segment register), MOVZX, MOVSX, MOVSXD, MOVBE, MOVNTI, XCHG, CMPXCHG, CMPXCHG8B, XADD, ADD, OR, ADC, SBB, AND,
//! SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT, BT, BTS, BTR, BTC, SHL, SHR, SAR, ROL, ROR, RCL, RCR, SETcc, CMOVcc, PUSH
//! and POP (not of segment registers), and MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS with their repeat prefixes.
//! Anything else is [`Fault::Unsupported`]: SSE and AVX moves, x87, CMPXCHG16B, BMI, MUL and DIV, and branches
//! through memory.
//!
//! What it leaves to others: breakpoints, RFLAGS.RF and the single-step trap (`Vcpu::retire`), the I/O
//! permission bitmap (the processor checks it before a string-I/O exit), supervisor protection keys, linear-address
//! masking and shadow stacks (CR4.PKS, CR4.LAM_SUP and CR4.CET: not to be offered to a guest).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod alu;
mod fetch;
mod length;
mod memory;
mod operand;
pub mod paging;
mod segment;
mod step;
mod string;
pub mod task;
#[cfg(test)]
mod testing;
mod vector;

use addr::Gpa;
use vcpu::{Access, Exception, Gpr, Paging, Segment, SegmentName};

pub use fetch::warm_up;
pub use length::{CodePage, Opcode, cr4_write, next_rip};
pub use step::{Completed, step};
pub use vector::VECTOR_BYTES;

/// The bytes of the longest instruction (APM volume 3, 1.1).
pub const INSTRUCTION_BYTES_MAX: usize = 15;

/// What the crate needs of a vCPU and of the machine around it.
///
/// Physical accesses never cross a page, are of 1, 2, 4 or 8 bytes, and may be misaligned.
pub trait Context {
    /// A general register, all 64 bits.
    fn gpr(&self, gpr: Gpr) -> u64;

    /// Replaces all 64 bits of a general register.
    fn set_gpr(&mut self, gpr: Gpr, value: u64);

    /// A vector register, YMM0 to YMM15: XMM is its first half.
    fn vector(&mut self, number: usize) -> [u8; VECTOR_BYTES];

    /// Replaces one, and leaves what is above it.
    fn set_vector(&mut self, number: usize, value: [u8; VECTOR_BYTES]);

    /// Replaces one, and clears what is above it.
    fn replace_vector(&mut self, number: usize, value: [u8; VECTOR_BYTES]);

    /// RIP: the instruction that exited.
    fn rip(&self) -> u64;

    /// RFLAGS.
    fn rflags(&self) -> u64;

    /// Replaces RFLAGS. Only CF, PF, AF, ZF, SF and OF ever differ from what [`rflags`](Context::rflags) said.
    fn set_rflags(&mut self, value: u64);

    /// A segment register. In 64-bit mode only the bases of FS and GS and the attributes of CS count.
    fn segment(&self, name: SegmentName) -> Segment;

    /// The control registers and the privilege level.
    fn paging(&self) -> Paging;

    /// MAXPHYADDR as the guest's CPUID shows it (leaf 8000_0008, EAX bits 7:0): page-table address bits from here up to
    /// bit 51 are reserved.
    fn physical_address_bits(&self) -> u32;

    /// PKRU, asked for only where CR4.PKE is set. The default allows everything, which is right for a machine that
    /// offers no protection keys.
    fn pkru(&self) -> u32 {
        0
    }

    /// Whether an operand in memory, at most a page's rest, can be read and written now: asked for each before the first is.
    ///
    /// # Errors
    /// [`Unavailable`] when it cannot.
    fn check(&self, _gpa: Gpa, _size: u8) -> Result<(), Unavailable> {
        Ok(())
    }

    /// Reads RAM or a device, zero-extended.
    ///
    /// # Errors
    /// [`Unavailable`] when the access cannot be done now. Nothing may have changed.
    fn load(&mut self, gpa: Gpa, size: u8) -> Result<u64, Unavailable>;

    /// Writes the low `size` bytes of `value` to RAM or a device.
    ///
    /// # Errors
    /// [`Unavailable`] when the access cannot be done now. Nothing may have changed.
    fn store(&mut self, gpa: Gpa, size: u8, value: u64) -> Result<(), Unavailable>;

    /// In RAM, atomically replaces `expected` by `new`, and says whether `expected` was there. For a device, stores
    /// `new` and says true: its owner serialises accesses, and a second read could have side effects. Locked
    /// instructions and the accessed and dirty bits of page tables use it. It dirties the page as a store does.
    ///
    /// # Errors
    /// [`Unavailable`] when the access cannot be done now. Nothing may have changed.
    fn compare_exchange(&mut self, gpa: Gpa, size: u8, expected: u64, new: u64) -> Result<bool, Unavailable>;

    /// Copies plain RAM (or ROM) of one page, for code. False when any of it is something else.
    fn ram(&self, gpa: Gpa, into: &mut [u8]) -> bool;

    /// Eight bytes of plain RAM of one page, for page tables and code: little-endian, and read at once where aligned.
    /// `None` when it is something else.
    fn ram_u64(&self, gpa: Gpa) -> Option<u64>;

    /// Reads a port, 1, 2 or 4 bytes wide.
    fn port_in(&mut self, port: u16, size: u8) -> u32;

    /// Writes a port, 1, 2 or 4 bytes wide.
    fn port_out(&mut self, port: u16, size: u8, value: u32);

    /// Notes an operand in memory, by linear address: all its checks are passed, and unless another operand faults, it is
    /// read or written. For breakpoints on data.
    fn touch(&mut self, _linear: u64, _size: u8, _access: Access) {}

    /// Whether memory was asked for that is not here yet, page tables too: what followed from that does not count.
    fn lacks_memory(&self) -> bool {
        false
    }

    /// Whether the instruction has met a breakpoint, which ends a repeated string instruction for now.
    fn is_trapped(&self) -> bool {
        false
    }
}

/// The context cannot do a physical access at the moment.
///
/// A device access that the same instruction made before is not undone: refuse where the machine stops, or where the
/// instruction may run again from its start (or, for a string, from the element at hand).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unavailable;

/// Why an instruction was not completed. RIP and the flags are as they were; the general registers too, except that a
/// repeated string instruction leaves RCX, RSI and RDI at the element that faulted, as the processor does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The guest gets this exception, with RIP at the instruction.
    Exception(Exception),
    /// The [`Context`] could not do a physical access: run the vCPU again once it can.
    Unavailable,
    /// An instruction that this crate does not carry out, or not the one that was expected: its bytes, 0xff where
    /// there is no RAM and zeros past what could be fetched.
    Unsupported([u8; INSTRUCTION_BYTES_MAX]),
}

impl From<Exception> for Fault {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl From<Unavailable> for Fault {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}
