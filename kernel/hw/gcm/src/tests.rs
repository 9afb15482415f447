//! Against published vectors, against the RustCrypto implementation, and whether registers come back.

use super::*;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use proptest::prelude::*;

fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Machines without the instructions skip what needs them; `None` there.
fn sealer(key: &[u8]) -> Option<Box<dyn Sealer>> {
    maker().map(|make| make(key.try_into().unwrap()))
}

fn sealed(sealer: &dyn Sealer, nonce: &[u8], additional: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0xee; plain.len() + TAG_BYTES];
    sealer.seal(nonce.try_into().unwrap(), additional, plain, &mut out);
    out
}

/// McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", appendix B, test cases 13 to 16: key, nonce, plain
/// text, additional data, cipher text and tag.
const VECTORS: [[&str; 5]; 4] = [
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "000000000000000000000000",
        "",
        "",
        "530f8afbc74536b9a963b4f1c4cb738b",
    ],
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "000000000000000000000000",
        "00000000000000000000000000000000",
        "",
        "cea7403d4d606b6e074ec5d3baf39d18 d0d1c8a799996bf0265b98b5d48ab919",
    ],
    [
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
         1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
        "",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
         8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad b094dac5d93471bdec1a502270e3cc6c",
    ],
    [
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
         1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
         8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662 76fc6ece0f4e1768cddf8853bb2d551b",
    ],
];

#[test]
fn it_does_what_its_inventors_published() {
    for [key, nonce, plain, additional, expected] in VECTORS.map(|vector| vector.map(bytes)) {
        let Some(sealer) = sealer(&key) else { return };
        assert_eq!(sealed(&*sealer, &nonce, &additional, &plain), expected);
        let mut back = vec![0xee; plain.len()];
        assert!(sealer.open(nonce[..].try_into().unwrap(), &additional, &expected, &mut back));
        assert_eq!(back, plain);
    }
}

#[test]
fn what_was_changed_is_not_opened_and_leaves_nothing() {
    let Some(sealer) = sealer(&[7; KEY_BYTES]) else { return };
    let nonce = [1; NONCE_BYTES];
    let good = sealed(&*sealer, &nonce, b"head", &[5; 100]);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut out = [0xee; 100];
        assert!(!sealer.open(&nonce, b"head", &bad, &mut out), "bit {bit}");
        assert_eq!(out, [0xee; 100]);
    }
    assert!(!sealer.open(&nonce, b"Head", &good, &mut [0; 100]));
    assert!(!sealer.open(&[2; NONCE_BYTES], b"head", &good, &mut [0; 100]));
    assert!(!sealer.open(&nonce, b"head", &good[..TAG_BYTES - 1], &mut []));
}

/// Calls a function of the section with the registers that it uses filled, and looks at them afterwards.
fn call(function: *const (), arguments: [usize; 5]) {
    let (mut before, mut after) = ([[0u8; BLOCK_BYTES]; 10], [[0u8; BLOCK_BYTES]; 10]);
    before.iter_mut().enumerate().for_each(|(index, register)| register.fill(index as u8 + 1));
    let [first, second, third, fourth, fifth] = arguments;
    // SAFETY: the function gets what it wants, the arrays hold ten registers, and all that may change is declared.
    unsafe {
        core::arch::asm!(
            "movups xmm0, [r13]", "movups xmm1, [r13 + 16]", "movups xmm2, [r13 + 32]", "movups xmm3, [r13 + 48]",
            "movups xmm4, [r13 + 64]", "movups xmm5, [r13 + 80]", "movups xmm6, [r13 + 96]", "movups xmm7, [r13 + 112]",
            "movups xmm8, [r13 + 128]", "movups xmm9, [r13 + 144]",
            "call {function}",
            "movups [r12], xmm0", "movups [r12 + 16], xmm1", "movups [r12 + 32], xmm2", "movups [r12 + 48], xmm3",
            "movups [r12 + 64], xmm4", "movups [r12 + 80], xmm5", "movups [r12 + 96], xmm6", "movups [r12 + 112], xmm7",
            "movups [r12 + 128], xmm8", "movups [r12 + 144], xmm9",
            in("r13") before.as_ptr(), function = in(reg) function, in("r12") after.as_mut_ptr(),
            in("rdi") first, in("rsi") second, in("rdx") third, in("rcx") fourth, in("r8") fifth,
            clobber_abi("sysv64"),
        );
    }
    assert_eq!(before, after);
}

#[test]
fn registers_come_back() {
    if maker().is_none() {
        return;
    }
    let mut keys = RoundKeys([[0; BLOCK_BYTES]; 15]);
    let (powers, mut state) = (Powers([1, 2, 3, 4]), 5_u128);
    let (text, mut out) = ([3_u8; 13 * BLOCK_BYTES], [0_u8; 13 * BLOCK_BYTES]);
    let (from, to) = (text.as_ptr() as usize, out.as_mut_ptr() as usize);
    let schedule = &raw mut keys as usize;
    call(gcm_expand_key as *const (), [from, schedule, 0, 0, 0]);
    call(gcm_counter as *const (), [schedule, from, from, to, 13]);
    call(gcm_hash as *const (), [&raw const powers as usize, &raw mut state as usize, from, 13, 0]);
    assert!(keys.0[14] != [0; BLOCK_BYTES] && out != [0; 13 * BLOCK_BYTES] && state != 5);
}

proptest! {
    #[test]
    fn it_agrees_with_another_implementation(
        key: [u8; KEY_BYTES], nonce: [u8; NONCE_BYTES],
        additional in proptest::collection::vec(any::<u8>(), 0..80),
        plain in proptest::collection::vec(any::<u8>(), 0..700),
    ) {
        if let Some(sealer) = sealer(&key) {
            let other = aes_gcm::Aes256Gcm::new((&key).into());
            let payload = Payload { msg: &plain, aad: &additional };
            let expected = other.encrypt((&nonce).into(), payload).unwrap();
            prop_assert_eq!(&sealed(&*sealer, &nonce, &additional, &plain), &expected);
            let mut back = vec![0; plain.len()];
            prop_assert!(sealer.open(&nonce, &additional, &expected, &mut back));
            prop_assert_eq!(back, plain);
        }
    }
}

#[test]
fn a_long_text_agrees_too() {
    let Some(sealer) = sealer(&[9; KEY_BYTES]) else { return };
    let plain: Vec<u8> = (0..65_000u32).map(|at| ((at * at) >> 3) as u8).collect();
    let other = aes_gcm::Aes256Gcm::new((&[9; KEY_BYTES]).into());
    let expected = other.encrypt((&[4; NONCE_BYTES]).into(), &plain[..]).unwrap();
    assert_eq!(sealed(&*sealer, &[4; NONCE_BYTES], &[], &plain), expected);
}
