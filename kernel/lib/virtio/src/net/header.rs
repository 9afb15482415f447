//! The header in front of each frame (5.1.6): what is left to do to it.
//!
//! [`NetHeader`] is read from the guest, checked against its frame and the features, and passed on with it; the
//! receiving device writes it out again.

/// Bytes of the header with VIRTIO_F_VERSION_1.
pub const HEADER_BYTES: usize = 12;

/// [`NetHeader::flags`]: the checksum is to be completed.
pub const FLAG_NEEDS_CSUM: u8 = 1;
/// [`NetHeader::flags`]: the checksum was verified (towards a guest only).
pub const FLAG_DATA_VALID: u8 = 2;

/// [`NetHeader::gso_type`]: an ordinary frame.
pub const GSO_NONE: u8 = 0;
/// [`NetHeader::gso_type`]: TCP over IPv4, to be cut into segments.
pub const GSO_TCPV4: u8 = 1;
/// [`NetHeader::gso_type`]: TCP over IPv6, to be cut into segments.
pub const GSO_TCPV6: u8 = 4;

/// What a guest takes off its own hands, or off those who send to it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offloads {
    /// Frames may come with an incomplete checksum.
    pub csum: bool,
    /// TCP over IPv4 may come in pieces longer than a frame.
    pub tso4: bool,
    /// TCP over IPv6 may come in pieces longer than a frame.
    pub tso6: bool,
}

/// What is left to do to a frame. The default is nothing. All offsets are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NetHeader {
    /// [`FLAG_NEEDS_CSUM`], [`FLAG_DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`], [`GSO_TCPV4`] or [`GSO_TCPV6`].
    pub gso_type: u8,
    /// How long the headers of each segment are: a hint (5.1.6.2.2).
    pub hdr_len: u16,
    /// Payload bytes in each segment but the last.
    pub gso_size: u16,
    /// Where checksumming starts, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl NetHeader {
    /// Reads it as laid out in memory.
    pub fn decode(raw: &[u8; HEADER_BYTES]) -> Self {
        let word = |at| u16::from_le_bytes([raw[at], raw[at + 1]]);
        Self {
            flags: raw[0],
            gso_type: raw[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Lays it out, for a frame spread over `buffers` buffers.
    pub fn encode(&self, buffers: u16) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        raw[0] = self.flags;
        raw[1] = self.gso_type;
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, buffers];
        for (at, word) in raw[2..].chunks_exact_mut(2).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        raw
    }

    /// Checks a header that a guest sent with a frame of `frame_bytes` (5.1.6.2) and returns what of it counts; `None`
    /// where it makes no sense or uses what was not negotiated.
    pub fn checked(&self, frame_bytes: usize, offloads: Offloads) -> Option<Self> {
        let flags = self.flags & FLAG_NEEDS_CSUM;
        let header = if self.gso_type == GSO_NONE {
            Self { flags, csum_start: self.csum_start, csum_offset: self.csum_offset, ..Self::default() }
        } else {
            Self { flags, ..*self }
        };
        let header = if flags == 0 { Self { csum_start: 0, csum_offset: 0, ..header } } else { header };
        (header.within(offloads) && header.fits(frame_bytes)).then_some(header)
    }

    /// Whether the frame asks for no more than `offloads`.
    pub fn within(&self, offloads: Offloads) -> bool {
        let segmentation = match self.gso_type {
            GSO_NONE => true,
            GSO_TCPV4 => offloads.tso4,
            GSO_TCPV6 => offloads.tso6,
            _ => false,
        };
        segmentation && (offloads.csum || self.flags & FLAG_NEEDS_CSUM == 0)
    }

    /// Whether all offsets lie in a frame of that length.
    fn fits(&self, frame_bytes: usize) -> bool {
        let needs_csum = self.flags & FLAG_NEEDS_CSUM != 0;
        let checksum_end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
        let segments =
            self.gso_type == GSO_NONE || needs_csum && self.gso_size > 0 && usize::from(self.hdr_len) <= frame_bytes;
        segments && (!needs_csum || checksum_end <= frame_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true };
    const TSO: NetHeader = NetHeader {
        flags: FLAG_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    };

    #[test]
    fn layout_round_trip() {
        let raw = TSO.encode(3);
        assert_eq!(raw, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0]);
        assert_eq!(NetHeader::decode(&raw), TSO);
    }

    #[test]
    fn sane_headers_pass() {
        assert_eq!(TSO.checked(4000, ALL), Some(TSO));
        assert_eq!(NetHeader::default().checked(60, Offloads::default()), Some(NetHeader::default()));
    }

    #[test]
    fn offsets_must_lie_in_the_frame() {
        assert_eq!(TSO.checked(53, ALL), None, "hdr_len");
        let checksum = NetHeader { gso_type: GSO_NONE, ..TSO };
        assert!(checksum.checked(52, ALL).is_some());
        assert_eq!(checksum.checked(51, ALL), None);
        assert_eq!(NetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..TSO }.checked(60_000, ALL), None);
    }

    #[test]
    fn segmentation_needs_checksum_and_size() {
        assert_eq!(NetHeader { flags: 0, ..TSO }.checked(4000, ALL), None);
        assert_eq!(NetHeader { gso_size: 0, ..TSO }.checked(4000, ALL), None);
        assert_eq!(NetHeader { gso_type: 3, ..TSO }.checked(4000, ALL), None, "UDP fragmentation is not offered");
        assert_eq!(NetHeader { gso_type: 0x81, ..TSO }.checked(4000, ALL), None, "nor is ECN");
    }

    #[test]
    fn only_what_was_negotiated_passes() {
        assert_eq!(TSO.checked(4000, Offloads { tso4: false, ..ALL }), None);
        assert_eq!(TSO.checked(4000, Offloads { csum: false, ..ALL }), None);
        assert!(TSO.checked(4000, Offloads { tso6: false, ..ALL }).is_some());
    }

    #[test]
    fn fields_that_do_not_count_are_cleared() {
        let stray = NetHeader { flags: FLAG_DATA_VALID | 0x80, hdr_len: 9, gso_size: 9, csum_start: 9, ..TSO };
        let stray = NetHeader { gso_type: GSO_NONE, ..stray };
        assert_eq!(stray.checked(60, ALL), Some(NetHeader::default()));
    }
}
