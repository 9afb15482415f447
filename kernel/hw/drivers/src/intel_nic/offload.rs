//! What a card is asked to finish on a frame.
//!
//! The main type is [`Work`], made of an [`Offload`] by [`Work::plan`]; [`super::descriptor`] puts it into words.

use switch::{Gso, Headers, Offload, network_header};

/// Where a checksum goes in its header: TCP's and UDP's are the two that cards know.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// All headers of a frame that is to be segmented: the field is 8 bits, and 8254x cards want some of them spare
/// (manual, section 3.5.5).
const HEADER_BYTES_MAX: usize = 240;
/// Segments shorter than that are not the cards' business (8254x manual, section 3.3.6: MSS).
const SEGMENT_BYTES_MIN: u16 = 256;

/// Where the headers are that a card works on, in bytes from the frame's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Context {
    pub ip: u8,
    pub transport: u8,
    /// Where the payload starts; of use for segments only.
    pub payload: u8,
    pub checksum: u8,
    pub is_ipv4: bool,
    /// TCP or else UDP.
    pub is_tcp: bool,
    pub segment: Option<Segment>,
}

/// How to segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    /// Payload of each segment but the last.
    pub payload_bytes: u16,
    /// Payload of all.
    pub payload_bytes_all: u32,
}

/// What is left to the card.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// Nothing.
    None,
    /// The TCP or UDP checksum.
    Checksum(Context),
    /// Segmentation, with all checksums.
    Segment(Context),
}

impl Work {
    /// What the card can do of what is left to do on a frame; `None` where it is beyond the card, but not beyond
    /// software.
    pub(super) fn plan(frame: &[u8], offload: &Offload) -> Option<Self> {
        match offload.gso {
            Gso::None if !offload.needs_checksum => Some(Self::None),
            Gso::None => checksum(frame, offload).map(Self::Checksum),
            Gso::Tcp4 | Gso::Tcp6 => segment(frame, offload).map(Self::Segment),
        }
    }

    /// What to tell the card before the frame.
    pub(super) fn context(&self) -> Option<&Context> {
        match self {
            Self::None => None,
            Self::Checksum(context) | Self::Segment(context) => Some(context),
        }
    }
}

fn checksum(frame: &[u8], offload: &Offload) -> Option<Context> {
    let (ethertype, ip) = network_header(frame)?;
    let is_tcp = match offload.checksum_offset {
        TCP_CHECKSUM => true,
        UDP_CHECKSUM => false,
        _ => return None,
    };
    let (transport, checksum) = (offload.checksum_start, offload.checksum_start.checked_add(offload.checksum_offset)?);
    let is_known = matches!(ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6);
    // An IP header of 20 bytes at least is between.
    if !is_known || usize::from(transport) < ip + 20 || usize::from(checksum) + 2 > frame.len() {
        return None;
    }
    Some(Context {
        ip: u8::try_from(ip).ok()?,
        transport: u8::try_from(transport).ok()?,
        payload: 0,
        checksum: u8::try_from(checksum).ok()?,
        is_ipv4: ethertype == ETHERTYPE_IPV4,
        is_tcp,
        segment: None,
    })
}

fn segment(frame: &[u8], offload: &Offload) -> Option<Context> {
    let headers = Headers::parse(frame, offload).ok()?;
    let payload_bytes_all = frame.len().checked_sub(headers.payload())?;
    if headers.payload() > HEADER_BYTES_MAX || payload_bytes_all == 0 || offload.gso_size < SEGMENT_BYTES_MIN {
        return None;
    }
    Some(Context {
        ip: u8::try_from(headers.ip()).ok()?,
        transport: u8::try_from(headers.transport()).ok()?,
        payload: u8::try_from(headers.payload()).ok()?,
        checksum: u8::try_from(headers.transport() + usize::from(TCP_CHECKSUM)).ok()?,
        is_ipv4: offload.gso == Gso::Tcp4,
        is_tcp: true,
        segment: Some(Segment {
            payload_bytes: offload.gso_size,
            payload_bytes_all: u32::try_from(payload_bytes_all).ok()?,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::tcp4;
    use super::*;

    #[test]
    fn tcp_over_ipv4_is_left_to_the_card() {
        let (frame, offload) = tcp4(4000, 1000);
        let Some(Work::Segment(context)) = Work::plan(&frame, &offload) else { panic!("it is segmented") };
        assert_eq!((context.ip, context.transport, context.payload, context.checksum), (14, 34, 54, 50));
        assert_eq!(context.segment, Some(Segment { payload_bytes: 1000, payload_bytes_all: 4000 }));
        let plain = Offload { gso: Gso::None, gso_size: 0, ..offload };
        let Some(Work::Checksum(context)) = Work::plan(&frame[..200], &plain) else { panic!("it is summed") };
        assert_eq!((context.ip, context.transport, context.checksum), (14, 34, 50));
        assert!(context.is_ipv4 && context.is_tcp && context.segment.is_none());
        assert_eq!(Work::plan(&frame, &Offload::default()), Some(Work::None));
    }

    #[test]
    fn what_cards_cannot_is_left_to_software() {
        let (frame, offload) = tcp4(4000, 1000);
        assert_eq!(Work::plan(&frame, &Offload { gso_size: 100, ..offload }), None);
        let plain = Offload { gso: Gso::None, gso_size: 0, ..offload };
        let frame = &frame[..1000];
        for odd in [
            Offload { checksum_offset: 8, ..plain },
            Offload { checksum_start: 300, ..plain },
            Offload { checksum_start: 250, ..plain },
            Offload { checksum_start: 20, ..plain },
            Offload { checksum_start: u16::MAX, ..plain },
        ] {
            assert_eq!(Work::plan(frame, &odd), None, "{odd:?}");
        }
        let mut other = frame.to_vec();
        other[12] = 0x12;
        assert_eq!(Work::plan(&other, &plain), None, "neither IPv4 nor IPv6");
    }
}
