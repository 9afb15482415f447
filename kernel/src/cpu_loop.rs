//! What every CPU does for ever: take what arrived, serve, run a guest, or sleep.
//!
//! Interrupts of the host are shut but for three places here: the moment in which they are let in, the same between a
//! guest's exit and its next entry, and the sleep.

use crate::alarm::Alarm;
use crate::crew::CREW;
use crate::devices::Devices;
use crate::host::{self, Host};
use crate::network::{Forwarder, Frame};
use crate::processor::Watch;
use crate::services::{self, Services};
use crate::turns::{Slice, Turns};
use crate::vm::{Ending, LINGER_NS, Queued, Running};
use addr::{Gpa, Hpa};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use cpu::percpu;
use interrupts::local_apic;
use machine::{Moment, Outbox, Pause, Thread};
use trace::Event;
use virtio::blk::Outcome;

/// How long a vCPU runs where it is throttled: short, so that the guest crawls and does not stall.
const THROTTLED_SLICE_NS: u64 = 2_000_000;
/// How long a vCPU runs at least, unless an interrupt arrives.
const SLICE_NS_MIN: u64 = 50_000;
/// How long a vCPU runs on that woke another of the same CPU: long enough to send the rest of a batch.
const WAKER_NS: u64 = 100_000;
/// How long a vCPU waits for its CPU while another CPU has nothing to do.
const WAIT_NS_MAX: u64 = 1_000_000;
/// How long a vCPU that is called again and again runs on before its CPU's loop looks at everything.
const CALLED_NS_MAX: u64 = 1_000_000;
/// How often a vCPU looks for mail before it is asked whether the host wants the CPU.
const LOOKS: u32 = 16;

/// One CPU's loop.
struct CpuLoop {
    host: &'static Host,
    index: usize,
    alarm: Alarm,
    outbox: Outbox,
    forwarder: Forwarder,
    /// Interrupts that arrived; kept for its memory.
    arrived: Vec<u8>,
    /// What this CPU does for disks and cards.
    devices: Devices,
    /// CPU 0 serves.
    services: Option<Services>,
    services_due_ns: Option<u64>,
    /// Whose floating-point state is in the processor.
    loaded: Option<Loaded>,
    /// Whose turn it is.
    turns: Turns,
    /// Its TSC is no other's past: vCPUs may move from and to it.
    trades: bool,
    /// For errors that this CPU reports.
    watch: Watch,
}

/// A vCPU that is out of its home.
struct Loaded {
    queued: Queued,
    thread: Box<Thread>,
}

/// Runs this CPU.
pub fn run(host: &'static Host, index: usize) -> ! {
    let lag = host.cpus.tsc_lag(index);
    if lag > 0 {
        log::warn!(
            "the TSC of CPU {index} is {} us behind: its guests' clocks stand still as long",
            host.clock.ns(lag) / 1000
        );
    }
    let trades = lag == 0;
    host.cpus.set_wanted(index, if trades { 0 } else { usize::MAX });
    let mut cpu_loop = CpuLoop {
        host,
        index,
        alarm: Alarm::default(),
        outbox: Outbox::new(),
        forwarder: Forwarder::new(index),
        arrived: Vec::new(),
        devices: Devices::new(host, index),
        services: (index == 0).then(|| Services::new(host)),
        services_due_ns: None,
        loaded: None,
        turns: Turns::default(),
        trades,
        watch: Watch::default(),
    };
    loop {
        cpu_loop.turn();
    }
}

impl CpuLoop {
    fn turn(&mut self) {
        cpu::take_interrupts();
        self.arrived.clear();
        percpu::current().take_arrived(|vector| self.arrived.push(vector));
        if self.arrived.contains(&interrupts::TIMER) {
            self.alarm.rang();
        }
        let deadline_ns = self.serve();
        let watch_ns = self.watch.turn(self.index, self.host.clock.now_ns());
        let deadline_ns = deadline_ns.into_iter().chain([watch_ns]).min();
        self.let_go();
        match self.next_ready() {
            Some(slice) => self.run_slice(&slice, deadline_ns),
            // They are asked anew.
            None if self.services.as_mut().is_some_and(Services::note_no_guest) => self.services_due_ns = None,
            None if self.index != 0 && CREW.help() => {}
            None => self.sleep(deadline_ns),
        }
    }

