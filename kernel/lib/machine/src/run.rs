//! The run loop of one vCPU: what is due goes in, the guest runs until it exits, what it did goes out.

use crate::board::{Board, Slot};
use crate::exits::Next;
use crate::mail::Mail;
use crate::msr::Kept;
use crate::output::Outbox;
use crate::paravirt::Registered;
use crate::{End, ExitCounters, Host, Machine, Moment};
use alloc::boxed::Box;
use alloc::vec::Vec;
use chipset::{Accepted, Effect, Lapic, Pending};
use trace::Event as Trace;
use vcpu::{Event, ReadyFor, Vcpu, VcpuState};

/// Why a vCPU let go of its CPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pause {
    /// The host has something to do; then run on.
    Interrupted,
    /// The guest sleeps: until its mailbox has mail, or this moment in nanoseconds.
    Idle(Option<u64>),
    /// The machine ended.
    Ended(End),
}

/// What one vCPU keeps for itself: only the CPU that runs it touches this.
pub struct Thread {
    pub(crate) index: usize,
    pub(crate) vcpu: Box<dyn Vcpu>,
    pub(crate) lapic: Lapic,
    pub(crate) kept: Kept,
    pub(crate) registered: Registered,
    pub(crate) xcr0: u64,
    /// The local APIC's timer, or the clock under it, may have another deadline than when last armed.
    pub(crate) timer_changed: bool,
    /// What the local APIC wants done.
    pub(crate) effects: Vec<Effect>,
    /// The last exit reached the board, which may want something done.
    pub(crate) board_touched: bool,
    /// Where the last exit's code was found.
    pub(crate) code_page: Option<insn::CodePage>,
    halted: bool,
    mail: Vec<Mail>,
    counters: ExitCounters,
    board_deadline_ns: Option<u64>,
}

impl Thread {
    /// vCPU `index`, with the state to start in.
    pub fn new(index: usize, mut vcpu: Box<dyn Vcpu>, state: &VcpuState, tsc_khz: u32) -> Self {
        vcpu.set_state(state);
        vcpu.set_tsc(0);
        let mut lapic = Lapic::new(index as u32, index == 0, tsc_khz.into());
        if index == 0 {
            lapic.enter_virtual_wire_mode();
        }
        Self {
            index,
            vcpu,
            lapic,
            kept: Kept::default(),
            registered: Registered::default(),
            xcr0: state.xcr0,
            timer_changed: true,
            effects: Vec::new(),
            board_touched: false,
            code_page: None,
            halted: false,
            mail: Vec::new(),
            counters: ExitCounters::new(),
            board_deadline_ns: None,
        }
    }

    /// Takes the vCPU's floating-point state off this physical CPU, for another to use it.
    pub fn unload(&mut self) {
        self.vcpu.unload();
    }

    /// Where the guest is, for people.
    pub fn rip(&self) -> u64 {
        self.vcpu.rip()
    }
}

impl Machine {
    /// Runs a vCPU until the host has something to do, the guest sleeps, or the machine ends.
    pub fn run(&self, thread: &mut Thread, outbox: &mut Outbox, host: &mut dyn Host) -> Pause {
        let pause = self.run_until_pause(thread, outbox, host);
        thread.vcpu.park();
        self.counters[thread.index].lock().clone_from(&thread.counters);
        pause
    }

    fn run_until_pause(&self, thread: &mut Thread, outbox: &mut Outbox, host: &mut dyn Host) -> Pause {
        thread.timer_changed = true;
        let mut now = host.now();
        loop {
            self.take_mail(thread);
            self.run_timers(thread, now, host);
            if let Some(end) = self.finish_exit(thread, outbox, host) {
                return Pause::Ended(end);
            }
            if thread.halted && !self.wakes(thread) {
                return Pause::Idle(self.deadline_ns(thread, now));
            }
            thread.halted = false;
            self.deliver(thread, host);
            self.offer_eoi(thread);
            let exit = thread.vcpu.run();
            let exited = host.now();
            host.trace(Trace::Exit {
                vm: self.id,
                vcpu: thread.index as u16,
                kind: exit.kind() as u8,
                rip: thread.vcpu.rip(),
                detail: 0,
            });
            self.collect_eoi(thread);
            let next = self.handle(thread, exit, exited);
            let end = self.finish_exit(thread, outbox, host);
            now = host.now();
            thread.counters.record(exit.kind(), now.tsc.wrapping_sub(exited.tsc));
            match (end, next) {
                (Some(end), _) | (None, Next::End(end)) => return Pause::Ended(end),
                (None, Next::Run) => {}
                (None, Next::Halt) => thread.halted = true,
                (None, Next::Yield) => return Pause::Interrupted,
            }
        }
    }

    /// Everything that an exit caused or an input left to it: interrupts, device work, output, and perhaps the machine's
    /// end.
    fn finish_exit(&self, thread: &mut Thread, outbox: &mut Outbox, host: &mut dyn Host) -> Option<End> {
        if !thread.board_touched && thread.effects.is_empty() {
            return None;
        }
        thread.board_touched = false;
        loop {
            let mut board = self.board.lock();
            board.effects.append(&mut thread.effects);
            let more = self.pump_kicked(&mut board, outbox, host);
            if !board.effects.is_empty() {
                self.carry_out(&mut board, Some(outbox), host);
            }
            if thread.index == 0 && board.chipset.deadline_ns() != thread.board_deadline_ns {
                thread.timer_changed = true;
            }
            let end = if more { None } else { board.end.take() };
            drop(board);
            if !outbox.is_empty() {
                // What leaves may take a while: the host works in its own state, and holds nothing back.
                thread.vcpu.park();
                host.flush(outbox);
                outbox.clear();
            }
            if !more {
                return end;
            }
        }
    }

