//! The run loop of one vCPU: what is due goes in, the guest runs until it exits, what it did goes out.

mod saved;

use crate::board::{Board, Slot};
use crate::exits::Next;
use crate::mail::Mail;
use crate::msr::Kept;
use crate::output::Outbox;
use crate::paravirt::Registered;
use crate::{End, ExitCounters, Host, Machine, Moment};
use addr::PAGE_BYTES;
use alloc::boxed::Box;
use alloc::vec::Vec;
use chipset::{DeliveryMode, Effect, Lapic, Message, Pending, Target};
use trace::Event as Trace;
use vcpu::{Event, ReadyFor, SegmentName, Vcpu, VcpuState, Window};

/// How soon a vCPU that found no memory looks again.
const MEMORY_NS: u64 = 10_000_000;

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
    /// The processor takes interrupts out of the local APIC's page by itself.
    delivers: bool,
    /// It takes those that others post by itself, too.
    takes_posted: bool,
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
    activity: Activity,
    /// Another vCPU ended this one's next halt, or the present one.
    unhalted: bool,
    counters: ExitCounters,
    /// When the board has something to do; the boot vCPU sees to it.
    board_deadline_ns: Option<u64>,
}

/// What a vCPU does (SDM volume 3, 10.4 and 25.4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Activity {
    /// It runs instructions.
    Running,
    /// It stands at a HLT.
    Halted,
    /// It waits for a start-up message.
    WaitingForStartup,
}

impl Thread {
    /// Replaces the local APIC.
    pub(crate) fn put_lapic(&mut self, lapic: Lapic) {
        self.delivers = self.vcpu.share_apic(lapic.page());
        self.lapic = lapic;
    }

    /// What the vCPU should take next that it does not take by itself, were it ready for everything but NMIs.
    fn pending(&self) -> Option<Pending> {
        if self.delivers {
            self.lapic.pending_ext_int().then_some(Pending::ExtInt)
        } else {
            self.lapic.pending_interrupt()
        }
    }

