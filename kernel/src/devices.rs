//! What each CPU does for the disks and cards whose interrupts come to it: completions and frames go to their guests.
//!
//! The type is [`Devices`], one for each CPU. A disk's interrupt is turned to the CPU whose guest mostly waits
//! for it (`steering`), and so what is here, that guest's wake-up and its next entry are one way on one CPU. Cards,
//! devices that raise no interrupt, and what the host itself transfers, are seen to by CPU 0 (`services`).

use crate::cpu_loop::InputHost;
use crate::host::Host;
use crate::lines;
use crate::network::{Arrived, Forwarder};
use crate::services;
use crate::storage::Ended;
use crate::vm::Running;
use alloc::sync::Arc;
use alloc::vec::Vec;
use interrupts::LINE;

/// How soon a card is asked again that had more frames than one turn takes; a guest on this CPU runs meanwhile.
const MORE_FRAMES_NS: u64 = 100_000;

/// How often in a row lines may interrupt for none of the cards: its cause may be taken away just before it is looked for.
const STRAY_LINES_MAX: u32 = 1000;

/// One CPU's part in the work for disks and cards.
pub struct Devices {
    cpu: usize,
    /// Their interrupt vectors; they do not change, and no lock is taken to ask.
    disks: Vec<u8>,
    cards: Vec<u8>,
    /// Transfers that ended; kept for its memory.
    ended: Vec<Ended>,
    /// When a card is asked again.
    frames_due_ns: Option<u64>,
    /// How often in a row a line interrupted and no card had pulled.
    stray_lines: u32,
    /// Some cards raise no interrupt.
    polls_cards: bool,
}

impl Devices {
    /// For CPU `cpu`, once all drivers have started.
    pub fn new(host: &Host, cpu: usize) -> Self {
        let disks = host.storage.lock().vectors();
        let (cards, polls_cards) = {
            let network = host.network.lock();
            (network.vectors().to_vec(), network.polls())
        };
        Self { cpu, disks, cards, ended: Vec::new(), frames_due_ns: None, stray_lines: 0, polls_cards }
    }

    /// Whether an interrupt is a disk's or a card's.
    pub fn raise(&self, vector: u8) -> bool {
        self.disks.contains(&vector) || self.cards.contains(&vector)
    }

    /// Whether some card must be asked because it raises no interrupt.
    pub fn polls_cards(&self) -> bool {
        self.polls_cards
    }

    /// When it wants to be called next.
    pub fn due_ns(&self) -> Option<u64> {
        self.frames_due_ns
    }

    /// Sees to the devices whose interrupts arrived, and to what is due.
    pub fn serve(&mut self, host: &'static Host, arrived: &[u8], forwarder: &mut Forwarder) {
        if arrived.iter().any(|vector| self.disks.contains(vector)) {
            self.finish_transfers(host, Some(arrived));
        }
        let has_line = arrived.contains(&LINE);
        if has_line {
            self.release_lines(host);
        }
        let is_due = self.frames_due_ns.is_some_and(|due_ns| due_ns <= host.clock.now_ns());
        if is_due || arrived.iter().any(|vector| self.cards.contains(vector)) {
            self.take_frames(host, forwarder);
        }
        if has_line {
            interrupts::end_line();
        }
    }

    /// Has cards let their lines go, and gives the lines up where it is somebody else who pulls.
    fn release_lines(&mut self, host: &Host) {
        let mut network = host.network.lock();
        self.stray_lines = if network.release_lines() { 0 } else { self.stray_lines + 1 };
        if self.stray_lines == STRAY_LINES_MAX {
            log::warn!("a device that is not driven pulls at a card's interrupt line: the card is asked instead");
            lines::give_up();
            network.poll_lines();
            self.polls_cards = true;
        }
    }

    /// Takes in frames from outside; says whether there were any.
    pub fn take_frames(&mut self, host: &'static Host, forwarder: &mut Forwarder) -> bool {
        let Arrived { any, more } = forwarder.receive(host);
        self.frames_due_ns = more.then(|| host.clock.now_ns() + MORE_FRAMES_NS);
        settle(host, self.cpu, forwarder);
        any
    }

    /// Tells machines of the transfers that ended: on the disks that raise one of `vectors`, or on all.
    pub fn finish_transfers(&mut self, host: &'static Host, vectors: Option<&[u8]>) {
        let mut ended = core::mem::take(&mut self.ended);
        if host.storage.lock().take_ended(vectors, &mut ended) {
            services::note_transfers(host, self.cpu);
        }
        for Ended { running, disk, id, outcome, .. } in &ended {
            running.count_outcome(*disk, *outcome);
            running.machine.disk_done(*disk, *id, *outcome, &mut InputHost::new(host, self.cpu, running));
        }
        // One call a disk is enough: where transfers of several disks took turns, a second finds nothing to tell.
        for (index, Ended { running, datastore, disk, .. }) in ended.iter().enumerate() {
            let next = ended.get(index + 1);
            if next.is_some_and(|next| Arc::ptr_eq(&next.running, running) && next.disk == *disk) {
                continue;
            }
            if let Some(cpu) = settle_disk(host, self.cpu, running, *disk) {
                host.storage.lock().note_for(*datastore, cpu, &host.cpus, host.clock.now_ns());
            }
        }
        ended.clear();
        self.ended = ended;
    }
}

/// Tells guests of the frames that were forwarded to them.
pub fn settle(host: &'static Host, cpu: usize, forwarder: &mut Forwarder) {
    forwarder.settle(host, |running, nic| {
        running.machine.frames_settle(nic, &mut InputHost::new(host, cpu, running));
    });
}

fn settle_disk(host: &'static Host, cpu: usize, running: &Arc<Running>, disk: usize) -> Option<usize> {
    let mut input = InputHost::new(host, cpu, running);
    running.machine.disks_settle(disk, &mut input);
    input.told
}
