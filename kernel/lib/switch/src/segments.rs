//! TCP segmentation in software, for ports that cannot do it themselves.
//!
//! The main type is [`Segments`]; what it does to each header is what a network card with TSO does. Its neighbour
//! [`crate::Offload`] says how to segment. RFC 791, RFC 8200, RFC 9293 and RFC 3168 (CWR) name the fields.

use crate::checksum::{Sum, store};
use crate::{BadOffload, ETHERNET_HEADER_BYTES, Gso, Offload};
use alloc::vec::Vec;
use core::ops::Range;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const IPV6_HEADER_BYTES: usize = 40;

/// TCP flags, in the byte at offset 13 of its header.
const TCP_FIN: u8 = 0x01;
pub(crate) const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;
/// Offsets in a TCP header.
pub(crate) const TCP_SEQUENCE: usize = 4;
pub(crate) const TCP_DATA_OFFSET: usize = 12;
pub(crate) const TCP_FLAGS: usize = 13;
pub(crate) const TCP_CHECKSUM: usize = 16;

/// Where the headers of a frame to be segmented are. Every offset lies inside the frame.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    gso: Gso,
    ip: usize,
    tcp: usize,
    payload: usize,
}

impl Headers {
    /// Finds the headers of a frame that is to be segmented.
    pub fn parse(frame: &[u8], offload: &Offload) -> Result<Self, BadOffload> {
        Self::find(frame, offload).ok_or(BadOffload::Gso)
    }

    /// Where the IP header starts.
    pub fn ip(&self) -> usize {
        self.ip
    }

    /// Where the TCP header starts.
    pub fn transport(&self) -> usize {
        self.tcp
    }

    /// Where the payload starts.
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// Makes `headers`, the frame's start up to its payload, what a network card segments by: no length and no IPv4
    /// checksum, and in TCP's checksum field the pseudo-header's sum without a length, as the card adds each segment's
    /// (Intel 82574 datasheet, section 7.3.6.2; 82576, section 7.2.4.2).
    pub fn seed(&self, headers: &mut [u8]) {
        match self.gso {
            Gso::Tcp6 => store(headers, self.ip + 4, 0),
            Gso::Tcp4 | Gso::None => {
                store(headers, self.ip + 2, 0);
                store(headers, self.ip + 10, 0);
            }
        }
        let sum = Sum::default().add(&headers[self.addresses()]).add_word(PROTOCOL_TCP.into());
        store(headers, self.tcp + TCP_CHECKSUM, !sum.checksum());
    }

    fn addresses(&self) -> Range<usize> {
        match self.gso {
            Gso::Tcp6 => self.ip + 8..self.ip + 40,
            Gso::Tcp4 | Gso::None => self.ip + 12..self.ip + 20,
        }
    }

    fn find(frame: &[u8], offload: &Offload) -> Option<Self> {
        let (ethertype, ip) = network_header(frame)?;
        let tcp = match offload.gso {
            Gso::Tcp4 if ethertype == ETHERTYPE_IPV4 => tcp_after_ipv4(frame, ip)?,
            Gso::Tcp6 if ethertype == ETHERTYPE_IPV6 => tcp_after_ipv6(frame, ip)?,
            _ => return None,
        };
        let tcp_bytes = usize::from(frame.get(tcp + TCP_DATA_OFFSET)? >> 4) * 4;
        let payload = tcp + tcp_bytes;
        let described = offload.needs_checksum
            && usize::from(offload.checksum_start) == tcp
            && usize::from(offload.checksum_offset) == TCP_CHECKSUM
            && offload.gso_size > 0;
        let fits = tcp_bytes >= 20 && payload <= frame.len() && payload - ip + usize::from(offload.gso_size) <= 0xffff;
        (described && fits).then_some(Self { gso: offload.gso, ip, tcp, payload })
    }

    /// Makes the headers of `segment` those of the segment whose payload starts `offset_bytes` into the frame's.
    fn adjust(&self, segment: &mut [u8], index: u32, offset_bytes: u32, is_last: bool) {
        let ip_bytes = segment.len() - self.ip;
        // `find` has seen to it that a full segment's packet fits into 16 bits.
        match self.gso {
            Gso::Tcp6 => store(segment, self.ip + 4, (ip_bytes - IPV6_HEADER_BYTES) as u16),
            Gso::Tcp4 | Gso::None => self.adjust_ipv4(segment, ip_bytes as u16, index),
        }
        self.adjust_tcp(segment, index, offset_bytes, is_last);
    }

    fn adjust_ipv4(&self, segment: &mut [u8], ip_bytes: u16, index: u32) {
        let identification = word_at(segment, self.ip + 4).wrapping_add(index as u16);
        store(segment, self.ip + 2, ip_bytes);
        store(segment, self.ip + 4, identification);
        store(segment, self.ip + 10, 0);
        let checksum = Sum::default().add(&segment[self.ip..self.tcp]).checksum();
        store(segment, self.ip + 10, checksum);
    }