    /// Sees to the devices that called, and does what CPU 0 does for the host when that is due, noted or called for: most
    /// interruptions are a guest's own. Returns when it wants to be called next.
    fn serve(&mut self) -> Option<u64> {
        self.devices.serve(self.host, &self.arrived, &mut self.forwarder);
        let Some(services) = &mut self.services else { return self.devices.due_ns() };
        let is_called = self.arrived.iter().any(|&vector| services::may_be_console(&self.devices, vector));
        let is_due = self.services_due_ns.is_none_or(|due_ns| due_ns <= self.host.clock.now_ns());
        if is_called || is_due || services::has_work() {
            self.services_due_ns = services.poll(&self.arrived, &mut self.devices, &mut self.forwarder);
        }
        self.devices.due_ns().into_iter().chain(self.services_due_ns).min()
    }

    /// Takes a vCPU that may not run any more off this CPU: who paused it waits for its state.
    fn let_go(&mut self) {
        if self.loaded.as_ref().is_some_and(|loaded| !loaded.queued.running.may_run()) {
            self.unload();
        }
    }

    fn next_ready(&mut self) -> Option<Slice> {
        let now_ns = self.host.clock.now_ns();
        if self.trades {
            self.give_away(now_ns);
            self.share(now_ns);
        }
        self.turns.next(&mut self.host.cpus.queue(self.index).lock(), now_ns)
    }

    /// Gives the vCPU that has waited longest here to a CPU that has nothing to do, unless it is pinned.
    fn give_away(&mut self, now_ns: u64) {
        let cpus = &self.host.cpus;
        let mut queue = cpus.queue(self.index).lock();
        let waiting = queue.iter().enumerate().filter_map(|(position, queued)| {
            let waited_ns = queued.waits_ns(now_ns).filter(|&waited_ns| waited_ns >= WAIT_NS_MAX)?;
            Some((waited_ns, position))
        });
        let Some((_, position)) = waiting.max() else { return };
        let Some(to) = cpus.claim_idle() else { return };
        let queued = queue.remove(position);
        drop(queue);
        self.move_away(queued, to);
    }

    /// Now and then sends the vCPU that ran last to a CPU that is wanted less, and not more than this one with it there: of
    /// three alike on two CPUs each is alone in turn.
    fn share(&mut self, now_ns: u64) {
        let cpus = &self.host.cpus;
        let mut queue = cpus.queue(self.index).lock();
        let ready = || queue.iter().filter(|queued| queued.is_ready(now_ns));
        cpus.set_wanted(self.index, ready().map(Queued::weight).sum());
        let lightest = ready().filter(|queued| queued.may_move(now_ns)).map(Queued::weight).min();
        let Some(lightest) = lightest.filter(|_| ready().count() > 1) else { return };
        let Some((to, less)) = cpus.claim_less_wanted(self.index, lightest, now_ns) else { return };
        self.unload();
        let fitting = queue.iter().enumerate().filter(|(_, queued)| queued.weight() <= less);
        let waiting = fitting.filter_map(|(position, queued)| Some((queued.waits_ns(now_ns)?, position)));
        let Some((_, position)) = waiting.min() else { return };
        let queued = queue.remove(position);
        drop(queue);
        cpus.note_moved(self.index, to, queued.weight());
        self.move_away(queued, to);
    }

    /// Lets a vCPU that is out of the queue go on on another CPU.
    fn move_away(&mut self, queued: Queued, to: usize) {
        self.turns.forget(&queued);
        let cpus = &self.host.cpus;
        let mut queue = cpus.queue(to).lock();
        // In one: who finds it there finds it in the queue.
        queued.running.vcpus[queued.vcpu].move_to(to);
        queue.push(queued);
        drop(queue);
        cpus.kick(self.index, to);
    }

