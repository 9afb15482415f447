//! Joining TCP segments that arrived one behind the other: a guest takes one long frame for little more than a short one.
//!
//! The main function is [`coalesce`], the inverse of [`crate::Segments`]: what it joins is cut apart again into the
//! segments that arrived, to the byte (but for the identification of an IPv4 packet that must not be fragmented, which
//! means nothing: RFC 6864, section 4.1). RFC 791, RFC 8200 and RFC 9293 name the fields.

use crate::checksum::{Sum, store};
use crate::segments::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_HEADER_BYTES, PROTOCOL_TCP, TCP_CHECKSUM, TCP_DATA_OFFSET, TCP_FLAGS, TCP_PSH,
    TCP_SEQUENCE, word_at,
};
use crate::{Gso, Offload, network_header};
use alloc::vec::Vec;

const TCP_ACK: u8 = 0x10;
/// Bytes of headers without options.
const IPV4_HEADER_BYTES: usize = 20;
const TCP_HEADER_BYTES: usize = 20;
/// In an IPv4 packet's flags.
const DO_NOT_FRAGMENT: u16 = 1 << 14;
const IP_BYTES_MAX: usize = 0xffff;

/// A frame from the wire: what is known and left to do of it, and its bytes.
pub type Received = (Offload, Vec<u8>);

/// Joins neighbouring segments of one connection among `frames` that `may_join` lets be joined, and returns how many
/// frames there are now: they lie in front, in the order in which they came. What came with a checksum that nobody has
/// verified is verified first; what is wrong stays as it is.
pub fn coalesce(frames: &mut [Received], may_join: impl Fn(&[u8]) -> bool) -> usize {
    let mut kept = 0;
    let mut last: Option<Joined> = None;
    for index in 0..frames.len() {
        let (done, rest) = frames.split_at_mut(index);
        let Some((offload, bytes)) = rest.first_mut() else { break };
        let segment = if may_join(bytes) { Segment::parse(offload, bytes) } else { None };
        if let (Some(joined), Some(segment)) = (&mut last, &segment)
            && let Some((_, into)) = done.get_mut(kept - 1)
            && joined.takes(into, segment, bytes)
        {
            joined.append(into, bytes);
            continue;
        }
        if let Some(joined) = last.take() {
            joined.finish(&mut frames[kept - 1]);
        }
        frames.swap(kept, index);
        last = segment.map(|segment| Joined::new(segment, &frames[kept].1));
        kept += 1;
    }
    if let Some(joined) = last {
        joined.finish(&mut frames[kept - 1]);
    }
    kept
}

/// Where the headers of a segment are that may be joined: TCP with payload and no flag but ACK and PSH, in an IP packet
/// without options that fills its frame. Every offset lies inside the frame.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Segment {
    gso: Gso,
    ip: usize,
    tcp: usize,
    payload: usize,
}

impl Segment {
    fn parse(offload: &mut Offload, frame: &[u8]) -> Option<Self> {
        if (Offload { checksum_valid: false, ..*offload }) != Offload::default() {
            return None;
        }
        let (ethertype, ip) = network_header(frame)?;
        let packet = frame.get(ip..)?;
        let (gso, ip_bytes) = match ethertype {
            ETHERTYPE_IPV4 if is_plain_ipv4(packet) => (Gso::Tcp4, IPV4_HEADER_BYTES),
            ETHERTYPE_IPV6 if is_plain_ipv6(packet) => (Gso::Tcp6, IPV6_HEADER_BYTES),
            _ => return None,
        };
        let tcp = packet.get(ip_bytes..).filter(|tcp| tcp.len() >= TCP_HEADER_BYTES)?;
        let tcp_bytes = usize::from(tcp[TCP_DATA_OFFSET] >> 4) * 4;
        let is_plain = tcp[TCP_FLAGS] & !TCP_PSH == TCP_ACK && (TCP_HEADER_BYTES..tcp.len()).contains(&tcp_bytes);
        let segment = Self { gso, ip, tcp: ip + ip_bytes, payload: ip + ip_bytes + tcp_bytes };
        if !is_plain || !(offload.checksum_valid || segment.has_valid_checksum(frame)) {
            return None;
        }
        offload.checksum_valid = true;
        Some(segment)
    }

    /// The sum of the pseudo-header.
    fn pseudo_sum(&self, frame: &[u8]) -> Sum {
        let addresses = if self.gso == Gso::Tcp6 { self.ip + 8..self.tcp } else { self.ip + 12..self.tcp };
        // A packet is no longer than 64 KiB.
        let tcp_bytes = (frame.len() - self.tcp) as u16;
        Sum::default().add(&frame[addresses]).add_word(PROTOCOL_TCP.into()).add_word(tcp_bytes)
    }

    fn has_valid_checksum(&self, frame: &[u8]) -> bool {
        self.pseudo_sum(frame).add(&frame[self.tcp..]).is_right()
    }
}

