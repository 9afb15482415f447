//! The header in front of each frame (section 5.1.6).
//!
//! [`to_bytes`] and [`parse`] turn an [`Offload`] into one and back.

use switch::{Gso, Offload};

/// Its length with VIRTIO_F_VERSION_1.
pub(super) const HEADER_BYTES: usize = 12;

const FLAG_NEEDS_CSUM: u8 = 1;
const FLAG_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// The header of a frame to send.
pub(super) fn to_bytes(offload: &Offload) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let ecn = if offload.ecn { GSO_ECN } else { 0 };
    header[0] = if offload.needs_checksum { FLAG_NEEDS_CSUM } else { 0 };
    header[1] = match offload.gso {
        Gso::None => GSO_NONE,
        Gso::Tcp4 => GSO_TCPV4 | ecn,
        Gso::Tcp6 => GSO_TCPV6 | ecn,
    };
    if offload.gso != Gso::None {
        header[2..4].copy_from_slice(&offload.header_bytes.to_le_bytes());
        header[4..6].copy_from_slice(&offload.gso_size.to_le_bytes());
    }
    if offload.needs_checksum {
        header[6..8].copy_from_slice(&offload.checksum_start.to_le_bytes());
        header[8..10].copy_from_slice(&offload.checksum_offset.to_le_bytes());
    }
    header
}

/// What the header of a received frame says, and over how many buffers the frame is spread. `None` for a kind of
/// segmentation that was not agreed on.
pub(super) fn parse(header: &[u8; HEADER_BYTES]) -> Option<(Offload, u16)> {
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let gso = match header[1] & !GSO_ECN {
        GSO_NONE => Gso::None,
        GSO_TCPV4 => Gso::Tcp4,
        GSO_TCPV6 => Gso::Tcp6,
        _ => return None,
    };
    let needs_checksum = header[0] & FLAG_NEEDS_CSUM != 0;
    let offload = Offload {
        needs_checksum,
        checksum_valid: !needs_checksum && header[0] & FLAG_DATA_VALID != 0,
        checksum_start: if needs_checksum { word(6) } else { 0 },
        checksum_offset: if needs_checksum { word(8) } else { 0 },
        gso,
        ecn: gso != Gso::None && header[1] & GSO_ECN != 0,
        gso_size: if gso == Gso::None { 0 } else { word(4) },
        header_bytes: if gso == Gso::None { 0 } else { word(2) },
    };
    Some((offload, word(10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_both_ways() {
        let plain = Offload::default();
        let checksum = Offload { needs_checksum: true, checksum_start: 34, checksum_offset: 16, ..plain };
        let tso = Offload { gso: Gso::Tcp6, ecn: true, gso_size: 1440, header_bytes: 74, ..checksum };
        for offload in [plain, checksum, tso, Offload { gso: Gso::Tcp4, ecn: false, ..tso }] {
            assert_eq!(parse(&to_bytes(&offload)), Some((offload, 0)));
        }
    }

    #[test]
    fn a_header_has_its_fields_where_they_belong() {
        let header = [2, 0x81, 66, 0, 0xa8, 5, 9, 9, 9, 9, 3, 0];
        let offload = Offload {
            checksum_valid: true,
            gso: Gso::Tcp4,
            ecn: true,
            gso_size: 1448,
            header_bytes: 66,
            ..Offload::default()
        };
        assert_eq!(parse(&header), Some((offload, 3)));
    }

    #[test]
    fn unknown_segmentation_is_refused() {
        for kind in [2, 3, 5, 0x7f] {
            assert_eq!(parse(&[0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        }
    }
}