    /// Runs a vCPU until its slice is over, it sleeps, or there is something else to do.
    fn run_slice(&mut self, slice: &Slice, deadline_ns: Option<u64>) {
        let Slice { queued, .. } = slice;
        let Queued { running, vcpu } = queued;
        let (vcpu, place) = (*vcpu, &running.vcpus[*vcpu]);
        if running.is_over() {
            return self.leave(queued);
        }
        let start_ns = self.host.clock.now_ns();
        let is_throttled = running.is_throttled();
        place.begin_slice(start_ns);
        if vcpu == 0 {
            match running.prepare(self.host) {
                Ok(true) => {}
                Ok(false) => return self.book(queued, start_ns, is_throttled),
                Err(refusal) => return self.end(queued, Ending::NotStarted(refusal)),
            }
        }
        if !self.load(queued) {
            self.book(queued, start_ns, is_throttled);
            // It has no thread yet, or its VM was paused this moment: either way somebody wakes it.
            return place.sleep(&running.machine, vcpu, None);
        }
        let (limit_ns, is_alone) = self.limit_ns(slice, start_ns, is_throttled, deadline_ns);
        let loaded = self.loaded.as_mut().expect("it was loaded");
        let mut host = GuestHost {
            cpu: self.index,
            host: self.host,
            queued,
            alarm: &mut self.alarm,
            forwarder: &mut self.forwarder,
            turns: &mut self.turns,
            start_ns,
            limit_ns,
            is_alone,
        };
        host.arm_limit();
        host::trace(self.index, Event::Schedule { vm: running.vm.id, vcpu: vcpu as u16 });
        let pause = running.machine.run(&mut loaded.thread, &mut self.outbox, &mut host);
        self.book(queued, start_ns, is_throttled);
        match pause {
            Pause::Interrupted => {}
            Pause::Idle(until_ns) => place.sleep(&running.machine, vcpu, until_ns),
            Pause::Ended(end) => self.end(queued, Ending::Ended(end)),
        }
    }

    /// Books the time that a vCPU had this CPU. What it had of it before it was throttled counts for nothing there: it may
    /// have been long.
    fn book(&mut self, queued: &Queued, start_ns: u64, was_throttled: bool) {
        let end_ns = self.host.clock.now_ns();
        let ran_ns = end_ns.saturating_sub(start_ns);
        let Queued { running, vcpu } = queued;
        running.vcpus[*vcpu].end_slice(end_ns);
        if let Some(services) = &mut self.services {
            services.note_guest_ran(ran_ns);
        }
        let throttled_ns = if was_throttled { ran_ns } else { 0 };
        running.book(throttled_ns, end_ns);
        running.vcpus[*vcpu].throttle(throttled_ns, end_ns, running.running_percent());
        self.turns.ran(queued, ran_ns);
    }

    /// When a vCPU that starts now has to let go of its CPU: for what else is due here, and for another vCPU that is ready
    /// or will be. However much there is to do, a guest gets on: what is due already waits for a moment. Says too whether it
    /// has the CPU for itself until then.
    fn limit_ns(
        &self,
        slice: &Slice,
        start_ns: u64,
        is_throttled: bool,
        deadline_ns: Option<u64>,
    ) -> (Option<u64>, bool) {
        let queue = self.host.cpus.queue(self.index).lock();
        let others = queue.iter().filter(|other| !other.is(&slice.queued));
        let other_ns = others.filter_map(|other| other.running.ready_at_ns(other.vcpu)).min();
        let slice_end_ns = match other_ns {
            Some(ready_ns) if ready_ns <= start_ns => Some(start_ns + slice.ns),
            later => later.filter(|&ready_ns| ready_ns != u64::MAX),
        };
        let throttled_ns = is_throttled.then_some(start_ns + THROTTLED_SLICE_NS);
        let limit_ns = deadline_ns.into_iter().chain(slice_end_ns).chain(throttled_ns).min();
        let is_alone = !is_throttled && other_ns.is_none_or(|ready_ns| ready_ns > start_ns);
        (limit_ns.map(|ns| ns.max(start_ns + SLICE_NS_MIN)), is_alone)
    }

    /// Puts a vCPU's floating-point state in place of another's; says whether it may run.
    fn load(&mut self, queued: &Queued) -> bool {
        if self.loaded.as_ref().is_some_and(|loaded| loaded.queued.is(queued)) {
            return true;
        }
        self.unload();
        let thread = queued.running.take(queued.vcpu);
        self.loaded = thread.map(|thread| Loaded { queued: queued.clone(), thread });
        self.loaded.is_some()
    }

