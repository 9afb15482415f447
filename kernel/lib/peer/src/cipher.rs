//! A cipher from outside: AES-256-GCM on a processor's own instructions, as Noise wants it.
//!
//! [`Sealer`] is what such a cipher does; `gcm` implements it. A processor's software never stands in for it: its time
//! would tell of the key.

use alloc::boxed::Box;
use snow::Error;
use snow::types::Cipher;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;
/// Bytes by which a sealed text is longer.
pub const TAG_BYTES: usize = 16;

/// AES-256-GCM with one key (NIST SP 800-38D).
pub trait Sealer: Send + Sync {
    /// Encrypts `plain` to the start of `out`, which is [`TAG_BYTES`] longer, and puts the tag behind it.
    fn seal(&self, nonce: &[u8; NONCE_BYTES], additional: &[u8], plain: &[u8], out: &mut [u8]);
    /// Decrypts `sealed`, whose last [`TAG_BYTES`] are its tag, to `out`, which is as long as the text. False, with `out`
    /// as it was, where the tag is not that of the text.
    #[must_use]
    fn open(&self, nonce: &[u8; NONCE_BYTES], additional: &[u8], sealed: &[u8], out: &mut [u8]) -> bool;
}

/// Makes the cipher of a key ready.
pub type MakeSealer = fn(&[u8; KEY_BYTES]) -> Box<dyn Sealer>;

/// The cipher, as `snow` calls it.
pub struct Gcm {
    make: MakeSealer,
    sealer: Option<Box<dyn Sealer>>,
}

impl Gcm {
    /// Without a key.
    pub fn new(make: MakeSealer) -> Self {
        Self { make, sealer: None }
    }
}

impl Cipher for Gcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; KEY_BYTES]) {
        self.sealer = Some((self.make)(key));
    }

    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let sealer = self.sealer.as_ref().expect("nothing is encrypted before there is a key");
        let length = plaintext.len() + TAG_BYTES;
        sealer.seal(&nonce_of(nonce), authtext, plaintext, &mut out[..length]);
        length
    }

    fn decrypt(&self, nonce: u64, authtext: &[u8], ciphertext: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let length = ciphertext.len().checked_sub(TAG_BYTES).ok_or(Error::Decrypt)?;
        let sealer = self.sealer.as_ref().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..length).ok_or(Error::Decrypt)?;
        if sealer.open(&nonce_of(nonce), authtext, ciphertext, out) { Ok(length) } else { Err(Error::Decrypt) }
    }
}

/// Four bytes of zeroes, then the number, big-endian (Noise revision 34, 12.4).
fn nonce_of(number: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce
}
