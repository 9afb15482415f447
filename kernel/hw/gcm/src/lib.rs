//! AES-256-GCM on the processor's own instructions, for the channel between hosts (NIST SP 800-38D).
//!
//! [`maker`] gives `peer` a [`peer::MakeSealer`] where the processor has AES-NI, PCLMULQDQ and SSE4.1; elsewhere, and
//! where the other host has none of it, the channel uses ChaCha20-Poly1305 in software. The assembly in `gcm.S` is the
//! only code of the kernel that touches SIMD registers; it keeps and puts back what a guest has in them.
#![cfg_attr(not(test), no_std)]
#![expect(unsafe_code, reason = "the SIMD section is assembly")]

extern crate alloc;

use alloc::boxed::Box;
use core::arch::global_asm;
use peer::{KEY_BYTES, MakeSealer, NONCE_BYTES, Sealer, TAG_BYTES};

global_asm!(include_str!("gcm.S"));

const BLOCK_BYTES: usize = 16;
/// CPUID leaf 1, ECX: PCLMULQDQ, SSSE3, SSE4.1, AES.
const INSTRUCTIONS: u32 = 1 << 1 | 1 << 9 | 1 << 19 | 1 << 25;

unsafe extern "sysv64" {
    fn gcm_expand_key(key: *const u8, keys: *mut RoundKeys);
    fn gcm_counter(keys: *const RoundKeys, counter: *const u8, from: *const u8, to: *mut u8, blocks: usize);
    fn gcm_hash(powers: *const Powers, state: *mut u128, text: *const u8, blocks: usize);
}

#[repr(C, align(16))]
struct RoundKeys([[u8; BLOCK_BYTES]; 15]);

/// The hash key to the first to fourth power, as POLYVAL has it.
#[repr(C, align(16))]
struct Powers([u128; 4]);

/// One key, made ready.
struct Aes256Gcm {
    keys: RoundKeys,
    powers: Powers,
}

/// What makes ciphers, where this processor has the instructions. The caller sees to it that SSE instructions do not
/// fault: see `cpu::fpu::enable`.
pub fn maker() -> Option<MakeSealer> {
    (cpu::cpuid(1, 0).ecx & INSTRUCTIONS == INSTRUCTIONS).then_some(|key| Box::new(Aes256Gcm::new(key)))
}

