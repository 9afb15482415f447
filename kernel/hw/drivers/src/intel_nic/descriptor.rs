//! Descriptors: what a card and its driver tell each other of a buffer.
//!
//! [`ReceiveFormat`] and [`TransmitFormat`] name the two layouts of each that the family has. A descriptor is two
//! 64-bit words; the functions here make and read the second, and contexts whole.

use super::offload::{Context, Work};

/// Bytes of a descriptor, of every format.
pub(super) const DESCRIPTOR_BYTES: usize = 16;
/// The most that one transmit descriptor describes: far from every card's limit (8254x: 16,288).
pub(super) const PIECE_BYTES_MAX: usize = 8192;

/// Status of a received frame, at the same bits of either format's status field.
const STATUS_DONE: u32 = 1 << 0;
const STATUS_END: u32 = 1 << 1;
const STATUS_IGNORE_CHECKSUM: u32 = 1 << 2;
const STATUS_UDP_CHECKED: u32 = 1 << 4;
const STATUS_TCP_CHECKED: u32 = 1 << 5;

/// A receive descriptor that the card has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Received {
    /// What the card says it wrote. Not to be trusted.
    pub bytes: usize,
    /// Whether the frame ends here.
    pub is_end: bool,
    /// Whether the wire or the card's queue damaged it.
    pub is_damaged: bool,
    /// Whether the TCP or UDP checksum was found right.
    pub checksum_valid: bool,
}

/// Layouts of receive descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReceiveFormat {
    /// 8254x manual, section 3.2.3; 82574, section 7.1.4.
    Legacy,
    /// 82576, section 7.1.5.
    Advanced,
}

impl ReceiveFormat {
    /// Reads a descriptor's second word; `None` until the card has written it.
    pub(super) fn parse(self, word: u64) -> Option<Received> {
        let [low, high] = [word as u32, (word >> 32) as u32];
        // Errors: of the frame (CE, SE, SEQ, CXE, RXE in the legacy format, RXE in the advanced), and of its checksum.
        let (status, bytes, is_damaged, is_wrong) = match self {
            Self::Legacy => (high, low as u16, high & 0x9700 != 0, high & 0x2000 != 0),
            // Bit 2 of this format is of another meaning.
            Self::Advanced => (low & !STATUS_IGNORE_CHECKSUM, high as u16, low & 1 << 31 != 0, low & 1 << 29 != 0),
        };
        let is_checked =
            status & (STATUS_UDP_CHECKED | STATUS_TCP_CHECKED) != 0 && status & STATUS_IGNORE_CHECKSUM == 0;
        (status & STATUS_DONE != 0).then_some(Received {
            bytes: bytes.into(),
            is_end: status & STATUS_END != 0,
            is_damaged,
            checksum_valid: is_checked && !is_wrong,
        })
    }
}

/// Layouts of transmit descriptors. In both, bit 0 of the last doubleword says that the card is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransmitFormat {
    /// 8254x manual, sections 3.3.6 and 3.3.7; 82574, sections 7.2.10.2 and 7.2.10.3.
    Extended,
    /// 82576, sections 7.2.2.2 and 7.2.2.3.
    Advanced,
}

/// Where a piece is in its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub bytes: usize,
    /// The whole frame's bytes.
    pub frame_bytes: usize,
    pub is_last: bool,
}

impl TransmitFormat {
    /// Whether the card has finished with the descriptor of which this is the second word.
    pub(super) fn is_done(self, word: u64) -> bool {
        word & 1 << 32 != 0
    }

    /// The two words of a context descriptor.
    pub(super) fn context(self, context: &Context) -> [u64; 2] {
        match self {
            Self::Extended => extended_context(context),
            Self::Advanced => advanced_context(context),
        }
    }

    /// The second word of a data descriptor.
    pub(super) fn data(self, work: &Work, piece: Piece) -> u64 {
        // End of packet with report of status, then what all of a frame's descriptors say.
        let last = if piece.is_last { 1 << 24 | 1 << 27 } else { 0 };
        let (low, high) = match self {
            Self::Extended => extended_data(work),
            Self::Advanced => advanced_data(work, piece.frame_bytes),
        };
        u64::from(low | last | piece.bytes as u32) | u64::from(high) << 32
    }
}

/// Insert the IPv4 header's checksum, the TCP or UDP checksum.
fn insertions(work: &Work) -> u32 {
    match work {
        Work::None => 0,
        Work::Checksum(_) => 2,
        Work::Segment(context) => 2 | u32::from(context.is_ipv4),
    }
}

fn extended_context(context: &Context) -> [u64; 2] {
    let [ip, transport, checksum] = [context.ip, context.transport, context.checksum].map(u64::from);
    let ip_checksum = ip + 10;
    let ip_end = transport - 1;
    // The sum over TCP or UDP runs to the frame's end: 0.
    let first = ip | ip_checksum << 8 | ip_end << 16 | transport << 32 | checksum << 40;
    let command = u64::from(context.is_tcp) | u64::from(context.is_ipv4) << 1 | 1 << 5;
    let Some(segment) = context.segment else { return [first, command << 24] };
    let header = u64::from(context.payload) << 40 | u64::from(segment.payload_bytes) << 48;
    [first, u64::from(segment.payload_bytes_all) | (command | 1 << 2) << 24 | header]
}

