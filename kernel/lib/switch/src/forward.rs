//! Where a frame goes (IEEE 802.1D-2004, clauses 7.6 to 7.9).
//!
//! The main type is [`Switch`]; it learns addresses into the table and answers with [`Targets`]. Its user carries the
//! frame to them, and tells it of the ports that had no room.

use crate::table::Table;
use crate::{ETHERNET_HEADER_BYTES, GSO_FRAME_BYTES_MAX, Mac};

/// A port of a [`Switch`]: its position, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortId(pub u8);

impl PortId {
    /// No switch has this port: frames from there go nowhere.
    pub const NOWHERE: Self = Self(u8::MAX);
}

/// Ports that a switch can have, so that a set of them is one word.
const PORTS_MAX: u8 = 64;

/// What a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortConfig {
    /// The only address at this port, where that is known: it is never learned elsewhere.
    pub mac: Option<Mac>,
    /// Drops frames from any other source than `mac`. Unknown destinations are then not flooded to the port either, as
    /// none of them can be there. Leave it off for a guest that bridges.
    pub guard: bool,
}

/// What passed a port. The directions are the switch's: `in` came from the port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Frames from the port that were well-formed and allowed.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames to the port.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Frames from the port that were malformed: too short, too long, a group address as source.
    pub drops_malformed: u64,
    /// Frames from the port with a source address that is another's, or that the guard does not allow.
    pub drops_guard: u64,
    /// Frames from the port to a link-local group address (01-80-c2-00-00-0x), which no bridge forwards.
    pub drops_reserved: u64,
    /// Frames to the port for which it had no room.
    pub drops_out: u64,
}

#[derive(Clone, Copy, Default)]
struct Port {
    config: PortConfig,
    counters: Counters,
}

/// The ports that a frame goes to: a set, and an iterator that empties it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Targets(u64);

impl Targets {
    /// Whether the frame goes to no port.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the frame goes to this port.
    pub fn contains(self, port: PortId) -> bool {
        self.0 & Self::one(port).0 != 0
    }

    fn one(port: PortId) -> Self {
        Self(1_u64.checked_shl(port.0.into()).unwrap_or(0))
    }
}

impl Iterator for Targets {
    type Item = PortId;

    fn next(&mut self) -> Option<PortId> {
        let lowest = u8::try_from(self.0.trailing_zeros()).ok().filter(|lowest| *lowest < PORTS_MAX)?;
        self.0 &= self.0 - 1;
        Some(PortId(lowest))
    }
}

/// A learning switch.
pub struct Switch {
    ports: [Option<Port>; PORTS_MAX as usize],
    /// Ports that get frames for groups.
    present: Targets,
    /// Ports that get frames for addresses not in the table.
    open: Targets,
    table: Table,
}

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}

impl Switch {
    /// A switch without ports.
    pub fn new() -> Self {
        Self { ports: [None; PORTS_MAX as usize], present: Targets(0), open: Targets(0), table: Table::new() }
    }

    /// Adds a port. `None` where all 64 are in use, or its address is another port's.
    pub fn add_port(&mut self, config: PortConfig) -> Option<PortId> {
        let free = (0..PORTS_MAX).find(|port| self.ports[usize::from(*port)].is_none())?;
        let port = PortId(free);
        if let Some(mac) = &config.mac
            && !self.table.pin(mac, port)
        {
            return None;
        }
        self.ports[usize::from(free)] = Some(Port { config, counters: Counters::default() });
        self.present.0 |= Targets::one(port).0;
        if !(config.guard && config.mac.is_some()) {
            self.open.0 |= Targets::one(port).0;
        }
        Some(port)
    }

    /// Removes a port, with its counters and every address at it.
    pub fn remove_port(&mut self, port: PortId) {
        if let Some(slot) = self.ports.get_mut(usize::from(port.0)) {
            *slot = None;
            self.present.0 &= !Targets::one(port).0;
            self.open.0 &= !Targets::one(port).0;
            self.table.forget(port);
        }
    }

    /// What passed a port so far, or `None` where there is none.
    pub fn counters(&self, port: PortId) -> Option<&Counters> {
        self.ports.get(usize::from(port.0))?.as_ref().map(|port| &port.counters)
    }