impl Aes256Gcm {
    /// Only [`maker`] calls it, on a processor that has the instructions.
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        let mut this = Self { keys: RoundKeys([[0; BLOCK_BYTES]; 15]), powers: Powers([0; 4]) };
        // SAFETY: the instructions exist, the key has 32 bytes, and the round keys are written where they belong.
        unsafe { gcm_expand_key(key.as_ptr(), &raw mut this.keys) };
        let mut hash_key = [0; BLOCK_BYTES];
        this.count(&[0; BLOCK_BYTES], &[0; BLOCK_BYTES], &mut hash_key);
        this.powers.0[0] = times_x(u128::from_be_bytes(hash_key));
        for power in 1..4 {
            // A block of zeroes multiplies the state by the key.
            let mut state = this.powers.0[power - 1];
            this.hash(&mut state, &[0; BLOCK_BYTES]);
            this.powers.0[power] = state;
        }
        this
    }

    /// Adds the key stream from this counter on to `from`; both have as many whole blocks.
    fn count(&self, counter: &[u8; BLOCK_BYTES], from: &[u8], to: &mut [u8]) {
        assert_eq!(from.len(), to.len(), "a text is as long as its cipher text");
        assert!(from.len().is_multiple_of(BLOCK_BYTES), "whole blocks");
        let blocks = from.len() / BLOCK_BYTES;
        // SAFETY: the instructions exist, as in `new`; both texts have that many blocks, and `to` is ours alone.
        unsafe { gcm_counter(&raw const self.keys, counter.as_ptr(), from.as_ptr(), to.as_mut_ptr(), blocks) }
    }

    /// Takes whole blocks into the hash.
    fn hash(&self, state: &mut u128, text: &[u8]) {
        assert!(text.len().is_multiple_of(BLOCK_BYTES), "whole blocks");
        // SAFETY: the instructions exist, as in `new`; the text has that many blocks, and the state is ours alone.
        unsafe { gcm_hash(&raw const self.powers, state, text.as_ptr(), text.len() / BLOCK_BYTES) }
    }

    /// Takes a text into the hash, filled up with zeroes to whole blocks.
    fn hash_padded(&self, state: &mut u128, text: &[u8]) {
        let (whole, rest) = text.split_at(text.len() / BLOCK_BYTES * BLOCK_BYTES);
        self.hash(state, whole);
        if !rest.is_empty() {
            self.hash(state, &padded(rest));
        }
    }

    /// Encrypts or decrypts: the counter of a text's first block is 2.
    fn apply(&self, nonce: &[u8; NONCE_BYTES], from: &[u8], to: &mut [u8]) {
        let whole_bytes = from.len() / BLOCK_BYTES * BLOCK_BYTES;
        let (from_whole, from_rest) = from.split_at(whole_bytes);
        let (to_whole, to_rest) = to.split_at_mut(whole_bytes);
        self.count(&block_of(nonce, 2), from_whole, to_whole);
        if !from_rest.is_empty() {
            let mut last = [0; BLOCK_BYTES];
            let number = 2 + (whole_bytes / BLOCK_BYTES) as u32;
            self.count(&block_of(nonce, number), &padded(from_rest), &mut last);
            to_rest.copy_from_slice(&last[..from_rest.len()]);
        }
    }

    /// The tag of a cipher text (SP 800-38D, 7.1, steps 4 to 6).
    fn tag(&self, nonce: &[u8; NONCE_BYTES], additional: &[u8], cipher_text: &[u8]) -> [u8; TAG_BYTES] {
        let mut state = 0;
        self.hash_padded(&mut state, additional);
        self.hash_padded(&mut state, cipher_text);
        let bits = |bytes: &[u8]| bytes.len() as u128 * 8;
        self.hash(&mut state, &(bits(additional) << 64 | bits(cipher_text)).to_be_bytes());
        let mut tag = [0; TAG_BYTES];
        self.count(&block_of(nonce, 1), &state.to_be_bytes(), &mut tag);
        tag
    }
}

impl Sealer for Aes256Gcm {
    fn seal(&self, nonce: &[u8; NONCE_BYTES], additional: &[u8], plain: &[u8], out: &mut [u8]) {
        let (cipher_text, tag) = out.split_at_mut(plain.len());
        self.apply(nonce, plain, cipher_text);
        tag.copy_from_slice(&self.tag(nonce, additional, cipher_text));
    }

    fn open(&self, nonce: &[u8; NONCE_BYTES], additional: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        let Some((cipher_text, tag)) = sealed.split_last_chunk::<TAG_BYTES>() else { return false };
        let own = u128::from_ne_bytes(self.tag(nonce, additional, cipher_text));
        // One comparison of all bytes: how many of them agree does not show in the time.
        if core::hint::black_box(own ^ u128::from_ne_bytes(*tag)) != 0 {
            return false;
        }
        self.apply(nonce, cipher_text, out);
        true
    }
}

fn padded(rest: &[u8]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..rest.len()].copy_from_slice(rest);
    block
}

/// The counter block with this number (SP 800-38D, 7.1, step 2).
fn block_of(nonce: &[u8; NONCE_BYTES], number: u32) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..NONCE_BYTES].copy_from_slice(nonce);
    block[NONCE_BYTES..].copy_from_slice(&number.to_be_bytes());
    block
}

/// Multiplied by x in POLYVAL's field, in the same time for every value (RFC 8452, appendix A, `mulX_POLYVAL`).
fn times_x(value: u128) -> u128 {
    const REDUCED: u128 = 0xc200_0000_0000_0000_0000_0000_0000_0001;
    (value << 1) ^ (0u128.wrapping_sub(value >> 127) & REDUCED)
}

#[cfg(test)]
mod tests;
