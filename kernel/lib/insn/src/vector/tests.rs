use vcpu::{Exception, Gpr};

use super::VECTOR_BYTES;
use crate::testing::{DATA, DEVICE, Mock};
use crate::{Fault, step};

/// What register 1 holds.
fn pattern() -> [u8; VECTOR_BYTES] {
    core::array::from_fn(|at| 0x80 + at as u8)
}

/// A processor whose RDI is at an address.
fn at(address: u64) -> Mock {
    let mut mock = Mock::long();
    *mock.reg(Gpr::Rdi) = address;
    mock.vectors[1] = pattern();
    mock
}

/// The register with these bytes below, and these above.
fn register(low: &[u8], above: &[u8]) -> [u8; VECTOR_BYTES] {
    let mut value = [0; VECTOR_BYTES];
    value[..low.len()].copy_from_slice(low);
    value[VECTOR_BYTES - above.len()..].copy_from_slice(above);
    value
}

const LOADED: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn a_load_reads_eight_bytes_at_a_time_and_keeps_what_is_above() {
    for code in [&[0x0f, 0x10, 0x0f][..], &[0x0f, 0x28, 0x0f], &[0x66, 0x0f, 0x6f, 0x0f], &[0xf3, 0x0f, 0x6f, 0x0f]] {
        let mut mock = at(DEVICE);
        mock.device = u64::from_le_bytes(LOADED);
        mock.run(code);
        assert_eq!(mock.accesses, [(0, 8, None), (8, 8, None)], "{code:02x?}");
        assert_eq!(mock.vectors[1], register(&[LOADED, LOADED].concat(), &pattern()[16..]), "{code:02x?}");
        assert!(mock.cleared.is_empty());
    }
}

#[test]
fn a_short_load_clears_the_rest_of_sixteen_bytes() {
    // MOVD, MOVSS, MOVQ by both its codes, MOVSD.
    let codes: [(&[u8], usize); 5] = [
        (&[0x66, 0x0f, 0x6e, 0x0f], 4),
        (&[0xf3, 0x0f, 0x10, 0x0f], 4),
        (&[0x66, 0x48, 0x0f, 0x6e, 0x0f], 8),
        (&[0xf3, 0x0f, 0x7e, 0x0f], 8),
        (&[0xf2, 0x0f, 0x10, 0x0f], 8),
    ];
    for (code, bytes) in codes {
        let mut mock = at(DEVICE);
        mock.device = u64::from_le_bytes(LOADED);
        mock.run(code);
        assert_eq!(mock.accesses, [(0, bytes as u8, None)], "{code:02x?}");
        assert_eq!(mock.vectors[1], register(&LOADED[..bytes], &pattern()[16..]), "{code:02x?}");
    }
}

#[test]
fn avx_loads_clear_everything_above() {
    // VMOVDQU of XMM and YMM, VMOVSS.
    let codes: [(&[u8], usize); 3] =
        [(&[0xc5, 0xfa, 0x6f, 0x0f], 16), (&[0xc5, 0xfe, 0x6f, 0x0f], 32), (&[0xc5, 0xfa, 0x10, 0x0f], 4)];
    for (code, bytes) in codes {
        let mut mock = at(DEVICE);
        mock.device = u64::from_le_bytes(LOADED);
        mock.run(code);
        let expected = LOADED.repeat(4);
        assert_eq!(mock.vectors[1], register(&expected[..bytes], &[]), "{code:02x?}");
        assert_eq!(mock.cleared, [1]);
    }
}

#[test]
fn stores_write_the_low_bytes() {
    // MOVUPS, MOVNTDQ, VMOVUPS of YMM, MOVSS, MOVSD, MOVQ, MOVD.
    let codes: [(&[u8], usize); 7] = [
        (&[0x0f, 0x11, 0x0f], 16),
        (&[0x66, 0x0f, 0xe7, 0x0f], 16),
        (&[0xc5, 0xfc, 0x11, 0x0f], 32),
        (&[0xf3, 0x0f, 0x11, 0x0f], 4),
        (&[0xf2, 0x0f, 0x11, 0x0f], 8),
        (&[0x66, 0x0f, 0xd6, 0x0f], 8),
        (&[0x66, 0x0f, 0x7e, 0x0f], 4),
    ];
    for (code, bytes) in codes {
        let mut mock = at(DATA + 3);
        mock.run(code);
        let (start, pattern) = ((DATA + 3) as usize, pattern());
        assert_eq!(mock.ram[start..start + bytes], pattern[..bytes], "{code:02x?}");
        assert_eq!(mock.ram[start + bytes], 0, "{code:02x?}");
        assert_eq!(mock.vectors[1], pattern);
    }
}

#[test]
fn a_high_register_is_its_own() {
    let mut mock = at(DEVICE);
    mock.device = u64::from_le_bytes(LOADED);
    // MOVUPS XMM9, [RDI].
    mock.run(&[0x44, 0x0f, 0x10, 0x0f]);
    assert_eq!((mock.vectors[9][0], mock.vectors[1]), (1, pattern()));
}

#[test]
fn what_faults_has_touched_nothing() {
    // What is above 4 GiB is not mapped.
    let mut mock = at((1 << 32) - 8);
    assert_eq!(mock.fails(&[0x0f, 0x11, 0x0f]), Exception::page_fault(2, 1 << 32));
    assert_eq!(mock.fails(&[0x0f, 0x10, 0x0f]), Exception::page_fault(0, 1 << 32));
    let mut mock = at(DEVICE);
    mock.unavailable = Some(DEVICE);
    mock.put_code(&[0x0f, 0x10, 0x0f]);
    assert_eq!((step(&mut mock, 1), mock.vectors[1]), (Err(Fault::Unavailable), pattern()));
}

#[test]
fn others_are_refused() {
    // MOVLPS and MOVHPS, ADDPS, MOVQ of MMX, CMPSD, a masked and a wide move of AVX-512, one of XMM17.
    let codes: [&[u8]; 8] = [
        &[0x0f, 0x12, 0x0f],
        &[0x0f, 0x16, 0x0f],
        &[0x0f, 0x58, 0x0f],
        &[0x0f, 0x6f, 0x0f],
        &[0xf2, 0x0f, 0xc2, 0x0f, 0x00],
        &[0x62, 0xf1, 0x7c, 0x09, 0x10, 0x0f],
        &[0x62, 0xf1, 0x7c, 0x48, 0x10, 0x0f],
        &[0x62, 0xe1, 0x7c, 0x08, 0x10, 0x0f],
    ];
    for code in codes {
        let mut mock = at(DEVICE);
        mock.put_code(code);
        assert!(matches!(step(&mut mock, 1), Err(Fault::Unsupported(_))), "{code:02x?}");
        assert!(mock.accesses.is_empty() && mock.vectors[1] == pattern());
    }
}
