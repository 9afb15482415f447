use proptest::prelude::*;

use super::*;

const SIZES: [u8; 4] = [1, 2, 4, 8];

/// CF, AF and OF by wide arithmetic, which the implementation does not use.
fn wide_flags(left: u64, right: u64, carry: u64, size: u8, sign: i128) -> u64 {
    let bits = 8 * u32::from(size);
    let signed = |value: u64| sign_extend(value, size) as i64 as i128;
    let unsigned = |value: u64| i128::from(value & mask(size));
    let carry_in = i128::from(carry);
    let total = unsigned(left) + sign * (unsigned(right) + carry_in);
    let nibble = (unsigned(left) & 0xf) + sign * ((unsigned(right) & 0xf) + carry_in);
    let exact = signed(left) + sign * (signed(right) + carry_in);
    let mut flags = 0;
    if !(0..1 << bits).contains(&total) {
        flags |= CF;
    }
    if !(0..16).contains(&nibble) {
        flags |= AF;
    }
    if !(-(1 << (bits - 1))..1 << (bits - 1)).contains(&exact) {
        flags |= OF;
    }
    flags
}

proptest! {
    #[test]
    fn sums_and_differences(left: u64, right: u64, carry in 0u64..2, size in prop::sample::select(&SIZES[..])) {
        let (sum, flags) = add(left, right, carry, size);
        prop_assert_eq!(sum, left.wrapping_add(right).wrapping_add(carry) & mask(size));
        prop_assert_eq!(flags & (CF | AF | OF), wide_flags(left, right, carry, size, 1));
        let (difference, flags) = subtract(left, right, carry, size);
        prop_assert_eq!(difference, left.wrapping_sub(right).wrapping_sub(carry) & mask(size));
        prop_assert_eq!(flags & (CF | AF | OF), wide_flags(left, right, carry, size, -1));
        prop_assert_eq!(flags & ZF != 0, difference == 0);
        prop_assert_eq!(flags & SF != 0, difference >> (8 * size - 1) & 1 == 1);
        prop_assert_eq!(flags & PF != 0, (difference & 0xff).count_ones() % 2 == 0);
    }

    #[test]
    fn shifts_of_32_bits(value: u32, count in 0u32..32) {
        let apply = |shift: Shift| shift.apply(value.into(), count.into(), 4, 0).0 as u32;
        prop_assert_eq!(apply(Shift::Shl), value << count);
        prop_assert_eq!(apply(Shift::Shr), value >> count);
        prop_assert_eq!(apply(Shift::Sar), (value as i32 >> count) as u32);
        prop_assert_eq!(apply(Shift::Rol), value.rotate_left(count));
        prop_assert_eq!(apply(Shift::Ror), value.rotate_right(count));
    }

    #[test]
    fn rotations_undo_each_other(
        value: u64,
        count: u64,
        flags in 0u64..2,
        size in prop::sample::select(&SIZES[..]),
    ) {
        let (rotated, carried) = Shift::Rcl.apply(value, count, size, flags);
        let (back, carry) = Shift::Rcr.apply(rotated, count, size, carried);
        prop_assert_eq!((back, carry & CF), (value & mask(size), flags & CF));
    }
}

#[test]
fn known_sums() {
    assert_eq!(add(0x7f, 1, 0, 1), (0x80, SF | OF | AF));
    assert_eq!(add(0xff, 1, 0, 1), (0, CF | ZF | AF | PF));
    assert_eq!(add(u64::MAX, 0, 1, 8), (0, CF | ZF | AF | PF));
    assert_eq!(subtract(0, 1, 0, 4), (0xffff_ffff, CF | SF | AF | PF));
    assert_eq!(subtract(0x8000, 1, 0, 2), (0x7fff, OF | AF | PF));
    assert_eq!(subtract(5, 4, 1, 1), (0, ZF | PF));
}

#[test]
fn logic_clears_carry_and_overflow() {
    assert_eq!(Binary::And.apply(0xf0, 0x0f, 1, STATUS), (0, ZF | PF));
    assert_eq!(Binary::Or.apply(0x8000, 1, 2, STATUS), (0x8001, SF));
    assert_eq!(Binary::Xor.apply(0x1_0000_0003, 0, 4, STATUS), (3, PF));
}

#[test]
fn carry_goes_in_only_where_it_should() {
    assert_eq!(Binary::Adc.apply(1, 1, 1, CF).0, 3);
    assert_eq!(Binary::Add.apply(1, 1, 1, CF).0, 2);
    assert_eq!(Binary::Sbb.apply(5, 1, 1, CF).0, 3);
    assert_eq!(Binary::Sub.apply(5, 1, 1, CF).0, 4);
}

#[test]
fn unary_keeps_what_it_must() {
    assert_eq!(Unary::Inc.apply(0xff, 1, 0), (0, ZF | AF | PF));
    assert_eq!(Unary::Inc.apply(0x7fff_ffff, 4, CF), (0x8000_0000, CF | OF | SF | AF | PF));
    assert_eq!(Unary::Dec.apply(0, 2, 0), (0xffff, SF | AF | PF));
    assert_eq!(Unary::Neg.apply(0, 4, CF), (0, ZF | PF));
    assert_eq!(Unary::Neg.apply(0x80, 1, 0), (0x80, CF | OF | SF));
    assert_eq!(Unary::Not.apply(0x0f, 1, CF | ZF), (0xf0, CF | ZF));
}

#[test]
fn shift_flags() {
    assert_eq!(Shift::Shl.apply(0x81, 1, 1, 0), (0x02, CF | OF));
    assert_eq!(Shift::Shl.apply(0xc0, 1, 1, 0), (0x80, CF | SF));
    assert_eq!(Shift::Shr.apply(0x81, 1, 1, 0), (0x40, CF | OF));
    assert_eq!(Shift::Sar.apply(0x81, 1, 1, 0), (0xc0, CF | SF | PF));
    assert_eq!(Shift::Rol.apply(0x81, 1, 1, ZF), (0x03, CF | OF | ZF));
    assert_eq!(Shift::Ror.apply(0x01, 1, 1, ZF), (0x80, CF | OF | ZF));
    assert_eq!(Shift::Rcl.apply(0x80, 1, 1, CF | SF), (0x01, CF | OF | SF));
    assert_eq!(Shift::Rcr.apply(0x00, 1, 1, CF), (0x80, OF));
    // A masked count of zero changes nothing; a count of the width does.
    assert_eq!(Shift::Shl.apply(0x81, 32, 1, CF | OF), (0x81, CF | OF));
    assert_eq!(Shift::Rol.apply(0x81, 8, 1, 0).0, 0x81);
    assert_eq!(Shift::Shr.apply(u64::MAX, 63, 8, 0).0, 1);
    assert_eq!(Shift::Shr.apply(u64::MAX, 64, 8, 0), (u64::MAX, 0));
}

#[test]
fn conditions() {
    // Code of the condition that holds with exactly these flags, and so not its complement.
    let cases =
        [(0, OF), (2, CF), (4, ZF), (6, CF), (6, ZF), (8, SF), (10, PF), (12, SF), (12, OF), (14, ZF), (14, SF)];
    for (code, flags) in cases {
        assert!(condition(code, flags) && !condition(code + 1, flags), "{code} {flags:x}");
        assert!(!condition(code, 0) && condition(code + 1, 0), "{code}");
    }
    assert!(!condition(12, SF | OF) && condition(15, SF | OF));
}
