//! The authenticated, encrypted channel between two hosts, over any stream of bytes.
//!
//! [`Session`] is one end: bytes that arrived go in, bytes to send and [`Event`]s come out. Each host has a [`KeyPair`];
//! the handshake is Noise XX (revision 34) with X25519 and BLAKE2s, so that each end learns the other's key before it says
//! anything that matters, and ends the session where the key is not the one it trusts. The cipher is AES-256-GCM where
//! both processors have instructions for it ([`MakeSealer`]), else ChaCha20-Poly1305. After the handshake,
//! each frame is one message on one of 256 streams, whole and in order, or the session ends: what is lost, doubled,
//! reordered, cut or forged on the way cannot be told from a broken link by those above.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod cipher;
mod frames;
mod key;
mod noise;
mod session;
mod work;

pub use cipher::{KEY_BYTES, MakeSealer, NONCE_BYTES, Sealer, TAG_BYTES};
pub use key::{BadKey, KeyPair, PublicKey};
pub use noise::Entropy;
pub use session::{End, Event, FrameCounts, MESSAGE_BYTES_MAX, Role, Session};
pub use work::{Crew, Work};
