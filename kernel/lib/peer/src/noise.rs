//! Noise, as far as a session needs it: the crate `snow`, fed with randomness from outside.
//!
//! `snow` panics on nothing that a peer sends; every error of it ends the session.

use crate::cipher::{Gcm, MakeSealer};
use crate::key::{KeyPair, PublicKey};
use alloc::boxed::Box;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error, HandshakeState};

/// The handshake and its algorithms (Noise revision 34, chapter 8): with the cipher of every host, and with that of
/// processors which have instructions for it.
const CHACHA_PATTERN: &str = "Noise_XX_25519_ChaChaPoly_BLAKE2s";
const AES_PATTERN: &str = "Noise_XX_25519_AESGCM_BLAKE2s";

/// Where random bytes come from. One session takes 32 of them.
pub trait Entropy {
    /// Fills bytes with randomness that nobody can guess.
    fn fill(&mut self, into: &mut [u8]);
}

impl<F: FnMut(&mut [u8])> Entropy for F {
    fn fill(&mut self, into: &mut [u8]) {
        self(into);
    }
}

/// The default algorithms, and random bytes that were drawn before.
struct Resolver {
    seed: [u8; 32],
    aes: Option<MakeSealer>,
}

/// The ephemeral key of one handshake, which is all the randomness that it asks for.
struct Drawn(Option<[u8; 32]>);

impl Random for Drawn {
    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Error> {
        let seed = self.0.take().filter(|seed| seed.len() == into.len()).ok_or(Error::Rng)?;
        into.copy_from_slice(&seed);
        Ok(())
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Drawn(Some(self.seed))))
    }
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }
    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }
    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match (choice, self.aes) {
            (CipherChoice::AESGCM, Some(make)) => Some(Box::new(Gcm::new(make))),
            _ => DefaultResolver.resolve_cipher(choice),
        }
    }
}

/// The start of a handshake that both ends bind to `prologue`. With `aes`, both ends have that cipher.
pub fn handshake(
    keys: &KeyPair,
    prologue: &[u8],
    initiates: bool,
    aes: Option<MakeSealer>,
    entropy: &mut dyn Entropy,
) -> Result<HandshakeState, Error> {
    let mut seed = [0; 32];
    entropy.fill(&mut seed);
    let params: NoiseParams = if aes.is_some() { AES_PATTERN } else { CHACHA_PATTERN }.parse()?;
    let builder = Builder::with_resolver(params, Box::new(Resolver { seed, aes }));
    let builder = builder.local_private_key(keys.private())?.prologue(prologue)?;
    if initiates { builder.build_initiator() } else { builder.build_responder() }
}

/// The other end's key, once the handshake has brought it.
pub fn remote_key(remote: Option<&[u8]>) -> Option<PublicKey> {
    remote.and_then(|bytes| bytes.try_into().ok()).map(PublicKey)
}

/// The public half of a private key.
pub fn public_key(private: &[u8; 32]) -> PublicKey {
    let mut dh = DefaultResolver.resolve_dh(&DHChoice::Curve25519).expect("the crate has X25519");
    dh.set(private);
    PublicKey(dh.pubkey().try_into().expect("an X25519 key has 32 bytes"))
}
