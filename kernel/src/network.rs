//! The network: a switch between guests, the host's network cards, and the management address.
//!
//! Frames are forwarded by [`Forwarder`], one for each CPU, a batch at a time: it finds the targets of all under the
//! network's lock, and hands them to guests without it. A guest's board is never locked inside.

use crate::host::Host;
use crate::services;
use crate::vm::{Refusal, Running, Vm};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use config::Mac;
use interrupts::LINE;
use switch::{
    CardCounters, Counters, Link, Nic, Offload, Offloads, Overlooked, PortConfig, PortId, Received, Segments, Sender,
    Shares, Switch, coalesce, complete_checksum,
};

/// Frames that wait for the management address at most.
const MANAGEMENT_FRAMES_MAX: usize = 512;

/// Frames taken from a card under one lock, and segments joined at most: a guest without room loses all of them.
const BATCH_FRAMES: usize = 32;
/// Frames taken from a card before others have their turn.
const RECEIVED_FRAMES_MAX: usize = 256;

/// The network.
pub struct Network {
    /// Boxed: its table is large, and start-up hands the network on by value.
    switch: Box<Switch>,
    ports: Vec<(PortId, Port)>,
    nics: Vec<Box<dyn Nic>>,
    /// The cards' links as last seen.
    links: Vec<Link>,
    /// The card that is the uplink.
    uplink: usize,
    /// Frames that the uplink did not announce.
    overlooked: Overlooked,
    /// Whose frames are in the uplink's transmit queue.
    shares: Shares,
    /// Interrupt vectors of the cards. They stay with CPU 0: a guest that sends goes on sending meanwhile.
    vectors: Vec<u8>,
    /// The cards that pull at a line.
    lines: Vec<usize>,
    /// Their lines were given up.
    polls_lines: bool,
    /// The management address's port, which is asked for at each frame.
    management: Option<PortId>,
    management_frames: VecDeque<Vec<u8>>,
}

enum Port {
    Uplink,
    Management(Mac),
    Guest { vm: String, mac: Mac, running: Weak<Running>, nic: usize },
}

/// A port, for the report.
pub struct PortReport {
    pub name: String,
    pub mac: Option<Mac>,
    pub counters: Counters,
    pub link: Link,
    /// The uplink's card and what it counted.
    pub card: Option<(String, Option<CardCounters>)>,
}

impl Network {
    /// A network that joins nothing.
    pub fn new() -> Self {
        Self {
            switch: Box::new(Switch::new()),
            ports: Vec::new(),
            nics: Vec::new(),
            links: Vec::new(),
            uplink: 0,
            overlooked: Overlooked::default(),
            shares: Shares::default(),
            vectors: Vec::new(),
            lines: Vec::new(),
            polls_lines: false,
            management: None,
            management_frames: VecDeque::new(),
        }
    }

    /// Adds a card of the host, which raises `vector`. One is the uplink, the first at first; the others stand by, since
    /// two uplinks to one network would be a loop.
    pub fn add_nic(&mut self, mut nic: Box<dyn Nic>, vector: Option<u8>) {
        if self.nics.is_empty()
            && let Some(port) = self.switch.add_port(PortConfig::default())
        {
            self.ports.push((port, Port::Uplink));
        }
        self.links.push(nic.link());
        self.lines.extend((vector == Some(LINE)).then_some(self.nics.len()));
        self.nics.push(nic);
        self.vectors.extend(vector);
    }

    /// The host's cards.
    pub fn nics(&self) -> &[Box<dyn Nic>] {
        &self.nics
    }

    /// Adds the management address's port, with the uplink's address; `None` without an uplink.
    pub fn add_management(&mut self) -> Option<(PortId, Mac)> {
        let mac = Mac::new(self.nics.first()?.mac())?;
        let port = self.switch.add_port(PortConfig { mac: Some(mac.bytes()), guard: true })?;
        self.ports.push((port, Port::Management(mac)));
        self.management = Some(port);
        Some((port, mac))
    }

    /// Adds a port for each of a VM's cards.
    pub fn add_guest(&mut self, vm: &Vm) -> Result<Vec<PortId>, Refusal> {
        let mut added = Vec::new();
        for &mac in &vm.macs() {
            let port = self.add_guest_port(vm, mac);
            added.push(port.inspect_err(|_| added.iter().for_each(|&port| self.remove(port)))?);
        }
        Ok(added)
    }

    /// Adds a port for one of a VM's cards.
    pub fn add_guest_port(&mut self, vm: &Vm, mac: Mac) -> Result<PortId, Refusal> {
        let Some(port) = self.switch.add_port(PortConfig { mac: Some(mac.bytes()), guard: false }) else {
            let message = format!("the switch has no port left for {mac}, or the address is in use");
            return Err((message, "choose another address, or stop another VM".into()));
        };
        let vm = String::from(vm.name());
        self.ports.push((port, Port::Guest { vm, mac, running: Weak::new(), nic: 0 }));
        Ok(port)
    }