    /// The ports that a frame from `from` goes to; none for one that is dropped. `now_ns` is any clock that does not
    /// step back.
    pub fn forward(&mut self, from: PortId, frame: &[u8], now_ns: u64) -> Targets {
        let Some(Some(port)) = self.ports.get_mut(usize::from(from.0)) else { return Targets::default() };
        let counters = &mut port.counters;
        let Some((destination, source)) = addresses(frame) else {
            counters.drops_malformed += 1;
            return Targets::default();
        };
        let guarded = port.config.guard && port.config.mac.is_some_and(|mac| mac != source);
        if guarded || !self.table.learn(&source, from, now_ns) {
            counters.drops_guard += 1;
            return Targets::default();
        }
        if is_reserved(&destination) {
            counters.drops_reserved += 1;
            return Targets::default();
        }
        counters.frames_in += 1;
        counters.bytes_in += frame.len() as u64;
        let targets = self.targets(from, &destination, now_ns);
        self.count_out(targets, frame.len() as u64);
        targets
    }

    /// Notes that `port` had no room for a frame of `bytes` bytes that it was a target of.
    pub fn undelivered(&mut self, port: PortId, bytes: usize) {
        if let Some(Some(port)) = self.ports.get_mut(usize::from(port.0)) {
            let counters = &mut port.counters;
            counters.drops_out += 1;
            counters.frames_out = counters.frames_out.saturating_sub(1);
            counters.bytes_out = counters.bytes_out.saturating_sub(bytes as u64);
        }
    }

    /// Never `from` itself: a frame for an address at the port it came from has arrived already.
    fn targets(&self, from: PortId, destination: &Mac, now_ns: u64) -> Targets {
        let targets = if is_group(destination) {
            self.present
        } else {
            self.table.lookup(destination, now_ns).map_or(self.open, Targets::one)
        };
        Targets(targets.0 & !Targets::one(from).0)
    }

    fn count_out(&mut self, targets: Targets, bytes: u64) {
        for target in targets {
            if let Some(port) = &mut self.ports[usize::from(target.0)] {
                port.counters.frames_out += 1;
                port.counters.bytes_out += bytes;
            }
        }
    }
}

/// The destination and source of a well-formed frame.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    if !(ETHERNET_HEADER_BYTES..=GSO_FRAME_BYTES_MAX).contains(&frame.len()) {
        return None;
    }
    let destination = *frame.first_chunk()?;
    let source = *frame.get(6..)?.first_chunk()?;
    (!is_group(&source) && source != [0; 6]).then_some((destination, source))
}

/// Whether the address is a group's (multicast or broadcast).
fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

