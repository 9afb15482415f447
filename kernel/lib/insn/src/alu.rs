//! Integer arithmetic and its flags, as pure functions of values.
//!
//! Each returns a result and the status flags. Flags that the manuals leave undefined have a fixed value here: AF is
//! clear after logic and shifts, OF after a shift by several is what its last step would give. `step` and `string`
//! apply them to registers and memory.
//!
//! Rules: APM volume 3, chapter 3, under each instruction; SDM volume 1, 3.4.3.1 for the flags.

use crate::memory::mask;

pub(crate) const CF: u64 = 1 << 0;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const OF: u64 = 1 << 11;
/// All six.
pub(crate) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// An instruction with two sources whose result replaces the first.
#[derive(Clone, Copy)]
pub(crate) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

impl Binary {
    /// The result and all six status flags; `flags` gives the carry in.
    pub(crate) const fn apply(self, left: u64, right: u64, size: u8, flags: u64) -> (u64, u64) {
        match self {
            Self::Add => add(left, right, 0, size),
            Self::Adc => add(left, right, flags & CF, size),
            Self::Sub => subtract(left, right, 0, size),
            Self::Sbb => subtract(left, right, flags & CF, size),
            Self::Or => logic(left | right, size),
            Self::And => logic(left & right, size),
            Self::Xor => logic(left ^ right, size),
        }
    }
}

/// An instruction with one operand, which its result replaces.
#[derive(Clone, Copy)]
pub(crate) enum Unary {
    Inc,
    Dec,
    Neg,
    Not,
}

impl Unary {
    /// The result and the status flags, of which `flags` are the old ones: INC and DEC keep CF, NOT keeps all.
    pub(crate) const fn apply(self, value: u64, size: u8, flags: u64) -> (u64, u64) {
        match self {
            Self::Inc => {
                let (result, new) = add(value, 1, 0, size);
                (result, new & !CF | flags & CF)
            }
            Self::Dec => {
                let (result, new) = subtract(value, 1, 0, size);
                (result, new & !CF | flags & CF)
            }
            Self::Neg => subtract(0, value, 0, size),
            Self::Not => (!value & mask(size), flags & STATUS),
        }
    }
}

/// A shift or rotation.
#[derive(Clone, Copy)]
pub(crate) enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}

impl Shift {
    /// The result and the status flags. The count is taken modulo 32, or 64 for 8 bytes; zero changes nothing.
    ///
    /// It goes bit by bit: at most 63 steps, and exact for counts beyond the operand's width.
    pub(crate) const fn apply(self, value: u64, count: u64, size: u8, flags: u64) -> (u64, u64) {
        let count = count & if size == 8 { 0x3f } else { 0x1f };
        let top = top_bit(size);
        let mut result = value & mask(size);
        let mut carry = flags & CF;
        let mut overflow = flags & OF;
        let mut step = 0;
        while step < count {
            let before = result;
            let (low, high) = (before & 1, (before & top != 0) as u64);
            (result, carry) = match self {
                Self::Rol => (before << 1 | high, high),
                Self::Rcl => (before << 1 | carry, high),
                Self::Shl => (before << 1, high),
                Self::Ror => ((before >> 1) | (low * top), low),
                Self::Rcr => ((before >> 1) | (carry * top), low),
                Self::Shr => (before >> 1, low),
                Self::Sar => (before >> 1 | before & top, low),
            };
            result &= mask(size);
            let is_overflow = match self {
                Self::Rol | Self::Rcl | Self::Shl => (result & top != 0) != (carry != 0),
                Self::Ror | Self::Rcr | Self::Shr | Self::Sar => (result & top != 0) != (before & top != 0),
            };
            overflow = if is_overflow { OF } else { 0 };
            step += 1;
        }
        let new = if count == 0 {
            flags & STATUS
        } else if matches!(self, Self::Rol | Self::Ror | Self::Rcl | Self::Rcr) {
            flags & (PF | AF | ZF | SF) | carry | overflow
        } else {
            sign_zero_parity(result, size) | carry | overflow
        };
        (result, new)
    }
}

/// What a bit-test instruction does to the bit that it copied to CF.
#[derive(Clone, Copy)]
pub(crate) enum Bit {
    Set,
    Reset,
    Complement,
}

impl Bit {
    pub(crate) const fn apply(self, value: u64, bit: u64) -> u64 {
        match self {
            Self::Set => value | bit,
            Self::Reset => value & !bit,
            Self::Complement => value ^ bit,
        }
    }
}

/// A condition, by the low four bits of its opcode (SDM volume 1, appendix B).
pub(crate) const fn condition(code: u8, flags: u64) -> bool {
    let (cf, zf, sf, of) = (flags & CF != 0, flags & ZF != 0, flags & SF != 0, flags & OF != 0);
    let holds = match code >> 1 & 7 {
        0 => of,
        1 => cf,
        2 => zf,
        3 => cf || zf,
        4 => sf,
        5 => flags & PF != 0,
        6 => sf != of,
        _ => zf || sf != of,
    };
    holds != (code & 1 != 0)
}

/// `left + right + carry`.
pub(crate) const fn add(left: u64, right: u64, carry: u64, size: u8) -> (u64, u64) {
    let (left, right) = (left & mask(size), right & mask(size));
    let result = left.wrapping_add(right).wrapping_add(carry) & mask(size);
    // What was carried out of each bit position.
    let carries = left & right | (left | right) & !result;
    (
        result,
        carry_flags(carries, size)
            | overflow((left ^ result) & (right ^ result), size)
            | sign_zero_parity(result, size),
    )
}

/// `left - right - borrow`.
pub(crate) const fn subtract(left: u64, right: u64, borrow: u64, size: u8) -> (u64, u64) {
    let (left, right) = (left & mask(size), right & mask(size));
    let result = left.wrapping_sub(right).wrapping_sub(borrow) & mask(size);
    // What was borrowed by each bit position.
    let borrows = !left & right | (!left | right) & result;
    (
        result,
        carry_flags(borrows, size) | overflow((left ^ right) & (left ^ result), size) | sign_zero_parity(result, size),
    )
}

/// A bitwise result.
pub(crate) const fn logic(result: u64, size: u8) -> (u64, u64) {
    (result & mask(size), sign_zero_parity(result, size))
}

/// A value of `size` bytes, sign-extended to 64 bits.
pub(crate) const fn sign_extend(value: u64, size: u8) -> u64 {
    let unused = 64 - 8 * size as u32;
    ((value << unused) as i64 >> unused) as u64
}

const fn top_bit(size: u8) -> u64 {
    1 << (8 * size as u32 - 1)
}

const fn carry_flags(carries: u64, size: u8) -> u64 {
    let cf = if carries & top_bit(size) != 0 { CF } else { 0 };
    let af = if carries & 8 != 0 { AF } else { 0 };
    cf | af
}

const fn overflow(bits: u64, size: u8) -> u64 {
    if bits & top_bit(size) != 0 { OF } else { 0 }
}

const fn sign_zero_parity(result: u64, size: u8) -> u64 {
    let sf = if result & top_bit(size) != 0 { SF } else { 0 };
    let zf = if result & mask(size) == 0 { ZF } else { 0 };
    let pf = if (result as u8).count_ones().is_multiple_of(2) { PF } else { 0 };
    sf | zf | pf
}

#[cfg(test)]
mod tests;