    /// Takes a port of a guest's away.
    pub fn remove_guest_port(&mut self, port: PortId) {
        self.remove(port);
    }

    /// Says which life the ports of a VM belong to.
    pub fn set_guest(&mut self, life: &Arc<Running>) {
        let ports = life.ports.lock();
        for (id, port) in &mut self.ports {
            if let Port::Guest { running, nic, .. } = port
                && let Some(number) = ports.iter().position(|own| own == id)
            {
                (*running, *nic) = (Arc::downgrade(life), number);
            }
        }
    }

    /// Takes a VM's ports away.
    pub fn remove_guest(&mut self, life: &Running) {
        life.ports.lock().drain(..).for_each(|port| self.remove(port));
    }

    /// The next frame for the management address.
    pub fn next_management_frame(&mut self) -> Option<Vec<u8>> {
        self.management_frames.pop_front()
    }

    /// How many frames of the management address the uplink takes now. `waits` says that it took too few last time.
    pub fn uplink_room(&mut self, waits: bool) -> usize {
        self.shares.note_host(waits);
        let Some(nic) = self.nics.get_mut(self.uplink) else { return usize::MAX };
        self.shares.room(Sender::Host, nic.room(), nic.room_max())
    }

    /// The cards' interrupt vectors.
    pub fn vectors(&self) -> &[u8] {
        &self.vectors
    }

    /// Whether some card must be asked because it raises no interrupt.
    pub fn polls(&self) -> bool {
        self.polls_lines || self.nics.iter().any(|nic| !nic.has_interrupt())
    }

    /// Has every card that pulls at a line let it go; says whether one did. What it pulled for is to be seen to before
    /// the interrupt ends.
    pub fn release_lines(&mut self) -> bool {
        self.lines.iter().filter(|&&index| self.nics[index].acknowledge_interrupt()).count() > 0
    }

    /// Asks cards from now on that pull at a line.
    pub fn poll_lines(&mut self) {
        self.lines.clear();
        self.polls_lines = true;
    }

    /// Takes away why the uplink's message came. What pulls at a line is let go when that interrupts, and not
    /// otherwise: its interrupt would find nothing.
    fn acknowledge_uplink(&mut self) {
        if !self.lines.contains(&self.uplink) {
            self.nics[self.uplink].acknowledge_interrupt();
        }
    }

    /// Every port with its counters.
    pub fn report(&mut self) -> Vec<PortReport> {
        let (nics, switch, uplink) = (&mut self.nics, &self.switch, self.uplink);
        let report = |(id, port): &(PortId, Port)| {
            let (name, mac) = match port {
                Port::Uplink => (format!("uplink{uplink}"), Mac::new(nics[uplink].mac())),
                Port::Management(mac) => ("host".into(), Some(*mac)),
                Port::Guest { vm, nic, mac, .. } => (format!("{vm}/{nic}"), Some(*mac)),
            };
            let counters = switch.counters(*id).copied().unwrap_or_default();
            let card = matches!(port, Port::Uplink).then(|| &mut nics[uplink]);
            let (link, card) = match card {
                Some(nic) => (nic.link(), Some((nic.name().into(), nic.counters()))),
                // Guests reach each other whatever the uplink does.
                None => (Link::Up(None), None),
            };
            PortReport { name, mac, counters, link, card }
        };
        self.ports.iter().map(report).collect()
    }

    /// Looks after the cards, about once a second: tells of links that came or went, and makes a card with a link the
    /// uplink where the present one has none. Says whether the uplink has frames that it did not announce: once its ring is
    /// full of them it never would.
    pub fn tick(&mut self) -> bool {
        for (index, (nic, seen)) in self.nics.iter_mut().zip(&mut self.links).enumerate() {
            nic.tick();
            let link = nic.link();
            if core::mem::replace(seen, link) == link {
                continue;
            }
            match link {
                Link::Up(Some(mbps)) => log::info!("nic{index}: the link is up, {mbps} Mbit/s"),
                Link::Up(None) => log::info!("nic{index}: the link is up"),
                Link::Down => {
                    log::warn!("nic{index}: the link is down; guests keep theirs, as the switch still joins them")
                }
                Link::Failed => log::error!("nic{index}: the card has failed"),
            }
        }
        let is_up = |link: &Link| matches!(link, Link::Up(_));
        if self.links.get(self.uplink).is_some_and(|link| !is_up(link))
            && let Some(other) = self.links.iter().position(is_up)
        {
            log::warn!("nic{other} is the uplink now, in place of nic{}", self.uplink);
            self.uplink = other;
            self.overlooked = Overlooked::default();
            self.discard();
        }
        self.has_overlooked()
    }

