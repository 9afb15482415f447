//! The machine's network cards: frames out of and into virtio-net, and what is left to do to them, between the terms
//! of `virtio` and of `switch`.

mod saved;

use crate::board::{Board, Slot};
use crate::input::FrameLost;
use crate::output::Outbox;
use guestmem::GuestMemory;
use switch::{Gso, Offload};
use virtio::net::{
    FLAG_DATA_VALID, FLAG_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NetConfig, NetHeader, QUEUE_CONTROL,
    QUEUE_TRANSMIT, TxFrame,
};
use virtio::{Function, Net};

/// A network card of a machine.
#[derive(Clone, Copy, Debug)]
pub struct NicConfig {
    /// Its address.
    pub mac: [u8; 6],
    /// The largest packet of its network, in bytes without the Ethernet header.
    pub mtu: u16,
}

/// A card on the board.
pub struct Card {
    pub function: Function<Net>,
}

impl Card {
    pub fn new(config: NicConfig) -> Self {
        let NicConfig { mac, mtu } = config;
        Self { function: Function::new(Net::new(NetConfig { mac, mtu, offloads: true })) }
    }
}

impl Board {
    /// Sees to a queue of a card that was kicked; says whether frames must leave before it can go on.
    pub(crate) fn pump_card(&mut self, memory: &GuestMemory, card: usize, queue: u16, outbox: &mut Outbox) -> bool {
        let (function, meter) = (&mut self.cards[card].function, &mut self.meter);
        let mut more = false;
        match queue {
            QUEUE_TRANSMIT => {
                more = loop {
                    if !meter.may_take(Slot::Card(card), queue) {
                        break false;
                    }
                    let transmit = |frame: &mut TxFrame| {
                        let any = function.transmit(memory, frame);
                        if any {
                            meter.took(Slot::Card(card), frame.bytes.len() as u64);
                        }
                        any
                    };
                    match outbox.push_frame(card, transmit) {
                        Some(true) => {}
                        Some(false) => break false,
                        None => break true,
                    }
                };
                function.notify_transmit(memory, &mut self.signals);
            }
            QUEUE_CONTROL => function.control(memory, &mut self.signals),
            _ => {}
        }
        self.settle(Slot::Card(card));
        more
    }

    pub(crate) fn frame(
        &mut self,
        memory: &GuestMemory,
        card: usize,
        offload: &Offload,
        bytes: &[u8],
    ) -> Result<(), FrameLost> {
        let card = self.cards.get_mut(card).ok_or(FrameLost)?;
        card.function.receive(memory, &header_of(offload), bytes).map_err(|_| FrameLost)
    }

    pub(crate) fn frames_settle(&mut self, memory: &GuestMemory, card: usize) {
        if let Some(function) = self.cards.get_mut(card).map(|card| &mut card.function) {
            function.notify_receive(memory, &mut self.signals);
            self.settle(Slot::Card(card));
        }
    }

    pub(crate) fn announce(&mut self) {
        for card in self.cards.numbers() {
            self.cards[card].function.announce(&mut self.signals);
            self.settle(Slot::Card(card));
        }
    }

    pub(crate) fn nic_offloads(&self, card: usize) -> switch::Offloads {
        let Some(card) = self.cards.get(card) else { return switch::Offloads::default() };
        let offloads = card.function.device.guest_offloads();
        switch::Offloads {
            transmit_checksum: offloads.csum,
            transmit_tso4: offloads.tso4,
            transmit_tso6: offloads.tso6,
            transmit_ecn: false,
        }
    }
}

/// What a guest left to do to a frame, in the switch's terms.
pub fn offload_of(header: &NetHeader) -> Offload {
    let gso = match header.gso_type {
        GSO_TCPV4 => Gso::Tcp4,
        GSO_TCPV6 => Gso::Tcp6,
        _ => Gso::None,
    };
    Offload {
        needs_checksum: header.flags & FLAG_NEEDS_CSUM != 0,
        checksum_valid: header.flags & FLAG_DATA_VALID != 0,
        checksum_start: header.csum_start,
        checksum_offset: header.csum_offset,
        gso,
        ecn: false,
        gso_size: header.gso_size,
        header_bytes: header.hdr_len,
    }
}

pub(crate) fn header_of(offload: &Offload) -> NetHeader {
    let needs = if offload.needs_checksum { FLAG_NEEDS_CSUM } else { 0 };
    let valid = if offload.checksum_valid { FLAG_DATA_VALID } else { 0 };
    let gso_type = match offload.gso {
        Gso::None => GSO_NONE,
        Gso::Tcp4 => GSO_TCPV4,
        Gso::Tcp6 => GSO_TCPV6,
    };
    NetHeader {
        flags: needs | valid,
        gso_type,
        hdr_len: offload.header_bytes,
        gso_size: offload.gso_size,
        csum_start: offload.checksum_start,
        csum_offset: offload.checksum_offset,
    }
}