    /// Takes the vCPU that is on this CPU home.
    fn unload(&mut self) {
        if let Some(Loaded { queued, mut thread }) = self.loaded.take() {
            thread.unload();
            queued.running.vcpus[queued.vcpu].put(thread);
        }
    }

    /// Ends a VM because of what a vCPU did or could not do.
    fn end(&mut self, queued: &Queued, ending: Ending) {
        queued.running.finish(self.host, self.index, ending);
        self.leave(queued);
    }

    /// Stops running a vCPU whose VM is over; with the last one the services take it down.
    fn leave(&mut self, queued: &Queued) {
        if self.loaded.as_ref().is_some_and(|loaded| loaded.queued.is(queued)) {
            self.unload();
        }
        self.turns.forget(queued);
        self.host.cpus.queue(self.index).lock().retain(|other| !other.is(queued));
        if let Some(ending) = queued.running.leave() {
            services::hand_over(self.host, self.index, queued.running.clone(), ending);
        }
    }

    /// Waits for an interrupt, at the latest until something is due.
    fn sleep(&mut self, deadline_ns: Option<u64>) {
        let queue = self.host.cpus.queue(self.index).lock();
        let ready = queue.iter().filter_map(|queued| queued.running.ready_at_ns(queued.vcpu));
        let next_ns = ready.chain(deadline_ns).min();
        drop(queue);
        if let Some(next_ns) = next_ns.filter(|&next_ns| next_ns != u64::MAX) {
            if next_ns <= self.host.clock.now_ns() {
                return;
            }
            self.alarm.set(&self.host.clock, next_ns);
        }
        let has_work = self.index == 0 && services::has_work();
        if !has_work && !percpu::current().any_arrived() {
            let cpus = &self.host.cpus;
            cpus.set_idle(self.index, self.trades);
            cpus.begin_sleep(self.index, self.host.clock.now_ns());
            cpu::wait_for_interrupt();
            cpus.end_sleep(self.index, self.host.clock.now_ns());
            cpus.set_idle(self.index, false);
        }
    }
}

/// The host, as a guest that runs on a CPU of it needs it.
struct GuestHost<'a> {
    cpu: usize,
    host: &'static Host,
    queued: &'a Queued,
    alarm: &'a mut Alarm,
    forwarder: &'a mut Forwarder,
    turns: &'a mut Turns,
    /// When the vCPU began to run.
    start_ns: u64,
    /// When this CPU has something else to do.
    limit_ns: Option<u64>,
    /// Nobody else is ready to run here.
    is_alone: bool,
}

impl GuestHost<'_> {
    /// Looks for mail until then, or until there is anything else to do, which comes with an interrupt, and that waits outside.
    fn find(&self, has_mail: &dyn Fn() -> bool, until_ns: u64) -> bool {
        loop {
            for _ in 0..LOOKS {
                if has_mail() {
                    return true;
                }
                core::hint::spin_loop();
            }
            if local_apic::has_requests() || self.host.clock.now_ns() >= until_ns {
                return false;
            }
        }
    }

    fn arm_limit(&mut self) {
        if let Some(limit_ns) = self.limit_ns {
            self.alarm.set(&self.host.clock, limit_ns);
        }
    }
}

