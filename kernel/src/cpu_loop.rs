//! What every CPU does for ever: take what arrived, serve, run a guest, or sleep.
//!
//! Interrupts of the host are shut but for two places here: the moment in which they are let in, and the sleep.

use crate::host::{self, Host};
use crate::network::{Forwarder, Frame};
use crate::services::{self, Services};
use crate::vm::{Ending, Order, Running};
use alloc::sync::Arc;
use alloc::vec::Vec;
use cpu::percpu;
use interrupts::local_apic;
use machine::{End, Moment, Outbox, Pause, Thread};
use trace::Event;

/// How long a vCPU runs when others wait for the same CPU.
const SLICE_NS: u64 = 10_000_000;
/// How long a vCPU runs at least, unless an interrupt arrives.
const SLICE_NS_MIN: u64 = 50_000;
/// How long a vCPU runs on that woke another of the same CPU: long enough to send the rest of a batch.
const WAKER_NS: u64 = 100_000;
/// How long a CPU zeroes a new guest's memory before others have their turn.
const PREPARE_NS: u64 = 2_000_000;

/// One CPU's loop.
struct CpuLoop {
    host: &'static Host,
    index: usize,
    outbox: Outbox,
    forwarder: Forwarder,
    /// Interrupts that arrived; kept for its memory.
    arrived: Vec<u8>,
    /// CPU 0 serves.
    services: Option<Services>,
    /// Whose floating-point state is in the processor.
    loaded: Option<Arc<Running>>,
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
    let mut cpu_loop = CpuLoop {
        host,
        index,
        outbox: Outbox::new(),
        forwarder: Forwarder::new(index),
        arrived: Vec::new(),
        services: (index == 0).then(|| Services::new(host)),
        loaded: None,
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
        let mut deadline_ns = None;
        if let Some(services) = &mut self.services {
            deadline_ns = services.poll(&self.arrived, &mut self.forwarder);
        }
        match self.next_ready() {
            Some(running) => self.run_slice(&running, deadline_ns),
            None => self.sleep(deadline_ns),
        }
    }

    /// The vCPU that runs next: the queue turns, so that each comes first once.
    fn next_ready(&mut self) -> Option<Arc<Running>> {
        let now_ns = self.host.clock.now_ns();
        let mut queue = self.host.cpus.queue(self.index).lock();
        let ready = |running: &Arc<Running>| running.ready_at_ns().is_some_and(|ready_ns| ready_ns <= now_ns);
        let position = queue.iter().position(ready)?;
        queue.rotate_left(position);
        let running = queue[0].clone();
        queue.rotate_left(1);
        Some(running)
    }

    /// Runs a vCPU until its slice is over, it sleeps, or there is something else to do.
    fn run_slice(&mut self, running: &Arc<Running>, deadline_ns: Option<u64>) {
        if running.order() != Order::Run {
            let end = if running.order() == Order::Reset { End::Reset } else { End::PowerOff };
            return self.end(running, Ending::Ended(end));
        }
        let start_ns = self.host.clock.now_ns();
        running.begin_slice(start_ns);
        match running.prepare(self.host, start_ns + PREPARE_NS) {
            Ok(true) => {}
            Ok(false) => return running.end_slice(start_ns, self.host.clock.now_ns()),
            Err(refusal) => return self.end(running, Ending::NotStarted(refusal)),
        }
        self.load(running);
        let others = self.host.cpus.queue(self.index).lock().len() > 1;
        let slice_end_ns = others.then_some(start_ns + SLICE_NS);
        // However much there is to do, a guest gets on: what is due already waits this long.
        let limit_ns = deadline_ns.into_iter().chain(slice_end_ns).min().map(|ns| ns.max(start_ns + SLICE_NS_MIN));
        let mut host =
            GuestHost { cpu: self.index, host: self.host, running, forwarder: &mut self.forwarder, limit_ns };
        host.arm_limit();
        host::trace(self.index, Event::Schedule { vm: running.vm.id, vcpu: 0 });
        let pause = running.with_thread(|thread| running.machine.run(thread, &mut self.outbox, &mut host));
        running.end_slice(start_ns, self.host.clock.now_ns());
        match pause.expect("a guest that is prepared has a thread") {
            Pause::Interrupted => {}
            Pause::Idle(until_ns) => running.sleep(until_ns),
            Pause::Ended(end) => self.end(running, Ending::Ended(end)),
        }
    }

    /// Puts a vCPU's floating-point state in place of another's.
    fn load(&mut self, running: &Arc<Running>) {
        if self.loaded.as_ref().is_some_and(|loaded| Arc::ptr_eq(loaded, running)) {
            return;
        }
        if let Some(before) = self.loaded.replace(running.clone()) {
            before.with_thread(Thread::unload);
        }
    }

    /// Stops running a VM; the services take it down.
    fn end(&mut self, running: &Arc<Running>, ending: Ending) {
        running.start.settle(Err(match &ending {
            Ending::NotStarted(refusal) => refusal.clone(),
            Ending::Ended(_) => ("it was stopped before it ran".into(), "start it again".into()),
        }));
        if self.loaded.as_ref().is_some_and(|loaded| Arc::ptr_eq(loaded, running)) {
            running.with_thread(Thread::unload);
            self.loaded = None;
        }
        self.host.cpus.queue(self.index).lock().retain(|other| !Arc::ptr_eq(other, running));
        services::hand_over(running.clone(), ending);
        self.host.cpus.kick(self.index, 0);
    }