/// Whether the address is one of table 7-10, which stay on their link.
fn is_reserved(mac: &Mac) -> bool {
    matches!(mac, [0x01, 0x80, 0xc2, 0x00, 0x00, last] if last & 0xf0 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::AGEING_NS;
    use proptest::prelude::*;

    const BROADCAST: Mac = [0xff; 6];

    fn mac(last: u8) -> Mac {
        [2, 0, 0, 0, 0, last]
    }

    fn frame(destination: Mac, source: Mac) -> Vec<u8> {
        [&destination[..], &source, &[8, 0], &[0; 46]].concat()
    }

    /// A switch with an open uplink (port 0) and two guarded guests with addresses 1 and 2 (ports 1 and 2).
    fn switch() -> Switch {
        let mut switch = Switch::new();
        assert_eq!(switch.add_port(PortConfig::default()), Some(PortId(0)));
        for last in 1..=2 {
            let config = PortConfig { mac: Some(mac(last)), guard: true };
            assert_eq!(switch.add_port(config), Some(PortId(last)));
        }
        switch
    }

    fn ports(targets: Targets) -> Vec<u8> {
        targets.map(|port| port.0).collect()
    }

    #[test]
    fn groups_go_everywhere_else() {
        let mut switch = switch();
        assert_eq!(ports(switch.forward(PortId(1), &frame(BROADCAST, mac(1)), 0)), [0, 2]);
        let multicast = [0x33, 0x33, 0, 0, 0, 1];
        assert_eq!(ports(switch.forward(PortId(0), &frame(multicast, mac(9)), 0)), [1, 2]);
    }

    #[test]
    fn known_addresses_go_to_their_port() {
        let mut switch = switch();
        assert_eq!(ports(switch.forward(PortId(1), &frame(mac(2), mac(1)), 0)), [2]);
        switch.forward(PortId(0), &frame(BROADCAST, mac(9)), 0);
        assert_eq!(ports(switch.forward(PortId(1), &frame(mac(9), mac(1)), 1)), [0]);
        assert_eq!(ports(switch.forward(PortId(0), &frame(mac(9), mac(8)), 1)), [0; 0], "no hairpin");
    }

    #[test]
    fn unknown_addresses_are_flooded_to_open_ports() {
        let mut switch = switch();
        let open = switch.add_port(PortConfig::default()).unwrap();
        assert_eq!(ports(switch.forward(PortId(1), &frame(mac(77), mac(1)), 0)), [0, open.0]);
        switch.forward(open, &frame(BROADCAST, mac(77)), 0);
        assert_eq!(ports(switch.forward(PortId(1), &frame(mac(77), mac(1)), 1)), [open.0]);
        assert_eq!(ports(switch.forward(PortId(1), &frame(mac(77), mac(1)), AGEING_NS)), [0, open.0]);
    }

    #[test]
    fn an_address_moves_with_its_frames() {
        let mut switch = switch();
        let open = switch.add_port(PortConfig::default()).unwrap();
        switch.forward(PortId(0), &frame(BROADCAST, mac(77)), 0);
        switch.forward(open, &frame(BROADCAST, mac(77)), 1);
        assert_eq!(ports(switch.forward(PortId(1), &frame(mac(77), mac(1)), 2)), [open.0]);
    }

    #[test]
    fn false_sources_are_dropped() {
        let mut switch = switch();
        assert!(switch.forward(PortId(1), &frame(mac(2), mac(7)), 0).is_empty(), "a guest with another's address");
        assert!(switch.forward(PortId(0), &frame(mac(2), mac(1)), 0).is_empty(), "a guest's address from outside");
        assert_eq!(switch.counters(PortId(1)).unwrap().drops_guard, 1);
        assert_eq!(switch.counters(PortId(0)).unwrap().drops_guard, 1);
        assert_eq!(ports(switch.forward(PortId(2), &frame(mac(1), mac(2)), 0)), [1], "and it is not learned");
    }

    #[test]
    fn link_local_groups_stay() {
        let mut switch = switch();
        for last in 0..16 {
            assert!(switch.forward(PortId(1), &frame([1, 0x80, 0xc2, 0, 0, last], mac(1)), 0).is_empty());
        }
        assert_eq!(switch.counters(PortId(1)).unwrap().drops_reserved, 16);
        assert!(!switch.forward(PortId(1), &frame([1, 0x80, 0xc2, 0, 0, 0x10], mac(1)), 0).is_empty());
    }

    #[test]
    fn malformed_frames_are_dropped() {
        let mut switch = switch();
        let long = [&frame(BROADCAST, mac(1))[..], &vec![0; GSO_FRAME_BYTES_MAX]].concat();
        for frame in [vec![], vec![0; 13], frame(mac(2), BROADCAST), frame(mac(2), [0; 6]), long] {
            assert!(switch.forward(PortId(1), &frame, 0).is_empty());
        }
        assert_eq!(switch.counters(PortId(1)).unwrap().drops_malformed, 5);
        assert!(switch.forward(PortId(63), &frame(BROADCAST, mac(1)), 0).is_empty());
        assert!(switch.forward(PortId(255), &frame(BROADCAST, mac(1)), 0).is_empty());
    }

    #[test]
    fn frames_and_bytes_are_counted() {
        let mut switch = switch();
        let frame = frame(BROADCAST, mac(1));
        switch.forward(PortId(1), &frame, 0);
        switch.undelivered(PortId(2), frame.len());
        switch.undelivered(PortId(99), 1);
        let counters = |port| *switch.counters(PortId(port)).unwrap();
        assert_eq!((counters(1).frames_in, counters(1).bytes_in), (1, 60));
        assert_eq!((counters(0).frames_out, counters(0).bytes_out), (1, 60));
        assert_eq!((counters(2).frames_out, counters(2).bytes_out, counters(2).drops_out), (0, 0, 1));
    }

    #[test]
    fn a_removed_port_leaves_nothing() {
        let mut switch = switch();
        switch.remove_port(PortId(2));
        switch.remove_port(PortId(200));
        assert_eq!(switch.counters(PortId(2)), None);
        assert_eq!(ports(switch.forward(PortId(1), &frame(mac(2), mac(1)), 0)), [0]);
        assert_eq!(switch.add_port(PortConfig { mac: Some(mac(2)), guard: true }), Some(PortId(2)));
        assert_eq!(switch.add_port(PortConfig { mac: Some(mac(2)), guard: true }), None, "an address has one port");
    }

    #[test]
    fn ports_run_out() {
        let mut switch = Switch::new();
        for port in 0..64 {
            assert_eq!(switch.add_port(PortConfig::default()), Some(PortId(port)));
        }
        assert_eq!(switch.add_port(PortConfig::default()), None);
        assert_eq!(switch.forward(PortId(63), &frame(BROADCAST, mac(1)), 0).count(), 63);
    }

    proptest! {
        #[test]
        fn no_frame_comes_back(port in 0_u8..4, bytes in prop::collection::vec(any::<u8>(), 0..64), now_ns in any::<u64>()) {
            let mut switch = switch();
            prop_assert!(!switch.forward(PortId(port), &bytes, now_ns).contains(PortId(port)));
        }
    }
}