    /// Sees to the queues that were kicked; says whether output must leave before it can go on.
    fn pump_kicked(&self, board: &mut Board, outbox: &mut Outbox, host: &mut dyn Host) -> bool {
        while let Some((slot, queue)) = board.take_kick() {
            let mut random = |bytes: &mut [u8]| host.random(bytes);
            if self.pump(board, slot, queue, outbox, &mut random) {
                board.kick_again(slot, queue);
                return true;
            }
        }
        false
    }

    /// Sees to one queue that was kicked; says whether output must leave before it can go on.
    fn pump(
        &self,
        board: &mut Board,
        slot: Slot,
        queue: u16,
        outbox: &mut Outbox,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> bool {
        match slot {
            Slot::Console => return board.pump_console(&self.memory, outbox),
            Slot::Rng => board.pump_rng(&self.memory, random),
            Slot::Disk(disk) => {
                let more = board.disks[disk].pump(&self.memory, disk, outbox);
                // Requests that were answered at once have no completion to wait for.
                board.disk_settle(&self.memory, disk);
                return more;
            }
            Slot::Card(card) => return board.pump_card(&self.memory, card, queue, outbox),
        }
        false
    }

    fn take_mail(&self, thread: &mut Thread) {
        self.mailboxes[thread.index].take(&mut thread.mail);
        for index in 0..thread.mail.len() {
            match thread.mail[index] {
                Mail::PicLine(asserted) => thread.lapic.set_lint0(asserted),
                Mail::Board => thread.board_touched = true,
                Mail::Message(message) if thread.lapic.addressed_by(&message) => {
                    // Start-up of other vCPUs comes with them; one vCPU ignores INIT and STARTUP to itself.
                    match thread.lapic.accept(&message) {
                        Accepted::Ignored | Accepted::Pending | Accepted::Nmi | Accepted::ExtInt => {}
                        Accepted::Init | Accepted::Startup(_) => {}
                    }
                }
                Mail::Message(_) => {}
            }
        }
        thread.mail.clear();
    }

    /// Lets timers expire, and arms the host's for the next.
    fn run_timers(&self, thread: &mut Thread, now: Moment, host: &mut dyn Host) {
        let clock = Self::clock(now, thread.vcpu.tsc_offset());
        if thread.timer_changed {
            thread.lapic.advance(clock);
            if thread.index == 0 {
                let mut board = self.board.lock();
                if board.chipset.deadline_ns().is_some_and(|deadline| deadline <= now.ns) {
                    let board = &mut *board;
                    board.chipset.advance(clock, &mut board.effects);
                    self.carry_out(board, None, host);
                }
                thread.board_deadline_ns = board.chipset.deadline_ns();
            }
            if let Some(deadline) = self.deadline_ns(thread, now) {
                host.arm(deadline);
            }
            thread.timer_changed = false;
            self.take_mail(thread);
        }
    }

    fn deadline_ns(&self, thread: &Thread, now: Moment) -> Option<u64> {
        let clock = Self::clock(now, thread.vcpu.tsc_offset());
        let lapic = thread.lapic.deadline_ns(clock);
        lapic.into_iter().chain(thread.board_deadline_ns).min()
    }

    /// Whether a halted vCPU has a reason to go on.
    fn wakes(&self, thread: &Thread) -> bool {
        let open = thread.vcpu.rflags() & vcpu::rflags::IF != 0;
        let nmi = thread.lapic.nmi_pending() && !thread.vcpu.nmi_blocked();
        nmi || open && thread.lapic.pending_interrupt().is_some()
    }

    /// Puts the next event into the entry, or asks for an exit as soon as it can go in.
    fn deliver(&self, thread: &mut Thread, host: &mut dyn Host) {
        if thread.lapic.nmi_pending() && !thread.vcpu.nmi_blocked() && thread.vcpu.ready_for() != ReadyFor::Nothing {
            thread.lapic.acknowledge_nmi();
            thread.vcpu.inject(Event::Nmi);
        }
        let Some(pending) = thread.lapic.pending_interrupt() else {
            thread.vcpu.want_interrupt_window(false);
            return;
        };
        if thread.vcpu.ready_for() != ReadyFor::Interrupts {
            thread.vcpu.want_interrupt_window(true);
            return;
        }
        let vector = match pending {
            Pending::Vector(vector) => {
                thread.lapic.acknowledge(vector);
                vector
            }
            Pending::ExtInt => {
                let mut board = self.board.lock();
                let board = &mut *board;
                let vector = board.chipset.acknowledge_pic(&mut board.effects);
                thread.lapic.acknowledge_ext_int();
                self.carry_out(board, None, host);
                // The line falls with the acknowledgement: the question below must not see it as it was.
                self.take_mail(thread);
                vector
            }
            Pending::Nmi => return,
        };
        thread.vcpu.inject(Event::Interrupt(vector));
        host.trace(Trace::Inject { vm: self.id, vcpu: thread.index as u16, vector });
        // More that waits goes in when this one's handler lets it.
        thread.vcpu.want_interrupt_window(thread.lapic.pending_interrupt().is_some());
    }
}