/// Whether an IPv4 packet has no options, is no fragment, is TCP, and is undamaged and as long as it says.
fn is_plain_ipv4(packet: &[u8]) -> bool {
    packet.get(..IPV4_HEADER_BYTES).is_some_and(|header| {
        header[0] == 0x45
            && usize::from(word_at(header, 2)) == packet.len()
            && word_at(header, 6) & !DO_NOT_FRAGMENT == 0
            && header[9] == PROTOCOL_TCP
            && Sum::default().add(header).is_right()
    })
}

/// Whether an IPv6 packet is TCP without anything in between, and as long as it says.
fn is_plain_ipv6(packet: &[u8]) -> bool {
    packet.get(..IPV6_HEADER_BYTES).is_some_and(|header| {
        header[0] >> 4 == 6
            && header[6] == PROTOCOL_TCP
            && usize::from(word_at(header, 4)) == packet.len() - IPV6_HEADER_BYTES
    })
}

/// Segments being joined, in the first one's frame.
struct Joined {
    first: Segment,
    /// Payload bytes of each but the last.
    segment_bytes: usize,
    count: u16,
    /// The last one was full and did not ask to be handed on.
    is_open: bool,
}

impl Joined {
    fn new(first: Segment, frame: &[u8]) -> Self {
        let is_open = frame[first.tcp + TCP_FLAGS] & TCP_PSH == 0;
        Self { first, segment_bytes: frame.len() - first.payload, count: 1, is_open }
    }

    /// Whether `frame` goes on where `into` ends, and is the same in all else.
    fn takes(&self, into: &[u8], segment: &Segment, frame: &[u8]) -> bool {
        let Segment { ip, tcp, payload, .. } = self.first;
        let same = |range: core::ops::Range<usize>| into[range.clone()] == frame[range];
        let bytes = frame.len() - payload.min(frame.len());
        self.is_open
            && *segment == self.first
            && bytes <= self.segment_bytes
            && into.len() - ip + bytes <= IP_BYTES_MAX
            && same(0..ip)
            && self.same_ip(into, frame)
            && same(tcp..tcp + TCP_SEQUENCE)
            && sequence(frame, tcp) == sequence(into, tcp).wrapping_add((into.len() - payload) as u32)
            && same(tcp + 8..tcp + TCP_FLAGS)
            && same(tcp + TCP_FLAGS + 1..tcp + TCP_CHECKSUM)
            && same(tcp + TCP_CHECKSUM + 2..payload)
    }

    fn same_ip(&self, into: &[u8], frame: &[u8]) -> bool {
        let Segment { gso, ip, tcp, .. } = self.first;
        if gso == Gso::Tcp6 {
            return into[ip..ip + 4] == frame[ip..ip + 4] && into[ip + 6..tcp] == frame[ip + 6..tcp];
        }
        let goes_on = word_at(frame, ip + 4) == word_at(into, ip + 4).wrapping_add(self.count);
        let is_atomic = word_at(frame, ip + 6) & DO_NOT_FRAGMENT != 0;
        into[ip..ip + 2] == frame[ip..ip + 2]
            && into[ip + 6..ip + 10] == frame[ip + 6..ip + 10]
            && into[ip + 12..tcp] == frame[ip + 12..tcp]
            && (goes_on || is_atomic)
    }

    fn append(&mut self, into: &mut Vec<u8>, frame: &[u8]) {
        let Segment { tcp, payload, .. } = self.first;
        let flags = frame[tcp + TCP_FLAGS];
        into[tcp + TCP_FLAGS] |= flags;
        into.extend_from_slice(&frame[payload..]);
        self.count += 1;
        self.is_open = flags & TCP_PSH == 0 && frame.len() - payload == self.segment_bytes;
    }

    /// Makes the headers those of a frame that is to be segmented.
    fn finish(&self, (offload, frame): &mut Received) {
        if self.count == 1 {
            return;
        }
        let Segment { gso, ip, tcp, payload } = self.first;
        // `takes` has seen to it that the packet's length fits.
        let ip_bytes = (frame.len() - ip) as u16;
        if gso == Gso::Tcp6 {
            store(frame, ip + 4, ip_bytes - IPV6_HEADER_BYTES as u16);
        } else {
            store(frame, ip + 2, ip_bytes);
            store(frame, ip + 10, 0);
            let checksum = Sum::default().add(&frame[ip..tcp]).checksum();
            store(frame, ip + 10, checksum);
        }
        let sum = !self.first.pseudo_sum(frame).checksum();
        store(frame, tcp + TCP_CHECKSUM, sum);
        *offload = Offload {
            needs_checksum: true,
            checksum_start: tcp as u16,
            checksum_offset: TCP_CHECKSUM as u16,
            gso,
            gso_size: self.segment_bytes as u16,
            header_bytes: payload as u16,
            ..Offload::default()
        };
    }
}

fn sequence(frame: &[u8], tcp: usize) -> u32 {
    let at = tcp + TCP_SEQUENCE;
    u32::from(word_at(frame, at)) << 16 | u32::from(word_at(frame, at + 2))
}

#[cfg(test)]
mod tests;
