//! The work on a frame that its sender left to whoever sends it on: checksum and TCP segmentation.
//!
//! The main type is [`Offload`], with the meaning of the virtio network header (Virtual I/O Device specification 1.2,
//! section 5.1.6). It travels beside each frame; [`crate::Segments`] and [`complete_checksum`] do the work in software.

use crate::checksum::{Sum, store};
use crate::{FRAME_BYTES_MAX, GSO_FRAME_BYTES_MAX};

/// Whether a frame is to be segmented, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gso {
    /// It is sent as it is.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// What is left to do on a frame. The default is nothing.
///
/// It comes from a guest or a device, so it may be nonsense: [`Offload::check`] it against its frame once. Nothing here
/// panics on one that was not checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// The checksum field holds the sum of the pseudo-header only; the rest is to be added.
    pub needs_checksum: bool,
    /// The receiver may take the checksum for verified. Not together with `needs_checksum`.
    pub checksum_valid: bool,
    /// Where the sum starts, in bytes from the frame's start.
    pub checksum_start: u16,
    /// Where the checksum goes, in bytes from `checksum_start`.
    pub checksum_offset: u16,
    /// How to segment. Needs `needs_checksum`.
    pub gso: Gso,
    /// The segmented TCP connection uses explicit congestion notification (CWR in the first segment only).
    pub ecn: bool,
    /// Bytes of TCP payload in each segment but the last.
    pub gso_size: u16,
    /// Bytes of all headers: a hint, and not to be trusted.
    pub header_bytes: u16,
}

/// Why a frame and its [`Offload`] do not fit together. Such a frame is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadOffload {
    /// The frame is longer than the wire, or 64 KiB of IP, allows.
    TooLong,
    /// The checksum lies outside the frame.
    Checksum,
    /// The frame is not the TCP that it is said to be, or has nothing to segment by.
    Gso,
}

impl Offload {
    /// Checks against the frame that this travels with: what is to be done can be.
    pub fn check(&self, frame: &[u8]) -> Result<(), BadOffload> {
        let most_bytes = if self.gso == Gso::None { FRAME_BYTES_MAX } else { GSO_FRAME_BYTES_MAX };
        if frame.len() > most_bytes {
            return Err(BadOffload::TooLong);
        }
        if self.needs_checksum && self.checksum_at(frame).is_none() {
            return Err(BadOffload::Checksum);
        }
        if self.gso == Gso::None {
            return Ok(());
        }
        crate::segments::Headers::parse(frame, self).map(|_| ())
    }

    /// Where the checksum is in `frame`, if it is in it.
    pub(crate) fn checksum_at(&self, frame: &[u8]) -> Option<usize> {
        let at = usize::from(self.checksum_start) + usize::from(self.checksum_offset);
        (at + 2 <= frame.len()).then_some(at)
    }
}

/// Completes the checksum of a frame that needs it: sums from [`Offload::checksum_start`] to the end, on top of the
/// pseudo-header's sum in the field. Leaves the frame alone where none is needed or the field is outside it.
///
/// For a frame still to be segmented use [`crate::Segments`], which does this for each segment.
pub fn complete_checksum(frame: &mut [u8], offload: &Offload) {
    if !offload.needs_checksum {
        return;
    }
    let Some(at) = offload.checksum_at(frame) else { return };
    let checksum = Sum::default().add(&frame[usize::from(offload.checksum_start)..]).checksum();
    store(frame, at, checksum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_udp_checksum_is_completed() {
        // 10.0.0.1 -> 10.0.0.2, UDP port 4660 -> 22136, payload "abc".
        let mut frame = vec![0_u8; 34];
        frame.extend([0x12, 0x34, 0x56, 0x78, 0, 11, 0, 0, b'a', b'b', b'c']);
        // The pseudo-header: addresses, protocol 17, length 11.
        let pseudo = 0x0a00_u32 + 0x0001 + 0x0a00 + 0x0002 + 17 + 11;
        store(&mut frame, 40, pseudo as u16);
        let offload = Offload { needs_checksum: true, checksum_start: 34, checksum_offset: 6, ..Offload::default() };
        complete_checksum(&mut frame, &offload);
        let total = pseudo + 0x1234 + 0x5678 + 11 + 0x6162 + 0x6300;
        let expected = !((total & 0xffff) + (total >> 16)) as u16;
        assert_eq!(u16::from_be_bytes([frame[40], frame[41]]), expected);
    }

    #[test]
    fn a_zero_checksum_is_sent_as_ones() {
        let mut frame = [0xff, 0xff, 0, 0];
        let offload = Offload { needs_checksum: true, checksum_offset: 2, ..Offload::default() };
        complete_checksum(&mut frame, &offload);
        assert_eq!(frame, [0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_checksum_outside_the_frame_changes_nothing() {
        for (start, offset) in [(100, 0), (0, 63), (u16::MAX, u16::MAX), (10, 54)] {
            let mut frame = [1; 64];
            let offload =
                Offload { needs_checksum: true, checksum_start: start, checksum_offset: offset, ..Offload::default() };
            assert_eq!(offload.check(&frame), Err(BadOffload::Checksum));
            complete_checksum(&mut frame, &offload);
            assert_eq!(frame, [1; 64]);
        }
    }

    #[test]
    fn frames_have_a_longest() {
        assert_eq!(Offload::default().check(&[0; FRAME_BYTES_MAX]), Ok(()));
        assert_eq!(Offload::default().check(&[0; FRAME_BYTES_MAX + 1]), Err(BadOffload::TooLong));
    }
}