impl machine::Host for GuestHost<'_> {
    fn now(&self) -> Moment {
        self.host.clock.now()
    }

    fn arm(&mut self, ns: u64) {
        let ns = self.limit_ns.map_or(ns, |limit_ns| ns.min(limit_ns));
        self.alarm.set(&self.host.clock, ns);
    }

    fn kick(&mut self, vcpu: usize) {
        let Queued { running, vcpu: own } = self.queued;
        if vcpu == *own {
            // It looks into its mailbox before it runs on.
            return;
        }
        running.wake(self.host, vcpu, self.cpu);
        if running.vcpus[vcpu].cpu() == self.cpu {
            // Most who interrupt another wait for what it does then.
            self.favour(Some(vcpu));
            self.end_soon();
        }
    }

    fn notify(&mut self, vcpu: usize) {
        let Queued { running, vcpu: own } = self.queued;
        if vcpu != *own {
            self.host.cpus.notify(self.cpu, running.vcpus[vcpu].cpu_to_tell());
        }
    }

    fn show_pages(&mut self, pages: &mut dyn Iterator<Item = (Gpa, Hpa)>, readable: bool) {
        let mut tables = self.queued.running.second_stage();
        for (gpa, hpa) in pages {
            let shown = if readable { tables.map_read_only(gpa, hpa) } else { tables.unmap(gpa) };
            shown.expect("the tables for them are there from the start");
        }
    }

    fn linger(&mut self, has_mail: &dyn Fn() -> bool) -> bool {
        let start_ns = self.host.clock.now_ns();
        let place = &self.queued.running.vcpus[self.queued.vcpu];
        let is_short = place.begin_halt(start_ns);
        if !is_short || !self.is_alone || self.cpu == 0 && services::has_work() {
            return false;
        }
        let has_mail = self.find(has_mail, start_ns + LINGER_NS);
        if has_mail {
            place.end_halt();
        }
        has_mail
    }

    fn may_run_on(&mut self) -> bool {
        cpu::take_interrupts();
        let running = &self.queued.running;
        // The other reasons for a kick: work of the host's, an order, a limit, another vCPU.
        let has_work = || self.cpu == 0 && services::has_work();
        let is_free = || running.may_run() && !running.is_throttled();
        let has_others = || self.host.cpus.queue(self.cpu).lock().len() > 1;
        let is_mail = percpu::current().take_only(interrupts::KICK) && !has_work() && is_free() && !has_others();
        is_mail && self.host.clock.now_ns() < self.start_ns + CALLED_NS_MAX
    }

    fn give_way(&mut self, to: Option<usize>) {
        self.favour(to);
        self.turns.end(self.queued);
    }

    fn back(&mut self, gpa: Gpa) -> bool {
        let is_backed = self.queued.running.back(gpa);
        if !is_backed && self.queued.running.machine.memory().is_waiting() {
            // It is asked for at once.
            services::note_wanted(self.host, self.cpu);
        }
        is_backed
    }

    fn steal_ns(&self) -> u64 {
        self.queued.running.vcpus[self.queued.vcpu].steal_ns()
    }

    fn flush(&mut self, outbox: &mut Outbox) {
        if !outbox.console().is_empty() {
            self.queued.running.vm.console.lock().push(outbox.console());
            services::note_console(self.host, self.cpu);
        }
        if outbox.given_up() {
            self.queued.running.note_given_up();
            services::note_given_up(self.host, self.cpu);
        }
        if outbox.variables() {
            services::note_variables(self.host, self.cpu);
        }
        self.flush_transfers(outbox);
        self.flush_frames(outbox);
    }

    fn random(&mut self, into: &mut [u8]) {
        random(into);
    }

    fn trace(&mut self, event: Event) {
        host::trace(self.cpu, event);
    }
}