    /// Whether the guest is to find its interrupts ended by a bit in memory, where an access would exit.
    pub(crate) fn can_pv_eoi(&self) -> bool {
        !self.delivers && self.lapic.can_pv_eoi()
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
    /// vCPU `index`: the boot vCPU, 0, runs from `state` on, the others wait for a start-up message. Its TSC reads `tsc`
    /// now.
    pub fn thread(&self, index: usize, mut vcpu: Box<dyn Vcpu>, state: &VcpuState, tsc: u64, now: Moment) -> Thread {
        vcpu.offer_cr4(self.profile.cr4_bits());
        vcpu.offer_speculation(self.profile.speculation());
        vcpu.set_state(state);
        let ratio = self.profile.tsc_ratio();
        vcpu.scale_tsc(ratio);
        vcpu.set_tsc_offset(tsc.wrapping_sub(ratio.scale(now.tsc)));
        let mut lapic = Lapic::new(index as u32, index == 0, self.profile.real_tsc_khz().into());
        if index == 0 {
            lapic.enter_virtual_wire_mode();
        }
        Thread {
            index,
            delivers: vcpu.share_apic(lapic.page()),
            takes_posted: false,
            vcpu,
            lapic,
            kept: Kept::default(),
            registered: Registered::default(),
            xcr0: state.xcr0,
            timer_changed: true,
            effects: Vec::new(),
            board_touched: false,
            code_page: None,
            activity: if index == 0 { Activity::Running } else { Activity::WaitingForStartup },
            unhalted: false,
            counters: ExitCounters::new(),
            board_deadline_ns: None,
        }
    }

    /// Makes a thread known to its machine's others. Before any of them runs this is due for a thread whose local APIC
    /// is not as after reset.
    pub fn adopt(&self, thread: &Thread) {
        self.addresses.set(thread.index, thread.lapic.address());
    }

    /// The same for a thread that runs, whose local APIC may be in another mode by now.
    pub(crate) fn readdress(&self, thread: &mut Thread) {
        self.adopt(thread);
        let is_open = thread.lapic.is_open();
        thread.vcpu.open_apic(is_open);
        self.mailboxes[thread.index].set_postable(is_open && thread.takes_posted);
    }

    /// Runs a vCPU until the host has something to do, the guest sleeps, or the machine ends.
    pub fn run(&self, thread: &mut Thread, outbox: &mut Outbox, host: &mut dyn Host) -> Pause {
        let mailbox = &self.mailboxes[thread.index];
        mailbox.begin_running();
        self.tell_steal_time(thread, host.steal_ns());
        let pause = self.run_until_pause(thread, outbox, host);
        self.tell_preempted(thread);
        thread.vcpu.park();
        mailbox.end_running();
        self.counters[thread.index].lock().clone_from(&thread.counters);
        pause
    }

    fn run_until_pause(&self, thread: &mut Thread, outbox: &mut Outbox, host: &mut dyn Host) -> Pause {
        let mailbox = &self.mailboxes[thread.index];
        thread.timer_changed = true;
        thread.takes_posted = thread.vcpu.share_posted(mailbox.posted());
        self.readdress(thread);
        let mut now = host.now();
        let mut has_looked = false;
        loop {
            self.take_mail(thread);
            self.run_timers(thread, now, host);
            let is_served = thread.board_touched;
            if let Some(end) = self.finish_exit(thread, outbox, host) {
                return Pause::Ended(end);
            }
            if is_served && mailbox.has_mail() {
                // The board's interrupts: nobody else tells this vCPU of them.
                continue;
            }
            if thread.activity != Activity::Running && !self.wakes(thread) {
                // Once an entry: mail that wakes nobody, as much as there may be of it, does not keep the host from its work.
                if !core::mem::replace(&mut has_looked, true) && self.finds_mail(thread, host) {
                    now = host.now();
                    continue;
                }
                return Pause::Idle(self.deadline_ns(thread, now));
            }
            self.deliver(thread, host);
            self.offer_eoi(thread);
            has_looked = false;
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
            collect_tpr(thread);
            let next = self.handle(thread, exit, exited, host);
            let end = self.finish_exit(thread, outbox, host);
            now = host.now();
            thread.counters.record(exit.kind(), now.tsc.wrapping_sub(exited.tsc));
            match (end, next) {
                (Some(end), _) | (None, Next::End(end)) => return Pause::Ended(end),
                (None, Next::Run) => {}
                (None, Next::Halt) => thread.activity = Activity::Halted,
                (None, Next::Answer) => {
                    thread.vcpu.park();
                    if !host.may_run_on() {
                        return Pause::Interrupted;
                    }
                    now = host.now();
                }
                (None, Next::Yield) => return Pause::Interrupted,
                (None, Next::Wait) => return Pause::Idle(Some(now.ns + MEMORY_NS)),
            }
        }
    }

    /// Lets a vCPU that does not run look for mail where the host would have it so; says whether there is some.
    fn finds_mail(&self, thread: &Thread, host: &mut dyn Host) -> bool {
        let mailbox = &self.mailboxes[thread.index];
        mailbox.begin_looking();
        let has_mail = host.linger(&|| mailbox.has_mail());
        // Who posted until here told nobody. With mail it is taken next, and without, the sleep looks again.
        mailbox.begin_running();
        mailbox.set_postable(thread.lapic.is_open() && thread.takes_posted);
        has_mail
    }

    /// Everything that an exit caused or an input left to it: interrupts, device work, output, and perhaps the machine's
    /// end. Most exits leave nothing.
    #[inline]
    fn finish_exit(&self, thread: &mut Thread, outbox: &mut Outbox, host: &mut dyn Host) -> Option<End> {
        if !thread.effects.is_empty() {
            self.send_own(thread, host);
        }
        if !thread.board_touched {
            return None;
        }
        thread.board_touched = false;
        self.serve_board(thread, outbox, host)
    }

    fn serve_board(&self, thread: &mut Thread, outbox: &mut Outbox, host: &mut dyn Host) -> Option<End> {
        loop {
            let mut board = self.board.lock();
            board.effects.append(&mut thread.effects);
            self.serve_firmware(&mut board, thread, outbox, host);
            let more = self.pump_kicked(&mut board, outbox, host);
            if !board.effects.is_empty() {
                self.carry_out(&mut board, Some(outbox), host);
            }
            if board.timers_changed() {
                // The boot vCPU sees to them, which may be this one.
                self.post(0, Mail::BoardTimers, host);
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
        if board.meter.is_on() {
            board.meter.set_now_ns(self.epoch.machine_ns(host.now()));
        }
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
                let more = board.disks[disk].pump(&self.memory, disk, outbox, &mut board.meter);
                // Requests that were answered at once have no completion to wait for.
                board.disk_settle(&self.memory, disk);
                return more;
            }
            Slot::Card(card) => return board.pump_card(&self.memory, card, queue, outbox),
            Slot::Balloon => board.pump_balloon(&self.memory, queue, outbox),
        }
        false
    }

    /// Sends what the local APIC wants sent; the ends of level-triggered interrupts are the board's to see to.
    fn send_own(&self, thread: &mut Thread, host: &mut dyn Host) {
        thread.effects.retain(|effect| match effect {
            Effect::Interrupt(message) => {
                self.send(message, host);
                false
            }
            _ => true,
        });
        thread.board_touched |= !thread.effects.is_empty();
    }

    pub(crate) fn take_mail(&self, thread: &mut Thread) {
        if let Some(taken) = self.mailboxes[thread.index].take() {
            taken.each(|mail| self.receive(thread, mail));
        }
    }

    fn receive(&self, thread: &mut Thread, mail: Mail) {
        let interrupt = |mode| Message { vector: 0, mode, target: Target::All, level_triggered: false };
        match mail {
            Mail::Vector { vector, level_triggered } => {
                thread.lapic.accept(&Message { vector, level_triggered, ..interrupt(DeliveryMode::Fixed) });
            }
            Mail::Nmi if thread.activity == Activity::WaitingForStartup => {}
            Mail::Nmi => drop(thread.lapic.accept(&interrupt(DeliveryMode::Nmi))),
            Mail::ExtInt => drop(thread.lapic.accept(&interrupt(DeliveryMode::ExtInt))),
            Mail::Init => self.init(thread),
            Mail::Startup(page) => start_up(thread, page),
            Mail::PicLine(asserted) => thread.lapic.set_lint0(asserted),
            Mail::Board => thread.board_touched = true,
            Mail::BoardTimers => thread.timer_changed = true,
            Mail::Unhalt => thread.unhalted = true,
            Mail::Invalidate => {
                self.note_written(thread);
                thread.vcpu.invalidate();
            }
        }
    }

    /// Notes the pages that the processor logged as written.
    pub fn note_written(&self, thread: &mut Thread) {
        thread.vcpu.take_written(&mut |gpa| self.memory.mark_dirty(gpa, PAGE_BYTES));
    }

    /// INIT: the vCPU is as after reset but for what INIT leaves alone, and the boot vCPU goes to the reset vector at once
    /// (SDM volume 3, 10.4.2 and table 10-1).
    fn init(&self, thread: &mut Thread) {
        let state = thread.vcpu.state().after_init();
        thread.vcpu.set_state(&state);
        thread.vcpu.want_interrupt_window(Window::Never);
        thread.lapic.init();
        thread.registered = Registered::default();
        thread.timer_changed = true;
        thread.code_page = None;
        thread.unhalted = false;
        thread.activity = if thread.index == 0 { Activity::Running } else { Activity::WaitingForStartup };
        self.readdress(thread);
    }

    /// Lets timers expire, and arms the host's for the next.
    fn run_timers(&self, thread: &mut Thread, now: Moment, host: &mut dyn Host) {
        let clock = self.clock(now, thread.vcpu.tsc_offset());
        if thread.timer_changed {
            thread.lapic.advance(clock);
            if thread.index == 0 {
                let mut board = self.board.lock();
                if board.deadline_ns().is_some_and(|deadline| deadline <= clock.ns) {
                    let board = &mut *board;
                    board.resume_waiting(clock.ns);
                    thread.board_touched |= board.has_work();
                    board.chipset.advance(clock, &mut board.effects);
                    self.carry_out(board, None, host);
                }
                thread.board_deadline_ns = board.note_timers();
            }
            if let Some(deadline) = self.deadline_ns(thread, now) {
                host.arm(deadline);
            }
            thread.timer_changed = false;
            self.take_mail(thread);
        }
    }

    /// When something is due, in the host's time.
    fn deadline_ns(&self, thread: &Thread, now: Moment) -> Option<u64> {
        let clock = self.clock(now, thread.vcpu.tsc_offset());
        let lapic = thread.lapic.deadline_ns(clock);
        let due = lapic.into_iter().chain(thread.board_deadline_ns).min();
        due.map(|machine_ns| self.epoch.host_ns(machine_ns))
    }

    /// Whether a vCPU that runs no instructions has a reason to; then it does.
    fn wakes(&self, thread: &mut Thread) -> bool {
        let open = thread.vcpu.rflags() & vcpu::rflags::IF != 0;
        let nmi = thread.lapic.nmi_pending() && !thread.vcpu.nmi_blocked();
        let wakes = thread.activity == Activity::Halted
            && (nmi || thread.unhalted || open && thread.lapic.pending_interrupt().is_some());
        if wakes {
            thread.activity = Activity::Running;
            thread.unhalted = false;
        }
        wakes
    }

    /// Puts the next event into the entry, or asks for an exit as soon as it can go in.
    fn deliver(&self, thread: &mut Thread, host: &mut dyn Host) {
        if thread.lapic.nmi_pending() && !thread.vcpu.nmi_blocked() && thread.vcpu.ready_for() != ReadyFor::Nothing {
            thread.lapic.acknowledge_nmi();
            thread.vcpu.inject(Event::Nmi);
        }
        thread.vcpu.set_tpr(thread.lapic.tpr());
        let Some(pending) = thread.pending() else {
            return thread.vcpu.want_interrupt_window(window_when_idle(thread));
        };
        if thread.vcpu.ready_for() != ReadyFor::Interrupts {
            return thread.vcpu.want_interrupt_window(Window::Open);
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
        thread.vcpu.want_interrupt_window(window(thread));
    }
}

/// When a guest that runs could take another interrupt.
fn window(thread: &Thread) -> Window {
    if thread.pending().is_some() { Window::Open } else { window_when_idle(thread) }
}

/// The same where nothing is pending.
fn window_when_idle(thread: &Thread) -> Window {
    match thread.lapic.held_by_tpr() {
        Some(class) if !thread.delivers => Window::Below(class),
        _ => Window::Never,
    }
}

/// Takes over what the guest made of CR8. A task priority that it wrote to the local APIC has four bits more.
fn collect_tpr(thread: &mut Thread) {
    let class = thread.vcpu.tpr();
    if class != thread.lapic.tpr() {
        thread.lapic.set_tpr(class);
    }
}

/// A start-up message ends the wait for one; at other times nobody hears it (SDM volume 3, 10.4.4).
fn start_up(thread: &mut Thread, page: u8) {
    if thread.activity != Activity::WaitingForStartup {
        return;
    }
    let mut state = thread.vcpu.state();
    let code = &mut state.segments[SegmentName::Cs as usize];
    (code.selector, code.base) = (u16::from(page) << 8, u64::from(page) << 12);
    state.rip = 0;
    thread.vcpu.set_state(&state);
    thread.activity = Activity::Running;
}