    /// Waits for an interrupt, at the latest until something is due.
    fn sleep(&mut self, deadline_ns: Option<u64>) {
        let queue = self.host.cpus.queue(self.index).lock();
        let next_ns = queue.iter().filter_map(|running| running.ready_at_ns()).chain(deadline_ns).min();
        drop(queue);
        if let Some(next_ns) = next_ns.filter(|&next_ns| next_ns != u64::MAX) {
            if next_ns <= self.host.clock.now_ns() {
                return;
            }
            local_apic::arm_timer(self.host.clock.tsc_at(next_ns));
        }
        let has_work = self.index == 0 && services::has_work();
        if !has_work && !percpu::current().any_arrived() {
            cpu::wait_for_interrupt();
        }
    }
}

/// The host, as a guest that runs on a CPU of it needs it.
struct GuestHost<'a> {
    cpu: usize,
    host: &'static Host,
    running: &'a Arc<Running>,
    forwarder: &'a mut Forwarder,
    /// When this CPU has something else to do.
    limit_ns: Option<u64>,
}

impl GuestHost<'_> {
    fn arm_limit(&self) {
        if let Some(limit_ns) = self.limit_ns {
            local_apic::arm_timer(self.host.clock.tsc_at(limit_ns));
        }
    }
}

impl machine::Host for GuestHost<'_> {
    fn now(&self) -> Moment {
        self.host.clock.now()
    }

    fn arm(&mut self, ns: u64) {
        let ns = self.limit_ns.map_or(ns, |limit_ns| ns.min(limit_ns));
        local_apic::arm_timer(self.host.clock.tsc_at(ns));
    }

    fn kick(&mut self, _vcpu: usize) {
        // The only vCPU is the one that calls: it looks into its mailbox before it runs on.
    }

    fn flush(&mut self, outbox: &mut Outbox) {
        if !outbox.console().is_empty() {
            self.running.vm.console.lock().push(outbox.console());
            services::note_console(self.host, self.cpu);
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
    fn flush_frames(&mut self, outbox: &mut Outbox) {
        let frames = &*outbox.frames_mut();
        if frames.is_empty() {
            return;
        }
        let (host, cpu) = (self.host, self.cpu);
        let frame = |index: usize| {
            let machine::OutFrame { nic, frame } = &frames[index];
            let offload = machine::offload_of(&frame.header);
            Frame { from: self.running.ports[*nic], offload, bytes: &frame.bytes }
        };
        self.forwarder.forward(host, frames.len(), frame);
        let mut woke_neighbour = false;
        self.forwarder.settle(host, |running, nic| {
            let mut input = InputHost::new(host, cpu, running);
            running.machine.frames_settle(nic, &mut input);
            woke_neighbour |= input.woke && running.cpu == cpu;
        });
        if woke_neighbour || cpu == 0 && services::is_urgent() {
            self.end_soon();
        }
    }

    /// Others of this CPU have something to do, of which no interrupt tells.
    fn end_soon(&mut self) {
        let soon_ns = self.host.clock.now_ns() + WAKER_NS;
        self.limit_ns = Some(self.limit_ns.map_or(soon_ns, |limit_ns| limit_ns.min(soon_ns)));
        self.arm_limit();
    }

    fn flush_transfers(&mut self, outbox: &Outbox) {
        let mut refused = Vec::new();
        let mut storage = self.host.storage.lock();
        let mut any = false;
        for (transfer, runs) in outbox.transfers() {
            any = true;
            self.running.count(transfer.disk, transfer.op, u64::from(transfer.sectors) * 512);
            if let Err(outcome) = storage.submit(self.running.disks[transfer.disk], transfer, runs) {
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
        for (disk, id, outcome) in refused {
            let machine = &self.running.machine;
            let mut host = InputHost::new(self.host, self.cpu, self.running);
            self.running.count_outcome(disk, outcome);
            machine.disk_done(disk, id, outcome, &mut host);
            machine.disks_settle(disk, &mut host);
        }
    }
}

/// The host, as a machine needs it when something enters by its input door.
pub struct InputHost<'a> {
    pub host: &'static Host,
    /// The CPU that calls.
    pub cpu: usize,
    pub running: &'a Arc<Running>,
    /// Whether it slept, and does no more.
    pub woke: bool,
}

impl<'a> InputHost<'a> {
    /// For input to `running` on the CPU that calls.
    pub fn new(host: &'static Host, cpu: usize, running: &'a Arc<Running>) -> Self {
        Self { host, cpu, running, woke: false }
    }
}

impl machine::Host for InputHost<'_> {
    fn now(&self) -> Moment {
        self.host.clock.now()
    }

    fn arm(&mut self, _ns: u64) {}

    fn kick(&mut self, _vcpu: usize) {
        self.woke |= self.running.wake(self.host, self.cpu);
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
fn random(into: &mut [u8]) {
    for chunk in into.chunks_mut(8) {
        let word = cpu::random().unwrap_or_else(|| cpu::tsc().wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}