    fn adjust_tcp(&self, segment: &mut [u8], index: u32, offset_bytes: u32, is_last: bool) {
        let at = self.tcp + TCP_SEQUENCE;
        let mut sequence = [0; 4];
        sequence.copy_from_slice(&segment[at..at + 4]);
        let sequence = u32::from_be_bytes(sequence).wrapping_add(offset_bytes);
        segment[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        if index > 0 {
            segment[self.tcp + TCP_FLAGS] &= !TCP_CWR;
        }
        if !is_last {
            segment[self.tcp + TCP_FLAGS] &= !(TCP_FIN | TCP_PSH);
        }
        store(segment, self.tcp + TCP_CHECKSUM, 0);
        // Made from scratch: senders disagree on whether the field's pseudo-header sum holds a length.
        let checksum = Sum::default()
            .add(&segment[self.addresses()])
            .add_word(PROTOCOL_TCP.into())
            .add_word((segment.len() - self.tcp) as u16)
            .add(&segment[self.tcp..])
            .checksum();
        store(segment, self.tcp + TCP_CHECKSUM, checksum);
    }
}

/// The segments of a TCP frame that is longer than the wire takes: whole frames, with every checksum in place.
pub struct Segments<'a> {
    frame: &'a [u8],
    headers: Headers,
    segment_bytes: usize,
    /// The first byte of payload not yet given out, counted from the frame's start.
    next: usize,
    index: u32,
    done: bool,
}

impl<'a> Segments<'a> {
    /// The segments of `frame`, as `offload` says.
    pub fn new(frame: &'a [u8], offload: &Offload) -> Result<Self, BadOffload> {
        offload.check(frame)?;
        let headers = Headers::parse(frame, offload)?;
        let segment_bytes = usize::from(offload.gso_size);
        Ok(Self { frame, headers, segment_bytes, next: headers.payload, index: 0, done: false })
    }

    /// Writes the next segment into `segment`, replacing what is there; returns whether there was one. A frame without
    /// payload is one segment.
    pub fn next_into(&mut self, segment: &mut Vec<u8>) -> bool {
        if self.done {
            return false;
        }
        let end = (self.next + self.segment_bytes).min(self.frame.len());
        let is_last = end == self.frame.len();
        segment.clear();
        segment.extend_from_slice(&self.frame[..self.headers.payload]);
        segment.extend_from_slice(&self.frame[self.next..end]);
        // A frame is shorter than 128 KiB, so this fits.
        let offset_bytes = (self.next - self.headers.payload) as u32;
        self.headers.adjust(segment, self.index, offset_bytes, is_last);
        self.next = end;
        self.index += 1;
        self.done = is_last;
        true
    }
}

/// The type and the offset of what follows the Ethernet header and up to two VLAN tags.
pub fn network_header(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = ETHERNET_HEADER_BYTES;
    for _ in 0..3 {
        let ethertype = u16::from_be_bytes(*frame.get(at - 2..)?.first_chunk()?);
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
            return Some((ethertype, at));
        }
        at += 4;
    }
    None
}

/// Where TCP starts in an unfragmented IPv4 packet.
fn tcp_after_ipv4(frame: &[u8], ip: usize) -> Option<usize> {
    let header = frame.get(ip..ip + 20)?;
    let header_bytes = usize::from(header[0] & 0xf) * 4;
    let fragment = word_at(header, 6) & 0x3fff;
    (header[0] >> 4 == 4 && header_bytes >= 20 && header[9] == PROTOCOL_TCP && fragment == 0)
        .then_some(ip + header_bytes)
}

/// Where TCP starts in an IPv6 packet. Hop-by-hop and destination options may come first; a routing header may not, as
/// the checksum is then over an address that is not in the fixed header.
fn tcp_after_ipv6(frame: &[u8], ip: usize) -> Option<usize> {
    const HOP_BY_HOP: u8 = 0;
    const DESTINATION_OPTIONS: u8 = 60;
    let header = frame.get(ip..ip + IPV6_HEADER_BYTES)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut protocol, mut at) = (header[6], ip + IPV6_HEADER_BYTES);
    for _ in 0..3 {
        match protocol {
            PROTOCOL_TCP => return Some(at),
            HOP_BY_HOP | DESTINATION_OPTIONS => {}
            _ => return None,
        }
        let [next, units] = *frame.get(at..)?.first_chunk()?;
        protocol = next;
        at += (usize::from(units) + 1) * 8;
    }
    None
}

/// The big-endian word at `at`, which must be inside.
pub(crate) fn word_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests;