impl GuestHost<'_> {
    /// Lets a ready vCPU of the same VM and CPU go next: this one, or any.
    fn favour(&mut self, to: Option<usize>) {
        let Queued { running, vcpu: own } = self.queued;
        let now_ns = self.host.clock.now_ns();
        let may = |vcpu: usize| {
            let is_here = vcpu != *own && running.vcpus[vcpu].cpu() == self.cpu;
            is_here && running.ready_at_ns(vcpu).is_some_and(|ready_ns| ready_ns <= now_ns)
        };
        // Those behind it first, so that each has its turn.
        let count = running.vcpus.len();
        let others = (1..count).map(|distance| (own + distance) % count);
        let found = others.filter(|vcpu| to.is_none_or(|to| to == *vcpu)).find(|&vcpu| may(vcpu));
        if let Some(vcpu) = found {
            self.turns.favour(Queued { running: running.clone(), vcpu });
        }
    }

    fn flush_frames(&mut self, outbox: &mut Outbox) {
        let frames = &*outbox.frames_mut();
        if frames.is_empty() {
            return;
        }
        let (host, cpu) = (self.host, self.cpu);
        let running = &self.queued.running;
        let frame = |index: usize| {
            let machine::OutFrame { nic, frame } = &frames[index];
            let offload = machine::offload_of(&frame.header);
            Frame { from: running.port(*nic), offload, bytes: &frame.bytes }
        };
        self.forwarder.forward(host, frames.len(), frame);
        let mut woke_neighbour = false;
        self.forwarder.settle(host, |running, nic| {
            let mut input = InputHost::new(host, cpu, running);
            running.machine.frames_settle(nic, &mut input);
            woke_neighbour |= input.woke_here;
        });
        if woke_neighbour || cpu == 0 && services::is_urgent() {
            self.end_soon();
        }
    }

    /// Others of this CPU have something to do, of which no interrupt tells.
    fn end_soon(&mut self) {
        self.is_alone = false;
        let soon_ns = self.host.clock.now_ns() + WAKER_NS;
        self.limit_ns = Some(self.limit_ns.map_or(soon_ns, |limit_ns| limit_ns.min(soon_ns)));
        self.arm_limit();
    }

    fn flush_transfers(&mut self, outbox: &Outbox) {
        let running = &self.queued.running;
        let mut refused = Vec::new();
        let mut storage = self.host.storage.lock();
        let mut any = false;
        for (transfer, runs) in outbox.transfers() {
            any = true;
            let lent = running.count(transfer.disk, transfer.op, u64::from(transfer.sectors) * 512);
            let submitted = lent.map_or(Err(Outcome::IoError), |lent| storage.submit(lent, transfer, runs));
            if let Err(outcome) = submitted {
                refused.push((transfer.disk, transfer.id, outcome));
            }
        }
        if any {
            storage.kick();
        }
        let ended = any && storage.has_ended();
        drop(storage);
        if ended {
            services::note_transfers(self.host, self.cpu);
            if self.cpu == 0 {
                self.end_soon();
            }
        }
        let mut host = InputHost::new(self.host, self.cpu, running);
        for (disk, id, outcome) in refused {
            running.count_outcome(disk, outcome);
            running.machine.disk_done(disk, id, outcome, &mut host);
            running.machine.disks_settle(disk, &mut host);
        }
        if host.woke_here {
            self.end_soon();
        }
    }
}

/// The host, as a machine needs it when something enters by its input door.
pub struct InputHost<'a> {
    pub host: &'static Host,
    /// The CPU that calls.
    pub cpu: usize,
    pub running: &'a Arc<Running>,
    /// Whether a vCPU of the same CPU slept, and does no more.
    pub woke_here: bool,
    /// The CPU of a vCPU that was told.
    pub told: Option<usize>,
}

impl<'a> InputHost<'a> {
    /// For input to `running` on the CPU that calls.
    pub fn new(host: &'static Host, cpu: usize, running: &'a Arc<Running>) -> Self {
        Self { host, cpu, running, woke_here: false, told: None }
    }
}

impl machine::Host for InputHost<'_> {
    fn now(&self) -> Moment {
        self.host.clock.now()
    }

    fn arm(&mut self, _ns: u64) {}

    fn kick(&mut self, vcpu: usize) {
        let slept = self.running.wake(self.host, vcpu, self.cpu);
        let cpu = self.running.vcpus[vcpu].cpu();
        self.told = Some(cpu);
        self.woke_here |= slept && cpu == self.cpu;
    }

    fn notify(&mut self, vcpu: usize) {
        let cpu = self.running.vcpus[vcpu].cpu_to_tell();
        self.told = Some(cpu);
        self.host.cpus.notify(self.cpu, cpu);
    }

    fn give_way(&mut self, _to: Option<usize>) {}

    fn steal_ns(&self) -> u64 {
        0
    }

    fn flush(&mut self, _outbox: &mut Outbox) {}

    fn random(&mut self, into: &mut [u8]) {
        random(into);
    }

    fn trace(&mut self, event: Event) {
        host::trace(self.cpu, event);
    }
}

/// Random bytes from the processor; where it has no generator, from the low bits of its counter, which is all there is.
pub fn random(into: &mut [u8]) {
    for chunk in into.chunks_mut(8) {
        let word = cpu::random().unwrap_or_else(|| cpu::tsc().wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}