fn extended_data(work: &Work) -> (u32, u32) {
    let segment = if matches!(work, Work::Segment(_)) { 1 << 26 } else { 0 };
    // A data descriptor, with a frame check sequence.
    (1 << 20 | 1 << 25 | 1 << 29 | segment, insertions(work) << 8)
}

fn advanced_context(context: &Context) -> [u64; 2] {
    let [ip, transport] = [context.ip, context.transport].map(u64::from);
    let first = ip << 9 | (transport - ip);
    let kind = u64::from(context.is_ipv4) << 10 | u64::from(context.is_tcp) << 11 | 2 << 20 | 1 << 29;
    let Some(segment) = context.segment else { return [first, kind] };
    let transport_bytes = u64::from(context.payload - context.transport);
    [first, kind | transport_bytes << 40 | u64::from(segment.payload_bytes) << 48]
}

fn advanced_data(work: &Work, frame_bytes: usize) -> (u32, u32) {
    let (segment, payload_bytes) = match work {
        Work::Segment(context) => (1 << 31, frame_bytes - usize::from(context.payload)),
        Work::None | Work::Checksum(_) => (0, frame_bytes),
    };
    (3 << 20 | 1 << 25 | 1 << 29 | segment, insertions(work) << 8 | (payload_bytes as u32) << 14)
}

#[cfg(test)]
mod tests {
    use super::super::offload::Segment;
    use super::*;

    const UDP: Context =
        Context { ip: 14, transport: 34, payload: 42, checksum: 40, is_ipv4: true, is_tcp: false, segment: None };
    const TSO: Context = Context {
        ip: 18,
        transport: 58,
        payload: 90,
        checksum: 74,
        is_ipv4: false,
        is_tcp: true,
        segment: Some(Segment { payload_bytes: 1440, payload_bytes_all: 40_000 }),
    };

    #[test]
    fn received_frames_are_read_in_both_formats() {
        let good = Received { bytes: 60, is_end: true, is_damaged: false, checksum_valid: false };
        assert_eq!(ReceiveFormat::Legacy.parse(0), None);
        assert_eq!(ReceiveFormat::Legacy.parse(60 | 3 << 32), Some(good));
        let valid = Received { checksum_valid: true, ..good };
        assert_eq!(ReceiveFormat::Legacy.parse(60 | 0x23 << 32), Some(valid));
        assert_eq!(ReceiveFormat::Legacy.parse(60 | 0x27 << 32), Some(good), "the indication is to be ignored");
        assert_eq!(ReceiveFormat::Legacy.parse(60 | 0x2023 << 32), Some(good), "the checksum is wrong");
        let damaged = Received { is_damaged: true, ..good };
        assert_eq!(ReceiveFormat::Legacy.parse(60 | 0x0103 << 32), Some(damaged));
        assert_eq!(ReceiveFormat::Advanced.parse(60 << 32 | 2), None);
        assert_eq!(ReceiveFormat::Advanced.parse(60 << 32 | 3), Some(good));
        assert_eq!(ReceiveFormat::Advanced.parse(60 << 32 | 0x27), Some(valid));
        assert_eq!(ReceiveFormat::Advanced.parse(60 << 32 | 0x2000_0023), Some(good));
        assert_eq!(ReceiveFormat::Advanced.parse(60 << 32 | 0x8000_0003), Some(damaged));
    }

    #[test]
    fn extended_descriptors_have_their_fields_where_they_belong() {
        let format = TransmitFormat::Extended;
        assert_eq!(format.context(&UDP), [14 | 24 << 8 | 33 << 16 | 34 << 32 | 40 << 40, 0x22 << 24]);
        assert_eq!(
            format.context(&TSO),
            [18 | 28 << 8 | 57 << 16 | 58 << 32 | 74 << 40, 40_000 | 0x25 << 24 | 90 << 40 | 1440 << 48]
        );
        let piece = Piece { bytes: 100, frame_bytes: 100, is_last: true };
        assert_eq!(format.data(&Work::None, piece), 100 | 1 << 20 | 0x2b << 24);
        assert_eq!(format.data(&Work::Checksum(UDP), piece), 100 | 1 << 20 | 0x2b << 24 | 2 << 40);
        let first = Piece { bytes: 8192, frame_bytes: 40_090, is_last: false };
        assert_eq!(format.data(&Work::Segment(TSO), first), 8192 | 1 << 20 | 0x26 << 24 | 2 << 40);
    }

    #[test]
    fn advanced_descriptors_have_their_fields_where_they_belong() {
        let format = TransmitFormat::Advanced;
        assert_eq!(format.context(&UDP), [14 << 9 | 20, 1 << 10 | 2 << 20 | 1 << 29]);
        assert_eq!(format.context(&TSO), [18 << 9 | 40, 1 << 11 | 2 << 20 | 1 << 29 | 32 << 40 | 1440 << 48]);
        let piece = Piece { bytes: 100, frame_bytes: 100, is_last: true };
        assert_eq!(format.data(&Work::None, piece), 100 | 3 << 20 | 0x2b << 24 | 100 << 46);
        let first = Piece { bytes: 8192, frame_bytes: 40_090, is_last: false };
        assert_eq!(format.data(&Work::Segment(TSO), first), 8192 | 3 << 20 | 0xa2 << 24 | 2 << 40 | 40_000 << 46);
    }
}