    fn has_overlooked(&mut self) -> bool {
        let Some(nic) = self.nics.get_mut(self.uplink).filter(|nic| nic.has_interrupt()) else { return false };
        let overlooked = self.overlooked.look(nic.has_received());
        if overlooked {
            log::warn!("nic{}: frames waited that no interrupt announced", self.uplink);
        }
        overlooked
    }

    /// Throws away what a card received while it stood by.
    fn discard(&mut self) {
        let mut frame = Vec::new();
        self.acknowledge_uplink();
        let nic = &mut self.nics[self.uplink];
        (0..RECEIVED_FRAMES_MAX).take_while(|_| nic.receive(&mut frame).is_some()).count();
    }

    /// Fills `into` with frames that arrived from outside; the port that they came from and how many there are, or
    /// `None` without an uplink. Fewer than fit also means that the card announces the next. `is_first` at the first of
    /// several calls.
    fn receive(&mut self, into: &mut [Received], is_first: bool) -> Option<(PortId, usize)> {
        let port = self.ports.iter().find_map(|(id, port)| matches!(port, Port::Uplink).then_some(*id))?;
        if is_first {
            self.acknowledge_uplink();
        }
        let nic = self.nics.get_mut(self.uplink)?;
        let mut count = 0;
        for (offload, bytes) in into {
            let Some(received) = nic.receive(bytes) else { break };
            *offload = received;
            count += 1;
        }
        self.overlooked.took(count);
        Some((port, count))
    }

    /// The management address, which takes no joined segments.
    fn management(&self) -> Option<Mac> {
        self.ports.iter().find_map(|(_, port)| if let Port::Management(mac) = port { Some(*mac) } else { None })
    }

    fn remove(&mut self, port: PortId) {
        self.switch.remove_port(port);
        self.ports.retain(|(id, _)| *id != port);
    }
}

/// A frame on its way.
pub struct Frame<'a> {
    /// The port that it came from.
    pub from: PortId,
    /// What its sender left to do.
    pub offload: Offload,
    /// From the destination address on.
    pub bytes: &'a [u8],
}

/// Carries frames to where the switch says. One for each CPU, kept for its buffers.
pub struct Forwarder {
    /// The CPU that it works on.
    cpu: usize,
    /// Frames of the present batch that go to guests.
    for_guests: Vec<ForGuest>,
    /// Guests that got frames and were not told yet.
    unsettled: Vec<(Arc<Running>, usize)>,
    /// Frames were given to the host's cards, which were not told yet.
    kick_due: bool,
    segment: Vec<u8>,
    received: Vec<Received>,
}

/// What was taken in from outside.
pub struct Arrived {
    /// Something was.
    pub any: bool,
    /// There may be more.
    pub more: bool,
}

/// A frame of a batch, and a guest that it goes to.
struct ForGuest {
    frame: usize,
    port: PortId,
    running: Arc<Running>,
    nic: usize,
}

impl Forwarder {
    /// A forwarder for a CPU.
    pub fn new(cpu: usize) -> Self {
        Self {
            cpu,
            for_guests: Vec::new(),
            unsettled: Vec::new(),
            kick_due: false,
            segment: Vec::new(),
            received: Vec::new(),
        }
    }

    /// Carries `count` frames, in order; `frame` gives each by its number.
    pub fn forward<'a>(&mut self, host: &Host, count: usize, frame: impl Fn(usize) -> Frame<'a>) {
        let now_ns = host.clock.now_ns();
        let mut for_management = false;
        {
            let mut network = host.network.lock();
            for index in 0..count {
                for_management |= self.route(&mut network, index, &frame(index), now_ns);
            }
        }
        if for_management {
            services::note_management(host, self.cpu);
        }
        self.deliver(host, frame);
    }

    /// Ends a batch: the host's cards send, and `tell` tells each guest of the frames for one of its cards.
    pub fn settle(&mut self, host: &Host, mut tell: impl FnMut(&Arc<Running>, usize)) {
        if core::mem::take(&mut self.kick_due) {
            host.network.lock().nics.iter_mut().for_each(|nic| nic.kick());
        }
        for (running, nic) in self.unsettled.drain(..) {
            tell(&running, nic);
        }
    }

    /// Takes in what arrived from outside. CPU 0 alone calls this: frames stay in their order.
    pub fn receive(&mut self, host: &Host) -> Arrived {
        let mut received = core::mem::take(&mut self.received);
        received.resize_with(BATCH_FRAMES, Default::default);
        let management = host.network.lock().management();
        // What its own stack would have to cut apart again stays as it is.
        let may_join = |frame: &[u8]| management.is_none_or(|mac| !frame.starts_with(&mac.bytes()));
        let mut arrived = Arrived { any: false, more: true };
        for batch in 0..RECEIVED_FRAMES_MAX / BATCH_FRAMES {
            let Some((from, taken)) = host.network.lock().receive(&mut received, batch == 0) else {
                arrived.more = false;
                break;
            };
            arrived.any |= taken > 0;
            let count = coalesce(&mut received[..taken], may_join);
            let frame = |index: usize| {
                let (offload, bytes) = &received[index];
                Frame { from, offload: *offload, bytes }
            };
            self.forward(host, count, frame);
            if taken < BATCH_FRAMES {
                arrived.more = false;
                break;
            }
        }
        self.received = received;
        arrived
    }

    /// Gives a frame to all of its targets but guests, which are noted; says whether it is for the management address.
    fn route(&mut self, network: &mut Network, index: usize, frame: &Frame<'_>, now_ns: u64) -> bool {
        let Frame { from, offload, bytes } = frame;
        if offload.check(bytes).is_err() {
            return false;
        }
        let sender = if network.management == Some(*from) { Sender::Host } else { Sender::Guest };
        let mut for_management = false;
        for target in network.switch.forward(*from, bytes, now_ns) {
            let Some((_, port)) = network.ports.iter().find(|(id, _)| *id == target) else { continue };
            let taken = match port {
                Port::Uplink => {
                    self.kick_due = true;
                    let nic = &mut network.nics[network.uplink];
                    let shares = &mut network.shares;
                    finish(offload, bytes, nic.offloads(), &mut self.segment, |offload, frame| {
                        // The card is asked only where what is known would not do.
                        let fits = shares.limit(sender, nic.room_max()) > 0
                            || shares.room(sender, nic.room(), nic.room_max()) > 0;
                        let taken = fits && nic.transmit(offload, frame).is_ok();
                        if taken {
                            shares.sent(sender, frame.len());
                        }
                        taken
                    })
                }
                Port::Management(_) => {
                    for_management = true;
                    let frames = &mut network.management_frames;
                    finish(offload, bytes, Offloads::default(), &mut self.segment, |_, frame| {
                        let room = frames.len() < MANAGEMENT_FRAMES_MAX;
                        if room {
                            frames.push_back(frame.to_vec());
                        }
                        room
                    })
                }
                Port::Guest { running, nic, .. } => {
                    let running = running.upgrade();
                    let nic = *nic;
                    self.for_guests.extend(running.map(|running| ForGuest {
                        frame: index,
                        port: target,
                        running,
                        nic,
                    }));
                    true
                }
            };
            if !taken {
                network.switch.undelivered(target, bytes.len());
            }
        }
        for_management
    }

    /// Hands frames to guests. The network is not locked, but for a moment where one is lost.
    fn deliver<'a>(&mut self, host: &Host, frame: impl Fn(usize) -> Frame<'a>) {
        let now = host.clock.now();
        for ForGuest { frame: index, port, running, nic } in self.for_guests.drain(..) {
            let Frame { offload, bytes, .. } = frame(index);
            let machine = &running.machine;
            let taken = finish(&offload, bytes, machine.nic_offloads(nic), &mut self.segment, |offload, frame| {
                machine.frame(nic, offload, frame, now).is_ok()
            });
            if !taken {
                host.network.lock().switch.undelivered(port, bytes.len());
            }
            if !self.unsettled.iter().any(|(other, of)| Arc::ptr_eq(other, &running) && *of == nic) {
                self.unsettled.push((running, nic));
            }
        }
    }
}

/// Does what is left to do on a frame and its receiver does not do, and hands over the result; says whether all of it
/// was taken.
fn finish(
    offload: &Offload,
    frame: &[u8],
    able: Offloads,
    segment: &mut Vec<u8>,
    mut hand_over: impl FnMut(&Offload, &[u8]) -> bool,
) -> bool {
    let segments = match offload.gso {
        switch::Gso::None => true,
        switch::Gso::Tcp4 => able.transmit_tso4,
        switch::Gso::Tcp6 => able.transmit_tso6,
    };
    let is_able = segments && (able.transmit_ecn || !offload.ecn || offload.gso == switch::Gso::None);
    if is_able && (able.transmit_checksum || !offload.needs_checksum) {
        return hand_over(offload, frame);
    }
    if offload.gso == switch::Gso::None {
        segment.clear();
        segment.extend_from_slice(frame);
        complete_checksum(segment, offload);
        return hand_over(&Offload::default(), segment);
    }
    let Ok(mut segments) = Segments::new(frame, offload) else { return false };
    let mut all = true;
    while segments.next_into(segment) {
        all &= hand_over(&Offload::default(), segment);
    }
    all
}
